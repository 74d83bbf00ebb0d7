//! README.md, the book in `docs/` and the other pages: their links lead somewhere, and the book lists every page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use tokio_prefork::exit;

use crate::support::source_code::source_files;

/// Pages outside of the book.
const ROOT_PAGES: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
/// Maximum length of README.md and ARCHITECTURE.md in lines.
const MAX_PAGE_LINES: usize = 200;

#[track_caller]
fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the paths of all pages of the book, relative to the root.
fn book_pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs/src")).expect("docs/src");
    let names = entries.map(|entry| PathBuf::from(entry.expect("entry").file_name()));
    let pages = names.filter(|name| name.extension().is_some_and(|ending| ending == "md"));
    pages.map(|name| Path::new("docs/src").join(name)).collect()
}

/// The lines of a page outside of fenced code, with their numbers.
fn lines_outside_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((index + 1, line))
    })
}

/// Returns a line without its code spans.
fn strip_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// Returns the targets of the links and images in a line.
fn link_targets(line: &str) -> Vec<String> {
    let line = strip_code_spans(line);
    let after = line.split("](").skip(1);
    after.filter_map(|rest| Some(rest.split_once(')')?.0.to_string())).collect()
}

/// Returns the anchor of a heading, as GitHub and mdBook make it.
fn heading_anchor(heading: &str) -> String {
    let letters = heading.trim().chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        letter => letter.is_alphanumeric().then(|| letter.to_ascii_lowercase()),
    });
    letters.collect()
}

fn page_anchors(text: &str) -> BTreeSet<String> {
    let headings = lines_outside_code(text).filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| heading_anchor(line.trim_start_matches('#'))).collect()
}

/// Resolves `..` and `.` in a path, without the file system.
fn normalize_path(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir => {}
            part => parts.push(part),
        }
    }
    parts
}

/// Returns why a link of a page is broken, or `None` if it is valid.
fn link_error(page: &Path, link: &str, texts: &BTreeMap<PathBuf, String>) -> Option<String> {
    if link.contains("://") {
        return None;
    }
    let (path, fragment) = link.split_once('#').map_or((link, None), |(p, f)| (p, Some(f)));
    let target = match path {
        "" => page.to_path_buf(),
        path => normalize_path(&page.parent().expect("a file").join(path)),
    };
    if !root().join(&target).exists() {
        return Some(format!("{} does not exist", target.display()));
    }
    let fragment = fragment?;
    let text = texts.get(&target).cloned().unwrap_or_else(|| read(&target));
    let is_there = page_anchors(&text).contains(fragment);
    (!is_there).then(|| format!("{} has no heading #{fragment}", target.display()))
}

#[test]
fn relative_links_and_anchors_have_a_target() {
    let pages = ROOT_PAGES.map(PathBuf::from).into_iter().chain(book_pages());
    let texts: BTreeMap<PathBuf, String> = pages.map(|page| (page.clone(), read(&page))).collect();
    let (mut broken, mut count) = (Vec::new(), 0);
    for (page, text) in &texts {
        for (number, line) in lines_outside_code(text) {
            for link in link_targets(line) {
                count += 1;
                let why = link_error(page, &link, &texts);
                let place = || format!("{}:{number}: {link}", page.display());
                broken.extend(why.map(|why| format!("{}: {why}", place())));
            }
        }
    }
    assert!(count > 100, "only {count} links found");
    assert_none("broken links", broken);
}

/// Files of this repository that code spans of a page name: `crates/prefork-os/src/fd.rs`.
fn named_files(text: &str) -> impl Iterator<Item = &str> {
    let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    spans.filter(|span| {
        let is_path = span.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        let is_here =
            ["src/", "crates/", "tests/", "scripts/", "examples/", "benches/", "systemd/"]
                .iter()
                .any(|root| span.starts_with(root));
        // Names in capitals are placeholders: `tests/it/dispatch_NAME.rs`.
        is_path && is_here && !span.bytes().any(|b| b.is_ascii_uppercase())
    })
}

