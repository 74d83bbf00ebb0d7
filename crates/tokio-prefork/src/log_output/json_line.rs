//! Writes one log record as a JSON object on one line, and cuts such a line so that it stays valid.

use std::borrow::Cow;
use std::fmt::Write as _;

use log::kv::{self, Source, VisitSource};

use crate::text::{cut_between_characters, printable_json};

/// Maximum size of the target, a kind, or the name or text of a key-value, in bytes before escaping. The rest is cut off.
const MAX_SHORT_TEXT_BYTES: usize = 128;

/// Maximum size of all key-values of a record, in bytes. What does not fit is left out. Together with the other members it
/// leaves room for the message in a line of 4096 bytes.
const MAX_FIELDS_BYTES: usize = 1536;

/// The start of each line, by which [`cut_json_line`] recognizes it.
const LINE_START: &str = "{\"time\":";

/// The end of each line but its line feed: the last member is a text.
const LINE_END: &str = "\"}";

/// A JSON object that is written member by member.
pub(super) struct JsonLine<'a> {
    out: &'a mut String,
    is_empty: bool,
}

impl<'a> JsonLine<'a> {
    /// Begins an object at the end of `out`.
    pub(super) fn begin(out: &'a mut String) -> JsonLine<'a> {
        out.push('{');
        JsonLine { out, is_empty: true }
    }

    pub(super) fn add_text(&mut self, name: &str, value: &str) {
        self.add_name(name);
        push_json_text(self.out, value);
    }

    /// Adds a text, cut to 128 bytes.
    pub(super) fn add_short_text(&mut self, name: &str, value: &str) {
        self.add_text(name, cut_short(value));
    }

    pub(super) fn add_number(&mut self, name: &str, value: u64) {
        self.add_name(name);
        // Writing to a string cannot fail.
        let _ = write!(self.out, "{value}");
    }

    /// Adds the key-values of a record as the object `fields`, if there are any.
    pub(super) fn add_fields(&mut self, fields: &dyn Source) {
        let mut object = String::new();
        let mut members = FieldMembers(JsonLine::begin(&mut object));
        // The visitor returns no error.
        let _ = fields.visit(&mut members);
        if !members.0.is_empty {
            object.push('}');
            self.add_name("fields");
            self.out.push_str(&object);
        }
    }

    /// Adds the message and ends the object.
    pub(super) fn finish_with_message(mut self, message: &str) {
        self.add_text("message", message);
        self.out.push('}');
    }

    fn add_name(&mut self, name: &str) {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(',');
        }
        push_json_text(self.out, name);
        self.out.push(':');
    }
}

/// Adds each key-value as a member.
struct FieldMembers<'a>(JsonLine<'a>);

impl<'kvs> VisitSource<'kvs> for FieldMembers<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let FieldMembers(json) = self;
        let (before, was_empty) = (json.out.len(), json.is_empty);
        json.add_name(cut_short(key.as_str()));
        let number = value.to_f64().filter(|number| number.is_finite());
        if let Some(flag) = value.to_bool() {
            json.out.push_str(if flag { "true" } else { "false" });
        } else if value.to_i64().is_some() || value.to_u64().is_some() || number.is_some() {
            // A number is written as JSON writes it.
            let _ = write!(json.out, "{value}");
        } else {
            push_json_text(json.out, cut_short(&value.to_string()));
        }
        if json.out.len() > MAX_FIELDS_BYTES {
            json.out.truncate(before);
            json.is_empty = was_empty;
        }
        Ok(())
    }
}

fn cut_short(text: &str) -> &str {
    cut_between_characters(text, MAX_SHORT_TEXT_BYTES)
}

/// Appends `text` as a JSON string without any raw character that is not printable.
fn push_json_text(out: &mut String, text: &str) {
    // A text is always serializable.
    let json = serde_json::to_string(text).unwrap_or_default();
    out.push_str(&printable_json(&json));
}

