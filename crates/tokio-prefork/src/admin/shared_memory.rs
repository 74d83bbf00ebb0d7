//! The shared memory between the primary and the processes of the admin listener.
//!
//! The primary publishes there what only its own memory knows: until when it counts as alive, its part of the status, and the last
//! events, and what the overlay shows. An admin process can write one page, that of its own figures. Other processes map none of it.
//!
//! No reader waits for the writer: it may be stopped, or dead, in the middle of a write. So the status has two areas, of which the
//! primary writes the one that is not in force, and each event has a number that is 0 while it is written.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use prefork_os::shared_memory::{self, ReadOnlyPages, SharedPage, WORDS_PER_PAGE, WritablePages};

/// How many processes of the admin listener have a page at a time.
pub(crate) const PROCESS_PAGES: usize = 8;

/// How many events are kept.
const EVENT_ENTRIES: u64 = 1000;

/// Pages for the two words of each event entry and its bytes: two entries in a page.
const WORDS_PER_EVENT: usize = WORDS_PER_PAGE / 2;

/// The longest event in bytes, as JSON.
pub(crate) const MAX_EVENT_BYTES: usize = (WORDS_PER_EVENT - 2) * 8;

/// Pages of each of the two areas for the status. Untouched ones use no memory.
const STATUS_AREA_PAGES: usize = 1024;

/// Pages of each of the two areas for the state of the overlay.
const OVERLAY_AREA_PAGES: usize = 64;

/// The longest state of the overlay in bytes, as JSON.
pub(crate) const MAX_OVERLAY_BYTES: usize = (OVERLAY_AREA_PAGES * WORDS_PER_PAGE - 2) * 8;

/// The page of the words that the primary writes all the time.
const HEADER_PAGE: usize = PROCESS_PAGES;
const STATUS_PAGES_START: usize = HEADER_PAGE + 1;
const EVENT_PAGES_START: usize = STATUS_PAGES_START + 2 * STATUS_AREA_PAGES;
const OVERLAY_PAGES_START: usize = EVENT_PAGES_START + EVENT_ENTRIES as usize / 2;
const PAGES: usize = OVERLAY_PAGES_START + 2 * OVERLAY_AREA_PAGES;

// Words of the header.
const LAYOUT: usize = 0;
const LIVE_UNTIL_MS: usize = 1;
const LAST_EVENT: usize = 2;
/// Twice the number of published states of the status, plus the area in force.
const STATUS_VERSION: usize = 3;
const IS_STOP_REQUESTED: usize = 4;
const IS_IMAGE_REPLACED: usize = 5;
/// As `STATUS_VERSION`, of the overlay.
const OVERLAY_VERSION: usize = 6;

/// Changes with the places of the header's words and of the events, which the next image reads.
const LAYOUT_VERSION: u64 = 2;

// Words of the page of a process.
const HEARTBEAT_MS: usize = 0;
const OPEN_CONNECTIONS: usize = 1;
const REQUESTS: usize = 2;

/// What an admin process publishes of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessFigures {
    pub(crate) heartbeat_ms: u64,
    pub(crate) connections: u64,
    pub(crate) requests: u64,
}

/// The primary's side: writes everything but the pages of the processes.
pub(crate) struct AdminMemory {
    writable: WritablePages,
    readable: ReadOnlyPages,
    /// `None` in a child of the primary.
    memory: Option<OwnedFd>,
}

/// Reads the memory, in an admin process or in the next image.
#[derive(Clone, Copy)]
pub(crate) struct AdminMemoryReader(ReadOnlyPages);

/// The page of one admin process, which only that process writes.
#[derive(Clone, Copy)]
pub(crate) struct ProcessPage(&'static SharedPage);

/// Consecutive words that may span pages.
#[derive(Clone, Copy)]
struct Words<'a, P> {
    pages: &'a P,
    first_page: usize,
    first_word: usize,
}

/// Pages of either mapping.
trait Pages {
    fn page_at(&self, index: usize) -> &SharedPage;
}

impl Pages for WritablePages {
    fn page_at(&self, index: usize) -> &SharedPage {
        self.page(index)
    }
}

impl Pages for ReadOnlyPages {
    fn page_at(&self, index: usize) -> &SharedPage {
        self.page(index)
    }
}

impl<'a, P: Pages> Words<'a, P> {
    fn word(&self, index: usize) -> &'a AtomicU64 {
        let at = self.first_word + index;
        &self.pages.page_at(self.first_page + at / WORDS_PER_PAGE)[at % WORDS_PER_PAGE]
    }

    fn write_bytes(&self, from: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(from + index).store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }

    fn read_bytes(&self, from: usize, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8)).map(|index| self.word(from + index));
        let bytes = words.flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let mut bytes: Vec<u8> = bytes.collect();
        bytes.truncate(length);
        bytes
    }
}

