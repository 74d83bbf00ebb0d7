//! `least-conn`: the kernel selects the healthy slot with the fewest connections.
//!
//! Tries these backends in turn:
//!
//! | backend | what selects | needs |
//! |---|---|---|
//! | `ebpf` | an eBPF program that reads loads and health from shared memory (`program`, `memory`) | CAP_BPF |
//! | `cbpf-weights` | chance, weighted towards slots with fewer connections (`weights`) | no privilege |
//! | `hash` | the kernel's hash of both addresses | no privilege |

mod count_reconciliation;
pub(super) mod load_page;
pub(super) mod memory;
pub(super) mod program;
pub(super) mod weights;

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::kernel_selector::{ReuseportGroup, SelectorBackend, SlotLoad, detach_programs};
use super::reuseport::KernelHash;
use crate::error::Result;
use load_page::{LoadPage, LoadPageLease};
use memory::LeastConnMemory;
use prefork_os::bpf::{self, EbpfInstruction, ReuseportSocketMap};
use prefork_supervisor::Slot;
use program::{MAX_SLOTS, ProgramMaps, SLOT_TABLE_ENTRIES, slot_table_index};
use weights::WeightedRandomProgram;

/// Upper bound of the open and queued connections that a worker may report for its slot.
pub(super) const MAX_SLOT_LOAD: u64 = 1 << 16;

