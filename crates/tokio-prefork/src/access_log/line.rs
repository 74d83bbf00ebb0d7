//! The layout of lines: which text and which values they have, and when each is written.

use super::escape::{ShortText, ValueStyle};
use super::format::{AccessLogFormat, FormatPart, index_of};
use super::line_texts::LineTexts;
use super::line_value::{
    EndedResponse, LineValue, MIN_RESPONSE_HEADER_BYTES, StartedRequest, WantedHeaders,
};
use super::variable::Variable;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName};
use prefork_supervisor::WorkerTag;

/// Limits for the bytes of each value, tried in this order until a line is short enough.
const VALUE_LIMITS: [usize; 5] = [1024, 512, 192, 64, 16];

/// The memory for texts that is kept for the line of the next request.
const MAX_KEPT_BYTES: usize = 4096;

/// What is written of a line before its request has ended: the texts around the values that are not known yet, and then the headers of the
/// response.
#[derive(Debug, Default)]
pub(crate) struct LineParts {
    bytes: Vec<u8>,
    /// Where each text ends.
    ends: Vec<usize>,
}

impl LineParts {
    /// Forgets the request, and keeps memory for the next one.
    pub(crate) fn clear(&mut self) {
        self.ends.clear();
        match self.bytes.capacity() > MAX_KEPT_BYTES {
            true => self.bytes = Vec::new(),
            false => self.bytes.clear(),
        }
    }

    fn end_text(&mut self) {
        self.ends.push(self.bytes.len());
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        let start = match index {
            0 => 0,
            _ => *self.ends.get(index - 1)?,
        };
        self.bytes.get(start..*self.ends.get(index)?)
    }
}

/// The format of the lines of one worker, with its pid and numbers filled in.
pub(super) struct LineLayout {
    parts: Vec<PartLayout>,
    /// How many parts have values that are known when a request starts.
    started_parts: usize,
    /// The headers of the request that values are or come from.
    pub(super) request_headers: Vec<HeaderName>,
    /// The headers of the response that values are.
    response_headers: Vec<HeaderName>,
    /// The values that are headers of the response.
    response_values: Vec<LineValue>,
    /// The most bytes of a line beside what is written when the request starts.
    max_late_bytes: usize,
}

/// The part of a line up to a value that is known when the request has ended, or up to the end of the line.
struct PartLayout {
    /// The values that are known when the request starts, and the text before each.
    values: Vec<(Literal, LineValue)>,
    text: Literal,
    late: Option<LateValue>,
}

enum LateValue {
    Value(LineValue),
    /// A header of the response, by its index in the layout.
    ResponseHeader(usize),
}

/// Text that each line has.
enum Literal {
    Short(ShortText<32>),
    Long(String),
}

impl Literal {
    fn new(text: &str) -> Literal {
        match text.len() {
            0..=32 => Literal::Short(ShortText::new(text)),
            _ => Literal::Long(text.to_string()),
        }
    }

    fn push_to(&self, out: &mut Vec<u8>) {
        match self {
            Literal::Short(text) => text.push_to(out),
            Literal::Long(text) => out.extend_from_slice(text.as_bytes()),
        }
    }
}

impl LineLayout {
    pub(super) fn new(format: &AccessLogFormat, tag: WorkerTag) -> LineLayout {
        let captures = &format.captures;
        let mut layout = LineLayout {
            parts: Vec::new(),
            started_parts: 0,
            request_headers: captures.request_headers.clone(),
            response_headers: captures.response_headers.clone(),
            response_values: Vec::new(),
            max_late_bytes: 0,
        };
        let (mut values, mut text) = (Vec::new(), String::new());
        for part in &*format.parts {
            match part {
                FormatPart::Literal(literal) => text.push_str(literal),
                FormatPart::Value(Variable::Pid, _) => {
                    text.push_str(&tag.pid.unwrap_or(0).to_string());
                }
                FormatPart::Value(Variable::Worker, _) => text.push_str(&tag.id.0.to_string()),
                FormatPart::Value(Variable::Slot, _) => text.push_str(&tag.slot.0.to_string()),
                FormatPart::Value(Variable::Generation, _) => {
                    text.push_str(&tag.generation.0.to_string());
                }
                FormatPart::Value(Variable::ResponseHeader(index), style) => {
                    let value = LineValue::new(Variable::ResponseHeader(*index), *index, *style);
                    let late = LateValue::ResponseHeader(layout.response_values.len());
                    layout.max_late_bytes += value.max_late_bytes();
                    layout.response_values.push(value);
                    layout.end_part(&mut values, &mut text, Some(late));
                }
                FormatPart::Value(variable, style) if variable.is_known_at_end() => {
                    // Every line has a time, so the quotes around it are part of the fixed texts before and after it.
                    let is_time_text = *style == ValueStyle::JsonValue && variable.is_time_text();
                    if is_time_text {
                        text.push('"');
                    }
                    let style = if is_time_text { ValueStyle::JsonText } else { *style };
                    let value = LineValue::new(*variable, 0, style);
                    layout.max_late_bytes += value.max_late_bytes();
                    layout.end_part(&mut values, &mut text, Some(LateValue::Value(value)));
                    if is_time_text {
                        text.push('"');
                    }
                }
                FormatPart::Value(variable, style) => {
                    let names = &mut layout.request_headers;
                    let header = match variable {
                        Variable::RequestHeader(index) => *index,
                        Variable::RemoteUser => index_of(names, AUTHORIZATION),
                        Variable::Host => index_of(names, HOST),
                        _ => 0,
                    };
                    let before = Literal::new(&std::mem::take(&mut text));
                    values.push((before, LineValue::new(*variable, header, *style)));
                }
            }
        }
        text.push('\n');
        layout.end_part(&mut values, &mut text, None);
        layout
    }

