//! `ip-hash`: the kernel selects the slot by the client's address, so that a client always reaches the same one.
//!
//! A classic BPF program, which needs no privilege, does rendezvous hashing: each healthy slot has a score for the
//! address, and the highest score wins. When a slot dies, each of its clients moves to the slot with the second highest
//! score, and moves back when the slot returns; no other client moves. A new slot takes the clients for whom it scores
//! highest. Scores depend on nothing but address and slot number: they are the same after a restart, and on all
//! listening addresses.
//!
//! The address is that of the packet, so an IPv4 client is the same on a dual-stack socket. IPv6 addresses count in
//! full.

use std::net::IpAddr;

use super::bpf::classic::{
    MAX_INSTRUCTIONS, NETWORK_HEADER_OFFSET, NO_SOCKET, attach_to_groups, copy_to_index,
    jump_if_above_index, jump_if_equal, load_byte, load_immediate, load_index, load_memory,
    load_word, multiply, return_accumulator, return_socket, shift_right, store_memory, xor,
    xor_index,
};
use super::kernel_selector::{ReuseportGroup, SelectorBackend, SlotLoad};
use super::reuseport::KernelHash;
use crate::error::{Error, Result};
use prefork_os::bpf::ClassicBpfInstruction;

/// Attaches the program, or falls back to the kernel's hash and records why.
pub(super) fn start(
    healthy: &[bool],
    groups: &[ReuseportGroup<'_>],
    refusals: &mut Vec<String>,
) -> Box<dyn SelectorBackend> {
    match IpHashProgram::attach(healthy, groups) {
        Ok(program) => Box::new(program),
        Err(e) => {
            refusals.push(format!("cannot choose by the client's address: {e}"));
            Box::new(KernelHash)
        }
    }
}

/// The attached classic BPF program.
pub(super) struct IpHashProgram {
    healthy_slots: Vec<u32>,
    program: Vec<ClassicBpfInstruction>,
    /// The reason why the kernel's hash selects instead of the program.
    fallback_reason: Option<String>,
}

impl IpHashProgram {
    pub(super) fn attach(healthy: &[bool], groups: &[ReuseportGroup<'_>]) -> Result<IpHashProgram> {
        // Attached even without slots, as this shows whether the kernel accepts such a program.
        let program = assemble(&[]).unwrap_or_default();
        attach_to_groups(groups, &program)
            .map_err(|e| Error::system("attach the program of ip-hash", e))?;
        let mut attached =
            IpHashProgram { healthy_slots: Vec::new(), program, fallback_reason: None };
        attached.update_slots(healthy, groups)?;
        Ok(attached)
    }

    /// Attaches a program for the healthy slots. If they are too many for one program, the kernel's hash selects.
    pub(super) fn update_slots(
        &mut self,
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        let healthy_slots: Vec<u32> =
            (0..).zip(healthy).filter(|(_, healthy)| **healthy).map(|(slot, _)| slot).collect();
        let (program, fallback_reason) = match assemble(&healthy_slots) {
            Some(program) => (program, None),
            None => {
                let why = format!("{} slots are more than {MAX_SLOTS}", healthy_slots.len());
                (assemble(&[]).unwrap_or_default(), Some(why))
            }
        };
        if healthy_slots != self.healthy_slots {
            attach_to_groups(groups, &program).map_err(|e| {
                Error::system("attach the program of ip-hash (see net.core.optmem_max)", e)
            })?;
            (self.healthy_slots, self.program) = (healthy_slots, program);
        }
        self.fallback_reason = fallback_reason;
        Ok(())
    }
}

impl SelectorBackend for IpHashProgram {
    fn name(&self) -> &'static str {
        "ip-hash"
    }

    fn set_slot_health(
        &mut self,
        _slot: usize,
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        self.update_slots(healthy, groups)
    }

    /// Retries an attach that failed before.
    fn refresh(
        &mut self,
        _loads: &[SlotLoad],
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        self.update_slots(healthy, groups)
    }

    fn replace_groups(
        &mut self,
        _slots: usize,
        groups: &[ReuseportGroup<'_>],
    ) -> Result<(), String> {
        attach_to_groups(groups, &self.program).map_err(|e| e.to_string())
    }

    fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    #[cfg(test)]
    fn program_listing(&self) -> Vec<String> {
        super::bpf::classic::disassemble(&self.program)
    }
}

/// Instructions that do not depend on the number of slots.
const FIXED_INSTRUCTIONS: usize = 35;
/// Instructions per slot.
const INSTRUCTIONS_PER_SLOT: usize = 7;
/// Maximum number of healthy slots in a program. With more, the kernel's hash selects.
pub(super) const MAX_SLOTS: usize = (MAX_INSTRUCTIONS - FIXED_INSTRUCTIONS) / INSTRUCTIONS_PER_SLOT;

/// Offsets of the source address in the headers of IPv4 and IPv6.
const IPV4_SOURCE_OFFSET: u32 = NETWORK_HEADER_OFFSET + 12;
const IPV6_SOURCE_OFFSET: u32 = NETWORK_HEADER_OFFSET + 8;

/// Multiplier that combines the four words of an IPv6 address.
const IPV6_FOLD_MULTIPLIER: u32 = 0x9e37_79b1;
/// Multipliers of the finalizer of MurmurHash3, which spreads similar addresses.
const MIX_MULTIPLIERS: [u32; 2] = [0x85eb_ca6b, 0xc2b2_ae35];

/// Memory words of the program.
const HASH_KEY_WORD: u32 = 0;
const BEST_SOCKET_WORD: u32 = 1;

/// Returns the slot among `healthy` for a client at `address`: what the program computes.
#[cfg_attr(not(test), expect(dead_code, reason = "documents and tests what the program computes"))]
pub(super) fn select_slot(address: IpAddr, healthy: &[u32]) -> Option<u32> {
    let address = match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let words = [96, 64, 32, 0].map(|shift| (v6.to_bits() >> shift) as u32);
            words.into_iter().reduce(|key, word| key.wrapping_mul(IPV6_FOLD_MULTIPLIER) ^ word)?
        }
    };
    let key = mix_hash(address);
    let mut best = (0, *healthy.first()?);
    for &slot in healthy {
        let (salt, factor) = score_parameters(slot);
        let score = (key ^ salt).wrapping_mul(factor);
        if score > best.0 {
            best = (score, slot);
        }
    }
    Some(best.1)
}

