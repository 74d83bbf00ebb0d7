//! Responses of the file server.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use bytes::Bytes;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, RETRY_AFTER, VARY,
};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, Method, Response, StatusCode};

use super::accept_encoding::{self, Coding};
use super::body::{BodySegment, FileBody};
use super::conditional::{self, PreconditionResult};
use super::entry::{FileEntry, Representation};
use super::ranges::{self, RequestedRange};

/// Maximum number of header fields of a response with a file.
const MAX_RESPONSE_HEADERS: usize = 10;

/// Parts of a request that determine the response for a file.
pub(super) struct FileRequest<'a> {
    /// GET or HEAD.
    pub(super) method: &'a Method,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
}

/// Returns the response with a file: all of it, parts of it, or none if a condition says so.
pub(super) fn file_response(
    entry: &FileEntry,
    request: &FileRequest<'_>,
    cache_control: Option<&HeaderValue>,
) -> Response<FileBody> {
    let (coding, chosen) = select_representation(entry, request.headers);
    let mut headers = HeaderMap::with_capacity(MAX_RESPONSE_HEADERS);
    headers.insert(ETAG, chosen.etag.clone());
    if let Some(date) = &chosen.last_modified {
        headers.insert(LAST_MODIFIED, date.clone());
    }
    if let Some(value) = cache_control {
        headers.insert(CACHE_CONTROL, value.clone());
    }
    if !entry.coded.is_empty() {
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    match conditional::evaluate_preconditions(request.headers, chosen.validators()) {
        PreconditionResult::Proceed => {}
        PreconditionResult::NotModified => {
            return empty_response(StatusCode::NOT_MODIFIED, headers);
        }
        PreconditionResult::Failed => return status_response(StatusCode::PRECONDITION_FAILED),
    }
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    let is_ranged = *request.method == Method::GET
        && conditional::is_range_applicable(request.headers, chosen.validators());
    let wanted = if is_ranged {
        ranges::parse_range_header(request.headers, chosen.length)
    } else {
        RequestedRange::Whole
    };
    match wanted {
        RequestedRange::Whole => {
            headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            whole_file_response(StatusCode::OK, headers, entry, chosen)
        }
        RequestedRange::Parts(parts) => partial_response(headers, entry, chosen, &parts),
        RequestedRange::Unsatisfiable => {
            let mut response = status_response(StatusCode::RANGE_NOT_SATISFIABLE);
            let range = HeaderValue::from_str(&format!("bytes */{}", chosen.length));
            response.headers_mut().extend(range.ok().map(|value| (CONTENT_RANGE, value)));
            response
        }
    }
}

/// Returns a 404 with a file as its body. Without validators: it is not a representation of the path that was asked for.
pub(super) fn error_page_response(
    entry: &FileEntry,
    request: &FileRequest<'_>,
) -> Response<FileBody> {
    let (coding, chosen) = select_representation(entry, request.headers);
    let mut headers = HeaderMap::with_capacity(MAX_RESPONSE_HEADERS);
    if !entry.coded.is_empty() {
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    whole_file_response(StatusCode::NOT_FOUND, headers, entry, chosen)
}

fn select_representation<'a>(
    entry: &'a FileEntry,
    headers: &HeaderMap,
) -> (Option<Coding>, &'a Representation) {
    if entry.coded.is_empty() {
        return (None, &entry.plain);
    }
    let stored: Vec<Coding> = entry.coded.iter().map(|(coding, _)| *coding).collect();
    let coding = accept_encoding::select_coding(headers, &stored);
    (coding, entry.representation(coding))
}

fn whole_file_response(
    status: StatusCode,
    mut headers: HeaderMap,
    entry: &FileEntry,
    chosen: &Representation,
) -> Response<FileBody> {
    headers.insert(CONTENT_TYPE, entry.content_type.clone());
    headers.insert(CONTENT_LENGTH, chosen.content_length.clone());
    let body = match chosen.in_memory() {
        Some(bytes) => FileBody::Memory(bytes.clone()),
        None => FileBody::new(chosen.all_segments()),
    };
    build_response(status, headers, body)
}

fn partial_response(
    mut headers: HeaderMap,
    entry: &FileEntry,
    chosen: &Representation,
    parts: &[Range<u64>],
) -> Response<FileBody> {
    let content_range =
        |part: &Range<u64>| format!("bytes {}-{}/{}", part.start, part.end - 1, chosen.length);
    let mut segments = VecDeque::new();
    let content_type = if let [part] = parts {
        segments.push_back(chosen.segment(part.start, part.end));
        let range = HeaderValue::from_str(&content_range(part));
        headers.extend(range.ok().map(|value| (CONTENT_RANGE, value)));
        entry.content_type.clone()
    } else {
        let boundary = multipart_boundary();
        let kind = entry.content_type.to_str().unwrap_or_default();
        for part in parts {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {}\r\n\r\n",
                content_range(part)
            );
            segments.push_back(BodySegment::Memory(head.into()));
            segments.push_back(chosen.segment(part.start, part.end));
        }
        segments.push_back(BodySegment::Memory(format!("\r\n--{boundary}--\r\n").into()));
        let kind = HeaderValue::from_str(&format!("multipart/byteranges; boundary={boundary}"));
        kind.unwrap_or_else(|_| entry.content_type.clone())
    };
    headers.insert(CONTENT_TYPE, content_type);
    let body = FileBody::new(segments);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(hyper::body::Body::size_hint(&body).lower()));
    build_response(StatusCode::PARTIAL_CONTENT, headers, body)
}

/// Returns a random multipart boundary, which no file content can predict.
fn multipart_boundary() -> String {
    format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

/// Returns a permanent redirect to `location`.
pub(super) fn redirect_response(location: HeaderValue) -> Response<FileBody> {
    let mut response = status_response(StatusCode::MOVED_PERMANENTLY);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Returns a 405: only GET and HEAD are allowed.
pub(super) fn method_not_allowed_response() -> Response<FileBody> {
    let mut response = status_response(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// Returns a response with the status as its text.
pub(super) fn status_response(status: StatusCode) -> Response<FileBody> {
    let mut response = text_response(status, format!("{status}\n"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Returns a response with a line of text.
pub(super) fn text_response(status: StatusCode, text: impl Into<Bytes>) -> Response<FileBody> {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    build_response(status, headers, FileBody::Memory(text.into()))
}

fn empty_response(status: StatusCode, headers: HeaderMap) -> Response<FileBody> {
    build_response(status, headers, FileBody::Memory(Bytes::new()))
}

pub(super) fn build_response(
    status: StatusCode,
    headers: HeaderMap,
    body: FileBody,
) -> Response<FileBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