/// How long sockets may stay in the map of an earlier image that is being freed.
const SOCKET_RELEASE_TIMEOUT: Duration = Duration::from_millis(200);
const SOCKET_RELEASE_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Attaches the best backend that the kernel accepts, and records why better ones were refused.
pub(super) fn start(
    slots: usize,
    healthy: &[bool],
    groups: &[ReuseportGroup<'_>],
    refusals: &mut Vec<String>,
) -> Box<dyn SelectorBackend> {
    match LeastConnProgram::attach(slots, groups) {
        Ok(program) => return Box::new(program),
        Err(why) => refusals.push(format!("cannot choose by load in the kernel: {why}")),
    }
    match WeightedRandomProgram::attach(healthy, groups) {
        Ok(weighted) => return Box::new(weighted),
        Err(e) => refusals.push(format!("cannot choose by weights: {e}")),
    }
    Box::new(KernelHash)
}

/// The eBPF program, with the maps that it reads.
pub(super) struct LeastConnProgram {
    pub(super) memory: LeastConnMemory,
    /// The sockets, one map per group. Created at full size, as a socket cannot move to another map.
    socket_maps: Vec<ReuseportSocketMap>,
    /// How many slots have their sockets in the maps.
    inserted_slots: usize,
    /// How many slots the attached programs cover.
    slots: usize,
    /// The instructions of the first group's program.
    instructions: Vec<EbpfInstruction>,
}

impl LeastConnProgram {
    fn attach(slots: usize, groups: &[ReuseportGroup<'_>]) -> Result<LeastConnProgram, String> {
        let memory = LeastConnMemory::create(slots).map_err(|e| explain_refusal(&e))?;
        let mut program = LeastConnProgram {
            memory,
            socket_maps: Vec::new(),
            inserted_slots: 0,
            slots: 0,
            instructions: Vec::new(),
        };
        if let Err(why) = program.replace_groups(slots, groups) {
            // Some groups may have their program already: all or none.
            program.release_sockets();
            detach_programs(groups);
            return Err(why);
        }
        Ok(program)
    }

    /// Inserts the sockets of new slots into the maps, or none of them.
    fn insert_sockets(
        &mut self,
        slots: usize,
        groups: &[ReuseportGroup<'_>],
    ) -> Result<(), String> {
        let before = self.inserted_slots;
        for (map, group) in self.socket_maps.iter().zip(groups) {
            for (slot, socket) in group.0.iter().enumerate().take(slots).skip(before) {
                let index = slot_table_index(slot) as u32;
                let inserted = retry_while_busy(|| bpf::insert_socket(map, index, *socket));
                inserted.map_err(|e| {
                    self.remove_sockets(before, slots);
                    format!("cannot insert the socket of slot {slot} into the map: {e}")
                })?;
            }
        }
        self.inserted_slots = slots;
        Ok(())
    }

    fn remove_sockets(&self, from: usize, to: usize) {
        for map in &self.socket_maps {
            for slot in from..to {
                // A failure means that the socket is not in the map, or closed.
                let _ = bpf::remove_socket(map, slot_table_index(slot) as u32);
            }
        }
    }
}

impl SelectorBackend for LeastConnProgram {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn set_slot_health(
        &mut self,
        slot: usize,
        healthy: &[bool],
        _groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        self.memory.set_health(slot, healthy[slot]);
        Ok(())
    }

    /// Corrects the program's count of queued connections.
    fn refresh(
        &mut self,
        loads: &[SlotLoad],
        _healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        for slot in 0..self.slots {
            let open = loads.get(slot).map_or(0, |load| load.open);
            let sockets = groups.iter().filter_map(|group| group.0.get(slot));
            let queue_depth = |socket| match prefork_os::socket::accept_queue(socket) {
                Ok(queue) => u64::from(queue.depth),
                Err(_) => 0,
            };
            self.memory.reconcile_counts(slot, open, || sockets.map(queue_depth).sum());
        }
        Ok(())
    }

    fn add_slots(&mut self, slots: usize, groups: &[ReuseportGroup<'_>]) -> Result<(), String> {
        self.memory.add_slots(slots).map_err(|e| explain_refusal(&e))?;
        self.insert_sockets(slots, groups)?;
        let (slot_table, page_banks) = self.memory.map_fds();
        let mut programs = Vec::new();
        for map in &self.socket_maps {
            let maps =
                ProgramMaps { slot_table, page_banks: &page_banks, sockets: map.as_raw_fd() };
            let instructions = program::assemble(slots, &maps)
                .ok_or_else(|| format!("{slots} slots are more than {MAX_SLOTS}"))?;
            let load = || bpf::load_reuseport_program("prefork_least", &instructions);
            let loaded = bpf::with_raised_memlock_limit(1 << 20, load).map_err(|refusal| {
                match refusal.verifier_log.is_empty() {
                    true => explain_refusal(&refusal.error),
                    false => {
                        format!("{} ({})", explain_refusal(&refusal.error), refusal.verifier_log)
                    }
                }
            })?;
            programs.push((loaded, instructions));
        }
        // All programs are verified before the first one is attached.
        for ((loaded, _), group) in programs.iter().zip(groups) {
            let Some(socket) = group.0.first() else { continue };
            bpf::attach_reuseport_program(*socket, loaded)
                .map_err(|e| format!("cannot attach the program: {e}"))?;
        }
        self.slots = slots;
        let first = programs.into_iter().next();
        self.instructions = first.map(|(_, instructions)| instructions).unwrap_or_default();
        Ok(())
    }

    /// Creates new maps. While they are filled, the kernel's hash selects.
    fn replace_groups(
        &mut self,
        slots: usize,
        groups: &[ReuseportGroup<'_>],
    ) -> Result<(), String> {
        let create = |_: &ReuseportGroup<'_>| {
            // Eight bytes per entry, and the kernel's overhead.
            bpf::with_raised_memlock_limit(1 << 16, || {
                bpf::create_reuseport_socket_map("prefork_sockets", SLOT_TABLE_ENTRIES as u32)
            })
        };
        let maps: io::Result<_> = groups.iter().map(create).collect();
        let maps = maps.map_err(|e| explain_refusal(&e))?;
        self.release_sockets();
        self.socket_maps = maps;
        self.add_slots(slots, groups)
    }

    fn lease_page(&mut self, slot: Slot) -> LoadPageLease {
        self.memory.lease_page(slot)
    }

    fn activate_page(&mut self, lease: LoadPageLease) {
        self.memory.activate_page(lease);
    }

    fn free_page(&mut self, lease: LoadPageLease) {
        self.memory.free_page(lease);
    }

    fn keep_only_page(self: Box<Self>, lease: LoadPageLease) -> io::Result<LoadPage> {
        self.memory.keep_only_page(lease)
    }

    fn release_sockets(&mut self) {
        self.remove_sockets(0, self.inserted_slots);
        self.inserted_slots = 0;
    }

    #[cfg(test)]
    fn program_listing(&self) -> Vec<String> {
        super::bpf::ebpf::disassemble(&self.instructions)
    }

    #[cfg(test)]
    fn as_least_conn(&mut self) -> Option<&mut LeastConnProgram> {
        Some(self)
    }
}

fn explain_refusal(error: &io::Error) -> String {
    if bpf::is_permission_denied(error) {
        return format!("{error}: it takes CAP_BPF at the start");
    }
    format!("the kernel refuses: {error}")
}

/// Retries for 200 ms while the kernel still frees the map of an earlier image.
fn retry_while_busy(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match attempt() {
            Err(e)
                if e.kind() == io::ErrorKind::ResourceBusy && waited < SOCKET_RELEASE_TIMEOUT =>
            {
                std::thread::sleep(SOCKET_RELEASE_RETRY_INTERVAL);
                waited += SOCKET_RELEASE_RETRY_INTERVAL;
            }
            other => return other,
        }
    }
}
