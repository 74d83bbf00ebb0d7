//! The eBPF program of `least-conn`: selects the healthy slot with the fewest connections. Pure.
//!
//! Written for the verifiers of Linux 5.10 and newer.
//!
//! ```text
//! slot table: entry 1 + slot                 page bank: one value for 32 slots, two pages per slot
//!   entry 0: connections the hash selected     page (slot * 2 + active page):
//!   entry 1: slot 0: healthy, active page,       0  open connections, as its worker reports
//!            selected, table index               8  connections it has accepted
//! ```
//!
//! The load of a slot is its open connections plus those selected and not yet accepted. The first is capped; the second
//! is capped on both sides, and an impossible value counts as the heaviest load. Among equals a random number decides,
//! drawn anew for each slot. Only a SYN counts as selected.
//!
//! Two constraints of the verifier shape the code. It walks through a loop iteration by iteration and remembers the
//! states it has seen at each instruction. As long as it knows no exact value of what was selected so far, all paths
//! through an iteration meet again at its end, and 1024 slots cost 1024 times one iteration. So the table index is read
//! from the slot table, not taken from the loop counter, whose value it knows. And only constants are added to
//! pointers: without CAP_PERFMON the paths would not meet after any other addition, and six slots would be too many.
//! Hence the map lookups.

use super::MAX_SLOT_LOAD;
use crate::dispatch::bpf::ebpf::{
    Assembler, Condition, GET_PRANDOM_U32, Label, MAP_LOOKUP_ELEM, Operation, Register,
    SK_SELECT_REUSEPORT,
};
use prefork_os::bpf::EbpfInstruction;
use prefork_os::shared_memory::SHARED_PAGE_BYTES;

/// Slots per page bank.
pub(in crate::dispatch) const BANK_SLOTS: usize = 32;
/// Pages of a slot: one for the worker that accepts, one for its successor or predecessor.
pub(super) const PAGES_PER_SLOT: usize = 2;
/// Pages per bank, two slots more than it needs. The loop's pointer runs that far ahead when the processor speculates
/// that there is one more iteration; without CAP_PERFMON the verifier wants that access within bounds, too.
pub(in crate::dispatch) const BANK_PAGES: usize = (BANK_SLOTS + 2) * PAGES_PER_SLOT;
/// Maximum number of slots.
pub(super) const MAX_SLOTS: usize = 1024;
/// Entries of the slot table and of a socket map: entry 0, which no slot has, and one per slot.
pub(super) const SLOT_TABLE_ENTRIES: usize = 1 + MAX_SLOTS;

/// 64-bit words of a slot table entry, and their positions.
pub(super) const SLOT_ENTRY_WORDS: usize = 4;
pub(super) const HEALTHY_WORD: usize = 0;
pub(super) const ACTIVE_PAGE_WORD: usize = 1;
pub(super) const SELECTED_COUNT_WORD: usize = 2;
pub(super) const TABLE_INDEX_WORD: usize = 3;
/// Positions of the 64-bit words of a load page.
pub(super) const OPEN_COUNT_WORD: usize = 0;
pub(super) const ACCEPTED_COUNT_WORD: usize = 1;

/// The return value that delivers the packet (`SK_PASS`).
const SK_PASS: i32 = 1;
/// The words of `struct sk_reuseport_md` that point to the packet.
const PACKET_DATA_WORD: usize = 0;
const PACKET_DATA_END_WORD: usize = 1;
/// The byte of the TCP header that holds the flags.
const TCP_FLAGS_OFFSET: i16 = 13;
const TCP_SYN: i32 = 0x02;
const TCP_ACK: i32 = 0x10;

/// The maps that the program reads, by descriptor.
pub(in crate::dispatch) struct ProgramMaps<'a> {
    pub(in crate::dispatch) slot_table: i32,
    pub(in crate::dispatch) page_banks: &'a [i32],
    /// The sockets of the group, by table index.
    pub(in crate::dispatch) sockets: i32,
}

/// Returns the entry of a slot in the slot table and in the socket maps.
pub(super) fn slot_table_index(slot: usize) -> usize {
    1 + slot
}

