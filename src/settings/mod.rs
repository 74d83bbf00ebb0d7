//! Configuration of the command: merges flags, environment, TOML file and defaults, and records the source of each value.

mod configured_value;
mod did_you_mean;
mod environment;
mod file;
pub(crate) mod key;
pub(crate) mod key_table;
mod log_filter;
mod unchecked_settings;
pub(crate) mod value_syntax;

use std::collections::BTreeMap;
use std::path::PathBuf;

use configured_value::{ConfiguredValue, ValueText};
use environment::{CONFIG_VAR, Environment};
use key::Key;
use key_table::KEYS;
use tokio_prefork::{Config, Error, Result};
use unchecked_settings::UncheckedSettings;

pub(crate) use configured_value::ValueSource;
pub(crate) use unchecked_settings::AppSettings;

/// Configuration flags of the command line, unparsed.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlagValues {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Values by key name; several if the flag was repeated.
    pub values: BTreeMap<&'static str, Vec<String>>,
}

impl FlagValues {
    fn value_of(&self, key: &Key) -> Option<ConfiguredValue> {
        let items = self.values.get(key.name)?.iter().map(|text| ValueText::quoted(text)).collect();
        Some(ConfiguredValue { items, is_list: key.is_list(), source: ValueSource::Flag(key.name) })
    }
}

/// The effective value of a key and its source, as `prefork check` prints them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EffectiveValue {
    /// Name of the key.
    pub key: &'static str,
    /// Value in configuration syntax; empty if there is none.
    pub value: String,
    /// Where the value comes from.
    pub source: ValueSource,
}

/// The complete, validated configuration.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Configuration of the library.
    pub config: Config,
    /// Settings of the built-in application.
    pub app: AppSettings,
    /// Filter of the logger.
    pub log: String,
    /// All keys, in the order of the key table.
    pub effective_values: Vec<EffectiveValue>,
    /// Problems that do not prevent a start.
    pub warnings: Vec<String>,
}

/// Flags and environment of the process, kept so that a reload can resolve the configuration again.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSources {
    flags: FlagValues,
    env: Vec<(String, String)>,
}

impl ConfigSources {
    /// Captures the environment of this process, next to the given flags.
    pub(crate) fn from_process(flags: FlagValues) -> ConfigSources {
        // A value that is not UTF-8 is never valid; the replacement characters make its check fail.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        ConfigSources { flags, env }
    }

    /// Reads the configuration file, if one is set, and resolves all settings.
    pub(crate) fn resolve(&self) -> Result<Settings> {
        let named = self.env.iter().find(|(name, value)| name == CONFIG_VAR && !value.is_empty());
        let path = self.flags.config.clone().or_else(|| named.map(|(_, path)| path.into()));
        let file = match path {
            Some(path) => Some((path.clone(), file::read_config_file(&path)?)),
            None => None,
        };
        resolve_settings(&self.flags, self.env.iter().cloned(), file)
    }
}

/// Merges and validates all sources: flags win over environment, file and defaults, in this order.
///
/// Only the winning value of a key is parsed: overridden values may be invalid.
pub(crate) fn resolve_settings(
    flags: &FlagValues,
    env: impl Iterator<Item = (String, String)>,
    file: Option<(PathBuf, String)>,
) -> Result<Settings> {
    let env = Environment::new(env);
    let mut in_file = match &file {
        Some((path, text)) => file::parse_config_file(path, text)?,
        None => BTreeMap::new(),
    };
    let mut unchecked = UncheckedSettings::default();
    let mut configured_values: BTreeMap<&'static str, ConfiguredValue> = BTreeMap::new();
    for key in KEYS {
        let configured = match flags.value_of(key) {
            Some(configured) => Some(configured),
            None => env.value_of(key)?.or_else(|| in_file.remove(key.name)),
        };
        if let Some(configured) = configured {
            key.parse_into(&mut unchecked, &configured)
                .map_err(|problem| configured.to_error(key, &problem))?;
            configured_values.insert(key.name, configured);
        }
    }
    let effective_values = KEYS.iter().map(|key| EffectiveValue {
        key: key.name,
        value: key.format_value(&mut unchecked),
        source: configured_values
            .get(key.name)
            .map_or(ValueSource::Default, |configured| configured.source.clone()),
    });
    let effective_values = effective_values.collect();
    let (config, app, log) =
        unchecked.check().map_err(|error| with_source_named(error, &configured_values))?;
    Ok(Settings { config, app, log, effective_values, warnings: env.unknown_variable_warnings() })
}

/// Adds the source of the value to an error of the final checks, which starts with `KEY = `.
fn with_source_named(
    error: Error,
    configured_values: &BTreeMap<&'static str, ConfiguredValue>,
) -> Error {
    let text = error.to_string();
    let key = text.split_once(" = ").and_then(|(name, _)| key_table::find_key(name));
    match key.and_then(|key| configured_values.get(key.name).map(|configured| (key, configured))) {
        Some((key, configured)) => configured.with_source_named(key, &text),
        None => error,
    }
}

#[cfg(test)]
mod tests;
