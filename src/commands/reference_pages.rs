//! `prefork reference`: the reference pages of the book and the example file, made from the key table and the command line.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

use crate::args;
use crate::output::print_answer;
use crate::settings::key::Key;
use crate::settings::key_table::KEYS;
use tokio_prefork::{Error, Result};

/// Columns of the help on the page of the command line.
const HELP_WIDTH: usize = 100;

/// Verbs whose flags are the key table.
const VERBS_WITH_KEYS: [&str; 3] = ["serve", "check", "dispatch-program"];

const CONFIGURATION_HEAD: &str = "\
<!-- Made by `cargo run -- reference .` from the key table: do not edit. -->

# Configuration

Each key is a flag (`--graceful-timeout 30s`), an environment variable (`PREFORK_GRACEFUL_TIMEOUT=30s`) and a key of a TOML file
(`graceful-timeout = \"30s\"`), which `--config FILE` or `PREFORK_CONFIG` names. Flags win over the environment, and the environment
over the file. An unknown flag or key is an error; an unknown `PREFORK_` variable is a warning; an empty variable counts as unset.

- Durations are `30s`, `500ms`, `2m`, `1h` or a number of seconds. Sizes are `16KiB`, `1MiB` or a number of bytes.
- A boolean flag without a value is `true`; `--http2=false` needs the equals sign.
- A variable with several addresses separates them by commas; a flag is repeated; in TOML it is a list.
- The variables `PORT`, `WEB_CONCURRENCY` and `RUST_LOG` of other conventions are used where our own is not set.
- `prefork check` takes the same flags and prints every value with its source (`--json` for programs). Its exit status is 78 if
  the configuration is wrong.
