//! Roles within one process. Between processes: `tests/it/shared_state.rs`.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::Leadership;

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn one_at_a_time_leads_within_a_process() {
    let role = Leadership::new("role_one").expect("role");
    assert!(!role.is_leader());
    assert_eq!(role.leader_pid(), None);
    let lead = role.try_acquire().expect("lock").expect("nobody leads");
    assert!(role.is_leader());
    assert_eq!(role.leader_pid(), Some(std::process::id()));
    assert!(role.try_acquire().expect("lock").is_none());
    let mut next = pin!(role.acquire());
    assert!(poll(next.as_mut()).is_pending());
    drop(lead);
    let Poll::Ready(Ok(lead)) = poll(next) else { panic!("it leads now") };
    drop(lead);
    assert!(!role.is_leader());
}

#[test]
fn who_no_longer_waits_gets_nothing() {
    let role = Leadership::new("role_gone").expect("role");
    let lead = role.try_acquire().expect("lock").expect("nobody leads");
    {
        let mut gone = pin!(role.acquire());
        assert!(poll(gone.as_mut()).is_pending());
    }
    drop(lead);
    assert!(role.try_acquire().expect("lock").is_some());
}

#[test]
fn work_that_panics_resigns() {
    let role = Leadership::new("role_panic").expect("role");
    let work = || {
        let mut work = pin!(role.run_as_leader(async { panic!("the work panics") }));
        let _ = poll(work.as_mut());
    };
    assert!(std::panic::catch_unwind(work).is_err());
    assert!(!role.is_leader());
}

#[test]
fn run_once_gives_what_the_work_gave() {
    let role = Leadership::new("role_output").expect("role");
    let Poll::Ready(Ok(7)) = poll(pin!(role.run_as_leader(async { 7 }))) else {
        panic!("no output")
    };
}

#[test]
fn two_roles_of_one_file_do_not_meet() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("roles");
    let one = Leadership::with_lock_file("role_file_one", &path).expect("role");
    let other = Leadership::with_lock_file("role_file_other", &path).expect("role");
    let _one = one.try_acquire().expect("lock").expect("free");
    assert!(other.try_acquire().expect("lock").is_some());
    let error = Leadership::with_lock_file("role_file_bad", dir.path()).expect_err("a directory");
    assert!(error.to_string().contains("cannot open "), "{error}");
}
