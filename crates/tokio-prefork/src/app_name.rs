//! The name of the application, for the texts that people see.

use std::sync::OnceLock;

/// Returns the name of the application: the file name of its executable.
pub(crate) fn app_name() -> &'static str {
    static EXECUTABLE_NAME: OnceLock<String> = OnceLock::new();
    EXECUTABLE_NAME.get_or_init(|| {
        let path = std::env::current_exe().ok();
        let name = path.as_deref().and_then(std::path::Path::file_name);
        let name = name.map_or_else(|| "error".into(), |name| name.to_string_lossy().into_owned());
        // The kernel's mark on a binary that was replaced while it runs.
        name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_string)
    })
}
