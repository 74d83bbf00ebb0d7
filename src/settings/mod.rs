//! What was *said*: flags over environment over file over defaults, each value with its source.

mod draft;
mod environment;
mod file;
pub(crate) mod key;
pub(crate) mod keys;
mod log_filter;
mod nearest;
mod said;
pub(crate) mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

use draft::Draft;
use environment::{CONFIG_VAR, Environment};
use key::Key;
use keys::KEYS;
use said::{Item, Said};
use tokio_prefork::{Config, Error, Result};

pub(crate) use draft::AppSettings;
pub(crate) use said::Source;

/// The flags of the command line, in text.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawFlags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// By the name of the key; several values where the flag was repeated.
    pub values: BTreeMap<&'static str, Vec<String>>,
}

impl RawFlags {
    fn said(&self, key: &Key) -> Option<Said> {
        let items = self.values.get(key.name)?.iter().map(|text| Item::quoted(text)).collect();
        Some(Said { items, list: key.is_list(), source: Source::Flag(key.name) })
    }
}

/// One line of `prefork check`: a key, its value in the end, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The name of the key.
    pub key: &'static str,
    /// The value as it could be given; empty if there is none.
    pub value: String,
    /// Who said it.
    pub source: Source,
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
    pub origins: Vec<Origin>,
    /// What is odd, but no reason to refuse.
    pub warnings: Vec<String>,
}

/// What the process was started with, kept so that a reload can resolve it again.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    flags: RawFlags,
    env: Vec<(String, String)>,
}

impl Inputs {
    /// The given flags and this process's environment.
    pub(crate) fn of_process(flags: RawFlags) -> Inputs {
        // What is not UTF-8 is no value of ours; replacement characters make it fail its check.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Inputs { flags, env }
    }

    /// Reads the configuration file, if one is named, and resolves.
    pub(crate) fn resolve(&self) -> Result<Settings> {
        let named = self.env.iter().find(|(name, value)| name == CONFIG_VAR && !value.is_empty());
        let path = self.flags.config.clone().or_else(|| named.map(|(_, path)| path.into()));
        let file = match path {
            Some(path) => Some((path.clone(), file::read(&path)?)),
            None => None,
        };
        resolve(&self.flags, self.env.iter().cloned(), file)
    }
}

/// Flags over environment over file over defaults. Touches nothing but named directories.
///
/// Only the value that wins is read: what is overridden may be wrong.
pub(crate) fn resolve(
    flags: &RawFlags,
    env: impl Iterator<Item = (String, String)>,
    file: Option<(PathBuf, String)>,
) -> Result<Settings> {
    let env = Environment::new(env);
    let mut in_file = match &file {
        Some((path, text)) => file::parse(path, text)?,
        None => BTreeMap::new(),
    };
    let mut draft = Draft::default();
    let mut heard: BTreeMap<&'static str, Said> = BTreeMap::new();
    for key in KEYS {
        let said = match flags.said(key) {
            Some(said) => Some(said),
            None => env.said(key)?.or_else(|| in_file.remove(key.name)),
        };
        if let Some(said) = said {
            key.apply(&mut draft, &said).map_err(|problem| said.error(key, &problem))?;
            heard.insert(key.name, said);
        }
    }
    let origins = KEYS.iter().map(|key| Origin {
        key: key.name,
        value: key.show(&mut draft),
        source: heard.get(key.name).map_or(Source::Default, |said| said.source.clone()),
    });
    let origins = origins.collect();
    let (config, app, log) = draft.check().map_err(|error| blame(error, &heard))?;
    Ok(Settings { config, app, log, origins, warnings: env.warnings() })
}

/// The checks of the whole draft begin their errors with `KEY = `: with that, the source is found.
fn blame(error: Error, heard: &BTreeMap<&'static str, Said>) -> Error {
    let text = error.to_string();
    let key = text.split_once(" = ").and_then(|(name, _)| keys::find(name));
    match key.and_then(|key| heard.get(key.name).map(|said| (key, said))) {
        Some((key, said)) => said.blame(key, &text),
        None => error,
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
