//! Suggestions for misspelt names.

/// Returns the name of `known` that is most similar to `word`, if it is similar enough to be meant.
pub fn nearest_name<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    // A larger share than a third would make all short words similar.
    let max_distance = ((word.chars().count() + 1) / 3).clamp(1, 3);
    known
        .map(|name| (strsim::damerau_levenshtein(&word, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= max_distance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::server_keys::SERVER_KEYS;

    #[test]
    fn only_misspelt_names_get_a_suggestion() {
        let names = || SERVER_KEYS.iter().map(|key| key.name);
        for (word, meant) in [
            ("worker", Some("workers")),
            ("wrokers", Some("workers")),
            ("GRACEFUL_TIMEOUT", Some("graceful-timeout")),
            ("http", Some("http2")),
            ("bnid", Some("bind")),
            ("workr", Some("workers")),
            ("threads", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest_name(word, names()), meant, "{word}");
        }
    }
}