fn header<P: Pages>(pages: &P) -> Words<'_, P> {
    Words { pages, first_page: HEADER_PAGE, first_word: 0 }
}

/// Two areas, of which the one that is not in force is written, and the word with the number of what is in force.
#[derive(Clone, Copy)]
struct DoubleBuffer {
    version_word: usize,
    first_page: usize,
    pages_per_area: usize,
}

const STATUS: DoubleBuffer = DoubleBuffer {
    version_word: STATUS_VERSION,
    first_page: STATUS_PAGES_START,
    pages_per_area: STATUS_AREA_PAGES,
};

const OVERLAY: DoubleBuffer = DoubleBuffer {
    version_word: OVERLAY_VERSION,
    first_page: OVERLAY_PAGES_START,
    pages_per_area: OVERLAY_AREA_PAGES,
};

impl DoubleBuffer {
    fn max_bytes(self) -> usize {
        (self.pages_per_area * WORDS_PER_PAGE - 2) * 8
    }

    fn area<P: Pages>(self, pages: &P, version: u64) -> Words<'_, P> {
        let area = usize::from(version % 2 == 1);
        let first_page = self.first_page + area * self.pages_per_area;
        Words { pages, first_page, first_word: 0 }
    }

    /// Publishes bytes. What is too long is not published.
    fn publish(self, pages: &WritablePages, bytes: &[u8]) {
        if bytes.len() > self.max_bytes() {
            return;
        }
        let version = header(pages).word(self.version_word);
        let next = version.load(Ordering::Relaxed).wrapping_add(1);
        let area = self.area(pages, next);
        // A reader that is still in this area sees that its version is gone.
        area.word(0).store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        area.word(1).store(bytes.len() as u64, Ordering::Relaxed);
        area.write_bytes(2, bytes);
        area.word(0).store(next, Ordering::Release);
        version.store(next, Ordering::Release);
    }

    /// Returns the number of what was published last; 0 before the first time.
    fn version(self, pages: &ReadOnlyPages) -> u64 {
        header(pages).word(self.version_word).load(Ordering::Acquire)
    }

    /// Returns what was published last, with its number. `None` before the first time, or if it changes all the time.
    fn read(self, pages: &ReadOnlyPages) -> Option<(u64, Vec<u8>)> {
        (0..16).find_map(|_| {
            let version = self.version(pages);
            let area = self.area(pages, version);
            if version == 0 || area.word(0).load(Ordering::Acquire) != version {
                return None;
            }
            let length = usize::try_from(area.word(1).load(Ordering::Relaxed)).ok()?;
            let bytes = area.read_bytes(2, length.min(self.max_bytes()));
            fence(Ordering::Acquire);
            (area.word(0).load(Ordering::Relaxed) == version).then_some((version, bytes))
        })
    }
}

fn event_entry<P: Pages>(pages: &P, sequence: u64) -> Words<'_, P> {
    let entry = (sequence % EVENT_ENTRIES) as usize;
    let (page, half) = (entry / 2, entry % 2);
    Words { pages, first_page: EVENT_PAGES_START + page, first_word: half * WORDS_PER_EVENT }
}

impl AdminMemory {
    pub(crate) fn create() -> io::Result<AdminMemory> {
        let (writable, readable, memory) = shared_memory::create_shared_pages(PAGES)?;
        header(&writable).word(LAYOUT).store(LAYOUT_VERSION, Ordering::Relaxed);
        Ok(AdminMemory { writable, readable, memory: Some(memory) })
    }

