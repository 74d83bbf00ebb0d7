//! Where, when and how a measurement was made: machine, kernel, versions, command and date.

use std::borrow::Cow;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use tokio_prefork::text::{format_utc, printable};

/// Longest command line in a report, in characters.
const MAX_COMMAND_CHARS: usize = 2000;
/// Options of the command whose values reports leave out, as they may be secret.
const SECRET_OPTIONS: [[&str; 2]; 2] = [["--header", "-H"], ["--data", "-d"]];

/// What a reader needs to repeat a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEnvironment {
    /// When the measurement ended, in UTC.
    pub date: String,
    /// Command line, with `...` for headers and bodies of requests.
    pub command: String,
    /// Version of this program.
    pub version: Cow<'static, str>,
    /// Commit that this program was built from; `None` if unknown.
    pub commit: Option<Cow<'static, str>>,
    /// Compiler that built this program; `None` if unknown.
    pub compiler: Option<Cow<'static, str>>,
    /// Whether this program was built without optimization, so that its figures mean little.
    pub is_debug_build: bool,
    /// Model of the CPU.
    pub cpu: String,
    /// CPU cores that this process may use.
    pub cores: usize,
    /// Whether this is a virtual machine, whose host may slow it down at any time; x86 only.
    pub is_virtual_machine: bool,
    /// Memory of the machine in MiB.
    pub memory_mib: Option<u64>,
    /// Kernel and its release.
    pub kernel: String,
    /// CPU frequency governor; `None` if the kernel has none, as on most virtual machines.
    pub governor: Option<String>,
    /// Load average of the last minute; that of the measurement is in it.
    pub load_average: Option<f64>,
}

impl RunEnvironment {
    /// Reads the environment of this process.
    pub(crate) fn read() -> RunEnvironment {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        RunEnvironment {
            date: format_utc(since.as_secs() * 1000),
            command: describe_command(std::env::args()),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: None,
            compiler: None,
            is_debug_build: cfg!(debug_assertions),
            cpu: cpu_model(&cpus),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            is_virtual_machine: has_hypervisor(&cpus),
            memory_mib: total_memory_mib(&read("/proc/meminfo")),
            kernel: format!("Linux {}", printable(read("/proc/sys/kernel/osrelease").trim())),
            governor: Some(printable(governor.trim()).to_string()).filter(|name| !name.is_empty()),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()),
        }
    }

    /// Adds what only the build of the command knows.
    pub fn set_build(&mut self, commit: Option<&'static str>, compiler: Option<&'static str>) {
        (self.commit, self.compiler) = (commit.map(Cow::from), compiler.map(Cow::from));
    }

    /// Says what else may have run on the machine, in a sentence.
    pub(crate) fn load_summary(&self) -> String {
        match self.load_average {
            Some(load) => format!(
                "The load average of the last minute was {load:.2} on {} cores, the measurement included",
                self.cores
            ),
            None => String::new(),
        }
    }

    /// Says on which machine and when the measurement was made, in a line.
    pub(crate) fn machine_summary(&self) -> String {
        let kind = if self.is_virtual_machine { ", virtual machine" } else { "" };
        format!("{} ({} cores{kind}), {}, {}", self.cpu, self.cores, self.kernel, self.date)
    }

    /// Says which build of this program has measured: version, commit and kind of build.
    pub(crate) fn build_summary(&self) -> String {
        let build = match self.is_debug_build {
            true => "DEBUG BUILD: its figures mean little",
            false => "release build",
        };
        let commit = self.commit.as_deref().unwrap_or("unknown");
        format!("prefork {}, commit {commit}, {build}", self.version)
    }

    /// Says where, when and with what the measurement was made, in a line.
    pub(crate) fn summary(&self) -> String {
        format!("{}, {}", self.machine_summary(), self.build_summary())
    }

    /// Returns name and value of each line about the machine and the program.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let memory = self.memory_mib.map(|mib| format!(", {:.1} GiB memory", mib as f64 / 1024.0));
        let kind = if self.is_virtual_machine { " (virtual machine)" } else { "" };
        let governor = self.governor.as_deref().unwrap_or("not known to the kernel");
        let load = self.load_average.map(|load| format!(", load average {load:.2}"));
        let compiler = self.compiler.as_ref().map(|compiler| format!(", {compiler}"));
        vec![
            (
                "machine",
                format!("{}{kind}, {} cores{}", self.cpu, self.cores, memory.unwrap_or_default()),
            ),
            (
                "kernel",
                format!("{}, CPU governor {governor}{}", self.kernel, load.unwrap_or_default()),
            ),
            ("version", format!("{}{}", self.build_summary(), compiler.unwrap_or_default())),
            ("command", self.command.clone()),
            ("date", self.date.clone()),
        ]
    }
}

