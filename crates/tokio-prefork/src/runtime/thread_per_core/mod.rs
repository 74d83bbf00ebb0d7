//! `thread-per-core`: a worker process whose threads each live a whole worker's life, with a loop, a service and a
//! row of their own.
//!
//! The process has one channel to the primary and the threads want one each. So the first thread serves nobody: it
//! is the *relay*. It sends every order on to all threads, and what they say to the primary; READY when all have
//! said it, RETIRING or DISCONNECTING when the first does, ONLINE by itself. A thread that blocks blocks no
//! other, nor the relay: its beat stops, by which the primary notices it and names its request.
//!
//! The end of the primary is passed on, too: the relay closes the channels of the threads, which then finish and
//! leave. The application's messages are the first thread's. A thread that ends before it was told (a bug: panics of handlers are contained) retires the worker.

mod relay;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::{Mutex, mpsc};

use crate::channel::{PrimaryEnd, ToPrimary, WorkerEnd};
use crate::config::Config;
use crate::dispatch::LoadPage;
use crate::error::{Error, Result, exit};
use crate::listener::Listener;
use crate::messages::MessageLimits;
use crate::scoreboard::{OwnRow, Reader};
use crate::worker::{self, WorkerApp};
use crate::worker_init::WorkerInit;
use prefork_supervisor::{Slot, WorkerTag};
use relay::{Member, Relay};

/// As much as the first thread of a process has, as the same handlers run here.
const STACK: usize = 8 << 20;

/// What a thread is born with: a `WorkerInit` that can cross to it.
struct Part {
    tag: WorkerTag,
    kinds: Vec<(&'static str, Slot)>,
    listeners: Vec<Listener>,
    channel: OwnedFd,
    mail: Option<OwnedFd>,
    message_limits: MessageLimits,
    row: OwnRow,
    board: Reader,
    config: Config,
    terminate: Arc<AtomicBool>,
}

/// Tells the relay how a thread ended, however it did.
struct Obituary {
    number: usize,
    code: u8,
    to: mpsc::UnboundedSender<(usize, u8)>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        // A relay that is gone takes the process with it.
        let _ = self.to.send((self.number, self.code));
    }
}

/// Runs a worker from its `WorkerInit` to its exit status.
pub(super) fn enter(init: WorkerInit, app: &WorkerApp) -> u8 {
    let tag = init.tag;
    let life = || -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the relay's runtime", e))?;
        let outcome = runtime.block_on(lead(init, app));
        // Dropping it would wait for calls of the blocking pool, which a disk that does not answer never ends.
        runtime.shutdown_background();
        outcome
    };
    life().unwrap_or_else(|e| {
        log::error!("{tag} {e}");
        e.exit_status()
    })
}

async fn lead(init: WorkerInit, app: &WorkerApp) -> Result<u8> {
    // The model has one way to accept, `shared`: there is neither a queue nor anything to count for a chooser.
    let WorkerInit { tag, listeners, channel, rows, board, config, terminate, .. } = init;
    // One mailbox for the process: its first thread has it.
    let (mut mail, message_limits) = (init.mail, init.message_limits);
    let channel = WorkerEnd::new(channel)
        .map_err(|e| Error::system("register the channel to the primary", e))?;
    // If nobody hears it, the relay learns that the primary is gone.
    let _ = channel.send(&ToPrimary::Online);
    let (obituaries, mut ended) = mpsc::unbounded_channel();
    let (mut members, mut ears) = (Vec::new(), Vec::new());
    for (number, row) in rows.into_iter().enumerate() {
        let (ours, theirs) = prefork_os::fd_passing::create_seqpacket_pair()
            .map_err(|e| Error::system("make a channel for a thread", e))?;
        let clones = listeners.iter().map(Listener::try_clone);
        let clones = clones.collect::<std::io::Result<_>>();
        let listeners = clones.map_err(|e| Error::system("share a listening socket", e))?;
        let ear = ours.try_clone().and_then(prefork_os::async_fd::register_readable);
        ears.push(ear.map_err(|e| Error::system("register the channel of a thread", e))?);
        let end = RefCell::new(Some(PrimaryEnd::new(ours)));
        members.push(Member {
            end,
            ear: RefCell::default(),
            row: row.of_thread(),
            hearing: Mutex::new(()),
        });
        let part = Part {
            tag,
            kinds: init.kinds.clone(),
            listeners,
            channel: theirs,
            mail: mail.take(),
            message_limits,
            row,
            board,
            config: Config::clone(&config),
            terminate: Arc::clone(&terminate),
        };
        begin(part, number, app, obituaries.clone())?;
    }
    // The threads have their shares; what ends when they let go of it must not live on here.
    drop(listeners);
    let (ready, leaving) = (Cell::new(0), Cell::new(false));
    let relay = Rc::new(Relay { tag, channel, config, members, ready, leaving });
    for (number, ear) in ears.into_iter().enumerate() {
        let task = tokio::task::spawn_local(relay::listen(Rc::clone(&relay), number, ear));
        relay.members[number].ear.replace(Some(task));
    }
    tokio::task::spawn_local(relay::obey(Rc::clone(&relay)));
    let (mut left, mut worst) = (0, exit::OK);
    while left < relay.members.len() {
        // We hold a sender ourselves, so this does not end.
        let Some((number, code)) = ended.recv().await else { break };
        relay.members[number].row.left();
        (left, worst) = (left + 1, worst.max(code));
        // Its last words, connections among them, may still be in its channel.
        relay.hear(number).await;
        // Nothing is given to it any more.
        relay.members[number].end.take();
        if code != exit::OK && relay.ready.get() < relay.members.len() {
            return Ok(code);
        }
        if !relay.leaving.get() {
            log::error!("{tag} lost thread {number}: it is replaced as a whole");
            relay.leave(&ToPrimary::Retiring);
        }
    }
    Ok(worst)
}

/// Starts a thread.
fn begin(
    part: Part,
    number: usize,
    app: &WorkerApp,
    to: mpsc::UnboundedSender<(usize, u8)>,
) -> Result<()> {
    let app = Arc::clone(app);
    let live = move || {
        let mut obituary = Obituary { number, code: exit::FAILURE, to };
        let Part { tag, kinds, listeners, channel, mail, message_limits, row, board, .. } = part;
        let Part { config, terminate, .. } = part;
        let init = WorkerInit {
            tag,
            kinds,
            listeners,
            channel,
            queue: None,
            mail,
            message_limits,
            rows: vec![row],
            load_page: LoadPage::default(),
            board,
            config: Rc::new(config),
            terminate,
        };
        obituary.code = worker::run_worker(init, &app);
    };
    let thread = std::thread::Builder::new().name(format!("loop {number}")).stack_size(STACK);
    thread.spawn(live).map(drop).map_err(|e| Error::system("start a thread of the worker", e))
}
