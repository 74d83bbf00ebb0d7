//! `prefork man` and `prefork completions`: generate manual pages and shell completions from the command line definition.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::args;
use crate::output::print_result;
use tokio_prefork::{Error, Result};

/// What to generate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GenerateCall {
    /// Manual pages for the command and each verb, as files in this directory.
    Man(PathBuf),
    /// A completion script for this shell, on standard output.
    Completions(Shell),
}

/// Returns the definitions of the verbs `man` and `completions`. Hidden, as only packagers need them.
pub(crate) fn generate_commands() -> [Command; 2] {
    let directory = Arg::new("directory")
        .value_name("DIR")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("Existing directory to write the pages to");
    let shell = Arg::new("shell")
        .value_name("SHELL")
        .required(true)
        .value_parser(value_parser!(Shell))
        .help("Shell to generate the script for");
    [
        Command::new("man").about("Write the manual pages").arg(directory),
        Command::new("completions").about("Print a completion script").arg(shell),
    ]
    .map(|command| command.hide(true))
}

/// Reads the arguments of `man` or `completions`; `None` for other verbs.
pub(crate) fn parse_generate(name: &str, matches: &ArgMatches) -> Option<GenerateCall> {
    match name {
        "man" => matches.get_one("directory").cloned().map(GenerateCall::Man),
        "completions" => matches.get_one("shell").copied().map(GenerateCall::Completions),
        _ => None,
    }
}

/// Writes the manual pages or prints the completion script.
pub(crate) fn run_generate(call: GenerateCall) -> Result<ExitCode> {
    match call {
        GenerateCall::Man(directory) => write_man_pages(&directory),
        GenerateCall::Completions(shell) => print_result(&completion_script(shell)),
    }
}

/// Writes `prefork.1`, `prefork-serve.1` and so on, and prints their names, one per line.
fn write_man_pages(directory: &Path) -> Result<ExitCode> {
    let mut names = String::new();
    for (name, text) in
        render_man_pages().map_err(|e| Error::system("generate the manual pages", e))?
    {
        let path = directory.join(&name);
        std::fs::write(&path, text)
            .map_err(|e| Error::system(format!("write {}", path.display()), e))?;
        names += &format!("{name}\n");
    }
    print_result(&names)
}

/// Renders all manual pages as pairs of file name and text.
fn render_man_pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = args::prefork_command().disable_help_subcommand(true);
    // Sets the full name and the global flags of each verb.
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

fn completion_script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut args::prefork_command(), "prefork", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;

    #[test]
    fn every_visible_verb_has_a_man_page() {
        let pages = render_man_pages().expect("pages");
        let command = args::prefork_command();
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let mut expected: Vec<String> =
            verbs.map(|verb| format!("prefork-{}.1", verb.get_name())).collect();
        expected.insert(0, "prefork.1".to_string());
        let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected.iter().collect::<Vec<_>>());
        assert!(names.len() > 8, "{names:?}");
    }

    #[test]
    fn man_page_of_serve_has_flags_and_signals() {
        let pages = render_man_pages().expect("pages");
        let (_, text) = pages.iter().find(|(name, _)| name == "prefork-serve.1").expect("page");
        let text = String::from_utf8_lossy(text).replace('\\', "");
        for part in [".TH PREFORK-SERVE 1", "--graceful-timeout", "default: 30s", "USR2"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn completion_scripts_contain_verbs_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completion_script(shell);
            for word in ["dispatch-program", "graceful-timeout", "reload"] {
                assert!(text.contains(word), "{word} is not in the script for {shell}");
            }
        }
    }

    #[test]
    fn arguments_are_parsed() {
        for (line, expected) in [
            ("prefork man /tmp/x", GenerateCall::Man("/tmp/x".into())),
            ("prefork completions zsh", GenerateCall::Completions(Shell::Zsh)),
        ] {
            match args::parse_args(line.split(' ')).expect(line) {
                Verb::Generate(call) => assert_eq!(call, expected, "{line}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
