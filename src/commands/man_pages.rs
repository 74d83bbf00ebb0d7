//! `prefork man` and `prefork completions`: what `scripts/install` puts beside the binary, made from the command line
//! itself, so that it cannot be older than that.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::args;
use crate::output::print_answer;
use tokio_prefork::{Error, Result};

/// What is generated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GenerateCall {
    /// A page for the command and one for each verb, as files in this directory.
    Man(PathBuf),
    /// A script for this shell, on standard output.
    Completions(Shell),
}

/// Hidden: they are for whoever packages the binary.
pub(crate) fn generate_commands() -> [Command; 2] {
    let directory = Arg::new("directory")
        .value_name("DIR")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("Where the pages are written; it has to exist");
    let shell = Arg::new("shell")
        .value_name("SHELL")
        .required(true)
        .value_parser(value_parser!(Shell))
        .help("For which shell");
    [
        Command::new("man").about("Write the manual pages").arg(directory),
        Command::new("completions").about("Print a completion script").arg(shell),
    ]
    .map(|command| command.hide(true))
}

/// Reads the words after one of our verbs; `None` if it is none of ours.
pub(crate) fn parse_generate(name: &str, matches: &ArgMatches) -> Option<GenerateCall> {
    match name {
        "man" => matches.get_one("directory").cloned().map(GenerateCall::Man),
        "completions" => matches.get_one("shell").copied().map(GenerateCall::Completions),
        _ => None,
    }
}

pub(crate) fn run_generate(call: GenerateCall) -> Result<ExitCode> {
    match call {
        GenerateCall::Man(directory) => man(&directory),
        GenerateCall::Completions(shell) => print_answer(&completions(shell)),
    }
}

/// `prefork.1`, `prefork-serve.1` and so on; prints their names, one a line.
fn man(directory: &Path) -> Result<ExitCode> {
    let mut names = String::new();
    for (name, text) in pages().map_err(|e| Error::system("make the manual pages", e))? {
        let path = directory.join(&name);
        std::fs::write(&path, text)
            .map_err(|e| Error::system(format!("write {}", path.display()), e))?;
        names += &format!("{name}\n");
    }
    print_answer(&names)
}

/// File names and texts.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = args::command().disable_help_subcommand(true);
    // Gives each verb its full name and the flags that all have.
    command.build();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    let mut commands: Vec<Command> = verbs.collect();
    commands.insert(0, command.clone());
    let page = |command: Command| {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
        let mut text = Vec::new();
        clap_mangen::Man::new(command).title(name.to_uppercase()).render(&mut text)?;
        Ok((format!("{name}.1"), text))
    };
    commands.into_iter().map(page).collect()
}

fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "prefork", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;

    #[test]
    fn every_verb_that_help_shows_has_a_page() {
        let pages = pages().expect("pages");
        let command = args::command();
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let mut wanted: Vec<String> =
            verbs.map(|verb| format!("prefork-{}.1", verb.get_name())).collect();
        wanted.insert(0, "prefork.1".to_string());
        let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
        assert_eq!(names, wanted.iter().collect::<Vec<_>>());
        assert!(names.len() > 8, "{names:?}");
    }

    #[test]
    fn the_page_of_serve_has_flags_and_signals() {
        let pages = pages().expect("pages");
        let (_, text) = pages.iter().find(|(name, _)| name == "prefork-serve.1").expect("page");
        let text = String::from_utf8_lossy(text).replace('\\', "");
        for said in [".TH PREFORK-SERVE 1", "--graceful-timeout", "default: 30s", "USR2"] {
            assert!(text.contains(said), "{said} is not in\n{text}");
        }
    }

    #[test]
    fn shells_complete_verbs_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completions(shell);
            for word in ["dispatch-program", "graceful-timeout", "reload"] {
                assert!(text.contains(word), "{word} is not in that of {shell}");
            }
        }
    }

    #[test]
    fn both_are_read() {
        for (line, wanted) in [
            ("prefork man /tmp/x", GenerateCall::Man("/tmp/x".into())),
            ("prefork completions zsh", GenerateCall::Completions(Shell::Zsh)),
        ] {
            match args::parse_args(line.split(' ')).expect(line) {
                Verb::Generate(call) => assert_eq!(call, wanted, "{line}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
