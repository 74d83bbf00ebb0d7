//! Writes the values of lines: those of the request when it starts, the others when it has ended.
//!
//! So the head of a request is read once, while it is there, and nothing of it has to be kept but text.

use std::borrow::Cow;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::{Extensions, Uri};
use hyper::{Method, Request, Version};

use super::basic_auth::basic_auth_user;
use super::escape::{
    CUT_MARK, ShortText, ValueStyle, ValueWriter, push_decimals, push_number, push_seconds,
};
use super::line::LineLayout;
use super::line_texts::LineTexts;
use super::tls_variable::{TlsVariable, write_tls_value};
use super::variable::Variable;
use crate::client::{ClientAddr, ClientInfo, ConnectionInfo, PeerAddr, RequestId, TraceParent};

/// Up to how many headers of a request are compared by name. Hashing is faster for more.
const FEW_HEADERS: usize = 6;

/// Up to how many wanted headers are found in one pass.
const FEW_NAMES: usize = 4;

/// What a line says about a request when it starts.
pub(super) struct StartedRequest<'a> {
    pub(super) head: LoggedHead<'a>,
    /// Where the connection comes from, if that is known.
    pub(super) connection: Option<&'a ConnectionInfo>,
    /// What a trusted proxy says about the client; `None` if the connection comes from no such proxy.
    pub(super) forwarded: Option<&'a ClientInfo>,
    /// How long the connection was in the accept queue, for its first request, if that was measured.
    pub(super) queue_wait: Option<Duration>,
}

/// The head of a logged request.
pub(super) enum LoggedHead<'a> {
    Parsed(RequestHead<'a>),
    /// The first line of a request that was refused before it was parsed.
    Refused(&'a [u8]),
}

/// The head of a request.
pub(super) struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
    wanted: WantedHeaders<'a>,
}

/// The headers that a layout wants, by their index in it. A missing header is empty; of several with one name, the first counts.
pub(super) enum WantedHeaders<'a> {
    Found([&'a [u8]; FEW_NAMES]),
    Many { names: &'a [HeaderName], headers: &'a HeaderMap },
}

impl<'a> WantedHeaders<'a> {
    pub(super) fn find(names: &'a [HeaderName], headers: &'a HeaderMap) -> WantedHeaders<'a> {
        if headers.len() > FEW_HEADERS || names.len() > FEW_NAMES {
            return WantedHeaders::Many { names, headers };
        }
        let mut found = [None; FEW_NAMES];
        for (known, value) in headers {
            for (name, found) in names.iter().zip(&mut found) {
                if found.is_none() && known == name {
                    *found = Some(value.as_bytes());
                }
            }
        }
        WantedHeaders::Found(found.map(Option::unwrap_or_default))
    }

    fn get(&self, index: usize) -> &'a [u8] {
        match self {
            WantedHeaders::Found(found) => found.get(index).copied().unwrap_or_default(),
            WantedHeaders::Many { names, headers } => {
                let value = names.get(index).and_then(|name| headers.get(name));
                value.map_or(&[], HeaderValue::as_bytes)
            }
        }
    }
}

/// What a line says about a request when it has ended.
pub(super) struct EndedResponse {
    pub(super) status: u16,
    pub(super) body_bytes: u64,
    pub(super) is_complete: bool,
    pub(super) duration: Option<Duration>,
    /// The time since 1970.
    pub(super) now: Duration,
}

impl<'a> RequestHead<'a> {
    pub(super) fn of<B>(request: &'a Request<B>, layout: &'a LineLayout) -> RequestHead<'a> {
        RequestHead {
            wanted: WantedHeaders::find(&layout.request_headers, request.headers()),
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// Returns the target as the client has sent it: path and query, a whole URI, or an authority.
    fn target(&self) -> Cow<'a, str> {
        match (self.uri.path_and_query(), self.uri.authority()) {
            (Some(path), None) => path.as_str().into(),
            (Some(path), Some(_)) if self.version >= Version::HTTP_2 => path.as_str().into(),
            _ => self.uri.to_string().into(),
        }
    }

    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_09 => "HTTP/0.9",
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_3 => "HTTP/3.0",
            _ => "HTTP/1.1",
        }
    }
}

/// A value of each line, other than the worker's own numbers.
pub(super) struct LineValue {
    variable: Variable,
    /// The index of the header that the value is or comes from.
    header: usize,
    style: ValueStyle,
    /// The text of a value that the request does not have.
    missing: ShortText<8>,
}

impl LineValue {
    pub(super) fn new(variable: Variable, header: usize, style: ValueStyle) -> LineValue {
        let missing = ShortText::new(style.missing());
        LineValue { variable, header, style, missing }
    }

    /// Returns the most bytes of a value that is written at the end, apart from a header.
    pub(super) fn max_late_bytes(&self) -> usize {
        match self.variable {
            Variable::Status => 5,
            Variable::RequestCompletion => 6,
            Variable::ResponseHeader(_) => MIN_RESPONSE_HEADER_BYTES + 2,
            _ => 40,
        }
    }

