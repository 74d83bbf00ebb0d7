//! The prose of README.md, the book and the other pages: short first sentences, no clause without end, plain words.

use std::fs;
use std::path::Path;

/// Most words of the first sentence under a heading, up to its first full stop, colon or semicolon.
const MAX_FIRST_SENTENCE_WORDS: usize = 25;
/// Most words of any clause.
const MAX_CLAUSE_WORDS: usize = 48;

/// Words that praise, and pictures that a reader has to solve. A space at the end stands for the end of a word.
const BANNED_WORDS: [&str; 22] = [
    "blazing",
    "bury ",
    "effortless",
    "for ever ",
    "herald",
    "in order to",
    "leverage",
    "manners",
    "mourn",
    "needless to say",
    "obituary",
    "obviously",
    "of course",
    "powerful",
    "robust",
    "seamless",
    "simply ",
    "state of the art",
    "trivially",
    "utilise",
    "utilize",
    "very ",
];

/// A paragraph: the number of its first line, whether it is the first one under a heading, and its text.
struct Paragraph {
    line: usize,
    is_first: bool,
    text: String,
}

/// Returns the paragraphs of a page, without code, tables, lists, headings and comments.
fn paragraphs(page: &str) -> Vec<Paragraph> {
    let mut found: Vec<Paragraph> = Vec::new();
    let (mut is_code, mut is_open, mut is_first) = (false, false, false);
    for (index, line) in page.lines().enumerate() {
        let line = line.trim();
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        let is_list = line.starts_with("- ") || line.starts_with(|c: char| c.is_ascii_digit());
        let is_other = line.is_empty() || line.starts_with(['#', '|', '<', '!', '>']) || is_list;
        if is_code || is_fence || is_other {
            is_open = false;
            is_first = (is_first && line.is_empty()) || (!is_code && line.starts_with('#'));
        } else if is_open {
            let last = found.last_mut().expect("an open paragraph");
            last.text = format!("{} {line}", last.text);
        } else {
            found.push(Paragraph { line: index + 1, is_first, text: line.to_string() });
            (is_open, is_first) = (true, false);
        }
    }
    found
}

/// Returns the number of words of each clause. A span of code is one word, and a link its text.
fn clause_lengths(text: &str) -> Vec<usize> {
    let code = text.split('`').enumerate().map(|(n, part)| if n % 2 == 1 { "code" } else { part });
    let mut text: String = code.collect();
    while let Some((start, rest)) = text.split_once("](")
        && let Some((_, end)) = rest.split_once(')')
    {
        text = format!("{start}{end}");
    }
    let mut lengths = vec![0];
    for word in text.split_whitespace() {
        *lengths.last_mut().expect("one") += 1;
        if word.trim_end_matches([')', '"', '*']).ends_with(['.', ':', ';', '?', '!']) {
            lengths.push(0);
        }
    }
    lengths.retain(|length| *length > 0);
    lengths
}

/// Returns the names and texts of all pages.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let book = fs::read_dir(root.join("docs/src")).expect("docs/src");
    let book = book.map(|entry| entry.expect("entry").path());
    let others = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];
    let paths = book.chain(others.map(|name| root.join(name)));
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("page")))
        .collect()
}

#[test]
fn first_sentences_and_clauses_are_short() {
    let mut found = Vec::new();
    for (name, text) in pages() {
        for paragraph in paragraphs(&text) {
            let lengths = clause_lengths(&paragraph.text);
            let first = lengths.first().copied().unwrap_or_default();
            if paragraph.is_first && first > MAX_FIRST_SENTENCE_WORDS {
                found.push(format!("{name}:{} begins with {first} words", paragraph.line));
            }
            let longest = lengths.into_iter().max().unwrap_or_default();
            if longest > MAX_CLAUSE_WORDS {
                found.push(format!("{name}:{} has a clause of {longest} words", paragraph.line));
            }
        }
    }
    assert!(found.is_empty(), "too long:\n  {}", found.join("\n  "));
}

#[test]
fn pages_use_plain_words() {
    let mut found = Vec::new();
    for (name, text) in pages() {
        for (index, line) in text.lines().enumerate() {
            let line = format!(" {} ", line.to_lowercase());
            let words = BANNED_WORDS.iter().filter(|word| line.contains(&format!(" {word}")));
            found.extend(words.map(|word| format!("{name}:{} {word:?}", index + 1)));
        }
    }
    assert!(found.is_empty(), "say it plainly:\n  {}", found.join("\n  "));
}

#[test]
fn paragraphs_and_clauses_are_those_of_prose() {
    let page = "# A\n\nOne two\nthree. Four: `five six` [seven](x.md).\n\n| a |\n\n- b\n\n```\nc\n```\nd\n";
    let found = paragraphs(page);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].line, found[0].is_first, found[1].is_first), (3, true, false));
    assert_eq!(clause_lengths(&found[0].text), [3, 1, 2]);
}
