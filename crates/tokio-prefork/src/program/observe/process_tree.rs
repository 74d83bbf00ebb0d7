//! All descendants of a process, as `/proc` shows them.
//!
//! Processes come and go while `/proc` is read: a process that becomes an orphan in that moment moves from one list of
//! children to another and may be missed. So nothing final is decided on one look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use prefork_os::process::parent_pid;

/// The most processes that a look returns. Those beyond it are not seen: a program that forks without end must not stop the
/// guard.
const MAX_PROCESSES: usize = 4096;

/// Returns the pids of all descendants of process `root`, parents before their children, without `root`. Includes zombies.
///
/// Finds those that have left the session or process group too: they are descendants of `root` as long as it is a child
/// subreaper.
pub(crate) fn descendants(root: u32) -> Vec<u32> {
    if fs::metadata("/proc/thread-self/children").is_ok() {
        return collect(root, children_of);
    }
    // A kernel without CONFIG_PROC_CHILDREN.
    let children = children_by_parent();
    collect(root, |pid| children.get(&pid).cloned().unwrap_or_default())
}

fn collect(root: u32, children_of: impl Fn(u32) -> Vec<u32>) -> Vec<u32> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([root]);
    let mut next = root;
    let mut visited = 0;
    loop {
        for child in children_of(next) {
            if found.len() < MAX_PROCESSES && seen.insert(child) {
                found.push(child);
            }
        }
        let Some(pid) = found.get(visited) else { return found };
        next = *pid;
        visited += 1;
    }
}

/// Returns the children that any thread of process `pid` has forked.
fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for thread in thread_ids(pid) {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
        let text = text.unwrap_or_default();
        children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}

/// Returns the threads of process `pid`. Empty if it does not exist.
pub(super) fn thread_ids(pid: u32) -> Vec<u32> {
    numeric_entries(&format!("/proc/{pid}/task"))
}

/// Returns the children of each process of the machine.
fn children_by_parent() -> BTreeMap<u32, Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in numeric_entries("/proc") {
        if let Some(parent) = parent_pid(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

fn numeric_entries(directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_of_children_and_those_of_other_sessions_are_found() {
        // The shell replaces nothing: `exit` keeps it from executing the last command in its place.
        let script =
            "sh -c 'sleep 600 & echo $!; wait; exit' & setsid sleep 600 & echo $!; wait; exit";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut shell = shell.spawn().expect("sh");
        let output = BufReader::new(shell.stdout.take().expect("piped"));
        let mut lines = output.lines().map(|line| line.expect("line").parse::<u32>().expect("pid"));
        let sleeps = [lines.next().expect("pid"), lines.next().expect("pid")];
        let found = descendants(shell.id());
        assert!(sleeps.iter().all(|pid| found.contains(pid)), "{sleeps:?} in {found:?}");
        assert!(!found.contains(&shell.id()) && found.len() >= 3, "{found:?}");
        // The same without the lists of children.
        let by_parent = children_by_parent();
        let mut other = collect(shell.id(), |pid| by_parent.get(&pid).cloned().unwrap_or_default());
        let mut found = found;
        other.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, other);
        for pid in found {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::SIGKILL,
            );
        }
        let _ = shell.kill();
        shell.wait().expect("reaped");
    }

    #[test]
    fn a_process_that_does_not_exist_has_no_descendants() {
        assert!(descendants(u32::MAX).is_empty());
        // A list that changes between two reads may show a process twice, or in a circle.
        let circle = |pid: u32| if pid < 3 { vec![pid + 1, pid + 1] } else { vec![1] };
        assert_eq!(collect(1, circle), [2, 3]);
    }
}
