//! Table of the server's keys, the source of its flags, their help, the environment variables and the TOML keys.
//!
//! A new key is one new row, plus a variant of [`Field`] if its type is new.

use super::field::{Field, parse_value};
use super::heading;
use super::key::{EnvAlias, Key};
use super::value_syntax;
use crate::client::TrustedProxies;
use crate::config::Config;

/// Declares a field of the configuration whose type is an enum with a text form.
macro_rules! choice {
    ($value_name:literal, $field:ident) => {
        Field::Other {
            value_name: $value_name,
            parse: |config, text| parse_value(text).map(|value| config.$field = value),
            format: |config| config.$field.to_string(),
        }
    };
}

/// Declares the field of a user or a group.
macro_rules! user_or_group {
    ($field:ident) => {
        Field::OptionalText {
            value_name: "NAME",
            parse: value_syntax::parse_user_or_group,
            field: |config| &mut config.$field,
        }
    };
}

/// Declares a field that is a list of files.
macro_rules! file_list {
    ($field:ident) => {
        Field::List {
            value_name: "FILE",
            may_be_empty: true,
            clear: |c| c.$field.clear(),
            add: |c, text| value_syntax::parse_file(text).map(|path| c.$field.push(path)),
            format: |c| {
                c.$field.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            },
        }
    };
}

