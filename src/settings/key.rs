//! What a key is: its names, its type, and how its value is read and printed.

use std::path::PathBuf;
use std::time::Duration;

use super::draft::Draft;
use super::log_filter;
use super::said::{Problem, Said};
use super::value;
use tokio_prefork::{ControlSocket, Dispatch, FdStore, HalfClose, Model, Workers};
use tokio_prefork::{ListenAddr, UnixAddr};

/// One thing an operator may set.
pub(crate) struct Key {
    /// The name in TOML; `--NAME` as a flag, `PREFORK_NAME` in the environment.
    pub name: &'static str,
    /// The flag's one-letter form.
    pub short: Option<char>,
    /// The heading under which the help has it.
    pub group: &'static str,
    /// Where the value goes, and with that its type.
    pub field: Field,
    /// Variables of other people's conventions, honoured below our own.
    pub aliases: &'static [Alias],
    /// One line without the default, which is printed after it.
    pub help: &'static str,
}

/// A variable that others set (a platform, a habit), and how its text becomes ours.
pub(crate) struct Alias {
    /// The name of the variable.
    pub var: &'static str,
    /// From its text to the key's; the error says what is wrong with it.
    pub convert: fn(&str) -> Result<String, String>,
}

/// The place of a value in the draft; its type decides how it is read and printed.
pub(crate) enum Field {
    /// One or more addresses.
    Addresses(fn(&mut Draft) -> &mut Vec<ListenAddr>),
    /// `auto` or a count.
    Workers(fn(&mut Draft) -> &mut Workers),
    /// A policy's name.
    Dispatch(fn(&mut Draft) -> &mut Dispatch),
    /// A concurrency model's name.
    Model(fn(&mut Draft) -> &mut Model),
    /// A whole number.
    Count(fn(&mut Draft) -> &mut u32),
    /// A duration.
    Duration(fn(&mut Draft) -> &mut Duration),
    /// A duration, or `off`.
    OptionalDuration(fn(&mut Draft) -> &mut Option<Duration>),
    /// A number of bytes per second, or `off`.
    OptionalRate(fn(&mut Draft) -> &mut Option<u64>),
    /// What becomes of clients that close their sending side.
    HalfClose(fn(&mut Draft) -> &mut HalfClose),
    /// A number of bytes that is held in memory.
    Size(fn(&mut Draft) -> &mut usize),
    /// A number of bytes that goes by.
    Length(fn(&mut Draft) -> &mut u64),
    /// True or false.
    Switch(fn(&mut Draft) -> &mut bool),
    /// A directory that exists.
    Directory(fn(&mut Draft) -> &mut Option<PathBuf>),
    /// A file that may be made.
    File(fn(&mut Draft) -> &mut Option<PathBuf>),
    /// A user or a group: its name or number.
    Name(fn(&mut Draft) -> &mut Option<String>),
    /// The value of a field of HTTP.
    HeaderValue(fn(&mut Draft) -> &mut Option<String>),
    /// Permissions of a file, in octal.
    Mode(fn(&mut Draft) -> &mut Option<u32>),
    /// A path, `auto` or `off`.
    Control(fn(&mut Draft) -> &mut ControlSocket),
    /// `auto`, `on` or `off`.
    FdStore(fn(&mut Draft) -> &mut FdStore),
    /// An `env_logger` filter.
    Filter(fn(&mut Draft) -> &mut String),
}

impl Key {
    /// Our own environment variable for it.
    pub(crate) fn env_var(&self) -> String {
        format!("PREFORK_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Whether it takes several values.
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.field, Field::Addresses(_))
    }

    /// Whether its flag stands for `true` when it has no value.
    pub(crate) fn is_switch(&self) -> bool {
        matches!(self.field, Field::Switch(_))
    }

