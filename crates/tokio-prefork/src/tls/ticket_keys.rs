//! The keys of session tickets in shared memory: the primary writes them, the workers of all generations and images read them.
//!
//! A page has two banks. The primary writes the unused one and then publishes it by a sequence number, whose lowest bit says
//! which bank counts. So a primary that dies while it writes leaves the old keys in place, and a reader that is overtaken by a
//! rotation sees another number and reads again. Only two keys exist: the current one, and the previous one, with which
//! tickets are still decrypted. The key before that is overwritten.
//!
//! Ages are measured in seconds since the machine started, so that a change of the wall clock neither ends nor prolongs a key.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use prefork_os::secret_pages::{self, SecretPages};
use prefork_os::shared_memory::SharedPage;
use prefork_os::system::{random_u64, seconds_since_boot};
use zeroize::{Zeroize, Zeroizing};

/// The name of the memory in `/proc/PID/maps`.
const MEMORY_NAME: &str = "prefork-ticket-keys";

/// The first word: the format of the page. A new image that does not know it creates new keys.
const FORMAT: u64 = u64::from_be_bytes(*b"pfticke1");

const FORMAT_WORD: usize = 0;
const SEQUENCE_WORD: usize = 1;
/// The first word of each bank.
const BANKS: [usize; 2] = [8, 32];
/// The words of a key: name (2), secret (4), creation time.
const KEY_WORDS: usize = 7;
const BANK_WORDS: usize = 2 * KEY_WORDS;

/// How often a reader tries again that a rotation has overtaken. Rotations are at least seconds apart.
const MAX_READS: usize = 8;

/// A key of session tickets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TicketKey {
    /// Names the key in the tickets. Random, and public.
    pub(super) name: [u8; 16],
    pub(super) secret: Zeroizing<[u8; 32]>,
    /// When the key was created, in seconds since the machine started.
    pub(super) created_at: u64,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("created_at", &self.created_at).finish_non_exhaustive()
    }
}

/// The keys at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TicketKeySet {
    /// Grows by one with each rotation.
    pub(super) sequence: u64,
    pub(super) current: TicketKey,
    /// `None` before the first rotation.
    pub(super) previous: Option<TicketKey>,
}

/// Reads the keys, in any process that the primary has forked.
#[derive(Clone, Copy)]
pub(crate) struct TicketKeyReader(&'static SharedPage);

impl fmt::Debug for TicketKeyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeyReader").field("sequence", &self.sequence()).finish()
    }
}

impl TicketKeyReader {
    /// Returns the number of the newest rotation. A reader that has read the keys of this number need not read them again.
    pub(super) fn sequence(self) -> u64 {
        load_sequence(self.0)
    }

    /// Returns the keys. `None` if the memory has no keys, which only another program could have caused.
    pub(super) fn read(self) -> Option<TicketKeySet> {
        read_keys(self.0)
    }
}

fn load_sequence(page: &SharedPage) -> u64 {
    page[SEQUENCE_WORD].load(Ordering::Acquire)
}

fn read_keys(page: &SharedPage) -> Option<TicketKeySet> {
    for _ in 0..MAX_READS {
        let sequence = load_sequence(page);
        if sequence == 0 {
            return None;
        }
        let mut words = [0; BANK_WORDS];
        for (word, shared) in words.iter_mut().zip(&page[bank_of(sequence)..]) {
            *word = shared.load(Ordering::Relaxed);
        }
        // Pairs with the fence of `write_bank`: if a word of a later rotation was read, its number is seen below.
        fence(Ordering::Acquire);
        let is_consistent = page[SEQUENCE_WORD].load(Ordering::Relaxed) == sequence;
        let keys = is_consistent.then(|| TicketKeySet {
            sequence,
            current: decode_key(&words[..KEY_WORDS]),
            previous: Some(decode_key(&words[KEY_WORDS..])).filter(|key| key.name != [0; 16]),
        });
        words.zeroize();
        if keys.is_some() {
            return keys;
        }
    }
    None
}

/// The keys in the primary, which makes and rotates them.
pub(crate) struct TicketKeyMemory {
    pages: SecretPages,
}

impl TicketKeyMemory {
    /// Creates the memory with a first key.
    ///
    /// # Errors
    /// The kernel has no memory, descriptors or random numbers left.
    pub(crate) fn create() -> io::Result<TicketKeyMemory> {
        let memory = TicketKeyMemory { pages: secret_pages::create_secret_pages(MEMORY_NAME, 1)? };
        memory.page()[FORMAT_WORD].store(FORMAT, Ordering::Relaxed);
        memory.rotate()?;
        Ok(memory)
    }

