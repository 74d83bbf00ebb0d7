//! A number with its noun.

use std::fmt;

/// Displays a number with its noun: `1 request`, `2 requests`.
pub struct Count(pub u64, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count(number, noun) = self;
        let plural = if *number == 1 { "" } else { "s" };
        write!(f, "{number} {noun}{plural}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noun_is_in_the_plural_unless_it_is_one() {
        let texts = [0, 1, 2].map(|number| Count(number, "request").to_string());
        assert_eq!(texts, ["0 requests", "1 request", "2 requests"]);
    }
}
