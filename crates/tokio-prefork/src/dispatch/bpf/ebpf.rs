//! The extended machine: the few instructions that we use, labels for jumps, and how a program is written down
//! for people. Pure.

use prefork_os::bpf::EbpfInstruction;

/// A register. R0 is what helpers return, R1 to R5 are their arguments and lost by a call, R6 to R9 survive it,
/// R10 is the top of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) struct Reg(pub(in crate::dispatch) u8);

/// A place in the program to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) struct Label(usize);

/// Conditions of a jump. The kernel's names in the listing are the signs of C, with `s` for signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::dispatch) enum If {
    Equal = 0x10,
    Above = 0x20,
    AtLeast = 0x30,
    NotEqual = 0x50,
    SignedAtLeast = 0x70,
    Below = 0xa0,
    AtMost = 0xb0,
}

/// Operations on registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::dispatch) enum Op {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Or = 0x40,
    And = 0x50,
    Shl = 0x60,
    Move = 0xb0,
}

/// How the first half of a double instruction says that its number is a map, or an address in a map's value.
const IS_MAP: u8 = 1;
const IS_VALUE: u8 = 2;

/// Helpers of the kernel.
pub(in crate::dispatch) const MAP_LOOKUP_ELEM: i32 = 1;
pub(in crate::dispatch) const GET_PRANDOM_U32: i32 = 7;
pub(in crate::dispatch) const SK_SELECT_REUSEPORT: i32 = 82;

const DOUBLE: u8 = 0x18;
const LOAD_8: u8 = 0x71;
const LOAD_64: u8 = 0x79;
const STORE_32: u8 = 0x63;
const STORE_64: u8 = 0x7b;
const ATOMIC_ADD_64: u8 = 0xdb;
const WIDE: u8 = 0x07;
const NARROW: u8 = 0x04;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The operand is a register and not a number.
const X: u8 = 0x08;

/// A program being written. Jumps are to labels, and resolved at the end.
#[derive(Default)]
pub(in crate::dispatch) struct Assembler {
    code: Vec<EbpfInstruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Which instruction jumps to which label.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) {
        self.code.push(EbpfInstruction { code, registers: from.0 << 4 | to.0, offset, immediate });
    }

    pub(in crate::dispatch) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// `label` is here.
    pub(in crate::dispatch) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// 64 bits: `to op= number`.
    pub(in crate::dispatch) fn number(&mut self, op: Op, to: Reg, number: i32) {
        self.emit(WIDE | op as u8, to, Reg(0), 0, number);
    }

    /// The lower 32 bits: `to op= number`; the upper ones become zero.
    pub(in crate::dispatch) fn number32(&mut self, op: Op, to: Reg, number: i32) {
        self.emit(NARROW | op as u8, to, Reg(0), 0, number);
    }

    /// 64 bits: `to op= from`.
    pub(in crate::dispatch) fn register(&mut self, op: Op, to: Reg, from: Reg) {
        self.emit(WIDE | X | op as u8, to, from, 0, 0);
    }

    pub(in crate::dispatch) fn load8(&mut self, to: Reg, base: Reg, offset: i16) {
        self.emit(LOAD_8, to, base, offset, 0);
    }

    pub(in crate::dispatch) fn load64(&mut self, to: Reg, base: Reg, offset: i16) {
        self.emit(LOAD_64, to, base, offset, 0);
    }

    pub(in crate::dispatch) fn store32(&mut self, base: Reg, offset: i16, from: Reg) {
        self.emit(STORE_32, base, from, offset, 0);
    }

    pub(in crate::dispatch) fn store64(&mut self, base: Reg, offset: i16, from: Reg) {
        self.emit(STORE_64, base, from, offset, 0);
    }

    /// Adds `from` to memory, whole even if others do the same at the same time.
    pub(in crate::dispatch) fn atomic_add64(&mut self, base: Reg, offset: i16, from: Reg) {
        self.emit(ATOMIC_ADD_64, base, from, offset, 0);
    }

    /// `to` = the map behind descriptor `map`.
    pub(in crate::dispatch) fn map(&mut self, to: Reg, map: i32) {
        self.emit(DOUBLE, to, Reg(IS_MAP), 0, map);
        self.emit(0, Reg(0), Reg(0), 0, 0);
    }

    /// `to` = the address of byte `offset` in the one value of the map behind descriptor `map`.
    pub(in crate::dispatch) fn value(&mut self, to: Reg, map: i32, offset: i32) {
        self.emit(DOUBLE, to, Reg(IS_VALUE), 0, map);
        self.emit(0, Reg(0), Reg(0), 0, offset);
    }

    pub(in crate::dispatch) fn jump_if(&mut self, left: Reg, is: If, number: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(JUMP | is as u8, left, Reg(0), 0, number);
    }

    pub(in crate::dispatch) fn jump_if_register(
        &mut self,
        left: Reg,
        is: If,
        right: Reg,
        to: Label,
    ) {
        self.jumps.push((self.code.len(), to));
        self.emit(JUMP | X | is as u8, left, right, 0, 0);
    }

    pub(in crate::dispatch) fn call(&mut self, helper: i32) {
        self.emit(CALL, Reg(0), Reg(0), 0, helper);
    }

    pub(in crate::dispatch) fn exit(&mut self) {
        self.emit(EXIT, Reg(0), Reg(0), 0, 0);
    }

    /// The program. `None` if a jump goes nowhere or too far, which is a mistake of who wrote it.
    pub(in crate::dispatch) fn finish(mut self) -> Option<Vec<EbpfInstruction>> {
        for (from, label) in self.jumps {
            let to = i64::try_from((*self.labels.get(label.0)?)?).ok()?;
            self.code[from].offset = i16::try_from(to - from as i64 - 1).ok()?;
        }
        Some(self.code)
    }
}

