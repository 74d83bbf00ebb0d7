//! What a key is: its names, its type, and how its value is read and printed.

use std::path::PathBuf;
use std::time::Duration;

use super::configured_value::{ConfiguredValue, ValueError};
use super::log_filter;
use super::unchecked_settings::UncheckedSettings;
use super::value_syntax;
use tokio_prefork::{
    ConcurrencyModel, ControlSocket, Dispatch, FdStore, HalfClosePolicy, WorkerCount,
};
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
    pub field: SettingField,
    /// Variables of other people's conventions, honoured below our own.
    pub aliases: &'static [EnvAlias],
    /// One line without the default, which is printed after it.
    pub help: &'static str,
}

/// A variable that others set (a platform, a habit), and how its text becomes ours.
pub(crate) struct EnvAlias {
    /// The name of the variable.
    pub var: &'static str,
    /// From its text to the key's; the error says what is wrong with it.
    pub convert: fn(&str) -> Result<String, String>,
}

/// The field of a value in the unchecked; its type decides how it is read and printed.
pub(crate) enum SettingField {
    /// One or more addresses.
    Addresses(fn(&mut UncheckedSettings) -> &mut Vec<ListenAddr>),
    /// `auto` or a count.
    Workers(fn(&mut UncheckedSettings) -> &mut WorkerCount),
    /// A policy's name.
    Dispatch(fn(&mut UncheckedSettings) -> &mut Dispatch),
    /// A concurrency model's name.
    Model(fn(&mut UncheckedSettings) -> &mut ConcurrencyModel),
    /// A whole number.
    Count(fn(&mut UncheckedSettings) -> &mut u32),
    /// A duration.
    Duration(fn(&mut UncheckedSettings) -> &mut Duration),
    /// A duration, or `off`.
    OptionalDuration(fn(&mut UncheckedSettings) -> &mut Option<Duration>),
    /// A number of bytes per second, or `off`.
    OptionalRate(fn(&mut UncheckedSettings) -> &mut Option<u64>),
    /// What becomes of clients that close their sending side.
    HalfClose(fn(&mut UncheckedSettings) -> &mut HalfClosePolicy),
    /// A number of bytes that is held in memory.
    Size(fn(&mut UncheckedSettings) -> &mut usize),
    /// A number of bytes that goes by.
    Length(fn(&mut UncheckedSettings) -> &mut u64),
    /// True or false.
    Switch(fn(&mut UncheckedSettings) -> &mut bool),
    /// A directory that exists.
    Directory(fn(&mut UncheckedSettings) -> &mut Option<PathBuf>),
    /// A file that may be made.
    File(fn(&mut UncheckedSettings) -> &mut Option<PathBuf>),
    /// A user or a group: its name or number.
    Name(fn(&mut UncheckedSettings) -> &mut Option<String>),
    /// The value of a field of HTTP.
    HeaderValue(fn(&mut UncheckedSettings) -> &mut Option<String>),
    /// Permissions of a file, in octal.
    Mode(fn(&mut UncheckedSettings) -> &mut Option<u32>),
    /// A path, `auto` or `off`.
    Control(fn(&mut UncheckedSettings) -> &mut ControlSocket),
    /// `auto`, `on` or `off`.
    FdStore(fn(&mut UncheckedSettings) -> &mut FdStore),
    /// An `env_logger` filter.
    Filter(fn(&mut UncheckedSettings) -> &mut String),
}

impl Key {
    /// Our own environment variable for it.
    pub(crate) fn env_var(&self) -> String {
        format!("PREFORK_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Whether it takes several values.
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.field, SettingField::Addresses(_))
    }

    /// Whether its flag stands for `true` when it has no value.
    pub(crate) fn is_switch(&self) -> bool {
        matches!(self.field, SettingField::Switch(_))
    }

