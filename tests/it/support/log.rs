//! Searches in logs by level, `key=value` fields and names, never by sentences.

/// Returns the lines that contain all of `words`.
pub fn lines_with<'a>(log: &'a str, words: &[&str]) -> impl Iterator<Item = &'a str> {
    log.lines().filter(|line| words.iter().all(|word| contains_word(line, word)))
}

/// Whether `line` contains `word` as a whole word: `pid=12` is not in `pid=123`.
pub fn contains_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let goes_on_before = word.starts_with(is_part) && before.ends_with(is_part);
        let goes_on_after = word.ends_with(is_part) && after.starts_with(is_part);
        !goes_on_before && !goes_on_after
    })
}

/// Returns the lines of level WARN or ERROR.
pub fn warnings_and_errors(log: &str) -> Vec<&str> {
    let is_bad = |line: &&str| [" WARN ", " ERROR "].iter().any(|level| line.contains(level));
    log.lines().filter(is_bad).collect()
}

/// Returns the pids of all workers that a log names, in order.
pub fn worker_pids(log: &str) -> Vec<u32> {
    let tagged = log.lines().filter_map(|line| line.split_once("worker=")?.1.split_once(" pid="));
    let mut pids: Vec<u32> = tagged
        .filter_map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Returns the last 25 lines of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
