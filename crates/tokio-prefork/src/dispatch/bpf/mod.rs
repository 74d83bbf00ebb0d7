//! Assemblers for the two instruction sets of BPF.

pub(super) mod classic;
pub(super) mod ebpf;
