//! What changed since an earlier run: `prefork compare --baseline FILE`.
//!
//! Both runs are read from the JSON of their reports, so that a report can be compared long after it was made. Their rounds
//! are not paired, so the statistics are those of two samples (`unpaired_ratio`).
//!
//! A machine may be slower today than it was then. So where both runs have the same reference, each round's ratio to the
//! reference is compared, not the value itself; the values are compared too, and shown beside it. The reference itself has
//! nothing to be measured against: whether it changed, or the machine did, cannot be known.

mod changes;
mod environment_differences;
mod html;
mod saved_report;
mod text;
mod unpaired_ratio;

pub use changes::{BaselineChange, BaselineReport, ChangeBasis, ChangeResult};
pub(crate) use html::baseline_section;
pub use saved_report::SavedReport;
pub(crate) use text::write_baseline;
pub use unpaired_ratio::UnpairedRatio;
