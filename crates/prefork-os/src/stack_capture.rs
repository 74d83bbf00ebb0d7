//! Copies of thread stacks, made by the threads themselves in a signal handler: without a debugger, without ptrace and
//! without stopping other threads.
//!
//! A worker maps one area of a memory file that its primary has created and installs a handler. The primary writes a
//! request number into the area and queues a signal with that number to threads of the worker. The handler of each thread
//! takes a slot of the area, copies its registers and the top of its stack there, and returns. Another process reads the copies with
//! pread(2): what a worker wrote is only bytes, never memory of its reader.
//!
//! The handler runs on the alternate stack of its thread if there is one, as threads of std have: it also works when the
//! stack has no room left. System calls that it interrupts are restarted, except those that no handler restarts, such as
//! poll, epoll_wait and nanosleep: they return EINTR.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{libc, syscall_result};

/// The signals that may request a copy, in order of preference. The first that the process does not handle is used.
///
/// Real-time signals that neither the C library, systemd nor valgrind uses: `SIGRTMIN+26` and the three below it with glibc.
pub const CAPTURE_SIGNALS: [i32; 4] = [60, 59, 58, 57];

/// How many threads of a worker can be captured by one request.
pub const MAX_CAPTURED_THREADS: usize = 64;

const PAGE_BYTES: usize = 4096;
/// How many bytes of a slot hold registers and what the handler works with.
const SLOT_HEADER_BYTES: usize = PAGE_BYTES;
/// How many bytes of the stack of one thread are copied, from the innermost frame on.
pub const MAX_STACK_BYTES: usize = 252 << 10;
const SLOT_BYTES: usize = SLOT_HEADER_BYTES + MAX_STACK_BYTES;
const AREA_HEADER_BYTES: usize = PAGE_BYTES;
/// The size of the area of one worker in bytes. Only pages that a copy has touched use memory.
pub const AREA_BYTES: usize = AREA_HEADER_BYTES + MAX_CAPTURED_THREADS * SLOT_BYTES;

/// Marks an area with a handler: `prefstk` and the version of the layout. The signal is in the lowest byte.
const LAYOUT_MARK: u64 = u64::from_be_bytes(*b"prefst1\0");

/// The words of an area's header.
mod area_word {
    pub(super) const MARK: usize = 0;
    pub(super) const REQUEST: usize = 1;
    pub(super) const NEXT_SLOT: usize = 2;
}

/// The words of a slot's header. The system call vectors of the handler begin at `VECTORS`.
mod slot_word {
    pub(super) const DONE_REQUEST: usize = 0;
    pub(super) const THREAD: usize = 1;
    pub(super) const PC: usize = 2;
    pub(super) const SP: usize = 3;
    pub(super) const FP: usize = 4;
    pub(super) const LR: usize = 5;
    pub(super) const STACK_BYTES: usize = 6;
    pub(super) const COUNT: usize = 7;
    pub(super) const VECTORS: usize = 64;
}

/// The copy of one thread's registers and stack. All of it was written by the worker and may be anything.
#[derive(Debug, Clone)]
pub struct CapturedStack {
    /// The thread that claims to be captured.
    pub thread: u32,
    /// The address of the next instruction.
    pub pc: u64,
    /// The stack pointer: the address of the first byte of `stack`.
    pub sp: u64,
    /// The frame pointer.
    pub fp: u64,
    /// The link register; 0 on x86-64, which has none.
    pub lr: u64,
    /// The bytes of the stack from `sp` on.
    pub stack: Vec<u8>,
}

/// The memory file with an area for each worker.
#[derive(Debug)]
pub struct StackMemory(File);

