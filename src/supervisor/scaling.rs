//! More workers, or fewer.

use std::time::Instant;

use super::action::{Action, Cause, Notice};
use super::event::{Asker, Scale};
use super::{Place, Supervisor};
use crate::config::Workers;

impl Supervisor {
    pub(super) fn scale(
        &mut self,
        now: Instant,
        scale: Scale,
        by: Asker,
        actions: &mut Vec<Action>,
    ) {
        let from = self.policy.workers;
        let to = match scale {
            Scale::To(n) => n,
            Scale::Up(n) => from.saturating_add(n),
            Scale::Down(n) => from.saturating_sub(n),
        };
        let refusal = if self.stopping() {
            Some("the cluster is stopping".to_string())
        } else if self.roll.is_some() {
            Some("a reload is under way; ask again when it is done".to_string())
        } else if !(1..=Workers::MAX).contains(&to) {
            Some(format!("{to} workers are out of range: ask for 1 to {}", Workers::MAX))
        } else {
            None
        };
        if let Some(why) = refusal {
            if by.ticket.is_none() {
                let by = by.who.clone();
                actions.push(Action::Report(Notice::Refused { by, why: why.clone() }));
            }
            return by.refuse(why, actions);
        }
        self.resize(now, to, &by.who, actions);
        by.confirm(format!("{to} workers are wanted, {from} were"), actions);
    }

    /// From now on there are `to` slots. The workers of slots that are no more finish what they have open.
    pub(super) fn resize(&mut self, now: Instant, to: u32, by: &str, actions: &mut Vec<Action>) {
        let from = self.policy.workers;
        if to == from {
            return;
        }
        actions.push(Action::Report(Notice::Scaled { by: by.to_string(), from, to }));
        self.policy.workers = to;
        for slot in to as usize..self.places.len() {
            self.dismiss_holder(now, slot, actions);
            if let Some(successor) = self.places[slot].successor.take() {
                self.kill(successor, Cause::Superseded, actions);
            }
        }
        self.places.resize(to as usize, Place::new(self.generation));
    }
}