    /// What the help calls the value.
    pub(crate) fn value_name(&self) -> &'static str {
        match self.field {
            SettingField::Addresses(_) => "ADDRESS",
            SettingField::Workers(_) | SettingField::Count(_) => "N",
            SettingField::Dispatch(_) => "POLICY",
            SettingField::Model(_) => "MODEL",
            SettingField::Duration(_) | SettingField::OptionalDuration(_) => "DURATION",
            SettingField::OptionalRate(_) => "SIZE",
            SettingField::HalfClose(_) => "HOW",
            SettingField::Size(_) | SettingField::Length(_) => "SIZE",
            SettingField::Switch(_) => "BOOL",
            SettingField::Directory(_) => "DIR",
            SettingField::File(_) => "FILE",
            SettingField::Name(_) => "NAME",
            SettingField::HeaderValue(_) => "VALUE",
            SettingField::Mode(_) => "MODE",
            SettingField::Control(_) => "PATH",
            SettingField::FdStore(_) => "WHEN",
            SettingField::Filter(_) => "FILTER",
        }
    }

    /// Reads what was said into the unchecked. Bounds are checked later, over the whole unchecked.
    pub(crate) fn set(
        &self,
        unchecked: &mut UncheckedSettings,
        configured: &ConfiguredValue,
    ) -> Result<(), ValueError> {
        match self.field {
            SettingField::Addresses(field) => {
                *field(unchecked) = configured.parse_each(value_syntax::parse_address)?
            }
            SettingField::Workers(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_workers)?
            }
            SettingField::Dispatch(field) => {
                *field(unchecked) = configured.parse_one(str::parse)?
            }
            SettingField::Model(field) => *field(unchecked) = configured.parse_one(str::parse)?,
            SettingField::Count(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_count)?
            }
            SettingField::Duration(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_duration)?
            }
            SettingField::OptionalDuration(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_optional_duration)?
            }
            SettingField::OptionalRate(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_optional_rate)?
            }
            SettingField::HalfClose(field) => {
                *field(unchecked) = configured.parse_one(str::parse)?
            }
            SettingField::Size(field) => {
                *field(unchecked) =
                    usize::try_from(configured.parse_one(value_syntax::parse_size)?)
                        .unwrap_or(usize::MAX);
            }
            SettingField::Length(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_size)?
            }
            SettingField::Switch(field) => {
                *field(unchecked) = match configured.is_from_file() {
                    true => configured.parse_one(value_syntax::parse_toml_switch)?,
                    false => configured.parse_one(value_syntax::parse_switch)?,
                };
            }
            SettingField::Directory(field) => {
                *field(unchecked) = Some(configured.parse_one(value_syntax::parse_directory)?)
            }
            SettingField::File(field) => {
                *field(unchecked) = Some(configured.parse_one(value_syntax::parse_file)?)
            }
            SettingField::Name(field) => {
                *field(unchecked) = Some(configured.parse_one(value_syntax::parse_name)?)
            }
            SettingField::HeaderValue(field) => {
                *field(unchecked) = Some(configured.parse_one(value_syntax::parse_header_value)?)
            }
            SettingField::Mode(field) => {
                *field(unchecked) = Some(configured.as_written().parse_one(UnixAddr::parse_mode)?)
            }
            SettingField::Control(field) => *field(unchecked) = configured.parse_one(str::parse)?,
            SettingField::FdStore(field) => *field(unchecked) = configured.parse_one(str::parse)?,
            SettingField::Filter(field) => {
                *field(unchecked) = configured.parse_one(log_filter::read)?
            }
        }
        Ok(())
    }

    /// The unchecked's value in the form in which it can be given; empty if there is none.
    ///
    /// The unchecked is only read, but the one accessor of a [`SettingField`] is for both ways.
    pub(crate) fn format_value(&self, unchecked: &mut UncheckedSettings) -> String {
        match self.field {
            SettingField::Addresses(field) => {
                field(unchecked).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
            SettingField::Workers(field) => value_syntax::format_workers(*field(unchecked)),
            SettingField::Dispatch(field) => field(unchecked).to_string(),
            SettingField::Model(field) => field(unchecked).to_string(),
            SettingField::Count(field) => field(unchecked).to_string(),
            SettingField::Duration(field) => value_syntax::format_duration(*field(unchecked)),
            SettingField::OptionalDuration(field) => field(unchecked)
                .map_or_else(|| value_syntax::OFF.to_string(), value_syntax::format_duration),
            SettingField::OptionalRate(field) => field(unchecked)
                .map_or_else(|| value_syntax::OFF.to_string(), value_syntax::format_size),
            SettingField::HalfClose(field) => field(unchecked).to_string(),
            SettingField::Size(field) => value_syntax::format_size(*field(unchecked) as u64),
            SettingField::Length(field) => value_syntax::format_size(*field(unchecked)),
            SettingField::Switch(field) => field(unchecked).to_string(),
            SettingField::Directory(field) | SettingField::File(field) => {
                field(unchecked).as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            }
            SettingField::Mode(field) => {
                field(unchecked).map(|mode| format!("{mode:04o}")).unwrap_or_default()
            }
            SettingField::Name(field) | SettingField::HeaderValue(field) => {
                field(unchecked).clone().unwrap_or_default()
            }
            SettingField::Control(field) => field(unchecked).to_string(),
            SettingField::FdStore(field) => field(unchecked).to_string(),
            SettingField::Filter(field) => field(unchecked).clone(),
        }
    }

    /// The default in the form in which it can be given; empty if there is none.
    pub(crate) fn default_text(&self) -> String {
        self.format_value(&mut UncheckedSettings::default())
    }
}
