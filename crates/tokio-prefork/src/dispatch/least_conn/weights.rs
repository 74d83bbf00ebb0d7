//! `least-conn` without the privilege for its eBPF program: selects by chance, weighted towards slots with fewer
//! connections.
//!
//! A classic BPF program draws a random number. The primary attaches a new one when loads or health have changed.

use std::io;

use super::MAX_SLOT_LOAD;
use crate::dispatch::bpf::classic::{
    NO_SOCKET, RANDOM_NUMBER_OFFSET, attach_to_groups, jump_if_at_least, load_word, modulo,
    return_socket,
};
use crate::dispatch::kernel_selector::{ReuseportGroup, SelectorBackend, SlotLoad};
use crate::error::{Error, Result};
use prefork_os::bpf::ClassicBpfInstruction;

/// The attached program for a weighted random choice.
pub(super) struct WeightedRandomProgram {
    /// The loads at the last refresh.
    loads: Vec<SlotLoad>,
    weights: Vec<u32>,
    program: Vec<ClassicBpfInstruction>,
}

impl WeightedRandomProgram {
    pub(super) fn attach(
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> io::Result<WeightedRandomProgram> {
        let weights = slot_weights(healthy, &[]);
        let program = assemble(&weights);
        attach_to_groups(groups, &program)?;
        Ok(WeightedRandomProgram { loads: Vec::new(), weights, program })
    }

    /// Attaches new weights, if they differ enough.
    fn update_weights(&mut self, healthy: &[bool], groups: &[ReuseportGroup<'_>]) -> Result<()> {
        let weights = slot_weights(healthy, &self.loads);
        if !weights_differ_noticeably(&self.weights, &weights) {
            return Ok(());
        }
        let program = assemble(&weights);
        attach_to_groups(groups, &program)
            .map_err(|e| Error::system("attach the new weights of least-conn", e))?;
        (self.weights, self.program) = (weights, program);
        Ok(())
    }
}

impl SelectorBackend for WeightedRandomProgram {
    fn name(&self) -> &'static str {
        "cbpf-weights"
    }

    fn set_slot_health(
        &mut self,
        _slot: usize,
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        self.update_weights(healthy, groups)
    }

    fn refresh(
        &mut self,
        loads: &[SlotLoad],
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        self.loads = loads.to_vec();
        self.update_weights(healthy, groups)
    }

    fn replace_groups(
        &mut self,
        _slots: usize,
        groups: &[ReuseportGroup<'_>],
    ) -> Result<(), String> {
        attach_to_groups(groups, &self.program).map_err(|e| e.to_string())
    }

    #[cfg(test)]
    fn program_listing(&self) -> Vec<String> {
        crate::dispatch::bpf::classic::disassemble(&self.program)
    }
}

/// The weight of the slot with the fewest connections.
const MAX_WEIGHT: u64 = 1000;

/// Returns a weight for each slot: 0 if it is not healthy, else at least 1. Half the load is twice the weight.
pub(in crate::dispatch) fn slot_weights(healthy: &[bool], loads: &[SlotLoad]) -> Vec<u32> {
    // What workers report is capped before anything is computed with it.
    let load = |slot: usize| {
        let reported = loads.get(slot).copied().unwrap_or_default();
        reported.open.min(MAX_SLOT_LOAD) + reported.queued.min(MAX_SLOT_LOAD) + 1
    };
    let healthy_slots = || (0..healthy.len()).filter(|slot| healthy[*slot]);
    let least = healthy_slots().map(load).min().unwrap_or(1);
    let weight = |slot| (MAX_WEIGHT * least / load(slot)).clamp(1, MAX_WEIGHT) as u32;
    (0..healthy.len()).map(|slot| if healthy[slot] { weight(slot) } else { 0 }).collect()
}

/// Whether the share of some slot changes by more than an eighth, or from or to zero: enough for a new program.
pub(in crate::dispatch) fn weights_differ_noticeably(old: &[u32], new: &[u32]) -> bool {
    let total = |weights: &[u32]| weights.iter().map(|w| u64::from(*w)).sum::<u64>();
    let (old_total, new_total) = (total(old), total(new));
    let shares = |(was, is): (&u32, &u32)| {
        if (*was == 0) != (*is == 0) {
            return true;
        }
        // The shares are compared over their common denominator.
        let (was, is) = (u64::from(*was) * new_total, u64::from(*is) * old_total);
        was.abs_diff(is) * 8 > was
    };
    old.len() != new.len() || old.iter().zip(new).any(shares)
}

/// Returns the program that selects slot `i` with probability `weights[i]` of their sum; if all are 0, the kernel's
/// hash selects. Two instructions per slot, so that 1024 slots fit.
pub(in crate::dispatch) fn assemble(weights: &[u32]) -> Vec<ClassicBpfInstruction> {
    let mut program =
        vec![load_word(RANDOM_NUMBER_OFFSET), modulo(weights.iter().sum::<u32>().max(1))];
    let mut below = 0;
    for (slot, weight) in (0..).zip(weights).filter(|(_, weight)| **weight > 0) {
        below += weight;
        program.extend([jump_if_at_least(below, 1, 0), return_socket(slot)]);
    }
    program.push(return_socket(NO_SOCKET));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::bpf::classic::{MAX_INSTRUCTIONS, interpret};

    fn load_of(open: u64) -> SlotLoad {
        SlotLoad { open, queued: 0 }
    }

    #[test]
    fn weights_grow_with_fewer_connections_and_are_zero_without_health() {
        let loads = [load_of(9), load_of(19), load_of(9), load_of(99)];
        let got = slot_weights(&[true, true, false, true], &loads);
        assert_eq!(got, [1000, 500, 0, 100]);
        assert_eq!(slot_weights(&[true; 3], &[]), [1000; 3]);
        assert_eq!(slot_weights(&[false; 2], &loads), [0; 2]);
    }

    #[test]
    fn queued_connections_count_as_load() {
        let loads = [SlotLoad { open: 4, queued: 5 }, load_of(4)];
        assert_eq!(slot_weights(&[true; 2], &loads), [500, 1000]);
    }

    #[test]
    fn an_implausible_load_gets_the_least_weight() {
        let implausible = SlotLoad { open: u64::MAX, queued: u64::MAX };
        assert_eq!(slot_weights(&[true; 2], &[load_of(0), implausible]), [1000, 1]);
    }

    #[test]
    fn slots_are_selected_in_proportion_to_their_weights() {
        let weights = [3, 0, 5, 2];
        let program = assemble(&weights);
        let mut got = [0; 4];
        (0..10).for_each(|random| got[interpret(&program, &[], random) as usize] += 1);
        assert_eq!(got, weights);
        // Every random number that the kernel may draw selects a slot.
        assert!([u32::MAX, 1 << 31, 10].iter().all(|r| interpret(&program, &[], *r) < 4));
        assert_eq!(interpret(&super::assemble(&[0, 0]), &[], 7), NO_SOCKET);
    }

    #[test]
    fn the_most_slots_fit_into_a_program() {
        let most = crate::config::WorkerCount::MAX as usize;
        assert!(assemble(&vec![1000; most]).len() <= MAX_INSTRUCTIONS);
    }

    #[test]
    fn small_changes_of_weights_are_ignored() {
        assert!(!weights_differ_noticeably(&[1000, 1000], &[1000, 1000]));
        assert!(!weights_differ_noticeably(&[1000, 1000], &[1000, 900]));
        assert!(weights_differ_noticeably(&[1000, 1000], &[1000, 500]));
        assert!(weights_differ_noticeably(&[1000, 1000], &[1000, 0]));
        assert!(weights_differ_noticeably(&[1, 0], &[1, 1]));
        assert!(weights_differ_noticeably(&[0, 0], &[1, 1]));
        assert!(weights_differ_noticeably(&[1, 1], &[0, 0]));
        assert!(weights_differ_noticeably(&[1000], &[1000, 1000]));
        assert!(!weights_differ_noticeably(&[0, 0], &[0, 0]));
    }
}
