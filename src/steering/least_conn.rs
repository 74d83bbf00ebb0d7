//! The program of `least-conn`: it chooses the healthy slot with the fewest connections. Pure; written for the
//! verifiers of Linux 5.10 and newer.
//!
//! ```text
//! desk: one value          bank: one value for 32 slots, each with two seats
//!   0  how often the hash chose       page (slot * 2 + seat):
//!   8  a number that no slot has        0  open connections, as its worker says
//!  32  slot 0: healthy, seat,           8  connections it has accepted
//!              selected, number
//!  64  slot 1 ...
//! ```
//!
//! The load of a slot is what its worker has open, and what was selected but not accepted. The first is capped;
//! the second is capped from both sides, and nonsense counts as the heaviest load. Among equals a random number
//! decides, drawn anew for each slot.
//!
//! Why it is written as it is: the verifier walks through a loop turn by turn, and remembers at each instruction
//! the states it has seen. As long as it knows nothing precise of what was chosen so far, the ways through a turn
//! meet again at its end, and 1024 slots cost 1024 times one turn. So the number of a slot is read from the desk,
//! and not taken from the loop's counter, which it knows.

use super::CAP;
use super::ebpf::{Assembler, GET_PRANDOM_U32, If, Op, Reg, SK_SELECT_REUSEPORT};
use crate::sys::bpf::Instruction;
use crate::sys::shm::PAGE;

/// Slots of a bank.
pub(super) const BANK: usize = 32;
/// Pages of a slot: of who holds it, and of a successor or predecessor.
pub(super) const SEATS: usize = 2;
/// Places at the desk; a power of two.
pub(super) const MOST: usize = 1024;

/// Words of the desk: before the first slot, and of each.
pub(super) const HEAD_WORDS: usize = 4;
pub(super) const SLOT_WORDS: usize = 4;
/// The first words: how often the hash chose, and the number of a slot that no group has.
pub(super) const BY_HASH: usize = 0;
pub(super) const NOBODY: usize = 1;
/// The words of a slot at the desk.
pub(super) const HEALTHY: usize = 0;
pub(super) const SEAT: usize = 1;
pub(super) const SELECTED: usize = 2;
pub(super) const NUMBER: usize = 3;
/// The words of a page.
pub(super) const OPEN: usize = 0;
pub(super) const ACCEPTED: usize = 1;

const SK_PASS: i32 = 1;

/// Where the program finds its tables, by descriptor.
pub(super) struct Tables<'a> {
    pub(super) desk: i32,
    pub(super) banks: &'a [i32],
    /// The sockets of the group, by slot.
    pub(super) sockets: i32,
}

// Registers. R6 to R9 survive a call.
const TEMPORARY: Reg = Reg(0);
const PAGES: Reg = Reg(1);
const PLACE: Reg = Reg(2);
const TURN: Reg = Reg(3);
/// A page, and then what it says.
const PAGE_OF_SLOT: Reg = Reg(4);
const SAYS_OPEN: Reg = Reg(4);
const SECOND: Reg = Reg(5);
const CONTEXT: Reg = Reg(6);
const BEST_SLOT: Reg = Reg(7);
const BEST: Reg = Reg(8);
const CHANCE: Reg = Reg(9);
const STACK: Reg = Reg(10);

/// A word's offset in bytes.
const fn bytes(words: usize) -> i16 {
    (words * 8) as i16
}

/// The program for `slots` slots. `None` if that is more than the banks hold.
pub(super) fn program(slots: usize, tables: &Tables<'_>) -> Option<Vec<Instruction>> {
    let mut a = Assembler::default();
    a.register(Op::Move, CONTEXT, Reg(1));
    a.call(GET_PRANDOM_U32);
    a.register(Op::Move, CHANCE, Reg(0));
    // Worse than any; and a slot that no group has.
    a.number(Op::Move, BEST, -1);
    a.value(PLACE, tables.desk, i32::from(bytes(NOBODY)));
    a.load64(BEST_SLOT, PLACE, 0);
    let mut first = 0;
    for bank in tables.banks {
        let here = (slots - first).min(BANK);
        if here == 0 {
            break;
        }
        a.value(PAGES, *bank, 0);
        a.value(PLACE, tables.desk, ((HEAD_WORDS + first * SLOT_WORDS) * 8) as i32);
        scan(&mut a, here);
        first += here;
    }
    choose(&mut a, tables);
    if first < slots || slots > MOST { None } else { a.finish() }
}

