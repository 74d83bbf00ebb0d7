//! Settings of worker processes that differ by kind: standard streams, user and current directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::privilege::WorkerCredentials;
use crate::process_limits::ProcessLimits;
use crate::worker_stdio::WorkerStdio;

/// The settings of each kind that has some.
pub(crate) type ProcessSettingsByKind = BTreeMap<&'static str, ProcessSettings>;

/// Environment variables of slots, by kind and number within the kind.
pub(crate) type SlotEnvironments = BTreeMap<(&'static str, u32), Vec<(String, String)>>;

/// The settings as the program gives them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessOptions {
    pub(crate) stdio: WorkerStdio,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) limits: ProcessLimits,
}

/// The settings of the worker processes of one kind, checked before the first fork.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessSettings {
    pub(crate) stdio: WorkerStdio,
    /// Instead of the user of the configuration.
    pub(crate) credentials: Option<WorkerCredentials>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) limits: ProcessLimits,
}

impl ProcessOptions {
    /// Resolves names and checks what can be checked before the first fork.
    ///
    /// # Errors
    /// The user or group is unknown, this process may not become that user, or the directory is none.
    pub(crate) fn resolve(&self, kind: &str) -> Result<ProcessSettings> {
        let of_kind = |e: Error| Error::config(format!("workers of kind {kind}: {e}"));
        let credentials = WorkerCredentials::resolve(self.user.as_deref(), self.group.as_deref());
        let credentials = credentials.map_err(of_kind)?;
        credentials
            .iter()
            .try_for_each(WorkerCredentials::check_can_switch_user)
            .map_err(of_kind)?;
        if let Some(dir) = &self.current_dir {
            check_is_directory(dir).map_err(|why| {
                Error::config(format!(
                    "workers of kind {kind}: {} cannot be their current directory: {why}",
                    dir.display()
                ))
            })?;
        }
        let (stdio, current_dir) = (self.stdio, self.current_dir.clone());
        let limits = self.limits.clone();
        Ok(ProcessSettings { stdio, credentials, current_dir, limits })
    }
}

fn check_is_directory(dir: &Path) -> std::io::Result<()> {
    match std::fs::metadata(dir)?.is_dir() {
        true => Ok(()),
        false => Err(std::io::ErrorKind::NotADirectory.into()),
    }
}

/// Adds variables to those of a slot.
///
/// # Errors
/// As [`check_environment`].
pub(crate) fn collect_environment<K: Into<String>, V: Into<String>>(
    environment: impl IntoIterator<Item = (K, V)>,
) -> Result<Vec<(String, String)>> {
    let pairs = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
    let pairs: Vec<(String, String)> = pairs.collect();
    check_environment(&pairs)?;
    Ok(pairs)
}

/// Checks that the variables can be set.
///
/// # Errors
/// A name is empty or contains `=` or NUL, or a value contains NUL.
fn check_environment(pairs: &[(String, String)]) -> Result<()> {
    let is_valid = |(name, value): &&(String, String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    match pairs.iter().find(|pair| !is_valid(pair)) {
        None => Ok(()),
        Some((name, _)) => {
            Err(Error::config(format!("{name:?} is not a valid environment variable")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_settings_are_refused_before_the_first_fork() {
        let file = Some(PathBuf::from("/dev/null"));
        let missing = Some(PathBuf::from("/no/such/directory"));
        let user = Some("no-such-user".to_string());
        for options in [
            ProcessOptions { current_dir: file, ..ProcessOptions::default() },
            ProcessOptions { current_dir: missing, ..ProcessOptions::default() },
            ProcessOptions { user, ..ProcessOptions::default() },
            ProcessOptions { group: Some("root".to_string()), ..ProcessOptions::default() },
        ] {
            let error = options.resolve("mail").expect_err("refused").to_string();
            assert!(error.contains("workers of kind mail: "), "{error}");
        }
        let options = ProcessOptions { current_dir: Some("/".into()), ..ProcessOptions::default() };
        assert_eq!(options.resolve("mail").expect("fine").current_dir, Some("/".into()));
    }

    #[test]
    fn only_variables_that_the_system_can_hold_are_accepted() {
        assert!(collect_environment([("A", "1=2"), ("B", "")]).is_ok());
        for bad in [("", "x"), ("a=b", ""), ("a\0", ""), ("a", "\0")] {
            assert!(collect_environment([bad]).is_err(), "{bad:?}");
        }
    }
}
