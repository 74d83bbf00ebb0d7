//! Environment variables of the program: `NAME=VALUE`, and files with one on each line.

use std::path::Path;

use tokio_prefork::{Error, Result};

/// Maximum size of a file of variables in bytes: 1 MiB. A larger file is probably the wrong one.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// A variable and its value.
pub(super) type Variable = (String, String);

/// Parses `NAME=VALUE`. An error completes a sentence that begins with the text.
pub(super) fn parse_variable(text: &str) -> Result<Variable, String> {
    match text.split_once('=') {
        Some((name, value)) if is_name(name) && !value.contains('\0') => {
            Ok((name.to_string(), value.to_string()))
        }
        _ => Err("is not a variable: write NAME=VALUE".to_string()),
    }
}

/// Reads the variables of a file: `NAME=VALUE` on each line, with or without `export` and quotes, as in `.env` files. Empty lines
/// and those that begin with `#` are skipped.
///
/// # Errors
///
/// The file cannot be read, or a line is something else; the error names it.
pub(super) fn read_env_file(path: &Path) -> Result<Vec<Variable>> {
    let error = |why: String| Error::config(format!("env-file = {}: {why}", path.display()));
    let meta = path.metadata().map_err(|e| error(format!("cannot be read: {e}")))?;
    // A FIFO would block the primary during a reload.
    if !meta.is_file() || meta.len() > MAX_FILE_SIZE {
        return Err(error("it is not a regular file of up to 1 MiB".to_string()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| error(format!("cannot be read: {e}")))?;
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (name, value) = parse_variable(variable)
            .map_err(|why| error(format!("line {}: {line:?} {why}", index + 1)))?;
        let value = unquote(value.trim())
            .ok_or_else(|| error(format!("line {}: a quote has no end", index + 1)))?;
        variables.push((name, value));
    }
    Ok(variables)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Takes the quotes off a value as a shell does. A value without quotes is taken as it is, also with spaces.
fn unquote(value: &str) -> Option<String> {
    if !value.starts_with(['"', '\'']) {
        return Some(value.to_string());
    }
    match shlex::split(value)?.as_slice() {
        [] => Some(String::new()),
        words => Some(words.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_names_and_values() {
        let pair = |name: &str, value: &str| Ok((name.to_string(), value.to_string()));
        assert_eq!(parse_variable("A_1=b=c"), pair("A_1", "b=c"));
        assert_eq!(parse_variable("A="), pair("A", ""));
        for text in ["", "A", "=b", "1A=b", "A B=c", "A=b\0"] {
            assert!(parse_variable(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn files_have_comments_quotes_and_export() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let text = "# a comment\n\nA=1\nexport B=\"two words\"\nC='x # y'\nD=plain # kept\nE=\n";
        std::fs::write(file.path(), text).expect("write");
        let variables = read_env_file(file.path()).expect("readable");
        let shown: Vec<String> = variables.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(shown, ["A=1", "B=two words", "C=x # y", "D=plain # kept", "E="]);
        for (text, why) in [("A=1\nnonsense", "line 2"), ("A=\"open", "a quote has no end")] {
            std::fs::write(file.path(), text).expect("write");
            let error = read_env_file(file.path()).expect_err(text).to_string();
            assert!(error.contains(why) && error.starts_with("env-file = "), "{error}");
        }
        assert!(
            read_env_file(Path::new("/")).is_err() && read_env_file(Path::new("/none")).is_err()
        );
    }
}
