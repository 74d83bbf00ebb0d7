//! Logger of the command: writes one line per record to standard error without blocking on its reader.

use tokio_prefork::log_output::{self, LogFormat, LogOutput};

/// Installs the logger. `filter` must be a valid filter: it is checked with the configuration.
pub(crate) fn init_logger(filter: &str, format: LogFormat) {
    log_output::init_log_output(format);
    let mut builder = env_logger::Builder::new();
    if !filter.contains("notify") {
        // It warns about each watched directory that is gone.
        builder.filter_module("notify", log::LevelFilter::Off);
    }
    builder.parse_filters(filter).format(log_output::write_record);
    builder.target(env_logger::Target::Pipe(Box::new(LogOutput)));
    // Fails only if a logger is already installed, which is then kept.
    let _ = builder.try_init();
}

/// Logs that a reload has found other settings of the log, which stay as they are.
pub(crate) fn warn_about_changed_log(wanted: (&str, LogFormat), current: (&str, LogFormat)) {
    for (key, is_same) in [("log", wanted.0 == current.0), ("log-format", wanted.1 == current.1)] {
        if !is_same {
            log::warn!("{key} has changed in the configuration: restart or upgrade to apply it");
        }
    }
}
