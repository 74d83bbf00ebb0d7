//! TLS of a load test: what was agreed on, and the handshakes.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{FailureCounts, nanos_to_micros, ratio_or_zero};
use crate::load::LoadPlan;
use crate::load::tls::NegotiatedTls;
use crate::load::tls::handshake_counters::HandshakeCounters;

/// TLS of a load test; times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct TlsReport {
    /// How the certificate of the server was verified, as a phrase.
    pub verification: String,
    /// Whether new connections resumed earlier sessions.
    pub resumes_sessions: bool,
    /// What the first handshake agreed on; `None` if there was none.
    pub negotiated: Option<NegotiatedTls>,
    /// Completed handshakes per second of the measurement.
    pub handshakes_per_second: f64,
    /// Full handshakes that ended in the measurement.
    pub full: HandshakeSummary,
    /// Resumed handshakes that ended in the measurement.
    pub resumed: HandshakeSummary,
    /// Failed handshakes, by reason; warm-up included.
    pub failed: FailureCounts,
}

/// Number and duration of handshakes; from the first byte sent to the last one received, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct HandshakeSummary {
    /// Number.
    pub count: u64,
    /// Number per second of the measurement.
    pub per_second: f64,
    /// Median duration.
    pub p50: f64,
    /// 99th percentile of the duration.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl TlsReport {
    pub(crate) fn from_counters(
        plan: &LoadPlan,
        counters: &HandshakeCounters,
        measured_s: f64,
    ) -> TlsReport {
        let full = HandshakeSummary::from_histogram(&counters.full, measured_s);
        let resumed = HandshakeSummary::from_histogram(&counters.resumed, measured_s);
        TlsReport {
            verification: plan.tls.describe_verification(),
            resumes_sessions: plan.tls.resume,
            negotiated: counters.negotiated.clone(),
            handshakes_per_second: full.per_second + resumed.per_second,
            full,
            resumed,
            failed: FailureCounts::from_kind_counts(&counters.failed),
        }
    }

    /// Returns what was agreed on as a phrase, such as `TLS 1.3, TLS_AES_128_GCM_SHA256, X25519`.
    pub(crate) fn describe_negotiated(&self) -> String {
        let Some(negotiated) = &self.negotiated else { return "no handshake".to_string() };
        let parts =
            [Some(&negotiated.cipher_suite), negotiated.group.as_ref(), negotiated.alpn.as_ref()];
        let version = negotiated.version.to_string();
        let parts = std::iter::once(&version).chain(parts.into_iter().flatten());
        parts.map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl HandshakeSummary {
    fn from_histogram(durations: &Histogram<u64>, measured_s: f64) -> HandshakeSummary {
        HandshakeSummary {
            count: durations.len(),
            per_second: ratio_or_zero(durations.len() as f64, measured_s),
            p50: nanos_to_micros(durations.value_at_quantile(0.5)),
            p99: nanos_to_micros(durations.value_at_quantile(0.99)),
            max: nanos_to_micros(durations.max()),
        }
    }
}
