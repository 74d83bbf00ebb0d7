//! `ip-hash`: the same client address comes to the same slot. Pure; the program is for the classic machine, which
//! anybody may use.
//!
//! Rendezvous hashing: each live slot has a score for the address, and the highest wins. So when a slot dies, its
//! clients move, each to its second best, and when it comes back they return; nobody else moves. A new slot takes
//! from all others the clients for whom it scores highest, and nothing else changes. What a score is depends on
//! nothing but address and slot number: it is the same after a restart, and for all listening addresses.
//!
//! The address is that of the packet: a client of version 4 is the same one on a socket for versions 4 and 6.
//! Addresses of version 6 count in full.

use std::net::IpAddr;

use super::bpf::classic::{
    LONGEST, NETWORK, NOBODY, byte, choose, choose_accumulator, if_above_index, if_equal, index,
    multiply, number, recall, shift_right, store, to_index, word, xor, xor_index,
};
use prefork_os::bpf::ClassicBpfInstruction;

/// Instructions besides those of the slots.
const FIXED: usize = 35;
/// Instructions for each slot.
const EACH: usize = 7;
/// So many live slots fit into a program. With more, the kernel's hash has to do.
pub(super) const MOST: usize = (LONGEST - FIXED) / EACH;

/// Where the source address is in the headers of version 4 and 6.
const SOURCE_4: u32 = NETWORK + 12;
const SOURCE_6: u32 = NETWORK + 8;

/// Folds the words of a long address.
const FOLD: u32 = 0x9e37_79b1;
/// The finish of MurmurHash3: addresses that differ little get keys that differ much.
const MIX: [u32; 2] = [0x85eb_ca6b, 0xc2b2_ae35];

/// Cells of the machine's memory.
const KEY: u32 = 0;
const BEST: u32 = 1;

/// The slot among `live` that a client at `address` comes to. This is what the program computes.
#[cfg_attr(not(test), expect(dead_code, reason = "says what the program does, and tests it"))]
pub(super) fn pick(address: IpAddr, live: &[u32]) -> Option<u32> {
    let address = match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let words = [96, 64, 32, 0].map(|shift| (v6.to_bits() >> shift) as u32);
            words.into_iter().reduce(|key, word| key.wrapping_mul(FOLD) ^ word)?
        }
    };
    let key = mix(address);
    let mut best = (0, *live.first()?);
    for &slot in live {
        let (salt, factor) = constants(slot);
        let score = (key ^ salt).wrapping_mul(factor);
        if score > best.0 {
            best = (score, slot);
        }
    }
    Some(best.1)
}

fn mix(mut key: u32) -> u32 {
    key = (key ^ key >> 16).wrapping_mul(MIX[0]);
    key = (key ^ key >> 13).wrapping_mul(MIX[1]);
    key ^ key >> 16
}

/// What makes the scores of a slot its own. An odd factor loses nothing of the key.
fn constants(slot: u32) -> (u32, u32) {
    let salt = slot.wrapping_mul(2).wrapping_add(1);
    (mix(salt), mix(salt.wrapping_add(0x5bd1_e995)) | 1)
}

/// The program for these slots; `None` if there are more than [`MOST`].
pub(super) fn program(live: &[u32]) -> Option<Vec<ClassicBpfInstruction>> {
    let Some(&first) = live.first() else { return Some(vec![choose(NOBODY)]) };
    if live.len() > MOST {
        return None;
    }
    let mut program = vec![byte(NETWORK), shift_right(4), if_equal(6, 0, 14)];
    program.push(word(SOURCE_6));
    for at in [4, 8, 12] {
        program.extend([multiply(FOLD), to_index(), word(SOURCE_6 + at), xor_index()]);
    }
    // Both ways lead over the next instruction, which is for version 4 only.
    program.extend([if_equal(0, 1, 1), word(SOURCE_4)]);
    for (shift, factor) in [(16, Some(MIX[0])), (13, Some(MIX[1])), (16, None)] {
        program.extend([to_index(), shift_right(shift), xor_index()]);
        program.extend(factor.map(multiply));
    }
    program.extend([store(KEY), number(first), store(BEST), index(0)]);
    for &slot in live {
        let (salt, factor) = constants(slot);
        // X is the best score so far.
        program.extend([recall(KEY), xor(salt), multiply(factor), if_above_index(0, 3)]);
        program.extend([to_index(), number(slot), store(BEST)]);
    }
    program.extend([recall(BEST), choose_accumulator()]);
    Some(program)
}

