//! Where the output of programs goes: the setting, the form of a line, and the writers in the primary.
//!
//! The primary reads the pipes of the programs (`primary/worker_output.rs`) and writes each line itself, so that lines are
//! whole and say which worker they are of. It never waits for a reader: while one is behind for a moment, the primary leaves
//! the rest in the pipes, so that programs are slowed down as by any pipe; when it stands still for longer, lines are lost and
//! counted.

mod line_format;
mod line_writer;
mod output_files;
mod output_writer;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::ParseValueError;
use crate::error::{Error, Result};

pub(crate) use output_writer::ProgramOutputWriter;

/// Where the standard output and error of a program go. Default: [`ProgramOutput::Prefix`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramOutput {
    /// To the same stream of the primary, each line after `worker=3 slot=1 stdout: `.
    #[default]
    Prefix,
    /// The program has the primary's own streams and writes to them itself.
    Plain,
    /// To the same stream of the primary, each line as a JSON object.
    Json,
    /// To files: a path that may contain `{slot}`, `{stream}` and `{name}`, or a directory, which means
    /// `DIR/{name}-{slot}.log`. SIGUSR1 opens them again after a rotation.
    File(PathBuf),
}

/// What files in a directory are called.
const FILE_NAME_IN_DIRECTORY: &str = "{name}-{slot}.log";

impl ProgramOutput {
    /// Returns whether the primary reads the output from pipes.
    pub(crate) fn is_read_by_primary(&self) -> bool {
        *self != ProgramOutput::Plain
    }

    /// Returns the path with its placeholders, if the output goes to files. A path that ends with `/`, or leads to a directory,
    /// gets a file name.
    pub(crate) fn file_pattern(&self) -> Option<PathBuf> {
        let ProgramOutput::File(path) = self else { return None };
        let is_directory = path.as_os_str().to_string_lossy().ends_with('/') || path.is_dir();
        Some(if is_directory { path.join(FILE_NAME_IN_DIRECTORY) } else { path.clone() })
    }

    /// Checks whether the files could be opened, as far as that can be told without creating them.
    ///
    /// # Errors
    ///
    /// The directory does not exist or cannot be written, or the path leads to something that is no file.
    pub fn check(&self) -> Result<()> {
        let Some(pattern) = self.file_pattern() else { return Ok(()) };
        let example = line_format::fill_placeholders(&pattern, "program", 0, "stdout");
        crate::log_file::check_access_log(&example)
            .map_err(|error| Error::config(format!("output = {self} cannot be used: {error}")))
    }
}

impl FromStr for ProgramOutput {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Another word, no path after `file:`, or an unknown placeholder in it.
    fn from_str(text: &str) -> Result<ProgramOutput, ParseValueError> {
        let error = |reason: &str| Err(ParseValueError::new(text, reason));
        match text.trim() {
            "prefix" => Ok(ProgramOutput::Prefix),
            "plain" => Ok(ProgramOutput::Plain),
            "json" => Ok(ProgramOutput::Json),
            "file" | "file:" => {
                error("needs a path: give file:PATH, such as file:/var/log/app-{slot}.log")
            }
            word => match word.strip_prefix("file:") {
                None => error("is not an output: give prefix, plain, json or file:PATH"),
                Some(path) => match unknown_placeholder(path) {
                    Some(name) => error(&format!(
                        "has the unknown placeholder {{{name}}}: give {{slot}}, {{stream}} or {{name}}"
                    )),
                    None => Ok(ProgramOutput::File(PathBuf::from(path))),
                },
            },
        }
    }
}

/// Returns the first placeholder of a path that has no meaning.
fn unknown_placeholder(path: &str) -> Option<&str> {
    let names = path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
    let mut unknown = names.filter(|name| !line_format::PLACEHOLDERS.contains(name));
    unknown.next()
}

impl fmt::Display for ProgramOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProgramOutput::Prefix => f.write_str("prefix"),
            ProgramOutput::Plain => f.write_str("plain"),
            ProgramOutput::Json => f.write_str("json"),
            ProgramOutput::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_is_read_as_it_is_printed() {
        for text in ["prefix", "plain", "json", "file:/var/log/{slot}.log", "file:logs/"] {
            assert_eq!(text.parse::<ProgramOutput>().expect(text).to_string(), text);
        }
        for (text, part) in [
            ("file", "needs a path"),
            ("file:", "needs a path"),
            ("journal", "give prefix, plain, json or file:PATH"),
            ("file:/a/{worker}.log", "unknown placeholder {worker}"),
        ] {
            let error = text.parse::<ProgramOutput>().expect_err(text);
            assert!(error.reason().contains(part), "{error}");
        }
    }

    #[test]
    fn a_directory_gets_file_names_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        let output = ProgramOutput::File(dir.path().to_path_buf());
        let expected = dir.path().join("{name}-{slot}.log");
        assert_eq!(output.file_pattern(), Some(expected));
        output.check().expect("a directory that can be written");
        let output = ProgramOutput::File(dir.path().join("none/{slot}.log"));
        assert!(output.check().expect_err("no directory").to_string().contains("does not exist"));
        assert_eq!(ProgramOutput::Prefix.file_pattern(), None);
        ProgramOutput::Json.check().expect("no file");
    }
}
