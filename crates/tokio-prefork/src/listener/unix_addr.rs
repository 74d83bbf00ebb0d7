//! The address of a Unix socket: a path with the access rights of its file, or an abstract name.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};

use crate::socket_file::SocketPermissions;
use prefork_os::unix_path;

/// The address of a Unix stream socket: a path, or an abstract name that begins with `@`.
///
/// Two addresses are equal if their paths are, whatever mode, owner and group.
#[derive(Debug, Clone)]
pub struct UnixAddr {
    /// The path of its file, or `@NAME`. A file whose name begins with `@` is written `./@NAME`.
    pub path: PathBuf,
    /// Permissions of the file. Default: 0777 without the bits of the umask.
    pub mode: Option<u32>,
    /// Owner of the file, by name or number. Default: the user that runs the primary.
    pub owner: Option<String>,
    /// Group of the file, by name or number. Default: the group of the primary.
    pub group: Option<String>,
}

impl UnixAddr {
    /// Creates an address at `path` with default mode, owner and group.
    pub fn new(path: impl Into<PathBuf>) -> UnixAddr {
        UnixAddr { path: path.into(), mode: None, owner: None, group: None }
    }

    /// Returns the abstract name without the `@`, or `None` for a socket with a file.
    pub fn abstract_name(&self) -> Option<&[u8]> {
        std::os::unix::ffi::OsStrExt::as_bytes(self.path.as_os_str()).strip_prefix(b"@")
    }

    /// Parses what follows `unix:`. The error is a reason without the address.
    pub(super) fn parse(text: &str) -> Result<UnixAddr, String> {
        let (path, options) = match text.split_once('?') {
            Some((path, options)) => (path, Some(options)),
            None => (text, None),
        };
        if path.is_empty() || path == "@" || path.contains('\0') {
            return Err("unix: needs a path, or @ and a name".to_string());
        }
        let mut addr = UnixAddr::new(path);
        match addr.abstract_name() {
            Some(_) if path.len() > unix_path::MAX_ADDRESS_BYTES => {
                let most = unix_path::MAX_ADDRESS_BYTES;
                return Err(format!(
                    "the name has {} bytes with its @ and may have {most}",
                    path.len()
                ));
            }
            Some(_) => {}
            None => unix_path::check_path_length(&addr.path)?,
        }
        for option in options.into_iter().flat_map(|options| options.split('&')) {
            addr.set(option)?;
        }
        if options.is_some() && addr.abstract_name().is_some() {
            return Err("an abstract socket has no file, so no mode, owner or group".to_string());
        }
        Ok(addr)
    }

    fn set(&mut self, option: &str) -> Result<(), String> {
        let accepted = "after the ? give mode=0660, owner=NAME or group=NAME, with & between them";
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let place = match name {
            "mode" if self.mode.is_none() => {
                self.mode = Some(UnixAddr::parse_mode(value)?);
                return Ok(());
            }
            "owner" => &mut self.owner,
            "group" => &mut self.group,
            "mode" => return Err(format!("mode is given twice: {accepted}")),
            _ => return Err(format!("unknown option {name:?}: {accepted}")),
        };
        if value.is_empty() || place.is_some() {
            return Err(format!("{name} needs one name or number: {accepted}"));
        }
        *place = Some(value.to_string());
        Ok(())
    }

    /// Returns mode, owner and group as numbers.
    ///
    /// # Errors
    ///
    /// The name of the owner or group is unknown.
    pub(crate) fn access(&self) -> Result<SocketPermissions, String> {
        let owner = self.owner.as_deref().map(user_id).transpose()?;
        let group = self.group.as_deref().map(group_id).transpose()?;
        Ok(SocketPermissions { mode: self.mode, owner, group })
    }

    /// Parses permissions in octal, as for chmod(1).
    ///
    /// # Errors
    ///
    /// The text is not an octal number up to 0777. The error is a predicate: "is not a mode: ...".
    pub fn parse_mode(text: &str) -> Result<u32, String> {
        let text = text.trim();
        let text = text.strip_prefix("0o").unwrap_or(text);
        let digits = !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
        mode.ok_or_else(|| "is not a mode: give permissions in octal, as 0660".to_string())
    }

