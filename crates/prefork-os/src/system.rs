//! Values that the kernel gives out: clocks, random numbers, the page size, the current CPU.

use std::io;

use super::libc;

/// Bytes of a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: sysconf only reads.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Milliseconds on the monotonic clock, the same for every process of this machine.
pub fn monotonic_ms() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(now) => now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000,
        Err(_) => 0,
    }
}

/// Nanoseconds on the monotonic clock, the same for every process of this machine.
pub fn monotonic_ns() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(now) => now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64,
        Err(_) => 0,
    }
}

/// Eight bytes that no other process got: from the kernel, never from a generator that fork copied.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for its eight bytes; for up to 256 bytes getrandom is all or nothing.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// The processor this thread runs on right now, or 0 if the kernel does not say. It may be another one by the
/// time the caller uses it: good for spreading writes, for nothing else.
pub fn current_cpu() -> usize {
    nix::sched::sched_getcpu().unwrap_or(0)
}
