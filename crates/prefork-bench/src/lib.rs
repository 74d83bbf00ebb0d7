//! Load tests of HTTP servers that see which process answers: the load generator, faults under load, servers side by side, and
//! the reports of all three.

pub(crate) mod chaos;
pub mod compare;
pub mod cpu_demo;
pub mod load;
pub(crate) mod report_format;
