//! Answers plain HTTP requests on a port that speaks TLS.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::accept::{closed_by_worker, linger, log_failure, read_first, until_close_request};
use crate::client::ConnectionInfo;
use crate::scoreboard::RequestRecorder;
use crate::status::TlsHandshakeResult;
use crate::worker::http::connection_state::CloseRequest;
use crate::worker::http::lingering_socket::first_line;
use crate::worker::http::serve_connection::report_refused;
use crate::worker::http::serve_context::{ConnectionHandle, ServeContext};
use crate::worker::lazy_stream::LazyStream;

/// How many bytes to read in search of the end of the request line.
const MAX_REQUEST_LINE: usize = 8 * 1024;

/// Returns whether this may be the first byte of an HTTP request. No TLS record begins with it.
pub(super) fn may_be_request(first_byte: u8) -> bool {
    first_byte.is_ascii_uppercase()
}

/// Answers 400 if the first line is that of an HTTP request, and closes the connection. Returns what it was.
pub(super) async fn answer<H: ServeContext, W: ConnectionHandle>(
    context: &H,
    handle: &W,
    mut stream: LazyStream,
    first: Bytes,
    info: Option<&ConnectionInfo>,
) -> TlsHandshakeResult {
    let mut read = BytesMut::from(first);
    while memchr::memchr(b'\n', &read).is_none() && read.len() < MAX_REQUEST_LINE {
        let more = until_close_request(handle, CloseRequest::Now, read_first(&mut stream)).await;
        match more {
            Ok(Ok(more)) if !more.is_empty() => {
                context.worker_page().byte_meter().add_bytes_in(more.len());
                read.extend_from_slice(&more);
            }
            Ok(_) => return TlsHandshakeResult::ClientClosed,
            Err(_) => return closed_by_worker(handle),
        }
    }
    if !is_request_line(&read) {
        log_failure(context, TlsHandshakeResult::NotTls, &"its first bytes are not TLS", info);
        linger(handle, stream).await;
        return TlsHandshakeResult::NotTls;
    }
    log_failure(context, TlsHandshakeResult::PlainHttp, &"a plain HTTP request", info);
    report_refused(context, 400, first_line(&read), info);
    let response = response();
    if stream.write_all(&response).await.is_ok() {
        context.worker_page().byte_meter().add_bytes_out(response.len());
        linger(handle, stream).await;
    }
    TlsHandshakeResult::PlainHttp
}

/// Returns whether these bytes begin with the request line of HTTP/1, or with the preface of HTTP/2.
fn is_request_line(bytes: &[u8]) -> bool {
    let line = first_line(bytes);
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    version.starts_with(b"HTTP/")
}

fn response() -> Vec<u8> {
    let body = "400 Bad Request: this port speaks HTTPS; use https:// in the address\n";
    let date = httpdate::fmt_http_date(SystemTime::now());
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\
         content-length: {}\r\ndate: {date}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_are_told_from_other_text() {
        for line in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n", "OPTIONS * HTTP/1.0\nx"] {
            assert!(
                may_be_request(line.as_bytes()[0]) && is_request_line(line.as_bytes()),
                "{line}"
            );
        }
        for line in ["SSH-2.0-OpenSSH_9.2\r\n", "EHLO example.org\r\n", "GET /\r\n", "\r\n"] {
            assert!(!is_request_line(line.as_bytes()), "{line}");
        }
        assert!(!may_be_request(22) && !may_be_request(0x80));
    }
}
