//! Waits until a server has nothing left to do, so that its memory no longer changes.

use std::time::{Duration, Instant};

use crate::load::process_tree::{ProcessTree, TreeMemory};

/// How often memory and CPU time are read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Most CPU time that a server without work uses, as a part of one core: heartbeats and timers.
const MAX_QUIET_CPU_SHARE: f64 = 0.05;
/// Largest change of the memory of a quiet server, in KiB.
const MAX_QUIET_CHANGE_KIB: u64 = 64;

/// Memory of a server after a wait for quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuietMemory {
    pub(crate) memory: TreeMemory,
    /// Whether the server was quiet; `false` if the time was up first.
    pub(crate) is_quiet: bool,
}

/// Waits until the memory of the server has stayed the same for `quiet`, while it used hardly any CPU time, but not
/// longer than `limit`.
///
/// Returns `None` if its memory cannot be read, or once `is_stopped` returns `true`.
pub(crate) fn wait_until_quiet(
    tree: &ProcessTree,
    quiet: Duration,
    limit: Duration,
    is_stopped: &mut dyn FnMut() -> bool,
) -> Option<QuietMemory> {
    let begun = Instant::now();
    // When the present phase of quiet began, and with what.
    let mut since = (begun, tree.read_memory()?, tree.cpu_time());
    loop {
        std::thread::park_timeout(SAMPLE_INTERVAL);
        if is_stopped() {
            return None;
        }
        let (now, memory, cpu_time) = (Instant::now(), tree.read_memory()?, tree.cpu_time());
        let (from, before, cpu_before) = since;
        let used = cpu_time.saturating_sub(cpu_before);
        // Two ticks of the kernel's clock are allowed in any time, as it counts in whole ticks.
        let allowed = (now - from).mul_f64(MAX_QUIET_CPU_SHARE) + Duration::from_millis(20);
        let changed = memory.pss_kib.abs_diff(before.pss_kib);
        if changed > MAX_QUIET_CHANGE_KIB || used > allowed {
            since = (now, memory, cpu_time);
        } else if now - from >= quiet {
            return Some(QuietMemory { memory, is_quiet: true });
        }
        if now - begun >= limit {
            return Some(QuietMemory { memory, is_quiet: false });
        }
    }
}
