//! The other side of a proof: a worker is forked and has to become ready; then both are thrown away.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use crate::channel::{Heard, PrimaryEnd, ToPrimary};
use crate::config::Config;
use crate::dispatch::LoadPage;
use crate::error::{Error, Result, exit};
use crate::messages::MessageLimits;
use crate::scoreboard::Scoreboard;
use crate::worker_init::{WorkerEntry, WorkerInit};
use prefork_os::child::ForkResult;
use prefork_os::poll::WatchedFd;
use prefork_os::signal::Signal;
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

/// Whether a worker of this program, under this configuration, becomes ready. It gets no listening socket.
pub(crate) fn prove(config: Config, entry: &WorkerEntry) -> Result<()> {
    let (id, slot, generation) = (WorkerId(0), Slot(0), Generation(0));
    let tag = WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND };
    let failed = |what: &str| {
        let what = what.to_string();
        move |e: std::io::Error| Error::system(what, e)
    };
    let mut board = Scoreboard::create(config.rows()).map_err(failed("create a scoreboard"))?;
    let row = board
        .lease_rows(tag, config.rows())
        .ok_or_else(|| Error::config("no row for the trial worker"))?;
    let limit = config.boot_timeout;
    let (ours, theirs) =
        prefork_os::fd_passing::create_seqpacket_pair().map_err(failed("make a channel"))?;
    let primary = std::process::id();
    match prefork_os::child::fork_process()? {
        ForkResult::Parent(pid) => {
            drop(theirs);
            // Open until the worker is killed: its end would make the worker drain, and say so.
            let channel = PrimaryEnd::new(ours);
            let outcome = await_ready(&channel, limit);
            let _ = prefork_os::child::signal_child(pid, Signal::SIGKILL);
            while matches!(prefork_os::child::reap_child(pid), Ok(None)) {
                std::thread::yield_now();
            }
            outcome
        }
        ForkResult::Child => {
            drop(ours);
            let live = || -> Result<u8> {
                if let Some(credentials) = config.credentials() {
                    credentials.take_on()?;
                }
                // It serves nobody: when the trial is stopped there is nothing to finish.
                let alive = prefork_os::parent_death::kill_on_parent_death(primary)
                    .map_err(failed("tie the worker to the trial"))?;
                if !alive {
                    return Ok(exit::OK);
                }
                let terminate = prefork_os::signal::register_signal_flag(Signal::SIGTERM)
                    .map_err(failed("catch SIGTERM"))?;
                let reader = board.reader();
                let rows = board.give_up_all_but(row).map_err(failed("keep its pages"))?;
                Ok(entry(WorkerInit {
                    tag,
                    listeners: Vec::new(),
                    channel: theirs,
                    queue: None,
                    mail: None,
                    kinds: Vec::new(),
                    message_limits: MessageLimits::default(),
                    rows,
                    load_page: LoadPage::default(),
                    board: reader,
                    config: Rc::new(config),
                    terminate,
                }))
            };
            prefork_os::child::exit_without_cleanup(live().unwrap_or_else(|e| {
                log::error!("the trial worker cannot start: {e}");
                exit::OS
            }))
        }
    }
}

fn await_ready(channel: &PrimaryEnd, limit: Duration) -> Result<()> {
    let failed = |why: String| Error::application("the trial worker did not become ready", why);
    let mut reason = None;
    loop {
        match channel.hear() {
            Heard::Word(ToPrimary::Ready) => return Ok(()),
            Heard::Word(ToPrimary::BootFailed(why)) => reason = Some(why),
            Heard::Connection(..) | Heard::LostConnection | Heard::Word(ToPrimary::Travel(_)) => {
                return Err(failed("it hands over connections".to_string()));
            }
            // It was sent no sockets.
            Heard::Word(ToPrimary::Online | ToPrimary::NotAdopted(_)) => {}
            Heard::Word(ToPrimary::Disconnecting) => {
                return Err(failed("it disconnects".to_string()));
            }
            Heard::Word(ToPrimary::Retiring) => return Err(failed("it retires".to_string())),
            Heard::Garbage(why) => return Err(failed(why)),
            Heard::End => return Err(failed(reason.unwrap_or_else(|| "it died".to_string()))),
            Heard::Nothing => {
                // A signal may end the wait early; the one who started us keeps the real deadline.
                let ready = prefork_os::poll::poll_fds(
                    &[WatchedFd::readable(channel.as_fd())],
                    Some(limit),
                )
                .map_err(|e| Error::system("wait for the trial worker", e))?;
                if !ready[0] {
                    return Err(failed("boot-timeout".to_string()));
                }
            }
        }
    }
}
