//! Configuration file: flat TOML; each value keeps its line number.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::configured_value::{ConfiguredValue, ValueSource, ValueText, quote_for_error};
use super::did_you_mean::nearest_name;
use super::key::{KeyInfo, RefusedKey};
use crate::error::{Error, Result};

/// Maximum size of a configuration file in bytes: 1 MiB. A larger file is probably the wrong one.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// Timeout for reading a configuration file that is a pipe.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the text of the configuration file.
pub(super) fn read_config_file(path: &Path) -> Result<String> {
    let cannot = |why: String| Error::config(format!("cannot read {}: {why}", path.display()));
    let bytes = read_bytes(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => cannot(format!("{error}; give --config a file that exists")),
        _ => cannot(error.to_string()),
    })?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(cannot("it is larger than 1 MiB: is it a configuration file?".to_string()));
    }
    String::from_utf8(bytes).map_err(|_| cannot("it is not UTF-8 text".to_string()))
}

/// Reads up to one byte more than [`MAX_FILE_SIZE`].
///
/// A reload reads in the primary, so a FIFO or a terminal must not block it for longer than [`READ_TIMEOUT`].
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let is_file = file.metadata()?.is_file();
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut bytes = Vec::new();
    loop {
        match (&mut file).take(MAX_FILE_SIZE + 1 - bytes.len() as u64).read_to_end(&mut bytes) {
            Ok(_) if bytes.is_empty() && !is_file => {
                return Err(io::Error::other("it provides no data: give a regular file"));
            }
            Ok(_) => return Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            let why = format!("it is not complete after {READ_TIMEOUT:?}: give a regular file");
            return Err(io::Error::other(why));
        }
        let timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Name of the table that belongs to the application, whatever it contains.
pub(super) const APP_TABLE: &str = "app";

/// Parses the TOML text into configured values. Checks only the syntax and the names of the keys. Skips the table
/// [`APP_TABLE`] if `has_app_table` allows it.
pub(super) fn parse_config_file(
    path: &Path,
    text: &str,
    keys: &[KeyInfo],
    refused_keys: &[RefusedKey],
    has_app_table: bool,
) -> Result<BTreeMap<&'static str, ConfiguredValue>> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_number(text, error.span().map_or(0, |span| span.start));
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        let message = message.join(", ");
        Error::config(format!(
            "{}:{line}: not TOML: {message}; write KEY = VALUE, and text in quotes",
            path.display()
        ))
    })?;
    let mut entries: Vec<_> = table.into_inner().into_iter().collect();
    // In file order, so that the first error in the file is reported.
    entries.sort_by_key(|(name, _)| name.span().start);
    let mut all = BTreeMap::new();
    for (name, value) in entries {
        if has_app_table && name.get_ref() == APP_TABLE && is_table(value.get_ref()) {
            continue;
        }
        let line = line_number(text, name.span().start);
        let at = ValueSource::File { path: path.to_path_buf(), line };
        if let Some(refused) = refused_keys.iter().find(|key| key.name == name.get_ref()) {
            return Err(Error::config(format!("{at}: {} {}", refused.name, refused.reason)));
        }
        let key = find_known_key(keys, name.get_ref(), value.get_ref(), has_app_table)
            .map_err(|why| Error::config(format!("{at}: {why}")))?;
        all.insert(key.name, configured_value(text, &value, at));
    }
    Ok(all)
}

fn is_table(value: &DeValue<'_>) -> bool {
    matches!(value, DeValue::Table(_))
}

fn find_known_key<'a>(
    keys: &'a [KeyInfo],
    name: &str,
    value: &DeValue<'_>,
    has_app_table: bool,
) -> Result<&'a KeyInfo, String> {
    let holds_tables = match value {
        DeValue::Array(items) => items.iter().any(|item| is_table(item.get_ref())),
        other => is_table(other),
    };
    if holds_tables {
        let allowed = if has_app_table { ", and [app] for the application's own" } else { "" };
        return Err(format!(
            "unknown key {}: it is a table, but keys are flat: write KEY = VALUE lines only{allowed}",
            quote_for_error(name)
        ));
    }
    keys.iter().find(|key| key.name == name).ok_or_else(|| {
        let hint = nearest_name(name, keys.iter().map(|key| key.name))
            .map(|meant| format!(" (did you mean {meant:?}?)"))
            .unwrap_or_default();
        format!("unknown key {}{hint}", quote_for_error(name))
    })
}

fn configured_value(
    text: &str,
    value: &Spanned<DeValue<'_>>,
    source: ValueSource,
) -> ConfiguredValue {
    match value.get_ref() {
        DeValue::Array(items) => {
            let items = items.iter().map(|value| value_text(text, value)).collect();
            ConfiguredValue { items, is_list: true, source }
        }
        _ => ConfiguredValue::single(value_text(text, value), source),
    }
}

fn value_text(text: &str, value: &Spanned<DeValue<'_>>) -> ValueText {
    let written = || text.get(value.span()).unwrap_or_default().to_string();
    match value.get_ref() {
        DeValue::String(string) => ValueText::quoted(string),
        DeValue::Integer(integer) => {
            // Normalized to decimal, without underscores.
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            let text = number.map_or_else(|_| integer.as_str().to_string(), |n| n.to_string());
            ValueText { text, shown: written() }
        }
        DeValue::Float(float) => ValueText { text: float.as_str().to_string(), shown: written() },
        _ => ValueText { text: written(), shown: written() },
    }
}

fn line_number(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_pipes_time_out_and_finished_pipes_are_read() {
        let dir = tempfile::tempdir().expect("directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        assert!(
            read_config_file(&fifo).expect_err("no writer").to_string().contains("a regular file")
        );
        // Opening the FIFO for reading and writing makes a writer that never writes.
        let both = OpenOptions::new().read(true).write(true).open(&fifo).expect("open");
        assert!(read_config_file(&fifo).expect_err("nothing").to_string().contains("not complete"));
        drop(both);
        let (reader, mut writer) = io::pipe().expect("pipe");
        io::Write::write_all(&mut writer, b"workers = 2\n").expect("write");
        drop(writer);
        let number = std::os::fd::AsRawFd::as_raw_fd(&reader);
        let path = format!("/dev/fd/{number}");
        assert_eq!(read_config_file(Path::new(&path)).expect("text"), "workers = 2\n");
        assert!(
            read_config_file(Path::new("/dev/zero"))
                .expect_err("endless")
                .to_string()
                .contains("1 MiB")
        );
        assert!(read_config_file(dir.path()).is_err());
    }
}
