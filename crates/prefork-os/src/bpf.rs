//! Programs in the kernel that choose a socket of a reuseport group: bpf(2) and the socket options, by hand.
//! There is no compiler and no object file: who calls this has the instructions.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{cvt, libc};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_REUSEPORT_SOCKARRAY: u32 = 20;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_SK_REUSEPORT: u32 = 21;

/// `SO_DETACH_REUSEPORT_BPF`, since Linux 5.3.
const SO_DETACH_REUSEPORT_BPF: libc::c_int = 68;
/// Bytes of the verifier's explanation that are kept.
const VERIFIER_LOG_BYTES: usize = 1 << 16;

/// An instruction of the extended machine, as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EbpfInstruction {
    pub code: u8,
    /// The source register in the upper half, the destination in the lower.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// An instruction of the classic machine, as the kernel reads it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ClassicBpfInstruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

/// Why the kernel did not take a program.
#[derive(Debug)]
pub struct ProgramLoadError {
    pub error: io::Error,
    /// The last words of the verifier, on one line; empty if it was not even asked.
    pub verifier_log: String,
}

// The kernel reads as many bytes as it is told of, and takes the rest of its union for zeroes.
#[repr(C)]
struct MapCreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    node: u32,
    name: [u8; 16],
}

#[repr(C, align(8))]
struct MapElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C, align(8))]
struct ProgramLoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// # Safety
///
/// Every address within `attributes` points to memory of the size that `command` says, writable where the
/// kernel writes (the log), and alive during the call.
unsafe fn bpf_syscall<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    let address: *const T = attributes;
    // SAFETY: `attributes` is plain data of the size given; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, address, size_of::<T>()) };
    cvt(result as libc::c_int)
}

fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn create_map(
    kind: u32,
    value_size: usize,
    entries: u32,
    flags: u32,
    name: &str,
) -> io::Result<OwnedFd> {
    let value_size = u32::try_from(value_size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (inner_map, node, name) = (0, 0, object_name(name));
    let new =
        MapCreateAttr { kind, key_size: 4, value_size, entries, flags, inner_map, node, name };
    // SAFETY: no address is in there.
    let fd = unsafe { bpf_syscall(BPF_MAP_CREATE, &new)? };
    // SAFETY: the kernel has just opened it (close-on-exec) for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Memory that programs and this process share. Only this file makes one, so that its length is known.
#[derive(Debug)]
pub struct BpfArrayMap {
    map: OwnedFd,
    length: usize,
}

impl BpfArrayMap {
    /// What can be mapped.
    pub(super) fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// Bytes that can be mapped. The kernel never makes them fewer.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl AsRawFd for BpfArrayMap {
    fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }
}

/// A table of listening sockets. Only this file makes one, so that the sizes of its keys and values are known.
#[derive(Debug)]
pub struct ReuseportSocketMap(OwnedFd);

impl AsRawFd for ReuseportSocketMap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Memory that programs and this process share: `entries` values of `bytes` bytes (a multiple of eight) one after
/// another, zeroed. See [`super::shared_memory::map_bpf_array_pages`] for this side of it.
pub fn create_array_map(name: &str, bytes: usize, entries: u32) -> io::Result<BpfArrayMap> {
    let length = bytes.checked_mul(entries as usize).ok_or(io::ErrorKind::InvalidInput)?;
    let map = create_map(BPF_MAP_TYPE_ARRAY, bytes, entries, BPF_F_MMAPABLE, name)?;
    Ok(BpfArrayMap { map, length })
}

/// A table of `entries` listening sockets, all empty.
pub fn create_reuseport_socket_map(name: &str, entries: u32) -> io::Result<ReuseportSocketMap> {
    create_map(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, size_of::<u64>(), entries, 0, name)
        .map(ReuseportSocketMap)
}

/// Enters `socket`, which listens, at `index`. `ResourceBusy` while it is in another table; a table that has
/// lost its last user lets go of its sockets a moment later.
pub fn insert_socket(
    table: &ReuseportSocketMap,
    index: u32,
    socket: BorrowedFd<'_>,
) -> io::Result<()> {
    let value = socket.as_raw_fd() as u64;
    let (key, value) = (&raw const index as u64, &raw const value as u64);
    let element =
        MapElementAttr { map: table.as_raw_fd() as u32, padding: 0, key, value, flags: 0 };
    // SAFETY: key and value point to the four and eight bytes that such a table has, which outlive the call.
    unsafe { bpf_syscall(BPF_MAP_UPDATE_ELEM, &element)? };
    Ok(())
}

/// Empties the place at `index`.
pub fn remove_socket(table: &ReuseportSocketMap, index: u32) -> io::Result<()> {
    let key = &raw const index as u64;
    let element =
        MapElementAttr { map: table.as_raw_fd() as u32, padding: 0, key, value: 0, flags: 0 };
    // SAFETY: the key points to four bytes that outlive the call; no value is read.
    unsafe { bpf_syscall(BPF_MAP_DELETE_ELEM, &element)? };
    Ok(())
}

/// Has the kernel verify and take a program that selects sockets.
pub fn load_reuseport_program(
    name: &str,
    program: &[EbpfInstruction],
) -> Result<OwnedFd, ProgramLoadError> {
    // Most programs pass; only for one that does not are we interested in the reasons.
    let error = match try_load(name, program, 0).0 {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    if is_permission_denied(&error) {
        return Err(ProgramLoadError { error, verifier_log: String::new() });
    }
    match try_load(name, program, 1) {
        (Ok(fd), _) => Ok(fd),
        // The first error is the reason: the second may be that the log was too long.
        (Err(_), log) => Err(ProgramLoadError { error, verifier_log: last_log_lines(&log) }),
    }
}

/// What the verifier has to say about a program it takes: how much work it was.
#[cfg(any(test, feature = "testing"))]
pub fn verifier_statistics(program: &[EbpfInstruction]) -> String {
    // 4: statistics only.
    last_log_lines(&try_load("prefork_test", program, 4).1)
}

fn try_load(name: &str, program: &[EbpfInstruction], level: u32) -> (io::Result<OwnedFd>, Vec<u8>) {
    let mut log = vec![0_u8; if level == 0 { 0 } else { VERIFIER_LOG_BYTES }];
    let load = ProgramLoadAttr {
        kind: BPF_PROG_TYPE_SK_REUSEPORT,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: level,
        log_size: log.len() as u32,
        log: if level == 0 { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name: object_name(name),
    };
    // SAFETY: the instructions are as many as said, the license ends with a zero, and the log is exclusively
    // ours and as long as said; all outlive the call.
    let result = unsafe { bpf_syscall(BPF_PROG_LOAD, &load) };
    // SAFETY: the kernel has just opened it (close-on-exec) for us, and nobody else knows it.
    (result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }), log)
}

fn last_log_lines(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

/// Lets `program` choose for the whole group of `socket`, in place of whatever chose before.
pub fn attach_reuseport_program(socket: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    set_socket_option(socket, libc::SO_ATTACH_REUSEPORT_EBPF, &program.as_raw_fd())
}

/// As [`attach_reuseport_program`], with a classic program, which needs no privilege.
pub fn attach_classic_reuseport_program(
    socket: BorrowedFd<'_>,
    program: &[ClassicBpfInstruction],
) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = program.as_ptr().cast_mut().cast();
    set_socket_option(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &libc::sock_fprog { len, filter })
}

/// Leaves the choice to the kernel's hash again. No error if nothing else has chosen.
pub fn detach_reuseport_program(socket: BorrowedFd<'_>) -> io::Result<()> {
    match set_socket_option(socket, SO_DETACH_REUSEPORT_BPF, &0) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn set_socket_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (address, size) = (&raw const *value, size_of_val(value) as libc::socklen_t);
    let fd = socket.as_raw_fd();
    // SAFETY: `value` is a plain number, or a sock_fprog whose instructions the caller's slice keeps alive and
    // which the kernel only reads.
    cvt(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, address.cast(), size) })?;
    Ok(())
}

/// Whether the kernel would not even look at what was asked, for lack of a privilege.
pub fn is_permission_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// Runs `make` with room for `bytes` of locked memory, which is what maps counted as before Linux 5.11. Leaves
/// the limit as it was.
pub fn with_raised_memlock_limit<T>(bytes: u64, make: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::RLIMIT_MEMLOCK);
    if let Ok((soft, hard)) = before {
        let wanted = soft.saturating_add(bytes);
        // Without the right to raise the hard limit, the soft one may still do.
        if setrlimit(Resource::RLIMIT_MEMLOCK, wanted, hard.max(wanted)).is_err() {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard.min(wanted), hard);
        }
    }
    let made = make();
    if let Ok((soft, hard)) = before {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
    }
    made
}