- `systemd/prefork.toml` has every key with its default.
- What a reload does not change: [Reload](reload.md#what-a-reload-does-not-change).
";

const COMMAND_LINE_HEAD: &str = "\
<!-- Made by `cargo run -- reference .` from the command line: do not edit. -->

# Command line

`prefork help VERB` prints the same text, `man prefork-VERB` after `scripts/install`. Exit statuses:
[Signals and exit statuses](signals.md#exit-statuses).
";

const EXAMPLE_HEAD: &str = "\
# Configuration of prefork: every key with its default. `prefork check -c FILE` checks a file.
# The same names work as flags (--workers 4) and as variables (PREFORK_WORKERS=4), which both win over this file.
# Durations are 30s, 500ms, 2m, 1h or a number of seconds; sizes are 16KiB, 1MiB or a number of bytes.
# Keys are flat: there are no [tables]. Keys without a default are commented out.
# Made by `cargo run -- reference .`.
";

/// The root of the source tree whose pages are written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReferenceCall(PathBuf);

/// Returns the hidden verb.
pub(crate) fn reference_command() -> Command {
    let root = Arg::new("root")
        .value_name("ROOT")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("Root of the source tree");
    Command::new("reference")
        .about("Write docs/src/configuration.md, docs/src/command-line.md and systemd/prefork.toml")
        .arg(root)
        .hide(true)
}

pub(crate) fn parse_reference(matches: &ArgMatches) -> Option<ReferenceCall> {
    matches.get_one("root").cloned().map(ReferenceCall)
}

/// Writes the files and prints their names, one a line.
pub(crate) fn run_reference(call: &ReferenceCall) -> Result<ExitCode> {
    let mut names = String::new();
    for (name, text) in files() {
        let path = call.0.join(name);
        std::fs::write(&path, text)
            .map_err(|e| Error::system(format!("write {}", path.display()), e))?;
        let _ = writeln!(names, "{name}");
    }
    print_answer(&names)
}

/// Returns paths below the root, and contents.
fn files() -> [(&'static str, String); 3] {
    [
        ("docs/src/configuration.md", configuration_page()),
        ("docs/src/command-line.md", command_line_page()),
        ("systemd/prefork.toml", example_file()),
    ]
}

/// Groups of the key table, in its order.
fn groups() -> impl Iterator<Item = (&'static str, &'static [Key])> {
    KEYS.chunk_by(|one, next| one.group == next.group).map(|keys| (keys[0].group, keys))
}

/// Where the book says more about a group.
fn see_also(group: &str) -> &'static str {
    match group {
        "Listening" => {
            "[Listening](listening.md), [Dispatch policies](dispatch.md), [The accept queue](accept-queue.md)"
        }
        "Workers" => {
            "[Which model do I need?](concurrency-models.md), [Respawn, stalls and recycling](supervision.md)"
        }
        "CPU pool" => "[CPU pool](cpu-pool.md)",
        "Reloading" => "[Reload](reload.md)",
        "Stopping" => {
            "[What happens to connections](connections.md), [Behind a load balancer](load-balancer.md)"
        }
        "HTTP" => "[HTTP and timeouts](http.md)",
        "Built-in application" => {
            "[Built-in application](application.md), [Static files](static-files.md)"
        }
        _ => {
            "[Privileges](privileges.md), [Control socket](control.md), [Logs](logs.md), [systemd](systemd.md)"
        }
    }
}

fn configuration_page() -> String {
    let mut page = CONFIGURATION_HEAD.to_string();
    for (group, keys) in groups() {
        let _ = write!(page, "\n## {group}\n\nMore: {}.\n\n", see_also(group));
        page += "| key | default | meaning |\n|---|---|---|\n";
        for key in keys {
            let short = key.short.map_or(String::new(), |letter| format!(", `-{letter}`"));
            let default = match key.default_text() {
                text if text.is_empty() => "none".to_string(),
                text => format!("`{text}`"),
            };
            let other =
                key.aliases.iter().map(|alias| format!("; also the variable `{}`", alias.var));
            let meaning = in_cell(key.help) + &other.collect::<String>();
            let _ = writeln!(page, "| `{}`{short} | {default} | {meaning} |", key.name);
        }
    }
    page
}

/// Escapes text for a cell of a Markdown table.
fn in_cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn command_line_page() -> String {
    let mut command = args::command().disable_help_subcommand(true).term_width(HELP_WIDTH);
    command.build();
    let mut page = COMMAND_LINE_HEAD.to_string();
    let verbs: Vec<_> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
    page += "\n| verb | purpose |\n|---|---|\n";
    for verb in &verbs {
        let name = verb.get_name();
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(page, "| [`prefork {name}`](#prefork-{name}) | {} |", in_cell(&about));
    }
    for verb in verbs {
        let name = verb.get_name();
        let _ = write!(page, "\n## prefork {name}\n\n");
        let mut verb = verb.clone().term_width(HELP_WIDTH);
        if VERBS_WITH_KEYS.contains(&name) {
            page += "Every key of [Configuration](configuration.md) is a flag, and these:\n\n";
            for key in KEYS {
                verb = verb.mut_arg(key.name, |flag| flag.hide(true));
            }
        }
        let help = verb.render_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = writeln!(page, "```text\n{}\n```", lines.join("\n").trim());
    }
    page
}

fn example_file() -> String {
    let mut text = EXAMPLE_HEAD.to_string();
    for (group, keys) in groups() {
        let _ = write!(text, "\n# ---- {group}\n\n");
        for key in keys {
            let default = key.default_text();
            let (sign, value) = match default.as_str() {
                "" => ("#", key.value_name()),
                value => ("", value),
            };
            let is_bare = value.parse::<u64>().is_ok() || value.parse::<bool>().is_ok();
            let value = if is_bare { value.to_string() } else { format!("{value:?}") };
            let _ = writeln!(text, "# {}.\n{sign}{} = {value}", key.help, key.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn reference_pages_are_those_of_the_key_table_and_the_command_line() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let is_old = |(name, text): &(&str, String)| {
            std::fs::read_to_string(root.join(name)).is_ok_and(|old| old != *text)
        };
        let old: Vec<&str> =
            files().iter().filter(|file| is_old(file)).map(|file| file.0).collect();
        assert!(old.is_empty(), "out of date: {old:?}; run `cargo run -- reference .`");
    }

    #[test]
    fn every_key_and_every_visible_verb_is_on_a_page() {
        let [(_, configuration), (_, command_line), (_, example)] = files();
        for key in KEYS {
            assert!(configuration.contains(&format!("\n| `{}`", key.name)), "{}", key.name);
            assert!(example.contains(&format!("{} = ", key.name)), "{}", key.name);
        }
        for verb in args::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let heading = format!("\n## prefork {}\n", verb.get_name());
            assert!(command_line.contains(&heading), "{heading}");
        }
    }
}
