//! Escapes values for a line of the access log, so that no client can forge a line or a field, or reach a terminal.

/// How a value is written into a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueStyle {
    /// Between double quotes of the template: quotes, backslashes and all but printable ASCII as `\xNN`.
    Quoted,
    /// Outside of quotes: as `Quoted`, and spaces as well.
    Bare,
    /// Inside of a string of a JSON template.
    JsonText,
    /// A whole JSON value: a string with its quotes, a number, or `null`.
    JsonValue,
}

/// The mark at the end of a value that was cut.
pub(super) const CUT_MARK: &[u8] = b"...";

const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";

impl ValueStyle {
    fn is_json(self) -> bool {
        matches!(self, ValueStyle::JsonText | ValueStyle::JsonValue)
    }

    /// Returns what stands for a value without a byte.
    pub(super) fn missing(self) -> &'static str {
        match self {
            ValueStyle::Quoted | ValueStyle::Bare => "-",
            ValueStyle::JsonText => "",
            ValueStyle::JsonValue => "null",
        }
    }

    /// Returns whether `bytes` need no escape.
    pub(super) fn is_plain(self, bytes: &[u8]) -> bool {
        let least = if self == ValueStyle::Bare { 0x21 } else { 0x20 };
        let Some(last) = bytes.last_chunk::<8>() else {
            let needs_escape = |b: &u8| (*b < least) | (*b > 0x7e) | (*b == b'"') | (*b == b'\\');
            return !bytes.iter().any(needs_escape);
        };
        let needs_escape = |word: [u8; 8]| word_needs_escape(u64::from_ne_bytes(word), least);
        let mut words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
        !words.any(needs_escape) && !needs_escape(*last)
    }
}

/// Returns whether one of eight bytes is less than `least`, more than 0x7e, a quote or a backslash.
fn word_needs_escape(word: u64, least: u8) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The top bit of some byte is set if one is less, or is equal; the lowest such byte is always right.
    let less = word.wrapping_sub(ONES * u64::from(least)) & !word;
    let equal = |byte: u8| {
        let zero = word ^ (ONES * u64::from(byte));
        zero.wrapping_sub(ONES) & !zero
    };
    (word | less | equal(0x7f) | equal(b'"') | equal(b'\\')) & (ONES << 7) != 0
}

/// A text of at most `N` bytes. It is always copied as `N` bytes, because a copy of constant length is faster than one of variable length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShortText<const N: usize> {
    padded: [u8; N],
    len: usize,
}

impl<const N: usize> ShortText<N> {
    /// Returns the beginning of `text`.
    pub(super) fn new(text: &str) -> ShortText<N> {
        let (mut padded, len) = ([0; N], text.len().min(N));
        padded[..len].copy_from_slice(&text.as_bytes()[..len]);
        ShortText { padded, len }
    }

    #[cfg(test)]
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.padded[..self.len]).expect("UTF-8")
    }

    /// Appends the text to `out`.
    pub(super) fn push_to(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.len;
        out.extend_from_slice(&self.padded);
        out.truncate(end);
    }
}

impl<const N: usize> Default for ShortText<N> {
    fn default() -> ShortText<N> {
        ShortText { padded: [0; N], len: 0 }
    }
}

/// Writes one value to the end of a line, in pieces, escaped and at most `room` bytes long.
pub(super) struct ValueWriter<'a> {
    line: &'a mut Vec<u8>,
    style: ValueStyle,
    /// How many more bytes the value may have, beside the mark of a cut.
    room: usize,
    /// How many bytes each part of the value may have.
    part_room: usize,
    has_begun: bool,
    is_cut: bool,
}

