//! The pages with the records of CPU pools: several for each worker, behind the pages of all workers, and some for the
//! primary, which keeps the sums of pools whose workers have ended. Further ones are for `isolated_records`.
//!
//! A word on the worker's page, and on the primary's, has a bit for each record in use. Pages that no pool uses are neither
//! written nor read, so they cost no memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

use super::isolated_records::ISOLATED_PAGES;
use super::page_layout::{POOL_PAGES_START, POOL_RECORDS_IN_USE};
use super::pool_counters::{PoolCounters, SharedRecord, monotonic_us};
use super::pool_record::{
    MAX_POOL_NAME_BYTES, POOL_RECORD_WORDS, POOL_RECORDS_PER_PAGE, PoolRecord, add_to_record,
    read_name, read_record, write_name,
};
use crate::status::{DEFAULT_POOL_NAME, PoolStatus, add_pools};
use prefork_os::shared_memory::{ReadOnlyPages, SharedPage};

/// How many pool pages a worker has, for 16 pools.
pub(super) const POOL_PAGES_PER_WORKER: usize = 4;
/// How many pool pages the primary has, for the names of 64 pools.
pub(super) const POOL_PAGES_OF_PRIMARY: usize = 16;

/// The name under which the primary adds up the pools of dead workers that have no record.
const OTHER_POOLS_NAME: &str = "(other)";

const _: () = assert!(POOL_PAGES_OF_PRIMARY * POOL_RECORDS_PER_PAGE == u64::BITS as usize);

/// Returns how many pages a scoreboard with `pages` worker pages has besides these and the primary's page.
pub(super) fn pool_page_count(pages: usize) -> usize {
    POOL_PAGES_OF_PRIMARY + ISOLATED_PAGES + pages * POOL_PAGES_PER_WORKER
}

/// Returns the pool pages of the primary, on a scoreboard with this page of the primary.
pub(super) fn pool_pages_of_primary(primary: &SharedPage) -> Range<usize> {
    let start = POOL_PAGES_START.load(primary) as usize;
    start..start.saturating_add(POOL_PAGES_OF_PRIMARY)
}

/// Returns the pages of the primary with the figures of isolated pools.
pub(super) fn isolated_pages(primary: &SharedPage) -> Range<usize> {
    let start = pool_pages_of_primary(primary).end;
    start..start.saturating_add(ISOLATED_PAGES)
}

/// Returns the pool pages of the worker whose first page is `first`. Empty on a scoreboard of an older version.
pub(super) fn pool_pages_of_worker(primary: &SharedPage, first: usize) -> Range<usize> {
    if POOL_PAGES_START.load(primary) == 0 || first == 0 {
        return 0..0;
    }
    let start = isolated_pages(primary).end;
    let start = start.saturating_add((first - 1).saturating_mul(POOL_PAGES_PER_WORKER));
    start..start.saturating_add(POOL_PAGES_PER_WORKER)
}

/// Returns record `number` of the pages.
pub(super) fn record_at<'a>(pages: &[&'a SharedPage], number: usize) -> Option<&'a PoolRecord> {
    let page = pages.get(number / POOL_RECORDS_PER_PAGE)?;
    page[number % POOL_RECORDS_PER_PAGE * POOL_RECORD_WORDS..].first_chunk()
}

/// Returns the records in use, by the word of their owner's page.
fn records_in_use<'a>(
    owner: &SharedPage,
    pages: &'a [&'a SharedPage],
) -> impl Iterator<Item = &'a PoolRecord> {
    let bits = POOL_RECORDS_IN_USE.load_acquire(owner);
    let numbers = (0..u64::BITS as usize).filter(move |number| bits >> number & 1 == 1);
    numbers.filter_map(|number| record_at(pages, number))
}

/// Reads the pools of a worker, or the primary's sums of dead workers: one entry for each name.
pub(super) fn read_pools(
    board: ReadOnlyPages,
    owner: &SharedPage,
    pages: Range<usize>,
) -> Vec<PoolStatus> {
    // A worker can write anything into its word, but never more bits than there are records.
    let pages: Vec<&SharedPage> =
        pages.take_while(|index| *index < board.count()).map(|index| board.page(index)).collect();
    let now_us = monotonic_us();
    let mut pools = Vec::new();
    add_pools(&mut pools, records_in_use(owner, &pages).map(|record| read_record(record, now_us)));
    pools
}

/// Adds a pool of a dead worker to the sums of the primary.
pub(super) fn add_to_totals(primary: &SharedPage, pages: &[&SharedPage], pool: &PoolStatus) {
    let known = records_in_use(primary, pages).find(|record| read_name(record) == pool.name);
    if let Some(record) = known {
        return add_to_record(record, pool);
    }
    let number = POOL_RECORDS_IN_USE.load_acquire(primary).trailing_ones() as usize;
    let last = pages.len() * POOL_RECORDS_PER_PAGE - 1;
    let Some(record) = record_at(pages, number.min(last)) else { return };
    let name = if number < last { &pool.name } else { OTHER_POOLS_NAME };
    write_name(record, name);
    add_to_record(record, pool);
    POOL_RECORDS_IN_USE.set_bit(primary, number.min(last));
}

/// Gives the pools of a worker their records. Shared by all threads of the worker.
#[derive(Clone)]
pub(crate) struct PoolRecords(Arc<RecordTable>);

struct RecordTable {
    worker_page: &'static SharedPage,
    pages: Vec<&'static SharedPage>,
    claimed: Mutex<Vec<ClaimedRecord>>,
}

/// A record that a pool of this worker has or had.
struct ClaimedRecord {
    name: String,
    /// Gone when the pool has been dropped.
    in_use: Weak<()>,
}

