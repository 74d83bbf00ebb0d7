//! Assembles and disassembles classic BPF programs, which need no privilege. Pure.
//!
//! The machine has an accumulator A, an index register X, sixteen words of memory, and no loops. A program returns the
//! number of a socket in its reuseport group; for a number that no socket has, the kernel's hash selects.

use std::io;

use crate::dispatch::kernel_selector::ReuseportGroup;
use prefork_os::bpf::{self, ClassicBpfInstruction};

/// Maximum number of instructions of a program (`BPF_MAXINSNS`).
pub(in crate::dispatch) const MAX_INSTRUCTIONS: usize = 4096;
/// The return value that makes the kernel select a socket by its own hash.
pub(in crate::dispatch) const NO_SOCKET: u32 = u32::MAX;
/// The offset of the network header (`SKF_NET_OFF`). Offset 0 is the payload in a reuseport program.
pub(in crate::dispatch) const NETWORK_HEADER_OFFSET: u32 = -0x10_0000_i32 as u32;
/// The offset from which a load returns a random number (`SKF_AD_OFF + SKF_AD_RANDOM`).
pub(in crate::dispatch) const RANDOM_NUMBER_OFFSET: u32 = (-0x1000_i32 + 56) as u32;

const LD_WORD: u16 = 0x20;
const LD_HALF: u16 = 0x28;
const LD_BYTE: u16 = 0x30;
const LD_IMMEDIATE: u16 = 0x00;
const LD_MEMORY: u16 = 0x60;
const LDX_IMMEDIATE: u16 = 0x01;
const STORE_MEMORY: u16 = 0x02;
const MUL: u16 = 0x24;
const MOD: u16 = 0x94;
const RSH: u16 = 0x74;
const XOR: u16 = 0xa4;
const XOR_X: u16 = 0xac;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JGT_X: u16 = 0x2d;
const RETURN: u16 = 0x06;
const RETURN_A: u16 = 0x16;
const TAX: u16 = 0x07;

fn instruction(code: u16, k: u32) -> ClassicBpfInstruction {
    ClassicBpfInstruction { code, jump_true: 0, jump_false: 0, k }
}

fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> ClassicBpfInstruction {
    ClassicBpfInstruction { code, jump_true, jump_false, k }
}

/// Loads the 32-bit word at this offset of the packet into A.
pub(in crate::dispatch) fn load_word(offset: u32) -> ClassicBpfInstruction {
    instruction(LD_WORD, offset)
}

/// Loads the 16-bit word at this offset of the packet into A.
pub(in crate::dispatch) fn load_half_word(offset: u32) -> ClassicBpfInstruction {
    instruction(LD_HALF, offset)
}

/// Loads the byte at this offset of the packet into A.
pub(in crate::dispatch) fn load_byte(offset: u32) -> ClassicBpfInstruction {
    instruction(LD_BYTE, offset)
}

/// Loads the constant `k` into A.
pub(in crate::dispatch) fn load_immediate(k: u32) -> ClassicBpfInstruction {
    instruction(LD_IMMEDIATE, k)
}

/// Loads a word of scratch memory into A.
pub(in crate::dispatch) fn load_memory(cell: u32) -> ClassicBpfInstruction {
    instruction(LD_MEMORY, cell)
}

/// Stores A in a word of scratch memory.
pub(in crate::dispatch) fn store_memory(cell: u32) -> ClassicBpfInstruction {
    instruction(STORE_MEMORY, cell)
}

/// Loads the constant `k` into X.
pub(in crate::dispatch) fn load_index(k: u32) -> ClassicBpfInstruction {
    instruction(LDX_IMMEDIATE, k)
}

/// Copies A to X.
pub(in crate::dispatch) fn copy_to_index() -> ClassicBpfInstruction {
    instruction(TAX, 0)
}

pub(in crate::dispatch) fn multiply(k: u32) -> ClassicBpfInstruction {
    instruction(MUL, k)
}

/// Sets A to A modulo `k`, which must not be zero.
pub(in crate::dispatch) fn modulo(k: u32) -> ClassicBpfInstruction {
    instruction(MOD, k)
}

pub(in crate::dispatch) fn shift_right(k: u32) -> ClassicBpfInstruction {
    instruction(RSH, k)
}

pub(in crate::dispatch) fn xor(k: u32) -> ClassicBpfInstruction {
    instruction(XOR, k)
}

pub(in crate::dispatch) fn xor_index() -> ClassicBpfInstruction {
    instruction(XOR_X, 0)
}

/// Skips `skip` instructions if A = `k`, else `otherwise`.
pub(in crate::dispatch) fn jump_if_equal(k: u32, skip: u8, otherwise: u8) -> ClassicBpfInstruction {
    jump(JEQ, k, skip, otherwise)
}

