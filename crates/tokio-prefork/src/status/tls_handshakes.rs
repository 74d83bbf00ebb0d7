//! The TLS handshakes of a worker or a cluster, by their result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::request_counters::bounded_sum;

/// How a TLS handshake ended.
///
/// The order of the variants is that of the words on the scoreboard, so new ones are added at the end.
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "no connection uses TLS"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TlsHandshakeResult {
    /// The handshake is complete, with a signature by the private key.
    Full,
    /// The client has resumed an earlier session.
    Resumed,
    /// The client closed the connection before it sent anything, as health checks of load balancers do.
    Silent,
    /// The client closed the connection in the middle.
    ClientClosed,
    /// The client did not complete it within `tls-handshake-timeout`, or before the end of a drain.
    Timeout,
    /// Closed in favour of a newer one, because `tls-max-handshakes` were in progress.
    Evicted,
    /// The client sent a plain HTTP request.
    PlainHttp,
    /// The first bytes were no TLS record.
    NotTls,
    /// Client and server have no protocol version in common.
    Version,
    /// Client and server have no cipher suite, key exchange or signature scheme in common.
    CipherSuite,
    /// Client and server have no application protocol in common.
    Alpn,
    /// No certificate fits the server name.
    ServerName,
    /// The client's certificate is missing or not accepted.
    ClientCertificate,
    /// The client ended it with an alert, for example because it does not accept the certificate.
    ClientAlert,
    /// The client sent something that is not allowed.
    Protocol,
}

/// How many results there are.
pub(crate) const TLS_HANDSHAKE_RESULTS: usize = 15;

/// The names of the results in JSON and metrics.
const RESULT_NAMES: [&str; TLS_HANDSHAKE_RESULTS] = [
    "full",
    "resumed",
    "silent",
    "client_closed",
    "timeout",
    "evicted",
    "plain_http",
    "not_tls",
    "version",
    "cipher_suite",
    "alpn",
    "server_name",
    "client_certificate",
    "client_alert",
    "protocol",
];

/// How many of them are no failures.
const SUCCESSES: usize = 2;

const _: () = assert!(TlsHandshakeResult::Protocol as usize + 1 == TLS_HANDSHAKE_RESULTS);

impl TlsHandshakeResult {
    /// Returns the name in JSON and metrics.
    #[cfg(feature = "tls")]
    pub(crate) fn name(self) -> &'static str {
        RESULT_NAMES[self as usize]
    }
}

/// Counts TLS handshakes by their result.
///
/// The results are `full` and `resumed`; for those that failed `silent`, `client_closed`, `timeout`, `evicted`, `plain_http`,
/// `not_tls`, `version`, `cipher_suite`, `alpn`, `server_name`, `client_certificate`, `client_alert` and `protocol`. The
/// documentation of TLS explains each.
///
/// In JSON: `{"full": 5, "resumed": 2, "failed": {"timeout": 1}, "in_progress": 3}`, with the failures that have occurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "TlsHandshakesJson", into = "TlsHandshakesJson")]
pub struct TlsHandshakes {
    counts: [u64; TLS_HANDSHAKE_RESULTS],
    in_progress: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct TlsHandshakesJson {
    full: u64,
    resumed: u64,
    failed: BTreeMap<String, u64>,
    in_progress: u64,
}

impl TlsHandshakes {
    /// Builds the counts in the order of `TlsHandshakeResult`. `begun` counts all handshakes, those in progress included.
    pub(crate) fn from_counts(counts: [u64; TLS_HANDSHAKE_RESULTS], begun: u64) -> TlsHandshakes {
        let ended = counts.iter().fold(0, |sum, count| bounded_sum(sum, *count));
        TlsHandshakes { counts, in_progress: begun.saturating_sub(ended) }
    }

    /// Returns the counts in the order of `TlsHandshakeResult`.
    pub(crate) fn counts(&self) -> &[u64; TLS_HANDSHAKE_RESULTS] {
        &self.counts
    }

    /// Returns how many handshakes are in progress.
    pub fn in_progress(&self) -> u64 {
        self.in_progress
    }

    /// Returns how many handshakes ended with this result; 0 for names that are not counted.
    pub fn get(&self, result: &str) -> u64 {
        self.iter().find(|(name, _)| *name == result).map_or(0, |(_, count)| count)
    }

    /// Returns all results with their counts, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULT_NAMES.into_iter().zip(self.counts)
    }

    /// Returns whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == TlsHandshakes::default()
    }

    pub(crate) fn sum_with(&self, other: &TlsHandshakes) -> TlsHandshakes {
        TlsHandshakes {
            counts: std::array::from_fn(|i| bounded_sum(self.counts[i], other.counts[i])),
            in_progress: bounded_sum(self.in_progress, other.in_progress),
        }
    }
}

impl From<TlsHandshakes> for TlsHandshakesJson {
    fn from(handshakes: TlsHandshakes) -> TlsHandshakesJson {
        let failed = handshakes.iter().skip(SUCCESSES).filter(|(_, count)| *count > 0);
        TlsHandshakesJson {
            full: handshakes.get("full"),
            resumed: handshakes.get("resumed"),
            failed: failed.map(|(name, count)| (name.to_string(), count)).collect(),
            in_progress: handshakes.in_progress,
        }
    }
}

impl From<TlsHandshakesJson> for TlsHandshakes {
    fn from(json: TlsHandshakesJson) -> TlsHandshakes {
        let count = |name: &str| match name {
            "full" => json.full,
            "resumed" => json.resumed,
            failure => json.failed.get(failure).copied().unwrap_or(0),
        };
        let counts = RESULT_NAMES.map(|name| bounded_sum(count(name), 0));
        TlsHandshakes { counts, in_progress: bounded_sum(json.in_progress, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_survive_json_and_are_added_up() {
        let mut counts = [0; TLS_HANDSHAKE_RESULTS];
        counts[TlsHandshakeResult::Full as usize] = 5;
        counts[TlsHandshakeResult::Timeout as usize] = 2;
        let handshakes = TlsHandshakes::from_counts(counts, 10);
        assert_eq!((handshakes.in_progress(), handshakes.get("timeout")), (3, 2));
        let json = serde_json::to_string(&handshakes).expect("JSON");
        assert_eq!(json, r#"{"full":5,"resumed":0,"failed":{"timeout":2},"in_progress":3}"#);
        assert_eq!(serde_json::from_str::<TlsHandshakes>(&json).expect("JSON"), handshakes);
        let sum = handshakes.sum_with(&handshakes);
        assert_eq!((sum.get("full"), sum.in_progress()), (10, 6));
        assert!(TlsHandshakes::default().is_empty());
    }

    #[test]
    fn more_results_than_beginnings_leave_none_in_progress() {
        let handshakes = TlsHandshakes::from_counts([u64::MAX; TLS_HANDSHAKE_RESULTS], 7);
        assert_eq!(handshakes.in_progress(), 0);
    }
}
