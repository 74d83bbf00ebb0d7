//! The source of this package, read by lines. rustfmt has laid it out, so indentation tells what belongs to
//! what, and no parser is needed.

use std::fs;
use std::path::Path;

/// One source file.
pub struct File {
    /// From the root of the package.
    pub name: String,
    pub lines: Vec<String>,
    /// The first line of `#[cfg(test)] mod tests`, from which on everything is test.
    tests_from: usize,
}

/// A function, with its body.
pub struct Function {
    pub name: String,
    /// The number of its first line, from 1.
    pub at: usize,
    pub lines: usize,
}

/// Every Rust file under these paths of the package.
pub fn sources(paths: &[&str]) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for path in paths {
        collect(root, &root.join(path), &mut files);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

fn collect(root: &Path, path: &Path, files: &mut Vec<File>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("source directory") {
            collect(root, &entry.expect("entry").path(), files);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path).expect("source file");
        let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        files.push(File::new(name, &text));
    }
}

/// A line without its comment. Slashes within text are no comment, which matters for addresses only.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// Whether `code` contains `word`, and not only as the end of a longer word.
fn contains_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |at: usize| !(word.starts_with(part) && code[..at].ends_with(part));
    code.match_indices(word).any(|(at, _)| whole(at))
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

impl File {
    fn new(name: String, text: &str) -> File {
        let lines: Vec<String> = text.lines().map(str::to_string).collect();
        let module =
            |pair: &[String]| pair[0] == "#[cfg(test)]" && pair[1].ends_with("mod tests {");
        let tests_from = lines.windows(2).position(module).unwrap_or(lines.len());
        File { name, lines, tests_from }
    }

    /// Whether all of it is test.
    pub fn is_test(&self) -> bool {
        let path = self.name.trim_end_matches(".rs");
        let names = ["tests", "sim", "laws"];
        self.name.starts_with("tests/")
            || path.ends_with("_tests")
            || path.split('/').any(|part| names.contains(&part))
    }

    /// Line numbers from 1, and lines without comments, of what is not test.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end =
            if self.is_test() && !self.name.starts_with("tests/") { 0 } else { self.tests_from };
        let lines = self.lines[..end].iter().enumerate();
        lines.map(|(i, line)| (i + 1, without_comment(line)))
    }

    /// Lines of code with this word, as people want to see them.
    pub fn mentions(&self, word: &str) -> Vec<String> {
        let with = self
            .all_code()
            .filter(|(number, code)| *number <= self.tests_from && contains_word(code, word));
        with.map(|(number, code)| format!("{}:{number} {}", self.name, code.trim())).collect()
    }

    /// The same, tests included.
    pub fn all_mentions(&self, word: &str) -> Vec<String> {
        let with = self.all_code().filter(|(_, code)| contains_word(code, word));
        with.map(|(number, code)| format!("{}:{number} {}", self.name, code.trim())).collect()
    }

    fn all_code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }

    /// Every function that has a body.
    pub fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            let margin = indentation(line);
            let ends = |line: &String| {
                indentation(line) == margin && (line.trim() == "}" || line.ends_with(';'))
            };
            let close = match line.ends_with('}') {
                true => Some(0),
                false => self.lines[i..].iter().position(ends),
            };
            if let Some(length) = close {
                functions.push(Function { name, at: i + 1, lines: length + 1 });
            }
        }
        functions
    }
}

/// The name, if a function begins in this line.
fn function_name(line: &str) -> Option<String> {
    let mut words = line.trim_start().split(' ');
    let qualifiers =
        ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
    let word = words.by_ref().find(|word| !qualifiers.contains(word))?;
    let name = words.next().filter(|_| word == "fn")?;
    name.split(['(', '<']).next().map(str::to_string)
}
