use super::page_layout::{POOL_RECORDS_IN_USE, REQUESTS};
use super::*;
use crate::config::Config;
use crate::status::{ClusterStatus, PrimaryPhase};
use prefork_supervisor::{WEB_KIND, WorkerId};

fn worker_tag_in_slot(id: u64, slot: u32) -> WorkerTag {
    let (id, slot, generation) = (WorkerId(id), Slot(slot), Generation(1));
    WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND }
}

fn worker_tag(id: u64) -> WorkerTag {
    worker_tag_in_slot(id, 0)
}

/// Counts requests on the first of `pages`.
fn count_requests(board: &Scoreboard, pages: WorkerPages, requests: u64) {
    let WorkerPages::Own(pages) = pages else { return };
    REQUESTS.add(board.writable.page(pages.first), requests);
}

fn cluster_status(board: &Scoreboard) -> ClusterStatus {
    let config = Config::builder().build().expect("config");
    board.reader(&[("consumer", Slot(Slot::MAX_SLOTS_PER_KIND))]).cluster_status(&config)
}

#[test]
fn counters_of_dead_workers_stay_in_the_totals() {
    let mut board = Scoreboard::create(2).expect("board");
    let pages = board.allocate_pages(worker_tag(1), 1).expect("page");
    count_requests(&board, pages, 5);
    assert_eq!(cluster_status(&board).totals.requests, 5);
    assert_eq!(board.release_pages(pages).requests, 5);
    assert_eq!(cluster_status(&board).totals.requests, 5);
    let pages = board.allocate_pages(worker_tag(2), 1).expect("page");
    count_requests(&board, pages, 2);
    let status = cluster_status(&board);
    assert_eq!(status.totals.requests, 7);
    assert_eq!(status.workers.iter().map(|worker| worker.id).collect::<Vec<_>>(), [WorkerId(2)]);
}

/// Returns name and `done` of each pool in the sums of the cluster.
fn pools_done(board: &Scoreboard) -> Vec<(String, u64)> {
    let pools = cluster_status(board).pools;
    pools.into_iter().map(|pool| (pool.name, pool.done)).collect()
}

/// Writes a pool with this many finished jobs and one running job into a record of the worker with `pages`.
fn write_pool(board: &Scoreboard, pages: WorkerPages, number: usize, (name, done): (&str, u64)) {
    let WorkerPages::Own(range) = pages else { return };
    let primary = board.writable.page(PRIMARY_PAGE);
    let pool_pages = pool_pages::pool_pages_of_worker(primary, range.first);
    let pool_pages: Vec<&SharedPage> = pool_pages.map(|at| board.writable.page(at)).collect();
    let record = pool_pages::record_at(&pool_pages, number).expect("record");
    // A worker clears what an earlier one has left there.
    record.iter().for_each(|word| word.store(0, std::sync::atomic::Ordering::Relaxed));
    pool_record::write_name(record, name);
    let mut pool = PoolStatus { done, ..PoolStatus::default() };
    pool.run.record(std::time::Duration::from_millis(5));
    pool_record::add_to_record(record, &pool);
    record[pool_record::RUNNING].store(1, std::sync::atomic::Ordering::Relaxed);
    POOL_RECORDS_IN_USE.set_bit(board.writable.page(range.first), number);
}

#[test]
fn pools_of_dead_workers_stay_in_the_sums() {
    let mut board = Scoreboard::create(6).expect("board");
    let first = board.allocate_pages(worker_tag(1), 1).expect("page");
    let threads = board.allocate_pages(worker_tag(2), 3).expect("pages");
    write_pool(&board, first, 0, ("default", 5));
    write_pool(&board, first, 3, ("images", 7));
    write_pool(&board, threads, 0, ("default", 20));
    write_pool(&board, threads, 15, ("default", 100));
    let sums = || [("default".to_string(), 125), ("images".to_string(), 7)];
    assert_eq!(pools_done(&board), sums());
    assert_eq!(cluster_status(&board).pools[0].running, 3);
    let worker = board.worker_status(threads).expect("status");
    assert_eq!((worker.pools.len(), worker.pools[0].done), (1, 120), "one entry for each name");
    for pages in [threads, first] {
        board.release_pages(pages);
        assert_eq!(pools_done(&board), sums());
    }
    let pools = cluster_status(&board).pools;
    assert_eq!((pools[0].running, pools[0].run.count()), (0, 3), "the dead run nothing");
    let next = board.allocate_pages(worker_tag(3), 1).expect("page");
    assert!(board.worker_status(next).expect("status").pools.is_empty());
    write_pool(&board, next, 0, ("default", 1));
    assert_eq!(pools_done(&board)[0].1, 126);
}

#[test]
fn pool_sums_continue_in_the_next_image() {
    let mut board = Scoreboard::create(2).expect("board");
    let pages = board.allocate_pages(worker_tag(1), 1).expect("page");
    write_pool(&board, pages, 0, ("images", 7));
    let WorkerPages::Own(range) = pages else { panic!("{pages:?}") };
    let memory = board.memory().expect("memory").try_clone().expect("descriptor");
    let mut next = Scoreboard::create(2).expect("board");
    next.restore_totals(&board.sums_of_dead_workers(), 1);
    next.inherit(memory).expect("inherit");
    let inherited = WorkerPages::Inherited { board: 0, pages: range };
    assert_eq!(next.worker_status(inherited).expect("status").pools[0].done, 7);
    assert!(next.sums_of_dead_workers().pools.is_empty());
    next.release_pages(inherited);
    let mut third = Scoreboard::create(1).expect("board");
    third.restore_totals(&next.sums_of_dead_workers(), 1);
    assert_eq!(pools_done(&third), [("images".to_string(), 7)]);
}

