//! Assembles and disassembles eBPF programs, with the few instructions that `least-conn` needs. Pure.

use prefork_os::bpf::EbpfInstruction;

/// A register. R0 holds the result of a call, R1 to R5 its arguments, which it overwrites. R6 to R9 are preserved; R10 is
/// the top of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) struct Register(pub(in crate::dispatch) u8);

/// A jump target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) struct Label(usize);

/// The condition of a jump. The disassembly shows it as in C, with `s` for signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::dispatch) enum Condition {
    Equal = 0x10,
    Above = 0x20,
    AtLeast = 0x30,
    NotEqual = 0x50,
    SignedAtLeast = 0x70,
    Below = 0xa0,
    AtMost = 0xb0,
}

/// An operation on a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::dispatch) enum Operation {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Or = 0x40,
    And = 0x50,
    Shl = 0x60,
    Move = 0xb0,
}

/// Source registers of a 16-byte load: its immediate is a map (`BPF_PSEUDO_MAP_FD`), or a map whose value is addressed.
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

/// Numbers of the kernel's helper functions.
pub(in crate::dispatch) const MAP_LOOKUP_ELEM: i32 = 1;
pub(in crate::dispatch) const GET_PRANDOM_U32: i32 = 7;
pub(in crate::dispatch) const SK_SELECT_REUSEPORT: i32 = 82;

const LOAD_IMMEDIATE_64: u8 = 0x18;
const LOAD_8: u8 = 0x71;
const LOAD_64: u8 = 0x79;
const STORE_32: u8 = 0x63;
const STORE_64: u8 = 0x7b;
const ATOMIC_ADD_64: u8 = 0xdb;
const ALU_64: u8 = 0x07;
const ALU_32: u8 = 0x04;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Set where the operand is a register, not an immediate.
const SOURCE_REGISTER: u8 = 0x08;

/// A program under construction. Jumps go to labels, which `finish` resolves.
#[derive(Default)]
pub(in crate::dispatch) struct Assembler {
    code: Vec<EbpfInstruction>,
    /// The position of each label.
    labels: Vec<Option<usize>>,
    /// The position and the target of each jump.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        self.code.push(EbpfInstruction { code, registers: from.0 << 4 | to.0, offset, immediate });
    }

    pub(in crate::dispatch) fn new_label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places `label` before the next instruction.
    pub(in crate::dispatch) fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `to op= number`, 64 bits.
    pub(in crate::dispatch) fn immediate64(&mut self, op: Operation, to: Register, number: i32) {
        self.emit(ALU_64 | op as u8, to, Register(0), 0, number);
    }

    /// `to op= number` in the lower 32 bits; the upper ones become zero.
    pub(in crate::dispatch) fn immediate32(&mut self, op: Operation, to: Register, number: i32) {
        self.emit(ALU_32 | op as u8, to, Register(0), 0, number);
    }

    /// `to op= from`, 64 bits.
    pub(in crate::dispatch) fn register64(&mut self, op: Operation, to: Register, from: Register) {
        self.emit(ALU_64 | SOURCE_REGISTER | op as u8, to, from, 0, 0);
    }

    pub(in crate::dispatch) fn load8(&mut self, to: Register, base: Register, offset: i16) {
        self.emit(LOAD_8, to, base, offset, 0);
    }

    pub(in crate::dispatch) fn load64(&mut self, to: Register, base: Register, offset: i16) {
        self.emit(LOAD_64, to, base, offset, 0);
    }

    pub(in crate::dispatch) fn store32(&mut self, base: Register, offset: i16, from: Register) {
        self.emit(STORE_32, base, from, offset, 0);
    }

    pub(in crate::dispatch) fn store64(&mut self, base: Register, offset: i16, from: Register) {
        self.emit(STORE_64, base, from, offset, 0);
    }

    /// Adds `from` to memory atomically.
    pub(in crate::dispatch) fn atomic_add64(
        &mut self,
        base: Register,
        offset: i16,
        from: Register,
    ) {
        self.emit(ATOMIC_ADD_64, base, from, offset, 0);
    }

    /// `to` = the map behind descriptor `map`.
    pub(in crate::dispatch) fn load_map(&mut self, to: Register, map: i32) {
        self.emit(LOAD_IMMEDIATE_64, to, Register(PSEUDO_MAP_FD), 0, map);
        self.emit(0, Register(0), Register(0), 0, 0);
    }

    /// `to` = the address of byte `offset` in the one value of the map behind descriptor `map`.
    pub(in crate::dispatch) fn load_map_value(&mut self, to: Register, map: i32, offset: i32) {
        self.emit(LOAD_IMMEDIATE_64, to, Register(PSEUDO_MAP_VALUE), 0, map);
        self.emit(0, Register(0), Register(0), 0, offset);
    }

    pub(in crate::dispatch) fn jump_if(
        &mut self,
        left: Register,
        is: Condition,
        number: i32,
        to: Label,
    ) {
        self.jumps.push((self.code.len(), to));
        self.emit(JUMP | is as u8, left, Register(0), 0, number);
    }

    pub(in crate::dispatch) fn jump_if_register(
        &mut self,
        left: Register,
        is: Condition,
        right: Register,
        to: Label,
    ) {
        self.jumps.push((self.code.len(), to));
        self.emit(JUMP | SOURCE_REGISTER | is as u8, left, right, 0, 0);
    }

    pub(in crate::dispatch) fn call(&mut self, helper: i32) {
        self.emit(CALL, Register(0), Register(0), 0, helper);
    }

    pub(in crate::dispatch) fn exit(&mut self) {
        self.emit(EXIT, Register(0), Register(0), 0, 0);
    }

    /// Returns the program; `None` if a jump has no target or one that is too far away.
    pub(in crate::dispatch) fn finish(mut self) -> Option<Vec<EbpfInstruction>> {
        for (from, label) in self.jumps {
            let to = i64::try_from((*self.labels.get(label.0)?)?).ok()?;
            self.code[from].offset = i16::try_from(to - from as i64 - 1).ok()?;
        }
        Some(self.code)
    }
}

