//! The user and groups of workers: resolves their names before the first fork, and drops privileges in the worker.
//!
//! The primary keeps its user, so that it can fork, reload, upgrade, bind low ports and signal its workers. Workers drop
//! their privileges right after the fork, before any code of the application runs.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::error::{Error, Result};

/// The user and groups that workers switch to, as numbers, so that a worker needs no lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkerCredentials {
    uid: u32,
    gid: u32,
    /// All groups, `gid` among them.
    groups: Vec<u32>,
}

impl WorkerCredentials {
    /// Resolves the names or numbers `user` and `group`. Returns `None` if neither is configured.
    ///
    /// # Errors
    /// One of them is unknown, a group comes without a user, or a numeric user has no known group.
    pub(crate) fn resolve(
        user: Option<&str>,
        group: Option<&str>,
    ) -> Result<Option<WorkerCredentials>> {
        let Some(user) = user else {
            return match group {
                Some(group) => Err(Error::config(format!(
                    "group = {group} is given without a user: give user as well, or leave both out"
                ))),
                None => Ok(None),
            };
        };
        let gid = group.map(resolve_group).transpose()?;
        let unread = |e: nix::Error| {
            Error::config(format!("user = {user} cannot be looked up: {e}: check /etc/passwd"))
        };
        let number: Option<u32> = user.parse().ok();
        let entry = match number {
            Some(uid) => User::from_uid(Uid::from_raw(uid)),
            None => User::from_name(user),
        };
        // A container may have no /etc/passwd; numbers are valid without it.
        let entry = match entry {
            Err(e) if number.is_none() && e != nix::errno::Errno::ENOENT => return Err(unread(e)),
            Err(_) | Ok(None) => None,
            Ok(Some(entry)) => Some(entry),
        };
        match (entry, number, gid) {
            (Some(entry), _, gid) => {
                let gid = gid.unwrap_or(entry.gid);
                let name = CString::new(entry.name).map_err(|_| unread(nix::Error::EINVAL))?;
                let groups = getgrouplist(&name, gid).map_err(unread)?;
                let groups = groups.into_iter().map(Gid::as_raw).collect();
                Ok(Some(WorkerCredentials { uid: entry.uid.as_raw(), gid: gid.as_raw(), groups }))
            }
            (None, Some(uid), Some(gid)) => {
                Ok(Some(WorkerCredentials { uid, gid: gid.as_raw(), groups: vec![gid.as_raw()] }))
            }
            (None, Some(uid), None) => Err(Error::config(format!(
                "user = {uid} has no entry in /etc/passwd to take its group from: give group as well"
            ))),
            (None, None, _) => Err(Error::config(format!(
                "user = {user} is unknown: give a user of this machine, or a number"
            ))),
        }
    }

    /// Checks that this process may switch to the user, so that the start fails instead of each worker.
    pub(crate) fn check_can_switch_user(&self) -> Result<()> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        if uid.is_root() || (uid.as_raw(), gid.as_raw()) == (self.uid, self.gid) {
            return Ok(());
        }
        Err(Error::config(format!(
            "user = {} (group {}) needs a start as root: this process is user {uid} (group {gid}) and cannot become \
             another; start it as root, or leave user and group out",
            self.uid, self.gid
        )))
    }

    /// Makes the user the owner of a pipe, so that a worker can open it by its name, such as `/dev/stdout`.
    pub(crate) fn own_pipe(&self, pipe: impl AsFd) -> std::io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        Ok(nix::unistd::fchown(pipe, Some(uid), Some(gid))?)
    }

    /// Switches to the user and groups irrevocably, in a freshly forked worker.
    pub(crate) fn drop_privileges(&self) -> Result<()> {
        Ok(prefork_os::credentials::drop_privileges(self.uid, self.gid, &self.groups)?)
    }
}

fn resolve_group(group: &str) -> Result<Gid> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(group) {
        Ok(Some(entry)) => Ok(entry.gid),
        Ok(None) | Err(_) => Err(Error::config(format!(
            "group = {group} is unknown: give a group of this machine, or a number"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(user: Option<&str>, group: Option<&str>) -> String {
        WorkerCredentials::resolve(user, group).expect_err("refused").to_string()
    }

    #[test]
    fn without_user_and_group_nothing_changes() {
        assert_eq!(WorkerCredentials::resolve(None, None).expect("nothing"), None);
    }

    #[test]
    fn unknown_names_are_named_in_the_error() {
        assert!(
            refusal(Some("no-such-user"), None).starts_with("user = no-such-user is unknown: ")
        );
        let group = refusal(Some("root"), Some("no-such-group"));
        assert!(group.starts_with("group = no-such-group is unknown: "), "{group}");
        assert!(refusal(None, Some("root")).starts_with("group = root is given without a user: "));
        let number = refusal(Some("4000000001"), None);
        assert!(
            number.contains("has no entry") && number.ends_with("give group as well"),
            "{number}"
        );
    }

    #[test]
    fn names_and_numbers_resolve_and_a_given_group_takes_precedence() {
        let root = WorkerCredentials::resolve(Some("root"), None).expect("known").expect("one");
        assert_eq!((root.uid, root.gid, root.groups.contains(&0)), (0, 0, true));
        assert_eq!(WorkerCredentials::resolve(Some("0"), Some("0")).expect("known"), Some(root));
        let other =
            WorkerCredentials::resolve(Some("4000000001"), Some("4000000002")).expect("numbers");
        let numbers = WorkerCredentials {
            uid: 4_000_000_001,
            gid: 4_000_000_002,
            groups: vec![4_000_000_002],
        };
        assert_eq!(other, Some(numbers));
    }

    #[test]
    fn switching_to_another_user_requires_root() {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let own = WorkerCredentials { uid, gid, groups: Vec::new() };
        own.check_can_switch_user().expect("nothing changes");
        let other = WorkerCredentials { uid: uid.wrapping_add(1), ..own };
        assert_eq!(other.check_can_switch_user().is_ok(), uid == 0);
    }
}