#[cfg(test)]
mod tests {
    use super::super::bpf::classic::run;
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The header of a packet from `address`, as far as the program looks.
    fn header(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => [&[0x45][..], &[0xee; 11], &v4.octets(), &[0xee; 4]].concat(),
            IpAddr::V6(v6) => [&[0x60][..], &[0xee; 7], &v6.octets(), &[0xee; 16]].concat(),
        }
    }

    fn chosen(address: IpAddr, live: &[u32]) -> u32 {
        run(&program(live).expect("it fits"), &header(address), 0)
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        ]
    }

    proptest! {
        #[test]
        fn the_program_does_what_the_function_says(
            address in address(),
            live in proptest::collection::btree_set(0_u32..1024, 1..40),
        ) {
            let live: Vec<u32> = live.into_iter().collect();
            prop_assert_eq!(Some(chosen(address, &live)), pick(address, &live));
        }

        #[test]
        fn a_dead_slot_moves_its_own_clients_only(
            address in address(),
            live in proptest::collection::btree_set(0_u32..1024, 2..40),
            dead in any::<proptest::sample::Index>(),
        ) {
            let live: Vec<u32> = live.into_iter().collect();
            let dead = *dead.get(&live);
            let rest: Vec<u32> = live.iter().copied().filter(|slot| *slot != dead).collect();
            let (before, after) = (chosen(address, &live), chosen(address, &rest));
            prop_assert_ne!(after, dead);
            // Read the other way round: a slot that is new, or back, takes clients and moves no others.
            prop_assert!(before == dead || before == after, "{} to {}", before, after);
        }
    }

    #[test]
    fn clients_are_spread_evenly() {
        for count in [2_u32, 3, 4, 8, 64] {
            let live: Vec<u32> = (0..count).collect();
            let program = program(&live).expect("it fits");
            let mut got = vec![0_u32; count as usize];
            let clients = 1000 * count;
            for n in 0..clients {
                // Neighbours in few networks, as clients are.
                let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
                got[run(&program, &header(address.into()), 0) as usize] += 1;
            }
            // Five standard deviations of a fair choice.
            let off = got.iter().map(|n| n.abs_diff(1000)).max();
            assert!(off <= Some(160), "{count} slots: {got:?}");
        }
    }

    #[test]
    fn a_dead_slots_clients_are_spread_over_all_others() {
        let (live, rest) = ([0, 1, 2, 3], [0, 1, 3]);
        let mut moved = [0_u32; 4];
        for n in 0..12_000 {
            let address = IpAddr::from(Ipv4Addr::from_bits(0xc0a8_0000 + n));
            if pick(address, &live) == Some(2) {
                moved[pick(address, &rest).expect("a slot") as usize] += 1;
            }
        }
        assert!([0, 1, 3].iter().all(|slot| moved[*slot] > 800), "{moved:?}");
    }

    #[test]
    fn a_mapped_address_is_the_client_of_version_4() {
        let (v4, live) = (Ipv4Addr::new(192, 0, 2, 7), [0, 1, 2, 3, 4]);
        let mapped = IpAddr::V6(v4.to_ipv6_mapped());
        assert_eq!(pick(mapped, &live), pick(v4.into(), &live));
    }

    #[test]
    fn a_program_has_its_bounds() {
        let most: Vec<u32> = (0..MOST as u32).collect();
        let length = program(&most).expect("it fits").len();
        assert_eq!((MOST, length), (580, FIXED + EACH * MOST));
        assert!(program(&(0..=MOST as u32).collect::<Vec<_>>()).is_none());
        // Nobody lives: no slot is chosen.
        assert_eq!(run(&program(&[]).expect("it fits"), &[], 0), NOBODY);
    }
}
