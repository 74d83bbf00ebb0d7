//! The reasons to reject a malformed request, and the responses that say so.

use std::time::SystemTime;

use hyper::StatusCode;

/// Why a request is rejected. A connection stores the number; 0 means no rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RequestRejection {
    RequestLine = 1,
    Method,
    Target,
    Version,
    MissingHost,
    MultipleHosts,
    Host,
    FieldName,
    FieldValue,
    FoldedField,
    ContentLength,
    MultipleContentLengths,
    LengthAndEncoding,
    EncodingInHttp10,
    TransferEncoding,
    UnknownTransferEncoding,
    TargetTooLong,
    HeadTooLarge,
    TooManyFields,
    ChunkSize,
    ChunkExtension,
    ChunkTooLong,
    Trailer,
    TrailersTooLarge,
    TlsRecord,
}

impl RequestRejection {
    const ALL: [RequestRejection; 25] = [
        RequestRejection::RequestLine,
        RequestRejection::Method,
        RequestRejection::Target,
        RequestRejection::Version,
        RequestRejection::MissingHost,
        RequestRejection::MultipleHosts,
        RequestRejection::Host,
        RequestRejection::FieldName,
        RequestRejection::FieldValue,
        RequestRejection::FoldedField,
        RequestRejection::ContentLength,
        RequestRejection::MultipleContentLengths,
        RequestRejection::LengthAndEncoding,
        RequestRejection::EncodingInHttp10,
        RequestRejection::TransferEncoding,
        RequestRejection::UnknownTransferEncoding,
        RequestRejection::TargetTooLong,
        RequestRejection::HeadTooLarge,
        RequestRejection::TooManyFields,
        RequestRejection::ChunkSize,
        RequestRejection::ChunkExtension,
        RequestRejection::ChunkTooLong,
        RequestRejection::Trailer,
        RequestRejection::TrailersTooLarge,
        RequestRejection::TlsRecord,
    ];

    /// Returns the rejection stored as `number`, or `None` for 0.
    pub(crate) fn from_number(number: u8) -> Option<RequestRejection> {
        usize::from(number).checked_sub(1).and_then(|index| Self::ALL.get(index)).copied()
    }

    /// Returns the status of the response.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            RequestRejection::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            RequestRejection::UnknownTransferEncoding => StatusCode::NOT_IMPLEMENTED,
            RequestRejection::TargetTooLong => StatusCode::URI_TOO_LONG,
            RequestRejection::HeadTooLarge
            | RequestRejection::TooManyFields
            | RequestRejection::TrailersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the reason for the response body and the debug log.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            RequestRejection::RequestLine => "malformed request line",
            RequestRejection::Method => "malformed method",
            RequestRejection::Target => "malformed request target",
            RequestRejection::Version => "only HTTP/1.0 and HTTP/1.1 are supported here",
            RequestRejection::MissingHost => "missing Host header",
            RequestRejection::MultipleHosts => "more than one Host header",
            RequestRejection::Host => "malformed Host header",
            RequestRejection::FieldName => "malformed header name",
            RequestRejection::FieldValue => "a header value contains a control character",
            RequestRejection::FoldedField => "a header is folded over several lines",
            RequestRejection::ContentLength => "malformed Content-Length",
            RequestRejection::MultipleContentLengths => "more than one Content-Length",
            RequestRejection::LengthAndEncoding => "both Content-Length and Transfer-Encoding",
            RequestRejection::EncodingInHttp10 => "Transfer-Encoding in an HTTP/1.0 request",
            RequestRejection::TransferEncoding => "malformed Transfer-Encoding",
            RequestRejection::UnknownTransferEncoding => {
                "the only supported Transfer-Encoding is chunked"
            }
            RequestRejection::TargetTooLong => "the request target is too long",
            RequestRejection::HeadTooLarge => "the request head is larger than max-header-size",
            RequestRejection::TooManyFields => "more than 100 header fields",
            RequestRejection::ChunkSize => "malformed chunk size",
            RequestRejection::ChunkExtension => "malformed or too long chunk extension",
            RequestRejection::ChunkTooLong => "a chunk is longer than its size",
            RequestRejection::Trailer => "malformed trailer section",
            RequestRejection::TrailersTooLarge => "the trailer section is too large",
            RequestRejection::TlsRecord => "this port speaks plain HTTP, not TLS",
        }
    }

    /// Returns the complete response to send before the connection is closed.
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
    fn rejections_round_trip_through_their_numbers() {
        assert_eq!(RequestRejection::from_number(0), None);
        for rejection in RequestRejection::ALL {
            assert_eq!(RequestRejection::from_number(rejection as u8), Some(rejection));
        }
        assert_eq!(RequestRejection::from_number(RequestRejection::ALL.len() as u8 + 1), None);
    }

    #[test]
    fn response_has_a_length_and_closes_the_connection() {
        let text = String::from_utf8(RequestRejection::Host.response()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
    }
}