    /// What the help calls the value.
    pub(crate) fn value_name(&self) -> &'static str {
        match self.field {
            Field::Addresses(_) => "ADDRESS",
            Field::Workers(_) | Field::Count(_) => "N",
            Field::Dispatch(_) => "POLICY",
            Field::Model(_) => "MODEL",
            Field::Duration(_) | Field::OptionalDuration(_) => "DURATION",
            Field::OptionalRate(_) => "SIZE",
            Field::HalfClose(_) => "HOW",
            Field::Size(_) | Field::Length(_) => "SIZE",
            Field::Switch(_) => "BOOL",
            Field::Directory(_) => "DIR",
            Field::File(_) => "FILE",
            Field::Name(_) => "NAME",
            Field::HeaderValue(_) => "VALUE",
            Field::Mode(_) => "MODE",
            Field::Control(_) => "PATH",
            Field::FdStore(_) => "WHEN",
            Field::Filter(_) => "FILTER",
        }
    }

    /// Reads what was said into the draft. Bounds are checked later, over the whole draft.
    pub(crate) fn apply(&self, draft: &mut Draft, said: &Said) -> Result<(), Problem> {
        match self.field {
            Field::Addresses(place) => *place(draft) = said.each(value::address)?,
            Field::Workers(place) => *place(draft) = said.one(value::workers)?,
            Field::Dispatch(place) => *place(draft) = said.one(str::parse)?,
            Field::Model(place) => *place(draft) = said.one(str::parse)?,
            Field::Count(place) => *place(draft) = said.one(value::count)?,
            Field::Duration(place) => *place(draft) = said.one(value::duration)?,
            Field::OptionalDuration(place) => *place(draft) = said.one(value::optional_duration)?,
            Field::OptionalRate(place) => *place(draft) = said.one(value::optional_rate)?,
            Field::HalfClose(place) => *place(draft) = said.one(str::parse)?,
            Field::Size(place) => {
                *place(draft) = usize::try_from(said.one(value::size)?).unwrap_or(usize::MAX);
            }
            Field::Length(place) => *place(draft) = said.one(value::size)?,
            Field::Switch(place) => {
                *place(draft) = match said.is_from_file() {
                    true => said.one(value::toml_switch)?,
                    false => said.one(value::switch)?,
                };
            }
            Field::Directory(place) => *place(draft) = Some(said.one(value::directory)?),
            Field::File(place) => *place(draft) = Some(said.one(value::file)?),
            Field::Name(place) => *place(draft) = Some(said.one(value::name)?),
            Field::HeaderValue(place) => *place(draft) = Some(said.one(value::header_value)?),
            Field::Mode(place) => {
                *place(draft) = Some(said.as_written().one(UnixAddr::parse_mode)?)
            }
            Field::Control(place) => *place(draft) = said.one(str::parse)?,
            Field::FdStore(place) => *place(draft) = said.one(str::parse)?,
            Field::Filter(place) => *place(draft) = said.one(log_filter::read)?,
        }
        Ok(())
    }

    /// The draft's value in the form in which it can be given; empty if there is none.
    ///
    /// The draft is only read, but the one accessor of a [`Field`] is for both ways.
    pub(crate) fn show(&self, draft: &mut Draft) -> String {
        match self.field {
            Field::Addresses(place) => {
                place(draft).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
            Field::Workers(place) => value::show_workers(*place(draft)),
            Field::Dispatch(place) => place(draft).to_string(),
            Field::Model(place) => place(draft).to_string(),
            Field::Count(place) => place(draft).to_string(),
            Field::Duration(place) => value::show_duration(*place(draft)),
            Field::OptionalDuration(place) => {
                place(draft).map_or_else(|| value::OFF.to_string(), value::show_duration)
            }
            Field::OptionalRate(place) => {
                place(draft).map_or_else(|| value::OFF.to_string(), value::show_size)
            }
            Field::HalfClose(place) => place(draft).to_string(),
            Field::Size(place) => value::show_size(*place(draft) as u64),
            Field::Length(place) => value::show_size(*place(draft)),
            Field::Switch(place) => place(draft).to_string(),
            Field::Directory(place) | Field::File(place) => {
                place(draft).as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            }
            Field::Mode(place) => {
                place(draft).map(|mode| format!("{mode:04o}")).unwrap_or_default()
            }
            Field::Name(place) | Field::HeaderValue(place) => {
                place(draft).clone().unwrap_or_default()
            }
            Field::Control(place) => place(draft).to_string(),
            Field::FdStore(place) => place(draft).to_string(),
            Field::Filter(place) => place(draft).clone(),
        }
    }

    /// The default in the form in which it can be given; empty if there is none.
    pub(crate) fn default_text(&self) -> String {
        self.show(&mut Draft::default())
    }
}
