//! The pages of the admin listener besides health checks and events. A new one is one row.

use std::borrow::Cow;
use std::rc::Rc;

use hyper::header::HeaderMap;

use super::status_reader::StatusReader;
use crate::status::ClusterStatus;

/// What a page is made from.
pub(crate) struct PageRequest<'a> {
    pub(crate) reader: &'a StatusReader,
    /// The headers of the request.
    #[expect(dead_code, reason = "the exposition of metrics selects its format by them")]
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
pub(crate) const PAGES: &[(&str, PageFunction)] = &[("/status", status_page)];

impl PageRequest<'_> {
    /// Returns the status of the cluster.
    pub(crate) fn status(&self) -> Option<Rc<ClusterStatus>> {
        self.reader.status()
    }
}

/// Shows the status as `prefork status --json` does.
fn status_page(request: &PageRequest<'_>) -> Option<PageContent> {
    let json = request.status()?.to_json() + "\n";
    let body = Cow::Owned(json.into_bytes());
    Some(PageContent { content_type: "application/json", body })
}