/// Returns one line per instruction, in the format of `bpftool prog dump xlated`.
pub(in crate::dispatch) fn disassemble(program: &[EbpfInstruction]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut at = 0;
    while let Some(instruction) = program.get(at) {
        let second = program.get(at + 1).map_or(0, |next| next.immediate);
        lines.push(format!("{at:4}: {}", disassemble_instruction(at, instruction, second)));
        at += if instruction.code == LOAD_IMMEDIATE_64 { 2 } else { 1 };
    }
    lines
}

fn disassemble_instruction(at: usize, instruction: &EbpfInstruction, second: i32) -> String {
    let EbpfInstruction { code, registers, offset, immediate } = *instruction;
    let (to, from) = (registers & 15, registers >> 4);
    let operand = |wide: &str| match code & SOURCE_REGISTER {
        0 => format!("{immediate}"),
        _ => format!("{wide}{from}"),
    };
    match code {
        LOAD_IMMEDIATE_64 if from == PSEUDO_MAP_FD => format!("r{to} = map[fd {immediate}]"),
        LOAD_IMMEDIATE_64 => format!("r{to} = map[fd {immediate}][0]+{second}"),
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
            format!("if r{to} {} {} goto {target}", condition_symbol(code & 0xf0), operand("r"))
        }
        _ if code & 7 == ALU_32 => {
            format!("w{to} {} {}", operation_symbol(code & 0xf0), operand("w"))
        }
        _ if code & 7 == ALU_64 => {
            format!("r{to} {} {}", operation_symbol(code & 0xf0), operand("r"))
        }
        _ => format!("unknown code {code:#04x}"),
    }
}

fn condition_symbol(code: u8) -> &'static str {
    match code {
        c if c == Condition::Equal as u8 => "==",
        c if c == Condition::Above as u8 => ">",
        c if c == Condition::AtLeast as u8 => ">=",
        c if c == Condition::NotEqual as u8 => "!=",
        c if c == Condition::SignedAtLeast as u8 => "s>=",
        c if c == Condition::Below as u8 => "<",
        c if c == Condition::AtMost as u8 => "<=",
        _ => "?",
    }
}

fn operation_symbol(code: u8) -> &'static str {
    match code {
        c if c == Operation::Add as u8 => "+=",
        c if c == Operation::Sub as u8 => "-=",
        c if c == Operation::Mul as u8 => "*=",
        c if c == Operation::Or as u8 => "|=",
        c if c == Operation::And as u8 => "&=",
        c if c == Operation::Shl as u8 => "<<=",
        c if c == Operation::Move as u8 => "=",
        _ => "?=",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jump_offsets_count_from_the_next_instruction() {
        let mut a = Assembler::default();
        let (back, ahead) = (a.new_label(), a.new_label());
        a.bind(back);
        a.immediate64(Operation::Add, Register(1), 1);
        a.jump_if(Register(1), Condition::Above, 7, ahead);
        a.jump_if_register(Register(1), Condition::NotEqual, Register(2), back);
        a.bind(ahead);
        a.exit();
        let program = a.finish().expect("labels");
        assert_eq!([program[1].offset, program[2].offset], [1, -3]);
        let expected =
            ["   0: r1 += 1", "   1: if r1 > 7 goto 3", "   2: if r1 != r2 goto 0", "   3: exit"];
        assert_eq!(disassemble(&program), expected);
    }

    #[test]
    fn a_jump_without_a_target_is_refused() {
        let mut a = Assembler::default();
        let nowhere = a.new_label();
        a.jump_if(Register(1), Condition::Equal, 0, nowhere);
        assert!(a.finish().is_none());
    }
}
