//! Seed: exactly what a worker is born with. Whatever crosses the fork crosses in here.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::Config;
use crate::listener::Listener;
use crate::mail::MailLimits;
use crate::scoreboard::{OwnRow, Reader};
use crate::steering::SlotMeter;
use prefork_supervisor::{Slot, WorkerTag};

/// What the primary hands to a freshly forked worker.
pub(crate) struct Seed {
    /// Who it is.
    pub(crate) tag: WorkerTag,
    /// Where the slots of each other kind than `web` begin.
    pub(crate) kinds: Vec<(&'static str, Slot)>,
    /// The sockets it accepts from: those of its slot, where each slot has its own.
    pub(crate) listeners: Vec<Listener>,
    /// Its end of the channel to the primary.
    pub(crate) channel: OwnedFd,
    /// Where new connections come from, if the primary accepts them.
    pub(crate) queue: Option<OwnedFd>,
    /// Its end of the channel for the application's messages; `None` where nobody would read them: in a trial, and
    /// in the threads of a worker.
    pub(crate) mail: Option<OwnedFd>,
    /// How much there may be of them.
    pub(crate) mail_limits: MailLimits,
    /// The pages that it alone can write, one for each of its threads that needs its own; at least one.
    pub(crate) rows: Vec<OwnRow>,
    /// Where it counts connections for whatever chooses among the slots.
    pub(crate) meter: SlotMeter,
    /// All pages, to read.
    pub(crate) board: Reader,
    /// The configuration it was forked under.
    pub(crate) config: Rc<Config>,
    /// Set by SIGTERM sent to the worker itself: retire.
    pub(crate) terminate: Arc<AtomicBool>,
}

/// What a worker does with its seed, ending in an exit status. Never returns to the primary's code.
pub(crate) type Entry = Box<dyn Fn(Seed) -> u8>;
