//! The rungs of the ladder: programs that are attached to groups of sockets.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::ip_hash;
use super::kernel_selector::{Group, Load};
use super::least_conn::memory::Memory;
use super::least_conn::{program as least_conn, weights};
use crate::error::{Error, Result};
use prefork_os::bpf::{self, ClassicBpfInstruction, EbpfInstruction, ReuseportSocketMap};

/// For how long sockets may be held by the table of an image that is no more, and how often to ask.
const PATIENCE: Duration = Duration::from_millis(200);
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// What chooses.
pub(super) enum Rung {
    Kernel(Kernel),
    Odds(Odds),
    Sticky(Sticky),
    Hash,
}

/// The program that reads loads and health itself.
pub(super) struct Kernel {
    pub(super) memory: Memory,
    /// The sockets, by group. As large as can be from the start: a socket can not move to another table.
    tables: Vec<ReuseportSocketMap>,
    /// How many slots the tables know, and how many the programs.
    entered: usize,
    slots: usize,
    /// Of the first group.
    pub(super) program: Vec<EbpfInstruction>,
}

impl Kernel {
    pub(super) fn start(slots: usize, groups: &[Group<'_>]) -> Result<Kernel, String> {
        let memory = Memory::create(slots).map_err(|e| refused(&e))?;
        let (tables, program) = (Vec::new(), Vec::new());
        let mut kernel = Kernel { memory, tables, entered: 0, slots: 0, program };
        if let Err(why) = kernel.regroup(slots, groups) {
            // Not half: what some groups have already is taken back.
            kernel.let_go();
            groups
                .iter()
                .filter_map(|g| g.0.first())
                .for_each(|s| drop(bpf::detach_reuseport_program(*s)));
            return Err(why);
        }
        Ok(kernel)
    }

    /// New tables, for other groups than before. While they are filled, the hash chooses.
    pub(super) fn regroup(&mut self, slots: usize, groups: &[Group<'_>]) -> Result<(), String> {
        let (name, places) = ("prefork_sockets", least_conn::PLACES as u32);
        let table = |_: &Group<'_>| {
            // Eight bytes a place, and what the kernel needs besides.
            bpf::with_raised_memlock_limit(1 << 16, || {
                bpf::create_reuseport_socket_map(name, places)
            })
        };
        let tables =
            groups.iter().map(table).collect::<io::Result<_>>().map_err(|e| refused(&e))?;
        self.let_go();
        self.tables = tables;
        self.grow(slots, groups)
    }

    /// Programs for so many slots, in place of those before.
    pub(super) fn grow(&mut self, slots: usize, groups: &[Group<'_>]) -> Result<(), String> {
        self.memory.grow(slots).map_err(|e| refused(&e))?;
        self.enter(slots, groups)?;
        let (desk, banks) = self.memory.maps();
        let mut programs = Vec::new();
        for table in &self.tables {
            let tables = least_conn::Tables { desk, banks: &banks, sockets: table.as_raw_fd() };
            let program = least_conn::program(slots, &tables)
                .ok_or_else(|| format!("{slots} slots are more than {}", least_conn::MOST))?;
            let load = || bpf::load_reuseport_program("prefork_least", &program);
            let loaded = bpf::with_raised_memlock_limit(1 << 20, load).map_err(|refusal| {
                format!("{}{}", refused(&refusal.error), in_brackets(&refusal.verifier_log))
            })?;
            programs.push((loaded, program));
        }
        // All are verified before the first is attached.
        for ((loaded, _), group) in programs.iter().zip(groups) {
            let Some(socket) = group.0.first() else { continue };
            bpf::attach_reuseport_program(*socket, loaded)
                .map_err(|e| format!("cannot attach the program: {e}"))?;
        }
        self.slots = slots;
        self.program = programs.into_iter().next().map(|(_, program)| program).unwrap_or_default();
        Ok(())
    }

    /// Enters the sockets of new slots into the tables: all or none.
    fn enter(&mut self, slots: usize, groups: &[Group<'_>]) -> Result<(), String> {
        let before = self.entered;
        for (table, group) in self.tables.iter().zip(groups) {
            for (slot, socket) in group.0.iter().enumerate().take(slots).skip(before) {
                let index = least_conn::place(slot) as u32;
                let entered = patiently(|| bpf::insert_socket(table, index, *socket));
                entered.map_err(|e| {
                    self.empty(before, slots);
                    format!("cannot enter the socket of slot {slot}: {e}")
                })?;
            }
        }
        self.entered = slots;
        Ok(())
    }

    fn empty(&self, from: usize, to: usize) {
        for table in &self.tables {
            for slot in from..to {
                // Not in there, or gone with its socket: just what is wanted.
                let _ = bpf::remove_socket(table, least_conn::place(slot) as u32);
            }
        }
    }

    /// Empties the tables, so that the sockets may enter others.
    pub(super) fn let_go(&mut self) {
        self.empty(0, self.entered);
        self.entered = 0;
    }

    /// Makes what is counted as waiting true again.
    pub(super) fn mend(&mut self, loads: &[Load], groups: &[Group<'_>]) {
        for slot in 0..self.slots {
            let open = loads.get(slot).map_or(0, |load| load.open);
            let sockets = groups.iter().filter_map(|group| group.0.get(slot));
            // A socket that does not tell has nothing to add.
            let queued = || {
                sockets
                    .map(|s| {
                        prefork_os::socket::accept_queue(s)
                            .map_or(0, |queue| u64::from(queue.depth))
                    })
                    .sum()
            };
            self.memory.correct(slot, open, queued);
        }
    }
}

fn refused(error: &io::Error) -> String {
    if bpf::is_permission_denied(error) {
        return format!("{error}: it takes CAP_BPF at the start");
    }
    format!("the kernel refuses: {error}")
}

fn in_brackets(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// Tries again for a moment while the kernel is busy letting go.
fn patiently(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && waited < PATIENCE => {
                std::thread::sleep(ASK_AGAIN);
                waited += ASK_AGAIN;
            }
            other => return other,
        }
    }
}

/// Chance with odds.
pub(super) struct Odds {
    pub(super) loads: Vec<Load>,
    weights: Vec<u32>,
    pub(super) program: Vec<ClassicBpfInstruction>,
}

impl Odds {
    pub(super) fn start(healthy: &[bool], groups: &[Group<'_>]) -> Result<Odds, String> {
        let weights = weights::weights(healthy, &[]);
        let program = weights::program(&weights);
        attach(groups, &program).map_err(|e| e.to_string())?;
        Ok(Odds { loads: Vec::new(), weights, program })
    }

    /// New odds, if they differ enough to be worth it.
    pub(super) fn update(&mut self, healthy: &[bool], groups: &[Group<'_>]) -> Result<()> {
        let weights = weights::weights(healthy, &self.loads);
        if !weights::differ(&self.weights, &weights) {
            return Ok(());
        }
        let program = weights::program(&weights);
        attach(groups, &program).map_err(|e| Error::system("attach the new weights", e))?;
        (self.weights, self.program) = (weights, program);
        Ok(())
    }

    pub(super) fn regroup(&self, groups: &[Group<'_>]) -> io::Result<()> {
        attach(groups, &self.program)
    }
}

/// By the client's address.
pub(super) struct Sticky {
    live: Vec<u32>,
    pub(super) program: Vec<ClassicBpfInstruction>,
}

impl Sticky {
    pub(super) fn start(healthy: &[bool], groups: &[Group<'_>]) -> Result<Sticky, String> {
        let mut sticky = Sticky { live: Vec::new(), program: Vec::new() };
        // Whether the kernel takes such a program is seen at once.
        let program = ip_hash::program(&[]).unwrap_or_default();
        attach(groups, &program).map_err(|e| e.to_string())?;
        sticky.program = program;
        match sticky.update(healthy, groups) {
            Ok(None) => Ok(sticky),
            Ok(Some(why)) => Err(why),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A program for the slots that are healthy now; or why there is none, and the hash chooses meanwhile.
    pub(super) fn update(
        &mut self,
        healthy: &[bool],
        groups: &[Group<'_>],
    ) -> Result<Option<String>> {
        let live: Vec<u32> =
            (0..).zip(healthy).filter(|(_, h)| **h).map(|(slot, _)| slot).collect();
        let too_many = || format!("{} slots are more than {}", live.len(), ip_hash::MOST);
        let (program, why) = match ip_hash::program(&live) {
            Some(program) => (program, None),
            // With no slots given, the program leaves all to the hash.
            None => (ip_hash::program(&[]).unwrap_or_default(), Some(too_many())),
        };
        if live != self.live {
            attach(groups, &program).map_err(|e| {
                Error::system("attach the program of ip-hash (see net.core.optmem_max)", e)
            })?;
            (self.live, self.program) = (live, program);
        }
        Ok(why)
    }

    pub(super) fn regroup(&self, groups: &[Group<'_>]) -> io::Result<()> {
        attach(groups, &self.program)
    }
}

fn attach(groups: &[Group<'_>], program: &[ClassicBpfInstruction]) -> io::Result<()> {
    let mut sockets = groups.iter().filter_map(|group| group.0.first());
    sockets.try_for_each(|socket| bpf::attach_classic_reuseport_program(*socket, program))
}
