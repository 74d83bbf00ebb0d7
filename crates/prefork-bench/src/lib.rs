//! Load tests of HTTP servers that see which process answers: the load generator, faults under load, servers side by side, and
//! the reports of all three.

pub mod bench;
pub mod compare;
pub mod demo;
