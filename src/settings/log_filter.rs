//! Validation of the `log` key: rejects what `env_logger` would only warn about or take for the name of a module.

use tokio_prefork::cli::nearest_name;

/// Log levels, from least to most verbose.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Level names of other programs, each with the level it corresponds to.
const LEVEL_SYNONYMS: [(&str, &str); 7] = [
    ("none", "off"),
    ("fatal", "error"),
    ("critical", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
    ("all", "trace"),
    ("everything", "trace"),
];

/// Crates of this program that log.
const LOGGING_CRATES: [&str; 6] = ["tokio_prefork", "prefork", "hyper", "h2", "tokio", "mio"];

/// Minimum length of a common prefix by which a misspelt word is recognised as a level.
const MIN_LEVEL_PREFIX: usize = 3;

/// Validates a comma-separated list of `LEVEL`, `MODULE=LEVEL` and `MODULE`, with an optional `/TEXT` at the end.
///
/// A filter that consists of module names only is rejected unless one is a crate of this program: it would log nothing.
pub(super) fn parse_log_filter(text: &str) -> Result<String, String> {
    let (directives, pattern) = text.split_once('/').unwrap_or((text, ""));
    if pattern.contains('/') {
        return Err("is not a log filter: give at most one /".to_string());
    }
    let directives: Vec<&str> =
        directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    for directive in &directives {
        check_directive(directive)?;
    }
    let selects = |directive: &&str| {
        let name = directive.split("::").next().unwrap_or_default();
        directive.contains('=') || is_level(directive) || LOGGING_CRATES.contains(&name)
    };
    match directives.first() {
        Some(first) if !directives.iter().any(selects) => Err(format!(
            "would log nothing: {} is not a level; give {}, or NAME=LEVEL for a module",
            format_args!("{first:?}"),
            level_list()
        )),
        _ => Ok(text.to_string()),
    }
}

fn check_directive(directive: &str) -> Result<(), String> {
    let shown = format!("{directive:?}");
    match directive.split_once('=') {
        Some(("", _)) => {
            Err(format!("is not a log filter: in {shown} give the name of a module before the ="))
        }
        Some((_, level)) if is_level(level.trim()) || level.is_empty() => Ok(()),
        Some((_, level)) => Err(format!(
            "is not a log filter: in {shown} give {} after the ={}",
            level_list(),
            level_hint(level)
        )),
        None if is_level(directive) || LOGGING_CRATES.contains(&directive) => Ok(()),
        None => match guess_level(directive) {
            Some(level) => Err(format!(
                "is not a log filter: {shown} is not a level (did you mean {level}?); give {}, or {directive}=trace if \
                 that is a module",
                level_list()
            )),
            None => Ok(()),
        },
    }
}

fn level_hint(word: &str) -> String {
    guess_level(word).map(|level| format!(" (did you mean {level}?)")).unwrap_or_default()
}

/// Guesses which level a misspelt `word` means.
fn guess_level(word: &str) -> Option<&'static str> {
    let word = word.trim().to_lowercase();
    let synonym = LEVEL_SYNONYMS.iter().find(|(other, _)| *other == word).map(|(_, level)| *level);
    let begins = |level: &&&str| {
        (word.len() >= MIN_LEVEL_PREFIX && level.starts_with(&word))
            || (level.len() > MIN_LEVEL_PREFIX && word.starts_with(**level))
    };
    synonym
        .or_else(|| LEVELS.iter().find(begins).copied())
        .or_else(|| nearest_name(&word, LEVELS.iter().copied()))
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level))
}

fn level_list() -> String {
    let [rest @ .., last] = LEVELS;
    format!("{} or {last}", rest.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_log_filters_are_rejected() {
        for text in [
            "info",
            "off",
            "a=debug,b::c=WARN",
            "warn,a",
            "a=",
            "info/word",
            "",
            "tokio_prefork",
            "hyper",
            "tokio_prefork::worker",
            " info , a=debug",
        ] {
            assert_eq!(parse_log_filter(text).as_deref(), Ok(text));
        }
        let why = "is not a log filter: in \"a=loud\" give off, error, warn, info, debug or trace after the =";
        assert_eq!(parse_log_filter("info,a=loud").expect_err("level"), why);
        for text in ["info/a/b", "a=b=info", "=info"] {
            assert!(parse_log_filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn misspelt_levels_are_rejected_with_a_suggestion() {
        for (text, level) in [
            ("inof", "info"),
            ("INOF", "info"),
            ("wran", "warn"),
            ("warning", "warn"),
            ("err", "error"),
            ("errors", "error"),
            ("debgu", "debug"),
            ("verbose", "debug"),
            ("none", "off"),
            ("inof,hyper=debug", "info"),
            ("warn,a=inof", "info"),
            ("info,debg", "debug"),
        ] {
            let why = parse_log_filter(text).expect_err(text);
            assert!(why.contains(&format!("(did you mean {level}?)")), "{text}: {why}");
        }
    }

    #[test]
    fn filters_that_would_log_nothing_are_rejected() {
        for text in ["loud", "my_crate", "my_crate,other"] {
            let why = parse_log_filter(text).expect_err(text);
            assert!(why.starts_with("would log nothing: ") && why.contains("NAME=LEVEL"), "{why}");
        }
    }
}