#[test]
fn files_that_pages_name_exist() {
    // The recipe for a dispatch policy creates it.
    const FILES_CREATED_BY_RECIPES: [&str; 1] = ["crates/tokio-prefork/src/dispatch/random.rs"];
    let pages = ROOT_PAGES.iter().map(PathBuf::from).chain(book_pages());
    let mut missing = Vec::new();
    for page in pages.filter(|page| !page.ends_with("CHANGELOG.md")) {
        let text = read(&page);
        let gone = named_files(&text)
            .filter(|file| !FILES_CREATED_BY_RECIPES.contains(file) && !root().join(file).exists())
            .map(|file| format!("{}: {file}", page.display()));
        missing.extend(gone);
    }
    assert_none("files that do not exist", missing);
}

#[test]
fn book_links_only_to_its_own_pages() {
    let mut outside = Vec::new();
    for page in book_pages() {
        for (number, line) in lines_outside_code(&read(&page)) {
            let leaves = link_targets(line).into_iter().filter(|link| link.starts_with("../"));
            outside.extend(leaves.map(|link| format!("{}:{number}: {link}", page.display())));
        }
    }
    assert_none("not found in the built book", outside);
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let summary = read(Path::new("docs/src/SUMMARY.md"));
    let listed: BTreeSet<PathBuf> = summary
        .lines()
        .flat_map(link_targets)
        .map(|link| Path::new("docs/src").join(link))
        .chain([PathBuf::from("docs/src/SUMMARY.md")])
        .collect();
    let missing = book_pages().into_iter().filter(|page| !listed.contains(page));
    assert_none("not in SUMMARY.md", missing.map(|page| page.display().to_string()).collect());
}

#[test]
fn readme_and_architecture_have_a_length_limit() {
    for page in ["README.md", "ARCHITECTURE.md"] {
        let lines = read(Path::new(page)).lines().count();
        assert!(lines <= MAX_PAGE_LINES, "{page} has {lines} lines, not {MAX_PAGE_LINES}");
    }
}

#[test]
fn every_exit_status_and_signal_is_documented() {
    let page = read(Path::new("docs/src/signals.md"));
    let statuses = [
        exit::OK,
        exit::FAILURE,
        exit::USAGE,
        exit::UNAVAILABLE,
        exit::SOFTWARE,
        exit::OS,
        exit::CONFIG,
    ];
    let mut missing: Vec<String> = statuses
        .iter()
        .filter(|status| !page.contains(&format!("\n| {status} | ")))
        .map(ToString::to_string)
        .collect();
    let signals = ["TERM", "INT", "QUIT", "HUP", "TTIN", "TTOU", "USR1", "USR2"];
    let unknown = signals.iter().filter(|signal| !page.contains(&format!("`{signal}`")));
    missing.extend(unknown.map(ToString::to_string));
    assert_none("not in docs/src/signals.md", missing);
}

/// Pages with tables of what other libraries call something, and the program that has all their code.
const API_PAGES: [(&str, &str); 2] = [
    ("docs/src/node.md", "tests/programs/node_api.rs"),
    ("docs/src/cpu-bound-work.md", "tests/programs/cpu_bound_api.rs"),
];

/// The first column of tables whose rows are about operating a cluster, not about code.
const TABLES_WITHOUT_CODE: [&str; 1] = ["you did"];

/// Rows of the tables whose second column is "here": another library's item and ours.
fn api_rows(page: &str) -> Vec<(&str, &str)> {
    let mut rows = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let is_api =
            |(theirs, ours): (&str, &str)| ours == "here" && !TABLES_WITHOUT_CODE.contains(&theirs);
        if table_cells(line).is_some_and(is_api) {
            let table = lines.by_ref().skip(1).take_while(|line| line.starts_with("| "));
            rows.extend(table.filter_map(table_cells));
        }
    }
    rows
}

