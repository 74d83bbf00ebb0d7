//! The memory of shared state: files in memory that are made before the fork, with a piece for each declaration.
//!
//! Small pieces share a file, because each file is an open descriptor of the primary; a large piece has a file of its own. Workers
//! keep only the mappings. No process can shrink a file, which would raise SIGBUS in the others.
//!
//! An upgrade in place passes the files to the new image. A declaration of the same name, type, layout and size there gets the same
//! memory, which workers of the old image use until they exit.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::passed_state;
use crate::error::{Error, Result};
use crate::upgrade::{PassedMemory, PassedPiece};

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
    pub(super) layout: &'a str,
    /// The number of 64-bit words.
    pub(super) words: usize,
}

/// Memory for one declaration.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedPiece {
    /// All zero, unless the piece is inherited.
    pub(super) words: &'static [AtomicU64],
    /// Whether the previous image of an upgrade in place has declared the same piece. Its workers may use it now.
    pub(super) is_inherited: bool,
}

/// All memory of shared state, in the process that declares it.
pub(super) struct SharedMemory {
    files: Vec<MemoryFile>,
    /// Lines for the log, which may not be open at a declaration.
    warnings: Vec<String>,
}

/// A file in memory.
struct MemoryFile {
    /// Kept for the next image of an upgrade.
    fd: Arc<OwnedFd>,
    /// `None` for a file of the previous image that no declaration has claimed a piece of.
    words: Option<&'static [AtomicU64]>,
    /// Where the next piece can begin.
    used_words: usize,
    /// The pieces that this image has declared.
    pieces: Vec<PassedPiece>,
    /// The pieces of the previous image that no declaration has claimed.
    unclaimed: Vec<PassedPiece>,
}

static MEMORY: Mutex<SharedMemory> =
    Mutex::new(SharedMemory { files: Vec::new(), warnings: Vec::new() });

pub(super) fn lock_memory() -> MutexGuard<'static, SharedMemory> {
    // No code panics with the lock held.
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Allocates the memory of the declaration `name`, which all workers share, or returns that of the previous image.
///
/// # Errors
/// The system has no memory or descriptors left.
pub(super) fn allocate(name: &str, layout: PieceLayout<'_>) -> Result<SharedPiece> {
    passed_state::inherit_once();
    let mut memory = lock_memory();
    if let Some(words) = memory.claim(name, layout) {
        return Ok(SharedPiece { words, is_inherited: true });
    }
    let words = memory.allocate(name, layout).map_err(|e| {
        let (kind, bytes) = (layout.kind, layout.words.saturating_mul(8));
        Error::system(format!("allocate {bytes} bytes of shared memory for the {kind} {name:?}"), e)
    })?;
    Ok(SharedPiece { words, is_inherited: false })
}

