//! The process of a [`TestCluster`](super::TestCluster): runs the program of the test in place of `main`.

use std::path::{Path, PathBuf};
use std::process::Termination;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigBuilder, ControlSocket};
use crate::error::{BoxError, Error, Result, exit};
use crate::listener::ListenAddr;
use crate::log_output::write_line;
use crate::main_result::Main;
use crate::testing::spawner::SPAWNER_THREAD_NAME;

/// The variable that names the directory of the test cluster to its process.
pub(super) const DIRECTORY_VARIABLE: &str = "PREFORK_TEST_DIRECTORY";

/// The name of the control socket in the directory.
const CONTROL_SOCKET_NAME: &str = "control.sock";
/// The name of the file with the [`StartSettings`].
const SETTINGS_NAME: &str = "settings.json";

/// The directory of the test cluster that this process runs; unset in all other processes.
static OWN_DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// What the test passes to the process.
#[derive(Serialize, Deserialize)]
pub(super) struct StartSettings {
    pub(super) workers: u32,
    /// The pid of the process that runs the test.
    pub(super) test_pid: u32,
    /// The input of the program.
    pub(super) input: serde_json::Value,
}

impl StartSettings {
    pub(super) fn write_to(&self, directory: &Path) -> Result<()> {
        let path = directory.join(SETTINGS_NAME);
        let json = serde_json::to_vec(self)
            .map_err(|e| Error::application("encode the settings of the test cluster", e))?;
        std::fs::write(&path, json)
            .map_err(|e| Error::system(format!("write {}", path.display()), e))
    }

    fn read_from(directory: &Path) -> Result<StartSettings> {
        let path = directory.join(SETTINGS_NAME);
        let json = std::fs::read(&path)
            .map_err(|e| Error::system(format!("read {}", path.display()), e))?;
        serde_json::from_slice(&json)
            .map_err(|e| Error::application("decode the settings of the test cluster", e))
    }
}

/// How long the last threads of a killed test process may take to exit.
const TEST_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to check whether they have.
const TEST_EXIT_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The flag of a thread that is exiting (Linux, `include/linux/sched.h`).
const PF_EXITING: u32 = 4;

/// Returns whether a variable makes a process run a test cluster.
pub(crate) fn is_variable_of_cluster_process(name: &str) -> bool {
    name == DIRECTORY_VARIABLE || prefork_os::process_entry::is_entry_variable(name)
}

/// Returns the path of the control socket of the test cluster in `directory`.
pub(super) fn control_path(directory: &Path) -> PathBuf {
    directory.join(CONTROL_SOCKET_NAME)
}

/// Runs the program of a test and returns the exit status of its process.
pub(super) fn run_program<I, T, E>(program: impl FnOnce(ConfigBuilder, I) -> Result<T, E>) -> u8
where
    I: DeserializeOwned,
    E: Into<BoxError>,
{
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from) else {
        write_line(b"error: this process was not started by TestCluster\n");
        return exit::SOFTWARE;
    };
    let directory = OWN_DIRECTORY.get_or_init(|| directory);
    let settings = StartSettings::read_from(directory);
    let test_pid = settings.as_ref().ok().map(|settings| settings.test_pid);
    // In an upgrade check the parent is the primary.
    let is_primary = parent_pid() == test_pid;
    let outcome =
        settings.map_err(BoxError::from).and_then(|settings| run_with_settings(program, settings));
    let main = Main::from(outcome);
    let status = main.exit_status();
    // Its exit code is the status.
    let _ = main.report();
    if let Some(test_pid) = test_pid.filter(|_| is_primary) {
        wait_while_test_exits(test_pid);
    }
    if is_primary && parent_pid() != test_pid {
        // The test was killed, so that it removes nothing. If this fails, files are left in the temporary directory.
        let _ = std::fs::remove_dir_all(directory);
    }
    status
}

/// Waits until the test process is gone, if it is exiting: its death signal comes when the thread that started this process
/// exits, before the other threads have.
fn wait_while_test_exits(test_pid: u32) {
    let deadline = Instant::now() + TEST_EXIT_TIMEOUT;
    while parent_pid() == Some(test_pid) && is_exiting(test_pid) && Instant::now() < deadline {
        std::thread::sleep(TEST_EXIT_CHECK_INTERVAL);
    }
}

/// Returns whether the thread that starts clusters is exiting or gone. It lives as long as the test process.
fn is_exiting(test_pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{test_pid}/task")) else { return true };
    let stats =
        threads.flatten().filter_map(|thread| std::fs::read(thread.path().join("stat")).ok());
    !stats.into_iter().any(|stat| is_live_spawner(&String::from_utf8_lossy(&stat)))
}

/// Returns whether a `/proc/PID/task/TID/stat` (proc(5)) is that of the thread that starts clusters, and it is not exiting.
fn is_live_spawner(stat: &str) -> bool {
    let Some((name, fields)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'))
    else {
        return false;
    };
    let flags = fields.split_whitespace().nth(6).and_then(|flags| flags.parse::<u32>().ok());
    SPAWNER_THREAD_NAME.starts_with(name) && flags.is_some_and(|flags| flags & PF_EXITING == 0)
}

fn parent_pid() -> Option<u32> {
    prefork_os::process::parent_pid(std::process::id())
}

fn run_with_settings<I, T, E>(
    program: impl FnOnce(ConfigBuilder, I) -> Result<T, E>,
    settings: StartSettings,
) -> Result<(), BoxError>
where
    I: DeserializeOwned,
    E: Into<BoxError>,
{
    let input = serde_json::from_value(settings.input)
        .map_err(|e| Error::application("decode the input of the test cluster", e))?;
    let config = Config::builder()
        .bind(vec![ListenAddr::Tcp((std::net::Ipv4Addr::LOCALHOST, 0).into())])
        .workers(settings.workers)
        .boot_attempts(1);
    program(config, input).map_err(Into::into)?;
    Ok(())
}

/// Prepares a cluster that is about to serve: refuses shared state that was declared twice, and in the process of a test
/// cluster opens the control socket and writes the log.
///
/// # Errors
///
/// The program has declared shared state twice.
pub(crate) fn prepare_to_serve(config: &mut Config) -> Result<()> {
    crate::shared::refuse_repeated_declarations()?;
    if OWN_DIRECTORY.get().is_some() {
        install_logger();
        let configured = std::mem::take(config);
        *config = adapt_config(configured);
    }
    Ok(())
}

/// Keeps the control socket that the test uses, whatever the program has configured.
pub(crate) fn adapt_config(mut config: Config) -> Config {
    if let Some(directory) = OWN_DIRECTORY.get() {
        config.control = ControlSocket::Path(control_path(directory));
    }
    config
}

/// Writes log lines as `LEVEL target: message`.
struct StderrLogger;

impl Log for StderrLogger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("{:5} {}: {}\n", record.level(), record.target(), record.args());
        write_line(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Installs a logger unless the program has installed its own. `RUST_LOG` sets the level; the default is `info`.
fn install_logger() {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
    if log::set_logger(&StderrLogger).is_ok() {
        log::set_max_level(level.unwrap_or(LevelFilter::Info));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_spawner_thread_counts() {
        assert!(is_live_spawner("7 (test-cluster-sp) S 1 7 7 0 -1 4194560 0 0"));
        assert!(!is_live_spawner("7 (test-cluster-sp) R 1 7 7 0 -1 4194564 0 0"));
        assert!(!is_live_spawner("7 (my test (1)) S 1 7 7 0 -1 4194560 0 0"));
        assert!(!is_live_spawner("7"));
        assert!(is_exiting(u32::MAX));
    }
}
