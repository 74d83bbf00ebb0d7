//! Lists the BPF programs of a policy without loading them. Pure.

use super::Dispatch;
use super::bpf::{classic, ebpf};
use super::ip_hash;
use super::least_conn::program::{self as least_conn_program, BANK_SLOTS, ProgramMaps};
use super::least_conn::weights;

/// A BPF program of a dispatch policy as readable text.
pub struct KernelProgram {
    /// The name of the backend, as status shows it: `ebpf`, `cbpf-weights` or `ip-hash`.
    pub backend: &'static str,
    /// One line per instruction; empty if there are more slots than the program can have.
    pub listing: Vec<String>,
}

impl Dispatch {
    /// Returns the programs that this policy would load into the kernel for `slots` healthy workers without
    /// connections, best first; none for a policy that loads no program.
    ///
    /// Maps are numbered in place of their descriptors: 0 the slot table, 1 the sockets, from 2 on the load pages.
    pub fn kernel_programs(self, slots: u32) -> Vec<KernelProgram> {
        let count = slots as usize;
        match self {
            Dispatch::LeastConn => {
                let page_banks: Vec<i32> = (2..).take(count.div_ceil(BANK_SLOTS)).collect();
                let maps = ProgramMaps { slot_table: 0, page_banks: &page_banks, sockets: 1 };
                let program = least_conn_program::assemble(count, &maps).unwrap_or_default();
                let weights = weights::slot_weights(&vec![true; count], &[]);
                vec![
                    KernelProgram { backend: "ebpf", listing: ebpf::disassemble(&program) },
                    KernelProgram {
                        backend: "cbpf-weights",
                        listing: classic::disassemble(&weights::assemble(&weights)),
                    },
                ]
            }
            Dispatch::IpHash => {
                let healthy: Vec<u32> = (0..slots).collect();
                let program = ip_hash::assemble(&healthy).unwrap_or_default();
                vec![KernelProgram { backend: "ip-hash", listing: classic::disassemble(&program) }]
            }
            Dispatch::Shared | Dispatch::RoundRobin | Dispatch::Reuseport => Vec::new(),
        }
    }
}
