//! Writes the line of one request.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::escape::{CUT_MARK, ShortText, ValueStyle, ValueWriter, push_number};
use super::format::{AccessLogFormat, FormatPart};
use super::time_text::TimeText;
use super::tls_variable::write_tls_value;
use super::variable::Variable;
use crate::client::{ClientAddr, ConnectionInfo, PeerAddr, RequestId};
use crate::worker::http::request_record::RequestRecord;
use prefork_supervisor::WorkerTag;

/// Limits for the bytes of each value, tried in this order until a line is short enough.
const VALUE_LIMITS: [usize; 5] = [1024, 512, 192, 64, 16];

/// What a line says about one request.
pub(super) struct LoggedRequest<'a> {
    pub(super) head: LoggedHead<'a>,
    /// Where the connection comes from, if that is known.
    pub(super) connection: Option<&'a ConnectionInfo>,
    pub(super) status: u16,
    pub(super) body_bytes: u64,
    pub(super) is_complete: bool,
    pub(super) duration: Option<Duration>,
    /// The time since 1970.
    pub(super) now: Duration,
}

/// The head of a logged request.
#[derive(Clone, Copy)]
pub(super) enum LoggedHead<'a> {
    Parsed(&'a RequestRecord),
    /// The first line of a request that was refused before it was parsed.
    Refused(&'a [u8]),
}

/// The format of the lines of one worker, with its pid and numbers filled in.
pub(super) struct LineLayout {
    pieces: Vec<LinePiece>,
}

/// A part of a line.
struct LinePiece {
    before: Literal,
    /// `None` at the end of the line.
    value: Option<LineValue>,
}

/// A value of each line.
struct LineValue {
    variable: Variable,
    style: ValueStyle,
    /// The text of a value that the request does not have.
    missing: ShortText<8>,
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
}

impl LineLayout {
    pub(super) fn new(format: &AccessLogFormat, tag: WorkerTag) -> LineLayout {
        let (mut pieces, mut text) = (Vec::new(), String::new());
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
                FormatPart::Value(variable, style) => {
                    let before = Literal::new(&std::mem::take(&mut text));
                    let value = Some(LineValue::new(*variable, *style));
                    pieces.push(LinePiece { before, value });
                }
            }
        }
        text.push('\n');
        pieces.push(LinePiece { before: Literal::new(&text), value: None });
        LineLayout { pieces }
    }

    fn write(
        &self,
        request: &LoggedRequest<'_>,
        texts: &mut LineTexts,
        max_value_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        for piece in &self.pieces {
            match &piece.before {
                Literal::Short(text) => text.push_to(out),
                Literal::Long(text) => out.extend_from_slice(text.as_bytes()),
            }
            if let Some(value) = &piece.value
                && !value.write_plain(request, texts, max_value_bytes, out)
            {
                let writer = ValueWriter::new(out, value.style, max_value_bytes);
                write_value(value.variable, writer, request, texts);
            }
        }
    }
}

impl LineValue {
    fn new(variable: Variable, style: ValueStyle) -> LineValue {
        let missing = ShortText::new(style.missing());
        LineValue { variable, style, missing }
    }

    /// Writes a value that is often logged and needs no escape. Returns whether it is one.
    fn write_plain(
        &self,
        request: &LoggedRequest<'_>,
        texts: &mut LineTexts,
        max_value_bytes: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let LoggedHead::Parsed(record) = request.head else { return false };
        let text = match self.variable {
            Variable::Status => {
                push_number(out, request.status.into());
                return true;
            }
            Variable::BodyBytesSent => {
                push_number(out, request.body_bytes);
                return true;
            }
            Variable::TimeLocal if self.style != ValueStyle::JsonValue => {
                texts.time.common.push_to(out);
                return true;
            }
            Variable::Request => record.request_line(),
            Variable::RequestMethod => record.method(),
            Variable::RequestUri => record.target(),
            Variable::ServerProtocol => record.protocol(),
            Variable::RemoteUser => record.user.as_deref().unwrap_or_default(),
            Variable::RequestId => {
                record.request_id.as_ref().map_or("", RequestId::as_str).as_bytes()
            }
            Variable::TraceId if record.trace_id.is_none() => b"",
            Variable::Host(index) if record.forwarded.is_none() => match record.authority() {
                b"" => record.request_header(index),
                authority => authority,
            },
            Variable::RequestCompletion if request.is_complete => b"OK",
            Variable::RequestCompletion => b"",
            Variable::RequestHeader(index) => record.request_header(index),
            Variable::ResponseHeader(index) => record.response_header(index),
            _ => return false,
        };
        if text.is_empty() {
            self.missing.push_to(out);
            return true;
        }
        if text.len() + CUT_MARK.len() > max_value_bytes || !self.style.is_plain(text) {
            return false;
        }
        let is_whole_json = self.style == ValueStyle::JsonValue;
        if is_whole_json {
            out.push(b'"');
        }
        out.extend_from_slice(text);
        if is_whole_json {
            out.push(b'"');
        }
        true
    }
}

