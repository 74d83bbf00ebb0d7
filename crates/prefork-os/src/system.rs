//! Values from the kernel: monotonic clocks, random numbers, available memory, the page size and the current CPU.

use std::io;

use super::libc;

/// Returns the size of a memory page in bytes.
pub fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and only reads.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Returns the monotonic clock in milliseconds. All processes of the machine see the same clock.
pub fn monotonic_ms() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(now) => now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000,
        Err(_) => 0,
    }
}

/// Returns the monotonic clock in nanoseconds. All processes of the machine see the same clock.
pub fn monotonic_ns() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(now) => now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64,
        Err(_) => 0,
    }
}

/// Returns the seconds since the machine started, including those in which it was suspended. All processes of the machine
/// see the same clock, and setting the wall clock does not change it.
pub fn seconds_since_boot() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME) {
        Ok(now) => u64::try_from(now.tv_sec()).unwrap_or(0),
        Err(_) => 0,
    }
}

/// Returns the CPU time that all threads of this process have used, in microseconds.
pub fn process_cpu_time_us() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID) {
        Ok(used) => used.tv_sec() as u64 * 1_000_000 + used.tv_nsec() as u64 / 1000,
        Err(_) => 0,
    }
}

/// Returns 64 random bits from the kernel, which differ between forked processes, unlike those of a copied generator.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for eight bytes. Up to 256 bytes getrandom returns all or fails.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// Returns the number of the CPU that the thread runs on, or 0 if unknown.
///
/// Use it only to spread writes: the thread may move to another CPU at any time.
pub fn current_cpu() -> usize {
    nix::sched::sched_getcpu().unwrap_or(0)
}

/// Returns how many bytes of memory and swap space the kernel can give without killing a process. `None` if `/proc` cannot be read.
pub fn available_memory_bytes() -> Option<u64> {
    parse_available_memory(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available_memory(meminfo: &str) -> Option<u64> {
    let kibibytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let swap = kibibytes("SwapFree:").unwrap_or(0);
    Some(kibibytes("MemAvailable:")?.saturating_add(swap).saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_includes_free_swap_space() {
        let meminfo = "MemTotal:   900 kB\nMemAvailable:   20 kB\nSwapFree:   3 kB\n";
        assert_eq!(parse_available_memory(meminfo), Some(23 * 1024));
        assert_eq!(parse_available_memory("MemAvailable:   20 kB\n"), Some(20 * 1024));
        assert_eq!(parse_available_memory("SwapFree:   3 kB\n"), None);
        assert!(available_memory_bytes().is_some_and(|bytes| bytes > 0));
    }
}
