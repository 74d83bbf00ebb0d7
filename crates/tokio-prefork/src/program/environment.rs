//! The environment of a program.

use std::ffi::OsString;

use super::Program;
use crate::listener::Listener;
use crate::systemd::SERVICE_MANAGER_VARIABLES;
use prefork_supervisor::WorkerTag;

/// The variable that holds the pid of the program. Its value is known after the fork only.
pub(super) const LISTEN_PID: &str = "LISTEN_PID";

/// The variable that holds the id of the worker. All that a program starts has it.
pub(crate) const WORKER_VARIABLE: &str = "PREFORK_WORKER";

/// Returns the environment of a program, without [`LISTEN_PID`]: that of this process, the sockets, the address, and what
/// the program's settings add. The last value of a name counts.
pub(super) fn program_environment(
    program: &Program,
    tag: WorkerTag,
    listeners: &[Listener],
    service_variables: &[(&str, String)],
) -> Vec<(OsString, OsString)> {
    let is_ours = |name: &OsString| {
        name.to_str().is_some_and(|name| SERVICE_MANAGER_VARIABLES.contains(&name))
    };
    let mut variables: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(name, _)| !is_ours(name)).collect();
    let mut set = |name: &str, value: String| {
        variables.retain(|(other, _)| other != name);
        variables.push((name.into(), value.into()));
    };
    if !program.names_descriptors() {
        set("LISTEN_FDS", listeners.len().to_string());
        let names: Vec<String> =
            listeners.iter().map(|one| socket_name(&one.real_addr().to_string())).collect();
        set("LISTEN_FDNAMES", names.join(":"));
    }
    for (name, value) in service_variables {
        set(name, value.clone());
    }
    if let Some(addr) = listeners.first().and_then(Listener::tcp) {
        set("PORT", addr.port().to_string());
        set("HOST", addr.ip().to_string());
    }
    set(WORKER_VARIABLE, tag.id.to_string());
    set("PREFORK_SLOT", tag.slot.to_string());
    for (name, value) in &program.environment {
        variables.retain(|(other, _)| other != name);
        variables.push((name.clone(), value.clone()));
    }
    variables
}

/// Returns the name of a socket for `LISTEN_FDNAMES`, in which `:` separates names: its address with other characters.
fn socket_name(addr: &str) -> String {
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || "._-/@[]".contains(c) { c } else { '_' };
    addr.chars().map(allowed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_name_has_no_separator() {
        assert_eq!(socket_name("127.0.0.1:80"), "127.0.0.1_80");
        assert_eq!(socket_name("unix:/run/a b"), "unix_/run/a_b");
    }
}
