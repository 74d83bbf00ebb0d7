//! CPU time, context switches and memory of the server's processes, read from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use serde::Serialize;

use tokio_prefork::ListenAddr;
use tokio_prefork::text::printable_bytes;

/// Clock ticks per second in `/proc/PID/stat`, a fixed value in user space.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// The processes that serve one address: one process and its descendants.
#[derive(Debug)]
pub(crate) struct ProcessTree {
    root: u32,
    name: String,
}

/// Resource counts of a process tree at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessTreeSample {
    /// User time of all processes and of their reaped children, in seconds.
    user: f64,
    system: f64,
    /// Voluntary and involuntary context switches of each process, all threads summed.
    switches: BTreeMap<u32, [u64; 2]>,
    /// PSS of the whole tree before the measurement, in KiB; `None` if it cannot be read.
    pss_kib: Option<u64>,
}

/// Memory of a process tree at one moment, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TreeMemory {
    /// PSS of all processes, with what is swapped out. Counts a page that several of them share once.
    pub pss_kib: u64,
    /// Dirty pages that only one of them has.
    pub private_dirty_kib: u64,
}

/// Resources that a process tree used during the measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProcessTreeUsage {
    /// Pid of the root process.
    pub pid: u32,
    /// Name of the root process.
    pub name: String,
    /// Number of processes at the end.
    pub processes: usize,
    /// User time in seconds.
    pub user_s: f64,
    /// System time in seconds.
    pub system_s: f64,
    /// Voluntary context switches, of processes that existed at the end.
    pub voluntary: u64,
    /// Involuntary context switches, of processes that existed at the end.
    pub involuntary: u64,
    /// PSS of the whole tree before, in KiB; none if it cannot be read.
    pub pss_before_kib: Option<u64>,
    /// PSS of the whole tree after the measurement, in KiB.
    pub pss_after_kib: Option<u64>,
}

impl ProcessTree {
    /// Finds the processes behind a listening socket of this machine.
    pub(crate) fn find_by_listener(address: &ListenAddr) -> Option<ProcessTree> {
        let holders: BTreeSet<u32> = address.holders().into_iter().collect();
        // The primary and its workers all hold the socket: the root is the one whose parent does not.
        let is_root =
            |pid: &&u32| read_proc_stat(**pid).is_some_and(|s| !holders.contains(&s.parent));
        let root = *holders.iter().find(is_root)?;
        let name = fs::read(format!("/proc/{root}/comm")).ok()?;
        Some(ProcessTree { root, name: printable_bytes(name.trim_ascii_end(), name.len()) })
    }

    /// Returns the pid of the root process.
    pub(crate) fn root_pid(&self) -> u32 {
        self.root
    }

    /// Returns the name of the root process.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads the resource counts of all processes.
    pub(crate) fn read_sample(&self) -> ProcessTreeSample {
        let mut moment = ProcessTreeSample { pss_kib: Some(0), ..ProcessTreeSample::default() };
        for (pid, stat) in self.list_members() {
            moment.user += stat.user;
            moment.system += stat.system;
            moment.switches.insert(pid, context_switches(pid));
            moment.pss_kib = moment.pss_kib.and_then(|sum| Some(sum + pss_kib(pid)?));
        }
        moment
    }

    /// Reads the memory of all processes; `None` if this user may not read it.
    pub(crate) fn read_memory(&self) -> Option<TreeMemory> {
        let mut sum = TreeMemory::default();
        for (pid, _) in self.list_members() {
            match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
                Ok(text) => {
                    sum.pss_kib += parse_status_field(&text, "Pss:")?;
                    sum.pss_kib += parse_status_field(&text, "SwapPss:").unwrap_or(0);
                    sum.private_dirty_kib += parse_status_field(&text, "Private_Dirty:")?;
                }
                // A process that has exited meanwhile has no memory.
                Err(_) if read_proc_stat(pid).is_none() => {}
                // So has one that its parent has not reaped yet.
                Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => {}
                Err(_) => return None,
            }
        }
        Some(sum)
    }

    /// Returns the pids of all processes, the root first.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.list_members().into_iter().map(|(pid, _)| pid).collect()
    }

    /// Returns the CPU time of all processes and of their reaped children.
    pub(crate) fn cpu_time(&self) -> Duration {
        let times = self.list_members().into_iter().map(|(_, stat)| stat.user + stat.system);
        Duration::from_secs_f64(times.sum())
    }

    fn list_members(&self) -> Vec<(u32, ProcStat)> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let all: BTreeMap<u32, ProcStat> =
            pids.filter_map(|pid| Some((pid, read_proc_stat(pid)?))).collect();
        let mut members = Vec::new();
        let mut next = vec![self.root];
        while let Some(pid) = next.pop() {
            // Each pid is in the table once, so a changing tree cannot cause an endless loop.
            next.extend(all.iter().filter(|(_, s)| s.parent == pid).map(|(pid, _)| *pid));
            members.extend(all.get(&pid).map(|stat| (pid, *stat)));
        }
        members
    }

    /// Returns the resources used between two samples.
    pub(crate) fn usage_between(
        &self,
        before: &ProcessTreeSample,
        after: &ProcessTreeSample,
    ) -> ProcessTreeUsage {
        let gained = |at: usize| {
            let each = after.switches.iter().map(|(pid, now)| {
                now[at].saturating_sub(before.switches.get(pid).map_or(0, |then| then[at]))
            });
            each.sum()
        };
        ProcessTreeUsage {
            pid: self.root,
            name: self.name.clone(),
            processes: after.switches.len(),
            user_s: (after.user - before.user).max(0.0),
            system_s: (after.system - before.system).max(0.0),
            voluntary: gained(0),
            involuntary: gained(1),
            pss_before_kib: before.pss_kib,
            pss_after_kib: after.pss_kib,
        }
    }
}

