//! Text for people: bytes from elsewhere made safe to print, and durations.

mod human_duration;
mod printable;

pub use human_duration::HumanDuration;
pub(crate) use printable::printable_process;
pub use printable::{
    MAX_PRINTABLE_BYTES, Printable, panic_text, printable, printable_ascii, printable_bytes,
    printable_json,
};