/// Looks at `count` slots, and keeps the best so far.
fn scan(a: &mut Assembler, count: usize) {
    let (turn, next, seated) = (a.label(), a.label(), a.label());
    let (waiting, open, rank) = (a.label(), a.label(), a.label());
    let cap = CAP as i32;
    a.number(Op::Move, TURN, 0);
    a.place(turn);
    a.load64(TEMPORARY, PLACE, bytes(HEALTHY));
    a.jump_if(TEMPORARY, If::Equal, 0, next);
    // The offset is a number and not a register: without CAP_PERFMON the verifier wants it so.
    a.load64(SECOND, PLACE, bytes(SEAT));
    a.register(Op::Move, PAGE_OF_SLOT, PAGES);
    a.jump_if(SECOND, If::Equal, 0, seated);
    a.number(Op::Add, PAGE_OF_SLOT, PAGE as i32);
    a.place(seated);
    a.load64(SECOND, PAGE_OF_SLOT, bytes(ACCEPTED));
    a.load64(SAYS_OPEN, PAGE_OF_SLOT, bytes(OPEN));
    // Selected and not accepted: from -cap to +cap if it makes sense, and +cap if not. Below 0 is 0.
    a.load64(TEMPORARY, PLACE, bytes(SELECTED));
    a.register(Op::Sub, TEMPORARY, SECOND);
    a.number(Op::Add, TEMPORARY, cap);
    a.jump_if(TEMPORARY, If::AtMost, 2 * cap, waiting);
    a.number(Op::Move, TEMPORARY, 2 * cap);
    a.place(waiting);
    a.number(Op::Sub, TEMPORARY, cap);
    a.jump_if(TEMPORARY, If::SignedAtLeast, 0, open);
    a.number(Op::Move, TEMPORARY, 0);
    a.place(open);
    a.jump_if(SAYS_OPEN, If::AtMost, cap, rank);
    a.number(Op::Move, SAYS_OPEN, cap);
    a.place(rank);
    a.register(Op::Add, TEMPORARY, SAYS_OPEN);
    // The load in the upper half, a random number in the lower.
    a.number(Op::Shl, TEMPORARY, 32);
    a.number32(Op::Mul, CHANCE, 1_664_525);
    a.number32(Op::Add, CHANCE, 1_013_904_223);
    a.register(Op::Or, TEMPORARY, CHANCE);
    a.jump_if_register(TEMPORARY, If::AtLeast, BEST, next);
    a.register(Op::Move, BEST, TEMPORARY);
    a.load64(BEST_SLOT, PLACE, bytes(NUMBER));
    a.place(next);
    a.number(Op::Add, PLACE, i32::from(bytes(SLOT_WORDS)));
    a.number(Op::Add, PAGES, (SEATS * PAGE) as i32);
    a.number(Op::Add, TURN, 1);
    a.jump_if(TURN, If::NotEqual, count as i32, turn);
}

/// Selects the best slot's socket and counts that. If there is none, the kernel's hash chooses.
fn choose(a: &mut Assembler, tables: &Tables<'_>) {
    let nobody = a.label();
    a.store32(STACK, -4, BEST_SLOT);
    a.register(Op::Move, Reg(1), CONTEXT);
    a.map(Reg(2), tables.sockets);
    a.register(Op::Move, Reg(3), STACK);
    a.number(Op::Add, Reg(3), -4);
    a.number(Op::Move, Reg(4), 0);
    a.call(SK_SELECT_REUSEPORT);
    a.jump_if(Reg(0), If::NotEqual, 0, nobody);
    a.number(Op::And, BEST_SLOT, MOST as i32 - 1);
    a.number(Op::Shl, BEST_SLOT, i32::from(bytes(SLOT_WORDS)).trailing_zeros() as i32);
    a.value(Reg(1), tables.desk, i32::from(bytes(HEAD_WORDS)));
    a.register(Op::Add, Reg(1), BEST_SLOT);
    a.number(Op::Move, Reg(2), 1);
    a.atomic_add64(Reg(1), bytes(SELECTED), Reg(2));
    a.number(Op::Move, Reg(0), SK_PASS);
    a.exit();
    a.place(nobody);
    a.value(Reg(1), tables.desk, i32::from(bytes(BY_HASH)));
    a.number(Op::Move, Reg(2), 1);
    a.atomic_add64(Reg(1), 0, Reg(2));
    a.number(Op::Move, Reg(0), SK_PASS);
    a.exit();
}
