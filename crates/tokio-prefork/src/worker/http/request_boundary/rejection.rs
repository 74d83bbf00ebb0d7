//! Why a message is refused before or instead of the application's answer, and the response that says so.

use std::time::SystemTime;

use hyper::StatusCode;

/// Why a request is refused. The numbers are what a connection stores; 0 is no rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rejection {
    RequestLine = 1,
    Method,
    Target,
    Version,
    NoHost,
    ManyHosts,
    Host,
    FieldName,
    FieldValue,
    FoldedField,
    ContentLength,
    ManyContentLengths,
    LengthAndEncoding,
    EncodingInHttp10,
    TransferEncoding,
    UnknownTransferEncoding,
    TargetTooLong,
    HeadTooLarge,
    TooManyFields,
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    Trailer,
    TrailersTooLarge,
}

impl Rejection {
    const ALL: [Rejection; 24] = [
        Rejection::RequestLine,
        Rejection::Method,
        Rejection::Target,
        Rejection::Version,
        Rejection::NoHost,
        Rejection::ManyHosts,
        Rejection::Host,
        Rejection::FieldName,
        Rejection::FieldValue,
        Rejection::FoldedField,
        Rejection::ContentLength,
        Rejection::ManyContentLengths,
        Rejection::LengthAndEncoding,
        Rejection::EncodingInHttp10,
        Rejection::TransferEncoding,
        Rejection::UnknownTransferEncoding,
        Rejection::TargetTooLong,
        Rejection::HeadTooLarge,
        Rejection::TooManyFields,
        Rejection::ChunkSize,
        Rejection::ChunkExtension,
        Rejection::ChunkEnd,
        Rejection::Trailer,
        Rejection::TrailersTooLarge,
    ];

    /// The rejection stored as `number`, if it is one.
    pub(crate) fn from_number(number: u8) -> Option<Rejection> {
        usize::from(number).checked_sub(1).and_then(|index| Self::ALL.get(index)).copied()
    }

    /// The status of the response.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Rejection::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Rejection::UnknownTransferEncoding => StatusCode::NOT_IMPLEMENTED,
            Rejection::TargetTooLong => StatusCode::URI_TOO_LONG,
            Rejection::HeadTooLarge | Rejection::TooManyFields | Rejection::TrailersTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason, as the client and the debug log read it.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Rejection::RequestLine => "malformed request line",
            Rejection::Method => "malformed method",
            Rejection::Target => "malformed request target",
            Rejection::Version => "only HTTP/1.0 and HTTP/1.1 are supported here",
            Rejection::NoHost => "no Host header",
            Rejection::ManyHosts => "more than one Host header",
            Rejection::Host => "malformed Host header",
            Rejection::FieldName => "malformed header name",
            Rejection::FieldValue => "a header value contains a control character",
            Rejection::FoldedField => "a header is folded over several lines",
            Rejection::ContentLength => "malformed Content-Length",
            Rejection::ManyContentLengths => "more than one Content-Length",
            Rejection::LengthAndEncoding => "both Content-Length and Transfer-Encoding",
            Rejection::EncodingInHttp10 => "Transfer-Encoding in an HTTP/1.0 request",
            Rejection::TransferEncoding => "malformed Transfer-Encoding",
            Rejection::UnknownTransferEncoding => "the only supported Transfer-Encoding is chunked",
            Rejection::TargetTooLong => "the request target is too long",
            Rejection::HeadTooLarge => "the request head is larger than max-header-size",
            Rejection::TooManyFields => "more than 100 header fields",
            Rejection::ChunkSize => "malformed chunk size",
            Rejection::ChunkExtension => "malformed or too long chunk extension",
            Rejection::ChunkEnd => "a chunk is longer than its size",
            Rejection::Trailer => "malformed trailer section",
            Rejection::TrailersTooLarge => "the trailer section is too large",
        }
    }

    /// A whole response, after which the connection is closed.
    pub(crate) fn response(self) -> Vec<u8> {
        let (status, reason) = (self.status(), self.reason());
        let body = format!("{status}: {reason}\n");
        let date = httpdate::fmt_http_date(SystemTime::now());
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\
             content-length: {}\r\ndate: {date}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_survives_being_stored_as_a_number() {
        assert_eq!(Rejection::from_number(0), None);
        for rejection in Rejection::ALL {
            assert_eq!(Rejection::from_number(rejection as u8), Some(rejection));
        }
        assert_eq!(Rejection::from_number(Rejection::ALL.len() as u8 + 1), None);
    }

    #[test]
    fn the_response_is_framed_and_closes_the_connection() {
        let text = String::from_utf8(Rejection::Host.response()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
    }
}
