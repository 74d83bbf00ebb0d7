//! The pages of the admin listener besides health checks and events. A new one is one row.

use std::borrow::Cow;
use std::rc::Rc;

use hyper::header::{ACCEPT, HeaderMap};

use super::status_reader::StatusReader;
use crate::metrics::{self, Exposition};
use crate::status::ClusterStatus;

/// What a page is made from.
pub(crate) struct PageRequest<'a> {
    pub(crate) reader: &'a StatusReader,
    /// The headers of the request.
    pub(crate) headers: &'a HeaderMap,
}

/// The content of a page.
pub(crate) struct PageContent {
    pub(crate) content_type: &'static str,
    pub(crate) body: Cow<'static, [u8]>,
}

/// Makes a page. `None`: the primary has not published its status yet.
type PageFunction = fn(&PageRequest<'_>) -> Option<PageContent>;

/// The pages by path, in the order in which they are listed.
pub(crate) const PAGES: &[(&str, PageFunction)] =
    &[("/status", status_page), ("/metrics", metrics_page)];

impl PageRequest<'_> {
    /// Returns the status of the cluster.
    pub(crate) fn status(&self) -> Option<Rc<ClusterStatus>> {
        self.reader.status()
    }
}

/// Shows the status as `prefork status --json` does.
fn status_page(request: &PageRequest<'_>) -> Option<PageContent> {
    let mut status = ClusterStatus::clone(&*request.status()?);
    status.read_process_usage();
    let json = status.to_json() + "\n";
    let body = Cow::Owned(json.into_bytes());
    Some(PageContent { content_type: "application/json", body })
}

/// Shows the metrics, in the format that the client prefers.
fn metrics_page(request: &PageRequest<'_>) -> Option<PageContent> {
    let mut status = ClusterStatus::clone(&*request.status()?);
    status.read_process_usage();
    let accept = request.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accept: Vec<&str> = accept.collect();
    let Exposition { content_type, body } = metrics::exposition(&status, Some(&accept.join(",")));
    Some(PageContent { content_type, body: Cow::Owned(body.into_bytes()) })
}
