//! Configuration key: its names, its type, and how its value is parsed and formatted.

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

/// A configuration key.
pub(crate) struct Key {
    /// The name in TOML; `--NAME` as a flag, `PREFORK_NAME` in the environment.
    pub name: &'static str,
    /// One-letter form of the flag.
    pub short: Option<char>,
    /// Heading of the key in the help.
    pub heading: &'static str,
    /// Settings field that holds the value; determines the type.
    pub field: SettingField,
    /// Variables of other conventions, used if `PREFORK_NAME` is not set.
    pub aliases: &'static [EnvAlias],
    /// One line of help without the default, which is appended.
    pub help: &'static str,
}

/// A conventional environment variable, such as `PORT`, that sets a key.
pub(crate) struct EnvAlias {
    /// Name of the variable.
    pub var: &'static str,
    /// Converts the variable's text into the key's text; an error completes `VAR = VALUE ...`.
    pub convert: fn(&str) -> Result<String, String>,
}

/// Accessor of a settings field; its variant decides how the value is parsed and formatted.
pub(crate) enum SettingField {
    /// One or more addresses.
    Addresses(fn(&mut UncheckedSettings) -> &mut Vec<ListenAddr>),
    /// `auto` or a number of workers.
    Workers(fn(&mut UncheckedSettings) -> &mut WorkerCount),
    /// A dispatch policy.
    Dispatch(fn(&mut UncheckedSettings) -> &mut Dispatch),
    /// A concurrency model.
    Model(fn(&mut UncheckedSettings) -> &mut ConcurrencyModel),
    /// A whole number.
    Count(fn(&mut UncheckedSettings) -> &mut u32),
    /// A whole number, or `off`; 0 is `off` as well.
    OptionalCount(fn(&mut UncheckedSettings) -> &mut Option<u32>),
    /// A whole number, or `auto`; 0 is `auto` as well.
    AutoCount(fn(&mut UncheckedSettings) -> &mut Option<u32>),
    /// A duration.
    Duration(fn(&mut UncheckedSettings) -> &mut Duration),
    /// A duration, or `off`; 0 is `off` as well.
    OptionalDuration(fn(&mut UncheckedSettings) -> &mut Option<Duration>),
    /// A number of bytes per second, or `off`; 0 is `off` as well.
    OptionalRate(fn(&mut UncheckedSettings) -> &mut Option<u64>),
    /// Reaction to a client that shuts down its sending side.
    HalfClose(fn(&mut UncheckedSettings) -> &mut HalfClosePolicy),
    /// A number of bytes that limits a buffer in memory (`usize`).
    MemorySize(fn(&mut UncheckedSettings) -> &mut usize),
    /// A number of bytes (`u64`).
    ByteCount(fn(&mut UncheckedSettings) -> &mut u64),
    /// A number of bytes, or `off`; 0 is `off` as well.
    OptionalByteCount(fn(&mut UncheckedSettings) -> &mut Option<u64>),
    /// `true` or `false`.
    Switch(fn(&mut UncheckedSettings) -> &mut bool),
    /// An existing directory.
    Directory(fn(&mut UncheckedSettings) -> &mut Option<PathBuf>),
    /// A file, which need not exist.
    File(fn(&mut UncheckedSettings) -> &mut Option<PathBuf>),
    /// A user or group, by name or number.
    UserOrGroup(fn(&mut UncheckedSettings) -> &mut Option<String>),
    /// The value of an HTTP header field.
    HeaderValue(fn(&mut UncheckedSettings) -> &mut Option<String>),
    /// File permissions in octal.
    FileMode(fn(&mut UncheckedSettings) -> &mut Option<u32>),
    /// A path, `auto` or `off`.
    Control(fn(&mut UncheckedSettings) -> &mut ControlSocket),
    /// `auto`, `on` or `off`.
    FdStore(fn(&mut UncheckedSettings) -> &mut FdStore),
    /// An `env_logger` filter.
    LogFilter(fn(&mut UncheckedSettings) -> &mut String),
}

impl Key {
    /// Returns the name of the environment variable, such as `PREFORK_WORKERS`.
    pub(crate) fn env_var(&self) -> String {
        format!("PREFORK_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Returns whether the key takes several values.
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.field, SettingField::Addresses(_))
    }

    /// Returns whether the flag without a value means `true`.
    pub(crate) fn is_switch(&self) -> bool {
        matches!(self.field, SettingField::Switch(_))
    }

