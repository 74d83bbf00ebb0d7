//! Templates in the arguments of a program: `{fd}`, `{fd:N}`, `{port}`, `{slot}` and `{worker}`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::{Error, Result};

/// The number of the first descriptor that the program inherits, as in systemd's protocol.
pub(super) const FIRST_FD: usize = 3;

/// What the templates stand for in one worker.
pub(super) struct TemplateValues {
    /// How many listening sockets the program gets.
    pub(super) sockets: usize,
    /// The port of the first one; `None` for a Unix socket.
    pub(super) port: Option<u16>,
    pub(super) slot: u32,
    pub(super) worker: u64,
}

/// A piece of an argument.
enum Piece<'a> {
    Literal(&'a [u8]),
    Template(&'a str),
}

/// Checks that all templates are known, without their values.
pub(super) fn check_templates(arguments: &[OsString]) -> Result<()> {
    let some = TemplateValues { sockets: usize::MAX - FIRST_FD, port: Some(0), slot: 0, worker: 0 };
    arguments.iter().try_for_each(|argument| expand(argument, &some).map(drop))
}

/// Returns whether an argument has the number of a descriptor, as a template or as `fd://3`.
pub(super) fn names_descriptor(argument: &OsStr) -> bool {
    let text = argument.to_string_lossy();
    let is_address = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    text.contains("{fd") || text.split("fd://").skip(1).any(is_address)
}

/// Replaces the templates of an argument.
///
/// # Errors
/// A template is unknown, or has no value in this worker.
pub(super) fn expand(argument: &OsStr, values: &TemplateValues) -> Result<OsString> {
    let mut expanded = Vec::with_capacity(argument.len());
    for piece in split(argument.as_bytes()) {
        match piece {
            Piece::Literal(bytes) => expanded.extend_from_slice(bytes),
            Piece::Template(name) => expanded.extend_from_slice(
                value_of(name, values)
                    .map_err(|why| {
                        let argument = argument.to_string_lossy();
                        Error::config(format!(
                            "cannot replace {{{name}}} in the argument {argument:?}: {why}"
                        ))
                    })?
                    .as_bytes(),
            ),
        }
    }
    Ok(OsString::from_vec(expanded))
}

/// Splits an argument into literals and templates. Braces that enclose no template's name, as in JSON, are literals.
fn split(argument: &[u8]) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest) = (Vec::new(), argument);
    while let Some(start) = rest.iter().position(|byte| *byte == b'{') {
        pieces.push(Piece::Literal(&rest[..start]));
        let after = &rest[start + 1..];
        if after.first() == Some(&b'{') {
            pieces.push(Piece::Literal(b"{"));
            rest = &after[1..];
            continue;
        }
        let name = after
            .iter()
            .position(|byte| *byte == b'}')
            .and_then(|end| template_name(&after[..end]));
        match name {
            Some(name) => {
                pieces.push(Piece::Template(name));
                rest = &after[name.len() + 1..];
            }
            None => {
                pieces.push(Piece::Literal(b"{"));
                rest = after;
            }
        }
    }
    pieces.push(Piece::Literal(rest));
    pieces
}

/// Returns the text between two braces if it looks like the name of a template.
fn template_name(text: &[u8]) -> Option<&str> {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b':';
    (!text.is_empty() && text[0].is_ascii_lowercase() && text.iter().all(plain))
        .then(|| std::str::from_utf8(text).ok())
        .flatten()
}

fn value_of(name: &str, values: &TemplateValues) -> Result<String, String> {
    let fd = |index: usize| match index < values.sockets {
        true => Ok((FIRST_FD + index).to_string()),
        false => Err(format!("the program gets {} listening sockets", values.sockets)),
    };
    match name.split_once(':') {
        Some(("fd", index)) => {
            fd(index.parse().map_err(|_| "N in {fd:N} is a number from 0".to_string())?)
        }
        None if name == "fd" => fd(0),
        None if name == "port" => values
            .port
            .map(|port| port.to_string())
            .ok_or("the first address has no port".to_string()),
        None if name == "slot" => Ok(values.slot.to_string()),
        None if name == "worker" => Ok(values.worker.to_string()),
        _ => Err("give {fd}, {fd:N}, {port}, {slot} or {worker}, or {{ for a brace".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(argument: &str) -> Result<String> {
        let values = TemplateValues { sockets: 2, port: Some(8080), slot: 1, worker: 7 };
        expand(OsStr::new(argument), &values).map(|text| text.to_string_lossy().into_owned())
    }

    #[test]
    fn numbers_of_descriptors_are_recognized() {
        for (argument, is_expected) in [
            ("{fd}", true),
            ("fd://{fd:1}", true),
            ("--bind=fd://3", true),
            ("fd://", false),
            ("3", false),
            ("{slot}", false),
        ] {
            assert_eq!(names_descriptor(OsStr::new(argument)), is_expected, "{argument}");
        }
    }

    #[test]
    fn templates_are_replaced_and_other_braces_stay() {
        for (argument, wanted) in [
            ("--fd={fd}", "--fd=3"),
            ("fd://{fd:1}/{port}", "fd://4/8080"),
            ("{worker}-{slot}", "7-1"),
            ("{{fd}", "{fd}"),
            (r#"{"port": {port}, "a": {}}"#, r#"{"port": 8080, "a": {}}"#),
            ("plain {", "plain {"),
            ("${HOME}", "${HOME}"),
        ] {
            assert_eq!(expanded(argument).expect(argument), wanted);
        }
    }

    #[test]
    fn an_unknown_template_is_an_error_that_lists_the_known_ones() {
        for argument in ["{pid}", "{fd:2}", "{fd:x}", "{slots}"] {
            let error = expanded(argument).expect_err(argument).to_string();
            assert!(error.contains(argument), "{error}");
        }
        assert!(check_templates(&["{fd:9}".into()]).is_ok());
        assert!(check_templates(&["{nope}".into()]).is_err());
    }
}
