//! Weights for `least-conn` without CAP_BPF: a classic BPF program chooses at random, and favours slots with fewer
//! connections. The primary attaches a new program when loads or health have changed, at most once a second. Pure.
//!
//! What the weights buy over the kernel's hash is recovery after clients have left. Measured in turns with 4 workers and
//! 200 kept connections, of which all on two workers close and 100 open anew, in 8 rounds: the busiest worker has 55 to 62
//! connections of about 200 instead of 71 to 80, the idlest 34 to 42 instead of 14 to 30. They do not spread steady arrivals
//! better (`cargo bench --bench dispatch -- balance`: 14/3 and 12/4 on 8 workers), nor help while a worker is stopped.

use crate::dispatch::bpf::classic::{NOBODY, RANDOM, choose, if_at_least, modulo, word};
use crate::dispatch::kernel_selector::{CAP, Load};
use prefork_os::bpf::ClassicBpfInstruction;

/// The weight of the least loaded slot.
const FULL: u64 = 1000;

/// A weight for each slot: 0 if it is not healthy, else the larger the fewer connections it has; a healthy one
/// has at least 1. Half the load is twice the weight.
pub(in crate::dispatch) fn weights(healthy: &[bool], loads: &[Load]) -> Vec<u32> {
    // What workers say is bounded before anything is computed with it.
    let load = |slot: usize| {
        let said = loads.get(slot).copied().unwrap_or_default();
        said.open.min(CAP) + said.waiting.min(CAP) + 1
    };
    let healthy_slots = || (0..healthy.len()).filter(|slot| healthy[*slot]);
    let least = healthy_slots().map(load).min().unwrap_or(1);
    let weight = |slot| (FULL * least / load(slot)).clamp(1, FULL) as u32;
    (0..healthy.len()).map(|slot| if healthy[slot] { weight(slot) } else { 0 }).collect()
}

/// Whether some slot's share would differ by more than an eighth, or from none to some: enough for a new program.
pub(in crate::dispatch) fn differ(old: &[u32], new: &[u32]) -> bool {
    let total = |weights: &[u32]| weights.iter().map(|w| u64::from(*w)).sum::<u64>();
    let (old_total, new_total) = (total(old), total(new));
    let shares = |(was, is): (&u32, &u32)| {
        if (*was == 0) != (*is == 0) {
            return true;
        }
        // Over the common denominator.
        let (was, is) = (u64::from(*was) * new_total, u64::from(*is) * old_total);
        was.abs_diff(is) * 8 > was
    };
    old.len() != new.len() || old.iter().zip(new).any(shares)
}

/// Chooses slot `i` with the odds `weights[i]`; leaves it to the hash if all are 0. Two instructions a slot: 1024
/// slots fit.
pub(in crate::dispatch) fn program(weights: &[u32]) -> Vec<ClassicBpfInstruction> {
    let mut program = vec![word(RANDOM), modulo(weights.iter().sum::<u32>().max(1))];
    let mut below = 0;
    for (slot, weight) in (0..).zip(weights).filter(|(_, weight)| **weight > 0) {
        below += weight;
        program.extend([if_at_least(below, 1, 0), choose(slot)]);
    }
    program.push(choose(NOBODY));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::bpf::classic::{LONGEST, run};

    fn open(open: u64) -> Load {
        Load { open, waiting: 0 }
    }

    #[test]
    fn fewer_connections_are_more_weight_and_bad_health_is_none() {
        let loads = [open(9), open(19), open(9), open(99)];
        let got = weights(&[true, true, false, true], &loads);
        assert_eq!(got, [1000, 500, 0, 100]);
        assert_eq!(weights(&[true; 3], &[]), [1000; 3]);
        assert_eq!(weights(&[false; 2], &loads), [0; 2]);
    }

    #[test]
    fn what_waits_counts_too() {
        let loads = [Load { open: 4, waiting: 5 }, open(4)];
        assert_eq!(weights(&[true; 2], &loads), [500, 1000]);
    }

    #[test]
    fn a_slot_that_says_nonsense_is_the_most_loaded() {
        let mad = Load { open: u64::MAX, waiting: u64::MAX };
        assert_eq!(weights(&[true; 2], &[open(0), mad]), [1000, 1]);
    }

    #[test]
    fn the_odds_are_the_weights() {
        let weights = [3, 0, 5, 2];
        let program = program(&weights);
        let mut got = [0; 4];
        (0..10).for_each(|random| got[run(&program, &[], random) as usize] += 1);
        assert_eq!(got, weights);
        // All chances that the kernel may draw lead to a slot.
        assert!([u32::MAX, 1 << 31, 10].iter().all(|r| run(&program, &[], *r) < 4));
        assert_eq!(run(&super::program(&[0, 0]), &[], 7), NOBODY);
    }

    #[test]
    fn all_slots_fit() {
        let most = crate::config::Workers::MAX as usize;
        assert!(program(&vec![1000; most]).len() <= LONGEST);
    }

    #[test]
    fn only_a_change_that_matters_is_a_change() {
        assert!(!differ(&[1000, 1000], &[1000, 1000]));
        assert!(!differ(&[1000, 1000], &[1000, 900]));
        assert!(differ(&[1000, 1000], &[1000, 500]));
        assert!(differ(&[1000, 1000], &[1000, 0]));
        assert!(differ(&[1, 0], &[1, 1]));
        assert!(differ(&[0, 0], &[1, 1]));
        assert!(differ(&[1, 1], &[0, 0]));
        assert!(differ(&[1000], &[1000, 1000]));
        assert!(!differ(&[0, 0], &[0, 0]));
    }
}
