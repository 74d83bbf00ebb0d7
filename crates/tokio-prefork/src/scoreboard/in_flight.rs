//! The requests in progress on a worker's page: method and path of up to 23, readable while they change.
//!
//! Each entry is a small seqlock: its sequence word is odd while the owner writes. A reader that meets an odd
//! or changing sequence tries again a few times and then leaves the entry out; it never waits for a worker
//! that died in mid-update.

use std::sync::atomic::{Ordering, fence};

use super::page_layout::{
    HOLDS_ENTRY, IN_FLIGHT_ENTRIES, IN_FLIGHT_ENTRY_WORDS, IN_FLIGHT_START, MAX_REQUEST_BYTES,
    PageWord, RUNNING_ENTRY,
};
use crate::text::printable_ascii;
use prefork_os::shared_memory::SharedPage;

/// The most bytes of a method that are listed.
const MAX_METHOD_BYTES: usize = 16;

/// Stands in place of the method where an entry lists holds. No method has a colon.
pub(crate) const HOLD_METHOD: &str = "hold:";

/// The entry of one request: small, as requests are moved often. Its owner frees it with `InFlightEntries::remove`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InFlightEntry(u8);

/// The free entries of a page, in the worker's own memory.
pub(super) struct InFlightEntries {
    free: Vec<u8>,
}

impl InFlightEntries {
    pub(super) fn new() -> InFlightEntries {
        InFlightEntries { free: (0..HOLDS_ENTRY as u8).rev().collect() }
    }

    /// Writes a request into a free entry; `None` when all are taken.
    pub(super) fn add(
        &mut self,
        page: &SharedPage,
        method: &str,
        path: &str,
        now_ms: u64,
    ) -> Option<InFlightEntry> {
        let entry = self.free.pop()?;
        write_entry(page, entry.into(), (method, path), now_ms);
        Some(InFlightEntry(entry))
    }

    /// Frees the entry of a request.
    pub(super) fn remove(&mut self, page: &SharedPage, entry: InFlightEntry) {
        entry_word(entry.0.into(), 2).store(page, 0);
        self.free.push(entry.0);
    }
}

/// Lists what holds a draining worker beside its requests: `hold: NAMES`, since `since_ms`. `None` for nothing.
pub(super) fn set_holds(page: &SharedPage, holds: Option<(&str, u64)>) {
    match holds {
        Some((names, since_ms)) => write_entry(page, HOLDS_ENTRY, (HOLD_METHOD, names), since_ms),
        None => entry_word(HOLDS_ENTRY, 2).store(page, 0),
    }
}

fn write_entry(page: &SharedPage, entry: usize, (method, path): (&str, &str), now_ms: u64) {
    let sequence = entry_word(entry, 0);
    let odd = sequence.load(page) | 1;
    sequence.store(page, odd);
    fence(Ordering::Release);
    entry_word(entry, 1).store(page, now_ms);
    let length = write_text(page, entry, method.as_bytes(), path.as_bytes());
    entry_word(entry, 2).store(page, length as u64);
    page[IN_FLIGHT_START + entry * IN_FLIGHT_ENTRY_WORDS]
        .store(odd.wrapping_add(1), Ordering::Release);
}

/// Marks the entry whose handler is on the event loop; `None` for none.
pub(super) fn set_running_entry(page: &SharedPage, entry: Option<InFlightEntry>) {
    RUNNING_ENTRY.store(page, entry.map_or(0, |entry| u64::from(entry.0) + 1));
}

/// An entry in use.
pub(super) struct ReadEntry {
    pub(super) number: usize,
    /// Differs for each request that the entry has held.
    pub(super) sequence: u64,
    /// Milliseconds on the monotonic clock.
    pub(super) start_ms: u64,
    pub(super) text: String,
}

/// Reads all entries in use.
pub(super) fn read_entries(page: &SharedPage) -> Vec<ReadEntry> {
    (0..IN_FLIGHT_ENTRIES).filter_map(|number| read_entry(page, number)).collect()
}

impl InFlightEntry {
    /// Returns the number of the entry, and the sequence number of the request in it.
    pub(super) fn number_and_sequence(self, page: &SharedPage) -> (usize, u64) {
        (self.0.into(), entry_word(self.0.into(), 0).load(page))
    }
}

/// Reads the text of one entry.
pub(super) fn read_request(page: &SharedPage, entry: InFlightEntry) -> Option<String> {
    read_entry(page, entry.0.into()).map(|entry| entry.text)
}

fn read_entry(page: &SharedPage, entry: usize) -> Option<ReadEntry> {
    for _ in 0..4 {
        let before = page[IN_FLIGHT_START + entry * IN_FLIGHT_ENTRY_WORDS].load(Ordering::Acquire);
        let length = entry_word(entry, 2).load(page);
        if length == 0 {
            return None;
        }
        let start = entry_word(entry, 1).load(page);
        let mut bytes = [0u8; MAX_REQUEST_BYTES];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&entry_word(entry, 3 + i).load(page).to_le_bytes());
        }
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && entry_word(entry, 0).load(page) == before {
            let length =
                usize::try_from(length).unwrap_or(MAX_REQUEST_BYTES).min(MAX_REQUEST_BYTES);
            let text = printable_ascii(&bytes[..length]);
            return Some(ReadEntry { number: entry, sequence: before, start_ms: start, text });
        }
    }
    None
}