    /// Returns the placeholder of the value in the help.
    pub(crate) fn value_name(&self) -> &'static str {
        match self.field {
            SettingField::Addresses(_) => "ADDRESS",
            SettingField::Workers(_)
            | SettingField::Count(_)
            | SettingField::OptionalCount(_)
            | SettingField::AutoCount(_) => "N",
            SettingField::Dispatch(_) => "POLICY",
            SettingField::Model(_) => "MODEL",
            SettingField::Duration(_) | SettingField::OptionalDuration(_) => "DURATION",
            SettingField::OptionalRate(_) | SettingField::OptionalByteCount(_) => "SIZE",
            SettingField::HalfClose(_) => "HOW",
            SettingField::MemorySize(_) | SettingField::ByteCount(_) => "SIZE",
            SettingField::Switch(_) => "BOOL",
            SettingField::Directory(_) => "DIR",
            SettingField::File(_) => "FILE",
            SettingField::UserOrGroup(_) => "NAME",
            SettingField::HeaderValue(_) => "VALUE",
            SettingField::FileMode(_) => "MODE",
            SettingField::Control(_) => "PATH",
            SettingField::FdStore(_) => "WHEN",
            SettingField::LogFilter(_) => "FILTER",
        }
    }

    /// Parses a configured value into its settings field. Bounds are checked later, over all settings.
    pub(crate) fn parse_into(
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
                *field(unchecked) = configured.parse_one(value_syntax::parse_choice)?
            }
            SettingField::Model(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_choice)?
            }
            SettingField::Count(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_count)?
            }
            SettingField::OptionalCount(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_optional_count)?
            }
            SettingField::AutoCount(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_auto_count)?
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
                *field(unchecked) = configured.parse_one(value_syntax::parse_choice)?
            }
            SettingField::MemorySize(field) => {
                *field(unchecked) =
                    usize::try_from(configured.parse_one(value_syntax::parse_size)?)
                        .unwrap_or(usize::MAX);
            }
            SettingField::ByteCount(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_size)?
            }
            SettingField::OptionalByteCount(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_optional_size)?
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
            SettingField::UserOrGroup(field) => {
                *field(unchecked) = Some(configured.parse_one(value_syntax::parse_user_or_group)?)
            }
            SettingField::HeaderValue(field) => {
                *field(unchecked) = Some(configured.parse_one(value_syntax::parse_header_value)?)
            }
            SettingField::FileMode(field) => {
                *field(unchecked) = Some(configured.as_written().parse_one(UnixAddr::parse_mode)?)
            }
            SettingField::Control(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_choice)?
            }
            SettingField::FdStore(field) => {
                *field(unchecked) = configured.parse_one(value_syntax::parse_choice)?
            }
            SettingField::LogFilter(field) => {
                *field(unchecked) = configured.parse_one(log_filter::parse_log_filter)?
            }
        }
        Ok(())
    }

    /// Formats the value of the settings field so that it can be parsed again; empty if there is none.
    ///
    /// Takes `&mut` only because the accessor in [`SettingField`] serves reading and writing.
    pub(crate) fn format_value(&self, unchecked: &mut UncheckedSettings) -> String {
        match self.field {
            SettingField::Addresses(field) => {
                field(unchecked).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
            SettingField::Workers(field) => field(unchecked).to_string(),
            SettingField::Dispatch(field) => field(unchecked).to_string(),
            SettingField::Model(field) => field(unchecked).to_string(),
            SettingField::Count(field) => field(unchecked).to_string(),
            SettingField::OptionalCount(field) => {
                field(unchecked).map_or_else(|| value_syntax::OFF.to_string(), |n| n.to_string())
            }
            SettingField::AutoCount(field) => {
                field(unchecked).map_or_else(|| value_syntax::AUTO.to_string(), |n| n.to_string())
            }
            SettingField::Duration(field) => value_syntax::format_duration(*field(unchecked)),
            SettingField::OptionalDuration(field) => field(unchecked)
                .map_or_else(|| value_syntax::OFF.to_string(), value_syntax::format_duration),
            SettingField::OptionalRate(field) | SettingField::OptionalByteCount(field) => {
                field(unchecked)
                    .map_or_else(|| value_syntax::OFF.to_string(), value_syntax::format_size)
            }
            SettingField::HalfClose(field) => field(unchecked).to_string(),
            SettingField::MemorySize(field) => value_syntax::format_size(*field(unchecked) as u64),
            SettingField::ByteCount(field) => value_syntax::format_size(*field(unchecked)),
            SettingField::Switch(field) => field(unchecked).to_string(),
            SettingField::Directory(field) | SettingField::File(field) => {
                field(unchecked).as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            }
            SettingField::FileMode(field) => {
                field(unchecked).map(|mode| format!("{mode:04o}")).unwrap_or_default()
            }
            SettingField::UserOrGroup(field) | SettingField::HeaderValue(field) => {
                field(unchecked).clone().unwrap_or_default()
            }
            SettingField::Control(field) => field(unchecked).to_string(),
            SettingField::FdStore(field) => field(unchecked).to_string(),
            SettingField::LogFilter(field) => field(unchecked).clone(),
        }
    }

    /// Formats the default so that it can be parsed again; empty if there is none.
    pub(crate) fn default_text(&self) -> String {
        self.format_value(&mut UncheckedSettings::default())
    }
}
