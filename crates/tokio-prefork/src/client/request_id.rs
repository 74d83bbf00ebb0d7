//! The id of a request: made by this server, or taken from a trusted proxy.

use std::cell::RefCell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::http::{HeaderMap, HeaderName, HeaderValue};

use super::ConnectionInfo;
use crate::config::{Config, ParseValueError};
use crate::error::{Error, Result};
use crate::shared::SharedHasher;
use prefork_os::system::random_u64;

/// The header that carries the id of a request, in requests and responses.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

thread_local! {
    /// The id of the request whose handler runs on this thread.
    static CURRENT: RefCell<Option<RequestId>> = const { RefCell::new(None) };
}

/// Length of a made id: that of a UUID in text form.
const MADE_ID_BYTES: usize = 36;

/// The id of a request, for looking it up in the logs of all servers that it passes.
///
/// With [`request_id`](crate::ConfigBuilder::request_id) every request has one in its extensions. It is that of the header
/// `X-Request-Id` if the request comes from a proxy in [`trusted_proxies`](crate::ConfigBuilder::trusted_proxies), and a
/// new UUID of version 7 otherwise: unique over all workers, generations and restarts. The header of the request has the
/// same value, so a handler can pass it on; the response gets it unless the handler has set one.
///
/// ```
/// use hyper::Request;
/// use tokio_prefork::RequestId;
///
/// fn id_of<B>(request: &Request<B>) -> &str {
///     request.extensions().get::<RequestId>().map_or("-", RequestId::as_str)
/// }
/// # assert_eq!(id_of(&Request::new(())), "-");
/// ```
#[derive(Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Maximum length of an id in bytes: 128.
    pub const MAX_BYTES: usize = 128;

    /// Returns the id of the request whose handler is being polled on this thread: for loggers, as the library's own. `None` without
    /// [`request_id`](crate::ConfigBuilder::request_id), and in tasks and threads that a handler has started.
    pub fn current() -> Option<RequestId> {
        // Not available while the thread ends.
        CURRENT.try_with(|id| id.try_borrow().ok()?.clone()).ok().flatten()
    }

    /// Runs part of the handler of this request. Meanwhile, the id is the current one.
    pub(crate) fn run_as_current<T>(&self, run: impl FnOnce() -> T) -> T {
        let before = CURRENT.try_with(|current| current.replace(Some(self.clone())));
        let _restore = RestoreCurrent(before.ok().flatten());
        run()
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        // An id is ASCII.
        self.0.to_str().unwrap_or_default()
    }

    /// Returns the id as the value of a header, for requests to other servers.
    pub fn as_header_value(&self) -> &HeaderValue {
        &self.0
    }

    /// Returns the id that the only `X-Request-Id` of a request has. `None` if there is none or more than one, or if it is
    /// not valid.
    fn of_headers(headers: &HeaderMap) -> Option<RequestId> {
        let mut values = headers.get_all(X_REQUEST_ID).iter();
        let value = values.next()?;
        (values.next().is_none() && is_valid_id(value.as_bytes())).then(|| RequestId(value.clone()))
    }
}

/// Returns whether an id is 1 to 128 visible ASCII characters, of which none could end the field of a log line or of HTML.
fn is_valid_id(id: &[u8]) -> bool {
    let is_allowed = |c: &u8| {
        matches!(c, b'!'..=b'~') && !matches!(c, b'"' | b'\'' | b'\\' | b'<' | b'>' | b'&' | b'`')
    };
    (1..=RequestId::MAX_BYTES).contains(&id.len()) && id.iter().all(is_allowed)
}

impl FromStr for RequestId {
    type Err = ParseValueError;

    /// Checks an id.
    ///
    /// # Errors
    /// The text is empty, longer than 128 bytes, or has other characters than visible ASCII without `"'\<>&` and the backtick.
    fn from_str(text: &str) -> std::result::Result<RequestId, ParseValueError> {
        let value = HeaderValue::from_str(text).ok().filter(|_| is_valid_id(text.as_bytes()));
        value.map(RequestId).ok_or_else(|| {
            ParseValueError::new(
                text,
                "is not a request id: give 1 to 128 visible ASCII characters without quotes, backslashes, <, > and &",
            )
        })
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestId").field(&self.as_str()).finish()
    }
}

impl AsRef<str> for RequestId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &RequestId) -> bool {
        self.0 == other.0
    }
}

impl Eq for RequestId {}

impl Hash for RequestId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// Restores the current id of before when it is dropped, also by a panic.
struct RestoreCurrent(Option<RequestId>);

impl Drop for RestoreCurrent {
    fn drop(&mut self) {
        let before = self.0.take();
        let _ = CURRENT.try_with(|current| current.replace(before));
    }
}

/// Gives ids to the requests of a worker, or of one of its threads.
///
/// Its keys are drawn in the worker: a generator that was made before the fork would make the same ids in every worker.
pub(crate) struct RequestIds {
    /// Turns numbers into bits that cannot be guessed without its keys.
    hasher: SharedHasher,
    next_number: AtomicU64,
}

impl RequestIds {
    /// Creates the generator of a worker, if its requests have ids. Call it after the fork.
    ///
    /// # Errors
    /// getrandom(2) fails.
    pub(crate) fn for_worker(config: &Config) -> Result<Option<RequestIds>> {
        let ids = config.request_id.then(RequestIds::new).transpose();
        ids.map_err(|e| Error::system("draw random keys for request ids", e))
    }

