//! The memory of shared state: files in memory that are made before the fork, with a piece for each declaration.
//!
//! Small pieces share a file, because each file is an open descriptor of the primary; a large piece has a file of its own. Workers
//! keep only the mappings. No process can shrink a file, which would raise SIGBUS in the others.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Words in a file that small pieces share: 4 MiB. Untouched pages use no memory.
const SHARED_FILE_WORDS: usize = (4 << 20) / 8;
/// The largest piece that shares a file with others: 128 KiB.
const MAX_SMALL_PIECE_WORDS: usize = (128 << 10) / 8;
/// Words per page. A piece of a page or more begins at a page.
const WORDS_PER_PAGE: usize = prefork_os::shared_memory::WORDS_PER_PAGE;
/// Words per pair of cache lines, which CPUs fetch together. Two pieces are never in the same pair.
const WORDS_PER_LINE_PAIR: usize = 16;

/// A piece of shared memory, as its declaration describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceLayout<'a> {
    /// The type in words, as for an error: `counter`.
    pub(super) kind: &'static str,
    /// What else determines the meaning of the words: the revision of the type's layout, and the numbers of the declaration.
    #[expect(dead_code, reason = "compared by an upgrade in place")]
    pub(super) layout: &'a str,
    /// The number of 64-bit words.
    pub(super) words: usize,
}

/// Memory for one declaration.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedPiece {
    /// All zero, unless the piece is inherited.
    pub(super) words: &'static [AtomicU64],
    /// Whether the previous image of an upgrade in place has declared the same piece, and processes of it may use it now.
    pub(super) is_inherited: bool,
}

/// All memory of shared state, in the process that declares it.
struct SharedMemory {
    files: Vec<MemoryFile>,
}

/// A file in memory.
struct MemoryFile {
    /// Kept for the next image of an upgrade.
    #[expect(dead_code, reason = "passed on by an upgrade in place")]
    fd: OwnedFd,
    words: &'static [AtomicU64],
    /// Where the next piece can begin.
    used_words: usize,
}

static MEMORY: Mutex<SharedMemory> = Mutex::new(SharedMemory { files: Vec::new() });

fn lock_memory() -> MutexGuard<'static, SharedMemory> {
    // No code panics with the lock held.
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Allocates the memory of the declaration `name`, which all workers share.
///
/// # Errors
/// The system has no memory or descriptors left.
pub(super) fn allocate(name: &str, layout: PieceLayout<'_>) -> Result<SharedPiece> {
    let words = lock_memory().allocate(layout.words).map_err(|e| {
        Error::system(format!("allocate shared memory for the {} {name:?}", layout.kind), e)
    })?;
    Ok(SharedPiece { words, is_inherited: false })
}

/// Closes the descriptors in a forked worker, which has the mappings.
pub(crate) fn close_in_worker() {
    lock_memory().files.clear();
}

impl SharedMemory {
    fn allocate(&mut self, words: usize) -> io::Result<&'static [AtomicU64]> {
        if words > MAX_SMALL_PIECE_WORDS {
            return self.create_file(words)?.take_words(words).ok_or(io::ErrorKind::Other.into());
        }
        if let Some(taken) = self.files.iter_mut().find_map(|file| file.take_words(words)) {
            return Ok(taken);
        }
        self.create_file(SHARED_FILE_WORDS)?.take_words(words).ok_or(io::ErrorKind::Other.into())
    }

    fn create_file(&mut self, words: usize) -> io::Result<&mut MemoryFile> {
        let (fd, words) = prefork_os::shared_memory::create_shared_words_file(words)?;
        self.files.push(MemoryFile { fd, words, used_words: 0 });
        self.files.last_mut().ok_or(io::ErrorKind::Other.into())
    }
}

impl MemoryFile {
    /// Takes words that no piece has used. `None` if there are too few.
    fn take_words(&mut self, count: usize) -> Option<&'static [AtomicU64]> {
        let alignment = if count >= WORDS_PER_PAGE { WORDS_PER_PAGE } else { WORDS_PER_LINE_PAIR };
        let first = self.used_words.next_multiple_of(alignment);
        let end = first.checked_add(count)?;
        let taken = self.words.get(first..end)?;
        self.used_words = end;
        Some(taken)
    }
}
