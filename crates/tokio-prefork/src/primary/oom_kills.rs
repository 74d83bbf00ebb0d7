//! Counts processes that the kernel killed for lack of memory, as the cgroup reports them.

use std::path::PathBuf;

/// Distinguishes kills by the kernel's OOM killer from other SIGKILLs.
#[derive(Debug)]
pub(super) struct OomKillCounter {
    /// The file with the counter of the cgroup that the primary and its workers are in, if there is one.
    file: Option<PathBuf>,
    /// How many of the counted kills were already attributed to a worker.
    attributed: u64,
}

impl OomKillCounter {
    /// Creates a counter that starts at the current count of this process's cgroup.
    pub(super) fn of_this_process() -> OomKillCounter {
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut kills = OomKillCounter { file: oom_counter_file(&cgroups), attributed: 0 };
        kills.attributed = kills.read_count().unwrap_or(0);
        kills
    }

    /// Returns whether a worker that SIGKILL ended was killed by the kernel. Each counted kill is attributed once.
    pub(super) fn attribute_kill(&mut self) -> bool {
        let is_oom_kill = self.read_count().is_some_and(|count| count > self.attributed);
        self.attributed += u64::from(is_oom_kill);
        is_oom_kill
    }

    fn read_count(&self) -> Option<u64> {
        parse_oom_kill_count(&std::fs::read_to_string(self.file.as_ref()?).ok()?)
    }
}

/// Returns the counter file of the cgroups in `/proc/self/cgroup`: version 2, or version 1 with a memory controller.
fn oom_counter_file(cgroups: &str) -> Option<PathBuf> {
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

fn parse_oom_kill_count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_counter_of_both_cgroup_versions() {
        let version_2 = "0::/system.slice/app.service\n";
        let expected = "/sys/fs/cgroup/system.slice/app.service/memory.events";
        assert_eq!(oom_counter_file(version_2), Some(PathBuf::from(expected)));
        let version_1 = "5:cpu,cpuacct:/a\n3:memory:/docker/x\n1:name=systemd:/\n";
        let expected = "/sys/fs/cgroup/memory/docker/x/memory.oom_control";
        assert_eq!(oom_counter_file(version_1), Some(PathBuf::from(expected)));
        assert_eq!((oom_counter_file(""), oom_counter_file("nonsense")), (None, None));
    }

    #[test]
    fn parses_the_counter_of_both_cgroup_versions() {
        assert_eq!(parse_oom_kill_count("low 0\noom 1\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(parse_oom_kill_count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(parse_oom_kill_count("oom_kill x\n"), None);
    }

    #[test]
    fn attributes_each_kernel_kill_to_one_worker() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("memory.events");
        std::fs::write(&file, "oom_kill 4\n").expect("written");
        let mut kills = OomKillCounter { file: Some(file.clone()), attributed: 4 };
        assert!(!kills.attribute_kill());
        std::fs::write(&file, "oom_kill 5\n").expect("written");
        assert!(kills.attribute_kill() && !kills.attribute_kill());
        std::fs::remove_file(&file).expect("removed");
        assert!(!kills.attribute_kill());
    }
}
