//! Text from workers, clients, applications and files, made safe to show: one line, no control characters, bounded.
//!
//! Log lines, events, status output, errors and the status text for the service manager are escaped here, so that no request
//! line, panic text, worker message or name can forge a line, clear a terminal, reorder the display or flood a log.
//!
//! Only characters that need it are escaped, and never the backslash: escaping twice changes nothing.

use std::any::Any;
use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// The maximum length of an escaped text in bytes: 16 KiB. Longer text is cut, and the cut is marked.
pub const MAX_PRINTABLE_BYTES: usize = 16 * 1024;

/// The mark at the end of a cut text.
const CUT_MARK: &str = "... (cut)";

/// Displays a value with everything escaped that is not printable, cut to [`MAX_PRINTABLE_BYTES`].
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escaper =
            EscapingWriter { out: f, remaining_bytes: MAX_PRINTABLE_BYTES, is_cut: false };
        write!(escaper, "{}", self.0)
    }
}

/// Returns the text with everything escaped that is not printable, cut to [`MAX_PRINTABLE_BYTES`].
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_PRINTABLE_BYTES && !text.contains(needs_escape) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(Printable(text).to_string())
}

/// Converts bytes to printable text; bytes that are not UTF-8 become `\xNN`. Reads at most `limit` bytes and marks a cut.
pub fn printable_bytes(bytes: &[u8], limit: usize) -> String {
    let shown = &bytes[..bytes.len().min(limit)];
    let mut text = String::with_capacity(shown.len());
    for chunk in shown.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    if shown.len() < bytes.len() {
        text.push_str(CUT_MARK);
    }
    printable(&text).into_owned()
}

/// Returns bytes of a request as ASCII: everything else, quotes and backslashes are shown as `\xNN`, `\"` and so on.
pub fn printable_ascii(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}

/// Returns JSON with the same meaning in which no string contains a raw character that is not printable: serializers
/// escape those below U+0020 only. Line breaks between values stay.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let needs = |c: char| needs_escape(c) && !matches!(c, '\n' | '\t' | '\r');
    if !json.contains(needs) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if !needs(c) {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    Cow::Owned(safe)
}

/// Returns at most `max` bytes of the start of `text`.
pub(crate) fn cut_between_characters(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Returns the description of a process for a message, if it exists: `pid 812, nginx`.
pub(crate) fn printable_process(pid: u32) -> Option<String> {
    let name = prefork_os::process::process_command_name(pid)?;
    Some(format!("pid {pid}, {}", printable_bytes(&name, name.len())))
}

/// Returns the printable message of a panic, or `(no text)`.
pub fn panic_text(panic: &(dyn Any + Send)) -> Cow<'_, str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    printable(text.unwrap_or("(no text)"))
}

/// Returns whether a character must be escaped: it breaks lines, controls a terminal, is invisible or reorders text.
fn needs_escape(c: char) -> bool {
    match c {
        // Most text by far.
        ' '..='~' => false,
        _ if c.is_control() => true,
        // Soft hyphen, marks of direction, joiners, separators of lines and paragraphs, byte order mark, tags.
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{feff}' => true,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}' => true,
        _ => false,
    }
}

struct EscapingWriter<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    remaining_bytes: usize,
    is_cut: bool,
}

impl EscapingWriter<'_, '_> {
    /// Writes a piece that is printable, or nothing more from the first piece on that has no remaining_bytes.
    fn write_piece(&mut self, piece: &str) -> fmt::Result {
        if self.is_cut {
            return Ok(());
        }
        if piece.len() <= self.remaining_bytes {
            self.remaining_bytes -= piece.len();
            return self.out.write_str(piece);
        }
        self.is_cut = true;
        // A partial escape sequence would mean something else.
        let end = if piece.starts_with('\\') { 0 } else { self.remaining_bytes };
        self.out.write_str(cut_between_characters(piece, end))?;
        self.out.write_str(CUT_MARK)
    }
}

impl Write for EscapingWriter<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(needs_escape) {
            let (plain, from) = rest.split_at(at);
            self.write_piece(plain)?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                self.write_piece(&c.escape_default().to_string())?;
            }
            rest = chars.as_str();
        }
        self.write_piece(rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_and_invisible_characters_are_escaped() {
        assert_eq!(
            printable("a\r\nb\tc\u{1b}[31m\u{7f}\u{9b}\0"),
            r"a\r\nb\tc\u{1b}[31m\u{7f}\u{9b}\u{0}"
        );
        assert_eq!(printable("\u{202e}txt\u{2028}\u{feff}"), r"\u{202e}txt\u{2028}\u{feff}");
        for plain in ["grüße \\ \"x\" '", "日本語 🦀", ""] {
            assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain), "{plain}");
        }
    }

    #[test]
    fn invalid_utf8_is_shown_as_hex_escapes() {
        assert_eq!(printable_bytes(b"caf\xc3\xa9 \xff\x1b\xc3", 100), r"café \xff\u{1b}\xc3");
        assert_eq!(printable_bytes("ééé".as_bytes(), 3), r"é\xc3... (cut)");
        assert_eq!(printable_bytes(b"", 0), "");
        assert_eq!(printable_ascii("/é\u{1b}\"\\".as_bytes()), r#"/\xc3\xa9\x1b\"\\"#);
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_escapes() {
        let long = "é".repeat(MAX_PRINTABLE_BYTES);
        let shown = printable(&long);
        assert_eq!(shown.strip_suffix(CUT_MARK).map(str::len), Some(MAX_PRINTABLE_BYTES));
        let odd = format!("x{}", "\u{1b}".repeat(MAX_PRINTABLE_BYTES));
        let shown = printable(&odd);
        assert!(shown.ends_with(r"\u{1b}... (cut)"), "{}", &shown[shown.len() - 30..]);
        assert!(shown.len() <= MAX_PRINTABLE_BYTES + CUT_MARK.len());
    }

    #[test]
    fn escaped_json_parses_to_the_same_value() {
        let text = "a\u{9b}\u{7f}\u{202e}\u{e0041}\u{1b}\n";
        let json = serde_json::to_string_pretty(&[text]).expect("JSON");
        let safe = printable_json(&json);
        assert_eq!(safe, "[\n  \"a\\u009b\\u007f\\u202e\\udb40\\udc41\\u001b\\n\"\n]");
        assert_eq!(serde_json::from_str::<Vec<String>>(&safe).expect("JSON"), [text]);
        assert!(matches!(printable_json("{\n\t\"é\": 1\r\n}"), Cow::Borrowed(_)));
    }

    #[test]
    fn panic_text_returns_the_message() {
        let said = |panic: Box<dyn Any + Send>| panic_text(&*panic).into_owned();
        assert_eq!(said(Box::new("a\nb")), r"a\nb");
        assert_eq!(said(Box::new("\u{1b}c".to_string())), r"\u{1b}c");
        assert_eq!(said(Box::new(7)), "(no text)");
    }

    proptest! {
        #[test]
        fn escaping_is_idempotent_and_leaves_one_printable_line(text: String, bytes: Vec<u8>) {
            let once = printable(&text).into_owned();
            prop_assert!(!once.contains(needs_escape));
            prop_assert_eq!(printable(&once), once.as_str());
            prop_assert!(!printable_bytes(&bytes, 1000).contains(needs_escape));
        }
    }
}
