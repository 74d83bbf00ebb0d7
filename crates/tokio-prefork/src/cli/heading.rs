//! Headings of the help, in display order.

pub(super) const LISTENING: &str = "Listening";
pub(super) const TLS: &str = "TLS";
pub(super) const WORKERS: &str = "Workers";
pub(super) const POOL: &str = "CPU pool";
pub(super) const RELOADING: &str = "Reloading";
pub(super) const STOPPING: &str = "Stopping";
pub(super) const HTTP: &str = "HTTP";
pub(super) const ACCESS_LOG: &str = "Access log";
pub(super) const GENERAL: &str = super::key::GENERAL_HEADING;
