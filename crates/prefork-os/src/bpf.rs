//! BPF programs that choose the socket of a reuseport group, loaded by bpf(2) and attached by socket options.
//!
//! Callers pass the instructions of a program; no compiler and no object file is involved.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{libc, syscall_result};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_REUSEPORT_SOCKARRAY: u32 = 20;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_SK_REUSEPORT: u32 = 21;

/// The socket option of that name, since Linux 5.3.
const SO_DETACH_REUSEPORT_BPF: libc::c_int = 68;
/// Size in bytes of the buffer for the log of the BPF verifier.
const VERIFIER_LOG_BYTES: usize = 1 << 16;

/// An eBPF instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EbpfInstruction {
    /// The opcode.
    pub code: u8,
    /// The source register in the upper four bits, the destination register in the lower ones.
    pub registers: u8,
    /// The signed offset of a jump or a memory access.
    pub offset: i16,
    /// The immediate operand.
    pub immediate: i32,
}

/// A classic BPF instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ClassicBpfInstruction {
    /// The opcode.
    pub code: u16,
    /// How many instructions to skip if the condition holds.
    pub jump_true: u8,
    /// How many instructions to skip if the condition does not hold.
    pub jump_false: u8,
    /// The operand, whose meaning depends on `code`.
    pub k: u32,
}

/// The reason why the kernel rejected a program.
#[derive(Debug)]
pub struct ProgramLoadError {
    /// The error of bpf(2).
    pub error: io::Error,
    /// The last lines of the verifier's log, joined to one line. Empty if the verifier did not run.
    pub verifier_log: String,
}

// The structs below are prefixes of `union bpf_attr`. The kernel reads the given size and treats the rest as zeroes.

/// Attributes of BPF_MAP_CREATE.
#[repr(C)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    node: u32,
    name: [u8; 16],
}

/// Attributes of BPF_MAP_UPDATE_ELEM and BPF_MAP_DELETE_ELEM.
#[repr(C, align(8))]
struct MapElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Attributes of BPF_PROG_LOAD.
#[repr(C, align(8))]
struct ProgramLoadAttr {
    program_type: u32,
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

/// Calls bpf(2).
///
/// # Safety
/// Every address in `attributes` points to memory that outlives the call, of the size that `command` requires, and
/// writable where the kernel writes (the log).
unsafe fn bpf_syscall<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    let address: *const T = attributes;
    // SAFETY: `attributes` is plain data of the given size; the caller answers for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, address, size_of::<T>()) };
    syscall_result(result as libc::c_int)
}

fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn create_map(
    map_type: u32,
    value_size: usize,
    entries: u32,
    flags: u32,
    name: &str,
) -> io::Result<OwnedFd> {
    let value_size = u32::try_from(value_size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (inner_map, node, name) = (0, 0, object_name(name));
    let new =
        MapCreateAttr { map_type, key_size: 4, value_size, entries, flags, inner_map, node, name };
    // SAFETY: `new` contains no addresses.
    let fd = unsafe { bpf_syscall(BPF_MAP_CREATE, &new)? };
    // SAFETY: the kernel has just created this close-on-exec descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A BPF array map that this process can map into its memory. Its length is known, as only this module creates one.
#[derive(Debug)]
pub struct BpfArrayMap {
    map: OwnedFd,
    length: usize,
}

impl BpfArrayMap {
    /// Returns the descriptor of the map, for mmap(2).
    pub(super) fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// Returns the size of the map in bytes, which never changes.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl AsRawFd for BpfArrayMap {
    fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }
}

/// A BPF map of listening sockets. The sizes of its keys and values are known, as only this module creates one.
#[derive(Debug)]
pub struct ReuseportSocketMap(OwnedFd);

impl AsRawFd for ReuseportSocketMap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Creates a zeroed array map of `entries` values of `bytes` bytes each, a multiple of eight.
///
/// [`map_bpf_array_pages`](crate::shared_memory::map_bpf_array_pages) maps it into the memory of this process.
///
/// # Errors
/// The process lacks CAP_BPF, or the map would be too large.
pub fn create_array_map(name: &str, bytes: usize, entries: u32) -> io::Result<BpfArrayMap> {
    let length = bytes.checked_mul(entries as usize).ok_or(io::ErrorKind::InvalidInput)?;
    let map = create_map(BPF_MAP_TYPE_ARRAY, bytes, entries, BPF_F_MMAPABLE, name)?;
    Ok(BpfArrayMap { map, length })
}

/// Creates an empty map for `entries` listening sockets.
///
/// # Errors
/// The process lacks CAP_BPF.
pub fn create_reuseport_socket_map(name: &str, entries: u32) -> io::Result<ReuseportSocketMap> {
    create_map(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, size_of::<u64>(), entries, 0, name)
        .map(ReuseportSocketMap)
}

/// Inserts the listening `socket` at `index`.
///
/// # Errors
/// `ResourceBusy` if the socket is in another map. An unused map releases its sockets after a short delay.
pub fn insert_socket(
    map: &ReuseportSocketMap,
    index: u32,
    socket: BorrowedFd<'_>,
) -> io::Result<()> {
    let value = socket.as_raw_fd() as u64;
    let (key, value) = (&raw const index as u64, &raw const value as u64);
    let element = MapElementAttr { map: map.as_raw_fd() as u32, padding: 0, key, value, flags: 0 };
    // SAFETY: key and value point to four and eight bytes, the sizes of this map, which outlive the call.
    unsafe { bpf_syscall(BPF_MAP_UPDATE_ELEM, &element)? };
    Ok(())
}

/// Removes the socket at `index`.
///
/// # Errors
/// There is no socket at `index`.
pub fn remove_socket(map: &ReuseportSocketMap, index: u32) -> io::Result<()> {
    let key = &raw const index as u64;
    let element =
        MapElementAttr { map: map.as_raw_fd() as u32, padding: 0, key, value: 0, flags: 0 };
    // SAFETY: the key points to four bytes that outlive the call; no value is read.
    unsafe { bpf_syscall(BPF_MAP_DELETE_ELEM, &element)? };
    Ok(())
}

/// Loads a program that selects sockets of a reuseport group (BPF_PROG_TYPE_SK_REUSEPORT).
///
/// # Errors
/// The process lacks CAP_BPF, or the verifier rejects the program.
pub fn load_reuseport_program(
    name: &str,
    program: &[EbpfInstruction],
) -> Result<OwnedFd, ProgramLoadError> {
    // The verifier's log costs time and memory, so it is requested only if the program is rejected.
    let error = match try_load_program(name, program, 0).0 {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    if is_permission_denied(&error) {
        return Err(ProgramLoadError { error, verifier_log: String::new() });
    }
    match try_load_program(name, program, 1) {
        (Ok(fd), _) => Ok(fd),
        // Returns the first error: the second one may be that the log was too long.
        (Err(_), log) => {
            Err(ProgramLoadError { error, verifier_log: last_verifier_log_lines(&log) })
        }
    }
}

/// Returns the verifier's statistics about a program, such as the number of instructions processed.
#[cfg(any(test, feature = "testing"))]
pub fn verifier_statistics(program: &[EbpfInstruction]) -> String {
    // Log level 4: statistics only.
    last_verifier_log_lines(&try_load_program("prefork_test", program, 4).1)
}

fn try_load_program(
    name: &str,
    program: &[EbpfInstruction],
    level: u32,
) -> (io::Result<OwnedFd>, Vec<u8>) {
    let mut log = vec![0_u8; if level == 0 { 0 } else { VERIFIER_LOG_BYTES }];
    let load = ProgramLoadAttr {
        program_type: BPF_PROG_TYPE_SK_REUSEPORT,
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
    // SAFETY: the instructions and the log have the given lengths, the license ends with NUL and the log is exclusively
    // borrowed; all outlive the call.
    let result = unsafe { bpf_syscall(BPF_PROG_LOAD, &load) };
    // SAFETY: the kernel has just created this close-on-exec descriptor, so it has no other owner.
    (result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }), log)
}

fn last_verifier_log_lines(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

/// Attaches an eBPF program to the whole reuseport group of `socket`. Replaces the previous program.
pub fn attach_reuseport_program(socket: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    set_socket_option(socket, libc::SO_ATTACH_REUSEPORT_EBPF, &program.as_raw_fd())
}

/// Attaches a classic BPF program to the whole reuseport group of `socket`, which needs no privilege.
///
/// # Errors
/// The kernel rejects the program, or it has more than 65535 instructions.
pub fn attach_classic_reuseport_program(
    socket: BorrowedFd<'_>,
    program: &[ClassicBpfInstruction],
) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = program.as_ptr().cast_mut().cast();
    set_socket_option(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &libc::sock_fprog { len, filter })
}

/// Detaches the program from the reuseport group of `socket`: the kernel selects by hash again. Succeeds without a
/// program.
pub fn detach_reuseport_program(socket: BorrowedFd<'_>) -> io::Result<()> {
    match set_socket_option(socket, SO_DETACH_REUSEPORT_BPF, &0) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn set_socket_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (address, size) = (&raw const *value, size_of_val(value) as libc::socklen_t);
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel only reads `value`, which is a number, or a sock_fprog whose instructions the caller's slice
    // keeps alive.
    syscall_result(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, option, address.cast(), size)
    })?;
    Ok(())
}

/// Returns whether an operation failed for lack of a privilege (EPERM).
pub fn is_permission_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// Runs `create` with RLIMIT_MEMLOCK raised by `bytes` and then restores the limit.
///
/// Before Linux 5.11 BPF maps and programs counted as locked memory.
pub fn with_raised_memlock_limit<T>(bytes: u64, create: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::RLIMIT_MEMLOCK);
    if let Ok((soft, hard)) = before {
        let wanted = soft.saturating_add(bytes);
        // Without the privilege to raise the hard limit, the soft limit may suffice.
        if setrlimit(Resource::RLIMIT_MEMLOCK, wanted, hard.max(wanted)).is_err() {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard.min(wanted), hard);
        }
    }
    let created = create();
    if let Ok((soft, hard)) = before {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
    }
    created
}