#[test]
fn sums_of_more_pools_than_there_are_names_for_are_kept_under_one_name() {
    let mut board = Scoreboard::create(1).expect("board");
    for n in 0..100 {
        let pages = board.allocate_pages(worker_tag(n), 1).expect("page");
        write_pool(&board, pages, 0, (&format!("pool {n}"), 0));
        board.release_pages(pages);
    }
    let pools = board.sums_of_dead_workers().pools;
    assert_eq!((pools.len(), pools[63].name.as_str()), (64, "(other)"));
    let jobs: u64 = pools.iter().map(|pool| pool.run.count()).sum();
    assert_eq!(jobs, 100);
}

#[test]
fn a_worker_with_threads_has_adjacent_pages() {
    let mut board = Scoreboard::create(4).expect("board");
    let first = board.allocate_pages(worker_tag(1), 1).expect("page");
    let threads = board.allocate_pages(worker_tag(2), 3).expect("pages");
    assert_eq!(threads, WorkerPages::Own(PageRange { first: 2, count: 3 }));
    count_requests(&board, first, 1);
    count_requests(&board, threads, 5);
    let worker = board.worker_status(threads).expect("status");
    assert_eq!(board.heartbeat_sample(threads).requests, 5);
    assert_eq!((worker.counters.requests, worker.threads.len()), (5, 3));
    board.release_pages(first);
    assert!(board.allocate_pages(worker_tag(3), 2).is_none(), "not adjacent");
    assert_eq!(board.release_pages(threads).requests, 5);
    assert_eq!(cluster_status(&board).totals.requests, 6);
    assert!(board.allocate_pages(worker_tag(3), 4).is_some());
}

#[test]
fn a_reader_sees_each_worker_once_with_its_kind_and_threads() {
    let mut board = Scoreboard::create(6).expect("board");
    board.allocate_pages(worker_tag_in_slot(1, 0), 2).expect("pages");
    board.allocate_pages(worker_tag_in_slot(2, 1), 2).expect("pages");
    board.allocate_pages(worker_tag_in_slot(3, Slot::MAX_SLOTS_PER_KIND), 1).expect("page");
    board.publish(Generation(7), 2, 9, true);
    let status = cluster_status(&board);
    let seen = status.workers.iter().map(|w| (w.id.0, w.kind.as_str(), w.threads.len()));
    assert_eq!(seen.collect::<Vec<_>>(), [(1, "web", 2), (2, "web", 2), (3, "consumer", 0)]);
    let primary = &status.primary;
    assert_eq!(
        (primary.generation, primary.workers_wanted, primary.restarts),
        (Generation(7), 2, 9)
    );
    assert_eq!((primary.phase, primary.pid), (PrimaryPhase::Stopping, std::process::id()));
}

#[test]
fn a_heartbeat_sample_is_that_of_the_slowest_thread_that_still_runs() {
    let mut board = Scoreboard::create(2).expect("board");
    let pages = board.allocate_pages(worker_tag(1), 2).expect("pages");
    let own = board.keep_only_own_pages(pages).expect("own");
    own[0].record_heartbeat(100);
    own[1].record_heartbeat(200);
    assert_eq!(board.heartbeat_sample(pages).heartbeat_ms, 100);
    own[0].thread_view().set_thread_ended();
    assert_eq!(board.heartbeat_sample(pages).heartbeat_ms, 200);
    own[1].thread_view().set_thread_ended();
    assert_eq!(board.heartbeat_sample(pages).heartbeat_ms, 100, "of the first, if none runs");
}

#[test]
fn pages_are_limited_and_reused() {
    let mut board = Scoreboard::create(1).expect("board");
    let pages = board.allocate_pages(worker_tag(1), 1).expect("page");
    assert!(board.allocate_pages(worker_tag(2), 1).is_none());
    board.release_pages(pages);
    assert_eq!(board.allocate_pages(worker_tag(3), 1), Some(pages));
}

#[test]
fn corrupted_page_values_are_limited_to_json_integers() {
    let mut board = Scoreboard::create(1).expect("board");
    let pages = board.allocate_pages(worker_tag(1), 1).expect("page");
    let pool_pages = pool_pages::pool_pages_of_worker(board.writable.page(PRIMARY_PAGE), 1);
    for word in std::iter::once(1).chain(pool_pages).flat_map(|index| board.writable.page(index)) {
        word.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    }
    let worker = board.worker_status(pages).expect("status");
    let most = crate::status::MAX_JSON_INTEGER;
    assert_eq!((worker.state, worker.connections), (WorkerState::Unknown, most));
    let counts = (worker.counters.requests, worker.pools[0].done, worker.loop_lag[3]);
    assert_eq!(counts, (0, most, 0), "no worker can reach such counts");
    assert_eq!((worker.pools.len(), worker.pools[0].name.len()), (1, MAX_POOL_NAME_BYTES));
    assert!(worker.pools[0].utilisation <= 100);
    assert!(worker.serving.iter().all(|request| request.age_ms <= most));
}