impl AsFd for StackMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl StackMemory {
    /// Creates memory with `areas` areas, or with fewer if `ulimit -f` limits the size of files. Untouched areas cost nothing.
    ///
    /// # Errors
    /// The kernel has no descriptor left, or `ulimit -f` leaves no room for an area.
    pub fn create(areas: usize) -> io::Result<StackMemory> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memory = memfd_create("prefork-stacks", flags)?;
        let mut areas = areas;
        loop {
            let bytes = areas.checked_mul(AREA_BYTES).and_then(|bytes| i64::try_from(bytes).ok());
            match nix::unistd::ftruncate(&memory, bytes.ok_or(io::ErrorKind::InvalidInput)?) {
                Err(nix::errno::Errno::EFBIG) if areas > 1 => areas /= 2,
                done => break done?,
            }
        }
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(StackMemory(File::from(memory)))
    }

    /// Takes over the memory of the previous program of this process.
    pub fn inherit(memory: OwnedFd) -> StackMemory {
        StackMemory(File::from(memory))
    }

    /// Returns the signal that the worker with this area handles. `None` if it has no handler, or one of another version.
    ///
    /// The worker can write anything here, but only one of [`CAPTURE_SIGNALS`] is returned.
    pub fn capture_signal(&self, area: usize) -> Option<i32> {
        let mark = self.read_words::<1>(area_offset(area)?).ok()?[area_word::MARK];
        let signal = (mark & 0xff) as i32;
        (mark & !0xff == LAYOUT_MARK && CAPTURE_SIGNALS.contains(&signal)).then_some(signal)
    }

    /// Begins request `number` (not 0): older copies are discarded, slots are free again, and handlers answer this number only.
    ///
    /// # Errors
    /// There is no such area, or the write fails.
    pub fn begin_request(&self, area: usize, number: u32) -> io::Result<()> {
        let offset = area_offset(area).ok_or(io::ErrorKind::InvalidInput)?;
        self.discard_copies(area);
        // The slots first: a handler looks at the number before it takes one.
        self.0.write_all_at(&0u64.to_ne_bytes(), offset + 8 * area_word::NEXT_SLOT as u64)?;
        let number = u64::from(number);
        self.0.write_all_at(&number.to_ne_bytes(), offset + 8 * area_word::REQUEST as u64)
    }

    /// Returns which threads have finished their copy for request `number`, by slot.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn captured_threads(&self, area: usize, number: u32) -> io::Result<Vec<(usize, u32)>> {
        let mut threads = Vec::new();
        for slot in 0..MAX_CAPTURED_THREADS {
            let words = self.read_words::<2>(slot_offset(area, slot)?)?;
            if words[slot_word::DONE_REQUEST] == u64::from(number) {
                threads.push((slot, words[slot_word::THREAD] as u32));
            }
        }
        Ok(threads)
    }

    /// Reads the copy in `slot`. Its length is limited to [`MAX_STACK_BYTES`].
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn read_stack(&self, area: usize, slot: usize) -> io::Result<CapturedStack> {
        let offset = slot_offset(area, slot)?;
        let words = self.read_words::<{ slot_word::COUNT }>(offset)?;
        let bytes = usize::try_from(words[slot_word::STACK_BYTES]).unwrap_or(0);
        let mut stack = vec![0; bytes.min(MAX_STACK_BYTES)];
        self.0.read_exact_at(&mut stack, offset + SLOT_HEADER_BYTES as u64)?;
        Ok(CapturedStack {
            thread: words[slot_word::THREAD] as u32,
            pc: words[slot_word::PC],
            sp: words[slot_word::SP],
            fp: words[slot_word::FP],
            lr: words[slot_word::LR],
            stack,
        })
    }

    /// Frees the memory of the copies in an area. The handler of its worker stays usable.
    pub fn discard_copies(&self, area: usize) {
        let Some(offset) = area_offset(area) else { return };
        self.punch_hole(offset + AREA_HEADER_BYTES as u64, AREA_BYTES - AREA_HEADER_BYTES);
    }

    /// Clears an area for the next worker.
    pub fn clear_area(&self, area: usize) {
        let Some(offset) = area_offset(area) else { return };
        self.punch_hole(offset, AREA_BYTES);
    }

    fn punch_hole(&self, offset: u64, bytes: usize) {
        let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let range = i64::try_from(offset).ok().zip(i64::try_from(bytes).ok());
        // A failure keeps memory, nothing else.
        range.map(|(offset, bytes)| nix::fcntl::fallocate(&self.0, flags, offset, bytes));
    }

    fn read_words<const N: usize>(&self, offset: u64) -> io::Result<[u64; N]> {
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            self.0.read_exact_at(&mut bytes, offset + 8 * index as u64)?;
            *word = u64::from_ne_bytes(bytes);
        }
        Ok(words)
    }

    /// Installs the handler in this process, which copies stacks to `area`. Closes the memory, and keeps a mapping of this
    /// area only. Returns the signal.
    ///
    /// # Errors
    /// The program handles all [`CAPTURE_SIGNALS`], or the processor is neither x86-64 nor AArch64.
    pub fn install_handler(self, area: usize) -> io::Result<i32> {
        if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let signal = find_unhandled_signal()?;
        let offset = area_offset(area).and_then(|at| libc::off_t::try_from(at).ok());
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        use std::os::fd::AsRawFd;
        // SAFETY: a new mapping at an address that the kernel chooses. The memory has the area (the file is sealed
        // against shrinking), or the first access would raise SIGBUS, which the length check below excludes.
        let base = unsafe {
            let length = self.0.metadata()?.len();
            if length < (offset as u64).saturating_add(AREA_BYTES as u64) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            libc::mmap(
                std::ptr::null_mut(),
                AREA_BYTES,
                read_write,
                shared,
                self.0.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: exactly the mapping above; the advice only keeps it out of core dumps.
        unsafe { libc::madvise(base, AREA_BYTES, libc::MADV_DONTDUMP) };
        AREA.store(base.cast(), Ordering::Release);
        HANDLER_PID.store(std::process::id() as i32, Ordering::Release);
        // SAFETY: an all-zero sigaction is valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle_capture_signal as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler is async-signal-safe: it makes system calls and touches the mapping only.
        syscall_result(unsafe {
            libc::sigfillset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        })?;
        // Now the signal may come.
        area_atomic(base.cast(), area_word::MARK)
            .store(LAYOUT_MARK | signal as u64, Ordering::Release);
        Ok(signal)
    }
}

fn area_offset(area: usize) -> Option<u64> {
    area.checked_mul(AREA_BYTES).and_then(|offset| u64::try_from(offset).ok())
}

fn slot_offset(area: usize, slot: usize) -> io::Result<u64> {
    let area = area_offset(area).ok_or(io::ErrorKind::InvalidInput)?;
    let slot = (slot < MAX_CAPTURED_THREADS).then(|| AREA_HEADER_BYTES + slot * SLOT_BYTES);
    Ok(area + slot.ok_or(io::ErrorKind::InvalidInput)? as u64)
}

/// Returns the first of [`CAPTURE_SIGNALS`] with its default action.
fn find_unhandled_signal() -> io::Result<i32> {
    let is_default = |signal: &i32| {
        // SAFETY: an all-zero sigaction is valid; the kernel writes the current action to it.
        let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid or null.
        let read = unsafe { libc::sigaction(*signal, std::ptr::null(), &raw mut current) };
        read == 0 && current.sa_sigaction == libc::SIG_DFL
    };
    let free = CAPTURE_SIGNALS.into_iter().find(is_default);
    free.ok_or_else(|| io::Error::other("the program handles the signals 57 to 60 itself"))
}

/// A siginfo of a queued signal, as the kernel reads it on 64-bit processors.
#[repr(C)]
struct QueuedSignal {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    pid: i32,
    uid: u32,
    value: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<QueuedSignal>() == size_of::<libc::siginfo_t>());

/// Queues `signal` with request `number` to thread `thread` of child `pid`, which has not been reaped yet. Never blocks.
///
/// # Errors
/// ESRCH if the process has no such thread, EAGAIN if too many signals are queued.
pub fn send_capture_request(pid: u32, thread: u32, signal: i32, number: u32) -> io::Result<()> {
    let (Ok(group), Ok(thread)) = (i32::try_from(pid), i32::try_from(thread)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if group <= 0 || thread <= 0 || !CAPTURE_SIGNALS.contains(&signal) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let info = QueuedSignal {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        padding: 0,
        pid: std::process::id() as i32,
        uid: nix::unistd::getuid().as_raw(),
        value: number.into(),
        rest: [0; 12],
    };
    // SAFETY: the kernel reads a siginfo from `info`, which has its size and layout.
    let sent = unsafe {
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, group, thread, signal, &raw const info)
    };
    syscall_result(sent as libc::c_int).map(drop)
}

/// The mapped area of this process; null without one.
static AREA: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
/// The process that installed the handler. Its forks inherit handler and mapping, and must not answer for it.
static HANDLER_PID: AtomicI32 = AtomicI32::new(0);

/// Returns word `index` of the area or slot at `base`.
fn area_atomic<'a>(base: *mut u8, index: usize) -> &'a AtomicU64 {
    // SAFETY: `base` is the page-aligned begin of a mapped header page, and `index` below 512. The mapping is never removed.
    unsafe { AtomicU64::from_ptr(base.cast::<u64>().add(index)) }
}

/// Copies registers and stack of this thread to the next slot. Async-signal-safe: makes system calls only, allocates and
/// locks nothing, and keeps errno.
extern "C" fn handle_capture_signal(
    _: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let area = AREA.load(Ordering::Acquire);
    // SAFETY: getpid has no preconditions. The kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let (pid, code) = unsafe { (libc::getpid(), (*info).si_code) };
    if area.is_null() || pid != HANDLER_PID.load(Ordering::Acquire) || code != libc::SI_QUEUE {
        return;
    }
    // SAFETY: a signal with SI_QUEUE has a value. Only its lower half was sent.
    let number = unsafe { (*info).si_value().sival_ptr } as usize as u64;
    // A late answer to an older request must not take a slot of the present one.
    if number == 0 || area_atomic(area, area_word::REQUEST).load(Ordering::Acquire) != number {
        return;
    }
    let slot = area_atomic(area, area_word::NEXT_SLOT).fetch_add(1, Ordering::Relaxed);
    if slot >= MAX_CAPTURED_THREADS as u64 {
        return;
    }
    // SAFETY: slot `slot` lies inside the mapping.
    let slot = unsafe { area.add(AREA_HEADER_BYTES + slot as usize * SLOT_BYTES) };
    // SAFETY: `__errno_location` returns a pointer to the errno of this thread.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes the context that it has saved, valid until the handler returns.
    let registers = unsafe { read_registers(context.cast()) };
    for (word, value) in [
        (slot_word::DONE_REQUEST, 0),
        (slot_word::PC, registers.pc),
        (slot_word::SP, registers.sp),
        (slot_word::FP, registers.fp),
        (slot_word::LR, registers.lr),
    ] {
        area_atomic(slot, word).store(value, Ordering::Relaxed);
    }
    // SAFETY: gettid has no preconditions.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    area_atomic(slot, slot_word::THREAD).store(thread as u64, Ordering::Relaxed);
    // SAFETY: the slot has room for MAX_STACK_BYTES behind its header, and no other thread writes to it.
    let copied = unsafe { copy_stack(pid, registers.sp, slot) };
    area_atomic(slot, slot_word::STACK_BYTES).store(copied as u64, Ordering::Relaxed);
    area_atomic(slot, slot_word::DONE_REQUEST).store(number, Ordering::Release);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

struct Registers {
    pc: u64,
    sp: u64,
    fp: u64,
    lr: u64,
}

/// # Safety
/// `context` is the context that the kernel has passed to a signal handler.
#[cfg(target_arch = "x86_64")]
unsafe fn read_registers(context: *const libc::ucontext_t) -> Registers {
    // SAFETY: the caller's.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let read = |register: libc::c_int| registers[register as usize] as u64;
    Registers { pc: read(libc::REG_RIP), sp: read(libc::REG_RSP), fp: read(libc::REG_RBP), lr: 0 }
}

/// # Safety
/// `context` is the context that the kernel has passed to a signal handler.
#[cfg(target_arch = "aarch64")]
unsafe fn read_registers(context: *const libc::ucontext_t) -> Registers {
    // SAFETY: the caller's.
    let machine = unsafe { &(*context).uc_mcontext };
    Registers { pc: machine.pc, sp: machine.sp, fp: machine.regs[29], lr: machine.regs[30] }
}

/// # Safety
/// None: the handler is not installed on other processors.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn read_registers(_: *const libc::ucontext_t) -> Registers {
    Registers { pc: 0, sp: 0, fp: 0, lr: 0 }
}

/// Copies up to [`MAX_STACK_BYTES`] from address `sp` on behind the header of `slot`. Returns how many bytes were readable.
///
/// process_vm_readv stops at the end of the stack instead of raising SIGSEGV, whatever is mapped behind it. It needs no
/// right for the own process, but a seccomp filter may forbid it.
///
/// # Safety
/// `slot` is a slot that only this thread writes to.
unsafe fn copy_stack(pid: libc::pid_t, sp: u64, slot: *mut u8) -> usize {
    // SAFETY: inside the slot.
    let to = unsafe { slot.add(SLOT_HEADER_BYTES) };
    // In the header of the slot, as the alternate stack is small.
    // SAFETY: as above; aligned, as slots are.
    let vectors = unsafe { slot.cast::<u64>().add(slot_word::VECTORS).cast::<libc::iovec>() };
    let (mut address, mut bytes, mut count) = (sp as usize, 0, 0);
    while bytes < MAX_STACK_BYTES {
        // One element for each page: a page is copied whole or not at all.
        let room = PAGE_BYTES - address % PAGE_BYTES;
        let length = if room < MAX_STACK_BYTES - bytes { room } else { MAX_STACK_BYTES - bytes };
        // SAFETY: at most 64 elements of 16 bytes, which fit behind `VECTORS` in the header page.
        unsafe {
            vectors.add(count).write(libc::iovec { iov_base: address as *mut _, iov_len: length });
        }
        address = address.wrapping_add(length);
        (bytes, count) = (bytes + length, count + 1);
    }
    let local = libc::iovec { iov_base: to.cast(), iov_len: MAX_STACK_BYTES };
    let (vectors, count) = (vectors as *const libc::iovec, count as libc::c_ulong);
    // SAFETY: the kernel reads `count` elements, and writes at most MAX_STACK_BYTES to `to`.
    let copied = unsafe {
        libc::syscall(libc::SYS_process_vm_readv, pid, &raw const local, 1, vectors, count, 0)
    };
    if copied > 0 {
        return copied as usize;
    }
    // SAFETY: as this function's.
    unsafe { copy_probed_pages(sp as usize, to) }
}

/// Copies the stack page by page, each after the kernel has found it readable.
///
/// # Safety
/// `to` has room for MAX_STACK_BYTES.
unsafe fn copy_probed_pages(from: usize, to: *mut u8) -> usize {
    let mut copied = 0;
    while copied < MAX_STACK_BYTES {
        let address = from.wrapping_add(copied);
        let room = PAGE_BYTES - address % PAGE_BYTES;
        let left = MAX_STACK_BYTES - copied;
        let length = if room < left { room } else { left };
        // With an invalid first argument the call only reads eight bytes: EINVAL, or EFAULT if they are not readable.
        // SAFETY: the kernel checks the address, and changes no mask.
        let probed = unsafe {
            let aligned = address & !7;
            libc::syscall(libc::SYS_rt_sigprocmask, -1, aligned, 0usize, 8usize);
            *libc::__errno_location()
        };
        if probed != libc::EINVAL {
            break;
        }
        // SAFETY: the page is readable, and stays so, as it belongs to the stack of this thread or to what lies above it.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.add(copied), length) };
        copied += length;
    }
    copied
}

/// Returns the code that the kernel maps into every process (vDSO), which is in no file. It is the same in each process.
pub fn vdso_image() -> Option<&'static [u8]> {
    // SAFETY: getauxval only reads.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
    if base == 0 || from != base || to <= from {
        return None;
    }
    // SAFETY: the kernel maps the range readable for the life of the process and never changes it.
    Some(unsafe { std::slice::from_raw_parts(base as *const u8, to - from) })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn an_area_holds_its_slots_and_vectors() {
        assert_eq!(AREA_BYTES, 16 * (1 << 20) + PAGE_BYTES);
        let elements = MAX_STACK_BYTES / PAGE_BYTES + 1;
        assert!(slot_word::VECTORS * 8 + elements * 16 <= SLOT_HEADER_BYTES);
    }

    /// Waits until `threads` threads have been captured.
    fn wait_for_copies(memory: &StackMemory, number: u32, threads: usize) -> Vec<(usize, u32)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let captured = memory.captured_threads(0, number).expect("read");
            if captured.len() >= threads {
                return captured;
            }
            assert!(Instant::now() < deadline, "captured {captured:?}");
            std::thread::yield_now();
        }
    }

    /// One test, as the handler belongs to the process.
    #[test]
    fn threads_copy_their_stacks_when_they_are_asked() {
        let memory = StackMemory::create(1).expect("memory");
        assert_eq!(memory.capture_signal(0), None, "no handler yet");
        let own = StackMemory(memory.0.try_clone().expect("clone"));
        let signal = own.install_handler(0).expect("handler");
        assert_eq!(memory.capture_signal(0), Some(signal));
        let pid = std::process::id();
        let marker = 0x1122_3344_5566_7788u64;
        let (send, started) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let words = std::hint::black_box([marker; 8]);
            let _ = send.send((nix::unistd::gettid().as_raw() as u32, words.as_ptr() as u64));
            let _ = stopped.recv();
            std::hint::black_box(words);
        });
        let (tid, address) = started.recv().expect("started");
        for number in 1..=3 {
            memory.begin_request(0, number).expect("begin");
            send_capture_request(pid, tid, signal, number).expect("sent");
            let captured = wait_for_copies(&memory, number, 1);
            assert_eq!(captured, [(0, tid)]);
            let copy = memory.read_stack(0, 0).expect("copy");
            let at = usize::try_from(address - copy.sp).expect("above the stack pointer");
            let bytes = copy.stack.get(at..at + 8).expect("in the copy");
            assert_eq!(u64::from_ne_bytes(bytes.try_into().expect("eight")), marker);
            memory.discard_copies(0);
            assert!(memory.captured_threads(0, number).expect("read").is_empty());
        }
        // An answer to an old request takes no slot.
        send_capture_request(pid, tid, signal, 2).expect("sent");
        assert!(memory.captured_threads(0, 3).expect("read").is_empty());
        assert!(send_capture_request(pid, tid, libc::SIGKILL, 4).is_err());
        drop(stop);
        thread.join().expect("thread");
        memory.clear_area(0);
        assert_eq!(memory.capture_signal(0), None);
    }

    #[test]
    fn probing_copies_a_stack_up_to_the_first_unreadable_page() {
        let mut copy = vec![0u8; MAX_STACK_BYTES];
        let words = [7u64; 16];
        // SAFETY: the buffer has MAX_STACK_BYTES.
        let copied = unsafe { copy_probed_pages(words.as_ptr() as usize, copy.as_mut_ptr()) };
        assert!(copied >= 128 && copy[..8] == 7u64.to_ne_bytes(), "{copied}");
        // SAFETY: as above.
        assert_eq!(unsafe { copy_probed_pages(8, copy.as_mut_ptr()) }, 0);
    }

    #[test]
    fn the_vdso_is_an_elf_image() {
        assert!(vdso_image().is_none_or(|image| image.starts_with(b"\x7fELF")));
    }
}
