//! Which commands of pages and help texts run, which are shortened, and what some need before.

/// Flags that say how long to measure, with the number of words of each.
const LENGTHS: [(&str, usize); 6] = [
    ("--duration", 2),
    ("--rounds", 2),
    ("--warm-up", 2),
    ("--precision", 2),
    ("--time-limit", 2),
    ("--quick", 1),
];

/// Commands that contain such a text are not run, and why.
const NOT_RUN: [(&str, &str); 13] = [
    ("HEALTHCHECK ", "a line of a Dockerfile; scripts/e2e/container runs it"),
    ("cargo install", "compiles for minutes; the tests run what it installs"),
    ("cargo build", "compiles for minutes; the tests run what it builds"),
    ("cargo test", "the tests themselves"),
    ("scripts/test", "all tests"),
    ("scripts/install", "tests/it/install_script.rs installs into a directory"),
    ("systemctl", "needs systemd; scripts/e2e/systemd runs it"),
    ("pm2 ", "needs PM2"),
    ("prefork dev -- cargo", "builds a project of Cargo; tests/it/dev_program.rs does"),
    ("prefork demo cpu", "takes 15 seconds or more; tests/it/demo_command.rs runs its parts"),
    ("--peer node", "needs Node and nginx; scripts/e2e/compare-peers compares with them"),
    ("--peer ", "needs the peer; scripts/e2e/compare-peers compares with many"),
    ("scale consumer=", "the built-in application has no such kind; tests/it/worker_kinds.rs has"),
];

/// What runs before commands that contain such a text.
const SETUPS: [(&str, &str); 3] = [
    ("--measured branch.json", "cp main.json branch.json"),
    ("health --admin", "export PREFORK_ADMIN=127.0.0.1:9090"),
    // The first two workers have the ids 1 and 2, and the next one 3.
    ("stack 3", "prefork scale 3 && until prefork status | grep -q '^ *3 .*serving'; do :; done"),
];

/// Returns why a command is not run, if so.
pub fn reason_not_run(command: &str) -> Option<&'static str> {
    NOT_RUN.iter().find(|(text, _)| command.contains(text)).map(|(_, reason)| *reason)
}

/// Whether the command may exit with 1: requests fail when workers are killed.
pub fn may_fail(command: &str) -> bool {
    command.contains("--chaos")
}

/// Returns the commands that must run before this one.
pub fn setups(command: &str) -> impl Iterator<Item = &'static str> {
    SETUPS.iter().filter(move |(text, _)| command.contains(text)).map(|(_, setup)| *setup)
}

/// Returns a command without the comment at its end.
pub fn without_comment(command: &str) -> &str {
    let mut quote = None;
    let mut last = ' ';
    for (at, letter) in command.char_indices() {
        match (quote, letter) {
            (None, '#') if last.is_whitespace() => return command[..at].trim_end(),
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), _) if open == letter => quote = None,
            _ => {}
        }
        last = letter;
    }
    command.trim_end()
}

/// Whether the command runs in the foreground until it is stopped.
pub fn is_server(command: &str) -> bool {
    let words = command.split_whitespace().skip_while(|word| *word == "sudo" || word.contains('='));
    let words: Vec<&str> = words.take(2).collect();
    matches!(words[..], ["prefork", "serve" | "run" | "dev"])
}

/// Whether the command prints something again and again.
pub fn has_no_end(command: &str) -> bool {
    ["--follow", "--watch"].iter().any(|flag| command.split_whitespace().any(|word| word == *flag))
}

/// Returns the command with the shortest measurement, or `None` if it does not measure.
pub fn shortened(command: &str) -> Option<String> {
    if command == "prefork top" || command.starts_with("prefork top ") {
        return shorter_top(command);
    }
    let parts: Vec<String> = command.split("; ").map(shorter_part).collect();
    let shorter = parts.join("; ");
    (shorter != command).then_some(shorter)
}

/// Gives `prefork top`, which needs a terminal, two frames to print.
fn shorter_top(command: &str) -> Option<String> {
    let without_interval = command.replace("--interval 5s", "--interval 100ms");
    match command.contains("--batch") {
        true => (without_interval != command).then_some(without_interval),
        false => Some(format!("{command} --batch -n 2 --interval 100ms")),
    }
}

/// Faults that fit into [`CHAOS_DURATION`].
const SHORTER_CHAOS: &str = "kill=200ms,reload=500ms,freeze=700ms/50ms";
const CHAOS_DURATION: &str = "--duration 1s --warm-up 0s";

fn shorter_part(part: &str) -> String {
    let does_measure = !["--show-scenario", "--measured"].iter().any(|flag| part.contains(flag));
    let more = match part.split_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["prefork", "bench"] if part.contains("--chaos") => CHAOS_DURATION,
        ["prefork", "bench"] => "--duration 100ms --warm-up 0s",
        ["prefork", "compare"] if !does_measure => return part.to_string(),
        ["prefork", "compare"] if part.contains("--baseline") => "",
        ["prefork", "compare"] => "--rounds 1 --duration 100ms",
        _ => return part.to_string(),
    };
    let mut words = part.split(' ');
    let mut kept: Vec<&str> = words.by_ref().take(2).collect();
    kept.extend(more.split_whitespace());
    // With a baseline, its report says which servers and loads to compare.
    if kept[1] == "compare" && !more.is_empty() {
        let has = |flag: &&str| part.contains(*flag);
        let is_chosen = ["--workloads", "--scenario"].iter().any(has);
        kept.extend((!is_chosen).then_some("--workloads keep-alive"));
        kept.extend((!part.contains("--models")).then_some("--models single"));
    }
    while let Some(word) = words.next() {
        match LENGTHS.iter().find(|(flag, _)| *flag == word) {
            Some((_, 2)) => drop(words.next()),
            Some(_) => {}
            None if word.starts_with("kill=") => kept.push(SHORTER_CHAOS),
            None => kept.push(word),
        }
    }
    kept.join(" ")
}

#[test]
fn commands_that_measure_are_shortened() {
    let shorter = |command| shortened(command).unwrap_or_default();
    assert_eq!(
        shorter("prefork bench -c 256 --duration 30s --rounds 3 127.0.0.1:3000"),
        "prefork bench --duration 100ms --warm-up 0s -c 256 127.0.0.1:3000"
    );
    assert_eq!(
        shorter("prefork compare --quick --html report.html"),
        "prefork compare --rounds 1 --duration 100ms --workloads keep-alive --models single --html report.html"
    );
    assert_eq!(shortened("prefork compare --show-scenario high-load > mine.toml"), None);
    assert_eq!(shortened("prefork status"), None);
}

#[test]
fn comments_and_servers_are_recognized() {
    assert_eq!(without_comment("curl 'a # b' # c"), "curl 'a # b'");
    assert!(
        is_server("sudo prefork serve -w 2") && is_server("PREFORK_WORKERS=2 prefork run -- x")
    );
    assert!(!is_server("prefork check serve") && has_no_end("prefork events --follow | jq ."));
}
