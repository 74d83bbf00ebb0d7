//! What a worker is serving right now: method and path of up to 23 requests, readable while they change.
//!
//! Each entry is a small seqlock: its sequence word is odd while the owner writes. A reader that meets an odd
//! or changing sequence tries again a few times and then leaves the entry out; it never waits for a worker
//! that died in mid-update.

use std::sync::atomic::{Ordering, fence};

use super::page_layout::{ENTRIES, ENTRY, ENTRY_COUNT, NOW, TEXT, Word};
use crate::text::printable_ascii;
use prefork_os::shared_memory::SharedPage;

/// One request's entry; the owner gives it back with `finish`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(usize);

/// The owner's side: which entries are free. Kept in the worker's own memory.
pub(super) struct Entries {
    free: Vec<usize>,
}

impl Entries {
    pub(super) fn new() -> Entries {
        Entries { free: (0..ENTRY_COUNT).rev().collect() }
    }

    /// Writes a request into a free entry; `None` when all are taken.
    pub(super) fn begin(
        &mut self,
        page: &SharedPage,
        method: &str,
        path: &str,
        now_ms: u64,
    ) -> Option<Ticket> {
        let entry = self.free.pop()?;
        let sequence = word(entry, 0);
        let odd = sequence.load(page) | 1;
        sequence.store(page, odd);
        fence(Ordering::Release);
        word(entry, 1).store(page, now_ms);
        let length = write_text(page, entry, method.as_bytes(), path.as_bytes());
        word(entry, 2).store(page, length as u64);
        page[ENTRIES + entry * ENTRY].store(odd.wrapping_add(1), Ordering::Release);
        Some(Ticket(entry))
    }

    /// Gives the entry back.
    pub(super) fn finish(&mut self, page: &SharedPage, ticket: Ticket) {
        word(ticket.0, 2).store(page, 0);
        self.free.push(ticket.0);
    }

    /// Marks the entry whose handler runs now; `None` when the loop is between handlers.
    pub(super) fn running(page: &SharedPage, ticket: Option<Ticket>) {
        NOW.store(page, ticket.map_or(0, |t| t.0 as u64 + 1));
    }
}

/// All entries in use, as (index, start in monotonic ms, text), however the owner left them.
pub(super) fn read_all(page: &SharedPage) -> Vec<(usize, u64, String)> {
    (0..ENTRY_COUNT)
        .filter_map(|i| read_entry(page, i).map(|(start, text)| (i, start, text)))
        .collect()
}

/// The text of one entry.
pub(super) fn read(page: &SharedPage, ticket: Ticket) -> Option<String> {
    read_entry(page, ticket.0).map(|(_, text)| text)
}

fn read_entry(page: &SharedPage, entry: usize) -> Option<(u64, String)> {
    for _ in 0..4 {
        let before = page[ENTRIES + entry * ENTRY].load(Ordering::Acquire);
        let length = word(entry, 2).load(page);
        if length == 0 {
            return None;
        }
        let start = word(entry, 1).load(page);
        let mut bytes = [0u8; TEXT];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&word(entry, 3 + i).load(page).to_le_bytes());
        }
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && word(entry, 0).load(page) == before {
            let length = usize::try_from(length).unwrap_or(TEXT).min(TEXT);
            return Some((start, printable_ascii(&bytes[..length])));
        }
    }
    None
}

fn word(entry: usize, index: usize) -> Word {
    Word::at(ENTRIES + entry * ENTRY + index)
}

/// Writes `METHOD path`, cut to the room there is, eight bytes at a time; returns its length.
fn write_text(page: &SharedPage, entry: usize, method: &[u8], path: &[u8]) -> usize {
    let mut text = [0u8; TEXT];
    let method = &method[..method.len().min(16)];
    let path = &path[..path.len().min(TEXT - method.len() - 1)];
    let length = method.len() + 1 + path.len();
    text[..method.len()].copy_from_slice(method);
    text[method.len()] = b' ';
    text[method.len() + 1..length].copy_from_slice(path);
    for (i, chunk) in text[..length.next_multiple_of(8)].chunks_exact(8).enumerate() {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(chunk);
        word(entry, 3 + i).store(page, u64::from_le_bytes(eight));
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> &'static SharedPage {
        prefork_os::shared_memory::create_shared_pages(1)
            .expect("page")
            .0
            .keep_only_page(0)
            .expect("own")
    }

    #[test]
    fn a_request_is_seen_while_it_is_served_and_no_longer() {
        let (page, mut entries) = (page(), Entries::new());
        let ticket = entries.begin(page, "GET", "/fib/50", 7).expect("room");
        assert_eq!(read_all(page), [(0, 7, "GET /fib/50".to_string())]);
        entries.finish(page, ticket);
        assert!(read_all(page).is_empty());
    }

    #[test]
    fn a_long_path_is_cut_and_a_wild_one_escaped() {
        let (page, mut entries) = (page(), Entries::new());
        entries.begin(page, "GET", &"x".repeat(500), 0).expect("room");
        entries.begin(page, "GET", "/\u{1b}[2J\n", 0).expect("room");
        let seen = read_all(page);
        assert_eq!(seen[0].2.len(), TEXT);
        assert_eq!(seen[1].2, r"GET /\x1b[2J\n");
    }

    #[test]
    fn when_all_entries_are_taken_the_rest_is_left_out() {
        let (page, mut entries) = (page(), Entries::new());
        let taken = (0..40).filter(|_| entries.begin(page, "GET", "/", 0).is_some()).count();
        assert_eq!(taken, ENTRY_COUNT);
    }

    #[test]
    fn a_half_written_entry_is_left_out() {
        let (page, mut entries) = (page(), Entries::new());
        entries.begin(page, "GET", "/", 0).expect("room");
        word(0, 0).add(page, 1);
        assert!(read_all(page).is_empty());
    }

    #[test]
    fn garbage_is_survived() {
        let page = page();
        for (i, w) in page.iter().enumerate() {
            w.store((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), Ordering::Relaxed);
        }
        let _ = read_all(page);
    }
}
