//! Verbs of other process managers, such as PM2's, and what to use here instead.

use clap::error::{ContextKind, ContextValue};

/// A verb that users of other tools try, and the answer.
struct ForeignVerb {
    names: &'static [&'static str],
    /// Completes the sentence that names the verb.
    answer: &'static str,
}

/// The verbs of PM2, forever, systemctl, Puma and gunicorn that have another name here.
const FOREIGN_VERBS: &[ForeignVerb] = &[
    ForeignVerb {
        names: &["start"],
        answer: "prefork serve, or prefork run -- PROGRAM for a program of yours; both stay in the foreground: let systemd start \
                 them (systemctl start prefork)",
    },
    ForeignVerb {
        names: &["restart", "gracefulReload", "startOrReload", "phased-restart", "rolling-restart"],
        answer: "prefork reload, which replaces the workers without downtime, or prefork upgrade to a new binary",
    },
    ForeignVerb {
        names: &[
            "list",
            "ls",
            "ps",
            "l",
            "show",
            "describe",
            "info",
            "id",
            "pid",
            "jlist",
            "prettylist",
            "stats",
        ],
        answer: "prefork status, or prefork status --json for scripts",
    },
    ForeignVerb { names: &["monit", "monitor", "dash", "dashboard"], answer: "prefork top" },
    ForeignVerb {
        names: &["logs", "log", "tail"],
        answer: "prefork events --follow for the log of the primary; it also goes to standard error (journalctl -u prefork) or to \
                 --log-file",
    },
    ForeignVerb {
        names: &["kill", "delete", "del", "rm", "halt", "shutdown", "quit"],
        answer: "prefork stop, or prefork stop --now",
    },
    ForeignVerb {
        names: &["save", "startup", "unstartup", "resurrect", "enable", "disable"],
        answer: "systemd: scripts/install installs the service prefork, and systemctl enable prefork starts it at boot",
    },
    ForeignVerb {
        names: &["reloadLogs", "flush", "reopen"],
        answer: "the signal USR1 to the primary, which opens the log files again",
    },
    ForeignVerb {
        names: &["init", "ecosystem", "config", "configtest", "validate", "test"],
        answer: "prefork check, which prints every value with its source",
    },
    ForeignVerb { names: &["watch"], answer: "prefork dev, or --watch of serve and run" },
    ForeignVerb { names: &["exec", "cluster", "fork"], answer: "prefork run -- PROGRAM" },
    ForeignVerb { names: &["load", "ab", "wrk"], answer: "prefork bench URL" },
    ForeignVerb { names: &["version"], answer: "prefork --version" },
];

/// Returns what to use instead of the unknown verb that an error is about, if another tool has that verb.
pub(crate) fn answer_foreign_verb(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(verb)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let is_meant =
        |foreign: &&ForeignVerb| foreign.names.iter().any(|name| name.eq_ignore_ascii_case(verb));
    let answer = FOREIGN_VERBS.iter().find(is_meant)?.answer;
    Some(format!("there is no verb {verb}: use {answer}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{parse_args, prefork_command};

    #[test]
    fn verbs_of_other_tools_are_answered_with_the_right_one() {
        for (verb, right) in [
            ("start", "prefork serve"),
            ("restart", "prefork reload"),
            ("list", "prefork status"),
            ("ls", "prefork status"),
            ("logs", "prefork events"),
            ("kill", "prefork stop"),
            ("delete", "prefork stop"),
            ("MONIT", "prefork top"),
        ] {
            let error = parse_args(["prefork", verb, "all"]).expect_err(verb).to_string();
            assert!(error.contains(right), "{verb}: {error}");
        }
        let error = parse_args(["prefork", "statsu"]).expect_err("a typing error").to_string();
        assert!(error.contains("'status'"), "{error}");
    }

    #[test]
    fn foreign_verbs_are_none_of_the_own_verbs_and_name_existing_ones() {
        let own: Vec<String> =
            prefork_command().get_subcommands().map(|verb| verb.get_name().to_string()).collect();
        for foreign in FOREIGN_VERBS {
            for name in foreign.names {
                assert!(!own.contains(&name.to_string()), "{name}");
            }
            for after in foreign.answer.split("prefork ").skip(1) {
                let named: String = after.chars().take_while(|c| c.is_ascii_lowercase()).collect();
                let is_verb = own.contains(&named) || ["starts", ""].contains(&named.as_str());
                assert!(is_verb, "{named} in {:?}", foreign.answer);
            }
        }
    }
}