/// The keys, grouped by heading.
pub(super) static SERVER_KEYS: &[Key<Config>] = &[
    Key::<Config>::new(
        "bind",
        heading::LISTENING,
        Field::List {
            value_name: "ADDRESS",
            may_be_empty: false,
            clear: Config::clear_bind,
            add: |c, text| value_syntax::parse_bind_addr(text).map(|bind| c.push_bind(bind)),
            format: |c| c.bind_addrs().map(|bind| bind.to_string()).collect::<Vec<_>>().join(", "),
        },
        "Listen on HOST:PORT, :PORT, unix:PATH, unix:@NAME or fd://N (may be repeated)",
    )
    .short('b')
    .env_aliases(&[EnvAlias { var: "PORT", convert: value_syntax::port_to_bind }]),
    Key::new(
        "ipv6-only",
        heading::LISTENING,
        Field::Switch(|c| &mut c.ipv6_only),
        "Accept only IPv6 connections on [::], and leave IPv4 on that port to others",
    ),
    Key::new(
        "unix-mode",
        heading::LISTENING,
        Field::FileMode(|c| &mut c.unix_mode),
        "Permissions of Unix sockets in octal, such as 0660; unix:PATH?mode=0660 sets them for one socket",
    ),
    Key::new(
        "unix-owner",
        heading::LISTENING,
        user_or_group!(unix_owner),
        "Owner of Unix sockets, as a name or uid; unix:PATH?owner=NAME sets it for one socket",
    ),
    Key::new(
        "unix-group",
        heading::LISTENING,
        user_or_group!(unix_group),
        "Group of Unix sockets, as a name or gid; unix:PATH?group=NAME sets it for one socket",
    ),
    Key::new(
        "backlog",
        heading::LISTENING,
        Field::Count(|c| &mut c.backlog),
        "Maximum number of connections in the kernel's accept queue",
    ),
    Key::new(
        "max-queue-wait",
        heading::LISTENING,
        Field::OptionalDuration(|c| &mut c.max_queue_wait),
        "Answer 503 to connections that waited longer than this in the accept queue, or off",
    ),
    Key::new(
        "tcp-keep-alive",
        heading::LISTENING,
        Field::OptionalDuration(|c| &mut c.tcp_keep_alive),
        "Close TCP connections whose peer host has been unreachable for this long, or off",
    ),
    Key::new(
        "proxy-protocol",
        heading::LISTENING,
        choice!("VERSION", proxy_protocol),
        "PROXY header of trusted-proxies: off, v1, v2 or auto; HOST:PORT?proxy-protocol=v2 sets it for one address",
    ),
    Key::new(
        "trusted-proxies",
        heading::LISTENING,
        Field::List {
            value_name: "CIDR",
            may_be_empty: true,
            clear: |c| c.trusted_proxies = TrustedProxies::default(),
            add: |c, text| parse_value(text).map(|more| c.trusted_proxies.add(&more)),
            format: |c| c.trusted_proxies.to_string(),
        },
        "Believe the PROXY header and forwarded headers of these proxies: networks, IP addresses, unix (may be repeated)",
    ),
    Key::new(
        "forwarded-headers",
        heading::LISTENING,
        choice!("KIND", forwarded_headers),
        "Headers of trusted-proxies to believe: x-forwarded, forwarded, or auto: Forwarded without X-Forwarded-For only",
    ),
    Key::new(
        "https-redirect",
        heading::LISTENING,
        Field::List {
            value_name: "ADDRESS",
            may_be_empty: true,
            clear: |c| c.https_redirect.clear(),
            add: |c, text| {
                value_syntax::parse_redirect_addr(text).map(|addr| c.https_redirect.push(addr))
            },
            format: |c| {
                c.https_redirect.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            },
        },
        "Redirect all requests for plain HTTP at HOST:PORT or :PORT to https; :8080?https-port=443 names the port (may be repeated)",
    ),
    Key::new(
        "acme-challenge-dir",
        heading::LISTENING,
        Field::Directory(|c| &mut c.acme_challenge_dir),
        "Serve the files of ACME challenges from this directory, or web root, on the addresses of https-redirect",
    ),
    Key::new(
        "dispatch",
        heading::LISTENING,
        choice!("POLICY", dispatch),
        "How connections are distributed: shared, round-robin, reuseport, least-conn or ip-hash",
    ),
    Key::new(
        "tls-cert",
        heading::TLS,
        file_list!(tls_cert),
        "PEM file with a certificate chain; clients select one by SNI, the first is the default (may be repeated)",
    ),
    Key::new(
        "tls-key",
        heading::TLS,
        file_list!(tls_key),
        "PEM file with the private key of each tls-cert, in the same order; by default in the same file (may be repeated)",
    ),
    Key::new(
        "tls-client-ca",
        heading::TLS,
        Field::File(|c| &mut c.tls_client_ca),
        "PEM file with the authorities whose certificates clients must show",
    ),
    Key::<Config>::new(
        "tls-client-auth",
        heading::TLS,
        Field::Other {
            value_name: "MODE",
            parse: |c, text| parse_value(text).map(|mode| c.tls_client_auth = Some(mode)),
            format: |c| c.tls_client_auth.map(|mode| mode.to_string()).unwrap_or_default(),
        },
        "Whether clients must show a certificate: required (default with tls-client-ca) or optional",
    ),
    Key::new(
        "tls-client-crl",
        heading::TLS,
        Field::File(|c| &mut c.tls_client_crl),
        "PEM file with the revocation lists of the authorities of clients",
    ),
    Key::new(
        "tls-ticket-lifetime",
        heading::TLS,
        Field::OptionalDuration(|c| &mut c.tls_ticket_lifetime),
        "How long a client may resume its TLS session, with any worker, or off",
    ),
    Key::new(
        "core-dumps",
        heading::TLS,
        Field::Switch(|c| &mut c.core_dumps),
        "Let workers that serve TLS write core dumps, which contain the private keys",
    ),
    Key::new(
        "model",
        heading::WORKERS,
        choice!("MODEL", model),
        "Concurrency model: prefork (worker processes); single, threads or thread-per-core (one process)",
    ),
    Key::<Config>::new(
        "workers",
        heading::WORKERS,
        choice!("N", workers),
        "Number of worker processes or threads; auto is one per core",
    )
    .short('w')
    .env_aliases(&[EnvAlias::same_text("WEB_CONCURRENCY")]),
    Key::new(
        "worker-connections",
        heading::WORKERS,
        Field::Count(|c| &mut c.worker_connections),
        "Open connections per worker; at this limit a worker stops accepting",
    ),
    Key::new(
        "when-full",
        heading::WORKERS,
        choice!("POLICY", when_full),
        "While all workers are at worker-connections: let new connections wait, or close them (HTTP: 503)",
    ),
    Key::new(
        "boot-timeout",
        heading::WORKERS,
        Field::Duration(|c| &mut c.boot_timeout),
        "Timeout for a new worker to become ready",
    ),
    Key::new(
        "boot-attempts",
        heading::WORKERS,
        Field::Count(|c| &mut c.boot_attempts),
        "Exit after N failed boot rounds if no worker has ever become ready",
    ),
    Key::new(
        "min-uptime",
        heading::WORKERS,
        Field::Duration(|c| &mut c.min_uptime),
        "Respawn with back-off a worker that exits within this time after it became ready",
    ),
    Key::new(
        "max-requests",
        heading::WORKERS,
        Field::OptionalCount(|c| &mut c.max_requests),
        "Replace a worker after N requests, minus up to 20 % jitter; or off",
    ),
    Key::new(
        "max-rss",
        heading::WORKERS,
        Field::OptionalByteCount(|c| &mut c.max_rss),
        "Replace a worker gracefully when its resident memory exceeds this, or off",
    ),
    Key::new(
        "max-rss-hard",
        heading::WORKERS,
        Field::OptionalByteCount(|c| &mut c.max_rss_hard),
        "Kill and replace a worker when its resident memory exceeds this, or off",
    ),
    Key::new(
        "max-lifetime",
        heading::WORKERS,
        Field::OptionalDuration(|c| &mut c.max_lifetime),
        "Replace a worker at this age, minus up to 20 % jitter; or off",
    ),
    Key::new(
        "stall-warn",
        heading::WORKERS,
        Field::OptionalDuration(|c| &mut c.stall_warn),
        "Log the current request when a worker's event loop is blocked for this long, or off",
    ),
    Key::new(
        "stall-timeout",
        heading::WORKERS,
        Field::OptionalDuration(|c| &mut c.stall_timeout),
        "Kill and replace a worker whose event loop is blocked for this long, or off",
    ),
    Key::new(
        "pool-threads",
        heading::POOL,
        Field::AutoCount(|c| &mut c.pool_threads),
        "Most threads per worker for CPU-bound jobs; auto divides the cores among the workers",
    ),
    Key::new(
        "pool-min-threads",
        heading::POOL,
        Field::Count(|c| &mut c.pool_min_threads),
        "Pool threads per worker that start with the first job and stay when idle",
    ),
    Key::new(
        "pool-idle-timeout",
        heading::POOL,
        Field::OptionalDuration(|c| &mut c.pool_idle_timeout),
        "End a pool thread beyond pool-min-threads that is idle for this long, or off",
    ),
    Key::new(
        "pool-stack",
        heading::POOL,
        Field::OptionalByteCount(|c| &mut c.pool_stack),
        "Stack size of the pool threads in bytes; off is the default, 2MiB",
    ),
    Key::new(
        "pool-queue",
        heading::POOL,
        Field::Count(|c| &mut c.pool_queue),
        "Jobs per worker that may wait for a thread; further jobs are rejected",
    ),
    Key::new(
        "pool-nice",
        heading::POOL,
        Field::Count(|c| &mut c.pool_nice),
        "Niceness of the pool threads relative to the event loop: 0 to 19",
    ),
    Key::new(
        "pool-newest-first",
        heading::POOL,
        Field::Switch(|c| &mut c.pool_newest_first),
        "Run the newest job first while the queue is more than half full",
    ),
    Key::new(
        "reload-surge",
        heading::RELOADING,
        Field::AutoCount(|c| &mut c.reload_surge),
        "Extra workers that a reload may start at a time; auto is a quarter of the workers",
    ),
    Key::new(
        "reload-max-unavailable",
        heading::RELOADING,
        Field::Count(|c| &mut c.reload_max_unavailable),
        "Workers that may be unavailable during a reload",
    ),
    Key::new(
        "graceful-timeout",
        heading::STOPPING,
        Field::Duration(|c| &mut c.graceful_timeout),
        "How long a stopping worker may take to finish its requests before it is killed",
    ),
    Key::new(
        "drain-delay",
        heading::STOPPING,
        Field::Duration(|c| &mut c.drain_delay),
        "How long to keep accepting after a stop while /readyz answers 503, so that load balancers notice",
    ),
    Key::new(
        "linger-timeout",
        heading::STOPPING,
        Field::Duration(|c| &mut c.linger_timeout),
        "How long a stopping worker keeps idle connections open for late requests",
    ),
    Key::new(
        "hand-over",
        heading::STOPPING,
        Field::Switch(|c| &mut c.hand_over),
        "Pass the idle connections of a worker that is being replaced to another worker",
    ),
    Key::new(
        "header-timeout",
        heading::HTTP,
        Field::Duration(|c| &mut c.header_timeout),
        "Timeout for a client to send a complete request head",
    ),
    Key::new(
        "tls-handshake-timeout",
        heading::HTTP,
        Field::Duration(|c| &mut c.tls_handshake_timeout),
        "Timeout for a client to complete its TLS handshake",
    ),
    Key::new(
        "tls-max-handshakes",
        heading::HTTP,
        Field::Count(|c| &mut c.tls_max_handshakes),
        "TLS handshakes at once per worker; one more closes the one that has waited longest",
    ),
    Key::new(
        "keep-alive-timeout",
        heading::HTTP,
        Field::Duration(|c| &mut c.keep_alive_timeout),
        "Close keep-alive connections that are idle for this long",
    ),
    Key::new(
        "body-timeout",
        heading::HTTP,
        Field::OptionalDuration(|c| &mut c.body_timeout),
        "Timeout for the next bytes of a request body, then 408; or off",
    ),
    Key::new(
        "send-timeout",
        heading::HTTP,
        Field::OptionalDuration(|c| &mut c.send_timeout),
        "Timeout for a client to read the next bytes of a response, then close; or off",
    ),
    Key::new(
        "min-body-rate",
        heading::HTTP,
        Field::OptionalRate(|c| &mut c.min_body_rate),
        "Minimum bytes per second of a request body while waiting for the client, below it 408; or off",
    ),
    Key::new(
        "min-send-rate",
        heading::HTTP,
        Field::OptionalRate(|c| &mut c.min_send_rate),
        "Minimum bytes per second of a response while waiting for the client, below it close; or off",
    ),
    Key::new(
        "request-timeout",
        heading::HTTP,
        Field::OptionalDuration(|c| &mut c.request_timeout),
        "Timeout for a whole request including its response, then 503 or close; or off",
    ),
    Key::new(
        "half-close",
        heading::HTTP,
        choice!("HOW", half_close),
        "When a client shuts down its sending side: finish the request, probe the client with a 102, or cancel",
    ),
    Key::new(
        "max-header-size",
        heading::HTTP,
        Field::MemorySize(|c| &mut c.max_header_size),
        "Maximum size of a request head, beyond it 431",
    ),
    Key::new(
        "pipeline-flush",
        heading::HTTP,
        Field::Switch(|c| &mut c.pipeline_flush),
        "Has no effect, and goes with the next release: responses of pipelined requests are always written together",
    ),
    Key::new(
        "http2",
        heading::HTTP,
        Field::Switch(|c| &mut c.http2),
        "Accept HTTP/2: over TLS by ALPN, and without TLS by prior knowledge",
    ),
    Key::new(
        "http2-max-concurrent-streams",
        heading::HTTP,
        Field::Count(|c| &mut c.http2_max_concurrent_streams),
        "HTTP/2: maximum number of requests of one connection at the same time",
    ),
    Key::new(
        "http2-stream-window-size",
        heading::HTTP,
        Field::MemorySize(|c| &mut c.http2_stream_window_size),
        "HTTP/2: bytes of a request body that a client may send before they are read",
    ),
    Key::new(
        "http2-connection-window-size",
        heading::HTTP,
        Field::MemorySize(|c| &mut c.http2_connection_window_size),
        "HTTP/2: bytes of all request bodies of a connection that a client may send before they are read",
    ),
    Key::new(
        "http2-ping-interval",
        heading::HTTP,
        Field::OptionalDuration(|c| &mut c.http2_ping_interval),
        "HTTP/2: how often to ping a client, to notice one that has vanished; or off",
    ),
    Key::new(
        "http2-ping-timeout",
        heading::HTTP,
        Field::Duration(|c| &mut c.http2_ping_timeout),
        "HTTP/2: timeout for the answer to a ping, then close",
    ),
    Key::new(
        "http2-extended-connect",
        heading::HTTP,
        Field::Switch(|c| &mut c.http2_extended_connect),
        "HTTP/2: accept tunnels by extended CONNECT (RFC 8441), as for WebSocket",
    ),
    Key::new(
        "hsts",
        heading::HTTP,
        Field::Other {
            value_name: "VALUE",
            parse: |c, text| value_syntax::parse_hsts(text).map(|hsts| c.hsts = hsts),
            format: |c| {
                c.hsts.map_or_else(|| value_syntax::OFF.to_string(), |hsts| hsts.to_string())
            },
        },
        "Strict-Transport-Security of responses over TLS: seconds[; includeSubDomains[; preload]], or off",
    ),
    Key::new(
        "request-id",
        heading::HTTP,
        Field::Other {
            value_name: "WHEN",
            parse: |c, text| value_syntax::parse_on_off(text).map(|is_on| c.request_id = is_on),
            format: |c| if c.request_id { "on" } else { "off" }.to_string(),
        },
        "Give every request an id, X-Request-Id, and show id and client in the status and the log: on or off",
    ),
    Key::new(
        "request-durations",
        heading::HTTP,
        choice!("WHEN", request_durations),
        "Measure how long requests take, for status and metrics: auto (with the admin listener), on or off",
    ),
    Key::new(
        "user",
        heading::GENERAL,
        user_or_group!(user),
        "Run the workers as this user (name or uid) without privileges; requires starting as root",
    ),
    Key::new(
        "group",
        heading::GENERAL,
        user_or_group!(group),
        "Run the workers with this group (name or gid) instead of the user's primary group",
    ),
    Key::new(
        "pid-file",
        heading::GENERAL,
        Field::File(|c| &mut c.pid_file),
        "Write the primary's pid to this file",
    ),
    Key::new(
        "log-file",
        heading::GENERAL,
        Field::File(|c| &mut c.log_file),
        "Append the log to this file instead of standard error; SIGUSR1 reopens it",
    ),
    Key::new(
        "access-log",
        heading::ACCESS_LOG,
        choice!("PATH", access_log),
        "Append a line for each request to this file or FIFO, or - for standard output, or off; SIGUSR1 reopens it",
    ),
    Key::new(
        "access-log-format",
        heading::ACCESS_LOG,
        choice!("FORMAT", access_log_format),
        "Format of the lines: combined, common, json or a template with variables such as $status",
    ),
    Key::new(
        "access-log-sample",
        heading::ACCESS_LOG,
        choice!("SHARE", access_log_sample),
        "Share of the requests that get a line, such as 0.01 or 1/100; those with status 5xx always do",
    ),
    Key::new(
        "access-log-slower-than",
        heading::ACCESS_LOG,
        Field::OptionalDuration(|c| &mut c.access_log_slower_than),
        "Only requests that take at least this long get a line, and those with status 5xx; or off",
    ),
    Key::new(
        "access-log-skip",
        heading::ACCESS_LOG,
        Field::Other {
            value_name: "PATHS",
            parse: |config, text| {
                crate::access_log::parse_paths(text).map(|paths| config.access_log_skip = paths)
            },
            format: |config| match config.access_log_skip.as_slice() {
                [] => value_syntax::OFF.to_string(),
                paths => paths.join(","),
            },
        },
        "Paths, separated by commas, that get no line and do not count for max-requests; /PREFIX* for several; or off",
    ),
    Key::new(
        "control",
        heading::GENERAL,
        choice!("PATH", control),
        "Control socket of prefork status, reload, ...: a path, off, or auto for one in the runtime directory",
    ),
    Key::new(
        "admin",
        heading::GENERAL,
        Field::OptionalAddress(|c| &mut c.admin),
        "Serve health checks, metrics, status, events and a dashboard on this address (loopback or Unix), or off",
    ),
    Key::new(
        "admin-token-file",
        heading::GENERAL,
        Field::File(|c| &mut c.admin_token_file),
        "Require the token in this file from clients of the admin listener",
    ),
    Key::new(
        "fd-store",
        heading::GENERAL,
        choice!("WHEN", fd_store),
        "Store the listening sockets in systemd: auto (if systemd offers it), on or off",
    ),
];
