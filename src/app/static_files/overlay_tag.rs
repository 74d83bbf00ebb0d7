//! Adds the script of the overlay to HTML files, during development.
//!
//! Such a response always is the whole file without a content coding, and is not to be stored: ranges, entity tags and compressed variants
//! are those of the file without the script.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hyper::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::http::HeaderValue;
use hyper::{HeaderMap, Response, StatusCode};

use super::body::{BodySegment, FileBody};
use super::entry::{FileEntry, Representation};
use super::response::build_response;

/// How much of a file is searched for the beginning of a document.
const SEARCHED_BYTES: usize = 4096;

/// The script element to add. Empty until the primary knows its address, and where there is no overlay.
#[derive(Debug, Clone, Default)]
pub(crate) struct OverlayTag(Arc<OnceLock<String>>);

impl OverlayTag {
    /// Sets the element. The first one counts. Workers that are forked later have it.
    pub(crate) fn set(&self, tag: String) {
        // Set already: the address of the admin listener does not change.
        let _ = self.0.set(tag);
    }

    /// Returns the response with a file and the element, if it is an HTML document.
    pub(super) fn html_response(
        &self,
        entry: &FileEntry,
        status: StatusCode,
    ) -> Option<Response<FileBody>> {
        let tag = self.0.get()?;
        if !entry.content_type.as_bytes().starts_with(b"text/html") || !is_document(&entry.plain) {
            return None;
        }
        let element = BodySegment::Memory(Bytes::from(format!("\n{tag}\n")));
        let mut segments: VecDeque<BodySegment> = entry.plain.all_segments();
        // Browsers move a script after the end of the document into its body.
        segments.push_back(element);
        let body = FileBody::new(segments);
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, entry.content_type.clone());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
        let length = hyper::body::Body::size_hint(&body).lower();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        Some(build_response(status, headers, body))
    }
}

/// Returns whether a file is a document, not a piece of one that a script adds to a page. A large file counts as one.
fn is_document(file: &Representation) -> bool {
    let Some(content) = file.in_memory() else { return true };
    let start = content[..content.len().min(SEARCHED_BYTES)].to_ascii_lowercase();
    [&b"<!doctype"[..], b"<html", b"<head", b"<body"]
        .iter()
        .any(|tag| start.windows(tag.len()).any(|window| window == *tag))
}
