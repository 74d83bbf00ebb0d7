//! The W3C trace context of a request: the headers `traceparent` and `tracestate`.

use std::fmt;

use hyper::Request;
use hyper::http::request::Parts;
use hyper::http::{Extensions, HeaderMap};

use super::ConnectionInfo;

/// Length of `traceparent` in version 00: `00-TRACE_ID-PARENT_ID-FLAGS`.
const TRACEPARENT_BYTES: usize = 55;

/// The flag that the caller may have recorded the trace.
const SAMPLED: u8 = 1;

/// Maximum number of members of `tracestate`.
const MAX_STATE_MEMBERS: usize = 32;

/// The distributed trace that a request belongs to, as its header `traceparent` says (W3C Trace Context).
///
/// The server passes `traceparent` and `tracestate` on to the application untouched, whether they are valid or not. This is what they
/// say if they are: as the specification asks for, a malformed `traceparent` counts as none, and a malformed `tracestate`
/// is ignored without the trace.
///
/// The context of a client is a claim, not a fact: anybody can name any trace. It is fit for finding lines that belong
/// together. Decide by it what is worth recording only if [`TraceContext::is_from_trusted_proxy`].
///
/// ```
/// use hyper::Request;
/// use tokio_prefork::TraceContext;
///
/// let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let request = Request::builder().header("traceparent", header).body(()).unwrap();
/// let trace = TraceContext::of(&request).unwrap();
/// assert_eq!(trace.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert!(trace.is_sampled());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    parent: TraceParent,
    state: Option<String>,
    is_from_trusted_proxy: bool,
}

impl TraceContext {
    /// Returns the trace context of `request`; `None` if it has none that is valid.
    pub fn of<B>(request: &Request<B>) -> Option<TraceContext> {
        TraceContext::new(request.headers(), request.extensions())
    }

    /// Returns the trace context of the request with this head; `None` if it has none that is valid.
    pub fn of_parts(parts: &Parts) -> Option<TraceContext> {
        TraceContext::new(&parts.headers, &parts.extensions)
    }

    fn new(headers: &HeaderMap, extensions: &Extensions) -> Option<TraceContext> {
        let connection = extensions.get::<ConnectionInfo>();
        Some(TraceContext {
            parent: TraceParent::of_headers(headers)?,
            state: read_state(headers),
            is_from_trusted_proxy: connection
                .is_some_and(|one| one.trusted_for_headers().is_some()),
        })
    }

    /// Returns the id of the whole trace.
    pub fn trace_id(&self) -> TraceId {
        self.parent.trace_id
    }

    /// Returns the id of the caller's span, the parent of spans for this request.
    pub fn parent_id(&self) -> ParentId {
        self.parent.parent_id
    }

    /// Returns the flags. Of those, version 00 defines bit 0; see [`TraceContext::is_sampled`].
    pub fn flags(&self) -> u8 {
        self.parent.flags
    }

    /// Returns whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.parent.flags & SAMPLED != 0
    }

    /// Returns the members of `tracestate`, joined by commas: what tracing systems add to the trace. `None` if there are none, or if
    /// one is malformed.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Returns whether the request comes from a proxy in [`trusted_proxies`](crate::ConfigBuilder::trusted_proxies).
    pub fn is_from_trusted_proxy(&self) -> bool {
        self.is_from_trusted_proxy
    }
}

/// The id of a trace, never 0. `Display` writes 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// Returns the id as a number.
    pub fn to_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

/// The id of a span, never 0. `Display` writes 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParentId(u64);

impl ParentId {
    /// Returns the id as a number.
    pub fn to_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ParentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ParentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParentId({self})")
    }
}

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceParent {
    pub(crate) trace_id: TraceId,
    parent_id: ParentId,
    flags: u8,
}

impl TraceParent {
    /// Returns what the only `traceparent` says; `None` if there is none or more than one, or if it is malformed.
    pub(crate) fn of_headers(headers: &HeaderMap) -> Option<TraceParent> {
        let mut values = headers.get_all("traceparent").iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        TraceParent::parse(value.as_bytes())
    }

    /// Parses `VERSION-TRACE_ID-PARENT_ID-FLAGS`. Of a later version than 00, what follows the flags after a hyphen is skipped.
    fn parse(value: &[u8]) -> Option<TraceParent> {
        let (known, more) = value.split_at_checked(TRACEPARENT_BYTES)?;
        let hyphens = [known[2], known[35], known[52]];
        let version = parse_hex(&known[..2])? as u8;
        let is_valid_end = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more[0] == b'-',
        };
        let trace_id = parse_hex(&known[3..35])?;
        let parent_id = parse_hex(&known[36..52])? as u64;
        let flags = parse_hex(&known[53..])? as u8;
        let is_valid = hyphens == *b"---" && is_valid_end && trace_id != 0 && parent_id != 0;
        // Flags of later versions may mean something else, except for this one.
        let flags = if version == 0 { flags } else { flags & SAMPLED };
        let (trace_id, parent_id) = (TraceId(trace_id), ParentId(parent_id));
        is_valid.then_some(TraceParent { trace_id, parent_id, flags })
    }
}

