//! An application with timers and descriptors of its own in the primary, driven through its admin socket.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    BoxError, Cluster, ClusterEvent, Error, PrimaryHandle, Result, Worker, WorkerId,
};

use super::ProgramArguments;

/// What the admin socket can show of hooks that ran before.
#[derive(Default)]
struct State {
    /// Lines about the hook `on_start` and timers.
    notes: Vec<String>,
    /// Calls of a hook that never reads its descriptor.
    unread_calls: u64,
}

type SharedState = Rc<Cell<State>>;

/// Changes the state and returns a value of it.
fn with_state<T>(state: &SharedState, change: impl FnOnce(&mut State) -> T) -> T {
    let mut taken = state.take();
    let result = change(&mut taken);
    state.set(taken);
    result
}

fn add_note(state: &SharedState, note: impl Into<String>) {
    with_state(state, |state| state.notes.push(note.into()));
}

/// Answers each line at the socket `admin.sock` with one line: see `run_command`. With a file `refuse-start`, the hook
/// `on_start` fails; with `panic-start` it panics.
pub(super) fn primary_loop(arguments: ProgramArguments) -> Result<()> {
    let state = SharedState::default();
    let (of_start, of_events) = (state.clone(), state.clone());
    let (of_tick, mut ticks) = (state.clone(), 0);
    Cluster::new(arguments.config)
        .on_start(move |primary| start(primary, &of_start))
        .on_event(move |primary, event| {
            if matches!(event, ClusterEvent::Empty) {
                add_note(&of_events, "empty");
                if std::fs::remove_file("fork-at-empty").is_ok() {
                    primary.scale(1);
                }
            }
        })
        .every(Duration::from_millis(5), move |primary| {
            ticks += 1;
            add_note(&of_tick, format!("tick {ticks}"));
            if ticks == 3 {
                assert!(primary.cancel_current());
            }
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let text = format!("{} {}", worker.id(), std::env::var("ROLE").unwrap_or_default());
                let (id, blocks) = (worker.id(), request.uri().path() == "/block");
                async move {
                    if blocks {
                        std::fs::write(format!("blocked-{id}"), "")?;
                    }
                    // Not a future: the event loop stands still.
                    while blocks && std::fs::metadata("unblock").is_err() {
                        std::thread::yield_now();
                    }
                    Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn start(primary: &mut PrimaryHandle<'_>, state: &SharedState) -> Result<(), BoxError> {
    if std::fs::metadata("refuse-start").is_ok() {
        return Err("no start today".into());
    }
    if std::fs::metadata("panic-start").is_ok() {
        panic!("the start has had enough");
    }
    let (workers, upgrades) = (primary.workers().len(), primary.upgrade_count());
    add_note(state, format!("start workers={workers} upgrades={upgrades}"));
    primary.fork_with([("ROLE", "mail")])?;
    let noted = state.clone();
    let cancelled = primary.after(Duration::from_millis(1), move |_| add_note(&noted, "cancelled"));
    let noted = state.clone();
    primary.after(Duration::from_millis(2), move |primary| {
        add_note(&noted, "after");
        // Without a delay it runs after the next wait, not within this one.
        primary.after(Duration::ZERO, move |_| add_note(&noted, "at once"));
    });
    assert!(primary.cancel_timer(cancelled) && !primary.cancel_timer(cancelled));
    let _ = std::fs::remove_file("admin.sock");
    let state = state.clone();
    primary.on_readable(UnixListener::bind("admin.sock")?, move |primary, admin| {
        while let Ok((client, _)) = admin.accept() {
            add_client(primary, client, state.clone()).expect("a client");
        }
    })?;
    Ok(())
}

/// Answers the commands of a client until it closes the connection.
fn add_client(
    primary: &mut PrimaryHandle<'_>,
    client: UnixStream,
    state: SharedState,
) -> Result<()> {
    let hook = move |primary: &mut PrimaryHandle<'_>, client: &mut UnixStream| {
        let mut text = [0; 512];
        // A command comes in one piece, as it is shorter than any buffer.
        match client.read(&mut text) {
            Ok(0) => assert!(primary.cancel_current() && !primary.cancel_current()),
            Ok(read) => {
                let command = String::from_utf8_lossy(&text[..read]);
                let answer = run_command(primary, command.trim(), &state);
                let answer = answer.unwrap_or_else(|e| format!("error {e}"));
                let _ = writeln!(client, "{answer}");
            }
            Err(e) => add_note(&state, format!("error {e}")),
        }
    };
    primary.on_readable(client, hook).map(drop)
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn run_command(
    primary: &mut PrimaryHandle<'_>,
    command: &str,
    state: &SharedState,
) -> Result<String, BoxError> {
    let words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["notes"] => Ok(with_state(state, |state| state.notes.join(","))),
        ["pid"] => Ok(std::process::id().to_string()),
        ["kill", id, signal] => {
            primary.kill(WorkerId(id.parse()?), signal.parse()?)?;
            Ok("ok".to_string())
        }
        ["disconnect-all"] => {
            for worker in primary.workers() {
                primary.disconnect(worker.worker.id);
            }
            Ok("ok".to_string())
        }
        ["scale", workers] => {
            primary.scale(workers.parse()?);
            Ok("ok".to_string())
        }
        ["fork"] => Ok(primary.fork_with([("ROLE", "late")])?.to_string()),
        ["stop-with", ..] => {
            primary.stop_with(words[1..].join(" "));
            primary.stop_with("a second error");
            Ok("ok".to_string())
        }
        ["stop-with-config-error", text] => {
            primary.stop_with(Error::config(text));
            Ok("ok".to_string())
        }
        ["panic"] => panic!("the hook has had enough"),
        ["watch-unread"] => {
            let (own, peer) = UnixStream::pair()?;
            writeln!(&peer, "unread")?;
            let state = state.clone();
            let watch = primary.on_readable(own, move |_, _| {
                assert!(peer.peer_addr().is_ok(), "the other end stays open");
                with_state(&state, |state| state.unread_calls += 1);
            })?;
            Ok(watch.to_string())
        }
        ["unread-calls"] => Ok(with_state(state, |state| state.unread_calls).to_string()),
        _ => Err(format!("no such command: {command}").into()),
    }
}
