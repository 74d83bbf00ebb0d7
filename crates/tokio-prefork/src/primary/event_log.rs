//! Logs the primary's events, one line for each, and keeps the lines for `prefork events`.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use log::Level;

use super::FdWatchId;
use super::event_format::{
    LogLine, error_line, format_event, format_exit_status, format_killed_with_job, info_line,
    warn_line,
};
use crate::config::{Config, Dispatch};
use crate::control::EventHistory;
use crate::error::Error;
use crate::log_output;
use crate::messages::LossReport;
use crate::status::CertificateStatus;
use crate::text::{Count, HumanDuration};
use crate::text::{Printable, format_utc, printable};
use crate::worker_stdio::OutputStream;
use prefork_os::signal::Signal;
use prefork_supervisor::{AdminKillReason, ExitReport, LogEvent};
use prefork_supervisor::{Slot, WorkerTag};

/// Writes the primary's log, and keeps its last lines for clients of the control socket.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    pub(super) history: EventHistory,
    /// Number of dropped lines that the event history has reported.
    reported_drops: u64,
    /// When the event history may report dropped lines again.
    next_drop_report: Option<Instant>,
}

impl EventLog {
    /// Creates a log whose events are numbered after `last`, the last event of the previous image.
    pub(super) fn continue_after(last: u64) -> EventLog {
        let mut event_log = EventLog::default();
        event_log.history.continue_after(last);
        event_log
    }

    /// Logs an event of the supervisor.
    pub(super) fn log_event(&mut self, event: &LogEvent) {
        self.write_line(format_event(event));
    }

    /// Reports lines that the log had to drop: to the event history at once, to the log when it has room. Returns when to call this
    /// again.
    pub(super) fn report_dropped_lines(&mut self, now: Instant) -> Option<Duration> {
        let dropped = log_output::dropped_line_count();
        let is_due = self.next_drop_report.is_none_or(|next| next <= now);
        if dropped > self.reported_drops && is_due {
            let text = log_output::dropped_lines_text(dropped - self.reported_drops);
            self.history.append_event(Level::Warn, text);
            self.reported_drops = dropped;
            self.next_drop_report = Some(now + log_output::DROPPED_REPORT_INTERVAL);
        }
        let is_behind = dropped > self.reported_drops;
        log_output::retry_dropped_report()
            .or(is_behind.then_some(log_output::DROPPED_REPORT_INTERVAL))
    }

    /// Logs the start of a primary, or of a new image that has taken over workers.
    pub(super) fn log_primary_started(
        &mut self,
        inherited_workers: Option<usize>,
        wanted_workers: u32,
        config: &Config,
        locals: &[String],
    ) {
        let (what, workers) = match inherited_workers {
            None => ("started".to_string(), format!(" workers={wanted_workers}")),
            Some(workers) => {
                (format!("took over {}", Count(workers as u64, "worker")), String::new())
            }
        };
        let dispatch = match config.dispatch == Dispatch::default() {
            true => String::new(),
            false => format!(" dispatch={}", config.dispatch),
        };
        let version = config.version().map(|version| format!(" version={version}"));
        self.write_line(info_line(format!(
            "{what}; pid={} name={}{}{workers}{dispatch}",
            std::process::id(),
            config.name(),
            version.unwrap_or_default()
        )));
        self.write_line(info_line(format!("listening on {}", locals.join(", "))));
    }

    pub(super) fn log_ignored_signal(&mut self, signal: Signal) {
        log::debug!("{} ignored", signal.as_str());
    }

    pub(super) fn log_reap_error(&mut self, worker: WorkerTag, reason: &dyn Display) {
        self.write_line(error_line(format!("{worker} cannot be waited for: {reason}")));
    }

    pub(super) fn log_group_error(&mut self, worker: WorkerTag, reason: &dyn Display) {
        let line = format!("{worker} cannot be killed with its process group: {reason}");
        self.write_line(error_line(line));
    }

    pub(super) fn log_signal_error(
        &mut self,
        worker: WorkerTag,
        signal: Signal,
        reason: &dyn Display,
    ) {
        self.write_line(error_line(format!(
            "{worker} cannot be sent {}: {reason}",
            signal.as_str()
        )));
    }

    pub(super) fn log_worker_unreachable(&mut self, worker: WorkerTag, reason: &dyn Display) {
        self.write_line(warn_line(format!(
            "{worker} does not read its channel ({reason}): it will be killed at its deadline"
        )));
    }

