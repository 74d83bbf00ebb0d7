//! Load tests of HTTP servers that show which process answered: a load generator with fault injection, a
//! comparison of servers, and a demonstration of CPU-bound work.
//!
//! Each of the three returns a report that prints as a text table or as JSON; the first two also as one HTML
//! page.

pub(crate) mod chaos;
pub mod compare;
pub mod cpu_demo;
pub mod job_costs;
pub mod load;
pub mod load_kinds;
pub(crate) mod report_format;
pub mod run_environment;
pub mod scenario;
