//! Text for people: bytes from elsewhere made safe to print, durations and times.

mod count;
mod human_duration;
mod printable;
mod utc;

pub use count::Count;
pub use human_duration::HumanDuration;
pub use printable::{
    MAX_PRINTABLE_BYTES, Printable, panic_text, printable, printable_ascii, printable_bytes,
    printable_json,
};
pub(crate) use printable::{cut_between_characters, printable_process};
pub(crate) use utc::format_system_time;
pub use utc::format_utc;
