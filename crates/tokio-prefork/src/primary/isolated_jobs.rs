//! The desks of isolated workers in the primary: what is said to them and what they order. What is decided, `Desk` decides.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Primary, PrimaryHandle};
use crate::isolated::{DO, Desk, Ended, Job, Order, join, split, split_done};
use crate::messages::{Carried, Class, Message, Place, letter};
use prefork_os::signal::Signal;
use prefork_supervisor::{Event, ExitCause, LogEvent};
use prefork_supervisor::{WorkerId, WorkerTag};

/// By the name of their kind.
pub(crate) type IsolatedPools = BTreeMap<&'static str, Desk>;

/// The longest that a caller can wait.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

impl PrimaryHandle<'_> {
    /// Somebody asks for a job.
    pub(crate) fn isolated_job(&mut self, name: &'static str, from: WorkerTag, message: &Message) {
        let Some(to) = message.reply_to() else { return };
        let Some((job, input)) = split::<Job>(message.bytes()) else { return };
        let until = Instant::now() + Duration::from_millis(job.limit_ms).min(LONGEST);
        let Some(desk) = self.primary.isolated_pools.get_mut(name) else { return };
        let order = desk.submit((from.id, job.token), to, until, input);
        self.primary.obey_desk(name, order);
    }

    /// Somebody waits no more.
    pub(crate) fn isolated_gone(&mut self, name: &'static str, from: WorkerTag, message: &Message) {
        if let Some((desk, token)) =
            self.primary.isolated_pools.get_mut(name).zip(message.decode().ok())
        {
            desk.gone(from.id, token);
        }
    }

    /// A worker says what came of a job.
    pub(crate) fn isolated_done(&mut self, name: &'static str, from: WorkerTag, message: &Message) {
        let Some((job, answer)) = split_done(message.bytes()) else { return };
        let Some(desk) = self.primary.isolated_pools.get_mut(name) else { return };
        let order = desk.done(from.id, job, answer);
        self.primary.obey_desk(name, order);
    }
}

impl Primary {
    /// Does what a desk orders, and gives out jobs that wait.
    fn obey_desk(&mut self, name: &'static str, orders: impl IntoIterator<Item = Order>) {
        for order in orders {
            self.obey_order(name, order);
        }
        let Some(desk) = self.isolated_pools.get_mut(name) else { return };
        let supervisor = &self.supervisor;
        for order in desk.assign(Instant::now(), &|id| supervisor.is_serving(id)) {
            self.obey_order(name, order);
        }
    }

    fn obey_order(&mut self, name: &'static str, order: Order) {
        match order {
            Order::Give { worker, job, input } => {
                // From now on its end says nothing about whether such workers come up.
                self.pending_events.push_back(Event::RiskyJobStarted { worker });
                if let Err(why) = self.give_job(worker, join(&job, &input)) {
                    let desk = self.isolated_pools.get_mut(name);
                    if let Some(order) = desk.and_then(|desk| desk.not_given(worker, why)) {
                        self.obey_order(name, order);
                    }
                }
            }
            // Who has no room for the answer hears nothing, which is what its deadline is for.
            Order::Tell { to, answer } => drop(self.messages.hub.reply(&to, Class::Reply, answer)),
            Order::Kill(worker) => {
                if let Some(child) = self.workers.get(&worker) {
                    self.event_log.job_overdue(child.tag);
                }
                self.signal(worker, Signal::SIGKILL);
            }
        }
    }

    fn give_job(&mut self, worker: WorkerId, payload: Bytes) -> Result<(), String> {
        let letter = letter(Place::Primary, DO, payload, Carried::Nothing);
        let letter = letter.map_err(|e| e.to_string())?;
        let supervisor = &self.supervisor;
        let sent =
            self.messages.hub.send(Place::Worker(worker), letter, &|id| supervisor.is_serving(id));
        sent.map(drop).map_err(|back| back.0.to_string())
    }

    /// Tells the desks of what concerns them.
    pub(super) fn tell_desks(&mut self, notice: &LogEvent) {
        let names: Vec<&'static str> = self.isolated_pools.keys().copied().collect();
        for name in names {
            let Some(desk) = self.isolated_pools.get_mut(name) else { continue };
            let orders: Vec<Order> = match notice {
                LogEvent::Ready { worker, .. } if worker.kind == name => {
                    desk.came(worker.id);
                    Vec::new()
                }
                LogEvent::Exited(exit) => {
                    let left = exit.cause == ExitCause::Drained && exit.status.success();
                    let signal = exit.status.signal();
                    let how = if left { Ended::Left } else { Ended::Died { signal } };
                    desk.ended(exit.worker.id, how).into_iter().collect()
                }
                LogEvent::Stopping { .. } | LogEvent::StoppingNow { .. } => desk.close(),
                _ => continue,
            };
            self.obey_desk(name, orders);
        }
    }

    /// How long until a job is overdue, if nothing happens before.
    pub(super) fn desks_pause(&self, now: Instant) -> Option<Duration> {
        let next = self.isolated_pools.values().filter_map(Desk::deadline).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Ends jobs that take too long.
    pub(super) fn tend_desks(&mut self) {
        let now = Instant::now();
        let names: Vec<&'static str> = self.isolated_pools.keys().copied().collect();
        for name in names {
            let due = |desk: &&mut Desk| desk.deadline().is_some_and(|at| at <= now);
            let orders =
                self.isolated_pools.get_mut(name).filter(due).map(|desk| desk.overdue(now));
            if let Some(orders) = orders {
                self.obey_desk(name, orders);
            }
        }
    }
}