    pub(super) fn log_slot_handover_error(
        &mut self,
        worker: WorkerTag,
        slot: Slot,
        reason: &dyn Display,
    ) {
        log::debug!("{worker} cannot be told about slot={slot} ({reason}): trying again later");
    }

    pub(super) fn log_rotation(&mut self, path: &Path) {
        self.write_line(info_line(format!("log reopened: {}", path.display())));
    }

    pub(super) fn log_rotation_error(&mut self, reason: &dyn Display) {
        self.write_line(error_line(format!(
            "cannot switch the log file, keeping the old one: {reason}"
        )));
    }

    pub(super) fn log_access_log_opened(&mut self, path: &Path) {
        self.write_line(info_line(format!("access log opened: {}", path.display())));
    }

    pub(super) fn log_access_log_error(&mut self, reason: &dyn Display) {
        self.write_line(error_line(format!(
            "cannot reopen the access log, keeping the old file: {reason}"
        )));
    }

    /// Logs the output of a new binary whose check was stopped, as it may show where it hangs.
    pub(super) fn log_new_binary_output(&mut self, text: &str) {
        if !text.is_empty() {
            self.write_line(warn_line(format!(
                "the new binary printed before it was killed: {text}"
            )));
        }
    }

    /// Logs which backend selects among the sockets of slots; a warning if it is a fallback.
    pub(super) fn log_kernel_selector(&mut self, text: String, best: bool) {
        self.write_line(if best { info_line(text) } else { warn_line(text) });
    }

    pub(super) fn log_kernel_selector_error(&mut self, reason: &dyn Display) {
        self.write_line(error_line(format!("{reason}; falling back to the kernel's hash")));
    }

    /// Logs that new connections cannot be sent to where they should go.
    pub(super) fn log_steering_error(&mut self, text: &str) {
        self.write_line(error_line(text.to_string()));
    }

    pub(super) fn log_shared_socket(&mut self, addr: &dyn Display, reason: &str) {
        self.write_line(warn_line(format!(
            "all workers share the socket at {addr} ({reason}): a reload cannot keep new connections from a program that stops"
        )));
    }

    pub(super) fn log_socket_restored(&mut self, addr: &dyn Display, index: u32) {
        self.write_line(warn_line(format!(
            "a program has shut down its listening socket, listening again; addr={addr} socket={index}"
        )));
    }

    pub(super) fn log_reset_connections(&mut self, addr: &dyn Display, count: usize) {
        self.write_line(warn_line(format!(
            "reset connections that waited for a worker that has gone; addr={addr} connections={count}"
        )));
    }

    pub(super) fn log_restart_needed(&mut self, key: &str) {
        self.write_line(warn_line(format!(
            "{key} has changed in the configuration: restart or upgrade to apply it"
        )));
    }

    #[cfg(feature = "tls")]
    pub(super) fn log_ticket_keys_lost(&mut self, reason: &dyn Display) {
        self.write_line(warn_line(format!(
            "cannot take over the keys of session tickets ({reason}): TLS clients make a full handshake once"
        )));
    }

    #[cfg(feature = "tls")]
    pub(super) fn log_unlocked_ticket_keys(&mut self, reason: &dyn Display) {
        self.write_line(warn_line(format!(
            "keys of session tickets cannot be locked in memory and may be swapped out: {reason}; raise the limit (LimitMEMLOCK=, \
             ulimit -l)"
        )));
    }

    #[cfg(feature = "tls")]
    pub(super) fn log_ticket_key_rotation_error(&mut self, reason: &dyn Display) {
        self.write_line(error_line(format!(
            "cannot rotate the keys of session tickets: {reason}; trying again later"
        )));
    }

    pub(super) fn log_certificate_warning(&mut self, warning: &str) {
        self.write_line(warn_line(warning.to_string()));
    }

    pub(super) fn log_certificate_expires(&mut self, certificate: &CertificateStatus) {
        self.write_line(warn_line(format!(
            "certificate expires soon: {}; renew it and reload",
            expiry_fields(certificate)
        )));
    }

    pub(super) fn log_certificate_expired(&mut self, certificate: &CertificateStatus) {
        self.write_line(error_line(format!(
            "certificate has expired, clients refuse it: {}; renew it and reload",
            expiry_fields(certificate)
        )));
    }

    pub(super) fn log_listening(&mut self, local: &str) {
        self.write_line(info_line(format!("listening on {local} too")));
    }

