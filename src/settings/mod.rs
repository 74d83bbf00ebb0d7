//! What was *configured*: flags over environment over file over defaults, each value with its source.

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

/// The flags of the command line, in text.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlagValues {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// By the name of the key; several values where the flag was repeated.
    pub values: BTreeMap<&'static str, Vec<String>>,
}

impl FlagValues {
    fn value_of(&self, key: &Key) -> Option<ConfiguredValue> {
        let items = self.values.get(key.name)?.iter().map(|text| ValueText::quoted(text)).collect();
        Some(ConfiguredValue { items, is_list: key.is_list(), source: ValueSource::Flag(key.name) })
    }
}

/// One line of `prefork check`: a key, its value in the end, and who configured so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EffectiveValue {
    /// The name of the key.
    pub key: &'static str,
    /// The value as it could be given; empty if there is none.
    pub value: String,
    /// Who configured it.
    pub source: ValueSource,
}

/// Everything the binary was told, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// For the library.
    pub config: Config,
    /// For the built-in application.
    pub app: AppSettings,
    /// The filter of the logger.
    pub log: String,
    /// Every key in the order of the table.
    pub effective_values: Vec<EffectiveValue>,
    /// What is odd, but no reason to refuse.
    pub warnings: Vec<String>,
}

/// What the process was started with, kept so that a reload can resolve it again.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSources {
    flags: FlagValues,
    env: Vec<(String, String)>,
}

impl ConfigSources {
    /// The given flags and this process's environment.
    pub(crate) fn of_this_process(flags: FlagValues) -> ConfigSources {
        // What is not UTF-8 is no value of ours; replacement characters make it fail its check.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        ConfigSources { flags, env }
    }

    /// Reads the configuration file, if one is named, and resolves.
    pub(crate) fn resolve(&self) -> Result<Settings> {
        let named = self.env.iter().find(|(name, value)| name == CONFIG_VAR && !value.is_empty());
        let path = self.flags.config.clone().or_else(|| named.map(|(_, path)| path.into()));
        let file = match path {
            Some(path) => Some((path.clone(), file::read(&path)?)),
            None => None,
        };
        resolve_settings(&self.flags, self.env.iter().cloned(), file)
    }
}

/// Flags over environment over file over defaults. Touches nothing but named directories.
///
/// Only the value that wins is read: what is overridden may be wrong.
pub(crate) fn resolve_settings(
    flags: &FlagValues,
    env: impl Iterator<Item = (String, String)>,
    file: Option<(PathBuf, String)>,
) -> Result<Settings> {
    let env = Environment::new(env);
    let mut in_file = match &file {
        Some((path, text)) => file::parse(path, text)?,
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
            key.set(&mut unchecked, &configured)
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
    Ok(Settings { config, app, log, effective_values, warnings: env.warnings() })
}

/// The checks of the whole unchecked begin their errors with `KEY = `: with that, the source is found.
fn with_source_named(
    error: Error,
    configured_values: &BTreeMap<&'static str, ConfiguredValue>,
) -> Error {
    let text = error.to_string();
    let key = text.split_once(" = ").and_then(|(name, _)| key_table::find(name));
    match key.and_then(|key| configured_values.get(key.name).map(|configured| (key, configured))) {
        Some((key, configured)) => configured.with_source_named(key, &text),
        None => error,
    }
}

#[cfg(test)]
mod tests;
