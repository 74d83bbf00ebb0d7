//! Forks the process of the admin listener, and makes the child one.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::{AdminProcess, AdminSettings};
use crate::admin::{AdminProcessInit, PROCESS_PAGES, run_admin_process};
use crate::channel::PrimaryChannelEnd;
use crate::config::Config;
use crate::error::{Error, Result, exit};
use crate::log_output::ProcessRole;
use crate::primary::Primary;
use crate::process_limits::ProcessLimits;
use prefork_os::child::{ForkResult, exit_without_cleanup, fork_process};
use prefork_os::fd_passing::create_seqpacket_pair;
use prefork_os::resource_limits::ProcessMemory;
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_supervisor::{AdminProcessId, Generation};

/// How much private memory the process may have besides what the primary had at the fork.
const MAX_OWN_MEMORY_BYTES: u64 = 256 << 20;

/// The niceness of the process: the workers come first.
const NICENESS: u32 = 5;

/// The adjustment by which the kernel kills the process rather than others when memory runs out, of -1000 to 1000.
const OOM_SCORE_ADJUSTMENT: i32 = 500;

/// What a fork passes to the child.
struct ForkedProcess {
    channel: OwnedFd,
    page: usize,
    primary_pid: u32,
    generation: Generation,
    blocked_signals: BlockedSignals,
}

impl Primary {
    /// Forks a process of the admin listener. In the child it does not return.
    pub(super) fn fork_admin_process(&mut self, id: AdminProcessId) {
        if let Err(e) = self.try_fork_admin_process(id) {
            self.event_log.log_admin_fork_error(&e);
            self.admin.supervisor.on_exited(Instant::now(), id);
        }
    }

    fn try_fork_admin_process(&mut self, id: AdminProcessId) -> Result<()> {
        let failed = |what, e| Error::system(format!("create {what} for the admin listener"), e);
        let is_taken = |page| self.admin.processes.values().any(|one| one.page == Some(page));
        let page = (0..PROCESS_PAGES).find(|page| !is_taken(*page));
        let page =
            page.ok_or_else(|| Error::internal("too many processes of the admin listener"))?;
        let memory = self.admin.memory.as_ref();
        let memory = memory.ok_or_else(|| Error::internal("the admin listener has no memory"))?;
        memory.clear_process_page(page);
        let channel = create_seqpacket_pair().map_err(|e| failed("a channel", e))?;
        let generation = self.supervisor.wanted_generation();
        let primary_pid = std::process::id();
        let blocked_signals =
            BlockedSignals::block_all().map_err(|e| Error::system("block signals", e))?;
        match fork_process()? {
            ForkResult::Parent(pid) => {
                let process = AdminProcess {
                    pid,
                    channel: Some(PrimaryChannelEnd::new(channel.0)),
                    page: Some(page),
                    generation,
                    forked_at: Instant::now(),
                    boot_error: None,
                };
                self.admin.processes.insert(id, process);
                self.admin.is_changed = true;
                Ok(())
            }
            ForkResult::Child => {
                crate::worker::set_worker_process();
                ProcessRole::Admin.set();
                drop(channel.0);
                let channel = channel.1;
                let forked =
                    ForkedProcess { channel, page, primary_pid, generation, blocked_signals };
                exit_without_cleanup(self.run_as_admin_process(forked))
            }
        }
    }

    /// Runs the process in the child and returns its exit status. A panic must not unwind into the primary's frames.
    fn run_as_admin_process(&mut self, forked: ForkedProcess) -> u8 {
        let run = || match self.become_admin_process(forked) {
            Ok(Some(init)) => run_admin_process(init),
            // The primary is dead already.
            Ok(None) => exit::OK,
            Err(e) => {
                log::error!("the process of the admin listener cannot start: {e}");
                e.exit_status()
            }
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or(exit::FAILURE)
    }

    /// Gives up what is not the admin process's. Returns `None` if the primary is dead already.
    fn become_admin_process(&mut self, forked: ForkedProcess) -> Result<Option<AdminProcessInit>> {
        let ForkedProcess { channel, page, primary_pid, generation, blocked_signals } = forked;
        let config = Arc::new(self.configs.config_or_last(generation).clone());
        if let Some(credentials) = config.credentials() {
            credentials.drop_privileges()?;
        }
        // Not before: the kernel clears the parent death signal when a process changes its user.
        let is_alive = prefork_os::parent_death::kill_on_parent_death(primary_pid)
            .map_err(|e| Error::system("set the parent death signal", e))?;
        if !is_alive {
            return Ok(None);
        }
        set_title(&config, generation);
        let AdminSettings { token, .. } = self.admin.settings.clone();
        let listeners = self.admin.sockets.take_for_process(&self.admin.settings);
        let memory = self.admin.memory.as_mut();
        let memory = memory.ok_or_else(|| Error::internal("the admin listener has no memory"))?;
        let reader = memory.reader();
        let own_page = memory
            .keep_only_process_page(page)
            .map_err(|e| Error::system("keep only the admin process's own page", e))?;
        self.close_primary_state();
        self.kernel_selector = None;
        // The admin process keeps no socket of the service. Files of Unix sockets stay the primary's.
        drop(self.listeners.take_for_worker(&[], prefork_supervisor::Slot(0), false));
        prefork_os::process::remove_env_vars(crate::primary::fork_worker::is_variable_of_primary)?;
        let terminate = prefork_os::signal::register_signal_flag(Signal::SIGTERM)
            .map_err(|e| Error::system("catch SIGTERM", e))?;
        self.scoreboard
            .unmap_writable_pages()
            .map_err(|e| Error::system("unmap the writable scoreboard", e))?;
        let scoreboard = self.scoreboard.reader(&self.supervisor.kind_first_slots());
        limit_resources(primary_pid)?;
        drop(blocked_signals);
        Ok(Some(AdminProcessInit {
            token,
            listeners,
            channel,
            memory: reader,
            own_page,
            scoreboard,
            config,
            terminate,
        }))
    }
}

fn set_title(config: &Config, generation: Generation) {
    if config.titles {
        let title = format!("{}: admin (gen {generation})", config.name());
        prefork_os::process::set_process_title(&title)
            .unwrap_or_else(|e| crate::primary::event_log::log_title_error(&e));
    }
}

/// Limits what the process can take from the others.
fn limit_resources(primary_pid: u32) -> Result<()> {
    let memory = ProcessMemory::of_this_process()
        .map_err(|e| Error::system("read the memory of this process", e))?;
    let max_data = Some(memory.data.saturating_add(MAX_OWN_MEMORY_BYTES));
    ProcessLimits { max_data, ..ProcessLimits::default() }.apply(primary_pid)?;
    // Both only help the others: a system that refuses them is no reason not to serve.
    let _ = prefork_os::thread::set_thread_niceness(NICENESS);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT.to_string());
    Ok(())
}
