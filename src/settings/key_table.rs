//! Every key there is, once: this table drives the flags and their help, the environment, the TOML
//! file and `prefork check`. A new key is one new row (and a [`SettingField`] if its type is new).

use super::key::{EnvAlias, Key, SettingField};
use super::value_syntax;

/// Headings of the help, in the order in which the table has them.
mod group {
    pub(super) const LISTENING: &str = "Listening";
    pub(super) const WORKERS: &str = "Workers";
    pub(super) const POOL: &str = "CPU pool";
    pub(super) const RELOADING: &str = "Reloading";
    pub(super) const STOPPING: &str = "Stopping";
    pub(super) const HTTP: &str = "HTTP";
    pub(super) const APPLICATION: &str = "Built-in application";
    pub(super) const GENERAL: &str = "General";
}

/// The table.
pub(crate) static KEYS: &[Key] = &[
    Key {
        short: Some('b'),
        aliases: &[EnvAlias { var: "PORT", convert: value_syntax::port_to_bind }],
        ..key(
            "bind",
            group::LISTENING,
            SettingField::Addresses(|d| &mut d.config.bind),
            "Listen here: HOST:PORT, :PORT, unix:PATH, unix:@NAME or fd://N (may be repeated)",
        )
    },
    key(
        "unix-mode",
        group::LISTENING,
        SettingField::Mode(|d| &mut d.config.unix_mode),
        "Permissions of Unix sockets in octal, as 0660; unix:PATH?mode=0660 is for one",
    ),
    key(
        "unix-owner",
        group::LISTENING,
        SettingField::Name(|d| &mut d.config.unix_owner),
        "User who owns Unix sockets, name or number; unix:PATH?owner=NAME is for one",
    ),
    key(
        "unix-group",
        group::LISTENING,
        SettingField::Name(|d| &mut d.config.unix_group),
        "Group of Unix sockets, name or number; unix:PATH?group=NAME is for one",
    ),
    key(
        "backlog",
        group::LISTENING,
        SettingField::Count(|d| &mut d.config.backlog),
        "Connections the kernel queues before they are accepted",
    ),
    key(
        "max-queue-wait",
        group::LISTENING,
        SettingField::Duration(|d| &mut d.config.max_queue_wait),
        "Answer 503 to a connection that waited for longer before it was accepted; 0 is never",
    ),
    key(
        "tcp-keep-alive",
        group::LISTENING,
        SettingField::OptionalDuration(|d| &mut d.config.tcp_keep_alive),
        "Close TCP connections whose host has vanished after this long; or off",
    ),
    key(
        "dispatch",
        group::LISTENING,
        SettingField::Dispatch(|d| &mut d.config.dispatch),
        "Who gets the next connection: shared, round-robin, reuseport, least-conn or ip-hash",
    ),
    key(
        "model",
        group::WORKERS,
        SettingField::Model(|d| &mut d.config.model),
        "What serves: prefork (processes), single, threads or thread-per-core (one process)",
    ),
    Key {
        short: Some('w'),
        aliases: &[EnvAlias { var: "WEB_CONCURRENCY", convert: value_syntax::unchanged }],
        ..key(
            "workers",
            group::WORKERS,
            SettingField::Workers(|d| &mut d.config.workers),
            "Worker processes, or threads: a number, or auto for one a core",
        )
    },
    key(
        "worker-connections",
        group::WORKERS,
        SettingField::Count(|d| &mut d.config.worker_connections),
        "Open connections a worker takes before it leaves new ones to others",
    ),
    key(
        "boot-timeout",
        group::WORKERS,
        SettingField::Duration(|d| &mut d.config.boot_timeout),
        "How long a worker may take to get ready",
    ),
    key(
        "boot-attempts",
        group::WORKERS,
        SettingField::Count(|d| &mut d.config.boot_attempts),
        "Give up after so many failed rounds if no worker was ever ready",
    ),
    key(
        "min-uptime",
        group::WORKERS,
        SettingField::Duration(|d| &mut d.config.min_uptime),
        "A worker that dies sooner than this after it was ready is crash-looping",
    ),
    key(
        "max-requests",
        group::WORKERS,
        SettingField::Count(|d| &mut d.config.max_requests),
        "Replace a worker after so many requests, less up to a fifth; 0 is never",
    ),
    key(
        "max-rss",
        group::WORKERS,
        SettingField::Length(|d| &mut d.config.max_rss),
        "Replace a worker that uses more memory than this; 0 is never",
    ),
    key(
        "max-rss-hard",
        group::WORKERS,
        SettingField::Length(|d| &mut d.config.max_rss_hard),
        "Kill and replace a worker that uses more memory than this; 0 is never",
    ),
    key(
        "max-lifetime",
        group::WORKERS,
        SettingField::Duration(|d| &mut d.config.max_lifetime),
        "Replace a worker of this age, less up to a fifth; 0 is never",
    ),
    key(
        "stall-warn",
        group::WORKERS,
        SettingField::Duration(|d| &mut d.config.stall_warn),
        "Name the request when an event loop has not turned for this long; 0 is never",
    ),
    key(
        "stall-timeout",
        group::WORKERS,
        SettingField::Duration(|d| &mut d.config.stall_timeout),
        "Kill and replace a worker whose event loop has not turned for this long; 0 is never",
    ),
    key(
        "pool-threads",
        group::POOL,
        SettingField::Count(|d| &mut d.config.pool_threads),
        "Threads for work that computes, a worker; 0 is the cores shared among the workers",
    ),
    key(
        "pool-queue",
        group::POOL,
        SettingField::Count(|d| &mut d.config.pool_queue),
        "Jobs that may wait for a thread, a worker; beyond, they are refused",
    ),
    key(
        "pool-nice",
        group::POOL,
        SettingField::Count(|d| &mut d.config.pool_nice),
        "How much those threads give way to the event loops: 0 to 19",
    ),
    key(
        "pool-newest-first",
        group::POOL,
        SettingField::Switch(|d| &mut d.config.pool_newest_first),
        "While the queue is more than half full, run the newest job first",
    ),
    key(
        "reload-surge",
        group::RELOADING,
        SettingField::Count(|d| &mut d.config.reload_surge),
        "Workers a reload starts beyond the wanted number at a time; 0 is a quarter",
    ),
    key(
        "reload-max-unavailable",
        group::RELOADING,
        SettingField::Count(|d| &mut d.config.reload_max_unavailable),
        "Workers that may be missing during a reload",
    ),
    key(
        "graceful-timeout",
        group::STOPPING,
        SettingField::Duration(|d| &mut d.config.graceful_timeout),
        "How long a stopping worker may finish its requests",
    ),
    key(
        "drain-delay",
        group::STOPPING,
        SettingField::Duration(|d| &mut d.config.drain_delay),
        "How long a stop goes on accepting while /readyz says no, so that balancers notice",
    ),
    key(
        "linger-timeout",
        group::STOPPING,
        SettingField::Duration(|d| &mut d.config.linger_timeout),
        "How long a stopping worker keeps idle connections for late requests",
    ),
    key(
        "hand-over",
        group::STOPPING,
        SettingField::Switch(|d| &mut d.config.hand_over),
        "A worker that is replaced hands its idle connections to another one",
    ),
    key(
        "header-timeout",
        group::HTTP,
        SettingField::Duration(|d| &mut d.config.header_timeout),
        "How long a client may take to send a request head",
    ),
    key(
        "keep-alive-timeout",
        group::HTTP,
        SettingField::Duration(|d| &mut d.config.keep_alive_timeout),
        "How long a kept-alive connection may stay idle",
    ),
    key(
        "body-timeout",
        group::HTTP,
        SettingField::OptionalDuration(|d| &mut d.config.body_timeout),
        "How long to wait for the next bytes of a request body, then 408; or off",
    ),
    key(
        "send-timeout",
        group::HTTP,
        SettingField::OptionalDuration(|d| &mut d.config.send_timeout),
        "How long to wait for a client to take the next bytes of a response, then close; or off",
    ),
    key(
        "min-body-rate",
        group::HTTP,
        SettingField::OptionalRate(|d| &mut d.config.min_body_rate),
        "Fewest bytes per second of a request body while we wait for it, then 408; or off",
    ),
    key(
        "min-send-rate",
        group::HTTP,
        SettingField::OptionalRate(|d| &mut d.config.min_send_rate),
        "Fewest bytes per second of a response while the client keeps us waiting, then close; or off",
    ),
    key(
        "request-timeout",
        group::HTTP,
        SettingField::OptionalDuration(|d| &mut d.config.request_timeout),
        "How long a request may take until the end of its response, then 503 or close; or off",
    ),
    key(
        "half-close",
        group::HTTP,
        SettingField::HalfClose(|d| &mut d.config.half_close),
        "For a client that closes its sending side: finish, probe (102 tells who is gone) or cancel",
    ),
    key(
        "max-header-size",
        group::HTTP,
        SettingField::Size(|d| &mut d.config.max_header_size),
        "Largest request head, beyond it 431",
    ),
    key(
        "pipeline-flush",
        group::HTTP,
        SettingField::Switch(|d| &mut d.config.pipeline_flush),
        "Has no effect: responses of pipelined requests are always written together",
    ),
    key(
        "http2",
        group::HTTP,
        SettingField::Switch(|d| &mut d.config.http2),
        "Accept HTTP/2 without TLS (prior knowledge)",
    ),
    key(
        "root",
        group::APPLICATION,
        SettingField::Directory(|d| &mut d.app.root),
        "Serve the files of this directory",
    ),
    key(
        "fallback",
        group::APPLICATION,
        SettingField::File(|d| &mut d.app.fallback),
        "With root: answer paths that do not exist with this file, for single-page applications",
    ),
    key(
        "error-page-404",
        group::APPLICATION,
        SettingField::File(|d| &mut d.app.error_page_404),
        "With root: send this file with a status of 404",
    ),
    key(
        "cache-control",
        group::APPLICATION,
        SettingField::HeaderValue(|d| &mut d.app.cache_control),
        "With root: send this value of Cache-Control with files",
    ),
    key(
        "dotfiles",
        group::APPLICATION,
        SettingField::Switch(|d| &mut d.app.dotfiles),
        "With root: serve files and directories whose names begin with a dot",
    ),
    key(
        "follow-symlinks",
        group::APPLICATION,
        SettingField::Switch(|d| &mut d.app.follow_symlinks),
        "With root: follow symbolic links that lead out of it",
    ),
    key(
        "health-paths",
        group::APPLICATION,
        SettingField::Switch(|d| &mut d.app.health_paths),
        "Answer /healthz and /readyz, which no file can then be",
    ),
    key(
        "max-body-size",
        group::APPLICATION,
        SettingField::Length(|d| &mut d.app.max_body_size),
        "Largest request body, beyond it 413",
    ),
    key(
        "max-buffered-bodies",
        group::APPLICATION,
        SettingField::Length(|d| &mut d.app.max_buffered_bodies),
        "Memory for request bodies, a worker, but at least max-body-size; beyond it 503",
    ),
    key(
        "demo",
        group::APPLICATION,
        SettingField::Switch(|d| &mut d.app.demo),
        "Offer the paths of the demonstration: /, /cluster, /sleep, /fib, /bytes, /echo, /hash",
    ),
    key(
        "faults",
        group::APPLICATION,
        SettingField::Switch(|d| &mut d.app.faults),
        "Offer paths that crash or hang a worker on purpose, for trials only",
    ),
    key(
        "user",
        group::GENERAL,
        SettingField::Name(|d| &mut d.config.user),
        "Workers become this user, name or number, without any privilege; needs a start as root",
    ),
    key(
        "group",
        group::GENERAL,
        SettingField::Name(|d| &mut d.config.group),
        "And this group, name or number, instead of the user's own",
    ),
    key(
        "pid-file",
        group::GENERAL,
        SettingField::File(|d| &mut d.config.pid_file),
        "Write the primary's pid to this file",
    ),
    key(
        "log-file",
        group::GENERAL,
        SettingField::File(|d| &mut d.config.log_file),
        "Append the log to this file instead of standard error; SIGUSR1 reopens it",
    ),
    key(
        "control",
        group::GENERAL,
        SettingField::Control(|d| &mut d.config.control),
        "Socket for prefork status, reload, ...: a path, off, or auto for one in the runtime directory",
    ),
    key(
        "fd-store",
        group::GENERAL,
        SettingField::FdStore(|d| &mut d.config.fd_store),
        "Have systemd keep the listening sockets: auto (if it says that it does), on or off",
    ),
    Key {
        aliases: &[EnvAlias { var: "RUST_LOG", convert: value_syntax::unchanged }],
        ..key(
            "log",
            group::GENERAL,
            SettingField::Filter(|d| &mut d.log),
            "What to log: off, error, warn, info, debug, trace or MODULE=LEVEL,...",
        )
    },
];

const fn key(
    name: &'static str,
    group: &'static str,
    field: SettingField,
    help: &'static str,
) -> Key {
    Key { name, short: None, group, field, aliases: &[], help }
}

/// The row with this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}
