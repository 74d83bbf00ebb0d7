//! What the configuration file says: flat TOML, every key with its line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key::Key;
use super::keys::{self, KEYS};
use super::nearest::nearest;
use super::said::{Item, Said, Source, quote};
use crate::error::{Error, Result};

/// No configuration is that large; a wrong path (a log, a device) may well be.
const LARGEST: u64 = 1 << 20;

/// Reads the file's text.
pub(super) fn read(path: &Path) -> Result<String> {
    let cannot = |why: String| Error::config(format!("cannot read {}: {why}", path.display()));
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| cannot(error.to_string()))?;
    if bytes.len() as u64 > LARGEST {
        return Err(cannot("it is larger than 1 MiB: is it a configuration file?".to_string()));
    }
    String::from_utf8(bytes).map_err(|_| cannot("it is not UTF-8 text".to_string()))
}

/// Takes the text apart. Only syntax and the names of keys are checked.
pub(super) fn parse(path: &Path, text: &str) -> Result<BTreeMap<&'static str, Said>> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_of(text, error.span().map_or(0, |span| span.start));
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        Error::config(format!("{}:{line}: not TOML: {}", path.display(), message.join(", ")))
    })?;
    let mut entries: Vec<_> = table.into_inner().into_iter().collect();
    // By place, so that the first error is the first in the file.
    entries.sort_by_key(|(name, _)| name.span().start);
    let mut all = BTreeMap::new();
    for (name, value) in entries {
        let line = line_of(text, name.span().start);
        let at = Source::File { path: path.to_path_buf(), line };
        let key = known_key(name.get_ref(), value.get_ref())
            .map_err(|why| Error::config(format!("{at}: {why}")))?;
        all.insert(key.name, said(text, &value, at));
    }
    Ok(all)
}

fn known_key(name: &str, value: &DeValue<'_>) -> Result<&'static Key, String> {
    let is_table = |value: &DeValue<'_>| matches!(value, DeValue::Table(_));
    let holds_tables = match value {
        DeValue::Array(items) => items.iter().any(|item| is_table(item.get_ref())),
        other => is_table(other),
    };
    if holds_tables {
        return Err(format!(
            "unknown key {}: it is a table, but keys are flat: write KEY = VALUE lines only",
            quote(name)
        ));
    }
    keys::find(name).ok_or_else(|| {
        let hint = nearest(name, KEYS.iter().map(|key| key.name))
            .map(|meant| format!(" (did you mean {meant:?}?)"))
            .unwrap_or_default();
        format!("unknown key {}{hint}", quote(name))
    })
}

fn said(text: &str, value: &Spanned<DeValue<'_>>, source: Source) -> Said {
    match value.get_ref() {
        DeValue::Array(items) => {
            let items = items.iter().map(|value| item(text, value)).collect();
            Said { items, list: true, source }
        }
        _ => Said::single(item(text, value), source),
    }
}

fn item(text: &str, value: &Spanned<DeValue<'_>>) -> Item {
    let written = || text.get(value.span()).unwrap_or_default().to_string();
    match value.get_ref() {
        DeValue::String(string) => Item::quoted(string),
        DeValue::Integer(integer) => {
            // Decimal whatever the base, and without the underscores.
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            let text = number.map_or_else(|_| integer.as_str().to_string(), |n| n.to_string());
            Item { text, shown: written() }
        }
        DeValue::Float(float) => Item { text: float.as_str().to_string(), shown: written() },
        _ => Item { text: written(), shown: written() },
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