impl ProcessTreeUsage {
    /// Adds the usage of a later round; memory is from the first start and the last end.
    pub(crate) fn combine(self, later: ProcessTreeUsage) -> ProcessTreeUsage {
        ProcessTreeUsage {
            user_s: self.user_s + later.user_s,
            system_s: self.system_s + later.system_s,
            voluntary: self.voluntary + later.voluntary,
            involuntary: self.involuntary + later.involuntary,
            pss_before_kib: self.pss_before_kib,
            ..later
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct ProcStat {
    parent: u32,
    user: f64,
    system: f64,
}

/// Returns the parent of a process; `None` if the process does not exist.
pub(crate) fn parent_pid(pid: u32) -> Option<u32> {
    read_proc_stat(pid).map(|stat| stat.parent)
}

/// Returns the state letter of a process, such as `T` for stopped; `None` if the process does not exist.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

fn read_proc_stat(pid: u32) -> Option<ProcStat> {
    parse_proc_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `/proc/PID/stat`. Includes reaped children: the CPU time of a dead worker is in its primary's.
fn parse_proc_stat(text: &str) -> Option<ProcStat> {
    // The name is in parentheses and may itself contain parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks =
        |at: usize| Some(fields.get(at)?.parse::<u64>().ok()? as f64 / CLOCK_TICKS_PER_SECOND);
    Some(ProcStat {
        parent: fields.get(1)?.parse().ok()?,
        user: ticks(11)? + ticks(13)?,
        system: ticks(12)? + ticks(14)?,
    })
}

fn context_switches(pid: u32) -> [u64; 2] {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return [0; 2] };
    let mut sum = [0; 2];
    for text in threads.flatten().filter_map(|t| fs::read_to_string(t.path().join("status")).ok()) {
        sum[0] += parse_status_field(&text, "voluntary_ctxt_switches:").unwrap_or(0);
        sum[1] += parse_status_field(&text, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
    sum
}

fn pss_kib(pid: u32) -> Option<u64> {
    parse_status_field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// Returns the number behind a field name at the start of a line.
fn parse_status_field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_is_parsed_with_any_process_name() {
        let text = "42 (a) (b) S 7 1 1 0 -1 0 0 0 0 0 100 250 30 5 20 0 1 0 9 0 0";
        assert_eq!(parse_proc_stat(text), Some(ProcStat { parent: 7, user: 1.3, system: 2.55 }));
        assert_eq!(parse_proc_stat("42 (a) S"), None);
    }

    #[test]
    fn usage_is_the_difference_of_two_samples_without_exited_processes() {
        let moment = |user, switches: &[(u32, u64)], pss| ProcessTreeSample {
            user,
            system: 1.0,
            switches: switches.iter().map(|(pid, n)| (*pid, [*n, 2 * n])).collect(),
            pss_kib: Some(pss),
        };
        let tree = ProcessTree { root: 1, name: "x".to_string() };
        let before = moment(1.0, &[(1, 10), (2, 1000)], 100);
        let after = moment(3.5, &[(1, 15), (3, 7)], 130);
        let usage = tree.usage_between(&before, &after);
        assert_eq!((usage.user_s, usage.system_s, usage.processes), (2.5, 0.0, 2));
        assert_eq!((usage.voluntary, usage.involuntary), (12, 24));
        let twice = usage.clone().combine(tree.usage_between(&after, &after));
        assert_eq!(
            (twice.user_s, twice.pss_before_kib, twice.pss_after_kib),
            (2.5, Some(100), Some(130))
        );
    }

    #[test]
    fn the_tree_of_an_own_listener_starts_at_this_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = ListenAddr::Tcp(listener.local_addr().expect("address"));
        let tree = ProcessTree::find_by_listener(&addr).expect("found");
        assert_eq!(tree.root, std::process::id());
        assert!(process_state(tree.root).is_some_and(|state| "RSD".contains(state)));
        let moment = tree.read_sample();
        assert!(moment.switches.contains_key(&tree.root), "{moment:?}");
    }
}