    /// Returns the memory, for the next image.
    pub(crate) fn memory_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(AsFd::as_fd)
    }

    /// Returns the reading side.
    pub(crate) fn reader(&self) -> AdminMemoryReader {
        AdminMemoryReader(self.readable)
    }

    /// Sets until when the primary counts as alive, in milliseconds of the monotonic clock.
    pub(crate) fn set_live_until(&self, until_ms: u64) {
        header(&self.writable).word(LIVE_UNTIL_MS).store(until_ms, Ordering::Release);
    }

    /// Publishes whether the cluster stops or is about to.
    pub(crate) fn set_stop_requested(&self, is_requested: bool) {
        let word = u64::from(is_requested);
        header(&self.writable).word(IS_STOP_REQUESTED).store(word, Ordering::Release);
    }

    /// Publishes whether the next image runs: this memory and the scoreboard beside it know nothing of its workers.
    pub(crate) fn set_image_replaced(&self, is_replaced: bool) {
        let word = u64::from(is_replaced);
        header(&self.writable).word(IS_IMAGE_REPLACED).store(word, Ordering::Release);
    }

    /// Clears the page of a process that is about to be forked.
    pub(crate) fn clear_process_page(&self, index: usize) {
        self.writable.zero_page(index.min(PROCESS_PAGES - 1));
    }

    /// Publishes a status. One that is too long is not published.
    pub(crate) fn publish_status(&self, status: &[u8]) {
        STATUS.publish(&self.writable, status);
    }

    /// Publishes the state of the overlay, as JSON.
    pub(crate) fn publish_overlay(&self, json: &[u8]) {
        OVERLAY.publish(&self.writable, json);
    }

    /// Publishes an event, as JSON. What is too long is left out by the caller.
    pub(crate) fn publish_event(&self, sequence: u64, json: &[u8]) {
        let json = &json[..json.len().min(MAX_EVENT_BYTES)];
        let entry = event_entry(&self.writable, sequence);
        entry.word(0).store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        entry.word(1).store(json.len() as u64, Ordering::Relaxed);
        entry.write_bytes(2, json);
        entry.word(0).store(sequence, Ordering::Release);
        header(&self.writable).word(LAST_EVENT).store(sequence, Ordering::Release);
    }

    /// Unmaps the writable pages, in a child that is no admin process.
    pub(crate) fn close_in_worker(&mut self) {
        self.memory = None;
        // On an error the mapping stays until the process ends.
        let _ = self.writable.unmap_all();
    }

    /// Returns the page of this process and makes all others read-only, in an admin process.
    pub(crate) fn keep_only_process_page(&mut self, index: usize) -> io::Result<ProcessPage> {
        self.memory = None;
        self.writable.keep_only_page(index.min(PROCESS_PAGES - 1)).map(ProcessPage)
    }
}

impl AdminMemoryReader {
    /// Maps the memory of the previous image.
    ///
    /// # Errors
    /// It has another layout.
    pub(crate) fn of_previous_image(memory: &OwnedFd) -> io::Result<AdminMemoryReader> {
        let pages = shared_memory::map_inherited_pages(memory)?;
        if pages.count() != PAGES
            || header(&pages).word(LAYOUT).load(Ordering::Relaxed) != LAYOUT_VERSION
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another layout"));
        }
        Ok(AdminMemoryReader(pages))
    }

    /// Returns until when the primary counts as alive, in milliseconds of the monotonic clock.
    pub(crate) fn live_until_ms(&self) -> u64 {
        header(&self.0).word(LIVE_UNTIL_MS).load(Ordering::Acquire)
    }

    /// Returns whether the cluster stops or is about to.
    pub(crate) fn is_stop_requested(&self) -> bool {
        header(&self.0).word(IS_STOP_REQUESTED).load(Ordering::Acquire) != 0
    }

    /// Returns whether the next image runs, or is about to.
    pub(crate) fn is_image_replaced(&self) -> bool {
        header(&self.0).word(IS_IMAGE_REPLACED).load(Ordering::Acquire) != 0
    }

    /// Returns the figures of the process with this page.
    pub(crate) fn process_figures(&self, index: usize) -> ProcessFigures {
        let page = self.0.page(index.min(PROCESS_PAGES - 1));
        ProcessFigures {
            heartbeat_ms: page[HEARTBEAT_MS].load(Ordering::Relaxed),
            connections: page[OPEN_CONNECTIONS].load(Ordering::Relaxed),
            requests: page[REQUESTS].load(Ordering::Relaxed),
        }
    }

    /// Returns the number of the last published status; 0 before the first one.
    pub(crate) fn status_version(&self) -> u64 {
        STATUS.version(&self.0)
    }

    /// Returns the last published status with its version. `None` before the first one, or if it changes all the time.
    pub(crate) fn status(&self) -> Option<(u64, Vec<u8>)> {
        STATUS.read(&self.0)
    }

    /// Returns the number of the last state of the overlay; 0 if the program has published none.
    pub(crate) fn overlay_version(&self) -> u64 {
        OVERLAY.version(&self.0)
    }

    /// Returns the last state of the overlay with its number.
    pub(crate) fn overlay(&self) -> Option<(u64, Vec<u8>)> {
        OVERLAY.read(&self.0)
    }

    /// Returns the number of the newest event; 0 if there is none.
    pub(crate) fn last_event(&self) -> u64 {
        header(&self.0).word(LAST_EVENT).load(Ordering::Acquire)
    }

    /// Returns the number of the oldest event that may still be there.
    pub(crate) fn first_event(&self) -> u64 {
        self.last_event().saturating_sub(EVENT_ENTRIES - 1).max(1)
    }

    /// Returns an event, as JSON. `None` if it is overwritten, or not there yet.
    pub(crate) fn event(&self, sequence: u64) -> Option<Vec<u8>> {
        let entry = event_entry(&self.0, sequence);
        if sequence == 0 || entry.word(0).load(Ordering::Acquire) != sequence {
            return None;
        }
        let length = usize::try_from(entry.word(1).load(Ordering::Relaxed)).ok()?;
        let json = entry.read_bytes(2, length.min(MAX_EVENT_BYTES));
        fence(Ordering::Acquire);
        (entry.word(0).load(Ordering::Relaxed) == sequence).then_some(json)
    }
}