// Calls overwrite R0 to R5 and preserve R6 to R9.
const ENTRY_REG: Register = Register(0);
const LOAD_REG: Register = Register(1);
const TABLE_INDEX_REG: Register = Register(2);
const PAGE_REG: Register = Register(3);
const SCRATCH_REG: Register = Register(4);
const OPEN_REG: Register = Register(5);
const COUNTER_REG: Register = Register(6);
const PAGES_REG: Register = Register(7);
const BEST_RANK_REG: Register = Register(8);
const RANDOM_REG: Register = Register(9);
const STACK_REG: Register = Register(10);
/// Stack offsets of the context, of the table index of the current slot, and of the best slot so far.
const CONTEXT_OFFSET: i16 = -8;
const CURRENT_INDEX_OFFSET: i16 = -12;
const BEST_INDEX_OFFSET: i16 = -16;

/// Returns the offset of a 64-bit word in bytes.
const fn word_offset(words: usize) -> i16 {
    (words * 8) as i16
}

/// Returns the program for `slots` slots, `None` if they are more than the banks hold.
pub(in crate::dispatch) fn assemble(
    slots: usize,
    maps: &ProgramMaps<'_>,
) -> Option<Vec<EbpfInstruction>> {
    let mut a = Assembler::default();
    a.store64(STACK_REG, CONTEXT_OFFSET, Register(1));
    a.call(GET_PRANDOM_U32);
    a.register64(Operation::Move, RANDOM_REG, Register(0));
    // Worse than any slot; and an index without a socket.
    a.immediate64(Operation::Move, BEST_RANK_REG, -1);
    a.immediate64(Operation::Move, SCRATCH_REG, 0);
    a.store32(STACK_REG, BEST_INDEX_OFFSET, SCRATCH_REG);
    let mut first = 0;
    for bank in maps.page_banks {
        let count = (slots - first).min(BANK_SLOTS);
        if count == 0 {
            break;
        }
        a.load_map_value(PAGES_REG, *bank, 0);
        scan_slots(&mut a, maps, slot_table_index(first), count);
        first += count;
    }
    select_best(&mut a, maps);
    if first < slots || slots > MAX_SLOTS { None } else { a.finish() }
}

/// Sets `ENTRY_REG` to the slot table entry whose index is on the stack; jumps to `missing` if there is none.
fn look_up_entry(a: &mut Assembler, maps: &ProgramMaps<'_>, index_offset: i16, missing: Label) {
    a.load_map(Register(1), maps.slot_table);
    a.register64(Operation::Move, Register(2), STACK_REG);
    a.immediate64(Operation::Add, Register(2), i32::from(index_offset));
    a.call(MAP_LOOKUP_ELEM);
    a.jump_if(ENTRY_REG, Condition::Equal, 0, missing);
}