    /// Returns the absolute path, for comparison.
    fn absolute_path(&self) -> PathBuf {
        match self.abstract_name() {
            Some(_) => self.path.clone(),
            None => std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()),
        }
    }
}

/// Returns whether chown(2) accepts the id: the largest number means "do not change".
fn is_valid_id(number: u32) -> bool {
    number != u32::MAX
}

fn invalid_id_error(key: &str, number: &str) -> String {
    format!("{key} = {number} is not the number of a user or group: give 0 to {}", u32::MAX - 1)
}

fn user_id(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return is_valid_id(number)
            .then_some(number)
            .ok_or_else(|| invalid_id_error("owner", name));
    }
    let entry = User::from_name(name).ok().flatten();
    entry.map(|user| user.uid.as_raw()).ok_or_else(|| {
        format!("owner = {name} is unknown: give a user of this machine, or a number")
    })
}

fn group_id(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return is_valid_id(number)
            .then_some(number)
            .ok_or_else(|| invalid_id_error("group", name));
    }
    let entry = Group::from_name(name).ok().flatten();
    entry.map(|group| group.gid.as_raw()).ok_or_else(|| {
        format!("group = {name} is unknown: give a group of this machine, or a number")
    })
}

impl From<&Path> for UnixAddr {
    fn from(path: &Path) -> UnixAddr {
        UnixAddr::new(path)
    }
}

impl PartialEq for UnixAddr {
    fn eq(&self, other: &UnixAddr) -> bool {
        self.path == other.path || self.absolute_path() == other.absolute_path()
    }
}

impl Eq for UnixAddr {}

impl Hash for UnixAddr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.absolute_path().hash(state);
    }
}

impl fmt::Display for UnixAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.path.display())?;
        let mode = self.mode.map(|mode| format!("mode={mode:04o}"));
        let owner = self.owner.as_ref().map(|owner| format!("owner={owner}"));
        let group = self.group.as_ref().map(|group| format!("group={group}"));
        let mut sign = '?';
        for option in [mode, owner, group].into_iter().flatten() {
            write!(f, "{sign}{option}")?;
            sign = '&';
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_addresses_with_the_same_path_are_equal() {
        let here = std::env::current_dir().expect("directory").join("s");
        let full = UnixAddr { mode: Some(0o600), ..UnixAddr::new(here) };
        assert_eq!(UnixAddr::new("s"), full);
        assert_eq!(UnixAddr::new("./s"), full);
        assert_ne!(UnixAddr::new("@s"), full);
        assert_ne!(UnixAddr::new("@s"), UnixAddr::new("./@s"));
    }

    #[test]
    fn a_name_that_is_too_long_is_refused_with_its_limit() {
        assert!(UnixAddr::parse(&"x".repeat(107)).is_ok());
        assert!(UnixAddr::parse(&format!("/{}/app.sock", "x".repeat(200))).is_ok());
        let why = UnixAddr::parse(&"x".repeat(108)).expect_err("too long");
        assert!(why.contains("108 bytes") && why.contains("82"), "{why}");
        assert!(UnixAddr::parse(&format!("@{}", "x".repeat(107))).is_err());
    }

    #[test]
    fn names_become_numbers_and_unknown_ones_are_named() {
        let addr = UnixAddr::parse("/a?owner=root&group=12&mode=660").expect("address");
        let access = addr.access().expect("known");
        assert_eq!(
            access,
            SocketPermissions { mode: Some(0o660), owner: Some(0), group: Some(12) }
        );
        let unknown = UnixAddr::parse("/a?owner=no-such-user").expect("address");
        assert!(unknown.access().expect_err("unknown").contains("no-such-user"));
        for option in ["owner", "group"] {
            let nobody = UnixAddr::parse(&format!("/a?{option}=4294967295")).expect("address");
            assert!(nobody.access().expect_err("no number").contains("4294967294"));
        }
    }
}
