//! Which programs are Node programs.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names of executables that are Node, or start the program with it.
const NODE_COMMANDS: [&str; 12] = [
    "node", "nodejs", "npm", "npx", "yarn", "yarnpkg", "pnpm", "pnpx", "corepack", "tsx",
    "ts-node", "nodemon",
];
/// Programs that execute the command in their arguments.
const WRAPPERS: [&str; 17] = [
    "sh",
    "bash",
    "dash",
    "zsh",
    "ash",
    "env",
    "nice",
    "ionice",
    "taskset",
    "nohup",
    "setsid",
    "setpriv",
    "dumb-init",
    "tini",
    "exec",
    "chrt",
    "stdbuf",
];
/// How much of a script is read for its first line.
const MAX_FIRST_LINE: usize = 256;

/// Returns whether the program is Node, starts Node, or is a script that Node runs.
pub(super) fn is_node_program(executable: &Path, arguments: &[OsString]) -> bool {
    let name = file_name(executable.as_os_str().as_bytes());
    if is_node_command(&name) {
        return true;
    }
    if WRAPPERS.contains(&name.as_str()) {
        let words = arguments.iter().flat_map(|one| {
            one.as_bytes().split(|byte| byte.is_ascii_whitespace() || b";&|('\"".contains(byte))
        });
        return words.into_iter().any(|word| is_node_command(&file_name(word)));
    }
    is_node_script(executable)
}

/// Returns whether this is Node or a command of its package managers, with a version in its name or not (`node22`).
fn is_node_command(name: &str) -> bool {
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    NODE_COMMANDS.contains(&bare)
}

fn file_name(path: &[u8]) -> String {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// Returns whether the first line of the file is `#!` with Node.
fn is_node_script(path: &Path) -> bool {
    let mut start = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_FIRST_LINE as u64).read_to_end(&mut start));
    let Some(line) = read.ok().and_then(|_| start.strip_prefix(b"#!")) else { return false };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.split(u8::is_ascii_whitespace).any(|word| is_node_command(&file_name(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_node(executable: &str, arguments: &[&str]) -> bool {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        is_node_program(Path::new(executable), &arguments)
    }

    #[test]
    fn node_and_what_starts_it_are_recognized() {
        for (executable, arguments) in [
            ("/usr/bin/node", &["app.js"][..]),
            ("/opt/node-22/bin/node", &[]),
            ("nodejs", &[]),
            ("/usr/bin/node22", &[]),
            ("/usr/bin/npm", &["start"]),
            ("/bin/sh", &["-c", "exec node app.js"]),
            ("/bin/sh", &["-c", "cd /srv&&node app.js"]),
            ("/usr/bin/env", &["A=b", "/usr/local/bin/node", "app.js"]),
            ("/usr/bin/tini", &["--", "npm", "start"]),
        ] {
            assert!(is_node(executable, arguments), "{executable} {arguments:?}");
        }
        for (executable, arguments) in [
            ("/usr/bin/python3", &["node"][..]),
            ("/bin/sh", &["-c", "uvicorn app:app --name nodes"]),
            ("/usr/bin/bun", &["app.js"]),
            ("/usr/bin/node_exporter", &[]),
        ] {
            assert!(!is_node(executable, arguments), "{executable} {arguments:?}");
        }
    }

    #[test]
    fn scripts_for_node_are_recognized_by_their_first_line() {
        let dir = tempfile::tempdir().expect("directory");
        for (text, is_expected) in [
            ("#!/usr/bin/env node\nlisten()\n", true),
            ("#!/usr/bin/env -S node --enable-source-maps\n", true),
            ("#!/opt/node/bin/node", true),
            ("#!/usr/bin/python3\n# node\n", false),
            ("node\n", false),
            ("", false),
        ] {
            let path = dir.path().join("program");
            std::fs::write(&path, text).expect("write");
            assert_eq!(is_node_script(&path), is_expected, "{text:?}");
        }
        assert!(!is_node_script(&dir.path().join("missing")) && !is_node_script(dir.path()));
    }
}
