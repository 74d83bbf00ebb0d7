//! Lets other processes read sums over all workers while the primary moves the counts of dead workers into its own pages.
//!
//! The primary adds the counts of a dead worker to its sums and then clears the worker's pages. A reader between the two would see
//! the worker twice, and one that read the sums before and the pages after would miss it: a counter would jump and go back. A sequence
//! number tells such readers to read again. It is odd while the primary moves counts.
//!
//! Workers of an earlier image write to that image's scoreboard. A table in pages of the primary names those that live; their entries
//! change under the same sequence number.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::PageRange;
use super::page_layout::{PageWord, SUMS_SEQUENCE};
use prefork_os::shared_memory::{ReadOnlyPages, SharedPage, WORDS_PER_PAGE};

/// How many pages the table of workers of earlier images has: one word for each worker.
pub(super) const INHERITED_PAGES: usize = 4;

/// How long a reader tries to find the sums at rest. They move for microseconds, unless the primary is stopped at that moment.
const MAX_READ_TIME: Duration = Duration::from_millis(100);

/// Moves counts into the sums. Dropping this ends the change.
pub(super) struct SumsChange<'a>(&'a SharedPage);

impl SumsChange<'_> {
    /// Begins a change of the sums on this page of the primary, which nobody else changes.
    pub(super) fn begin(primary: &SharedPage) -> SumsChange<'_> {
        SUMS_SEQUENCE.store(primary, SUMS_SEQUENCE.load(primary).wrapping_add(1));
        fence(Ordering::Release);
        SumsChange(primary)
    }
}

impl Drop for SumsChange<'_> {
    fn drop(&mut self) {
        SUMS_SEQUENCE.store_release(self.0, SUMS_SEQUENCE.load(self.0).wrapping_add(1));
    }
}

/// Reads while no counts move. Returns the last value and `false` if that did not succeed in time.
pub(super) fn read_at_rest<T>(primary: &SharedPage, read: impl Fn() -> T) -> (T, bool) {
    let started = Instant::now();
    loop {
        let before = SUMS_SEQUENCE.load_acquire(primary);
        let value = read();
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && SUMS_SEQUENCE.load(primary) == before {
            return (value, true);
        }
        if started.elapsed() > MAX_READ_TIME {
            return (value, false);
        }
        std::thread::yield_now();
    }
}

/// The table of workers of earlier images that are not reaped yet.
pub(super) struct InheritedTable<'a>(Vec<&'a SharedPage>);

impl<'a> InheritedTable<'a> {
    /// Returns the table in these pages.
    pub(super) fn new(pages: Vec<&'a SharedPage>) -> InheritedTable<'a> {
        InheritedTable(pages)
    }

    /// Adds a worker. Without room it is left out of what other processes read, until it has ended.
    pub(super) fn add(&self, board: usize, pages: PageRange) {
        let entry = encode(board, pages);
        let free = self.words().find(|(page, word)| word.load(page) == 0);
        if let Some(((page, word), entry)) = free.zip(entry) {
            word.store(page, entry);
        }
    }

    /// Removes a worker.
    pub(super) fn remove(&self, board: usize, pages: PageRange) {
        let entry = encode(board, pages);
        let found = self.words().find(|(page, word)| Some(word.load(page)) == entry);
        if let Some((page, word)) = found {
            word.store(page, 0);
        }
    }

    /// Returns all workers as number of the scoreboard and pages.
    pub(super) fn read(&self) -> Vec<(usize, PageRange)> {
        let entries = self.words().map(|(page, word)| word.load(page)).filter(|entry| *entry != 0);
        entries.map(decode).collect()
    }

    fn words(&self) -> impl Iterator<Item = (&'a SharedPage, PageWord)> {
        let pages = self.0.iter();
        pages.flat_map(|page| (0..WORDS_PER_PAGE).map(|index| (*page, PageWord::at(index))))
    }
}

/// Returns the pages of the table on a scoreboard of this version: the last ones.
pub(super) fn inherited_pages(page_count: usize) -> std::ops::Range<usize> {
    page_count.saturating_sub(INHERITED_PAGES)..page_count
}

/// Packs number of the scoreboard, first page and page count into a word; `None` if they do not fit.
fn encode(board: usize, pages: PageRange) -> Option<u64> {
    let board = u16::try_from(board + 1).ok()?;
    let (first, count) = (u32::try_from(pages.first).ok()?, u16::try_from(pages.count).ok()?);
    Some(u64::from(board) << 48 | u64::from(count) << 32 | u64::from(first))
}

fn decode(entry: u64) -> (usize, PageRange) {
    let (first, count) = ((entry & 0xffff_ffff) as usize, (entry >> 32 & 0xffff) as usize);
    (((entry >> 48) as usize).wrapping_sub(1), PageRange { first, count })
}

/// Returns the pages of a range that exist on a scoreboard.
pub(super) fn existing_pages(
    board: ReadOnlyPages,
    range: PageRange,
) -> impl Iterator<Item = usize> + Clone {
    range.page_numbers().take_while(move |index| *index < board.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn page() -> &'static SharedPage {
        let mut pages = prefork_os::shared_memory::create_shared_pages(1).expect("page").0;
        pages.keep_only_page(0).expect("own")
    }

    #[test]
    fn a_reader_never_sees_counts_half_moved() {
        let (page, stop) = (page(), AtomicBool::new(false));
        let [dead, living] = [PageWord::at(16), PageWord::at(17)];
        living.store(page, 1000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..50_000 {
                    let _change = SumsChange::begin(page);
                    let (from, to) = if n % 2 == 0 { (living, dead) } else { (dead, living) };
                    to.add(page, 1000);
                    from.store(page, 0);
                }
                stop.store(true, Ordering::Relaxed);
            });
            while !stop.load(Ordering::Relaxed) {
                let (sum, is_whole) = read_at_rest(page, || dead.load(page) + living.load(page));
                assert!(!is_whole || sum == 1000, "{sum}");
            }
        });
    }

    #[test]
    fn a_reader_does_not_wait_for_ever_for_a_primary_that_was_stopped() {
        let page = page();
        let change = SumsChange::begin(page);
        assert!(!read_at_rest(page, || ()).1);
        drop(change);
        assert!(read_at_rest(page, || ()).1);
    }

    #[test]
    fn workers_of_earlier_images_are_listed_until_they_are_removed() {
        let table = InheritedTable::new(vec![page()]);
        let [one, two] = [PageRange { first: 1, count: 3 }, PageRange { first: 4096, count: 1 }];
        table.add(0, one);
        table.add(7, two);
        assert_eq!(table.read(), [(0, one), (7, two)]);
        table.remove(0, one);
        assert_eq!(table.read(), [(7, two)]);
        (0..600).for_each(|_| table.add(1, one));
        assert_eq!(table.read().len(), WORDS_PER_PAGE);
    }
}
