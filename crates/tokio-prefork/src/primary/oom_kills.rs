//! Kills by the kernel for want of memory, as the cgroup counts them.

use std::path::PathBuf;

/// The counter of this process's cgroup, which its workers are in too.
#[derive(Debug)]
pub(super) struct OomKills {
    /// Where it can be read, if anywhere.
    file: Option<PathBuf>,
    /// So many are explained.
    seen: u64,
}

impl OomKills {
    /// Begins to count now.
    pub(super) fn of_this_process() -> OomKills {
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut kills = OomKills { file: file(&cgroups), seen: 0 };
        kills.seen = kills.count().unwrap_or(0);
        kills
    }

    /// A worker was killed by SIGKILL: whether a kill by the kernel explains it. Each explains one.
    pub(super) fn explain(&mut self) -> bool {
        let more = self.count().is_some_and(|count| count > self.seen);
        self.seen += u64::from(more);
        more
    }

    fn count(&self) -> Option<u64> {
        oom_kills(&std::fs::read_to_string(self.file.as_ref()?).ok()?)
    }
}

/// Where the kernel counts for the groups that `/proc/self/cgroup` names: version 2, or version 1 with its memory
/// controller.
fn file(cgroups: &str) -> Option<PathBuf> {
    cgroups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        match controllers {
            "" if number == "0" => {
                Some(PathBuf::from(format!("/sys/fs/cgroup{path}/memory.events")))
            }
            names if names.split(',').any(|name| name == "memory") => {
                Some(PathBuf::from(format!("/sys/fs/cgroup/memory{path}/memory.oom_control")))
            }
            _ => None,
        }
    })
}

fn oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_in_both_versions_of_cgroups() {
        let two = "0::/system.slice/app.service\n";
        let expected = "/sys/fs/cgroup/system.slice/app.service/memory.events";
        assert_eq!(file(two), Some(PathBuf::from(expected)));
        let one = "5:cpu,cpuacct:/a\n3:memory:/docker/x\n1:name=systemd:/\n";
        let expected = "/sys/fs/cgroup/memory/docker/x/memory.oom_control";
        assert_eq!(file(one), Some(PathBuf::from(expected)));
        assert_eq!((file(""), file("nonsense")), (None, None));
    }

    #[test]
    fn the_counter_is_read_from_either_file() {
        assert_eq!(oom_kills("low 0\noom 1\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(oom_kills("oom_kill x\n"), None);
    }

    #[test]
    fn each_kill_by_the_kernel_explains_one_worker() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("memory.events");
        std::fs::write(&file, "oom_kill 4\n").expect("written");
        let mut kills = OomKills { file: Some(file.clone()), seen: 4 };
        assert!(!kills.explain());
        std::fs::write(&file, "oom_kill 5\n").expect("written");
        assert!(kills.explain() && !kills.explain());
        std::fs::remove_file(&file).expect("removed");
        assert!(!kills.explain());
    }
}