/// The first two cells of a row.
fn table_cells(row: &str) -> Option<(&str, &str)> {
    let mut cells = row.strip_prefix("| ")?.split(" | ");
    Some((cells.next()?, cells.next()?.trim_end_matches('|').trim()))
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn every_line_of_code_in_the_tables_of_other_apis_compiles() {
    for (page, program) in API_PAGES {
        let text = read(Path::new(page));
        let source = without_spaces(&read(Path::new(program)));
        let rows = api_rows(&text);
        assert!(rows.len() > 30, "the tables of {page} have {} rows", rows.len());
        // A bar in a table is written with a backslash.
        let rows: Vec<_> =
            rows.into_iter().map(|(theirs, ours)| (theirs, ours.replace("\\|", "|"))).collect();
        let code: Vec<&str> =
            rows.iter().flat_map(|(_, ours)| ours.split('`').skip(1).step_by(2)).collect();
        assert!(code.len() > 30, "{} pieces of code in {page}", code.len());
        let missing = code.iter().filter(|code| !source.contains(&without_spaces(code)));
        let missing = missing.map(ToString::to_string).collect();
        assert_none(&format!("in {page}, not in {program}"), missing);
        let empty = rows.iter().filter(|(_, ours)| ours.is_empty()).map(|row| row.0.to_string());
        assert_none("rows that say neither how nor no", empty.collect());
    }
}

#[test]
fn rows_of_api_tables_end_with_their_table() {
    let page = "| a | here | b |\n|---|---|---|\n| c | `d` | e |\n| f | no |\n\n| g | there |\n|---|---|\n| h | i |\n";
    assert_eq!(api_rows(page), [("c", "`d`"), ("f", "no")]);
}

#[test]
fn heading_anchors_are_those_of_github() {
    assert_eq!(heading_anchor(" What a reload does not change"), "what-a-reload-does-not-change");
    assert_eq!(heading_anchor(" `least-conn` and `ip-hash`"), "least-conn-and-ip-hash");
    assert_eq!(heading_anchor(" Node's API, item by item"), "nodes-api-item-by-item");
}

#[test]
fn links_in_code_spans_are_ignored() {
    assert_eq!(link_targets("see [a](b.md#c) and `[d](e)`, ![f](g.png)"), ["b.md#c", "g.png"]);
    let text = "a\n```text\n[x](y)\n```\nb";
    assert_eq!(lines_outside_code(text).map(|(number, _)| number).collect::<Vec<_>>(), [1, 5]);
}

/// Returns the text of a page between two headings.
fn section<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let start = page.find(from).unwrap_or_else(|| panic!("no heading {from:?}"));
    let end = page[start..].find(to).unwrap_or_else(|| panic!("no heading {to:?}"));
    &page[start..start + end]
}

#[test]
fn log_lines_of_the_troubleshooting_page_are_in_the_source() {
    let page = read(Path::new("docs/src/troubleshooting.md"));
    let files = source_files(&["src", "crates"]);
    let mut source = String::new();
    for line in files.iter().flat_map(|file| &file.lines) {
        // A string that goes on in the next line ends with a backslash.
        match line.trim_end().strip_suffix('\\') {
            Some(start) => source.push_str(start.trim_start()),
            None => source.extend([line.trim_start(), "\n"]),
        }
    }
    let rows = section(&page, "## By log line", "## By symptom").lines();
    let cells = rows.filter_map(|row| row.strip_prefix("| `")?.split(" | ").next());
    // What varies is shown as three dots.
    let parts: Vec<&str> = cells
        .flat_map(|cell| cell.split('`').step_by(2))
        .flat_map(|line| line.split("..."))
        .map(|part| part.trim_matches(|c: char| !c.is_alphanumeric()))
        .filter(|part| part.len() > 5)
        .collect();
    assert!(parts.len() > 10, "{parts:?}");
    let missing = parts.into_iter().filter(|part| !source.contains(part));
    assert_none("logged nowhere", missing.map(str::to_string).collect());
}

#[test]
fn the_page_of_alerts_lists_all_rules() {
    let rules = read(Path::new("docs/src/monitoring/prometheus-rules.yml"));
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let page = read(Path::new("docs/src/alerts.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<Vec<_>>(), names.collect::<Vec<_>>());
}
