//! The program of `least-conn`: it chooses the healthy slot with the fewest connections. Pure; written for the
//! verifiers of Linux 5.10 and newer.
//!
//! ```text
//! desk: a place for each slot, from 1 on     bank: one value for 32 slots, each with two seats
//!   place 0: how often the hash chose          page (slot * 2 + seat):
//!   place 1: slot 0: healthy, seat,              0  open connections, as its worker says
//!            selected, number of the place       8  connections it has accepted
//! ```
//!
//! The load of a slot is what its worker has open, and what was selected but not accepted. The first is capped;
//! the second is capped from both sides, and nonsense counts as the heaviest load. Among equals a random number
//! decides, drawn anew for each slot. Only a packet that asks for a connection counts as selected.
//!
//! Why it is written as it is: the verifier walks through a loop turn by turn, and remembers at each instruction
//! the states it has seen. As long as it knows nothing precise of what was chosen so far, the ways through a turn
//! meet again at its end, and 1024 slots cost 1024 times one turn. So the number of a place is read from the desk,
//! and not taken from the loop's counter, which it knows. And nothing is added to a pointer but constants: without
//! CAP_PERFMON the ways would never meet after that, and six slots be too many. Hence the lookups.

use crate::dispatch::bpf::ebpf::{
    Assembler, GET_PRANDOM_U32, If, Label, MAP_LOOKUP_ELEM, Op, Reg, SK_SELECT_REUSEPORT,
};
use crate::dispatch::kernel_selector::CAP;
use prefork_os::bpf::EbpfInstruction;
use prefork_os::shared_memory::SHARED_PAGE_BYTES;

/// Slots of a bank.
pub(in crate::dispatch) const BANK: usize = 32;
/// Pages of a slot: of who holds it, and of a successor or predecessor.
pub(in crate::dispatch) const SEATS: usize = 2;
/// Pages of a bank. The loop's pointer is two slots further when the processor guesses that there is one more turn:
/// without CAP_PERFMON the verifier wants that to be within, too.
pub(in crate::dispatch) const BANK_PAGES: usize = (BANK + 2) * SEATS;
/// The most slots.
pub(in crate::dispatch) const MOST: usize = 1024;
/// Places at the desk, and in a table of sockets: the one without a slot, and the slots.
pub(in crate::dispatch) const PLACES: usize = 1 + MOST;

/// Words of a place.
pub(in crate::dispatch) const PLACE_WORDS: usize = 4;
/// The words of a place.
pub(in crate::dispatch) const HEALTHY: usize = 0;
pub(in crate::dispatch) const SEAT: usize = 1;
pub(in crate::dispatch) const SELECTED: usize = 2;
pub(in crate::dispatch) const NUMBER: usize = 3;
/// The words of a page.
pub(in crate::dispatch) const OPEN: usize = 0;
pub(in crate::dispatch) const ACCEPTED: usize = 1;

const SK_PASS: i32 = 1;
/// The first words of the context.
const DATA: usize = 0;
const DATA_END: usize = 1;
/// In the TCP header.
const TCP_FLAGS: i16 = 13;
const SYN: i32 = 0x02;
const ACK: i32 = 0x10;

/// Where the program finds its tables, by descriptor.
pub(in crate::dispatch) struct Tables<'a> {
    pub(in crate::dispatch) desk: i32,
    pub(in crate::dispatch) banks: &'a [i32],
    /// The sockets of the group, by place.
    pub(in crate::dispatch) sockets: i32,
}

/// The place of a slot.
pub(in crate::dispatch) fn place(slot: usize) -> usize {
    1 + slot
}

// R0 to R5 are lost at each call, R6 to R9 are not.
const FOUND: Reg = Reg(0);
const WAITING: Reg = Reg(1);
const PLACE: Reg = Reg(2);
const PAGE_OF_SLOT: Reg = Reg(3);
const SCRATCH: Reg = Reg(4);
const SAYS_OPEN: Reg = Reg(5);
const TURN: Reg = Reg(6);
const PAGES: Reg = Reg(7);
const BEST: Reg = Reg(8);
const CHANCE: Reg = Reg(9);
const STACK: Reg = Reg(10);
/// On the stack: the context, the place that is looked at, the best place so far.
const CONTEXT: i16 = -8;
const KEY: i16 = -12;
const BEST_PLACE: i16 = -16;

/// A word's offset in bytes.
const fn bytes(words: usize) -> i16 {
    (words * 8) as i16
}

/// The program for `slots` slots. `None` if that is more than the banks hold.
pub(in crate::dispatch) fn program(
    slots: usize,
    tables: &Tables<'_>,
) -> Option<Vec<EbpfInstruction>> {
    let mut a = Assembler::default();
    a.store64(STACK, CONTEXT, Reg(1));
    a.call(GET_PRANDOM_U32);
    a.register(Op::Move, CHANCE, Reg(0));
    // Worse than any; and a place without socket.
    a.number(Op::Move, BEST, -1);
    a.number(Op::Move, SCRATCH, 0);
    a.store32(STACK, BEST_PLACE, SCRATCH);
    let mut first = 0;
    for bank in tables.banks {
        let here = (slots - first).min(BANK);
        if here == 0 {
            break;
        }
        a.value(PAGES, *bank, 0);
        scan(&mut a, tables, place(first), here);
        first += here;
    }
    choose(&mut a, tables);
    if first < slots || slots > MOST { None } else { a.finish() }
}