/// Texts that are kept from one line to the next.
#[derive(Debug, Default)]
pub(super) struct LineTexts {
    time: TimeText,
    client_ip: Option<IpAddr>,
    /// The text of `client_ip`.
    client: ShortText<48>,
}

impl LineTexts {
    /// Returns the text of an address, which is most likely the one of the line before.
    fn client(&mut self, ip: IpAddr) -> &ShortText<48> {
        if self.client_ip != Some(ip) {
            self.client_ip = Some(ip);
            self.client = ShortText::new(&ip.to_string());
        }
        &self.client
    }
}

/// Appends the line of `request`, of at most `max_line_bytes` with its line feed, to `out`.
pub(super) fn write_line(
    layout: &LineLayout,
    request: &LoggedRequest<'_>,
    max_line_bytes: usize,
    texts: &mut LineTexts,
    out: &mut Vec<u8>,
) {
    texts.time.set(request.now);
    let start = out.len();
    layout.write(request, texts, max_line_bytes, out);
    if out.len() - start > max_line_bytes {
        write_short_line(layout, request, max_line_bytes, texts, out, start);
    }
}

/// Writes the line at `start` again, with its values cut.
#[cold]
fn write_short_line(
    layout: &LineLayout,
    request: &LoggedRequest<'_>,
    max_line_bytes: usize,
    texts: &mut LineTexts,
    out: &mut Vec<u8>,
    start: usize,
) {
    for max_value_bytes in VALUE_LIMITS {
        out.truncate(start);
        layout.write(request, texts, max_value_bytes, out);
        if out.len() - start <= max_line_bytes {
            return;
        }
    }
    // Only a template of very many variables gets here.
    out.truncate(start + max_line_bytes - 1);
    out.push(b'\n');
}

