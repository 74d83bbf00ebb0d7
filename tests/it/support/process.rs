//! Reads `/proc` entries of other processes, and sends signals to them.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// The fields of `/proc/PID/stat` that the tests need.
#[derive(Debug, Clone)]
pub struct Stat {
    pub state: char,
    pub parent: u32,
    /// User and system time in clock ticks (a hundredth of a second).
    pub ticks: u64,
    pub threads: u32,
}

/// Reads `/proc/PID/stat`; `None` if there is no such process.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may itself contain parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        state: fields[0].chars().next()?,
        parent: fields[1].parse().ok()?,
        ticks: fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?,
        threads: fields[17].parse().ok()?,
    })
}

/// Whether the process has ended. A zombie counts as ended: its parent may be slow to reap it.
pub fn has_ended(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| matches!(stat.state, 'Z' | 'X'))
}

/// Waits until all these processes have ended.
#[track_caller]
pub fn wait_ended(pids: &[u32]) {
    wait::wait_until(&format!("the end of {pids:?}"), || pids.iter().all(|pid| has_ended(*pid)));
}

/// Returns the children of a process with their states, ordered by pid.
fn all_children(parent: u32) -> Vec<(u32, char)> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<(u32, char)> = pids
        .filter_map(|pid| stat(pid).filter(|s| s.parent == parent).map(|s| (pid, s.state)))
        .collect();
    found.sort_unstable();
    found
}

/// Returns the living children of a process.
pub fn children(parent: u32) -> Vec<u32> {
    all_children(parent).into_iter().filter(|(_, state)| *state != 'Z').map(|c| c.0).collect()
}

/// Returns the zombie children of a process.
pub fn zombies(parent: u32) -> Vec<u32> {
    all_children(parent).into_iter().filter(|(_, state)| *state == 'Z').map(|c| c.0).collect()
}

/// Returns each descriptor of a process with its target in `/proc/PID/fd`.
pub fn descriptors(pid: u32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let mut found: Vec<(i32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// Returns the socket that listens on a TCP port, in the form of [`descriptors`].
pub fn listening_socket(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let wanted = format!(":{port:04X}");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 0A is LISTEN.
        let listens = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A";
        listens.then(|| format!("socket:[{}]", fields[9]))
    })
}

/// Returns the IPv4 addresses on which the process listens.
pub fn listening_addresses(pid: u32) -> Vec<SocketAddr> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    // A process that has ended listens on nothing.
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let own: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    let listening = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = own.contains(&format!("socket:[{}]", fields.get(9)?));
        // 0A is LISTEN.
        let (host, port) = fields[1].split_once(':').filter(|_| is_ours && fields[3] == "0A")?;
        let host = u32::from_str_radix(host, 16).ok()?.to_ne_bytes();
        Some(SocketAddr::from((host, u16::from_str_radix(port, 16).ok()?)))
    });
    listening.collect()
}

/// Returns the memory of a process that it shares with no other, in KiB.
pub fn private_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let private = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
    let kib = private.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or_else(|| panic!("no Private_Dirty in {text}"))
}

/// Returns the name of a process; empty if it has ended.
pub fn command_name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_string()
}

/// Returns the command line that `ps` shows.
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
}

/// Whether a signal to the process is still pending.
pub fn has_pending(pid: u32, signal: Signal) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let masks = text.lines().filter_map(|line| line.split_once("Pnd:"));
    let bits = masks.filter_map(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok());
    bits.fold(0, |all, mask| all | mask) & (1 << (signal as u64 - 1)) != 0
}

/// Sends a signal, and ignores errors.
pub fn try_send_signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

/// Sends a signal, unless the process has ended.
pub fn send_signal(pid: u32, signal: Signal) {
    match kill(Pid::from_raw(pid.try_into().expect("pid")), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => panic!("cannot send {signal} to {pid}: {e}"),
    }
}

/// Measures for 1 s how much of a core the process uses; 1.0 is all of it.
pub fn cpu_share(pid: u32) -> f64 {
    let span = Duration::from_secs(1);
    let ticks = || stat(pid).expect("a living process").ticks;
    let before = ticks();
    wait::wait_for_duration(span);
    (ticks() - before) as f64 / 100.0 / span.as_secs_f64()
}
