//! The `thread-per-core` model: one process with N threads, each a complete worker with its own runtime, service and
//! scoreboard page.
//!
//! The process has one channel to the primary, and each thread needs one. So the first thread serves no connections but runs a
//! *relay*: it forwards each command of the primary to all threads, and their reports to the primary: READY when all threads
//! are ready, RETIRING or DISCONNECTING when the first one reports it, ONLINE by itself. A thread that blocks stops
//! neither the others nor the relay: its heartbeat stops, by which the primary notices it and names its request.
//!
//! When the primary dies, the relay closes the channels of the threads, which then drain and exit. The relay's loop also reads and
//! writes the messages of the application: all threads send through it, and each message goes to one of the inboxes that the
//! threads have opened for its kind. If a thread ends early (a bug, as panics of handlers are caught), the worker is replaced.

mod relay;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use crate::channel::{PrimaryChannelEnd, WorkerChannelEnd, WorkerReport};
use crate::dispatch::LoadPage;
use crate::error::{Error, Result, exit};
use crate::listener::Listener;
use crate::worker::cpu_pool::WorkerPools;
use crate::worker::{self, WorkerApp};
use crate::worker_init::{MessageEndInit, WorkerInit};
use relay::{RelayedThread, ThreadRelay};

/// The stack size of a thread: that of the first thread of a process, as the same handlers run here.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// Reports the exit status of a thread to the relay when it is dropped, even by a panic.
struct ThreadExitGuard {
    number: usize,
    code: u8,
    to: mpsc::UnboundedSender<(usize, u8)>,
}

impl Drop for ThreadExitGuard {
    fn drop(&mut self) {
        // Without a relay the process is about to exit.
        let _ = self.to.send((self.number, self.code));
    }
}

/// Runs a worker from its `WorkerInit` to its exit status.
pub(super) fn enter(init: WorkerInit, app: &WorkerApp) -> u8 {
    let tag = init.tag;
    let run = || -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the relay's runtime", e))?;
        let outcome = runtime.block_on(run_relay(init, app));
        // Dropping the runtime would wait for the blocking pool, possibly for a disk that never answers.
        runtime.shutdown_background();
        outcome
    };
    run().unwrap_or_else(|e| {
        log::error!("{tag} {e}");
        e.exit_status()
    })
}

async fn run_relay(init: WorkerInit, app: &WorkerApp) -> Result<u8> {
    // The only dispatch policy of this model is `shared`: no connection queue, no load page.
    let WorkerInit { tag, listeners, channel, worker_pages, board, config, terminate, .. } = init;
    let messages = init.messages.start(tag)?;
    let channel = WorkerChannelEnd::new(channel)
        .map_err(|e| Error::system("register the channel to the primary", e))?;
    // If this fails, the relay will notice that the primary is gone.
    let _ = channel.send(&WorkerReport::Online);
    let (exit_reports, mut ended) = mpsc::unbounded_channel();
    let first_page = worker_pages.first();
    let pools = first_page.map(|page| WorkerPools::new(&config, page, tag, worker_pages.len()));
    let (mut threads, mut reads) = (Vec::new(), Vec::new());
    for (number, worker_page) in worker_pages.into_iter().enumerate() {
        let (ours, theirs) = prefork_os::fd_passing::create_seqpacket_pair()
            .map_err(|e| Error::system("make a channel for a thread", e))?;
        let clones = listeners.iter().map(Listener::try_clone);
        let clones = clones.collect::<std::io::Result<_>>();
        let listeners = clones.map_err(|e| Error::system("share a listening socket", e))?;
        let read_half = ours.try_clone().and_then(prefork_os::async_fd::register_readable);
        reads.push(read_half.map_err(|e| Error::system("register the channel of a thread", e))?);
        let end = RefCell::new(Some(PrimaryChannelEnd::new(ours)));
        threads.push(RelayedThread {
            end,
            report_task: RefCell::default(),
            worker_page: worker_page.thread_view(),
            reading: Mutex::new(()),
        });
        let thread_init = WorkerInit {
            tag,
            kinds: init.kinds.clone(),
            listeners,
            channel: theirs,
            queue: None,
            messages: MessageEndInit::Shared(Arc::clone(&messages)),
            worker_pages: vec![worker_page],
            pools: pools.clone(),
            load_page: LoadPage::default(),
            board: board.clone(),
            config: Arc::clone(&config),
            tls: init.tls.clone(),
            access_log: init.access_log.clone(),
            terminate: Arc::clone(&terminate),
        };
        spawn_thread(thread_init, number, app, exit_reports.clone())?;
    }
    // The threads have copies. A copy here would keep the sockets open after the threads have closed theirs.
    drop(listeners);
    let (ready, is_draining) = (Cell::new(0), Cell::new(false));
    let relay = Rc::new(ThreadRelay {
        tag,
        channel,
        messages,
        config,
        access_log: init.access_log,
        threads,
        ready,
        is_draining,
    });
    relay::start_forwarding(&relay, reads);
    let (mut left, mut worst) = (0, exit::OK);
    while left < relay.threads.len() {
        // Never `None`: this function holds a sender as well.
        let Some((number, code)) = ended.recv().await else { break };
        relay.threads[number].worker_page.set_thread_ended();
        (left, worst) = (left + 1, worst.max(code));
        // Its channel may hold more reports, connections among them.
        relay.read_reports(number).await;
        // It gets no more commands.
        relay.threads[number].end.take();
        if code != exit::OK && relay.ready.get() < relay.threads.len() {
            return Ok(code);
        }
        if !relay.is_draining.get() {
            log::error!("{tag} lost thread {number}: it is replaced as a whole");
            relay.begin_drain(&WorkerReport::Retiring);
        }
    }
    relay.finish().await;
    Ok(worst)
}

/// Starts a thread.
fn spawn_thread(
    thread_init: WorkerInit,
    number: usize,
    app: &WorkerApp,
    to: mpsc::UnboundedSender<(usize, u8)>,
) -> Result<()> {
    let app = Arc::clone(app);
    let run = move || {
        let mut exit_guard = ThreadExitGuard { number, code: exit::FAILURE, to };
        exit_guard.code = worker::run_worker(thread_init, &app);
    };
    let thread =
        std::thread::Builder::new().name(format!("loop {number}")).stack_size(THREAD_STACK_BYTES);
    thread.spawn(run).map(drop).map_err(|e| Error::system("start a thread of the worker", e))
}