/// Skips `skip` instructions if A >= `k`, else `otherwise`.
pub(in crate::dispatch) fn jump_if_at_least(
    k: u32,
    skip: u8,
    otherwise: u8,
) -> ClassicBpfInstruction {
    jump(JGE, k, skip, otherwise)
}

/// Skips `skip` instructions if A > X, else `otherwise`.
pub(in crate::dispatch) fn jump_if_above_index(skip: u8, otherwise: u8) -> ClassicBpfInstruction {
    jump(JGT_X, 0, skip, otherwise)
}

/// Ends the program and selects this socket of the group.
pub(in crate::dispatch) fn return_socket(socket: u32) -> ClassicBpfInstruction {
    instruction(RETURN, socket)
}

/// Ends the program and selects the socket with number A.
pub(in crate::dispatch) fn return_accumulator() -> ClassicBpfInstruction {
    instruction(RETURN_A, 0)
}

/// Attaches a program to the reuseport group of every listening address.
pub(in crate::dispatch) fn attach_to_groups(
    groups: &[ReuseportGroup<'_>],
    program: &[ClassicBpfInstruction],
) -> io::Result<()> {
    let mut first_sockets = groups.iter().filter_map(|group| group.0.first());
    first_sockets.try_for_each(|socket| bpf::attach_classic_reuseport_program(*socket, program))
}

/// Returns one line per instruction, in the syntax of `bpf_asm`.
pub(in crate::dispatch) fn disassemble(program: &[ClassicBpfInstruction]) -> Vec<String> {
    let line = |(at, instruction): (usize, &ClassicBpfInstruction)| {
        let ClassicBpfInstruction { code, jump_true, jump_false, k } = *instruction;
        let targets =
            || format!("{}, {}", at + 1 + jump_true as usize, at + 1 + jump_false as usize);
        let offset = || match k.wrapping_sub(NETWORK_HEADER_OFFSET) {
            _ if k == RANDOM_NUMBER_OFFSET => "rand".to_string(),
            header if header < 0x10_0000 => format!("[net + {header}]"),
            _ => format!("[{k}]"),
        };
        let text = match code {
            LD_WORD => format!("ld {}", offset()),
            LD_HALF => format!("ldh {}", offset()),
            LD_BYTE => format!("ldb {}", offset()),
            LD_IMMEDIATE => format!("ld #{k:#x}"),
            LD_MEMORY => format!("ld M[{k}]"),
            LDX_IMMEDIATE => format!("ldx #{k:#x}"),
            STORE_MEMORY => format!("st M[{k}]"),
            MUL => format!("mul #{k:#x}"),
            MOD => format!("mod #{k}"),
            RSH => format!("rsh #{k}"),
            XOR => format!("xor #{k:#x}"),
            XOR_X => "xor x".to_string(),
            JEQ => format!("jeq #{k:#x}, {}", targets()),
            JGE => format!("jge #{k}, {}", targets()),
            JGT_X => format!("jgt x, {}", targets()),
            RETURN if k == NO_SOCKET => "ret #-1".to_string(),
            RETURN => format!("ret #{k}"),
            RETURN_A => "ret a".to_string(),
            TAX => "tax".to_string(),
            _ => format!("unknown code {code:#04x}"),
        };
        format!("{at:4}: {text}")
    };
    program.iter().enumerate().map(line).collect()
}

/// Interprets a program, to test it with addresses that this host does not have.
#[cfg(test)]
pub(in crate::dispatch) fn interpret(
    program: &[ClassicBpfInstruction],
    network_header: &[u8],
    random: u32,
) -> u32 {
    let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; 16], 0);
    let load = |offset: u32, size: usize| {
        let from = offset.wrapping_sub(NETWORK_HEADER_OFFSET) as usize;
        network_header[from..from + size].iter().fold(0, |a, byte| a << 8 | u32::from(*byte))
    };
    loop {
        let ClassicBpfInstruction { code, jump_true, jump_false, k } = program[at];
        let mut go = |yes: bool| at += usize::from(if yes { jump_true } else { jump_false });
        match code {
            LD_WORD if k == RANDOM_NUMBER_OFFSET => a = random,
            LD_WORD => a = load(k, 4),
            LD_HALF => a = load(k, 2),
            LD_BYTE => a = load(k, 1),
            LD_IMMEDIATE => a = k,
            LD_MEMORY => a = memory[k as usize],
            LDX_IMMEDIATE => x = k,
            STORE_MEMORY => memory[k as usize] = a,
            MUL => a = a.wrapping_mul(k),
            MOD => a %= k,
            RSH => a >>= k,
            XOR => a ^= k,
            XOR_X => a ^= x,
            JEQ => go(a == k),
            JGE => go(a >= k),
            JGT_X => go(a > x),
            RETURN => return k,
            RETURN_A => return a,
            TAX => x = a,
            _ => panic!("code {code:#x}"),
        }
        at += 1;
    }
}
