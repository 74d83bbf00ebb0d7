//! Did you mean: the known name that is a typing error away.

/// The nearest of `known` to `word`, if it is near enough to be worth a question.
pub(super) fn nearest_name<'a>(
    word: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_lowercase();
    // About a third of the word may be wrong, or else every short word is near to every other.
    let farthest = ((word.chars().count() + 1) / 3).clamp(1, 3);
    known
        .map(|name| (strsim::damerau_levenshtein(&word, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= farthest)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::key_table::KEYS;

    #[test]
    fn typing_errors_are_recognised_and_other_words_are_not() {
        let names = || KEYS.iter().map(|key| key.name);
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