/// Joins the arguments to a command line for a POSIX shell, without secret values.
fn describe_command(args: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut is_secret = false;
    for (at, arg) in args.enumerate() {
        let arg = if at == 0 { base_name(&arg).to_string() } else { arg };
        let word = match std::mem::take(&mut is_secret) {
            true => "...".to_string(),
            false => {
                is_secret = SECRET_OPTIONS.iter().flatten().any(|option| *option == arg);
                hide_value(&arg)
            }
        };
        words.push(quote_shell_word(&printable(&word)));
    }
    words.join(" ").chars().take(MAX_COMMAND_CHARS).collect()
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Hides the value of `--header=VALUE` and `-HVALUE`, and user and password of a URL.
fn hide_value(arg: &str) -> String {
    for [long, short] in SECRET_OPTIONS {
        if arg.strip_prefix(long).is_some_and(|rest| rest.starts_with('=')) {
            return format!("{long}=...");
        }
        if arg.strip_prefix(short).is_some_and(|rest| !rest.is_empty()) {
            return format!("{short}...");
        }
    }
    let Some((scheme, rest)) = arg.split_once("://") else { return arg.to_string() };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://...{}", &rest[user.len()..]),
        None => arg.to_string(),
    }
}

/// Quotes a word for a POSIX shell if it needs quotes.
pub(crate) fn quote_shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+[]?&".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Returns the model in `/proc/cpuinfo`; the architecture if it has none, as on ARM.
fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim());
    model.map_or(std::env::consts::ARCH.to_string(), |model| printable(model).to_string())
}

fn has_hypervisor(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split(' ').any(|flag| flag == "hypervisor"))
}

fn total_memory_mib(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(rest.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(args: &[&str]) -> String {
        describe_command(args.iter().map(|arg| arg.to_string()))
    }

    #[test]
    fn commands_can_be_pasted_and_contain_no_secrets() {
        assert_eq!(
            command(&["/usr/bin/prefork", "compare", "--peer", "node=node a.js --x='1'", ""]),
            r"prefork compare --peer 'node=node a.js --x='\''1'\''' ''"
        );
        let hidden = [
            command(&["prefork", "bench", "-H", "Authorization: secret", "http://h/"]),
            command(&["prefork", "bench", "-HAuthorization:secret", "http://h/"]),
            command(&["prefork", "bench", "--header=a: secret", "--data", "secret", "h"]),
            command(&["prefork", "bench", "http://user:secret@host/path"]),
        ];
        assert!(hidden.iter().all(|text| !text.contains("secret")), "{hidden:?}");
        assert!(hidden[3].ends_with("http://...@host/path"), "{}", hidden[3]);
        assert!(hidden[0].ends_with("-H ... http://h/"), "{}", hidden[0]);
    }

    #[test]
    fn the_machine_is_described_from_proc() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!((cpu_model(cpuinfo).as_str(), has_hypervisor(cpuinfo)), ("AMD EPYC", true));
        assert_eq!(cpu_model("Processor: x"), std::env::consts::ARCH);
        assert_eq!(total_memory_mib("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2));
        let here = RunEnvironment::read();
        assert!(here.kernel.starts_with("Linux ") && here.cores > 0 && here.date.ends_with('Z'));
        assert_eq!(here.lines().len(), 5);
    }
}
