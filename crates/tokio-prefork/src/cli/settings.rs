//! The resolved configuration: the value of every key and its source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::app_keys::AppKeys;
use super::configured_value::{ConfiguredValue, ValueSource};
use super::environment::Environment;
use super::file::{self, APP_TABLE};
use super::key::{self, KeyInfo, RefusedKey};
use super::program::Program;
use super::server_keys::SERVER_KEYS;
use super::value_syntax::AUTO;
use crate::config::Config;
use crate::error::{Error, Result};

/// The effective value of a key and its source, as `--check-config` prints them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectiveValue {
    /// Name of the key.
    pub key: &'static str,
    /// Value in configuration syntax; empty if there is none.
    pub value: String,
    /// The number that `auto` stands for on this machine. `None` for other values.
    pub resolved: Option<u32>,
    /// Where the value comes from.
    pub source: ValueSource,
}

/// The complete, validated configuration of a program with the keys `A`.
#[derive(Debug, Clone)]
pub struct Settings<A: AppKeys = ()> {
    config: Config,
    app: A,
    effective_values: Vec<EffectiveValue>,
    warnings: Vec<String>,
    /// The file and its text, for the table of the application.
    file: Option<(PathBuf, String)>,
}

impl<A: AppKeys> Settings<A> {
    /// Returns the configuration of the server.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the configuration of the server, with the values of the application attached:
    /// [`Config::app_settings::<A>`](Config::app_settings) returns them in the workers.
    pub fn into_config(self) -> Config {
        self.config.with_app_settings(self.app)
    }

    /// Returns the values of the application's own keys.
    pub fn app(&self) -> &A {
        &self.app
    }

    /// Returns the path of the configuration file, if one is used.
    pub fn config_file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// Returns the value of every key with its source, in the order of the help.
    pub fn effective_values(&self) -> &[EffectiveValue] {
        &self.effective_values
    }

    /// Returns the problems that do not prevent a start, such as variables with a misspelt name.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Logs the warnings, at level `warn`.
    pub fn log_warnings(&self) {
        for warning in &self.warnings {
            log::warn!("{warning}");
        }
    }

    /// Reads the table `[app]` of the configuration file into a type of the application. Without a file, or without the
    /// table, the type sees an empty table.
    ///
    /// # Errors
    ///
    /// The table does not fit the type; the error names the file and the key.
    pub fn app_table<T: DeserializeOwned>(&self) -> Result<T> {
        let (place, table) = match &self.file {
            Some((path, text)) => {
                let mut all: toml::Table = toml::from_str(text).map_err(|error| {
                    Error::config(format!("{}: not TOML: {}", path.display(), error.message()))
                })?;
                let table = all.remove(APP_TABLE).unwrap_or(toml::Table::new().into());
                (format!("{}: ", path.display()), table)
            }
            None => (String::new(), toml::Table::new().into()),
        };
        table.try_into().map_err(|error: toml::de::Error| {
            // The message is followed by lines that show the place in the table.
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            Error::config(format!("{place}[{APP_TABLE}]: {}", lines.join(", ")))
        })
    }
}

/// Merges and validates all sources: flags win over environment, file and defaults, in this order.
///
/// Only the winning value of a key is parsed: overridden values may be invalid.
pub(super) fn resolve_settings<A: AppKeys>(
    program: &Program,
    flags: &BTreeMap<&'static str, Vec<String>>,
    env: &Environment,
    file: Option<(PathBuf, String)>,
) -> Result<Settings<A>> {
    let keys = key::all_keys::<A>();
    check_refused_keys(A::REFUSED_KEYS, flags, env)?;
    let in_file = match &file {
        Some((path, text)) => {
            file::parse_config_file(path, text, &keys, A::REFUSED_KEYS, A::READS_OTHER_NAMES)?
        }
        None => BTreeMap::new(),
    };
    let values = configured_values(&keys, flags, env, in_file)?;
    let (mut config, mut app) = (A::server_defaults().config, A::default());
    for key in SERVER_KEYS {
        if let Some(value) = values.get(key.name) {
            key.parse_into(&mut config, value).map_err(|e| value.to_error(key.name, &e))?;
        }
    }
    for key in A::KEYS {
        if let Some(value) = values.get(key.name) {
            key.parse_into(&mut app, value).map_err(|e| value.to_error(key.name, &e))?;
        }
    }
    if values.contains_key("bind") {
        config.set_bind_given();
    }
    let effective_values = effective_values(&keys, &values, &mut config, &mut app);
    let config = config.into_builder().name(program.name);
    let config = match program.version {
        Some(version) => config.version(version),
        None => config,
    };
    let config = config.build().map_err(|error| with_source_named(error, &values))?;
    app.check(&config).map_err(|error| with_source_named(error, &values))?;
    let warnings = env.unknown_variable_warnings(&keys, A::READS_OTHER_NAMES);
    Ok(Settings { config, app, effective_values, warnings, file })
}

/// Returns an error with the reason if a flag or a variable sets a key that the program does not take.
fn check_refused_keys(
    refused_keys: &[RefusedKey],
    flags: &BTreeMap<&'static str, Vec<String>>,
    env: &Environment,
) -> Result<()> {
    for RefusedKey { name, reason } in refused_keys {
        if flags.contains_key(name) {
            return Err(Error::config(format!("--{name} {reason}")));
        }
        if let Some(variable) = env.own_var_of(name) {
            return Err(Error::config(format!("{variable}: {name} {reason}")));
        }
    }
    Ok(())
}

/// Returns the winning value of each key that is set.
fn configured_values(
    keys: &[KeyInfo],
    flags: &BTreeMap<&'static str, Vec<String>>,
    env: &Environment,
    mut in_file: BTreeMap<&'static str, ConfiguredValue>,
) -> Result<BTreeMap<&'static str, ConfiguredValue>> {
    let mut values = BTreeMap::new();
    for key in keys {
        let value = match flags.get(key.name) {
            Some(texts) => Some(ConfiguredValue::from_flag(key, texts)),
            None => env.value_of(key)?.or_else(|| in_file.remove(key.name)),
        };
        values.extend(value.map(|value| (key.name, value)));
    }
    Ok(values)
}

fn effective_values<A: AppKeys>(
    keys: &[KeyInfo],
    values: &BTreeMap<&'static str, ConfiguredValue>,
    config: &mut Config,
    app: &mut A,
) -> Vec<EffectiveValue> {
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    let mut resolved: BTreeMap<&str, u32> = BTreeMap::new();
    for key in SERVER_KEYS {
        let text = key.field.format_value(config);
        resolved.extend(
            (text == AUTO).then(|| config.resolve_auto(key.name)).flatten().map(|n| (key.name, n)),
        );
        texts.insert(key.name, text);
    }
    texts.extend(A::KEYS.iter().map(|key| (key.name, key.field.format_value(app))));
    let source = |name| values.get(name).map_or(ValueSource::Default, |value| value.source.clone());
    keys.iter()
        .map(|key| EffectiveValue {
            key: key.name,
            value: texts.remove(key.name).unwrap_or_default(),
            resolved: resolved.get(key.name).copied(),
            source: source(key.name),
        })
        .collect()
}

/// Adds the source of the value to an error of the final checks, which starts with `KEY = `.
fn with_source_named(error: Error, values: &BTreeMap<&'static str, ConfiguredValue>) -> Error {
    let text = error.to_string();
    let name = text.split_once(" = ").map(|(name, _)| name);
    match name.and_then(|name| values.get_key_value(name)) {
        Some((name, value)) => value.with_source_named(name, &text),
        None => error,
    }
}