fn mix_hash(mut key: u32) -> u32 {
    key = (key ^ key >> 16).wrapping_mul(MIX_MULTIPLIERS[0]);
    key = (key ^ key >> 13).wrapping_mul(MIX_MULTIPLIERS[1]);
    key ^ key >> 16
}

/// Returns the salt and the factor of the scores of a slot. An odd factor loses no bit of the key.
fn score_parameters(slot: u32) -> (u32, u32) {
    let salt = slot.wrapping_mul(2).wrapping_add(1);
    (mix_hash(salt), mix_hash(salt.wrapping_add(0x5bd1_e995)) | 1)
}

/// Returns the program for these slots; `None` if there are more than [`MAX_SLOTS`].
pub(super) fn assemble(healthy: &[u32]) -> Option<Vec<ClassicBpfInstruction>> {
    let own_sockets: Vec<(u32, u32)> = healthy.iter().map(|slot| (*slot, *slot)).collect();
    assemble_for_sockets(&own_sockets)
}

/// Returns the program for these slots, each with the number of the socket that its clients reach.
pub(super) fn assemble_for_sockets(
    slots_and_sockets: &[(u32, u32)],
) -> Option<Vec<ClassicBpfInstruction>> {
    let Some(&(_, first)) = slots_and_sockets.first() else {
        return Some(vec![return_socket(NO_SOCKET)]);
    };
    if slots_and_sockets.len() > MAX_SLOTS {
        return None;
    }
    let mut program =
        vec![load_byte(NETWORK_HEADER_OFFSET), shift_right(4), jump_if_equal(6, 0, 14)];
    program.push(load_word(IPV6_SOURCE_OFFSET));
    for at in [4, 8, 12] {
        program.extend([
            multiply(IPV6_FOLD_MULTIPLIER),
            copy_to_index(),
            load_word(IPV6_SOURCE_OFFSET + at),
            xor_index(),
        ]);
    }
    // Skips the next instruction, which is for IPv4, on both branches.
    program.extend([jump_if_equal(0, 1, 1), load_word(IPV4_SOURCE_OFFSET)]);
    for (shift, factor) in
        [(16, Some(MIX_MULTIPLIERS[0])), (13, Some(MIX_MULTIPLIERS[1])), (16, None)]
    {
        program.extend([copy_to_index(), shift_right(shift), xor_index()]);
        program.extend(factor.map(multiply));
    }
    program.extend([
        store_memory(HASH_KEY_WORD),
        load_immediate(first),
        store_memory(BEST_SOCKET_WORD),
        load_index(0),
    ]);
    for &(slot, socket) in slots_and_sockets {
        let (salt, factor) = score_parameters(slot);
        // X is the best score so far.
        program.extend([
            load_memory(HASH_KEY_WORD),
            xor(salt),
            multiply(factor),
            jump_if_above_index(0, 3),
        ]);
        program.extend([copy_to_index(), load_immediate(socket), store_memory(BEST_SOCKET_WORD)]);
    }
    program.extend([load_memory(BEST_SOCKET_WORD), return_accumulator()]);
    Some(program)
}

