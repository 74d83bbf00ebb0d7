//! The code that README.md, the book and `--help` show: commands run, configuration is valid, output has the shape that is shown.
//!
//! Each page is a session of its own: its console blocks run in order in a [`ShellSession`], in namespaces in which
//! port 3000 is free. Blocks of other languages are checked. A block that cannot be run says why in a marker before it:
//!
//! ```text
//! <!-- not run: needs Docker; scripts/e2e/container runs it -->
//! ```
//!
//! The other markers are those of [`Marker`]. The tests print how much was run, and the reasons of all else.

mod code_blocks;
mod command_rules;
mod help_examples;
mod output_shape;
mod shell_session;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use code_blocks::{CodeBlock, Marker, code_blocks};
use shell_session::{CommandOutcome, ShellSession};

/// Pages outside of the book with code for users.
const ROOT_PAGES: [&str; 3] = ["README.md", "CONTRIBUTING.md", "SECURITY.md"];
/// Generated from the key table and the command line, which their own test compares; `help_examples` runs the examples in it.
const GENERATED_PAGES: [&str; 2] = ["docs/src/command-line.md", "docs/src/configuration.md"];
/// Where doctests include the pages with Rust code.
const DOCTEST_LIST: &str = "crates/tokio-prefork/src/lib.rs";
/// Sessions that run at the same time; most of their time is waiting.
const SESSIONS_AT_A_TIME: usize = 4;

/// What was found in pages or help texts.
#[derive(Default)]
struct Findings {
    commands: usize,
    shortened: usize,
    outputs: usize,
    snippets: usize,
    compiled: usize,
    /// Where, and why.
    not_run: Vec<String>,
    failures: Vec<String>,
}

impl Findings {
    fn record(&mut self, place: &str, command: &str, result: Result<CommandOutcome, String>) {
        match result {
            Ok(CommandOutcome::Ran) => self.commands += 1,
            Ok(CommandOutcome::RanShortened) => {
                self.commands += 1;
                self.shortened += 1;
            }
            Ok(CommandOutcome::NotRun(reason)) => self.not_run.push(format!("{place}: {reason}")),
            Err(why) => self.failures.push(format!("{place}: {command}: {why}")),
        }
    }

    fn add(&mut self, other: Findings) {
        self.commands += other.commands;
        self.shortened += other.shortened;
        self.outputs += other.outputs;
        self.snippets += other.snippets;
        self.compiled += other.compiled;
        self.not_run.extend(other.not_run);
        self.failures.extend(other.failures);
    }

    /// Prints the counts past the capture of libtest, and panics if something failed.
    #[track_caller]
    fn report(mut self, what: &str) {
        self.not_run.sort();
        let mut text = format!(
            "{what}: {} commands run ({} of them shortened), {} outputs compared, {} snippets valid, {} programs compiled as \
             doctests; {} blocks or examples not run\n",
            self.commands,
            self.shortened,
            self.outputs,
            self.snippets,
            self.compiled,
            self.not_run.len()
        );
        self.not_run.iter().for_each(|line| text += &format!("  not run: {line}\n"));
        std::io::stderr().write_all(text.as_bytes()).expect("standard error");
        assert!(self.failures.is_empty(), "{what}:\n  {}", self.failures.join("\n  "));
    }
}

/// Runs `check` for each item, some at the same time, and adds up what they found.
fn check_all<T: Sync>(items: &[T], check: impl Fn(&T) -> Findings + Sync) -> Findings {
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Findings::default()));
    std::thread::scope(|scope| {
        for _ in 0..SESSIONS_AT_A_TIME {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check(item);
                    sum.lock().expect("no check panics").add(found);
                }
            });
        }
    });
    sum.into_inner().expect("no check panics")
}

/// Returns why this machine has no namespaces for sessions, if so.
fn reason_without_sessions() -> Option<String> {
    ShellSession::start().err()
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the paths of the pages whose code is run.
fn page_names() -> Vec<String> {
    let book = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src")).expect("book");
    let names = book.map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"));
    let names = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/src/{name}"));
    let mut names: Vec<String> = names.chain(ROOT_PAGES.map(str::to_string)).collect();
    names.retain(|name| !GENERATED_PAGES.contains(&name.as_str()));
    // Only pages that PREFORK_TEST_PAGE names, to work on one.
    if let Ok(wanted) = std::env::var("PREFORK_TEST_PAGE") {
        names.retain(|name| name.contains(&wanted));
    }
    names.sort();
    names
}

/// A page and the shell in which its commands run.
struct PageCheck<'a> {
    name: &'a str,
    doctests: &'a str,
    session: Option<ShellSession>,
    found: Findings,
}