impl SharedMemory {
    fn allocate(
        &mut self,
        name: &str,
        layout: PieceLayout<'_>,
    ) -> io::Result<&'static [AtomicU64]> {
        let is_small = layout.words <= MAX_SMALL_PIECE_WORDS;
        let in_file = |file: &mut MemoryFile| file.take_words(name, layout);
        if let Some(words) = self.files.iter_mut().filter(|_| is_small).find_map(in_file) {
            return Ok(words);
        }
        let file_words = if is_small { SHARED_FILE_WORDS } else { layout.words };
        let (fd, words) = prefork_os::shared_memory::create_shared_words_file(file_words)?;
        let mut file = MemoryFile {
            fd: Arc::new(fd),
            words: Some(words),
            used_words: 0,
            pieces: Vec::new(),
            unclaimed: Vec::new(),
        };
        let words = file.take_words(name, layout).ok_or(io::ErrorKind::OutOfMemory)?;
        self.files.push(file);
        Ok(words)
    }

    /// Returns the memory of the same declaration of the previous image.
    fn claim(&mut self, name: &str, layout: PieceLayout<'_>) -> Option<&'static [AtomicU64]> {
        let is_same = |piece: &PassedPiece| piece.name == name && piece.kind == layout.kind;
        let (file, at) = self.files.iter_mut().find_map(|file| {
            let at = file.unclaimed.iter().position(is_same)?;
            Some((file, at))
        })?;
        let piece = file.unclaimed.swap_remove(at);
        if piece.layout != layout.layout || piece.words != layout.words {
            self.warnings.push(format!(
                "shared state begins anew, as its layout has changed; name={name:?} type={:?} old={:?} old_bytes={} new={:?} \
                 new_bytes={}",
                layout.kind,
                piece.layout,
                piece.words * 8,
                layout.layout,
                layout.words * 8
            ));
            return None;
        }
        match file.map_piece(&piece) {
            Ok(words) => {
                file.pieces.push(piece);
                Some(words)
            }
            Err(e) => {
                self.warnings.push(format!(
                    "shared state begins anew, as its memory cannot be mapped; name={name:?} type={:?} error={e}",
                    layout.kind
                ));
                // Pieces depend on each other: locks name their holders by the process table.
                self.files.iter_mut().for_each(|file| file.unclaimed.clear());
                None
            }
        }
    }

    /// Takes over a file of the previous image.
    pub(super) fn inherit(&mut self, fd: OwnedFd, passed: &PassedMemory) {
        self.files.push(MemoryFile {
            fd: Arc::new(fd),
            words: None,
            used_words: passed.used_words,
            pieces: Vec::new(),
            unclaimed: passed.pieces.clone(),
        });
    }

    /// Closes the memory of the previous image that no declaration has claimed, and returns what was in it.
    pub(super) fn close_unclaimed(&mut self) -> Vec<PassedPiece> {
        let unclaimed = self.files.iter_mut().flat_map(|file| file.unclaimed.drain(..)).collect();
        self.files.retain(|file| file.words.is_some());
        unclaimed
    }

    /// Returns lines for the log about memory of the previous image that a declaration could not get.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Returns the descriptors of all files, and what the next image has to know about each.
    pub(super) fn passed_files(&self) -> Vec<(Arc<OwnedFd>, PassedMemory)> {
        let passed = |file: &MemoryFile| PassedMemory {
            fd: file.fd.as_raw_fd(),
            used_words: file.used_words,
            pieces: file.pieces.clone(),
        };
        self.files.iter().map(|file| (file.fd.clone(), passed(file))).collect()
    }

    /// Closes all descriptors in a forked worker, which has the mappings.
    pub(super) fn close_in_worker(&mut self) {
        self.files.clear();
    }
}

impl MemoryFile {
    /// Takes words that no piece has used. `None` if there are too few.
    fn take_words(&mut self, name: &str, layout: PieceLayout<'_>) -> Option<&'static [AtomicU64]> {
        let alignment = match layout.words {
            WORDS_PER_PAGE.. => WORDS_PER_PAGE,
            _ => WORDS_PER_LINE_PAIR,
        };
        let first_word = self.used_words.checked_next_multiple_of(alignment)?;
        let end = first_word.checked_add(layout.words)?;
        let taken = self.words?.get(first_word..end)?;
        self.used_words = end;
        self.pieces.push(PassedPiece {
            name: name.to_string(),
            kind: layout.kind.to_string(),
            layout: layout.layout.to_string(),
            first_word,
            words: layout.words,
        });
        Some(taken)
    }

    /// Maps the file, unless it is mapped, and returns the words of a piece.
    fn map_piece(&mut self, piece: &PassedPiece) -> io::Result<&'static [AtomicU64]> {
        let words = match self.words {
            Some(words) => words,
            None => prefork_os::shared_memory::map_shared_words_file(&*self.fd)?,
        };
        let end = piece.first_word.checked_add(piece.words);
        let found = end.and_then(|end| words.get(piece.first_word..end));
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.words = Some(words);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    fn memory() -> SharedMemory {
        SharedMemory { files: Vec::new(), warnings: Vec::new() }
    }

    fn layout(layout: &str, words: usize) -> PieceLayout<'_> {
        PieceLayout { kind: "counter", layout, words }
    }

