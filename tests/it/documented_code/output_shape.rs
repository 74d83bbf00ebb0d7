//! Compares output that a page shows with output of a run: words must be equal, numbers need not.

use std::collections::BTreeMap;

/// Units, which change with the number before them.
const UNITS: [&str; 18] = [
    "ns", "us", "µs", "ms", "s", "min", "m", "h", "d", "B", "KiB", "MiB", "GiB", "kB", "MB",
    "kB/s", "MB/s", "GB/s",
];

/// Replaces each number in a word by `#`, with its decimal and thousand separators.
fn without_digits(word: &str) -> String {
    let mut shape = String::new();
    let mut letters = word.chars().peekable();
    while let Some(letter) = letters.next() {
        if !letter.is_ascii_digit() {
            shape.push(letter);
            continue;
        }
        shape.push('#');
        while let Some(next) = letters.peek().copied() {
            let is_inside = next.is_ascii_digit() || {
                let mut after = letters.clone();
                after.next();
                ".,".contains(next) && after.next().is_some_and(|c| c.is_ascii_digit())
            };
            if !is_inside {
                break;
            }
            letters.next();
        }
    }
    shape
}

/// Returns the words of a line without numbers, units and plurals.
fn shape(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let is_after_number = words.last().is_some_and(|last| last.ends_with('#'));
        let bare = word.trim_end_matches([',', ')', ';']);
        let is_unit = is_after_number && UNITS.contains(&bare);
        let word = without_digits(if is_unit { &word[bare.len()..] } else { word });
        match words.last_mut() {
            // The rest of `3 ms)`.
            Some(last) if is_unit => last.push_str(&word),
            // `1 000` and columns with and without a unit.
            Some(last) if last == "#" && word == "#" => {}
            _ if is_after_number && word.ends_with('s') => {
                words.push(word[..word.len() - 1].to_string())
            }
            _ => words.push(word),
        }
    }
    words
}

/// Whether the words of a run are those shown, in which `...` stands for any words.
fn words_match(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=printed.len()).any(|skipped| words_match(rest, &printed[skipped..]))
        }
        Some((first, rest)) => {
            printed.first().is_some_and(|word| word_matches(first, word))
                && words_match(rest, &printed[1..])
        }
    }
}

/// Whether a word of a run is the one shown, in which `...` stands for any letters.
fn word_matches(shown: &str, printed: &str) -> bool {
    match shown.split_once("...") {
        Some((start, end)) => printed.starts_with(start) && printed.ends_with(end),
        None => shown == printed,
    }
}

/// Whether a printed line has the shape of the shown one.
pub fn has_shape(shown: &str, printed: &str) -> bool {
    words_match(&shape(shown), &shape(printed))
}

/// Returns the numbers after `pid` in a line.
fn pids(line: &str) -> Vec<&str> {
    let lower = line.char_indices().filter(|(at, _)| {
        line.get(*at..at + 4).is_some_and(|word| ["pid=", "pid ", "PID "].contains(&word))
    });
    let starts = lower.map(|(at, _)| &line[at + 4..]);
    let numbers = starts.map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        &rest[..end]
    });
    numbers.filter(|number| !number.is_empty()).collect()
}

/// Finds each shown line in the output of a run, in any order, as workers get ready in any order. Records in `known_pids` which
/// pid of the run stands for a shown one. Returns the first line that is missing.
pub fn find_shown<'a>(
    shown: &[&'a str],
    printed: &str,
    known_pids: &mut BTreeMap<String, String>,
) -> Result<(), &'a str> {
    let mut left: Vec<&str> = printed.lines().collect();
    for line in shown.iter().filter(|line| !line.trim().is_empty() && line.trim() != "...") {
        let at = left.iter().position(|other| has_shape(line, other)).ok_or(*line)?;
        for (shown, real) in pids(line).into_iter().zip(pids(left.remove(at))) {
            known_pids.insert(shown.to_string(), real.to_string());
        }
    }
    Ok(())
}

#[test]
fn numbers_units_and_plurals_do_not_matter() {
    assert!(has_shape("up 1.2 s, 1 request", "up 875 ms, 2 requests"));
    assert!(has_shape("requests/s  100 016   p50 308 us", "requests/s  96 p50 1.02 ms"));
    assert!(has_shape(
        "2026-11-28T08:04:40.088Z INFO ready after 15 ms",
        "2027-01-02T00:00:00.001Z INFO ready after 3.5 ms"
    ));
    assert!(has_shape("GET /sleep/3000 (331 ms)", "GET /sleep/3000 (1.2 s)"));
    assert!(has_shape("{\"ip\":\"192.0.2.7\",...}", "{\"ip\":\"192.0.2.7\",\"a\":1}"));
    assert!(!has_shape("all 2 workers serve", "all 2 workers died"));
}

#[test]
fn shown_lines_are_found_once_and_teach_pids() {
    let mut known = BTreeMap::new();
    let printed = "start pid=7\nnoise\nworker=1 pid=8 ready\nend\n";
    let shown = ["worker=1 pid=200 ready", "start pid=100"];
    assert_eq!(find_shown(&shown, printed, &mut known), Ok(()));
    assert_eq!((known["100"].as_str(), known["200"].as_str()), ("7", "8"));
    assert_eq!(find_shown(&["end", "end"], printed, &mut known), Err("end"));
}