    pub(super) fn log_listener_reopened(&mut self, local: &str) {
        self.write_line(warn_line(format!(
            "no client could reach {local} (its file was removed, or its socket shut down): opened it again"
        )));
    }

    pub(super) fn log_listener_closed(&mut self, local: &str) {
        self.write_line(info_line(format!("not listening on {local} any more")));
    }

    pub(super) fn log_no_control_directory(&mut self) {
        log::debug!(
            "no control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; set `control` to a path"
        );
    }

    pub(super) fn log_control_socket_error(&mut self, reason: &dyn Display) {
        self.write_line(warn_line(format!(
            "no control socket: {reason} (set `control` to another path, or to off)"
        )));
    }

    pub(super) fn log_control_socket_opened(&mut self, path: &Path) {
        self.write_line(info_line(format!("control socket opened at {}", path.display())));
    }

    pub(super) fn log_pid_file_written(&mut self, path: &Path) {
        self.write_line(info_line(format!("pid file written again: {}", path.display())));
    }

    pub(super) fn log_pid_file_error(&mut self, reason: &dyn Display) {
        self.write_line(error_line(format!(
            "{reason}; continuing without a pid file until the next reload"
        )));
    }

    pub(super) fn log_notify_error(&mut self, reason: &dyn Display) {
        self.write_line(warn_line(format!(
            "cannot notify the service manager at NOTIFY_SOCKET: {reason}"
        )));
    }

    pub(super) fn log_admin_listening(&mut self, local: &str) {
        self.write_line(info_line(format!("admin listener on {local}")));
    }

    pub(super) fn log_admin_ready(&mut self, pid: u32) {
        self.write_line(info_line(format!("admin process is ready; pid={pid}")));
    }

    pub(super) fn log_admin_exited(&mut self, pid: u32, status: ExitStatus, reason: Option<&str>) {
        let reason = reason.map_or(String::new(), |reason| format!(" reason={reason:?}"));
        let status = format_exit_status(status);
        self.write_line(warn_line(format!(
            "admin process ended unexpectedly, starting another one: {status}; pid={pid}{reason}"
        )));
    }

    pub(super) fn log_admin_killed(&mut self, pid: u32, reason: AdminKillReason) {
        self.write_line(warn_line(format!("admin process is killed: {reason}; pid={pid}")));
    }

    pub(super) fn log_admin_fork_error(&mut self, reason: &dyn Display) {
        self.write_line(warn_line(format!("{reason}; trying again later")));
    }

    pub(super) fn log_job_timeout(&mut self, worker: WorkerTag) {
        self.write_line(warn_line(format!("{worker} is killed: its isolated job has timed out")));
    }

    pub(super) fn log_killed_with_job(&mut self, exit: &ExitReport) {
        self.write_line(format_killed_with_job(exit));
    }

    pub(super) fn log_application_panic(
        &mut self,
        function: &dyn Display,
        occasion: &dyn Display,
        panic: &str,
    ) {
        self.write_line(error_line(format!("{function} panicked at {occasion}: {panic}")));
    }

    pub(super) fn log_slow_application_call(
        &mut self,
        function: &dyn Display,
        occasion: &dyn Display,
        took: Duration,
    ) {
        let took = HumanDuration(took);
        self.write_line(warn_line(format!(
            "{function} took {took} at {occasion}: nothing is supervised meanwhile"
        )));
    }

    pub(super) fn log_refusing_connections(&mut self, locals: &[String]) {
        if !locals.is_empty() {
            self.write_line(warn_line(format!(
                "refusing connections at {}: no worker is left to accept them",
                locals.join(", ")
            )));
        }
    }

    pub(super) fn log_refuse_error(&mut self, local: &str, reason: &dyn Display) {
        self.write_line(error_line(format!("cannot refuse connections at {local}: {reason}")));
    }

    pub(super) fn log_listening_again(&mut self, locals: &[String]) {
        self.write_line(info_line(format!("listening on {} again", locals.join(", "))));
    }

    pub(super) fn log_listen_again_error(&mut self, reason: &dyn Display) {
        self.write_line(error_line(format!("{reason}; reload to try again")));
    }

    pub(super) fn log_start_hook_error(&mut self, error: &Error) {
        self.write_line(error_line(format!("{error}; the cluster runs on without it")));
    }

