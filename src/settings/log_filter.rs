//! The value of `log`: what `env_logger` would warn about, or take for the name of a module, is an error here.

use super::configured_value::quote_for_error;
use super::did_you_mean::nearest_name;

/// From silent to everything.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What other programs call their levels.
const SYNONYMS: [(&str, &str); 7] = [
    ("none", "off"),
    ("fatal", "error"),
    ("critical", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
    ("all", "trace"),
    ("everything", "trace"),
];

/// Crates of this program that have something to say.
const MODULES: [&str; 6] = ["tokio_prefork", "prefork", "hyper", "h2", "tokio", "mio"];

/// The shortest beginning of a level that is recognised in another word, or that another word is recognised by.
const MIN_PREFIX: usize = 3;

/// Checks `LEVEL`, `MODULE=LEVEL`, `MODULE` and lists of these, with an optional `/TEXT` behind.
///
/// A filter of names alone is refused unless one is a crate of this program: it would log nothing.
pub(super) fn read(text: &str) -> Result<String, String> {
    let (directives, pattern) = text.split_once('/').unwrap_or((text, ""));
    if pattern.contains('/') {
        return Err("is not a log filter: give at most one /".to_string());
    }
    let directives: Vec<&str> =
        directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    for directive in &directives {
        check(directive)?;
    }
    let selects = |directive: &&str| {
        let name = directive.split("::").next().unwrap_or_default();
        directive.contains('=') || is_level(directive) || MODULES.contains(&name)
    };
    match directives.first() {
        Some(first) if !directives.iter().any(selects) => Err(format!(
            "would log nothing: {} is not a level; give {}, or NAME=LEVEL for a module",
            quote_for_error(first),
            list()
        )),
        _ => Ok(text.to_string()),
    }
}

fn check(directive: &str) -> Result<(), String> {
    let shown = quote_for_error(directive);
    match directive.split_once('=') {
        Some(("", _)) => {
            Err(format!("is not a log filter: in {shown} give the name of a module before the ="))
        }
        Some((_, level)) if is_level(level.trim()) || level.is_empty() => Ok(()),
        Some((_, level)) => Err(format!(
            "is not a log filter: in {shown} give {} after the ={}",
            list(),
            hint(level)
        )),
        None if is_level(directive) || MODULES.contains(&directive) => Ok(()),
        None => match meant(directive) {
            Some(level) => Err(format!(
                "is not a log filter: {shown} is not a level (did you mean {level}?); give {}, or {directive}=trace if \
                 that is a module",
                list()
            )),
            None => Ok(()),
        },
    }
}

fn hint(word: &str) -> String {
    meant(word).map(|level| format!(" (did you mean {level}?)")).unwrap_or_default()
}

/// The level that `word` was meant to be, if one is near.
fn meant(word: &str) -> Option<&'static str> {
    let word = word.trim().to_lowercase();
    let synonym = SYNONYMS.iter().find(|(other, _)| *other == word).map(|(_, level)| *level);
    let begins = |level: &&&str| {
        (word.len() >= MIN_PREFIX && level.starts_with(&word))
            || (level.len() > MIN_PREFIX && word.starts_with(**level))
    };
    synonym
        .or_else(|| LEVELS.iter().find(begins).copied())
        .or_else(|| nearest_name(&word, LEVELS.iter().copied()))
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level))
}

fn list() -> String {
    let [rest @ .., last] = LEVELS;
    format!("{} or {last}", rest.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_filters_are_checked_where_env_logger_would_ignore_them() {
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
            assert_eq!(read(text).as_deref(), Ok(text));
        }
        let why = "is not a log filter: in \"a=loud\" give off, error, warn, info, debug or trace after the =";
        assert_eq!(read("info,a=loud").expect_err("level"), why);
        for text in ["info/a/b", "a=b=info", "=info"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_level_that_is_misspelt_is_an_error_with_the_nearest_one() {
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
            let why = read(text).expect_err(text);
            assert!(why.contains(&format!("(did you mean {level}?)")), "{text}: {why}");
        }
    }

    #[test]
    fn names_alone_that_would_log_nothing_are_an_error() {
        for text in ["loud", "my_crate", "my_crate,other"] {
            let why = read(text).expect_err(text);
            assert!(why.starts_with("would log nothing: ") && why.contains("NAME=LEVEL"), "{why}");
        }
    }
}
