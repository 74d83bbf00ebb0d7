//! Settings of the application that are part of the configuration.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// The settings in type-erased form, so that a reload replaces configuration and settings together.
#[derive(Clone, Default)]
pub(super) struct AppSettings(pub(super) Option<Arc<dyn Any + Send + Sync>>);

impl fmt::Debug for AppSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "AppSettings" } else { "None" })
    }
}
