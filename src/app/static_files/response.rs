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
use super::body::{FileBody, Segment};
use super::conditional::{self, Verdict};
use super::entry::{FileEntry, Representation};
use super::ranges::{self, Wanted};

/// Fields of a response with a file, at most.
const MAX_FIELDS: usize = 10;

/// What a response depends on beside the file.
pub(super) struct Question<'a> {
    /// GET or HEAD.
    pub(super) method: &'a Method,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
}

/// The response with a file: all of it, parts of it, or none if a condition says so.
pub(super) fn file(
    entry: &FileEntry,
    question: &Question<'_>,
    cache_control: Option<&HeaderValue>,
) -> Response<FileBody> {
    let (coding, chosen) = negotiate(entry, question.headers);
    let mut headers = HeaderMap::with_capacity(MAX_FIELDS);
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
    match conditional::evaluate(question.headers, chosen.validators()) {
        Verdict::Proceed => {}
        Verdict::NotModified => return empty(StatusCode::NOT_MODIFIED, headers),
        Verdict::Failed => return status(StatusCode::PRECONDITION_FAILED),
    }
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    let is_ranged = *question.method == Method::GET
        && conditional::range_counts(question.headers, chosen.validators());
    let wanted =
        if is_ranged { ranges::wanted(question.headers, chosen.length) } else { Wanted::Whole };
    match wanted {
        Wanted::Whole => {
            headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            whole(StatusCode::OK, headers, entry, chosen)
        }
        Wanted::Parts(parts) => partial(headers, entry, chosen, &parts),
        Wanted::Unsatisfiable => {
            let mut response = status(StatusCode::RANGE_NOT_SATISFIABLE);
            let range = HeaderValue::from_str(&format!("bytes */{}", chosen.length));
            response.headers_mut().extend(range.ok().map(|value| (CONTENT_RANGE, value)));
            response
        }
    }
}

/// A 404 with a file as its body. Without validators: it is not a representation of the path that was asked for.
pub(super) fn error_page(entry: &FileEntry, question: &Question<'_>) -> Response<FileBody> {
    let (coding, chosen) = negotiate(entry, question.headers);
    let mut headers = HeaderMap::with_capacity(MAX_FIELDS);
    if !entry.coded.is_empty() {
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    whole(StatusCode::NOT_FOUND, headers, entry, chosen)
}

fn negotiate<'a>(
    entry: &'a FileEntry,
    headers: &HeaderMap,
) -> (Option<Coding>, &'a Representation) {
    if entry.coded.is_empty() {
        return (None, &entry.plain);
    }
    let stored: Vec<Coding> = entry.coded.iter().map(|(coding, _)| *coding).collect();
    let coding = accept_encoding::preferred(headers, &stored);
    (coding, entry.representation(coding))
}

fn whole(
    status: StatusCode,
    mut headers: HeaderMap,
    entry: &FileEntry,
    chosen: &Representation,
) -> Response<FileBody> {
    headers.insert(CONTENT_TYPE, entry.content_type.clone());
    headers.insert(CONTENT_LENGTH, chosen.content_length.clone());
    let body = match chosen.in_memory() {
        Some(bytes) => FileBody::Memory(bytes.clone()),
        None => FileBody::new(chosen.all()),
    };
    with(status, headers, body)
}

fn partial(
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
        let boundary = boundary();
        let kind = entry.content_type.to_str().unwrap_or_default();
        for part in parts {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {}\r\n\r\n",
                content_range(part)
            );
            segments.push_back(Segment::Memory(head.into()));
            segments.push_back(chosen.segment(part.start, part.end));
        }
        segments.push_back(Segment::Memory(format!("\r\n--{boundary}--\r\n").into()));
        let kind = HeaderValue::from_str(&format!("multipart/byteranges; boundary={boundary}"));
        kind.unwrap_or_else(|_| entry.content_type.clone())
    };
    headers.insert(CONTENT_TYPE, content_type);
    let body = FileBody::new(segments);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(hyper::body::Body::size_hint(&body).lower()));
    with(StatusCode::PARTIAL_CONTENT, headers, body)
}

/// What nobody can have written into a file on purpose.
fn boundary() -> String {
    format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

/// A redirect to `location`, for good.
pub(super) fn redirect(location: HeaderValue) -> Response<FileBody> {
    let mut response = status(StatusCode::MOVED_PERMANENTLY);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Files can only be read.
pub(super) fn method_not_allowed() -> Response<FileBody> {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// A response that says no more than its status.
pub(super) fn status(status: StatusCode) -> Response<FileBody> {
    let mut response = text(status, format!("{status}\n"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A response with a line of text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<FileBody> {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    with(status, headers, FileBody::Memory(text.into()))
}

fn empty(status: StatusCode, headers: HeaderMap) -> Response<FileBody> {
    with(status, headers, FileBody::Memory(Bytes::new()))
}

fn with(status: StatusCode, headers: HeaderMap, body: FileBody) -> Response<FileBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
