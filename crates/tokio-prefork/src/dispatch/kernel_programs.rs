//! The programs of a policy as they would be loaded, for people to read. Pure.

use super::bpf::{classic, ebpf};
use super::ip_hash;
use super::least_conn::program::{BANK, Tables};
use super::least_conn::{program as least_conn, weights};
use crate::config::Dispatch;

/// A program of one rung.
pub struct KernelProgram {
    /// `ebpf`, `cbpf-weights` or `ip-hash`.
    pub rung: &'static str,
    /// Its instructions, a line each; none if there are more slots than it can have.
    pub listing: Vec<String>,
}

/// What `policy` would load for so many slots, all of them healthy and without connections, the highest rung first.
/// The tables of the first one are numbered as if they were descriptors: 0 the desk, 1 the sockets, then the pages.
pub(super) fn plans(policy: Dispatch, slots: u32) -> Vec<KernelProgram> {
    let count = slots as usize;
    match policy {
        Dispatch::LeastConn => {
            let banks: Vec<i32> = (2..).take(count.div_ceil(BANK)).collect();
            let tables = Tables { desk: 0, banks: &banks, sockets: 1 };
            let kernel = least_conn::program(count, &tables).unwrap_or_default();
            let odds = weights::program(&weights::weights(&vec![true; count], &[]));
            vec![
                KernelProgram { rung: "ebpf", listing: ebpf::listing(&kernel) },
                KernelProgram { rung: "cbpf-weights", listing: classic::listing(&odds) },
            ]
        }
        Dispatch::IpHash => {
            let live: Vec<u32> = (0..slots).collect();
            let sticky = ip_hash::program(&live).unwrap_or_default();
            vec![KernelProgram { rung: "ip-hash", listing: classic::listing(&sticky) }]
        }
        Dispatch::Shared | Dispatch::RoundRobin | Dispatch::Reuseport => Vec::new(),
    }
}

impl Dispatch {
    /// Returns the programs that this policy would load into the kernel for `slots` healthy workers without connections,
    /// best first; none for a policy that loads no program.
    pub fn kernel_programs(self, slots: u32) -> Vec<KernelProgram> {
        plans(self, slots)
    }
}
