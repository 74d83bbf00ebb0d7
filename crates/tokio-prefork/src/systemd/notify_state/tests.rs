//! What the manager hears, message by message.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn figures(ready: u32, requests: u64) -> Figures {
    Figures { ready, wanted: 2, generation: Generation(1), requests, serves: ready > 0 }
}

fn said(herald: &mut Herald) -> Vec<String> {
    let mut messages = Vec::new();
    while let Some(message) = herald.next() {
        messages.push(message.to_string());
        herald.said();
    }
    messages
}

#[test]
fn ready_is_said_once_and_the_status_when_it_changes() {
    let now = Instant::now();
    let mut herald = Herald::new(None, now, Duration::ZERO);
    herald.look(now, &figures(1, 0));
    assert_eq!(
        said(&mut herald),
        ["STATUS=starting: 1 of 2 workers ready, generation 1, 0 requests"]
    );
    herald.ready(&figures(2, 0));
    herald.ready(&figures(2, 0));
    assert_eq!(
        said(&mut herald),
        ["READY=1\nSTATUS=2 of 2 workers ready, generation 1, 0 requests"]
    );
    herald.look(now, &figures(2, 9));
    assert!(said(&mut herald).is_empty(), "not twice in a second");
    herald.look(now + SECOND, &figures(2, 9));
    assert_eq!(said(&mut herald), ["STATUS=2 of 2 workers ready, generation 1, 9 requests"]);
    herald.look(now + 2 * SECOND, &figures(2, 9));
    assert!(said(&mut herald).is_empty(), "nothing is new");
}

#[test]
fn a_reload_ends_in_ready_also_where_it_fails() {
    let now = Instant::now();
    let mut herald = Herald::new(None, now, Duration::ZERO);
    herald.reloading(now, 1, SECOND);
    assert!(said(&mut herald).is_empty(), "who is not ready yet does not reload");
    herald.ready(&figures(2, 0));
    said(&mut herald);
    herald.reloading(now, 42, SECOND);
    herald.reloaded(Some("no\nfile"), &figures(2, 0));
    let messages = said(&mut herald);
    assert!(messages[0].starts_with("RELOADING=1\nMONOTONIC_USEC=42\n"), "{messages:?}");
    assert!(messages[1].starts_with("READY=1\nSTATUS=2 of 2"), "{messages:?}");
    assert!(messages[1].ends_with("; the last reload failed: no\\nfile"), "{messages:?}");
    herald.reloading(now, 43, SECOND);
    herald.reloaded(None, &figures(2, 0));
    assert!(said(&mut herald)[1].ends_with(" requests"), "the remark is of the last one");
}

#[test]
fn an_upgraded_image_says_ready_when_its_workers_serve() {
    let mut herald = Herald::upgraded(None, Instant::now());
    herald.reloaded(None, &figures(2, 0));
    assert!(said(&mut herald)[0].starts_with("READY=1\n"));
}

#[test]
fn a_stop_is_said_once_and_asks_for_time_only_as_long_as_it_may_take() {
    let now = Instant::now();
    let mut herald = Herald::new(None, now, Duration::ZERO);
    herald.ready(&figures(2, 0));
    said(&mut herald);
    herald.stopping(now, 8 * SECOND);
    herald.stopping(now, 8 * SECOND);
    herald.ready(&figures(2, 0));
    assert_eq!(said(&mut herald), ["STOPPING=1\nSTATUS=stopping"]);
    let mut more = Vec::new();
    for second in 0..12 {
        herald.look(now + second * SECOND, &figures(0, 0));
        for message in said(&mut herald) {
            let usec = message.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
            more.extend(usec.map(|usec| usec.parse::<u64>().expect("a number") / 1_000_000));
        }
    }
    assert_eq!(more, [5, 5, 5, 5, 4, 3, 2, 1]);
}

#[test]
fn the_watchdog_is_fed_only_while_somebody_serves() {
    let now = Instant::now();
    let mut herald = Herald::new(Some(2 * SECOND), now, Duration::ZERO);
    let fed = |herald: &mut Herald, at, ready| {
        herald.look(at, &figures(ready, 0));
        said(herald).iter().any(|message| message == "WATCHDOG=1")
    };
    assert!(fed(&mut herald, now, 0), "it boots");
    assert!(!fed(&mut herald, now + SECOND, 0), "not due");
    herald.ready(&figures(2, 0));
    said(&mut herald);
    assert!(fed(&mut herald, now + 2 * SECOND, 2));
    assert!(!fed(&mut herald, now + 4 * SECOND, 0), "nobody serves");
    assert!(herald.deadline() <= now + 4 * SECOND + AGAIN, "looked at again soon");
    assert!(fed(&mut herald, now + 5 * SECOND, 1), "one is enough");
    assert!(!fed(&mut herald, now + 7 * SECOND, 0), "nobody serves");
    herald.stopping(now, SECOND);
    said(&mut herald);
    assert!(fed(&mut herald, now + 8 * SECOND, 0), "it ends");
}

#[test]
fn a_manager_that_does_not_read_costs_little() {
    let now = Instant::now();
    let mut herald = Herald::new(Some(SECOND), now, SECOND);
    herald.ready(&figures(2, 0));
    for second in 1..1000 {
        herald.look(now + second * SECOND, &figures(2, u64::from(second)));
        herald.reloading(now, 1, SECOND);
    }
    assert!(said(&mut herald).len() <= MOST);
}

#[test]
fn the_limit_of_another_process_is_none_of_ours() {
    let told = |usec: &str, pid: Option<&str>| {
        let env = |name: &str| match name {
            "WATCHDOG_USEC" => Some(usec.to_string()),
            _ => pid.map(str::to_string),
        };
        watchdog(env, 7)
    };
    assert_eq!(told("4000000", Some("7")), Some(2 * SECOND));
    assert_eq!(told("4000000", None), Some(2 * SECOND));
    for (usec, pid) in [("4000000", Some("8")), ("0", None), ("soon", None), ("4000000", Some(""))]
    {
        assert_eq!(told(usec, pid), None, "{usec} {pid:?}");
    }
    assert_eq!(watchdog(|_| None, 7), None);
}
