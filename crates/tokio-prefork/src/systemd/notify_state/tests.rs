//! The messages that the service manager gets.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn summary(ready: u32, requests: u64) -> ClusterSummary {
    ClusterSummary {
        ready,
        wanted: 2,
        generation: Generation(1),
        requests,
        is_responsive: ready > 0,
    }
}

fn take_messages(state: &mut NotifyState) -> Vec<String> {
    let mut messages = Vec::new();
    while let Some(message) = state.next_message() {
        messages.push(message.to_string());
        state.remove_sent_message();
    }
    messages
}

#[test]
fn sends_ready_once_and_the_status_when_it_changes() {
    let now = Instant::now();
    let mut state = NotifyState::new(None, now, Duration::ZERO);
    state.queue_due_messages(now, &summary(1, 0));
    assert_eq!(
        take_messages(&mut state),
        ["STATUS=starting: 1 of 2 workers ready, generation 1, 0 requests"]
    );
    state.queue_ready(&summary(2, 0));
    state.queue_ready(&summary(2, 0));
    assert_eq!(
        take_messages(&mut state),
        ["READY=1\nSTATUS=2 of 2 workers ready, generation 1, 0 requests"]
    );
    state.queue_due_messages(now, &summary(2, 9));
    assert!(take_messages(&mut state).is_empty(), "at most one status per second");
    state.queue_due_messages(now + SECOND, &summary(2, 9));
    assert_eq!(
        take_messages(&mut state),
        ["STATUS=2 of 2 workers ready, generation 1, 9 requests"]
    );
    state.queue_due_messages(now + 2 * SECOND, &summary(2, 9));
    assert!(take_messages(&mut state).is_empty(), "an unchanged status is not sent");
}

#[test]
fn a_failed_reload_ends_with_ready_too() {
    let now = Instant::now();
    let mut state = NotifyState::new(None, now, Duration::ZERO);
    state.queue_reloading(now, 1, SECOND);
    assert!(take_messages(&mut state).is_empty(), "a service that is not ready cannot reload");
    state.queue_ready(&summary(2, 0));
    take_messages(&mut state);
    state.queue_reloading(now, 42, SECOND);
    state.queue_reloaded(Some("no\nfile"), &summary(2, 0));
    let messages = take_messages(&mut state);
    assert!(messages[0].starts_with("RELOADING=1\nMONOTONIC_USEC=42\n"), "{messages:?}");
    assert!(messages[1].starts_with("READY=1\nSTATUS=2 of 2"), "{messages:?}");
    assert!(messages[1].ends_with("; the last reload failed: no\\nfile"), "{messages:?}");
    state.queue_reloading(now, 43, SECOND);
    state.queue_reloaded(None, &summary(2, 0));
    assert!(
        take_messages(&mut state)[1].ends_with(" requests"),
        "the remark of an earlier reload is dropped"
    );
}

#[test]
fn an_upgraded_image_sends_ready_when_its_workers_serve() {
    let mut state = NotifyState::after_upgrade(None, Instant::now());
    state.queue_reloaded(None, &summary(2, 0));
    assert!(take_messages(&mut state)[0].starts_with("READY=1\n"));
}

#[test]
fn sends_stopping_once_and_extends_the_timeout_up_to_the_limit() {
    let now = Instant::now();
    let mut state = NotifyState::new(None, now, Duration::ZERO);
    state.queue_ready(&summary(2, 0));
    take_messages(&mut state);
    state.queue_stopping(now, 8 * SECOND);
    state.queue_stopping(now, 8 * SECOND);
    state.queue_ready(&summary(2, 0));
    assert_eq!(take_messages(&mut state), ["STOPPING=1\nSTATUS=stopping"]);
    let mut extensions = Vec::new();
    for second in 0..12 {
        state.queue_due_messages(now + second * SECOND, &summary(0, 0));
        for message in take_messages(&mut state) {
            let usec = message.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
            extensions.extend(usec.map(|usec| usec.parse::<u64>().expect("a number") / 1_000_000));
        }
    }
    assert_eq!(extensions, [5, 5, 5, 5, 4, 3, 2, 1]);
}

#[test]
fn sends_watchdog_messages_only_while_a_worker_is_responsive() {
    let now = Instant::now();
    let mut state = NotifyState::new(Some(2 * SECOND), now, Duration::ZERO);
    let is_fed = |state: &mut NotifyState, at, ready| {
        state.queue_due_messages(at, &summary(ready, 0));
        take_messages(state).iter().any(|message| message == "WATCHDOG=1")
    };
    assert!(is_fed(&mut state, now, 0), "the service starts");
    assert!(!is_fed(&mut state, now + SECOND, 0), "not due");
    state.queue_ready(&summary(2, 0));
    take_messages(&mut state);
    assert!(is_fed(&mut state, now + 2 * SECOND, 2));
    assert!(!is_fed(&mut state, now + 4 * SECOND, 0), "no worker is responsive");
    assert!(
        state.next_deadline() <= now + 4 * SECOND + WATCHDOG_RETRY_INTERVAL,
        "the next try is soon"
    );
    assert!(is_fed(&mut state, now + 5 * SECOND, 1), "one responsive worker is enough");
    assert!(!is_fed(&mut state, now + 7 * SECOND, 0), "no worker is responsive");
    state.queue_stopping(now, SECOND);
    take_messages(&mut state);
    assert!(is_fed(&mut state, now + 8 * SECOND, 0), "the service stops");
}

#[test]
fn bounds_the_queue_of_a_manager_that_does_not_read() {
    let now = Instant::now();
    let mut state = NotifyState::new(Some(SECOND), now, SECOND);
    state.queue_ready(&summary(2, 0));
    for second in 1..1000 {
        state.queue_due_messages(now + second * SECOND, &summary(2, u64::from(second)));
        state.queue_reloading(now, 1, SECOND);
    }
    assert!(take_messages(&mut state).len() <= MAX_QUEUED_MESSAGES);
}

#[test]
fn ignores_the_watchdog_of_another_process() {
    let parse = |usec: &str, pid: Option<&str>| {
        let env = |name: &str| match name {
            "WATCHDOG_USEC" => Some(usec.to_string()),
            _ => pid.map(str::to_string),
        };
        watchdog_interval(env, 7)
    };
    assert_eq!(parse("4000000", Some("7")), Some(2 * SECOND));
    assert_eq!(parse("4000000", None), Some(2 * SECOND));
    for (usec, pid) in [("4000000", Some("8")), ("0", None), ("soon", None), ("4000000", Some(""))]
    {
        assert_eq!(parse(usec, pid), None, "{usec} {pid:?}");
    }
    assert_eq!(watchdog_interval(|_| None, 7), None);
}
