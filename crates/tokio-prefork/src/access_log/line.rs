//! Writes the line of one request.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper::{Uri, Version};

use super::escape::ValueWriter;
use super::format::{AccessLogFormat, FormatPart};
use super::time_text::TimeText;
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

/// What the lines of one worker have in common.
pub(super) struct LineContext<'a> {
    pub(super) format: &'a AccessLogFormat,
    pub(super) tag: WorkerTag,
    /// The most bytes of a line, with its line feed.
    pub(super) max_line_bytes: usize,
}

/// Texts that are kept from one line to the next.
#[derive(Debug, Default)]
pub(super) struct LineTexts {
    time: TimeText,
    client_ip: Option<IpAddr>,
    /// The text of `client_ip`.
    client: String,
}

impl LineTexts {
    /// Returns the text of an address, which is most likely the one of the line before.
    fn client(&mut self, ip: IpAddr) -> &str {
        if self.client_ip != Some(ip) {
            self.client_ip = Some(ip);
            self.client = ip.to_string();
        }
        &self.client
    }
}

/// Appends the line of `request` to `out`.
pub(super) fn write_line(
    context: &LineContext<'_>,
    request: &LoggedRequest<'_>,
    texts: &mut LineTexts,
    out: &mut Vec<u8>,
) {
    texts.time.set(request.now);
    let start = out.len();
    let limits = std::iter::once(context.max_line_bytes).chain(VALUE_LIMITS);
    for max_value_bytes in limits {
        out.truncate(start);
        for part in &*context.format.parts {
            match part {
                FormatPart::Literal(text) => out.extend_from_slice(text.as_bytes()),
                FormatPart::Value(variable, style) => {
                    let value = ValueWriter::new(out, *style, max_value_bytes);
                    write_value(*variable, value, context, request, texts);
                }
            }
        }
        out.push(b'\n');
        if out.len() - start <= context.max_line_bytes {
            return;
        }
    }
    // Only a template of very many variables gets here.
    out.truncate(start + context.max_line_bytes - 1);
    out.push(b'\n');
}

fn write_value(
    variable: Variable,
    mut value: ValueWriter<'_>,
    context: &LineContext<'_>,
    request: &LoggedRequest<'_>,
    texts: &mut LineTexts,
) {
    let time = &texts.time;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match variable {
        Variable::Status => return value.number_and_finish(request.status.into()),
        Variable::BodyBytesSent => return value.number_and_finish(request.body_bytes),
        Variable::Pid => return value.number_and_finish(context.tag.pid.unwrap_or(0).into()),
        Variable::Worker => return value.number_and_finish(context.tag.id.0),
        Variable::Slot => return value.number_and_finish(context.tag.slot.0.into()),
        Variable::Generation => return value.number_and_finish(context.tag.generation.0),
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
        Variable::TimeLocal => value.own_text(&time.common),
        Variable::TimeIso8601 => {
            value.own_text(&time.iso_second);
            value.own_text(&time.iso_offset);
        }
        Variable::TimeIso8601Ms => {
            value.own_text(&time.iso_second);
            value.own_text(".");
            value.own_padded(request.now.subsec_millis().into(), 3);
            value.own_text(&time.iso_offset);
        }
        Variable::RequestCompletion => {
            if request.is_complete {
                value.own_text("OK");
            }
        }
        Variable::RemoteAddr => write_remote_addr(&mut value, &request.client(), texts),
        Variable::Peer => {
            if let Some(peer) = request.peer() {
                write_peer(&mut value, peer);
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
        Variable::Request => {
            write_method(value, record);
            value.space();
            write_target(value, record);
            value.space();
            value.own_text(version_text(record.version));
        }
        Variable::RequestMethod => write_method(value, record),
        Variable::RequestUri => write_target(value, record),
        Variable::Uri => value.text(record.target.path().as_bytes()),
        Variable::Args => value.text(record.target.query().unwrap_or_default().as_bytes()),
        Variable::ServerProtocol => value.own_text(version_text(record.version)),
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
        Variable::Host(index) => {
            match (record.request_headers.get(index), record.target.authority()) {
                (_, Some(authority)) => value.text(authority.as_str().as_bytes()),
                (Some(host), None) => value.text(host.as_bytes()),
                (None, None) => {}
            }
        }
        Variable::RequestId => {
            value.text(record.request_id.as_ref().map_or("", RequestId::as_str).as_bytes());
        }
        Variable::TraceId => {
            if let Some(id) = record.trace_id {
                value.own_text(&id.to_string());
            }
        }
        Variable::RequestHeader(index) => {
            let header = record.request_headers.get(index);
            value.text(header.map_or(&[], |header| header.as_bytes()));
        }
        Variable::ResponseHeader(index) => {
            let header = record.response_headers.get(index);
            value.text(header.map_or(&[], |header| header.as_bytes()));
        }
        _ => {}
    }
}

/// Writes the method. It is a token, which needs no escape in any style, but may be as long as a request head.
fn write_method(value: &mut ValueWriter<'_>, record: &RequestRecord) {
    let method = record.method.as_str();
    match method.len() > 16 {
        true => value.text(method.as_bytes()),
        false => value.own_text(method),
    }
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

fn write_peer(value: &mut ValueWriter<'_>, peer: &PeerAddr) {
    match peer.socket_addr() {
        Some(SocketAddr::V4(addr)) => {
            for (n, octet) in addr.ip().octets().into_iter().enumerate() {
                if n > 0 {
                    value.own_text(".");
                }
                value.own_number(octet.into());
            }
            value.own_text(":");
            value.own_number(addr.port().into());
        }
        _ => value.own_text(&peer.to_string()),
    }
}

fn write_remote_addr(value: &mut ValueWriter<'_>, client: &ClientAddr, texts: &mut LineTexts) {
    match client {
        ClientAddr::Unknown => {}
        ClientAddr::Ip { ip, .. } => value.own_text(texts.client(*ip)),
        ClientAddr::Unix(_) => value.own_text("unix:"),
    }
}

/// Writes the target as the client sent it: path and query, a whole URI, or an authority.
fn write_target(value: &mut ValueWriter<'_>, record: &RequestRecord) {
    let target: &Uri = &record.target;
    let is_http2 = record.version >= Version::HTTP_2;
    match (target.path_and_query(), target.authority()) {
        (Some(path), None) => value.text(path.as_str().as_bytes()),
        (Some(path), Some(_)) if is_http2 => value.text(path.as_str().as_bytes()),
        _ => value.text(target.to_string().as_bytes()),
    }
}

fn version_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}