/// Parses lower-case hexadecimal digits.
fn parse_hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// Returns the members of all `tracestate` headers; `None` if there are none, too many, or one is malformed.
fn read_state(headers: &HeaderMap) -> Option<String> {
    let mut members = Vec::new();
    for value in headers.get_all("tracestate") {
        let value = value.to_str().ok()?;
        // Members may be empty.
        members.extend(
            value.split(',').map(|one| one.trim_matches([' ', '\t'])).filter(|one| !one.is_empty()),
        );
    }
    let keys: Option<Vec<&str>> = members.iter().map(|member| parse_member(member)).collect();
    let keys = keys.filter(|keys| (1..=MAX_STATE_MEMBERS).contains(&keys.len()))?;
    let is_repeated = |(n, key): (usize, &&str)| keys[..n].contains(key);
    (!keys.iter().enumerate().any(is_repeated)).then(|| members.join(","))
}

/// Returns the key of a member `KEY=VALUE`; `None` if it is malformed.
fn parse_member(member: &str) -> Option<&str> {
    let (key, value) = member.split_once('=')?;
    let is_key_char = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let is_name = |name: &str, max: usize, may_begin_with_digit: bool| {
        let first = name.as_bytes().first();
        let begins = first.is_some_and(|c| {
            c.is_ascii_lowercase() || (may_begin_with_digit && c.is_ascii_digit())
        });
        begins && name.len() <= max && name.bytes().all(is_key_char)
    };
    let is_valid_key = match key.split_once('@') {
        Some((tenant, system)) => is_name(tenant, 241, true) && is_name(system, 14, false),
        None => is_name(key, 256, true),
    };
    let is_value_char = |c: u8| matches!(c, b' '..=b'+' | b'-'..=b'<' | b'>'..=b'~');
    let is_valid_value = (1..=256).contains(&value.len()) && value.bytes().all(is_value_char);
    (is_valid_key && is_valid_value).then_some(key)
}

#[cfg(test)]
mod tests {
    use hyper::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn context(parents: &[&str], states: &[&str]) -> Option<TraceContext> {
        let mut request = Request::builder();
        for (name, values) in [("traceparent", parents), ("tracestate", states)] {
            for value in values {
                request = request.header(name, *value);
            }
        }
        TraceContext::of(&request.body(()).expect("a request"))
    }

    #[test]
    fn a_valid_traceparent_has_ids_and_flags() {
        let trace = context(&[VALID], &[]).expect("valid");
        assert_eq!(trace.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.parent_id().to_string(), "00f067aa0ba902b7");
        assert_eq!((trace.flags(), trace.is_sampled(), trace.state()), (1, true, None));
        assert!(!trace.is_from_trusted_proxy());
        let unsampled = context(&[&VALID.replace("-01", "-fe")], &[]).expect("valid");
        assert_eq!((unsampled.flags(), unsampled.is_sampled()), (0xfe, false));
    }

    #[test]
    fn later_versions_may_have_more_fields_and_other_flags() {
        for value in
            [VALID.replace("00-4", "cc-4"), VALID.replace("00-4", "01-4") + "-what.the=future"]
        {
            let trace = context(&[&value], &[]).unwrap_or_else(|| panic!("{value}"));
            assert!(trace.is_sampled());
        }
        let other_flags = VALID.replace("00-4", "fe-4").replace("-01", "-ff");
        assert_eq!(context(&[&other_flags], &[]).expect("valid").flags(), 1);
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        for value in [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}-00"),
            &format!("{VALID}0"),
            &VALID.replace("00-4", "ff-4"),
            &VALID.replace("00-4", "0x-4"),
            &(VALID.replace("00-4", "01-4") + "0"),
            &VALID.replace("4bf92f35", "4BF92F35"),
            &VALID.replace("4bf92f35", "4bf92f3g"),
            &VALID.replace("-00f067", "_00f067"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &VALID.replace("-01", "-0A"),
            &VALID.replace("-01", "- 1"),
        ] {
            assert_eq!(context(&[value], &[]), None, "{value:?}");
        }
        assert_eq!((context(&[], &["a=1"]), context(&[VALID, VALID], &[])), (None, None));
    }

    #[test]
    fn tracestate_is_joined_and_ignored_if_malformed() {
        let state = |values: &[&str]| {
            context(&[VALID], values).expect("the trace").state().map(str::to_string)
        };
        assert_eq!(
            state(&["a=1,b=2", "tenant@sys=x y"]).as_deref(),
            Some("a=1,b=2,tenant@sys=x y")
        );
        assert_eq!(state(&[" a=1 ,, b=2 ,"]).as_deref(), Some("a=1,b=2"));
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        assert!(state(&[&many[..32].join(",")]).is_some());
        for bad in [
            "",
            ",",
            "a",
            "a=",
            "=1",
            "A=1",
            "a=1,a=2",
            "a=b=c",
            "a b=1",
            "a@@b=1",
            "a@1b=1",
            &many.join(","),
        ] {
            assert_eq!(state(&[bad]), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceParent::parse(&bytes);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert("tracestate", value);
                let _ = read_state(&headers);
            }
        }
    }
}