impl PoolRecords {
    /// Creates the table for a worker with these pool pages.
    pub(super) fn new(
        worker_page: &'static SharedPage,
        pages: Vec<&'static SharedPage>,
    ) -> PoolRecords {
        PoolRecords(Arc::new(RecordTable { worker_page, pages, claimed: Mutex::default() }))
    }

    /// Returns the counters of the worker's default pool. Without a free record its figures are not published.
    pub(crate) fn default_pool_counters(&self) -> PoolCounters {
        self.claim(DEFAULT_POOL_NAME).unwrap_or_else(|| PoolCounters::standalone(DEFAULT_POOL_NAME))
    }

    /// Returns counters for a pool of this name, of which [`MAX_POOL_NAME_BYTES`] bytes are kept. `None` if 16 other pools of
    /// this worker have records.
    ///
    /// The figures of two pools with the same name are added. A pool continues the counts of a dropped one of its name.
    pub(crate) fn named_pool_counters(&self, name: &str) -> Option<PoolCounters> {
        let counters = self.claim(name)?;
        counters.publish();
        Some(counters)
    }

    fn claim(&self, name: &str) -> Option<PoolCounters> {
        let name: String = name.chars().take(MAX_POOL_NAME_BYTES).collect();
        let mut claimed = self.0.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = |one: &ClaimedRecord| one.name == name && one.in_use.strong_count() == 0;
        let free = claimed.iter().position(is_free);
        let number = free.unwrap_or(claimed.len());
        let record = record_at(&self.0.pages, number)?;
        let in_use = Arc::new(());
        let claim = ClaimedRecord { name: name.clone(), in_use: Arc::downgrade(&in_use) };
        match free {
            Some(number) => claimed[number] = claim,
            None => claimed.push(claim),
        }
        Some(PoolCounters::on_record(SharedRecord {
            record,
            number,
            worker_page: self.0.worker_page,
            name,
            created_at_us: monotonic_us(),
            prepared: Once::new(),
            _claim: in_use,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool_record::JobOutcome;
    use super::*;
    use prefork_os::shared_memory::create_shared_pages;

    /// Creates the table of a worker with one page of its own, and what reads its pools.
    fn create_records() -> (PoolRecords, impl Fn() -> Vec<(String, u64)>) {
        let count = 1 + POOL_PAGES_PER_WORKER;
        let (mut writable, readable, _memory) = create_shared_pages(count).expect("pages");
        let mut pages = writable.keep_only_pages(std::slice::from_ref(&(0..count))).expect("pages");
        let records = PoolRecords::new(pages[0], pages.split_off(1));
        let read = move || {
            let pools = read_pools(readable, readable.page(0), 1..count);
            pools.into_iter().map(|pool| (pool.name, pool.done)).collect()
        };
        (records, read)
    }

    #[test]
    fn the_default_pool_is_listed_from_its_first_use_on_and_named_pools_at_once() {
        let (records, read) = create_records();
        let default = records.default_pool_counters();
        assert_eq!((read(), default.status().name.as_str()), (vec![], "default"));
        let images = records.named_pool_counters("images").expect("room");
        assert_eq!(read(), [("images".to_string(), 0)]);
        default.clone().job_ended(JobOutcome::Done);
        images.job_ended(JobOutcome::Done);
        images.job_ended(JobOutcome::Done);
        assert_eq!(read(), [("default".to_string(), 1), ("images".to_string(), 2)]);
        assert_eq!((default.status().done, images.status().done), (1, 2));
    }

    #[test]
    fn a_pool_continues_the_counts_of_a_dropped_one_of_its_name() {
        let (records, read) = create_records();
        for round in 1..=100 {
            let pool = records.named_pool_counters("images").expect("room");
            pool.threads_started(3, 8);
            pool.job_ended(JobOutcome::Done);
            assert_eq!(read(), [("images".to_string(), round)]);
        }
        let next = records.named_pool_counters("images").expect("room").status();
        assert_eq!((next.threads, next.capacity, next.done), (0, 0, 100));
    }

    #[test]
    fn a_worker_has_records_for_16_pools_and_pools_of_one_name_add_up() {
        let (records, read) = create_records();
        let name = |n: usize| if n < 8 { "even" } else { "odd" };
        let pools: Vec<_> =
            (0..16).map(|n| records.named_pool_counters(name(n)).expect("room")).collect();
        assert!(records.named_pool_counters("late").is_none());
        pools.iter().for_each(|pool| pool.job_ended(JobOutcome::Done));
        assert_eq!(read(), [("even".to_string(), 8), ("odd".to_string(), 8)]);
        let default = records.default_pool_counters();
        default.job_ended(JobOutcome::Done);
        assert_eq!((default.status().done, read().len()), (1, 2), "it works, but is not listed");
        drop(pools);
        assert!(records.named_pool_counters("late").is_none(), "the counts of the others stay");
        assert!(records.named_pool_counters("odd").is_some());
    }

    #[test]
    fn a_record_that_an_earlier_worker_used_is_cleared() {
        let count = 1 + POOL_PAGES_PER_WORKER;
        let (mut writable, _readable, _memory) = create_shared_pages(count).expect("pages");
        for word in (1..count).flat_map(|index| writable.page(index)) {
            word.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
        }
        let mut pages = writable.keep_only_pages(std::slice::from_ref(&(0..count))).expect("pages");
        let records = PoolRecords::new(pages[0], pages.split_off(1));
        let pool = records.named_pool_counters("images").expect("room");
        let expected = PoolStatus { name: "images".to_string(), ..PoolStatus::default() };
        assert_eq!(pool.status(), expected);
    }
}