/// `FOUND` = the place at the desk whose number is on the stack, or 0.
fn look_up(a: &mut Assembler, tables: &Tables<'_>, key: i16, missing: Label) {
    a.map(Reg(1), tables.desk);
    a.register(Op::Move, Reg(2), STACK);
    a.number(Op::Add, Reg(2), i32::from(key));
    a.call(MAP_LOOKUP_ELEM);
    a.jump_if(FOUND, If::Equal, 0, missing);
}

/// Looks at `count` slots, and keeps the best so far.
fn scan(a: &mut Assembler, tables: &Tables<'_>, first: usize, count: usize) {
    let (turn, next, seated) = (a.label(), a.label(), a.label());
    let (capped, positive, rank) = (a.label(), a.label(), a.label());
    let cap = CAP as i32;
    a.number(Op::Move, TURN, first as i32);
    a.place(turn);
    a.store32(STACK, KEY, TURN);
    look_up(a, tables, KEY, next);
    a.load64(SCRATCH, FOUND, bytes(HEALTHY));
    a.jump_if(SCRATCH, If::Equal, 0, next);
    a.register(Op::Move, PAGE_OF_SLOT, PAGES);
    a.load64(SCRATCH, FOUND, bytes(SEAT));
    a.jump_if(SCRATCH, If::Equal, 0, seated);
    a.number(Op::Add, PAGE_OF_SLOT, SHARED_PAGE_BYTES as i32);
    a.place(seated);
    a.load64(WAITING, FOUND, bytes(SELECTED));
    a.load64(PLACE, FOUND, bytes(NUMBER));
    a.load64(SCRATCH, PAGE_OF_SLOT, bytes(ACCEPTED));
    a.load64(SAYS_OPEN, PAGE_OF_SLOT, bytes(OPEN));
    // Selected and not accepted: from -cap to +cap if it makes sense, and +cap if not. Below 0 is 0.
    a.register(Op::Sub, WAITING, SCRATCH);
    a.number(Op::Add, WAITING, cap);
    a.jump_if(WAITING, If::AtMost, 2 * cap, capped);
    a.number(Op::Move, WAITING, 2 * cap);
    a.place(capped);
    a.number(Op::Sub, WAITING, cap);
    a.jump_if(WAITING, If::SignedAtLeast, 0, positive);
    a.number(Op::Move, WAITING, 0);
    a.place(positive);
    a.jump_if(SAYS_OPEN, If::AtMost, cap, rank);
    a.number(Op::Move, SAYS_OPEN, cap);
    a.place(rank);
    // The load in the upper half, a random number in the lower.
    a.register(Op::Add, WAITING, SAYS_OPEN);
    a.number(Op::Shl, WAITING, 32);
    a.number32(Op::Mul, CHANCE, 1_664_525);
    a.number32(Op::Add, CHANCE, 1_013_904_223);
    a.register(Op::Or, WAITING, CHANCE);
    a.jump_if_register(WAITING, If::AtLeast, BEST, next);
    a.register(Op::Move, BEST, WAITING);
    a.store32(STACK, BEST_PLACE, PLACE);
    a.place(next);
    a.number(Op::Add, PAGES, (SEATS * SHARED_PAGE_BYTES) as i32);
    a.number(Op::Add, TURN, 1);
    a.jump_if(TURN, If::Below, (first + count) as i32, turn);
}

/// Selects the best slot's socket and counts that; if there is none, the kernel's hash chooses, and that is counted.
fn choose(a: &mut Assembler, tables: &Tables<'_>) {
    let (count, end) = (a.label(), a.label());
    a.load64(Reg(1), STACK, CONTEXT);
    a.map(Reg(2), tables.sockets);
    a.register(Op::Move, Reg(3), STACK);
    a.number(Op::Add, Reg(3), i32::from(BEST_PLACE));
    a.number(Op::Move, Reg(4), 0);
    a.call(SK_SELECT_REUSEPORT);
    a.jump_if(Reg(0), If::Equal, 0, count);
    a.number(Op::Move, SCRATCH, 0);
    a.store32(STACK, BEST_PLACE, SCRATCH);
    a.place(count);
    // From the TCP header on. Stray packets of connections that are gone come here too, and are not counted.
    a.load64(Reg(1), STACK, CONTEXT);
    a.load64(Reg(2), Reg(1), bytes(DATA));
    a.load64(Reg(3), Reg(1), bytes(DATA_END));
    a.register(Op::Move, SCRATCH, Reg(2));
    a.number(Op::Add, SCRATCH, i32::from(TCP_FLAGS) + 1);
    a.jump_if_register(SCRATCH, If::Above, Reg(3), end);
    a.load8(SCRATCH, Reg(2), TCP_FLAGS);
    a.number(Op::And, SCRATCH, SYN | ACK);
    a.jump_if(SCRATCH, If::NotEqual, SYN, end);
    look_up(a, tables, BEST_PLACE, end);
    a.number(Op::Move, Reg(1), 1);
    a.atomic_add64(FOUND, bytes(SELECTED), Reg(1));
    a.place(end);
    a.number(Op::Move, Reg(0), SK_PASS);
    a.exit();
}
