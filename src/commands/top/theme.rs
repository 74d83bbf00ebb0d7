//! Colours and characters that the terminal can show.

use std::borrow::Cow;
use std::env::VarError;

use ratatui::style::{Color, Modifier, Style};

use super::table::Tone;

/// How to draw for this terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Theme {
    pub(super) has_colors: bool,
    /// Whether the locale is UTF-8. Otherwise only ASCII is drawn.
    pub(super) has_unicode: bool,
}

impl Theme {
    /// Reads `NO_COLOR` and the locale.
    pub(super) fn from_environment() -> Theme {
        Theme::from_variables(|name| std::env::var(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Result<String, VarError>) -> Theme {
        let set = |name: &str| variable(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
        let charset = locale.to_lowercase().replace('-', "");
        Theme { has_colors: set("NO_COLOR").is_none(), has_unicode: charset.contains("utf8") }
    }

    /// Returns the style of a tone. Without colours, the text still tells what it is about.
    pub(super) fn style(self, tone: Tone) -> Style {
        let plain = Style::new();
        match (tone, self.has_colors) {
            (Tone::Normal, _) => plain,
            (Tone::Error, true) => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Error, false) => plain.add_modifier(Modifier::BOLD),
            (Tone::Warning, true) => plain.fg(Color::Yellow),
            (Tone::Changing, true) => plain.fg(Color::Cyan),
            (Tone::Warning | Tone::Changing, false) => plain,
        }
    }

    /// Returns the text with a question mark for each character that the locale cannot show.
    pub(super) fn text(self, text: &str) -> Cow<'_, str> {
        if self.has_unicode || text.is_ascii() {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect())
    }

    /// Returns the mark of a cut text.
    pub(super) fn cut_mark(self) -> &'static str {
        if self.has_unicode { "…" } else { "~" }
    }

    /// Returns the mark of the column that the table is sorted by.
    pub(super) fn sort_mark(self, is_descending: bool) -> &'static str {
        match (self.has_unicode, is_descending) {
            (true, true) => "▼",
            (true, false) => "▲",
            (false, true) => "v",
            (false, false) => "^",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theme(variables: &[(&str, &str)]) -> Theme {
        Theme::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string()).ok_or(VarError::NotPresent)
        })
    }

    #[test]
    fn the_first_variable_of_the_locale_that_is_set_counts() {
        for (variables, has_unicode) in [
            (&[("LANG", "de_DE.UTF-8")][..], true),
            (&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("LANG", "C")], true),
            (&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")], false),
            (&[("LANG", "de_DE.ISO-8859-1")], false),
            (&[], false),
        ] {
            assert_eq!(theme(variables).has_unicode, has_unicode, "{variables:?}");
        }
    }

    #[test]
    fn an_empty_no_color_does_not_count() {
        assert!(!theme(&[("NO_COLOR", "1")]).has_colors);
        assert!(theme(&[("NO_COLOR", "")]).has_colors && theme(&[]).has_colors);
        assert_eq!(theme(&[("NO_COLOR", "1")]).style(Tone::Error).fg, None);
    }

    #[test]
    fn without_utf8_only_ascii_is_drawn() {
        let ascii = theme(&[("LANG", "C")]);
        assert_eq!(ascii.text("é日x"), "??x");
        assert!(ascii.cut_mark().is_ascii() && ascii.sort_mark(true).is_ascii());
    }
}
