//! `prefork dispatch-program`: prints the kernel programs of a dispatch policy without loading them.

use std::fmt::Write;
use std::process::ExitCode;

use crate::settings::{FlagValues, PROGRAM};
use tokio_prefork::{Error, Result};

/// Prints the kernel programs of the configured dispatch policy and number of workers.
pub(crate) fn run_dispatch_program(flags: FlagValues) -> Result<ExitCode> {
    let settings = flags.sources(PROGRAM).resolve()?;
    for warning in settings.warnings() {
        crate::output::print_error(&format_args!("warning: {warning}"));
    }
    let (policy, slots) = (settings.config().dispatch(), settings.config().workers().resolve());
    if !policy.has_kernel_program() {
        return Err(Error::config(format!(
            "dispatch = {policy} has no kernel program: give --dispatch least-conn or --dispatch ip-hash"
        )));
    }
    crate::output::print_result(&format_kernel_programs(policy, slots))
}

fn format_kernel_programs(policy: tokio_prefork::Dispatch, slots: u32) -> String {
    let mut text = String::new();
    for program in policy.kernel_programs(slots) {
        let (backend, lines) = (program.backend, program.listing.len());
        // Writing to a string cannot fail.
        let _ = match lines {
            0 => writeln!(text, "{policy} ({backend}): no program, {slots} workers are too many"),
            _ => writeln!(text, "{policy} ({backend}): {lines} instructions for {slots} workers"),
        };
        for line in program.listing {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_prefork::Dispatch;

    #[test]
    fn each_kernel_backend_has_a_listing() {
        let least_conn = format_kernel_programs(Dispatch::LeastConn, 4);
        let headings: Vec<&str> =
            least_conn.lines().filter(|line| line.contains(" instructions ")).collect();
        assert_eq!(headings.len(), 2);
        assert!(headings[0].starts_with("least-conn (ebpf): "), "{headings:?}");
        assert!(least_conn.contains("call bpf_sk_select_reuseport#82"), "{least_conn}");
        assert!(format_kernel_programs(Dispatch::IpHash, 2).starts_with("ip-hash (ip-hash): "));
        assert!(format_kernel_programs(Dispatch::IpHash, 1024).contains("too many"));
        assert_eq!(format_kernel_programs(Dispatch::Shared, 2), "");
    }
}