    /// Takes over the memory of the previous image.
    ///
    /// # Errors
    /// `InvalidData` if it has another format: the caller creates new keys, and tickets of the previous image end.
    pub(crate) fn inherit(memory: OwnedFd) -> io::Result<TicketKeyMemory> {
        let memory = TicketKeyMemory { pages: secret_pages::map_secret_pages(memory)? };
        let is_known = memory.page()[FORMAT_WORD].load(Ordering::Relaxed) == FORMAT;
        match read_keys(memory.page()).filter(|_| is_known) {
            Some(_) => Ok(memory),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Makes a new key the current one, and the current one the previous one.
    ///
    /// # Errors
    /// The kernel has no random numbers; the keys stay as they are.
    pub(crate) fn rotate(&self) -> io::Result<()> {
        let mut bank = [0; BANK_WORDS];
        for word in &mut bank[..KEY_WORDS - 1] {
            *word = random_u64()?;
        }
        bank[KEY_WORDS - 1] = seconds_since_boot();
        let sequence = load_sequence(self.page());
        if sequence > 0 {
            let current = &self.page()[bank_of(sequence)..];
            for (word, shared) in bank[KEY_WORDS..].iter_mut().zip(current) {
                *word = shared.load(Ordering::Relaxed);
            }
        }
        self.publish(sequence + 1, &bank);
        bank.zeroize();
        Ok(())
    }

    /// Writes the unused bank, makes it the current one, and erases the other.
    fn publish(&self, sequence: u64, bank: &[u64; BANK_WORDS]) {
        let page = self.page();
        self.write_bank(sequence, bank);
        page[SEQUENCE_WORD].store(sequence, Ordering::Release);
        self.write_bank(sequence + 1, &[0; BANK_WORDS]);
    }

    fn write_bank(&self, sequence: u64, words: &[u64; BANK_WORDS]) {
        // Pairs with the fence of `read`: no word of this bank is visible before the sequence number from before it.
        fence(Ordering::Release);
        for (shared, word) in self.page()[bank_of(sequence)..].iter().zip(words) {
            shared.store(*word, Ordering::Relaxed);
        }
    }

    fn page(&self) -> &SharedPage {
        self.pages.writable().page(0)
    }

    /// Returns the age of the current key in seconds. A key of the future, which only a restored machine can have, is as old as
    /// possible, so that it is replaced.
    pub(crate) fn current_key_age(&self) -> u64 {
        let bank = bank_of(load_sequence(self.page()));
        let created_at = self.page()[bank + KEY_WORDS - 1].load(Ordering::Relaxed);
        seconds_since_boot().checked_sub(created_at).unwrap_or(u64::MAX)
    }

    /// Returns the descriptor of the memory, for the next image.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pages.memory().as_fd()
    }

    /// Returns why the keys may be swapped out, if so.
    pub(crate) fn lock_error(&self) -> Option<&io::Error> {
        self.pages.lock_error()
    }

    /// Gives up the right to write, in a forked worker.
    ///
    /// # Errors
    /// The kernel refuses to unmap the memory.
    pub(crate) fn into_reader(self) -> io::Result<TicketKeyReader> {
        Ok(TicketKeyReader(self.pages.into_reader()?.page(0)))
    }

    /// Gives up the keys, in a fork that needs none.
    ///
    /// # Errors
    /// The kernel refuses to unmap the memory.
    pub(crate) fn unmap(self) -> io::Result<()> {
        self.pages.unmap()
    }
}

impl fmt::Debug for TicketKeyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeyMemory").field("sequence", &load_sequence(self.page())).finish()
    }
}

/// Returns the first word of the bank that counts under a sequence number.
fn bank_of(sequence: u64) -> usize {
    BANKS[(sequence & 1) as usize]
}