    /// Writes a value that is known when the request starts.
    pub(super) fn write_started(
        &self,
        request: &StartedRequest<'_>,
        texts: &mut LineTexts,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        let head = match &request.head {
            LoggedHead::Parsed(head) => head,
            LoggedHead::Refused(line) => {
                return self.write_refused(line, request, texts, max_bytes, out);
            }
        };
        match self.variable {
            Variable::RequestHeader(_) => self.text(head.wanted.get(self.header), max_bytes, out),
            Variable::Request => self.request_line(head, max_bytes, out),
            Variable::RemoteAddr => self.remote_addr(request, texts, out),
            Variable::RemotePort => self.remote_port(request, out),
            Variable::Peer => self.peer(request, texts, out),
            Variable::RemoteUser => match head.wanted.get(self.header) {
                [] => self.missing.push_to(out),
                credentials => {
                    self.text(&basic_auth_user(credentials).unwrap_or_default(), max_bytes, out);
                }
            },
            Variable::RequestMethod => self.text(head.method.as_str().as_bytes(), max_bytes, out),
            Variable::RequestUri => self.text(head.target().as_bytes(), max_bytes, out),
            Variable::Uri => self.text(head.uri.path().as_bytes(), max_bytes, out),
            Variable::Args => {
                self.text(head.uri.query().unwrap_or_default().as_bytes(), max_bytes, out);
            }
            Variable::ServerProtocol => self.own_text(head.protocol(), out),
            Variable::Host => self.host(request, head, max_bytes, out),
            Variable::Scheme => {
                self.own_text(if request.is_https() { "https" } else { "http" }, out);
            }
            Variable::QueueWaitUs => match request.queue_wait {
                Some(wait) => push_number(out, micros(wait)),
                None => self.missing.push_to(out),
            },
            Variable::RequestId => match head.extensions.get::<RequestId>() {
                Some(id) => self.text(id.as_str().as_bytes(), max_bytes, out),
                None => self.missing.push_to(out),
            },
            Variable::TraceId => match TraceParent::of_headers(head.headers) {
                Some(parent) => self.own_text(&parent.trace_id.to_string(), out),
                None => self.missing.push_to(out),
            },
            Variable::Tls(variable) => self.tls_value(variable, request, max_bytes, out),
            _ => self.missing.push_to(out),
        }
    }

    fn write_refused(
        &self,
        line: &[u8],
        request: &StartedRequest<'_>,
        texts: &mut LineTexts,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        match self.variable {
            Variable::Request => self.text(line, max_bytes, out),
            Variable::RemoteAddr => self.remote_addr(request, texts, out),
            Variable::RemotePort => self.remote_port(request, out),
            Variable::Peer => self.peer(request, texts, out),
            Variable::Tls(variable) => self.tls_value(variable, request, max_bytes, out),
            _ => self.missing.push_to(out),
        }
    }