/// Cuts a line of [`JsonLine`] with its line feed to `max` bytes within its message, and marks the cut there. Returns `None`
/// if it is no such line.
pub(super) fn cut_json_line(line: &[u8], max: usize) -> Option<Cow<'_, [u8]>> {
    let text = str::from_utf8(line).ok()?;
    let object = text.strip_prefix('<').and_then(|text| text.split_once('>'));
    let object = object.map_or(text, |(_, object)| object);
    let body = text.strip_suffix('\n')?.strip_suffix(LINE_END)?;
    if !object.starts_with(LINE_START) {
        return None;
    }
    let mark = format!("... ({} bytes){LINE_END}\n", line.len());
    let end = last_cut_position(body, max.saturating_sub(mark.len()));
    Some(Cow::Owned([&body.as_bytes()[..end], mark.as_bytes()].concat()))
}

/// Returns the last position up to `max` that is neither within a character nor within an escape sequence.
fn last_cut_position(json: &str, max: usize) -> usize {
    let mut position = 0;
    while position < json.len() {
        let next = position + escaped_character_length(&json[position..]);
        if next > max {
            break;
        }
        position = next;
    }
    position
}

/// Returns the number of bytes of the first character of a JSON text. A character beyond U+FFFF is a pair of escapes.
fn escaped_character_length(json: &str) -> usize {
    let bytes = json.as_bytes();
    match bytes {
        [b'\\', b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..] => 12,
        [b'\\', b'u', ..] => 6,
        [b'\\', ..] => 2,
        _ => json.chars().next().map_or(1, char::len_utf8),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn line(message: &str) -> String {
        let mut out = String::new();
        let mut json = JsonLine::begin(&mut out);
        json.add_text("time", "now");
        json.finish_with_message(message);
        out.push('\n');
        out
    }

    #[test]
    fn a_long_json_line_is_cut_in_its_message() {
        let message = "0123456789".repeat(1000);
        let whole = line(&message);
        let cut = cut_json_line(whole.as_bytes(), 4095).expect("a JSON line");
        assert_eq!(cut.len(), 4095);
        let value: Value = serde_json::from_slice(&cut).expect("JSON");
        let said = value["message"].as_str().expect("text");
        let kept = said.strip_suffix(&format!("... ({} bytes)", whole.len())).expect("a mark");
        assert!(message.starts_with(kept) && kept.len() > 4000);
        let with_priority = format!("<3>{whole}");
        let cut = cut_json_line(with_priority.as_bytes(), 4095).expect("a JSON line");
        assert!(cut.starts_with(b"<3>{") && cut.len() == 4095);
        for other in ["2026 INFO {\"time\":", "{\"time\":7}\n", "{\"a\":\"b\"}\n", "\n", ""] {
            assert!(cut_json_line(other.as_bytes(), 4095).is_none(), "{other}");
        }
    }

    #[test]
    fn many_fields_leave_room_for_the_message() {
        let long = "\u{1b}\u{e0041}".repeat(1000);
        let fields: Vec<(String, String)> =
            (0..100).map(|n| (format!("{n}{long}"), long.clone())).collect();
        let mut out = String::new();
        let mut json = JsonLine::begin(&mut out);
        json.add_short_text("target", &long);
        json.add_fields(&fields);
        json.finish_with_message("said");
        assert!(out.len() < 3000, "{}", out.len());
        let value: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(value["message"], "said");
    }

    proptest! {
        #[test]
        fn a_cut_line_is_valid_json_whatever_the_message(message in "(?s).{0,80}|[\\u{1b}\\u{e0041}\"\\\\é]{0,80}", max in 60..200usize) {
            let line = line(&message);
            let cut = cut_json_line(line.as_bytes(), max).expect("a JSON line");
            prop_assert!(cut.len() <= max);
            let value: Value = serde_json::from_slice(&cut).expect("JSON");
            let said = value["message"].as_str().expect("text");
            let kept = said.rsplit_once("... (").expect("a mark").0;
            prop_assert!(message.starts_with(kept));
        }
    }
}