    fn end_part(
        &mut self,
        values: &mut Vec<(Literal, LineValue)>,
        text: &mut String,
        late: Option<LateValue>,
    ) {
        match values.is_empty() {
            true => self.max_late_bytes += text.len(),
            false => self.started_parts += 1,
        }
        let text = Literal::new(&std::mem::take(text));
        self.parts.push(PartLayout { values: std::mem::take(values), text, late });
    }

    /// Writes to `parts`, which are empty, what is known when a request starts. The whole line will have at most `max_line_bytes`.
    pub(super) fn start_line(
        &self,
        request: &StartedRequest<'_>,
        max_line_bytes: usize,
        texts: &mut LineTexts,
        parts: &mut LineParts,
    ) {
        self.write_started(request, max_line_bytes, texts, parts);
        let max_bytes = max_line_bytes.saturating_sub(self.max_late_bytes);
        for limit in VALUE_LIMITS {
            if parts.bytes.len() <= max_bytes {
                return;
            }
            parts.clear();
            self.write_started(request, limit, texts, parts);
        }
    }

    fn write_started(
        &self,
        request: &StartedRequest<'_>,
        max_value_bytes: usize,
        texts: &mut LineTexts,
        parts: &mut LineParts,
    ) {
        for part in self.parts.iter().filter(|part| !part.values.is_empty()) {
            for (before, value) in &part.values {
                before.push_to(&mut parts.bytes);
                value.write_started(request, texts, max_value_bytes, &mut parts.bytes);
            }
            part.text.push_to(&mut parts.bytes);
            parts.end_text();
        }
    }

    /// Writes the wanted headers of the response to `parts`, in which the line has been started.
    pub(super) fn add_response_headers(
        &self,
        headers: &HeaderMap,
        max_line_bytes: usize,
        parts: &mut LineParts,
    ) {
        if self.response_values.is_empty() {
            return;
        }
        let room = max_line_bytes.saturating_sub(self.max_late_bytes + parts.bytes.len());
        let max_bytes = MIN_RESPONSE_HEADER_BYTES + room / self.response_values.len();
        let wanted = WantedHeaders::find(&self.response_headers, headers);
        for value in &self.response_values {
            value.write_response_header(&wanted, max_bytes, &mut parts.bytes);
            parts.end_text();
        }
    }

    /// Appends the line of a request that has ended, of at most `max_line_bytes` with its line feed, to `out`.
    pub(super) fn end_line(
        &self,
        parts: &LineParts,
        ended: &EndedResponse,
        max_line_bytes: usize,
        texts: &mut LineTexts,
        out: &mut Vec<u8>,
    ) {
        texts.time.set(ended.now);
        let (start, mut part_start, mut ends) = (out.len(), 0, parts.ends.iter());
        for part in &self.parts {
            if part.values.is_empty() {
                part.text.push_to(out);
            } else if let Some(part_end) = ends.next() {
                out.extend_from_slice(&parts.bytes[part_start..*part_end]);
                part_start = *part_end;
            }
            match &part.late {
                Some(LateValue::Value(value)) => value.write_ended(ended, texts, out),
                Some(LateValue::ResponseHeader(index)) => {
                    match parts.get(self.started_parts + index) {
                        Some(text) => out.extend_from_slice(text),
                        None => self.response_values[*index].write_missing(out),
                    }
                }
                None => {}
            }
        }
        if out.len() - start > max_line_bytes {
            // Only a template of very many variables gets here.
            out.truncate(start + max_line_bytes - 1);
            out.push(b'\n');
        }
    }
}