/// A line for each instruction, as `bpftool prog dump xlated` writes it.
pub(in crate::dispatch) fn listing(program: &[EbpfInstruction]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut at = 0;
    while let Some(instruction) = program.get(at) {
        let second = program.get(at + 1).map_or(0, |next| next.immediate);
        lines.push(format!("{at:4}: {}", line(at, instruction, second)));
        at += if instruction.code == DOUBLE { 2 } else { 1 };
    }
    lines
}

fn line(at: usize, instruction: &EbpfInstruction, second: i32) -> String {
    let EbpfInstruction { code, registers, offset, immediate } = *instruction;
    let (to, from) = (registers & 15, registers >> 4);
    let operand = |wide: &str| match code & X {
        0 => format!("{immediate}"),
        _ => format!("{wide}{from}"),
    };
    match code {
        DOUBLE if from == IS_MAP => format!("r{to} = map[fd {immediate}]"),
        DOUBLE => format!("r{to} = map[fd {immediate}][0]+{second}"),
        LOAD_8 => format!("r{to} = *(u8 *)(r{from} {offset:+})"),
        LOAD_64 => format!("r{to} = *(u64 *)(r{from} {offset:+})"),
        STORE_32 => format!("*(u32 *)(r{to} {offset:+}) = r{from}"),
        STORE_64 => format!("*(u64 *)(r{to} {offset:+}) = r{from}"),
        ATOMIC_ADD_64 => format!("lock *(u64 *)(r{to} {offset:+}) += r{from}"),
        CALL => match immediate {
            MAP_LOOKUP_ELEM => "call bpf_map_lookup_elem#1".to_string(),
            GET_PRANDOM_U32 => "call bpf_get_prandom_u32#7".to_string(),
            SK_SELECT_REUSEPORT => "call bpf_sk_select_reuseport#82".to_string(),
            other => format!("call #{other}"),
        },
        EXIT => "exit".to_string(),
        _ if code & 7 == JUMP => {
            let target = at as i64 + 1 + i64::from(offset);
            format!("if r{to} {} {} goto {target}", condition(code & 0xf0), operand("r"))
        }
        _ if code & 7 == NARROW => format!("w{to} {} {}", operation(code & 0xf0), operand("w")),
        _ if code & 7 == WIDE => format!("r{to} {} {}", operation(code & 0xf0), operand("r")),
        _ => format!("unknown code {code:#04x}"),
    }
}

fn condition(code: u8) -> &'static str {
    match code {
        c if c == If::Equal as u8 => "==",
        c if c == If::Above as u8 => ">",
        c if c == If::AtLeast as u8 => ">=",
        c if c == If::NotEqual as u8 => "!=",
        c if c == If::SignedAtLeast as u8 => "s>=",
        c if c == If::Below as u8 => "<",
        c if c == If::AtMost as u8 => "<=",
        _ => "?",
    }
}

fn operation(code: u8) -> &'static str {
    match code {
        c if c == Op::Add as u8 => "+=",
        c if c == Op::Sub as u8 => "-=",
        c if c == Op::Mul as u8 => "*=",
        c if c == Op::Or as u8 => "|=",
        c if c == Op::And as u8 => "&=",
        c if c == Op::Shl as u8 => "<<=",
        c if c == Op::Move as u8 => "=",
        _ => "?=",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let mut a = Assembler::default();
        let (back, ahead) = (a.label(), a.label());
        a.place(back);
        a.number(Op::Add, Reg(1), 1);
        a.jump_if(Reg(1), If::Above, 7, ahead);
        a.jump_if_register(Reg(1), If::NotEqual, Reg(2), back);
        a.place(ahead);
        a.exit();
        let program = a.finish().expect("labels");
        assert_eq!([program[1].offset, program[2].offset], [1, -3]);
        let expected =
            ["   0: r1 += 1", "   1: if r1 > 7 goto 3", "   2: if r1 != r2 goto 0", "   3: exit"];
        assert_eq!(listing(&program), expected);
    }

    #[test]
    fn a_jump_to_nowhere_is_no_program() {
        let mut a = Assembler::default();
        let nowhere = a.label();
        a.jump_if(Reg(1), If::Equal, 0, nowhere);
        assert!(a.finish().is_none());
    }
}