impl ProcessPage {
    pub(crate) fn record_heartbeat(&self, now_ms: u64) {
        self.0[HEARTBEAT_MS].store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn set_open_connections(&self, count: usize) {
        self.0[OPEN_CONNECTIONS].store(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_request(&self) {
        self.0[REQUESTS].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_STATUS_BYTES: usize = (STATUS_AREA_PAGES * WORDS_PER_PAGE - 2) * 8;

    #[test]
    fn the_state_of_the_overlay_is_apart_from_the_status() {
        let memory = AdminMemory::create().expect("memory");
        let reader = memory.reader();
        assert_eq!((reader.overlay(), reader.overlay_version()), (None, 0));
        memory.publish_status(b"status");
        memory.publish_overlay(&[7; MAX_OVERLAY_BYTES]);
        memory.publish_overlay(b"overlay");
        assert_eq!(reader.overlay(), Some((2, b"overlay".to_vec())));
        assert_eq!(reader.status(), Some((1, b"status".to_vec())));
    }

    #[test]
    fn the_last_published_status_is_read_back_whatever_its_length() {
        let memory = AdminMemory::create().expect("memory");
        let reader = memory.reader();
        assert_eq!((reader.status(), reader.status_version()), (None, 0));
        for (version, length) in [(1, 0), (2, 7), (3, 8), (4, 4096 * 3 + 5), (5, MAX_STATUS_BYTES)]
        {
            let status: Vec<u8> = (0..length).map(|n| n as u8).collect();
            memory.publish_status(&status);
            assert!(reader.status() == Some((version, status)), "{length}");
        }
        memory.publish_status(&vec![0; MAX_STATUS_BYTES + 1]);
        assert_eq!(reader.status_version(), 5, "one that is too long changes nothing");
    }

    #[test]
    fn a_status_that_is_half_written_leaves_the_last_one_readable() {
        let memory = AdminMemory::create().expect("memory");
        memory.publish_status(b"first");
        // What a primary does that is stopped in the middle of the next one.
        let area = STATUS.area(&memory.writable, 2);
        area.word(0).store(0, Ordering::Relaxed);
        area.write_bytes(2, b"sec");
        assert_eq!(memory.reader().status(), Some((1, b"first".to_vec())));
    }

    #[test]
    fn readers_never_see_a_mixture_of_two_states() {
        let memory = AdminMemory::create().expect("memory");
        let reader = memory.reader();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..2000 {
                    let Some((_, status)) = reader.status() else { continue };
                    assert!(status.iter().all(|byte| *byte == status[0]));
                }
            });
            (0..2000u32).for_each(|n| memory.publish_status(&vec![n as u8; 6000]));
        });
    }

    #[test]
    fn the_last_thousand_events_are_kept_and_the_next_image_reads_them() {
        let memory = AdminMemory::create().expect("memory");
        for sequence in 1..=1500 {
            memory.publish_event(sequence, format!("event {sequence}").as_bytes());
        }
        let fd = memory.memory_fd().expect("fd").try_clone_to_owned().expect("duplicate");
        let reader = AdminMemoryReader::of_previous_image(&fd).expect("the same layout");
        assert_eq!((reader.first_event(), reader.last_event()), (501, 1500));
        assert_eq!(reader.event(500), None);
        for sequence in [501, 1499, 1500] {
            let text = format!("event {sequence}").into_bytes();
            assert_eq!(reader.event(sequence), Some(text));
        }
        assert_eq!((reader.event(1501), reader.event(0)), (None, None));
    }

    #[test]
    fn a_process_writes_its_own_page_only() {
        let mut memory = AdminMemory::create().expect("memory");
        let reader = memory.reader();
        let page = memory.keep_only_process_page(3).expect("page");
        page.0[REQUESTS].store(7, Ordering::Relaxed);
        assert_eq!(reader.process_figures(3).requests, 7);
        assert_eq!(reader.process_figures(2), ProcessFigures::default());
        assert!(memory.memory_fd().is_none());
    }
}
