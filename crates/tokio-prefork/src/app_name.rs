//! The name of the application, where no configuration is at hand.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The name in the configuration of the cluster that this process started last.
static CONFIGURED_NAME: Mutex<Option<String>> = Mutex::new(None);

/// Returns the name of the application: that of the configuration, or before `serve` that of the executable.
pub(crate) fn app_name() -> String {
    let name = CONFIGURED_NAME.lock().unwrap_or_else(PoisonError::into_inner);
    name.clone().unwrap_or_else(|| executable_name().to_string())
}

/// Records the name in the configuration.
pub(crate) fn set_app_name(name: &str) {
    *CONFIGURED_NAME.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_string());
}

/// Returns the file name of the executable.
pub(crate) fn executable_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let path = std::env::current_exe().ok();
        let name = path.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
        let name = name.unwrap_or_else(|| "server".into());
        // The kernel's mark on the path of a binary that was replaced while it runs.
        name.strip_suffix(" (deleted)").unwrap_or(&name).to_string()
    })
}
