//! Whether the durations of requests are measured.

use super::choice::impl_choice;

/// Whether workers measure how long each request takes, for [`ClusterStatus::durations`](crate::status::ClusterStatus::durations).
///
/// The clock is read twice for each request, about 50 ns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MeasureDurations {
    /// While the admin listener is on.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl_choice!(MeasureDurations, "a setting for durations", { "auto" => Auto, "on" => On, "off" => Off });