    /// Returns the memory as the next image has it.
    fn next_image(previous: &SharedMemory) -> SharedMemory {
        let mut next = memory();
        for (fd, passed) in previous.passed_files() {
            next.inherit(fd.try_clone().expect("a descriptor"), &passed);
        }
        next
    }

    #[test]
    fn small_pieces_share_a_file_and_never_a_cache_line() {
        let mut memory = memory();
        let pieces: Vec<_> =
            (0..200).map(|n| memory.allocate(&format!("p{n}"), layout("1", 1 + n % 600))).collect();
        let mut addresses: Vec<_> = pieces
            .iter()
            .map(|piece| piece.as_ref().expect("memory").as_ptr_range())
            .map(|range| (range.start as usize, range.end as usize))
            .collect();
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[0].1.next_multiple_of(128) <= pair[1].0));
        assert_eq!(memory.files.len(), 1);
        memory.allocate("large", layout("1", MAX_SMALL_PIECE_WORDS + 1)).expect("memory");
        assert_eq!(memory.files.len(), 2);
    }

    #[test]
    fn the_next_image_gets_the_same_memory_in_any_order_of_declaration() {
        let mut old = memory();
        let sizes = [("a", 3), ("b", 1000), ("large", MAX_SMALL_PIECE_WORDS + 7)];
        for (name, words) in sizes {
            old.allocate(name, layout("1", words)).expect("memory")[words - 1]
                .store(words as u64, Relaxed);
        }
        let mut new = next_image(&old);
        assert!(new.claim("a", PieceLayout { kind: "flag", ..layout("1", 3) }).is_none());
        let fresh = new.allocate("c", layout("1", 3)).expect("memory");
        assert_eq!(fresh[2].load(Relaxed), 0);
        for (name, words) in sizes.into_iter().rev() {
            let claimed = new.claim(name, layout("1", words)).expect(name);
            assert_eq!(claimed[words - 1].load(Relaxed), words as u64);
            assert!(new.claim(name, layout("1", words)).is_none(), "claimed once");
        }
        assert_eq!(new.close_unclaimed(), Vec::new());
        // Another piece in a file of the previous image is in none of its pieces.
        let fresh = new.allocate("d", layout("1", 600)).expect("memory");
        assert!(fresh.iter().all(|word| word.load(Relaxed) == 0));
        fresh[0].store(9, Relaxed);
        let mut third = next_image(&new);
        assert_eq!(third.claim("d", layout("1", 600)).expect("d")[0].load(Relaxed), 9);
        assert_eq!(third.claim("a", layout("1", 3)).expect("a")[2].load(Relaxed), 3);
    }

    #[test]
    fn a_changed_or_undeclared_piece_is_new_and_its_file_is_closed() {
        let mut old = memory();
        let large = MAX_SMALL_PIECE_WORDS + 1;
        for (name, words) in [("small", 3), ("grown", 3), ("large", large), ("gone", large)] {
            old.allocate(name, layout("1", words)).expect("memory");
        }
        let mut new = next_image(&old);
        assert_eq!(new.files.len(), 3);
        assert!(new.claim("large", layout("2", large)).is_none());
        assert!(new.claim("grown", layout("1", 4)).is_none());
        assert!(new.claim("small", layout("1", 3)).is_some());
        assert_eq!(new.take_warnings().len(), 2);
        let unclaimed = new.close_unclaimed();
        assert!(matches!(&unclaimed[..], [piece] if piece.name == "gone"), "{unclaimed:?}");
        assert_eq!(new.files.len(), 1, "the files of no claimed piece are closed");
    }

    #[test]
    fn a_piece_beyond_the_end_of_its_file_is_new() {
        let mut old = memory();
        old.allocate("a", layout("1", 3)).expect("memory");
        let mut passed = old.passed_files();
        let (fd, file) = passed.first_mut().expect("a file");
        file.pieces[0].first_word = SHARED_FILE_WORDS - 2;
        let mut new = memory();
        new.inherit(fd.try_clone().expect("a descriptor"), file);
        assert!(new.claim("a", layout("1", 3)).is_none());
    }
}