fn entry_word(entry: usize, index: usize) -> PageWord {
    PageWord::at(IN_FLIGHT_START + entry * IN_FLIGHT_ENTRY_WORDS + index)
}

/// Writes `METHOD path`, cut to the room there is, eight bytes at a time; returns its length.
fn write_text(page: &SharedPage, entry: usize, method: &[u8], path: &[u8]) -> usize {
    let method = &method[..method.len().min(MAX_METHOD_BYTES)];
    let before_path = method.len() + 1;
    let path = &path[..path.len().min(MAX_REQUEST_BYTES - before_path)];
    let store = |word, value| entry_word(entry, 3 + word).store(page, value);
    let store_all = |first, text: &[u8]| {
        text.chunks(8).enumerate().for_each(|(i, piece)| store(first + i, little_endian(piece)));
    };
    if before_path > 8 {
        store_all(0, &[method, b" ", path].concat());
        return before_path + path.len();
    }
    let (start, rest) = path.split_at(path.len().min(8 - before_path));
    let method_and_space = little_endian(method) | u64::from(b' ') << (8 * method.len());
    // A path that does not start in this word is shifted out of it.
    let start = little_endian(start).checked_shl(8 * before_path as u32).unwrap_or(0);
    store(0, method_and_space | start);
    store_all(1, rest);
    before_path + path.len()
}

/// Returns at most eight bytes as a number, the first one as its lowest byte. Without a copy into an array of eight, which costs a call.
fn little_endian(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(eight) => u64::from_le_bytes(*eight),
        None => bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &SharedPage) -> Vec<(usize, u64, String)> {
        let entries = read_entries(page).into_iter();
        entries.map(|entry| (entry.number, entry.start_ms, entry.text)).collect()
    }

    fn page() -> &'static SharedPage {
        prefork_os::shared_memory::create_shared_pages(1)
            .expect("page")
            .0
            .keep_only_page(0)
            .expect("own")
    }

    #[test]
    fn a_request_is_listed_only_while_it_is_served() {
        let (page, mut entries) = (page(), InFlightEntries::new());
        let entry = entries.add(page, "GET", "/fib/50", 7).expect("room");
        assert_eq!(read(page), [(0, 7, "GET /fib/50".to_string())]);
        entries.remove(page, entry);
        assert!(read(page).is_empty());
    }

    #[test]
    fn a_long_path_is_cut_and_control_characters_are_escaped() {
        let (page, mut entries) = (page(), InFlightEntries::new());
        entries.add(page, "GET", &"x".repeat(500), 0).expect("room");
        entries.add(page, "GET", "/\u{1b}[2J\n", 0).expect("room");
        let seen = read(page);
        assert_eq!(seen[0].2.len(), MAX_REQUEST_BYTES);
        assert_eq!(seen[1].2, r"GET /\x1b[2J\n");
    }

    #[test]
    fn methods_and_paths_of_every_length_are_listed() {
        for method in 1..=MAX_METHOD_BYTES {
            for path in 0..=24 {
                let (page, mut entries) = (page(), InFlightEntries::new());
                let (method, path) =
                    (&"ABCDEFGHIJKLMNOP"[..method], &"/bcdefghijklmnopqrstuvwx"[..path]);
                entries.add(page, method, path, 0).expect("room");
                assert_eq!(read(page)[0].2, format!("{method} {path}"));
            }
        }
    }

    #[test]
    fn requests_beyond_the_last_entry_are_not_listed() {
        let (page, mut entries) = (page(), InFlightEntries::new());
        let taken = (0..40).filter(|_| entries.add(page, "GET", "/", 0).is_some()).count();
        assert_eq!(taken, HOLDS_ENTRY);
    }

    #[test]
    fn holds_have_an_entry_of_their_own() {
        let (page, mut entries) = (page(), InFlightEntries::new());
        while entries.add(page, "GET", "/", 0).is_some() {}
        set_holds(page, Some(("mail x2", 7)));
        let last = read(page).pop();
        assert_eq!(last, Some((HOLDS_ENTRY, 7, "hold: mail x2".to_string())));
        set_holds(page, None);
        assert_eq!(read(page).len(), HOLDS_ENTRY);
    }

    #[test]
    fn a_half_written_entry_is_not_listed() {
        let (page, mut entries) = (page(), InFlightEntries::new());
        entries.add(page, "GET", "/", 0).expect("room");
        entry_word(0, 0).add(page, 1);
        assert!(read(page).is_empty());
    }

    #[test]
    fn reading_garbage_does_not_panic() {
        let page = page();
        for (i, w) in page.iter().enumerate() {
            w.store((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), Ordering::Relaxed);
        }
        let _ = read(page);
    }
}
