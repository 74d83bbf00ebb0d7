//! The verbs in groups, for the help of the command.

use std::fmt::Write as _;

use clap::Command;

/// The groups in the order of the help, with their verbs.
const VERB_GROUPS: [(&str, &[&str]); 5] = [
    ("Serve and run", &["serve", "run", "dev"]),
    ("Operate", &["reload", "scale", "stop", "upgrade"]),
    ("Observe", &["status", "top", "events", "stack", "health"]),
    ("Measure", &["bench", "compare", "demo"]),
    ("Other", &["check", "dispatch-program", "dev-cert", "help"]),
];

/// Groups the verbs in the help of the command. clap has one list for all.
pub(crate) fn with_verb_groups(command: Command) -> Command {
    let styles = command.get_styles();
    let (header, verb) = (*styles.get_header(), *styles.get_literal());
    let mut text = String::new();
    for (group, names) in VERB_GROUPS {
        let _ = writeln!(text, "{header}{group}:{header:#}");
        for name in names {
            let about = match command.find_subcommand(name).and_then(Command::get_about) {
                Some(about) => about.to_string(),
                None => "Print this help, or that of a verb: prefork help serve".to_string(),
            };
            let _ = writeln!(text, "  {verb}{name:<16}{verb:#}  {about}");
        }
        text.push('\n');
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}{{options}}\n");
    command.help_template(template).subcommand_value_name("VERB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::prefork_command;

    #[test]
    fn each_visible_verb_is_in_one_group() {
        let mut grouped: Vec<&str> =
            VERB_GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        grouped.retain(|name| *name != "help");
        let command = prefork_command();
        let visible = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let mut verbs: Vec<&str> = visible.map(Command::get_name).collect();
        grouped.sort_unstable();
        verbs.sort_unstable();
        assert_eq!(grouped, verbs);
    }

    #[test]
    fn the_help_fits_into_eighty_columns() {
        let help = prefork_command().render_help().to_string();
        let long: Vec<&str> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{long:#?}");
    }
}
