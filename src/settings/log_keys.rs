//! The keys of the log, which every verb that runs a cluster has.

/// Returns the keys `log` and `log-format` for settings with the fields `log` and `log_format`.
macro_rules! log_keys {
    ($settings:ty) => {
        [
            tokio_prefork::cli::Key::<$settings>::new(
                "log",
                "General",
                tokio_prefork::cli::Field::Text {
                    value_name: "FILTER",
                    parse: $crate::settings::log_filter::parse_log_filter,
                    field: |s| &mut s.log,
                },
                "What to log: off, error, warn, info, debug, trace or MODULE=LEVEL,...",
            )
            .env_aliases(&[tokio_prefork::cli::EnvAlias::same_text("RUST_LOG")]),
            tokio_prefork::cli::Key::<$settings>::new(
                "log-format",
                "General",
                tokio_prefork::cli::Field::Other {
                    value_name: "FORMAT",
                    parse: |s, text| {
                        tokio_prefork::cli::parse_value(text).map(|format| s.log_format = format)
                    },
                    format: |s| s.log_format.to_string(),
                },
                "Format of the log: text, or json for one object per line",
            ),
        ]
    };
}
pub(super) use log_keys;
