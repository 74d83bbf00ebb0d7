//! The source code of the workspace, read line by line. As rustfmt has formatted it, indentation shows where functions and
//! modules end, and no parser is needed.

use std::fs;
use std::path::Path;

/// One source file.
pub struct SourceFile {
    /// The path from the root of the workspace.
    pub name: String,
    pub lines: Vec<String>,
    /// The line of `#[cfg(test)] mod tests`, from which on everything is test.
    tests_from: usize,
}

/// A function with a body.
pub struct Function {
    pub name: String,
    /// The number of its first line, from 1.
    pub line: usize,
    /// How many lines it has.
    pub lines: usize,
}

/// Returns every Rust file below these paths of the workspace, ordered by name.
pub fn source_files(paths: &[&str]) -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for path in paths {
        collect_files(root, &root.join(path), &mut files);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

fn collect_files(root: &Path, path: &Path, files: &mut Vec<SourceFile>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("source directory") {
            collect_files(root, &entry.expect("entry").path(), files);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path).expect("source file");
        let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        files.push(SourceFile::new(name, &text));
    }
}

/// Returns a line without its comment. Slashes after a colon are taken for an address.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// Whether `code` contains `word`, and not only as the end of a longer identifier.
fn contains_word(code: &str, word: &str) -> bool {
    let is_identifier = |c: char| c.is_alphanumeric() || c == '_';
    let is_whole =
        |at: usize| !(word.starts_with(is_identifier) && code[..at].ends_with(is_identifier));
    code.match_indices(word).any(|(at, _)| is_whole(at))
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

impl SourceFile {
    fn new(name: String, text: &str) -> SourceFile {
        let lines: Vec<String> = text.lines().map(str::to_string).collect();
        let is_test_module =
            |pair: &[String]| pair[0] == "#[cfg(test)]" && pair[1].ends_with("mod tests {");
        let tests_from = lines.windows(2).position(is_test_module).unwrap_or(lines.len());
        SourceFile { name, lines, tests_from }
    }

    /// Whether the whole file is test code.
    pub fn is_test(&self) -> bool {
        let path = self.name.trim_end_matches(".rs");
        let test_modules = ["tests", "sim", "simulator", "laws", "invariants"];
        path.ends_with("_tests") || path.split('/').any(|part| test_modules.contains(&part))
    }

    /// Returns the lines outside `mod tests`, without comments, with their numbers from 1.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.all_code().take(self.tests_from)
    }

    /// Returns the lines outside `mod tests` that contain `word`, as `FILE:LINE CODE`.
    pub fn lines_with(&self, word: &str) -> Vec<String> {
        let found = self.code().filter(|(_, code)| contains_word(code, word));
        found.map(|(number, code)| format!("{}:{number} {}", self.name, code.trim())).collect()
    }

    /// Returns all lines that contain `word`, as `FILE:LINE CODE`.
    pub fn all_lines_with(&self, word: &str) -> Vec<String> {
        let found = self.all_code().filter(|(_, code)| contains_word(code, word));
        found.map(|(number, code)| format!("{}:{number} {}", self.name, code.trim())).collect()
    }

    fn all_code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }

    /// Returns every function that has a body.
    pub fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            let margin = indentation(line);
            let is_end = |line: &String| {
                indentation(line) == margin && (line.trim() == "}" || line.ends_with(';'))
            };
            let end = match line.ends_with('}') {
                true => Some(0),
                false => self.lines[i..].iter().position(is_end),
            };
            if let Some(length) = end {
                functions.push(Function { name, line: i + 1, lines: length + 1 });
            }
        }
        functions
    }
}

/// Returns the name of the function that starts in this line.
fn function_name(line: &str) -> Option<String> {
    let mut words = line.trim_start().split(' ');
    let qualifiers =
        ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
    let word = words.by_ref().find(|word| !qualifiers.contains(word))?;
    let name = words.next().filter(|_| word == "fn")?;
    name.split(['(', '<']).next().map(str::to_string)
}
