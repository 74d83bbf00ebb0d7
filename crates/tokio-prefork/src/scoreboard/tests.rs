use super::page_layout::REQUESTS;
use super::*;
use prefork_supervisor::WorkerId;

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
    for word in board.writable.page(1) {
        word.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    }
    let worker = board.worker_status(pages).expect("status");
    let most = crate::status::MAX_JSON_INTEGER;
    assert_eq!((worker.state, worker.connections), (WorkerState::Unknown, most));
    assert_eq!(
        (worker.counters.requests, worker.pool.done, worker.loop_lag[3]),
        (most, most, most)
    );
    assert_eq!(worker.pool.utilisation, 100);
    assert!(worker.serving.iter().all(|request| request.age_ms <= most));
}
