//! The classic machine: an accumulator A, an index X, sixteen words of memory, and no loops. Anybody may attach a
//! program for it. What it returns is the number of a socket in its group; a number that no socket has leaves
//! the choice to the kernel's hash. Pure.

use prefork_os::bpf::ClassicBpfInstruction;

/// The longest program the kernel takes (`BPF_MAXINSNS`).
pub(in crate::dispatch) const LONGEST: usize = 4096;
/// What to return so that the kernel's hash chooses.
pub(in crate::dispatch) const NOBODY: u32 = u32::MAX;
/// Offsets from here on are into the network header (`SKF_NET_OFF`), wherever the packet's data begin. For a
/// reuseport program those are the payload.
pub(in crate::dispatch) const NETWORK: u32 = -0x10_0000_i32 as u32;
/// Loading from here gives a random number (`SKF_AD_OFF + SKF_AD_RANDOM`).
pub(in crate::dispatch) const RANDOM: u32 = (-0x1000_i32 + 56) as u32;

const LD_WORD: u16 = 0x20;
const LD_BYTE: u16 = 0x30;
const LD_NUMBER: u16 = 0x00;
const LD_MEMORY: u16 = 0x60;
const LDX_NUMBER: u16 = 0x01;
const STORE: u16 = 0x02;
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

fn plain(code: u16, k: u32) -> ClassicBpfInstruction {
    ClassicBpfInstruction { code, jump_true: 0, jump_false: 0, k }
}

fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> ClassicBpfInstruction {
    ClassicBpfInstruction { code, jump_true, jump_false, k }
}

/// A = the word at this place of the packet.
pub(in crate::dispatch) fn word(place: u32) -> ClassicBpfInstruction {
    plain(LD_WORD, place)
}

/// A = the byte at this place of the packet.
pub(in crate::dispatch) fn byte(place: u32) -> ClassicBpfInstruction {
    plain(LD_BYTE, place)
}

/// A = `k`.
pub(in crate::dispatch) fn number(k: u32) -> ClassicBpfInstruction {
    plain(LD_NUMBER, k)
}

/// A = a word of memory.
pub(in crate::dispatch) fn recall(cell: u32) -> ClassicBpfInstruction {
    plain(LD_MEMORY, cell)
}

/// A word of memory = A.
pub(in crate::dispatch) fn store(cell: u32) -> ClassicBpfInstruction {
    plain(STORE, cell)
}

/// X = `k`.
pub(in crate::dispatch) fn index(k: u32) -> ClassicBpfInstruction {
    plain(LDX_NUMBER, k)
}

/// X = A.
pub(in crate::dispatch) fn to_index() -> ClassicBpfInstruction {
    plain(TAX, 0)
}

pub(in crate::dispatch) fn multiply(k: u32) -> ClassicBpfInstruction {
    plain(MUL, k)
}

/// A = the rest of A divided by `k`, which is not zero.
pub(in crate::dispatch) fn modulo(k: u32) -> ClassicBpfInstruction {
    plain(MOD, k)
}

pub(in crate::dispatch) fn shift_right(k: u32) -> ClassicBpfInstruction {
    plain(RSH, k)
}

pub(in crate::dispatch) fn xor(k: u32) -> ClassicBpfInstruction {
    plain(XOR, k)
}

pub(in crate::dispatch) fn xor_index() -> ClassicBpfInstruction {
    plain(XOR_X, 0)
}

/// Skips so many instructions if A = `k`, or so many if not.
pub(in crate::dispatch) fn if_equal(k: u32, skip: u8, otherwise: u8) -> ClassicBpfInstruction {
    jump(JEQ, k, skip, otherwise)
}

/// The same for A >= `k`.
pub(in crate::dispatch) fn if_at_least(k: u32, skip: u8, otherwise: u8) -> ClassicBpfInstruction {
    jump(JGE, k, skip, otherwise)
}

/// The same for A > X.
pub(in crate::dispatch) fn if_above_index(skip: u8, otherwise: u8) -> ClassicBpfInstruction {
    jump(JGT_X, 0, skip, otherwise)
}

pub(in crate::dispatch) fn choose(socket: u32) -> ClassicBpfInstruction {
    plain(RETURN, socket)
}

/// Returns A.
pub(in crate::dispatch) fn choose_accumulator() -> ClassicBpfInstruction {
    plain(RETURN_A, 0)
}

/// A line for each instruction, as `bpf_asm` reads it.
pub(in crate::dispatch) fn listing(program: &[ClassicBpfInstruction]) -> Vec<String> {
    let line = |(at, instruction): (usize, &ClassicBpfInstruction)| {
        let ClassicBpfInstruction { code, jump_true, jump_false, k } = *instruction;
        let targets =
            || format!("{}, {}", at + 1 + jump_true as usize, at + 1 + jump_false as usize);
        let place = || match k.wrapping_sub(NETWORK) {
            _ if k == RANDOM => "rand".to_string(),
            offset if offset < 0x10_0000 => format!("[net + {offset}]"),
            _ => format!("[{k}]"),
        };
        let text = match code {
            LD_WORD => format!("ld {}", place()),
            LD_BYTE => format!("ldb {}", place()),
            LD_NUMBER => format!("ld #{k:#x}"),
            LD_MEMORY => format!("ld M[{k}]"),
            LDX_NUMBER => format!("ldx #{k:#x}"),
            STORE => format!("st M[{k}]"),
            MUL => format!("mul #{k:#x}"),
            MOD => format!("mod #{k}"),
            RSH => format!("rsh #{k}"),
            XOR => format!("xor #{k:#x}"),
            XOR_X => "xor x".to_string(),
            JEQ => format!("jeq #{k:#x}, {}", targets()),
            JGE => format!("jge #{k}, {}", targets()),
            JGT_X => format!("jgt x, {}", targets()),
            RETURN if k == NOBODY => "ret #-1".to_string(),
            RETURN => format!("ret #{k}"),
            RETURN_A => "ret a".to_string(),
            TAX => "tax".to_string(),
            _ => format!("unknown code {code:#04x}"),
        };
        format!("{at:4}: {text}")
    };
    program.iter().enumerate().map(line).collect()
}

/// The machine itself, to test programs on addresses that this host does not have.
#[cfg(test)]
pub(in crate::dispatch) fn run(
    program: &[ClassicBpfInstruction],
    network_header: &[u8],
    random: u32,
) -> u32 {
    let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; 16], 0);
    let load = |place: u32, size: usize| {
        let from = place.wrapping_sub(NETWORK) as usize;
        network_header[from..from + size].iter().fold(0, |a, byte| a << 8 | u32::from(*byte))
    };
    loop {
        let ClassicBpfInstruction { code, jump_true, jump_false, k } = program[at];
        let mut go = |yes: bool| at += usize::from(if yes { jump_true } else { jump_false });
        match code {
            LD_WORD if k == RANDOM => a = random,
            LD_WORD => a = load(k, 4),
            LD_BYTE => a = load(k, 1),
            LD_NUMBER => a = k,
            LD_MEMORY => a = memory[k as usize],
            LDX_NUMBER => x = k,
            STORE => memory[k as usize] = a,
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
