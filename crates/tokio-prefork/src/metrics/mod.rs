//! The page `/metrics`: the status of the cluster in the text formats of Prometheus and OpenMetrics.
//!
//! [`families`] makes metrics of a status, [`application`] of the application's shared state, and [`text_format`] writes them. All
//! counters come from shared memory in which a worker's counts stay when it dies, so none goes back when workers are replaced.

mod application;
mod families;
mod family;
mod text_format;

use crate::status::ClusterStatus;
use family::MetricFamily;
use text_format::TextFormat;

/// The metrics of a cluster as text.
pub(crate) struct Exposition {
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

/// Writes the metrics of `status` in the format that the `Accept` header of the request prefers: OpenMetrics 1.0, or the text format
/// of Prometheus 0.0.4, which is the default.
pub(crate) fn exposition(status: &ClusterStatus, accept: Option<&str>) -> Exposition {
    let format = TextFormat::from_accept(accept.unwrap_or_default());
    Exposition { content_type: format.content_type(), body: format.write(all_families(status)) }
}

fn all_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    let mut all = families::families_of(status);
    all.extend(application::families_of(&status.shared));
    all
}

#[cfg(test)]
mod tests;
