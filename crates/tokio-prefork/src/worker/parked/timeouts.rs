//! The timeouts of parked connections: the same as those of connections with a task.

use std::io;
use std::num::NonZeroU64;
use std::rc::Rc;

use tokio::task::yield_now;

use super::{BATCH, ParkedConnection, ParkedConnections, ParkedSlab, ParkedToken, wake};
use crate::dispatch::first_byte;
use crate::worker::http::timeouts::ConnectionTimeouts;
use crate::worker::local_state::LocalWorkerState;

/// How many places are looked at before other tasks run.
const SCAN_BATCH: usize = 1024;

impl ParkedConnections {
    /// Closes the connections that exceed a timeout. Called at each heartbeat; a task closes them in batches. Returns how many open ones
    /// were closed because the drain deadline has passed, which happens at once.
    pub(crate) fn enforce_timeouts(
        &self,
        state: &Rc<LocalWorkerState>,
        now_ms: u64,
        limits: &ConnectionTimeouts,
    ) -> usize {
        if self.slab.borrow().len() == 0 {
            return 0;
        }
        if limits.has_deadline_passed(now_ms) {
            return self.close_all(state);
        }
        let shortest = limits.shortest_parked_ms(self.closed.get() > 0);
        let may_be_due = now_ms.saturating_sub(self.oldest_ms.get()) >= shortest;
        if may_be_due && !self.is_closing.replace(true) {
            tokio::task::spawn_local(close_expired(Rc::clone(state)));
        }
        0
    }

    /// Closes all connections, and returns how many of them were open.
    fn close_all(&self, state: &LocalWorkerState) -> usize {
        let tokens: Vec<(ParkedToken, bool)> = {
            let slab = self.slab.borrow();
            let places = (0..slab.places()).filter_map(|index| slab.at(index));
            places.map(|(token, parked)| (token, parked.closed_ms.is_none())).collect()
        };
        tokens.iter().for_each(|(token, _)| wake::close(state, *token));
        tokens.iter().filter(|(_, is_open)| *is_open).count()
    }
}

/// Closes all connections that exceed a timeout, in batches.
async fn close_expired(state: Rc<LocalWorkerState>) {
    let (mut index, mut handled) = (0, 0);
    loop {
        let now = state.now_ms();
        let limits = ConnectionTimeouts::new(&state.config, state.drain.current_order(), now);
        if index >= state.parked.slab.borrow().places() {
            break;
        }
        let expired = expired_at(&state.parked.slab.borrow(), index, &limits, now);
        if let Some((token, is_closed)) = expired {
            match is_closed {
                true => wake::close(&state, token),
                false => begin_close(&state, token, now),
            }
            handled += 1;
        }
        index += 1;
        if index % SCAN_BATCH == 0 || handled == BATCH {
            handled = 0;
            yield_now().await;
        }
    }
    let oldest = state.parked.slab.borrow().iter().map(|parked| parked.since_ms).min();
    state.parked.oldest_ms.set(oldest.unwrap_or(u64::MAX));
    state.parked.is_closing.set(false);
}

/// Returns the connection at a place if it exceeds a timeout, and whether the worker has closed its side already.
fn expired_at(
    slab: &ParkedSlab,
    index: usize,
    limits: &ConnectionTimeouts,
    now_ms: u64,
) -> Option<(ParkedToken, bool)> {
    let (token, parked) = slab.at(index)?;
    limits.has_parked_expired(parked, now_ms).then(|| (token, parked.closed_ms.is_some()))
}

/// Closes the worker's side of an idle connection, unless a request has arrived meanwhile. The connection stays parked until the client
/// has closed its side, because an early reset could destroy the last response.
fn begin_close(state: &Rc<LocalWorkerState>, token: ParkedToken, now_ms: u64) {
    let first = match state.parked.slab.borrow_mut().get_mut(token) {
        Some(parked) => first_byte::read_first_bytes(&parked.fd),
        None => return,
    };
    match first {
        Ok(first) if !first.is_empty() => return wake::resume(state, token, first),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Ok(_) | Err(_) => return wake::close(state, token),
    }
    let is_shut_down = match state.parked.slab.borrow_mut().get_mut(token) {
        Some(parked) => {
            parked.closed_ms = Some(NonZeroU64::MIN.saturating_add(now_ms));
            parked.since_ms = now_ms;
            state.parked.closed.set(state.parked.closed.get() + 1);
            prefork_os::socket::shutdown_write(&parked.fd).is_ok()
        }
        None => return,
    };
    if !is_shut_down {
        wake::close(state, token);
    }
}

impl ConnectionTimeouts {
    /// Whether a parked connection exceeds its timeout.
    fn has_parked_expired(&self, parked: &ParkedConnection, now_ms: u64) -> bool {
        let age = now_ms.saturating_sub(parked.since_ms);
        match parked.closed_ms {
            Some(_) => age >= self.linger_ms(),
            None => age >= self.idle_timeout_ms(!parked.is_pinned),
        }
    }

    /// Returns the shortest timeout that a parked connection can have, `has_closed` if some are closed by the worker.
    fn shortest_parked_ms(&self, has_closed: bool) -> u64 {
        let idle_ms = self.idle_timeout_ms(true).min(self.idle_timeout_ms(false));
        if has_closed { idle_ms.min(self.linger_ms()) } else { idle_ms }
    }
}
