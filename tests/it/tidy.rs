//! The rules of the house that a compiler does not know: how long things may be, and what must not be said
//! where. Who may import whom stands in `rooms.rs`; how the source is read, in `support/source.rs`.

use crate::support::source_code::{File, sources};

/// Lines of a file.
const FILE: usize = 600;
/// Lines of a function, with its signature and braces.
const FUNCTION: usize = 80;

#[track_caller]
pub fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn files_and_functions_are_short() {
    let mut found = Vec::new();
    for file in sources(&["src", "crates", "tests"]) {
        if file.lines.len() > FILE {
            found.push(format!("{} has {} lines, not {FILE}", file.name, file.lines.len()));
        }
        let long = file.functions().into_iter().filter(|f| f.lines > FUNCTION);
        found.extend(
            long.map(|f| format!("{}:{} {} has {} lines", file.name, f.at, f.name, f.lines)),
        );
    }
    assert_none("too long", found);
}

#[test]
fn every_unsafe_says_why_it_is_safe() {
    let mut found = Vec::new();
    for file in sources(&["src", "crates"]) {
        for (number, _) in file.code().filter(|(_, code)| {
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|u| code.contains(u))
        }) {
            // The reason stands above the statement, which may have begun a few lines before.
            let above = &file.lines[number.saturating_sub(8)..number];
            let says =
                |line: &String| line.contains("// SAFETY: ") || line.contains("/// # Safety");
            if !above.iter().any(says) {
                found.push(format!("{}:{number}", file.name));
            }
        }
    }
    assert_none("no SAFETY comment", found);
}

#[test]
fn the_supervisor_is_pure() {
    const IMPURE: [&str; 7] =
        ["Instant::now", "SystemTime", "std::env", "std::fs", "std::io", "std::net", "std::thread"];
    let files = sources(&["crates/prefork-supervisor/src"]);
    let files = files.iter().filter(|file| !file.is_test());
    assert_none(
        "the supervisor only thinks",
        files.flat_map(|file| IMPURE.iter().flat_map(|word| file.mentions(word))).collect(),
    );
}

#[test]
fn the_source_has_no_todo_markers() {
    // Put together here, so that this file passes its own test.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"], ["db", "g!("], ["to", "do!("]];
    let mut words: Vec<String> = words.iter().map(|parts| parts.concat()).collect();
    words.push(["unimple", "mented!("].concat());
    let mut found = Vec::new();
    for file in sources(&["src", "crates", "tests"]) {
        for (number, line) in file.lines.iter().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{} {}", file.name, number + 1, line.trim()));
            }
        }
    }
    assert_none("unfinished", found);
}

#[test]
fn only_tests_call_unwrap() {
    let files = sources(&["src", "crates"]);
    let files = files.iter().filter(|file| !file.is_test());
    assert_none(
        "say what to do instead",
        files.flat_map(|file| file.mentions(".unwrap()")).collect(),
    );
}

#[test]
fn tests_do_not_sleep_and_are_not_ignored() {
    let (sleeps, ignored) =
        (["thread::", "time::"].map(|room| room.to_string() + "sleep"), ["#[ign", "ore]"].concat());
    let mut found = Vec::new();
    for file in sources(&["src", "crates", "tests"]) {
        found.extend(file.all_mentions(&ignored));
        if file.is_test() || file.name.starts_with("tests/") {
            found.extend(sleeps.iter().flat_map(|sleep| file.all_mentions(sleep)));
        }
    }
    assert_none("in tests", found);
}

/// The variants of an enum, which rustfmt has laid out.
fn variants(file: &str, name: &str) -> Vec<String> {
    let file = sources(&[file]).remove(0);
    let begin = file.lines.iter().position(|line| line.contains(&format!("enum {name} {{")));
    let body = file.lines[begin.expect(name) + 1..].iter().take_while(|line| *line != "}");
    let names = body.filter_map(|line| {
        let rest = line.strip_prefix("    ").filter(|rest| rest.starts_with(char::is_uppercase))?;
        rest.split(|c: char| !c.is_alphanumeric()).next().map(str::to_string)
    });
    names.collect()
}

#[test]
fn every_event_and_action_is_tested() {
    let files = sources(&["crates/prefork-supervisor/src"]);
    let tests: Vec<&File> = files.iter().filter(|file| file.is_test()).collect();
    let mut found = Vec::new();
    for (file, name) in [("event", "Event"), ("event", "Intent"), ("action", "Action")] {
        for variant in variants(&format!("crates/prefork-supervisor/src/{file}.rs"), name) {
            let full = format!("{name}::{variant}");
            if !tests.iter().any(|t| t.lines.iter().any(|line| line.contains(&full))) {
                found.push(full);
            }
        }
    }
    assert_none("in no test of the supervisor", found);
}
