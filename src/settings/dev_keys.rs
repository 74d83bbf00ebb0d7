//! The keys for development, which the verbs that run a cluster have.

/// Heading of the keys in the help.
pub(super) const DEVELOPMENT: &str = "Development";

/// Returns the keys `watch`, `watch-ignore`, `watch-poll` and `overlay` for settings with the fields `watch` and `overlay`.
macro_rules! dev_keys {
    ($settings:ty, $auto_paths:literal, $overlay:literal) => {
        [
            tokio_prefork::cli::Key::<$settings>::new(
                "watch",
                $crate::settings::dev_keys::DEVELOPMENT,
                tokio_prefork::cli::Field::List {
                    value_name: "PATH",
                    may_be_empty: true,
                    clear: |s| s.watch.paths.clear(),
                    add: |s, text| s.watch.add_path(text),
                    format: |s| s.watch.format_paths(),
                },
                concat!(
                    "Reload when files below this path change; auto, or the flag alone, is ",
                    $auto_paths
                ),
            )
            .value_if_missing($crate::dev::AUTO_PATHS),
            tokio_prefork::cli::Key::<$settings>::new(
                "watch-ignore",
                $crate::settings::dev_keys::DEVELOPMENT,
                tokio_prefork::cli::Field::List {
                    value_name: "GLOB",
                    may_be_empty: true,
                    clear: |s| s.watch.ignored.clear(),
                    add: |s, text| s.watch.add_ignored(text),
                    format: |s| s.watch.ignored.join(", "),
                },
                "With watch: ignore these files too, besides those of .gitignore and .ignore, in their syntax",
            ),
            tokio_prefork::cli::Key::<$settings>::new(
                "watch-poll",
                $crate::settings::dev_keys::DEVELOPMENT,
                tokio_prefork::cli::Field::OptionalDuration(|s| &mut s.watch.poll_interval),
                "With watch: read the files so often, for file systems whose changes the kernel does not report",
            ),
            tokio_prefork::cli::Key::<$settings>::new(
                "overlay",
                $crate::settings::dev_keys::DEVELOPMENT,
                tokio_prefork::cli::Field::Switch(|s| &mut s.overlay),
                $overlay,
            ),
        ]
    };
}
pub(super) use dev_keys;