    /// Logs that the hook of a descriptor leaves it readable again and again.
    pub(super) fn log_unread_descriptor(&mut self, watch: FdWatchId) {
        self.write_line(warn_line(format!(
            "the hook of descriptor {watch} does not drain it: it is called less often now; read until WouldBlock, and \
             cancel it at the end of the stream (PrimaryHandle::cancel_current)"
        )));
    }

    pub(super) fn log_dropped_hook_command(&mut self, command: &str) {
        self.write_line(warn_line(format!(
            "dropped a command of a hook: too many are pending: {command}"
        )));
    }

    pub(super) fn log_missing_message_handler(&mut self, kind: &str, from: WorkerTag) {
        self.write_line(warn_line(format!(
            "{from} sends messages of kind {kind:?} without a function for them (Cluster::on_message): dropped"
        )));
    }

    #[cfg(feature = "stack-traces")]
    pub(super) fn log_stalled_in(&mut self, worker: WorkerTag, stack: &str) {
        self.write_line(warn_line(format!("{worker} stalled in {stack}")));
    }

    #[cfg(feature = "stack-traces")]
    pub(super) fn log_no_stack(&mut self, worker: WorkerTag, reason: &dyn Display) {
        self.write_line(warn_line(format!("{worker} stalled, and has no stack: {reason}")));
    }

    #[cfg(feature = "stack-traces")]
    pub(super) fn log_stack_memory_error(&mut self, reason: &dyn Display) {
        self.write_line(warn_line(format!(
            "cannot create memory for the stacks of stalled workers: {reason}; the log will not show them"
        )));
    }

    pub(super) fn log_closed_message_channels(&mut self, reason: &str) {
        self.write_line(error_line(format!(
            "closed the message channels of the previous image's workers; error={reason:?}"
        )));
    }

    pub(super) fn log_lost_isolated_jobs(&mut self, reason: &str) {
        self.write_line(error_line(format!(
            "lost the isolated jobs of the previous image; error={reason:?}"
        )));
    }

    pub(super) fn log_lost_messages(&mut self, loss: &LossReport, total: u64) {
        let LossReport { kind, reason, count } = loss;
        let kind = kind.as_str();
        self.write_line(warn_line(format!(
            "messages were lost: {reason}; kind={kind:?} count={count} total={total}"
        )));
    }

    /// Writes a line to the log and, from level INFO, to the event history. Escapes control characters of names, paths and reports.
    fn write_line(&mut self, (level, text): LogLine) {
        let text = printable(&text).into_owned();
        log::log!(level, "{text}");
        if level <= Level::Info {
            self.history.append_event(level, text);
        }
    }
}

/// Returns whether a count has passed a power of two: the first, second, fourth and so on is logged.
fn expiry_fields(certificate: &CertificateStatus) -> String {
    let CertificateStatus { file, subject, not_after_ms, days_left, .. } = certificate;
    format!(
        "file={} subject={:?} not_after={} days_left={days_left}",
        printable(file),
        printable(subject),
        format_utc(*not_after_ms)
    )
}

pub(super) fn has_passed_power_of_two(before: u64, after: u64) -> bool {
    before.checked_ilog2() != after.checked_ilog2()
}

/// Logs a line that a worker has printed. Not an event: a worker that prints much would displace the others.
pub(super) fn log_worker_output(worker: WorkerTag, stream: OutputStream, line: &[u8]) {
    log::info!("{worker} {stream}: {}", Printable(String::from_utf8_lossy(line)));
}

pub(super) fn log_title_error(reason: &dyn Display) {
    log::debug!("cannot set the process title: {reason}");
}

pub(super) fn log_lost_handovers(count: u64, reason: &str) {
    log::warn!("closed {count} connections so far during hand-over: {reason}");
}

pub(crate) fn log_lost_connections(count: u64, reason: &str) {
    log::warn!("closed {count} new connections so far that no worker had taken: {reason}");
}

pub(crate) fn log_accept_error(local: &str, reason: &dyn Display) {
    log::error!(
        "cannot accept on {local}: {reason}; trying again each second (if the socket was shut down, a reload opens it again; \
         if a seccomp filter or a security module forbids accept4, allow it)"
    );
}

pub(crate) fn log_accept_recovered(local: &str) {
    log::info!("accepting on {local} again");
}

pub(crate) fn log_out_of_descriptors(local: &str, reason: &dyn Display) {
    log::error!(
        "cannot accept on {}: {reason}; trying again ten times a second (raise LimitNOFILE?)",
        Printable(local)
    );
}