impl<'a> ValueWriter<'a> {
    pub(super) fn new(
        line: &'a mut Vec<u8>,
        style: ValueStyle,
        max_bytes: usize,
    ) -> ValueWriter<'a> {
        let room = max_bytes.saturating_sub(CUT_MARK.len());
        ValueWriter { line, style, room, part_room: room, has_begun: false, is_cut: false }
    }

    /// Appends text of a client.
    pub(super) fn text(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.is_cut {
            return;
        }
        if self.plain_text(bytes) {
            return;
        }
        self.begin_string();
        if self.style.is_json() {
            self.escape_json(bytes);
        } else {
            self.escape_text(bytes);
        }
    }

    /// Appends text of a client if it needs no escape and is not too long. Returns whether it was appended.
    pub(super) fn plain_text(&mut self, bytes: &[u8]) -> bool {
        let is_plain = bytes.len() <= self.room && self.style.is_plain(bytes);
        if is_plain {
            self.begin_string();
            self.line.extend_from_slice(bytes);
            self.room -= bytes.len();
        }
        is_plain
    }

    /// Appends text that this server has made and that needs no escape, whatever the style.
    pub(super) fn own_text(&mut self, text: impl AsRef<[u8]>) {
        self.begin_string();
        self.line.extend_from_slice(text.as_ref());
    }

    /// Begins a part of the value that is cut by itself.
    pub(super) fn next_part(&mut self) {
        self.room = self.part_room;
        self.is_cut = false;
    }

    /// Appends a space.
    pub(super) fn space(&mut self) {
        match self.style {
            ValueStyle::Bare => self.own_text("\\x20"),
            ValueStyle::Quoted | ValueStyle::JsonText | ValueStyle::JsonValue => self.own_text(" "),
        }
    }

    /// Ends the value. One without a byte is `-`, in JSON `null` or empty.
    pub(super) fn finish(self) {
        if !self.has_begun {
            self.line.extend_from_slice(self.style.missing().as_bytes());
        }
    }

    /// Ends a value that is a string.
    pub(super) fn finish_string(self) {
        if self.has_begun && self.style == ValueStyle::JsonValue {
            self.line.push(b'"');
        }
        self.finish();
    }

    fn begin_string(&mut self) {
        if !self.has_begun && self.style == ValueStyle::JsonValue {
            self.line.push(b'"');
        }
        self.has_begun = true;
    }

    /// Appends an escape or a character. Returns `false` if the value is cut before it.
    fn push_whole(&mut self, piece: &[u8]) -> bool {
        if piece.len() > self.room {
            self.line.extend_from_slice(CUT_MARK);
            self.is_cut = true;
            return false;
        }
        self.room -= piece.len();
        self.line.extend_from_slice(piece);
        true
    }

    fn escape_text(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let is_plain = self.style.is_plain(std::slice::from_ref(byte));
            let [high, low] = [byte >> 4, byte & 0xf].map(|digit| HEX_DIGITS[usize::from(digit)]);
            let pushed = match is_plain {
                true => self.push_whole(&[*byte]),
                false => self.push_whole(&[b'\\', b'x', high, low]),
            };
            if !pushed {
                return;
            }
        }
    }

    /// Appends text to a JSON string. Bytes that are not UTF-8 become U+FFFD.
    fn escape_json(&mut self, bytes: &[u8]) {
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                if !self.push_json_char(c) {
                    return;
                }
            }
            if !chunk.invalid().is_empty() && !self.push_json_char(char::REPLACEMENT_CHARACTER) {
                return;
            }
        }
    }

    fn push_json_char(&mut self, c: char) -> bool {
        match c {
            '"' => self.push_whole(b"\\\""),
            '\\' => self.push_whole(b"\\\\"),
            c if needs_unicode_escape(c) => {
                let mut escape = *b"\\u0000";
                let number = u32::from(c);
                for (i, digit) in escape[2..].iter_mut().enumerate() {
                    *digit = HEX_DIGITS[(number >> (12 - 4 * i)) as usize & 0xf];
                }
                self.push_whole(&escape)
            }
            c => {
                let mut buffer = [0; 4];
                let character = c.encode_utf8(&mut buffer);
                self.push_whole(character.as_bytes())
            }
        }
    }
}

/// Returns whether a character acts on terminals, lines or the direction of text. All of these have four digits.
fn needs_unicode_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The numbers below 1000 with three digits.
const THREE_DIGITS: [[u8; 3]; 1000] = three_digits();

const fn three_digits() -> [[u8; 3]; 1000] {
    let (mut table, mut n) = ([[0; 3]; 1000], 0);
    while n < 1000 {
        table[n] = [b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8];
        n += 1;
    }
    table
}

/// Appends a number in decimal.
pub(super) fn push_number(line: &mut Vec<u8>, number: u64) {
    let (high, low) = (number / 1000, (number % 1000) as usize);
    match (high, low) {
        (0, 100..) => line.extend_from_slice(&THREE_DIGITS[low]),
        (0, 10..) => line.extend_from_slice(&THREE_DIGITS[low][1..]),
        (0, _) => line.push(b'0' + low as u8),
        _ => {
            push_number(line, high);
            line.extend_from_slice(&THREE_DIGITS[low]);
        }
    }
}

/// Appends milliseconds as seconds with three decimals.
pub(super) fn push_seconds(line: &mut Vec<u8>, millis: u64) {
    push_number(line, millis / 1000);
    push_decimals(line, millis);
}

