//! The request of a load in the form of HTTP/2.

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Method, Uri};

use super::hpack::RequestBlock;
use crate::load::plan::{LoadPlan, split_header};

/// Header fields that belong to a connection of HTTP/1.1 (RFC 9113, 8.2.2).
const CONNECTION_FIELDS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// A request, encoded once and sent many times.
#[derive(Debug, Clone)]
pub(crate) struct Http2Request {
    pub(super) block: RequestBlock,
    /// Empty sends none.
    pub(super) body: Bytes,
    /// Whether the response has no body, whatever its length says.
    pub(super) is_head_request: bool,
}

impl Http2Request {
    /// Encodes the request of a plan.
    ///
    /// # Errors
    /// Names what HTTP/2 cannot express.
    pub(crate) fn from_plan(plan: &LoadPlan) -> Result<Http2Request, String> {
        let mut authority = plan.target.host_header.clone();
        let mut fields = Vec::new();
        for line in &plan.headers {
            let (name, value) = split_header(line)?;
            let name = HeaderName::try_from(name).map_err(|e| format!("{line:?}: {e}"))?;
            let text = HeaderValue::try_from(value).map_err(|e| format!("{line:?}: {e}"))?;
            match name == HOST {
                true => authority = value.to_string(),
                false => fields.push((name.to_string(), text.as_bytes().to_vec())),
            }
        }
        let scheme = if plan.target.is_https() { "https" } else { "http" };
        let path = plan.target.request_target.as_str();
        let uri = Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query(path);
        uri.build().map_err(|e| format!("{}: {e}", plan.target))?;
        let method = plan.method.parse::<Method>();
        let method = method.map_err(|e| format!("{}: {e}", plan.method))?;
        let body = Bytes::from(plan.body.clone().unwrap_or_default());
        let has_length = fields.iter().any(|(name, _)| name == "content-length");
        if (plan.body.is_some() || plan.method_defines_content()) && !has_length {
            fields.push(("content-length".to_string(), body.len().to_string().into_bytes()));
        }
        let pseudo = [
            (":method", method.as_str()),
            (":scheme", scheme),
            (":authority", &authority),
            (":path", path),
        ];
        let pseudo = pseudo.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        let block = RequestBlock::encode(&[&pseudo[..], &fields[..]].concat());
        Ok(Http2Request { block, body, is_head_request: method == Method::HEAD })
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