fn decode_key(words: &[u64]) -> TicketKey {
    let mut name = [0; 16];
    let mut secret = Zeroizing::new([0; 32]);
    let bytes = name.as_chunks_mut::<8>().0.iter_mut();
    for (bytes, word) in bytes.chain(secret.as_chunks_mut::<8>().0).zip(words) {
        *bytes = word.to_ne_bytes();
    }
    TicketKey { name, secret, created_at: words[KEY_WORDS - 1] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    /// Returns the keys as a worker sees them.
    fn reader_of(memory: &TicketKeyMemory) -> TicketKeyReader {
        next_image_of(memory).into_reader().expect("a reader")
    }

    fn next_image_of(memory: &TicketKeyMemory) -> TicketKeyMemory {
        let passed = memory.fd().try_clone_to_owned().expect("descriptor");
        TicketKeyMemory::inherit(passed).expect("inherited")
    }

    #[test]
    fn a_rotation_makes_the_current_key_the_previous_one_and_erases_the_one_before() {
        let memory = TicketKeyMemory::create().expect("memory");
        let first = reader_of(&memory).read().expect("keys");
        assert_eq!((first.sequence, &first.previous), (1, &None));
        memory.rotate().expect("rotate");
        let second = reader_of(&memory).read().expect("keys");
        assert_eq!(second.previous.as_ref(), Some(&first.current));
        assert_ne!(second.current.name, first.current.name);
        assert_ne!(second.current.secret, first.current.secret);
        memory.rotate().expect("rotate");
        let third = reader_of(&memory).read().expect("keys");
        assert_eq!((third.sequence, third.previous.as_ref()), (3, Some(&second.current)));
        let secret = u64::from_ne_bytes(first.current.secret[..8].try_into().expect("8 bytes"));
        let remains = memory.page().iter().any(|word| word.load(Ordering::Relaxed) == secret);
        assert!(!remains, "the first key is still in memory");
    }

    #[test]
    fn keys_are_random_in_every_part() {
        let keys: Vec<_> = (0..8)
            .map(|_| read_keys(TicketKeyMemory::create().expect("memory").page()).expect("keys"))
            .collect();
        for part in 0..4 {
            let part = |set: &TicketKeySet| set.current.secret[8 * part..][..8].to_vec();
            let mut parts: Vec<_> = keys.iter().map(part).collect();
            parts.sort();
            parts.dedup();
            assert_eq!(parts.len(), keys.len());
        }
    }

    #[test]
    fn the_next_image_and_earlier_readers_see_the_same_keys() {
        let memory = TicketKeyMemory::create().expect("memory");
        let reader = reader_of(&memory);
        let before = reader.read().expect("keys");
        let next = next_image_of(&memory);
        assert_eq!(read_keys(next.page()), Some(before));
        next.rotate().expect("rotate");
        assert_eq!(reader.read(), read_keys(next.page()));
        assert_eq!(reader.sequence(), 2);
    }

    #[test]
    fn memory_of_another_format_is_not_taken_over() {
        let memory = TicketKeyMemory::create().expect("memory");
        memory.page()[FORMAT_WORD].store(FORMAT + 1, Ordering::Relaxed);
        let passed = memory.fd().try_clone_to_owned().expect("descriptor");
        let error = TicketKeyMemory::inherit(passed).expect_err("another format");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let empty = secret_pages::create_secret_pages("test-empty", 1).expect("pages");
        assert!(TicketKeyMemory::inherit(empty.memory().try_clone().expect("descriptor")).is_err());
    }

    #[test]
    fn a_primary_that_dies_while_it_writes_leaves_the_old_keys() {
        let memory = TicketKeyMemory::create().expect("memory");
        memory.rotate().expect("rotate");
        let before = reader_of(&memory).read().expect("keys");
        for written in 1..=BANK_WORDS {
            // Killed after `written` words of the next bank.
            for word in &memory.page()[bank_of(before.sequence + 1)..][..written] {
                word.store(0xdead, Ordering::Relaxed);
            }
            assert_eq!(reader_of(&memory).read().as_ref(), Some(&before));
            assert_eq!(read_keys(next_image_of(&memory).page()).as_ref(), Some(&before));
        }
        memory.rotate().expect("rotate");
        let after = reader_of(&memory).read().expect("keys");
        assert_eq!(after.previous.as_ref(), Some(&before.current));
    }

    #[test]
    fn readers_see_whole_keys_while_they_rotate() {
        let memory = TicketKeyMemory::create().expect("memory");
        let reader = reader_of(&memory);
        let (is_over, has_seen_both) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut last: Option<TicketKeySet> = None;
                        while !is_over.load(Ordering::Relaxed) {
                            // A rotation each microsecond may overtake all reads.
                            let Some(keys) = reader.read() else { continue };
                            let was = last.replace(keys);
                            let (Some(was), Some(is)) = (was, &last) else { continue };
                            assert!(is.sequence >= was.sequence);
                            if is.sequence == was.sequence {
                                assert_eq!(is, &was);
                            } else if is.sequence == was.sequence + 1 {
                                assert_eq!(is.previous.as_ref(), Some(&was.current));
                                has_seen_both.store(true, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            for _ in 0..20_000 {
                memory.rotate().expect("rotate");
            }
            // Slowly now, so that a reader sees two rotations in succession.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !has_seen_both.load(Ordering::Relaxed) && !readers.iter().any(|r| r.is_finished())
            {
                assert!(Instant::now() < deadline, "no reader saw two rotations in succession");
                memory.rotate().expect("rotate");
                std::thread::park_timeout(Duration::from_millis(1));
            }
            is_over.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|one| one.join().expect("reader"));
        });
        assert!(reader.sequence() > 20_000);
    }

    #[test]
    fn debug_output_has_no_key() {
        let memory = TicketKeyMemory::create().expect("memory");
        let keys = reader_of(&memory).read().expect("keys");
        let text = format!("{memory:?} {keys:?}");
        let secret = format!("{:?}", keys.current.secret);
        assert!(!text.contains(secret.trim_matches(['[', ']'])), "{text}");
        assert!(text.contains("created_at"), "{text}");
    }

    #[test]
    fn a_key_from_the_future_counts_as_old() {
        let memory = TicketKeyMemory::create().expect("memory");
        assert!(memory.current_key_age() <= 1);
        let created_at = &memory.page()[bank_of(1) + KEY_WORDS - 1];
        created_at.store(seconds_since_boot() + 100, Ordering::Relaxed);
        assert_eq!(memory.current_key_age(), u64::MAX);
    }
}