/// Appends a point and the last three digits of a number.
pub(super) fn push_decimals(line: &mut Vec<u8>, millis: u64) {
    line.push(b'.');
    line.extend_from_slice(&THREE_DIGITS[(millis % 1000) as usize]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(style: ValueStyle, bytes: &[u8], max_bytes: usize) -> String {
        let mut line = Vec::new();
        let mut value = ValueWriter::new(&mut line, style, max_bytes);
        value.text(bytes);
        value.finish_string();
        String::from_utf8(line).expect("UTF-8")
    }

    /// Reads `\xNN` back.
    fn unescape(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let [first, tail @ ..] = rest {
            rest = match (first, tail) {
                (b'\\', [b'x', high, low, tail @ ..]) => {
                    let digit = |c: &u8| (*c as char).to_digit(16).expect("a digit") as u8;
                    bytes.push(digit(high) << 4 | digit(low));
                    tail
                }
                _ => {
                    bytes.push(*first);
                    tail
                }
            };
        }
        bytes
    }

    #[test]
    fn hostile_values_are_escaped_for_each_style() {
        let hostile = b"a \"b\\\n\x1b[2J\xc2\x9b\xff\xe2\x80\xae";
        let text = r#"a \x22b\x5C\x0A\x1B[2J\xC2\x9B\xFF\xE2\x80\xAE"#;
        assert_eq!(write(ValueStyle::Quoted, hostile, 1000), text);
        assert_eq!(write(ValueStyle::Bare, hostile, 1000), text.replace(' ', r"\x20"));
        let json = "a \\\"b\\\\\\u000A\\u001B[2J\\u009B\u{fffd}\\u202E";
        assert_eq!(write(ValueStyle::JsonText, hostile, 1000), json);
        assert_eq!(write(ValueStyle::JsonValue, hostile, 1000), format!("\"{json}\""));
    }

    #[test]
    fn a_missing_value_is_a_dash_or_null() {
        for (style, shown) in [
            (ValueStyle::Quoted, "-"),
            (ValueStyle::Bare, "-"),
            (ValueStyle::JsonText, ""),
            (ValueStyle::JsonValue, "null"),
        ] {
            assert_eq!(write(style, b"", 10), shown);
        }
    }

    #[test]
    fn numbers_are_decimal_and_seconds_have_three_decimals() {
        let mut line = Vec::new();
        for number in [0, 7, 10, 99, 100, 404, 1000, u64::MAX] {
            push_number(&mut line, number);
            line.push(b' ');
        }
        push_seconds(&mut line, 12_034);
        push_decimals(&mut line, 5);
        assert_eq!(line, b"0 7 10 99 100 404 1000 18446744073709551615 12.034.005");
    }

    proptest! {
        #[test]
        fn bytes_are_plain_if_each_of_them_is(bytes in prop::collection::vec(prop_oneof![4 => 0x20u8..0x7f, 1 => any::<u8>()], 0..40)) {
            for (style, least) in [(ValueStyle::Quoted, 0x20), (ValueStyle::Bare, 0x21)] {
                let is_plain = |b: &u8| (least..0x7f).contains(b) && *b != b'"' && *b != b'\\';
                prop_assert_eq!(style.is_plain(&bytes), bytes.iter().all(is_plain));
            }
        }

        #[test]
        fn every_text_value_can_be_read_back(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            for style in [ValueStyle::Quoted, ValueStyle::Bare] {
                let text = write(style, &bytes, 10_000);
                prop_assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'"'), "{}", text);
                prop_assert!(style == ValueStyle::Quoted || !text.contains(' '));
                prop_assert_eq!(unescape(&text), bytes.clone());
            }
        }

        #[test]
        fn every_json_value_can_be_read_back(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            let text = write(ValueStyle::JsonValue, &bytes, 10_000);
            prop_assert!(!text.chars().any(needs_unicode_escape), "{}", text);
            let read: String = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(read, String::from_utf8_lossy(&bytes).into_owned());
        }

        #[test]
        fn a_cut_value_is_marked_and_still_valid(text in "\\PC{1,60}|[\\x00-\\x1f\"]{1,60}", max in 4usize..40) {
            let cut = write(ValueStyle::JsonValue, text.as_bytes(), max);
            prop_assert!(cut.len() <= max + 2, "{}", cut);
            let read: String = serde_json::from_str(&cut).expect("JSON");
            prop_assert!(read == text || text.starts_with(read.strip_suffix("...").expect("a mark")));
            let cut = write(ValueStyle::Quoted, text.as_bytes(), max);
            prop_assert!(cut.len() <= max, "{}", cut);
        }
    }
}