    /// Creates a generator with random keys.
    ///
    /// # Errors
    /// getrandom(2) fails.
    fn new() -> io::Result<RequestIds> {
        let keys = [random_u64()?, random_u64()?].map(u128::from);
        let hasher = SharedHasher::with_keys(keys[0] << 64 | keys[1]);
        Ok(RequestIds { hasher, next_number: AtomicU64::new(0) })
    }

    /// Returns the id of a request with these headers that has come over `connection`.
    pub(crate) fn identify(
        &self,
        headers: &HeaderMap,
        connection: Option<&ConnectionInfo>,
    ) -> RequestId {
        let is_trusted = connection.is_some_and(|one| one.trusted_for_headers().is_some());
        let received = if is_trusted { RequestId::of_headers(headers) } else { None };
        received.unwrap_or_else(|| self.make_id(SystemTime::now()))
    }

    /// Makes a UUID of version 7 (RFC 9562): the time in milliseconds, 12 bits that count, and 62 that nobody can guess without the keys.
    fn make_id(&self, now: SystemTime) -> RequestId {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let high = ms << 16 | 0x7000 | (number & 0x0fff);
        let low = 1 << 63 | self.hasher.hash_bytes(&[&number.to_le_bytes()]) >> 2;
        let text = format_uuid((u128::from(high) << 64) | u128::from(low));
        // The text is ASCII.
        RequestId(HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-")))
    }
}

/// Formats a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
fn format_uuid(uuid: u128) -> [u8; MADE_ID_BYTES] {
    let mut text = [b'-'; MADE_ID_BYTES];
    let places = (0..MADE_ID_BYTES).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    for (digit, place) in places.enumerate() {
        let nibble = (uuid >> (124 - 4 * digit)) & 0xf;
        text[place] = b"0123456789abcdef"[nibble as usize];
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn made_ids_are_uuids_of_version_7_that_never_repeat() {
        let at = UNIX_EPOCH + Duration::from_millis(0x0123_4567_89ab);
        let (one, other) = (RequestIds::new().expect("keys"), RequestIds::new().expect("keys"));
        let mut seen = BTreeSet::new();
        for ids in [&one, &other] {
            for _ in 0..1000 {
                let id = ids.make_id(at);
                let text = id.as_str();
                assert!(text.starts_with("01234567-89ab-7") && text.len() == 36, "{text}");
                assert!(matches!(text.as_bytes()[19], b'8'..=b'9' | b'a'..=b'b'), "{text}");
                assert_eq!(text.parse(), Ok(id.clone()));
                assert!(seen.insert(text.to_string()), "{text} was made twice");
            }
        }
        let last = seen.last().expect("ids").clone();
        assert!(
            last < one.make_id(at + Duration::from_millis(1)).to_string(),
            "later ids sort later"
        );
        let digits = format_uuid(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(&digits, b"01234567-89ab-cdef-0011-223344556677");
    }

    #[test]
    fn only_a_single_valid_header_is_an_id() {
        let id_of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value).expect("a value"));
            }
            RequestId::of_headers(&headers).map(|id| id.to_string())
        };
        let longest = [b'x'; RequestId::MAX_BYTES];
        for valid in ["a", "Root=1-67891233-abc;x,y:z/+_.~", "01234567-89ab-7def-8011-223344556677"]
        {
            assert_eq!(id_of(&[valid.as_bytes()]).as_deref(), Some(valid));
        }
        assert!(id_of(&[&longest]).is_some());
        let too_long = [b'x'; RequestId::MAX_BYTES + 1];
        let bad: [&[u8]; 12] = [
            b"",
            b"a b",
            b"a\tb",
            b"a\"b",
            b"a'b",
            b"a\\b",
            b"<a>",
            b"a&b",
            b"a`b",
            b"a\xffb",
            "é".as_bytes(),
            &too_long,
        ];
        for value in bad {
            assert_eq!(id_of(&[value]), None, "{value:?}");
        }
        assert_eq!((id_of(&[]), id_of(&[b"a", b"b"]), id_of(&[b"a", b"a"])), (None, None, None));
        assert!("a b".parse::<RequestId>().is_err() && "é".parse::<RequestId>().is_err());
    }

    #[test]
    fn the_current_id_is_restored_after_a_panic() {
        let (outer, inner) = ("outer".parse::<RequestId>(), "inner".parse::<RequestId>());
        let (outer, inner) = (outer.expect("valid"), inner.expect("valid"));
        assert_eq!(RequestId::current(), None);
        outer.run_as_current(|| {
            let panicking = || -> () { std::panic::resume_unwind(Box::new("as asked")) };
            assert!(std::panic::catch_unwind(|| inner.run_as_current(panicking)).is_err());
            assert_eq!(RequestId::current().as_ref(), Some(&outer));
        });
        assert_eq!(RequestId::current(), None);
    }

    #[test]
    fn an_id_of_nobody_trusted_is_replaced() {
        let ids = RequestIds::new().expect("keys");
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("forged"));
        assert_ne!(ids.identify(&headers, None).as_str(), "forged");
    }
}
