//! The figures of the pools of isolated processes, in pages of the primary, so that workers can read them. The primary writes a
//! record after each change.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::page_layout::ISOLATED_RECORDS;
use super::pool_counters::monotonic_us;
use super::pool_pages::record_at;
use super::pool_record::{
    POOL_RECORDS_PER_PAGE, PoolRecord, RUN, WAIT, read_durations, read_name, store_durations,
    write_name,
};
use crate::status::{IsolatedPoolStatus, MAX_JSON_INTEGER};
use prefork_os::shared_memory::{ReadOnlyPages, SharedPage};

/// How many pages the primary has for isolated pools.
pub(super) const ISOLATED_PAGES: usize = 8;

/// The first word behind the name, and how many words the figures may take.
const FIGURES: usize = 5;
const FIGURE_COUNT: usize = 17;
/// When the oldest running job started, in microseconds on the monotonic clock; 0 if none runs.
const OLDEST_START_US: usize = FIGURES + FIGURE_COUNT;

const _: () = assert!(OLDEST_START_US < WAIT.sum);

/// Returns the figures in the order of their words.
fn figures(pool: &IsolatedPoolStatus) -> [u64; FIGURE_COUNT] {
    [
        pool.processes,
        pool.running,
        pool.depth,
        pool.waiting_for_room,
        pool.capacity,
        pool.queued_bytes,
        pool.submitted,
        pool.done,
        pool.failed,
        pool.panicked,
        pool.died,
        pool.timed_out,
        pool.cut,
        pool.refused,
        pool.closed,
        pool.abandoned,
        pool.lost,
    ]
}

/// Writes the figures of a pool. They are not published if there are records of too many other pools.
pub(super) fn publish(primary: &SharedPage, pages: &[&SharedPage], pool: &IsolatedPoolStatus) {
    let count = used_records(primary);
    let known = (0..count).find(|number| {
        record_at(pages, *number).is_some_and(|record| read_name(record) == pool.name)
    });
    let number = known.unwrap_or(count);
    let Some(record) = record_at(pages, number) else { return };
    for (word, value) in record[FIGURES..].iter().zip(figures(pool)) {
        word.store(value, Relaxed);
    }
    let oldest = pool.oldest_run_ms.map(|ms| monotonic_us().saturating_sub(ms * 1000).max(1));
    record[OLDEST_START_US].store(oldest.unwrap_or(0), Relaxed);
    store_durations(record, WAIT, &pool.wait);
    store_durations(record, RUN, &pool.run);
    if known.is_none() {
        write_name(record, &pool.name);
        ISOLATED_RECORDS.store_release(primary, number as u64 + 1);
    }
}

/// Reads all pools.
pub(super) fn read_all(
    board: ReadOnlyPages,
    primary: &SharedPage,
    pages: Range<usize>,
) -> Vec<IsolatedPoolStatus> {
    let pages: Vec<&SharedPage> =
        pages.take_while(|index| *index < board.count()).map(|index| board.page(index)).collect();
    let now_us = monotonic_us();
    let records = (0..used_records(primary)).filter_map(|number| record_at(&pages, number));
    records.map(|record| read_record(record, now_us)).collect()
}

fn used_records(primary: &SharedPage) -> usize {
    (ISOLATED_RECORDS.load_acquire(primary) as usize).min(ISOLATED_PAGES * POOL_RECORDS_PER_PAGE)
}

fn read_record(record: &PoolRecord, now_us: u64) -> IsolatedPoolStatus {
    let word = |index: usize| record[index].load(Relaxed).min(MAX_JSON_INTEGER);
    let [
        processes,
        running,
        depth,
        waiting_for_room,
        capacity,
        queued_bytes,
        submitted,
        done,
        failed,
        panicked,
        died,
        timed_out,
        cut,
        refused,
        closed,
        abandoned,
        lost,
    ] = std::array::from_fn::<u64, FIGURE_COUNT, _>(|n| word(FIGURES + n));
    let oldest_us = word(OLDEST_START_US);
    IsolatedPoolStatus {
        name: read_name(record),
        processes,
        running,
        oldest_run_ms: (oldest_us != 0).then(|| now_us.saturating_sub(oldest_us) / 1000),
        depth,
        waiting_for_room,
        capacity,
        queued_bytes,
        submitted,
        done,
        failed,
        panicked,
        died,
        timed_out,
        cut,
        refused,
        closed,
        abandoned,
        lost,
        wait: read_durations(record, WAIT),
        run: read_durations(record, RUN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_os::shared_memory::create_shared_pages;
    use std::time::Duration;

    fn pool(name: &str, seed: u64) -> IsolatedPoolStatus {
        let mut pool = IsolatedPoolStatus {
            name: name.to_string(),
            processes: seed,
            running: seed + 1,
            oldest_run_ms: None,
            depth: seed + 2,
            waiting_for_room: seed + 16,
            capacity: seed + 3,
            queued_bytes: seed + 4,
            submitted: seed + 5,
            done: seed + 6,
            failed: seed + 7,
            panicked: seed + 8,
            died: seed + 9,
            timed_out: seed + 10,
            cut: seed + 11,
            refused: seed + 12,
            closed: seed + 13,
            abandoned: seed + 14,
            lost: seed + 15,
            ..IsolatedPoolStatus::default()
        };
        pool.wait.record(Duration::from_millis(seed));
        pool.run.record(Duration::from_secs(seed));
        pool
    }

    #[test]
    fn published_figures_are_read_back() {
        let (writable, readable, _memory) = create_shared_pages(3).expect("pages");
        let primary = writable.page(0);
        let pages = [writable.page(1), writable.page(2)];
        publish(primary, &pages, &pool("thumbnails", 1));
        publish(primary, &pages, &pool("danger", 100));
        publish(primary, &pages, &pool("thumbnails", 7));
        let read = read_all(readable, readable.page(0), 1..3);
        assert_eq!(read, [pool("thumbnails", 7), pool("danger", 100)]);
    }

    #[test]
    fn the_oldest_job_ages_until_the_next_figures() {
        let (writable, readable, _memory) = create_shared_pages(2).expect("pages");
        let busy = IsolatedPoolStatus { oldest_run_ms: Some(5000), ..pool("danger", 1) };
        publish(writable.page(0), &[writable.page(1)], &busy);
        let read = read_all(readable, readable.page(0), 1..2);
        assert!(read[0].oldest_run_ms.is_some_and(|ms| (5000..60_000).contains(&ms)), "{read:?}");
        publish(writable.page(0), &[writable.page(1)], &pool("danger", 1));
        assert_eq!(read_all(readable, readable.page(0), 1..2), [pool("danger", 1)]);
    }

    #[test]
    fn pools_beyond_the_last_record_are_not_published() {
        let (writable, readable, _memory) = create_shared_pages(2).expect("pages");
        for n in 0..10 {
            publish(writable.page(0), &[writable.page(1)], &pool(&format!("pool {n}"), n));
        }
        let read = read_all(readable, readable.page(0), 1..2);
        assert_eq!(read.len(), POOL_RECORDS_PER_PAGE);
        assert_eq!(read[3], pool("pool 3", 3));
    }
}
