//! The request of a load in the form of HTTP/2.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use http::{Request, Uri};

use crate::load::plan::{LoadPlan, split_header};

/// Header fields that belong to a connection of HTTP/1.1 (RFC 9113, 8.2.2).
const CONNECTION_FIELDS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// A request, built once and sent many times.
#[derive(Debug, Clone)]
pub(crate) struct Http2Request {
    pub(crate) head: Request<()>,
    pub(crate) body: Option<Bytes>,
}

impl Http2Request {
    /// Builds the request of a plan.
    ///
    /// # Errors
    /// Names what HTTP/2 cannot express.
    pub(crate) fn from_plan(plan: &LoadPlan) -> Result<Http2Request, String> {
        let mut authority = plan.target.host_header.clone();
        let mut fields = Vec::new();
        for line in &plan.headers {
            let (name, value) = split_header(line)?;
            let name = HeaderName::try_from(name).map_err(|e| format!("{line:?}: {e}"))?;
            match name == HOST {
                true => authority = value.to_string(),
                false => fields.push((
                    name,
                    HeaderValue::try_from(value).map_err(|e| format!("{line:?}: {e}"))?,
                )),
            }
        }
        let scheme = if plan.target.is_https() { "https" } else { "http" };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(authority.as_str())
            .path_and_query(plan.target.request_target.as_str());
        let uri = uri.build().map_err(|e| format!("{}: {e}", plan.target))?;
        let head = Request::builder().method(plan.method.as_str()).uri(uri).body(());
        let mut head = head.map_err(|e| format!("{}: {e}", plan.method))?;
        for (name, value) in fields {
            head.headers_mut().append(name, value);
        }
        let body = plan.body.clone().filter(|body| !body.is_empty()).map(Bytes::from);
        if (plan.body.is_some() || plan.method_defines_content())
            && !head.headers().contains_key(CONTENT_LENGTH)
        {
            let length = body.as_ref().map_or(0, Bytes::len);
            head.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(Http2Request { head, body })
    }
}

/// Checks that a header field may be sent over HTTP/2.
///
/// # Errors
/// The field belongs to HTTP/1.1.
pub(crate) fn validate_http2_header(name: &str) -> Result<(), String> {
    match CONNECTION_FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field)) {
        true => Err(format!("--header {name}: HTTP/2 has no such header field; leave it out")),
        false => Ok(()),
    }
}