/// Compares `count` slots with the best one so far.
fn scan_slots(a: &mut Assembler, maps: &ProgramMaps<'_>, first: usize, count: usize) {
    let (iteration, next, page_chosen) = (a.new_label(), a.new_label(), a.new_label());
    let (capped, not_negative, open_capped) = (a.new_label(), a.new_label(), a.new_label());
    let max = MAX_SLOT_LOAD as i32;
    a.immediate64(Operation::Move, COUNTER_REG, first as i32);
    a.bind(iteration);
    a.store32(STACK_REG, CURRENT_INDEX_OFFSET, COUNTER_REG);
    look_up_entry(a, maps, CURRENT_INDEX_OFFSET, next);
    a.load64(SCRATCH_REG, ENTRY_REG, word_offset(HEALTHY_WORD));
    a.jump_if(SCRATCH_REG, Condition::Equal, 0, next);
    a.register64(Operation::Move, PAGE_REG, PAGES_REG);
    a.load64(SCRATCH_REG, ENTRY_REG, word_offset(ACTIVE_PAGE_WORD));
    a.jump_if(SCRATCH_REG, Condition::Equal, 0, page_chosen);
    a.immediate64(Operation::Add, PAGE_REG, SHARED_PAGE_BYTES as i32);
    a.bind(page_chosen);
    a.load64(LOAD_REG, ENTRY_REG, word_offset(SELECTED_COUNT_WORD));
    a.load64(TABLE_INDEX_REG, ENTRY_REG, word_offset(TABLE_INDEX_WORD));
    a.load64(SCRATCH_REG, PAGE_REG, word_offset(ACCEPTED_COUNT_WORD));
    a.load64(OPEN_REG, PAGE_REG, word_offset(OPEN_COUNT_WORD));
    // Selected and not accepted: -max to +max if plausible, else +max. Below 0 counts as 0.
    a.register64(Operation::Sub, LOAD_REG, SCRATCH_REG);
    a.immediate64(Operation::Add, LOAD_REG, max);
    a.jump_if(LOAD_REG, Condition::AtMost, 2 * max, capped);
    a.immediate64(Operation::Move, LOAD_REG, 2 * max);
    a.bind(capped);
    a.immediate64(Operation::Sub, LOAD_REG, max);
    a.jump_if(LOAD_REG, Condition::SignedAtLeast, 0, not_negative);
    a.immediate64(Operation::Move, LOAD_REG, 0);
    a.bind(not_negative);
    a.jump_if(OPEN_REG, Condition::AtMost, max, open_capped);
    a.immediate64(Operation::Move, OPEN_REG, max);
    a.bind(open_capped);
    // The load in the upper half, a random number in the lower.
    a.register64(Operation::Add, LOAD_REG, OPEN_REG);
    a.immediate64(Operation::Shl, LOAD_REG, 32);
    a.immediate32(Operation::Mul, RANDOM_REG, 1_664_525);
    a.immediate32(Operation::Add, RANDOM_REG, 1_013_904_223);
    a.register64(Operation::Or, LOAD_REG, RANDOM_REG);
    a.jump_if_register(LOAD_REG, Condition::AtLeast, BEST_RANK_REG, next);
    a.register64(Operation::Move, BEST_RANK_REG, LOAD_REG);
    a.store32(STACK_REG, BEST_INDEX_OFFSET, TABLE_INDEX_REG);
    a.bind(next);
    a.immediate64(Operation::Add, PAGES_REG, (PAGES_PER_SLOT * SHARED_PAGE_BYTES) as i32);
    a.immediate64(Operation::Add, COUNTER_REG, 1);
    a.jump_if(COUNTER_REG, Condition::Below, (first + count) as i32, iteration);
}

/// Selects the socket of the best slot and counts that; without one, the kernel's hash selects, which is counted in
/// entry 0.
fn select_best(a: &mut Assembler, maps: &ProgramMaps<'_>) {
    let (count, end) = (a.new_label(), a.new_label());
    a.load64(Register(1), STACK_REG, CONTEXT_OFFSET);
    a.load_map(Register(2), maps.sockets);
    a.register64(Operation::Move, Register(3), STACK_REG);
    a.immediate64(Operation::Add, Register(3), i32::from(BEST_INDEX_OFFSET));
    a.immediate64(Operation::Move, Register(4), 0);
    a.call(SK_SELECT_REUSEPORT);
    a.jump_if(Register(0), Condition::Equal, 0, count);
    a.immediate64(Operation::Move, SCRATCH_REG, 0);
    a.store32(STACK_REG, BEST_INDEX_OFFSET, SCRATCH_REG);
    a.bind(count);
    // The data begin with the TCP header. Stray packets of closed connections also come here; only a SYN is counted.
    a.load64(Register(1), STACK_REG, CONTEXT_OFFSET);
    a.load64(Register(2), Register(1), word_offset(PACKET_DATA_WORD));
    a.load64(Register(3), Register(1), word_offset(PACKET_DATA_END_WORD));
    a.register64(Operation::Move, SCRATCH_REG, Register(2));
    a.immediate64(Operation::Add, SCRATCH_REG, i32::from(TCP_FLAGS_OFFSET) + 1);
    a.jump_if_register(SCRATCH_REG, Condition::Above, Register(3), end);
    a.load8(SCRATCH_REG, Register(2), TCP_FLAGS_OFFSET);
    a.immediate64(Operation::And, SCRATCH_REG, TCP_SYN | TCP_ACK);
    a.jump_if(SCRATCH_REG, Condition::NotEqual, TCP_SYN, end);
    look_up_entry(a, maps, BEST_INDEX_OFFSET, end);
    a.immediate64(Operation::Move, Register(1), 1);
    a.atomic_add64(ENTRY_REG, word_offset(SELECTED_COUNT_WORD), Register(1));
    a.bind(end);
    a.immediate64(Operation::Move, Register(0), SK_PASS);
    a.exit();
}
