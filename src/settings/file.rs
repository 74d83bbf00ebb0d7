//! What the configuration file says: flat TOML, every key with its line.

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
use super::key::Key;
use super::key_table::{self, KEYS};
use tokio_prefork::{Error, Result};

/// No configuration is that large; a wrong path (a log, a device) may well be.
const LARGEST: u64 = 1 << 20;

/// How long a configuration that comes through a pipe may take.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the file's text.
pub(super) fn read(path: &Path) -> Result<String> {
    let cannot = |why: String| Error::config(format!("cannot read {}: {why}", path.display()));
    let bytes = read_bytes(path).map_err(|error| cannot(error.to_string()))?;
    if bytes.len() as u64 > LARGEST {
        return Err(cannot("it is larger than 1 MiB: is it a configuration file?".to_string()));
    }
    String::from_utf8(bytes).map_err(|_| cannot("it is not UTF-8 text".to_string()))
}

/// Up to one byte more than [`LARGEST`]. A reload reads in the primary, so a FIFO or a terminal is not waited for any longer
/// than [`READ_TIMEOUT`].
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let is_file = file.metadata()?.is_file();
    let give_up = Instant::now() + READ_TIMEOUT;
    let mut bytes = Vec::new();
    loop {
        match (&mut file).take(LARGEST + 1 - bytes.len() as u64).read_to_end(&mut bytes) {
            Ok(_) if bytes.is_empty() && !is_file => {
                return Err(io::Error::other("nothing comes from it: give a regular file"));
            }
            Ok(_) => return Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = format!("it is not complete after {READ_TIMEOUT:?}: give a regular file");
            return Err(io::Error::other(why));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes the text apart. Only syntax and the names of keys are checked.
pub(super) fn parse(path: &Path, text: &str) -> Result<BTreeMap<&'static str, ConfiguredValue>> {
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
        let at = ValueSource::File { path: path.to_path_buf(), line };
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
            quote_for_error(name)
        ));
    }
    key_table::find(name).ok_or_else(|| {
        let hint = nearest_name(name, KEYS.iter().map(|key| key.name))
            .map(|meant| format!(" (did you mean {meant:?}?)"))
            .unwrap_or_default();
        format!("unknown key {}{hint}", quote_for_error(name))
    })
}

fn said(text: &str, value: &Spanned<DeValue<'_>>, source: ValueSource) -> ConfiguredValue {
    match value.get_ref() {
        DeValue::Array(items) => {
            let items = items.iter().map(|value| item(text, value)).collect();
            ConfiguredValue { items, is_list: true, source }
        }
        _ => ConfiguredValue::single(item(text, value), source),
    }
}

fn item(text: &str, value: &Spanned<DeValue<'_>>) -> ValueText {
    let written = || text.get(value.span()).unwrap_or_default().to_string();
    match value.get_ref() {
        DeValue::String(string) => ValueText::quoted(string),
        DeValue::Integer(integer) => {
            // Decimal whatever the base, and without the underscores.
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            let text = number.map_or_else(|_| integer.as_str().to_string(), |n| n.to_string());
            ValueText { text, shown: written() }
        }
        DeValue::Float(float) => ValueText { text: float.as_str().to_string(), shown: written() },
        _ => ValueText { text: written(), shown: written() },
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_is_not_waited_for_and_a_pipe_is_read_to_its_end() {
        let dir = tempfile::tempdir().expect("directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        assert!(read(&fifo).expect_err("nobody writes").to_string().contains("a regular file"));
        // With a writer that says nothing, which is what a reading end for both is.
        let both = OpenOptions::new().read(true).write(true).open(&fifo).expect("open");
        assert!(read(&fifo).expect_err("nothing").to_string().contains("not complete"));
        drop(both);
        let (reader, mut writer) = io::pipe().expect("pipe");
        io::Write::write_all(&mut writer, b"workers = 2\n").expect("write");
        drop(writer);
        let number = std::os::fd::AsRawFd::as_raw_fd(&reader);
        let path = format!("/dev/fd/{number}");
        assert_eq!(read(Path::new(&path)).expect("text"), "workers = 2\n");
        assert!(read(Path::new("/dev/zero")).expect_err("endless").to_string().contains("1 MiB"));
        assert!(read(dir.path()).is_err());
    }
}
