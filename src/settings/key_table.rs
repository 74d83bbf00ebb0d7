//! Table of all configuration keys, the source of the flags, their help, the environment variables and the TOML keys.
//!
//! A new key is one new row, plus a variant of [`SettingField`] if its type is new.

use super::key::{EnvAlias, Key, SettingField};
use super::value_syntax;

/// Headings of `prefork serve --help`, in display order.
mod heading {
    pub(super) const LISTENING: &str = "Listening";
    pub(super) const WORKERS: &str = "Workers";
    pub(super) const POOL: &str = "CPU pool";
    pub(super) const RELOADING: &str = "Reloading";
    pub(super) const STOPPING: &str = "Stopping";
    pub(super) const HTTP: &str = "HTTP";
    pub(super) const APPLICATION: &str = "Built-in application";
    pub(super) const GENERAL: &str = "General";
}

/// All keys, grouped by heading.
pub(crate) static KEYS: &[Key] = &[
    Key {
        short: Some('b'),
        aliases: &[EnvAlias { var: "PORT", convert: value_syntax::port_to_bind }],
        ..key(
            "bind",
            heading::LISTENING,
            SettingField::Addresses(|d| &mut d.config.bind),
            "Listen on HOST:PORT, :PORT, unix:PATH, unix:@NAME or fd://N (may be repeated)",
        )
    },
    key(
        "unix-mode",
        heading::LISTENING,
        SettingField::FileMode(|d| &mut d.config.unix_mode),
        "Permissions of Unix sockets in octal, such as 0660; unix:PATH?mode=0660 sets them for one socket",
    ),
    key(
        "unix-owner",
        heading::LISTENING,
        SettingField::UserOrGroup(|d| &mut d.config.unix_owner),
        "Owner of Unix sockets, as a name or uid; unix:PATH?owner=NAME sets it for one socket",
    ),
    key(
        "unix-group",
        heading::LISTENING,
        SettingField::UserOrGroup(|d| &mut d.config.unix_group),
        "Group of Unix sockets, as a name or gid; unix:PATH?group=NAME sets it for one socket",
    ),
    key(
        "backlog",
        heading::LISTENING,
        SettingField::Count(|d| &mut d.config.backlog),
        "Maximum number of connections in the kernel's accept queue",
    ),
    key(
        "max-queue-wait",
        heading::LISTENING,
        SettingField::OptionalDuration(|d| &mut d.config.max_queue_wait),
        "Answer 503 to connections that waited longer than this in the accept queue, or off",
    ),
    key(
        "tcp-keep-alive",
        heading::LISTENING,
        SettingField::OptionalDuration(|d| &mut d.config.tcp_keep_alive),
        "Close TCP connections whose peer host has been unreachable for this long, or off",
    ),
    key(
        "dispatch",
        heading::LISTENING,
        SettingField::Dispatch(|d| &mut d.config.dispatch),
        "How connections are distributed: shared, round-robin, reuseport, least-conn or ip-hash",
    ),
    key(
        "model",
        heading::WORKERS,
        SettingField::Model(|d| &mut d.config.model),
        "Concurrency model: prefork (worker processes); single, threads or thread-per-core (one process)",
    ),
    Key {
        short: Some('w'),
        aliases: &[EnvAlias { var: "WEB_CONCURRENCY", convert: value_syntax::keep_text }],
        ..key(
            "workers",
            heading::WORKERS,
            SettingField::Workers(|d| &mut d.config.workers),
            "Number of worker processes or threads; auto is one per core",
        )
    },
    key(
        "worker-connections",
        heading::WORKERS,
        SettingField::Count(|d| &mut d.config.worker_connections),
        "Open connections per worker; at this limit a worker stops accepting",
    ),
    key(
        "boot-timeout",
        heading::WORKERS,
        SettingField::Duration(|d| &mut d.config.boot_timeout),
        "Timeout for a new worker to become ready",
    ),
    key(
        "boot-attempts",
        heading::WORKERS,
        SettingField::Count(|d| &mut d.config.boot_attempts),
        "Exit after N failed boot rounds if no worker has ever become ready",
    ),
    key(
        "min-uptime",
        heading::WORKERS,
        SettingField::Duration(|d| &mut d.config.min_uptime),
        "Respawn with back-off a worker that exits within this time after it became ready",
    ),
    key(
        "max-requests",
        heading::WORKERS,
        SettingField::OptionalCount(|d| &mut d.config.max_requests),
        "Replace a worker after N requests, minus up to 20 % jitter; or off",
    ),
    key(
        "max-rss",
        heading::WORKERS,
        SettingField::OptionalByteCount(|d| &mut d.config.max_rss),
        "Replace a worker gracefully when its resident memory exceeds this, or off",
    ),
    key(
        "max-rss-hard",
        heading::WORKERS,
        SettingField::OptionalByteCount(|d| &mut d.config.max_rss_hard),
        "Kill and replace a worker when its resident memory exceeds this, or off",
    ),
    key(
        "max-lifetime",
        heading::WORKERS,
        SettingField::OptionalDuration(|d| &mut d.config.max_lifetime),
        "Replace a worker at this age, minus up to 20 % jitter; or off",
    ),
    key(
        "stall-warn",
        heading::WORKERS,
        SettingField::OptionalDuration(|d| &mut d.config.stall_warn),
        "Log the current request when a worker's event loop is blocked for this long, or off",
    ),
    key(
        "stall-timeout",
        heading::WORKERS,
        SettingField::OptionalDuration(|d| &mut d.config.stall_timeout),
        "Kill and replace a worker whose event loop is blocked for this long, or off",
    ),
    key(
        "pool-threads",
        heading::POOL,
        SettingField::AutoCount(|d| &mut d.config.pool_threads),
        "Threads per worker for CPU-bound jobs; auto divides the cores among the workers",
    ),
    key(
        "pool-queue",
        heading::POOL,
        SettingField::Count(|d| &mut d.config.pool_queue),
        "Jobs per worker that may wait for a thread; further jobs are rejected",
    ),
    key(
        "pool-nice",
        heading::POOL,
        SettingField::Count(|d| &mut d.config.pool_nice),
        "Niceness of the pool threads relative to the event loop: 0 to 19",
    ),
    key(
        "pool-newest-first",
        heading::POOL,
        SettingField::Switch(|d| &mut d.config.pool_newest_first),
        "Run the newest job first while the queue is more than half full",
    ),
    key(
        "reload-surge",
        heading::RELOADING,
        SettingField::AutoCount(|d| &mut d.config.reload_surge),
        "Extra workers that a reload may start at a time; auto is a quarter of the workers",
    ),
    key(
        "reload-max-unavailable",
        heading::RELOADING,
        SettingField::Count(|d| &mut d.config.reload_max_unavailable),
        "Workers that may be unavailable during a reload",
    ),
    key(
        "graceful-timeout",
        heading::STOPPING,
        SettingField::Duration(|d| &mut d.config.graceful_timeout),
        "How long a stopping worker may take to finish its requests before it is killed",
    ),
    key(
        "drain-delay",
        heading::STOPPING,
        SettingField::Duration(|d| &mut d.config.drain_delay),
        "How long to keep accepting after a stop while /readyz answers 503, so that load balancers notice",
    ),
    key(
        "linger-timeout",
        heading::STOPPING,
        SettingField::Duration(|d| &mut d.config.linger_timeout),
        "How long a stopping worker keeps idle connections open for late requests",
    ),
    key(
        "hand-over",
        heading::STOPPING,
        SettingField::Switch(|d| &mut d.config.hand_over),
        "Pass the idle connections of a worker that is being replaced to another worker",
    ),
    key(
        "header-timeout",
        heading::HTTP,
        SettingField::Duration(|d| &mut d.config.header_timeout),
        "Timeout for a client to send a complete request head",
    ),
    key(
        "keep-alive-timeout",
        heading::HTTP,
        SettingField::Duration(|d| &mut d.config.keep_alive_timeout),
        "Close keep-alive connections that are idle for this long",
    ),
    key(
        "body-timeout",
        heading::HTTP,
        SettingField::OptionalDuration(|d| &mut d.config.body_timeout),
        "Timeout for the next bytes of a request body, then 408; or off",
    ),
    key(
        "send-timeout",
        heading::HTTP,
        SettingField::OptionalDuration(|d| &mut d.config.send_timeout),
        "Timeout for a client to read the next bytes of a response, then close; or off",
    ),
    key(
        "min-body-rate",
        heading::HTTP,
        SettingField::OptionalRate(|d| &mut d.config.min_body_rate),
        "Minimum bytes per second of a request body while waiting for the client, below it 408; or off",
    ),
    key(
        "min-send-rate",
        heading::HTTP,
        SettingField::OptionalRate(|d| &mut d.config.min_send_rate),
        "Minimum bytes per second of a response while waiting for the client, below it close; or off",
    ),
    key(
        "request-timeout",
        heading::HTTP,
        SettingField::OptionalDuration(|d| &mut d.config.request_timeout),
        "Timeout for a whole request including its response, then 503 or close; or off",
    ),
    key(
        "half-close",
        heading::HTTP,
        SettingField::HalfClose(|d| &mut d.config.half_close),
        "When a client shuts down its sending side: finish the request, probe the client with a 102, or cancel",
    ),
    key(
        "max-header-size",
        heading::HTTP,
        SettingField::MemorySize(|d| &mut d.config.max_header_size),
        "Maximum size of a request head, beyond it 431",
    ),
    key(
        "pipeline-flush",
        heading::HTTP,
        SettingField::Switch(|d| &mut d.config.pipeline_flush),
        "Has no effect: responses of pipelined requests are always written together",
    ),
    key(
        "http2",
        heading::HTTP,
        SettingField::Switch(|d| &mut d.config.http2),
        "Accept HTTP/2 without TLS (prior knowledge)",
    ),
    key(
        "root",
        heading::APPLICATION,
        SettingField::Directory(|d| &mut d.app.root),
        "Serve the files in this directory",
    ),
    key(
        "fallback",
        heading::APPLICATION,
        SettingField::File(|d| &mut d.app.fallback),
        "With root: serve this file for paths that do not exist, for single-page applications",
    ),
    key(
        "error-page-404",
        heading::APPLICATION,
        SettingField::File(|d| &mut d.app.error_page_404),
        "With root: send this file as the body of 404 responses",
    ),
    key(
        "cache-control",
        heading::APPLICATION,
        SettingField::HeaderValue(|d| &mut d.app.cache_control),
        "With root: value of Cache-Control in file responses",
    ),
    key(
        "dotfiles",
        heading::APPLICATION,
        SettingField::Switch(|d| &mut d.app.dotfiles),
        "With root: serve files and directories whose names start with a dot",
    ),
    key(
        "follow-symlinks",
        heading::APPLICATION,
        SettingField::Switch(|d| &mut d.app.follow_symlinks),
        "With root: follow symbolic links that lead outside it",
    ),
    key(
        "health-paths",
        heading::APPLICATION,
        SettingField::Switch(|d| &mut d.app.health_paths),
        "Answer /healthz and /readyz; files at these paths are then not served",
    ),
    key(
        "max-body-size",
        heading::APPLICATION,
        SettingField::ByteCount(|d| &mut d.app.max_body_size),
        "Maximum size of a request body, beyond it 413",
    ),
    key(
        "max-buffered-bodies",
        heading::APPLICATION,
        SettingField::ByteCount(|d| &mut d.app.max_buffered_bodies),
        "Memory per worker for request bodies, at least max-body-size; beyond it 503",
    ),
    key(
        "demo",
        heading::APPLICATION,
        SettingField::Switch(|d| &mut d.app.demo),
        "Serve the demonstration paths: /, /cluster, /sleep, /fib, /bytes, /echo, /hash",
    ),
    key(
        "faults",
        heading::APPLICATION,
        SettingField::Switch(|d| &mut d.app.faults),
        "Serve paths that crash or hang a worker on purpose; for tests only",
    ),
    key(
        "user",
        heading::GENERAL,
        SettingField::UserOrGroup(|d| &mut d.config.user),
        "Run the workers as this user (name or uid) without privileges; requires starting as root",
    ),
    key(
        "group",
        heading::GENERAL,
        SettingField::UserOrGroup(|d| &mut d.config.group),
        "Run the workers with this group (name or gid) instead of the user's primary group",
    ),
    key(
        "pid-file",
        heading::GENERAL,
        SettingField::File(|d| &mut d.config.pid_file),
        "Write the primary's pid to this file",
    ),
    key(
        "log-file",
        heading::GENERAL,
        SettingField::File(|d| &mut d.config.log_file),
        "Append the log to this file instead of standard error; SIGUSR1 reopens it",
    ),
    key(
        "control",
        heading::GENERAL,
        SettingField::Control(|d| &mut d.config.control),
        "Control socket of prefork status, reload, ...: a path, off, or auto for one in the runtime directory",
    ),
    key(
        "fd-store",
        heading::GENERAL,
        SettingField::FdStore(|d| &mut d.config.fd_store),
        "Store the listening sockets in systemd: auto (if systemd offers it), on or off",
    ),
    Key {
        aliases: &[EnvAlias { var: "RUST_LOG", convert: value_syntax::keep_text }],
        ..key(
            "log",
            heading::GENERAL,
            SettingField::LogFilter(|d| &mut d.log),
            "What to log: off, error, warn, info, debug, trace or MODULE=LEVEL,...",
        )
    },
];

/// Returns a key without a short flag and without aliases.
const fn key(
    name: &'static str,
    heading: &'static str,
    field: SettingField,
    help: &'static str,
) -> Key {
    Key { name, short: None, heading, field, aliases: &[], help }
}

/// Returns the key with this name.
pub(crate) fn find_key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}