impl PageCheck<'_> {
    fn check(&mut self, block: &CodeBlock) {
        let place = format!("{}:{}", self.name, block.line);
        if let Some(reason) = block.reason_not_run() {
            self.found.not_run.push(format!("{place}: {reason}"));
            return;
        }
        for marker in &block.markers {
            if let Marker::First(command) = marker {
                self.run_hidden(&place, command);
            }
        }
        match block.language.as_str() {
            "console" => {
                for (command, shown) in block.commands() {
                    let result = self.session().run(&command, &shown);
                    self.found.record(&place, &command, result);
                    self.found.outputs += usize::from(!shown.is_empty());
                }
            }
            "sh" => {
                let result = self.session().run_script(&block.text);
                self.found.record(&place, "the script", result);
            }
            "text" => self.check_output(&place, block),
            "toml" => self.check_toml(&place, block),
            "ini" => self.check_snippet(&place, unit_error(&block.text)),
            "json" => {
                let mut lines = block.text.lines();
                let error =
                    lines.find_map(|line| serde_json::from_str::<serde_json::Value>(line).err());
                self.check_snippet(&place, error.map(|e| e.to_string()));
            }
            "rust" | "rust,no_run" => {
                let is_listed = self.doctests.contains(&format!("\"{}\"", self.name));
                self.found.compiled += usize::from(is_listed);
                let error = format!("{place}: {DOCTEST_LIST} does not include this page");
                self.found.failures.extend((!is_listed).then_some(error));
            }
            other => {
                let error =
                    format!("{place}: give this block of {other:?} a marker with the reason");
                self.found.failures.push(error);
            }
        }
    }

    /// The session of the page, which its first command starts.
    fn session(&mut self) -> &mut ShellSession {
        self.session.get_or_insert_with(|| ShellSession::start().expect("a session"))
    }

    /// Runs a command that the page does not show.
    fn run_hidden(&mut self, place: &str, command: &str) {
        let result = self.session().run(command, &[]);
        if !matches!(result, Ok(CommandOutcome::Ran)) {
            self.found.failures.push(format!("{place}: {command}: {result:?}"));
        }
    }

    fn check_output(&mut self, place: &str, block: &CodeBlock) {
        let shown: Vec<&str> = block.text.lines().collect();
        let command = block.marker(|marker| match marker {
            Marker::OutputOf(command) => Some(command.as_str()),
            _ => None,
        });
        let result = match command {
            Some(command) => self.session().run(command, &shown).map(drop),
            None if block.markers.contains(&Marker::Log) => self.session().wait_logged(&shown),
            None => Err(
                "give this block of text a marker: the command that prints it, log, or the reason"
                    .to_string(),
            ),
        };
        self.found.outputs += 1;
        self.found.failures.extend(result.err().map(|why| format!("{place}: {why}")));
    }

    fn check_snippet(&mut self, place: &str, error: Option<String>) {
        self.found.snippets += 1;
        self.found.failures.extend(error.map(|why| format!("{place}: {why}")));
    }

    /// Checks a manifest of Cargo, a scenario or a configuration.
    fn check_toml(&mut self, place: &str, block: &CodeBlock) {
        let file = block.marker(|marker| match marker {
            Marker::File(name) => Some(name.as_str()),
            _ => None,
        });
        let name = file.unwrap_or("prefork.toml");
        self.session().write_file(name, &block.text);
        let command = match &block.text {
            text if text.contains("dependencies]") || text.contains("[app]") => {
                let error = toml::from_str::<toml::Table>(text).err().map(|e| e.to_string());
                return self.check_snippet(place, error);
            }
            // Status 69: the scenario is valid, and there is no server.
            text if text.contains("[[load]]") => {
                format!("prefork bench --scenario ./{name} http://127.0.0.1:1 || (($? == 69))")
            }
            text if text.contains("program = ") => format!("prefork check run -c {name}"),
            _ => format!("prefork check -c {name}"),
        };
        let result = self.session().run_script(&command);
        self.check_snippet(place, result.err());
    }
}

/// Returns the line of a systemd unit that is no section, comment or setting.
fn unit_error(text: &str) -> Option<String> {
    let is_valid = |line: &&str| {
        let key = line.split_once('=').map_or("", |(key, _)| key);
        line.is_empty()
            || line.starts_with('#')
            || (line.starts_with('[') && line.ends_with(']'))
            || (!key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    text.lines().find(|line| !is_valid(line)).map(|line| format!("no line of a unit: {line}"))
}

#[test]
fn code_of_the_pages_runs_and_prints_what_they_show() {
    if let Some(why) = reason_without_sessions() {
        let text = format!("code of the pages: not run: no namespaces here: {why}\n");
        return std::io::stderr().write_all(text.as_bytes()).expect("standard error");
    }
    let doctests = read(DOCTEST_LIST);
    let found = check_all(&page_names(), |name| {
        let found = Findings::default();
        let mut page = PageCheck { name, doctests: &doctests, session: None, found };
        code_blocks(&read(name)).iter().for_each(|block| page.check(block));
        page.found
    });
    found.report("code of the pages");
}