    fn tls_value(
        &self,
        variable: TlsVariable,
        request: &StartedRequest<'_>,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        match request.connection.and_then(ConnectionInfo::tls) {
            None => self.missing.push_to(out),
            Some(tls) => {
                let mut value = ValueWriter::new(out, self.style, max_bytes);
                write_tls_value(variable, &mut value, tls);
                value.finish_string();
            }
        }
    }

    /// Writes text of a client.
    pub(super) fn text(&self, text: &[u8], max_bytes: usize, out: &mut Vec<u8>) {
        if text.is_empty() {
            return self.missing.push_to(out);
        }
        if text.len() + CUT_MARK.len() > max_bytes || !self.style.is_plain(text) {
            return self.escaped_text(text, max_bytes, out);
        }
        self.begin_string(out);
        out.extend_from_slice(text);
        self.end_string(out);
    }

    pub(super) fn escaped_text(&self, text: &[u8], max_bytes: usize, out: &mut Vec<u8>) {
        let mut writer = ValueWriter::new(out, self.style, max_bytes);
        writer.text(text);
        writer.finish_string();
    }

    /// Writes text that this server has made and that needs no escape, whatever the style.
    fn own_text(&self, text: &str, out: &mut Vec<u8>) {
        self.begin_string(out);
        out.extend_from_slice(text.as_bytes());
        self.end_string(out);
    }

    fn own_short<const N: usize>(&self, text: &ShortText<N>, out: &mut Vec<u8>) {
        self.begin_string(out);
        text.push_to(out);
        self.end_string(out);
    }

    fn begin_string(&self, out: &mut Vec<u8>) {
        if self.style == ValueStyle::JsonValue {
            out.push(b'"');
        }
    }

    fn end_string(&self, out: &mut Vec<u8>) {
        self.begin_string(out);
    }

    fn request_line(&self, head: &RequestHead<'_>, max_bytes: usize, out: &mut Vec<u8>) {
        let (method, target) = (head.method.as_str(), head.target());
        let length = method.len() + target.len() + CUT_MARK.len() + " HTTP/1.1 ".len();
        // A method is a token, which needs no escape.
        if length > max_bytes
            || self.style == ValueStyle::Bare
            || !self.style.is_plain(target.as_bytes())
        {
            return self.cut_request_line(method, &target, head.protocol(), max_bytes, out);
        }
        self.begin_string(out);
        out.extend_from_slice(method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(target.as_bytes());
        out.push(b' ');
        out.extend_from_slice(head.protocol().as_bytes());
        self.end_string(out);
    }

    /// Writes a request line in parts, so that a target follows a method that is cut, and the protocol a target.
    #[cold]
    fn cut_request_line(
        &self,
        method: &str,
        target: &str,
        protocol: &str,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        let mut value = ValueWriter::new(out, self.style, max_bytes);
        value.text(method.as_bytes());
        value.space();
        value.next_part();
        value.text(target.as_bytes());
        value.space();
        value.own_text(protocol);
        value.finish_string();
    }

    fn host(
        &self,
        request: &StartedRequest<'_>,
        head: &RequestHead<'_>,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        let forwarded = request.forwarded.and_then(ClientInfo::host);
        let host = match (forwarded, head.uri.authority()) {
            (Some(host), _) => host.as_bytes(),
            (None, Some(authority)) => authority.as_str().as_bytes(),
            (None, None) => head.wanted.get(self.header),
        };
        self.text(host, max_bytes, out);
    }

    fn remote_addr(&self, request: &StartedRequest<'_>, texts: &mut LineTexts, out: &mut Vec<u8>) {
        let ip = match (request.forwarded.map(ClientInfo::client), request.connection) {
            (Some(ClientAddr::Unknown), _) | (None, None) => return self.missing.push_to(out),
            (Some(client), _) => client.ip(),
            (None, Some(connection)) => connection.client_ip(),
        };
        match ip {
            Some(ip) => self.own_short(texts.ip(ip), out),
            None => self.own_text("unix:", out),
        }
    }

    fn remote_port(&self, request: &StartedRequest<'_>, out: &mut Vec<u8>) {
        match request.client().port() {
            Some(port) => push_number(out, port.into()),
            None => self.missing.push_to(out),
        }
    }

    fn peer(&self, request: &StartedRequest<'_>, texts: &mut LineTexts, out: &mut Vec<u8>) {
        match request.connection.map(ConnectionInfo::peer) {
            None => self.missing.push_to(out),
            Some(PeerAddr::Tcp(addr)) if addr.is_ipv4() => {
                self.begin_string(out);
                texts.ip(addr.ip()).push_to(out);
                out.push(b':');
                push_number(out, addr.port().into());
                self.end_string(out);
            }
            Some(peer) => self.own_text(&peer.to_string(), out),
        }
    }

    /// Writes a header of the response, when that has started.
    pub(super) fn write_response_header(
        &self,
        wanted: &WantedHeaders<'_>,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) {
        self.text(wanted.get(self.header), max_bytes, out);
    }

    /// Writes what stands for a missing value.
    pub(super) fn write_missing(&self, out: &mut Vec<u8>) {
        self.missing.push_to(out);
    }

    /// Writes a value that is known when the request has ended, other than a header.
    pub(super) fn write_ended(&self, ended: &EndedResponse, texts: &LineTexts, out: &mut Vec<u8>) {
        let time = &texts.time;
        match self.variable {
            Variable::Status => push_number(out, ended.status.into()),
            Variable::BodyBytesSent => push_number(out, ended.body_bytes),
            Variable::TimeLocal => self.own_short(&time.common, out),
            Variable::TimeIso8601 => {
                self.begin_string(out);
                time.iso_second.push_to(out);
                time.iso_offset.push_to(out);
                self.end_string(out);
            }
            Variable::TimeIso8601Ms => {
                self.begin_string(out);
                time.iso_second.push_to(out);
                push_decimals(out, ended.now.subsec_millis().into());
                time.iso_offset.push_to(out);
                self.end_string(out);
            }
            Variable::TimeEpochMs => push_number(out, millis(ended.now)),
            Variable::Msec => push_seconds(out, millis(ended.now)),
            Variable::RequestCompletion if ended.is_complete => self.own_text("OK", out),
            Variable::RequestTime | Variable::DurationMs | Variable::DurationUs => {
                let Some(duration) = ended.duration else { return self.missing.push_to(out) };
                match self.variable {
                    Variable::RequestTime => push_seconds(out, millis(duration)),
                    Variable::DurationMs => push_number(out, millis(duration)),
                    _ => push_number(out, micros(duration)),
                }
            }
            _ => self.missing.push_to(out),
        }
    }
}

/// How many bytes of a header of the response there is room for in the longest line.
pub(super) const MIN_RESPONSE_HEADER_BYTES: usize = 16;

impl StartedRequest<'_> {
    /// Returns the client: behind a trusted proxy, that of the proxy.
    fn client(&self) -> ClientAddr {
        match self.forwarded {
            Some(forwarded) => forwarded.client().clone(),
            None => self.connection.map_or(ClientAddr::Unknown, ConnectionInfo::client),
        }
    }

    fn is_https(&self) -> bool {
        let is_tls = || self.connection.is_some_and(ConnectionInfo::is_tls);
        self.forwarded.map_or_else(is_tls, ClientInfo::is_https)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
