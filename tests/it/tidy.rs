//! Rules for the source of the whole workspace that neither the compiler nor clippy checks.

use crate::support::source_code::{SourceFile, source_files};

const MAX_FILE_LINES: usize = 600;
/// The length includes signature and braces.
const MAX_FUNCTION_LINES: usize = 80;
/// Functions that may be longer, as each is one flat `match` over an enum.
const FUNCTIONS_ALLOWED_TO_BE_LONG: [&str; 1] = ["format_event"];

/// Directories with Rust code.
const ALL_CODE_DIRECTORIES: [&str; 5] = ["src", "crates", "tests", "examples", "benches"];

#[track_caller]
fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn files_and_functions_are_short() {
    let mut found = Vec::new();
    for file in source_files(&ALL_CODE_DIRECTORIES) {
        let lines = file.lines.len();
        if lines > MAX_FILE_LINES {
            found.push(format!("{} has {lines} lines, at most {MAX_FILE_LINES}", file.name));
        }
        let mut long = file.functions();
        long.retain(|f| {
            f.lines > MAX_FUNCTION_LINES && !FUNCTIONS_ALLOWED_TO_BE_LONG.contains(&f.name.as_str())
        });
        found.extend(
            long.iter()
                .map(|f| format!("{}:{} {} has {} lines", file.name, f.line, f.name, f.lines)),
        );
    }
    assert_none("too long", found);
}

#[test]
fn the_supervisor_has_no_io_and_no_clock() {
    const FORBIDDEN_MARKERS: [&str; 7] =
        ["Instant::now", "SystemTime", "std::env", "std::fs", "std::io", "std::net", "std::thread"];
    let files = source_files(&["crates/prefork-supervisor/src"]);
    let files = files.iter().filter(|file| !file.is_test());
    assert_none(
        "used by the supervisor",
        files
            .flat_map(|file| FORBIDDEN_MARKERS.iter().flat_map(|word| file.lines_with(word)))
            .collect(),
    );
}

#[test]
fn the_source_has_no_todo_markers() {
    // Assembled here, so that this file does not contain them.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"], ["db", "g!("], ["to", "do!("]];
    let mut words: Vec<String> = words.iter().map(|parts| parts.concat()).collect();
    words.push(["unimple", "mented!("].concat());
    let mut found = Vec::new();
    for file in source_files(&ALL_CODE_DIRECTORIES) {
        for (number, line) in file.lines.iter().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{} {}", file.name, number + 1, line.trim()));
            }
        }
    }
    assert_none("unfinished", found);
}

#[test]
fn tests_do_not_sleep_and_are_not_ignored() {
    let sleeps = ["thread::", "time::"].map(|module| module.to_string() + "sleep");
    let ignored = ["#[ign", "ore]"].concat();
    let mut found = Vec::new();
    for file in source_files(&["src", "crates", "tests"]) {
        found.extend(file.all_lines_with(&ignored));
        if file.is_test() {
            found.extend(sleeps.iter().flat_map(|sleep| file.all_lines_with(sleep)));
        }
    }
    assert_none("in tests", found);
}

/// Returns the names of the variants of an enum.
fn enum_variants(path: &str, name: &str) -> Vec<String> {
    let file = source_files(&[path]).remove(0);
    let start = file.lines.iter().position(|line| line.contains(&format!("enum {name} {{")));
    let body = file.lines[start.expect(name) + 1..].iter().take_while(|line| *line != "}");
    let names = body.filter_map(|line| {
        let rest = line.strip_prefix("    ").filter(|rest| rest.starts_with(char::is_uppercase))?;
        rest.split(|c: char| !c.is_alphanumeric()).next().map(str::to_string)
    });
    names.collect()
}

#[test]
fn every_event_command_and_action_of_the_supervisor_is_tested() {
    let files = source_files(&["crates/prefork-supervisor/src"]);
    let tests: Vec<&SourceFile> = files.iter().filter(|file| file.is_test()).collect();
    let mut found = Vec::new();
    for (file, name) in [("event", "Event"), ("command", "ClusterCommand"), ("action", "Action")] {
        for variant in enum_variants(&format!("crates/prefork-supervisor/src/{file}.rs"), name) {
            let full = format!("{name}::{variant}");
            if !tests.iter().any(|test| test.lines.iter().any(|line| line.contains(&full))) {
                found.push(full);
            }
        }
    }
    assert_none("in no test of the supervisor", found);
}