fn write_value(
    variable: Variable,
    mut value: ValueWriter<'_>,
    request: &LoggedRequest<'_>,
    texts: &mut LineTexts,
) {
    let time = &texts.time;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match variable {
        Variable::Status => return value.number_and_finish(request.status.into()),
        Variable::BodyBytesSent => return value.number_and_finish(request.body_bytes),
        Variable::TimeEpochMs => return value.number_and_finish(millis(request.now)),
        Variable::Msec => return value.seconds(millis(request.now)),
        Variable::RemotePort => match request.client().port() {
            Some(port) => return value.number_and_finish(port.into()),
            None => return value.finish(),
        },
        Variable::QueueWaitUs => match request.parsed().and_then(|record| record.queue_wait) {
            Some(wait) => {
                let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
                return value.number_and_finish(micros);
            }
            None => return value.finish(),
        },
        Variable::RequestTime | Variable::DurationMs | Variable::DurationUs => {
            let Some(duration) = request.duration else { return value.finish() };
            return match variable {
                Variable::RequestTime => value.seconds(millis(duration)),
                Variable::DurationMs => value.number_and_finish(millis(duration)),
                _ => {
                    value.number_and_finish(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
                }
            };
        }
        Variable::TimeLocal => value.own_short(&time.common),
        Variable::TimeIso8601 => {
            value.own_short(&time.iso_second);
            value.own_short(&time.iso_offset);
        }
        Variable::TimeIso8601Ms => {
            value.own_short(&time.iso_second);
            value.own_text(".");
            value.own_padded(request.now.subsec_millis().into(), 3);
            value.own_short(&time.iso_offset);
        }
        Variable::RequestCompletion => {
            if request.is_complete {
                value.own_text("OK");
            }
        }
        Variable::RemoteAddr => write_remote_addr(&mut value, &request.client(), texts),
        Variable::Peer => {
            if let Some(peer) = request.peer() {
                write_peer(&mut value, peer, texts);
            }
        }
        Variable::Tls(variable) => {
            if let Some(tls) = request.connection.and_then(ConnectionInfo::tls) {
                write_tls_value(variable, &mut value, tls);
            }
        }
        _ => write_head_value(variable, &mut value, request),
    }
    value.finish_string();
}

/// Writes a value that comes from the head of the request or of the response.
fn write_head_value(variable: Variable, value: &mut ValueWriter<'_>, request: &LoggedRequest<'_>) {
    let record = match request.head {
        LoggedHead::Parsed(record) => record,
        LoggedHead::Refused(line) if variable == Variable::Request => return value.text(line),
        LoggedHead::Refused(_) => return,
    };
    match variable {
        Variable::Request => write_request_line(value, record),
        Variable::RequestMethod => value.text(record.method()),
        Variable::RequestUri => value.text(record.target()),
        Variable::Uri => value.text(record.path_and_query().0),
        Variable::Args => value.text(record.path_and_query().1),
        Variable::ServerProtocol => value.own_text(record.protocol()),
        Variable::Scheme => {
            let is_tls = || request.connection.is_some_and(ConnectionInfo::is_tls);
            let is_https =
                record.forwarded.as_ref().map_or_else(is_tls, |client| client.is_https());
            value.own_text(if is_https { "https" } else { "http" });
        }
        Variable::RemoteUser => value.text(record.user.as_deref().unwrap_or_default()),
        Variable::Host(_) if let Some(host) = record.forwarded.as_ref().and_then(|c| c.host()) => {
            value.text(host.as_bytes());
        }
        Variable::Host(index) => match record.authority() {
            b"" => value.text(record.request_header(index)),
            authority => value.text(authority),
        },
        Variable::RequestId => {
            value.text(record.request_id.as_ref().map_or("", RequestId::as_str).as_bytes());
        }
        Variable::TraceId => {
            if let Some(id) = record.trace_id {
                value.own_text(id.to_string());
            }
        }
        Variable::RequestHeader(index) => value.text(record.request_header(index)),
        Variable::ResponseHeader(index) => value.text(record.response_header(index)),
        _ => {}
    }
}

fn write_request_line(value: &mut ValueWriter<'_>, record: &RequestRecord) {
    if value.plain_text(record.request_line()) {
        return;
    }
    // In parts, so that a target follows a method that is cut, and the protocol a target.
    value.text(record.method());
    value.space();
    value.next_part();
    value.text(record.target());
    value.space();
    value.own_text(record.protocol());
}

impl<'a> LoggedRequest<'a> {
    fn peer(&self) -> Option<&'a PeerAddr> {
        self.connection.map(ConnectionInfo::peer)
    }

    /// Returns the client: behind a trusted proxy, that of the proxy.
    fn client(&self) -> ClientAddr {
        match self.parsed().and_then(|record| record.forwarded.as_ref()) {
            Some(forwarded) => forwarded.client().clone(),
            None => self.connection.map_or(ClientAddr::Unknown, ConnectionInfo::client),
        }
    }

    fn parsed(&self) -> Option<&'a RequestRecord> {
        match self.head {
            LoggedHead::Parsed(record) => Some(record),
            LoggedHead::Refused(_) => None,
        }
    }
}

fn write_peer(value: &mut ValueWriter<'_>, peer: &PeerAddr, texts: &mut LineTexts) {
    match peer.socket_addr() {
        Some(SocketAddr::V4(addr)) => {
            value.own_short(texts.client((*addr.ip()).into()));
            value.own_text(":");
            value.own_number(addr.port().into());
        }
        _ => value.own_text(peer.to_string()),
    }
}

fn write_remote_addr(value: &mut ValueWriter<'_>, client: &ClientAddr, texts: &mut LineTexts) {
    match client {
        ClientAddr::Unknown => {}
        ClientAddr::Ip { ip, .. } => value.own_short(texts.client(*ip)),
        ClientAddr::Unix(_) => value.own_text("unix:"),
    }
}
