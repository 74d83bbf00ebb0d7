//! Stories of a desk: who is told what, and when.

use super::*;
use crate::messages::{MessageSender, ReplyTo};

const CALLER: WorkerId = WorkerId(1);
const ONE: WorkerId = WorkerId(8);
const OTHER: WorkerId = WorkerId(9);

fn desk(queue: usize) -> Desk {
    Desk::new(
        &IsolatedPoolConfig::new("thumbnails", 2).queue(queue).deadline(Duration::from_secs(10)),
    )
}

fn to(id: u64) -> ReplyTo {
    ReplyTo::to_test(MessageSender::Worker(CALLER), id)
}

fn told(id: u64, verdict: Verdict) -> Order {
    tell(to(id), &verdict)
}

/// Asks for job `n`, for a second; what is done at once.
fn ask(desk: &mut Desk, n: u64, now: Instant) -> Vec<Order> {
    let until = now + Duration::from_secs(1);
    let refused = desk.submit((CALLER, n), to(n), until, Bytes::from(n.to_string()));
    refused.into_iter().chain(desk.assign(now, &|_| true)).collect()
}

fn given(worker: WorkerId, job: JobId, n: u64) -> Order {
    Order::Give { worker, job, input: Bytes::from(n.to_string()) }
}

#[test]
fn a_worker_has_one_job_at_a_time_and_the_others_wait_in_order() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    assert_eq!(ask(&mut desk, 1, now), [given(ONE, 1, 1)]);
    assert!(ask(&mut desk, 2, now).is_empty() && ask(&mut desk, 3, now).is_empty());
    assert_eq!(ask(&mut desk, 4, now), [told(4, Verdict::Full)]);
    let answer = join(&Verdict::Done, b"!");
    assert_eq!(desk.done(OTHER, 1, answer.clone()), None, "it has no such job");
    assert_eq!(desk.done(ONE, 7, answer.clone()), None, "nor it");
    let done = desk.done(ONE, 1, answer.clone());
    assert_eq!(done, Some(Order::Tell { to: to(1), answer }));
    assert_eq!(desk.assign(now, &|_| true), [given(ONE, 2, 2)]);
}

#[test]
fn whoever_is_about_to_leave_is_given_nothing() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    desk.submit((CALLER, 1), to(1), now, Bytes::new());
    assert!(desk.assign(now, &|_| false).is_empty());
    desk.came(OTHER);
    assert!(matches!(desk.assign(now, &|_| true)[..], [Order::Give { worker: OTHER, .. }]));
}

#[test]
fn the_caller_is_told_when_the_process_dies_and_nobody_else_is() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    ask(&mut desk, 1, now);
    ask(&mut desk, 2, now);
    let died = Ended::Died { signal: Some(11) };
    assert_eq!(desk.ended(ONE, died), Some(told(1, Verdict::Died { signal: Some(11) })));
    assert_eq!(desk.ended(ONE, died), None);
    desk.came(OTHER);
    assert_eq!(desk.assign(now, &|_| true), [given(OTHER, 2, 2)]);
}

#[test]
fn a_job_that_was_on_its_way_to_one_that_left_is_given_to_the_next() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    ask(&mut desk, 1, now);
    ask(&mut desk, 2, now);
    assert_eq!(desk.ended(ONE, Ended::Left), None);
    desk.came(OTHER);
    assert_eq!(desk.assign(now, &|_| true), [given(OTHER, 2, 1)]);
}

#[test]
fn what_is_late_is_ended_and_its_process_killed() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    ask(&mut desk, 1, now);
    ask(&mut desk, 2, now);
    let late = now + Duration::from_secs(1);
    assert_eq!((desk.deadline(), desk.overdue(now).len()), (Some(late), 0));
    let orders = desk.overdue(late);
    let [two, one] = [2, 1].map(|n| told(n, Verdict::TimedOut));
    assert_eq!(orders, [two, one, Order::Kill(ONE)]);
    assert_eq!((desk.deadline(), desk.ended(ONE, Ended::Died { signal: Some(9) })), (None, None));
}

#[test]
fn a_job_runs_no_longer_than_the_pool_allows_whatever_its_caller_says() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    let until = now + Duration::from_secs(3600);
    desk.submit((CALLER, 1), to(1), until, Bytes::new());
    desk.assign(now, &|_| true);
    assert_eq!(desk.deadline(), Some(now + Duration::from_secs(10)));
}

#[test]
fn nothing_is_begun_for_callers_that_are_gone() {
    let (mut desk, now) = (desk(4), Instant::now());
    for n in 1..=3 {
        ask(&mut desk, n, now);
    }
    desk.gone(OTHER, 2);
    desk.gone(CALLER, 2);
    desk.came(ONE);
    assert_eq!(desk.assign(now, &|_| true), [given(ONE, 1, 1)]);
    desk.ended(CALLER, Ended::Died { signal: Some(9) });
    desk.came(OTHER);
    assert!(desk.assign(now, &|_| true).is_empty());
}

#[test]
fn a_stop_ends_what_waits_and_lets_finish_what_has_begun() {
    let (mut desk, now) = (desk(2), Instant::now());
    desk.came(ONE);
    ask(&mut desk, 1, now);
    ask(&mut desk, 2, now);
    assert_eq!(desk.close(), [told(2, Verdict::Closed)]);
    assert_eq!(ask(&mut desk, 3, now), [told(3, Verdict::Closed)]);
    let answer = join(&Verdict::Done, b"");
    assert!(desk.done(ONE, 1, answer).is_some());
}
