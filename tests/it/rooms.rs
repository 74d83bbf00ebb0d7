//! The rooms of the house, and who may import whom.

use crate::support::source::{File, sources};
use crate::tidy::none;

/// What every room may import: whoever shows text needs it.
const FOR_ALL: &[&str] = &["printable"];

/// Rooms (and single files before their rooms) with what each may import from the crate.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("identity", &[]),
    ("span", &[]),
    ("aside", &[]),
    ("trust", &[]),
    ("printable", &[]),
    ("pid_file", &["error", "sys", "upgrade::PassedFile"]),
    ("log_file", &["error", "sys"]),
    ("log_output", &["error", "sys", "upgrade::ends_with"]),
    ("socket_file", &["error", "sys"]),
    ("sys", &["error"]),
    ("privilege", &["error", "sys"]),
    ("config", &["error", "listener", "identity", "privilege", "log_file"]),
    ("supervisor", &["identity", "config::Policy", "config::Workers"]),
    ("listener", &["error", "sys", "config", "identity", "systemd", "upgrade", "socket_file"]),
    ("ipc", &["error", "sys", "config", "identity"]),
    ("mail", &["error", "sys", "identity", "aside", "trust"]),
    ("isolated", &["error", "identity", "mail"]),
    ("scoreboard", &["error", "sys", "config", "identity"]),
    ("shared", &["error", "sys"]),
    ("systemd", &["error", "sys", "config", "identity"]),
    ("upgrade", &["error", "sys", "config", "control", "identity", "scoreboard::Counters"]),
    ("pool", &["error", "sys", "scoreboard"]),
    (
        "control",
        &[
            "error",
            "sys",
            "config",
            "identity",
            "supervisor",
            "scoreboard",
            "shared",
            "socket_file",
            "span",
            "upgrade",
        ],
    ),
    ("seed", &["listener", "ipc", "mail", "scoreboard", "steering", "config", "identity", "error"]),
    ("steering", &["error", "sys", "identity", "config::Dispatch"]),
    ("bench", &["error", "sys", "span", "listener::holders"]),
    ("compare", &["error", "sys", "span", "bench"]),
    ("demo", &["error", "sys", "span", "bench", "compare", "pool"]),
    (
        "worker",
        &[
            "error",
            "identity",
            "config",
            "seed",
            "ipc",
            "isolated",
            "mail",
            "scoreboard",
            "steering",
            "pool",
            "listener",
            "sys",
            "span",
            "aside",
            "trust",
        ],
    ),
    (
        "models",
        &[
            "error",
            "config",
            "seed",
            "identity",
            "ipc",
            "mail",
            "scoreboard",
            "steering",
            "listener",
            "sys",
            "worker",
        ],
    ),
    (
        "primary",
        &[
            "error",
            "identity",
            "config",
            "seed",
            "ipc",
            "isolated",
            "mail",
            "scoreboard",
            "steering",
            "listener",
            "sys",
            "supervisor",
            "control",
            "systemd",
            "upgrade",
            "span",
            "shared",
            "pid_file",
            "log_file",
            "log_output",
        ],
    ),
    (
        "cluster",
        &[
            "error",
            "identity",
            "config",
            "listener",
            "isolated",
            "mail",
            "primary",
            "worker",
            "models",
            "supervisor",
            "sys",
            "control",
            "systemd",
            "upgrade",
            "seed",
            "scoreboard",
            "pid_file",
            "log_file",
            "log_output",
        ],
    ),
];

#[test]
fn rooms_import_only_what_they_may() {
    let mut found = Vec::new();
    for file in sources(&["src"]) {
        let room = file.room();
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == room) else {
            let free = ["lib", "main", "cli", "app"].contains(&room);
            found.extend(
                (!free).then(|| format!("{}: say in tidy.rs what it may import", file.name)),
            );
            continue;
        };
        for (number, path) in file.crate_paths() {
            let fits = |may: &&&str| path == **may || path.starts_with(&format!("{may}::"));
            let own = path.split("::").next() == Some(room);
            // Items of the crate's root are the public interface: everybody's.
            let public = path.starts_with(char::is_uppercase);
            if !own && !public && !allowed.iter().chain(FOR_ALL).any(|may| fits(&may)) {
                found.push(format!("{}:{number} crate::{path}", file.name));
            }
        }
    }
    none("imports that are not in the table", found);
}

#[test]
fn the_built_in_application_uses_the_public_interface_only() {
    let root = sources(&["src/lib.rs"]).remove(0).lines.join("\n");
    let public = |name: &str| {
        let exports = root.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next());
        exports.flat_map(|e| e.split(|c: char| !c.is_alphanumeric())).any(|word| word == name)
            || root.contains(&format!("\npub mod {name};"))
    };
    let mut found = Vec::new();
    for file in sources(&["src/app"]) {
        for (number, path) in file.crate_paths() {
            let first = path.split("::").next().unwrap_or_default();
            if !public(first) {
                found.push(format!("{}:{number} crate::{path}", file.name));
            }
        }
    }
    none("not public", found);
}

#[test]
fn only_main_imports_the_command_line() {
    let files = sources(&["src"]);
    let others = files.iter().filter(|f| !["cli", "main"].contains(&f.room()));
    let found = others.flat_map(|file| {
        let paths = file.crate_paths().into_iter().filter(|(_, path)| path.starts_with("cli"));
        paths.map(|(number, _)| format!("{}:{number}", file.name)).collect::<Vec<_>>()
    });
    none("only main.rs may import cli", found.collect());
}

#[test]
fn tokio_and_hyper_stay_where_requests_are_served() {
    const MAY: [&str; 7] = [
        "src/ipc/worker_end.rs",
        "src/mail/worker_end.rs",
        "src/mail/inboxes.rs",
        "src/mail/requests.rs",
        "src/sys/readiness.rs",
        "src/sys/beats.rs",
        "src/lib.rs",
    ];
    let may = |file: &File| {
        ["worker", "models", "pool", "probe", "cluster", "app", "demo"].contains(&file.room())
            || MAY.contains(&file.name.as_str())
            || file.room() == "cli"
    };
    let files = sources(&["src"]);
    let found = files.iter().filter(|file| !may(file)).flat_map(|file| {
        ["tokio::", "hyper::", "hyper_util::"].into_iter().flat_map(|c| file.mentions(c))
    });
    none("the primary has no async runtime", found.collect());
}
