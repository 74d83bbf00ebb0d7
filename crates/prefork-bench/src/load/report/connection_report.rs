//! How connections were opened, and how evenly they were served.

use serde::Serialize;

use super::nanos_to_micros;
use crate::load::counters::LoadCounters;

/// Times to connect, and the responses of single connections; warm-up included.
///
/// A time of a second or more is a SYN that the kernel has dropped, since the accept queue of the server was full.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ConnectionReport {
    /// Median time to connect, in microseconds.
    pub connect_p50: f64,
    /// 99th percentile.
    pub connect_p99: f64,
    /// Maximum.
    pub connect_max: f64,
    /// Time from the start of the round until every connection had a response, in seconds; `None` if one had none, or if they
    /// were opened as requests became due.
    pub all_answered_s: Option<f64>,
    /// Fewest responses of one of the connections, and of those that have replaced it.
    pub fewest_responses: u64,
    /// Most responses.
    pub most_responses: u64,
}

impl ConnectionReport {
    pub(super) fn from_counters(all: &LoadCounters) -> Option<ConnectionReport> {
        let time = &all.connect_time;
        let at = |quantile| nanos_to_micros(time.value_at_quantile(quantile));
        let [fewest_responses, most_responses] = all.responses_per_connection?;
        Some(ConnectionReport {
            connect_p50: at(0.5),
            connect_p99: at(0.99),
            connect_max: nanos_to_micros(time.max()),
            all_answered_s: (fewest_responses > 0 && all.all_answered > 0)
                .then(|| all.all_answered as f64 / 1e9),
            fewest_responses,
            most_responses,
        })
    }
}