#[cfg(test)]
mod tests {
    use super::super::bpf::classic::interpret;
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// Returns the header of a packet from `address`, as far as the program reads it.
    fn header(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => [&[0x45][..], &[0xee; 11], &v4.octets(), &[0xee; 4]].concat(),
            IpAddr::V6(v6) => [&[0x60][..], &[0xee; 7], &v6.octets(), &[0xee; 16]].concat(),
        }
    }

    fn program_result(address: IpAddr, healthy: &[u32]) -> u32 {
        interpret(&assemble(healthy).expect("it fits"), &header(address), 0)
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        ]
    }

    proptest! {
        #[test]
        fn the_program_computes_the_same_slot_as_the_function(
            address in address(),
            healthy in proptest::collection::btree_set(0_u32..1024, 1..40),
        ) {
            let healthy: Vec<u32> = healthy.into_iter().collect();
            prop_assert_eq!(Some(program_result(address, &healthy)), select_slot(address, &healthy));
        }

        #[test]
        fn only_the_clients_of_a_dead_slot_move(
            address in address(),
            healthy in proptest::collection::btree_set(0_u32..1024, 2..40),
            dead in any::<proptest::sample::Index>(),
        ) {
            let healthy: Vec<u32> = healthy.into_iter().collect();
            let dead = *dead.get(&healthy);
            let rest: Vec<u32> = healthy.iter().copied().filter(|slot| *slot != dead).collect();
            let (before, after) = (program_result(address, &healthy), program_result(address, &rest));
            prop_assert_ne!(after, dead);
            // In reverse: a slot that is added takes clients for itself and moves no others.
            prop_assert!(before == dead || before == after, "{} to {}", before, after);
        }
    }

    #[test]
    fn clients_are_spread_evenly_over_the_slots() {
        for count in [2_u32, 3, 4, 8, 64] {
            let healthy: Vec<u32> = (0..count).collect();
            let program = assemble(&healthy).expect("it fits");
            let mut got = vec![0_u32; count as usize];
            let clients = 1000 * count;
            for n in 0..clients {
                // Neighbouring addresses in few networks, as those of real clients.
                let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
                got[interpret(&program, &header(address.into()), 0) as usize] += 1;
            }
            // The tolerance is five standard deviations of a fair choice.
            let off = got.iter().map(|n| n.abs_diff(1000)).max();
            assert!(off <= Some(160), "{count} slots: {got:?}");
        }
    }

    #[test]
    fn clients_of_a_dead_slot_are_spread_over_all_others() {
        let (healthy, rest) = ([0, 1, 2, 3], [0, 1, 3]);
        let mut moved = [0_u32; 4];
        for n in 0..12_000 {
            let address = IpAddr::from(Ipv4Addr::from_bits(0xc0a8_0000 + n));
            if select_slot(address, &healthy) == Some(2) {
                moved[select_slot(address, &rest).expect("a slot") as usize] += 1;
            }
        }
        assert!([0, 1, 3].iter().all(|slot| moved[*slot] > 800), "{moved:?}");
    }

    #[test]
    fn an_ipv4_mapped_address_is_the_same_client() {
        let (v4, healthy) = (Ipv4Addr::new(192, 0, 2, 7), [0, 1, 2, 3, 4]);
        let mapped = IpAddr::V6(v4.to_ipv6_mapped());
        assert_eq!(select_slot(mapped, &healthy), select_slot(v4.into(), &healthy));
    }

    #[test]
    fn more_than_580_slots_do_not_fit_into_a_program() {
        let most: Vec<u32> = (0..MAX_SLOTS as u32).collect();
        let length = assemble(&most).expect("it fits").len();
        assert_eq!(
            (MAX_SLOTS, length),
            (580, FIXED_INSTRUCTIONS + INSTRUCTIONS_PER_SLOT * MAX_SLOTS)
        );
        assert!(assemble(&(0..=MAX_SLOTS as u32).collect::<Vec<_>>()).is_none());
        // Without a healthy slot none is selected.
        assert_eq!(interpret(&assemble(&[]).expect("it fits"), &[], 0), NO_SOCKET);
    }
}
