//! `prefork dispatch-program`: what would be loaded into the kernel, without loading it.

use std::fmt::Write;
use std::process::ExitCode;

use crate::settings::{ConfigSources, FlagValues};
use tokio_prefork::{Error, Result};

pub(crate) fn run_dispatch_program(flags: FlagValues) -> Result<ExitCode> {
    let settings = ConfigSources::of_this_process(flags).resolve()?;
    for warning in &settings.warnings {
        crate::output::print_error(&format_args!("warning: {warning}"));
    }
    let (policy, slots) = (settings.config.dispatch, settings.config.workers.resolve());
    if !policy.has_kernel_program() {
        return Err(Error::config(format!(
            "dispatch {policy} loads no program: give --dispatch least-conn or --dispatch ip-hash"
        )));
    }
    crate::output::print_answer(&text(policy, slots))
}

fn text(policy: tokio_prefork::Dispatch, slots: u32) -> String {
    let mut text = String::new();
    for plan in policy.kernel_programs(slots) {
        let (rung, lines) = (plan.backend, plan.listing.len());
        // Writing to a string cannot fail.
        let _ = match lines {
            0 => writeln!(text, "{policy} ({rung}): none for {slots} workers, they are too many"),
            _ => writeln!(text, "{policy} ({rung}): {lines} instructions for {slots} workers"),
        };
        for line in plan.listing {
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
    fn every_rung_has_its_program_and_the_hash_has_none() {
        let least_conn = text(Dispatch::LeastConn, 4);
        let heads: Vec<&str> =
            least_conn.lines().filter(|line| line.contains(" instructions ")).collect();
        assert_eq!(heads.len(), 2);
        assert!(heads[0].starts_with("least-conn (ebpf): "), "{heads:?}");
        assert!(least_conn.contains("call bpf_sk_select_reuseport#82"), "{least_conn}");
        assert!(text(Dispatch::IpHash, 2).starts_with("ip-hash (ip-hash): "));
        assert!(text(Dispatch::IpHash, 1024).contains("too many"));
        assert_eq!(text(Dispatch::Shared, 2), "");
    }
}
