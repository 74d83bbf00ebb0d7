//! The HTML page around every report, and escaping of text.

use crate::run_environment::RunEnvironment;

const PAGE_STYLE: &str = include_str!("page.css");

/// Returns a page with the given title and body, both HTML.
pub(crate) fn html_page(title: &str, main: &str, version: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n{main}\
         <footer>prefork {version}</footer>\n</main>\n</body>\n</html>\n"
    )
}

/// Escapes text for HTML content and attribute values; control characters become U+FFFD.
pub(crate) fn escape_html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Escapes text like [`escape_html`], but keeps line ends.
pub(crate) fn escape_html_lines(text: &str) -> String {
    text.lines().map(escape_html).collect::<Vec<_>>().join("\n")
}

/// Returns a list of what a reader needs to repeat a measurement; `more` comes first.
pub(crate) fn environment_list(
    environment: &RunEnvironment,
    more: &[(&'static str, String)],
) -> String {
    let lines = more.iter().cloned().chain(environment.lines());
    let lines =
        lines.map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape_html(&value)));
    let lines: String = lines.collect();
    format!(
        "<h2>How it was measured, and how to repeat it</h2>\n<dl class=\"environment\">\n{lines}</dl>\n"
    )
}
