//! The keys that `prefork run` does not take, each with the reason.
//!
//! A key of the server holds for `run` if it is about processes and sockets. What is about requests is the program's own
//! business. A test checks that each key is in one group.

use tokio_prefork::cli::RefusedKey;

/// Declares a table of refused keys: for each reason the keys that it is for.
macro_rules! refused_keys {
    ($($reason:expr => [$($name:literal),+ $(,)?];)+) => {
        &[$($(RefusedKey { name: $name, reason: $reason },)+)+]
    };
}

/// The keys, grouped by reason. A reason completes a sentence that begins with the name of the key.
pub(super) const REFUSED_KEYS: &[RefusedKey] = refused_keys! {
    "is about requests, which the program handles: give it its certificate itself, or put a proxy before it" => [
        "tls-cert", "tls-key", "tls-client-ca", "tls-client-auth", "tls-client-crl", "tls-ticket-lifetime",
        "tls-handshake-timeout", "tls-max-handshakes",
    ];
    "is about requests, which the program handles: send the redirects from the program, or put a proxy before it" => [
        "https-redirect", "acme-challenge-dir", "hsts",
    ];
    "is about requests, which the program handles: let the program read what proxies add to them" => [
        "proxy-protocol", "trusted-proxies", "forwarded-headers",
    ];
    "is about requests, which the program handles: set the limit in the program, or put a proxy before it" => [
        "header-timeout", "keep-alive-timeout", "body-timeout", "send-timeout", "min-body-rate", "min-send-rate",
        "request-timeout", "half-close", "max-header-size", "pipeline-flush",
    ];
    "is about HTTP/2, which the program speaks itself if it can: set it in the program" => [
        "http2", "http2-max-concurrent-streams", "http2-stream-window-size", "http2-connection-window-size",
        "http2-ping-interval", "http2-ping-timeout", "http2-extended-connect",
    ];
    "is about requests, which only the program sees: let the program write the log and measure" => [
        "access-log", "access-log-format", "access-log-sample", "access-log-slower-than", "access-log-skip",
        "request-id", "request-durations",
    ];
    "counts requests, which only the program sees: give max-lifetime or max-rss, or a limit of the program itself" => [
        "max-requests",
    ];
    "answers requests with 503, and the program answers them: give a smaller backlog, or set a limit in the program" => [
        "max-queue-wait",
    ];
    "limits what a worker accepts, and the program accepts connections itself: set the limit in the program" => [
        "worker-connections", "when-full",
    ];
    "passes HTTP connections on to another worker, and they belong to the program: idle ones are closed between two \
     requests when a worker is replaced" => [
        "hand-over",
    ];
    "is about connections that prefork serves itself: those of the program are closed one by one while they are idle, \
     within graceful-timeout" => [
        "linger-timeout",
    ];
    "chooses how prefork serves by itself: workers is the number of processes of the program, which decides about its threads" => [
        "model",
    ];
    "is about the CPU pool of workers that prefork serves with: the program has threads of its own" => [
        "pool-threads", "pool-min-threads", "pool-idle-timeout", "pool-stack", "pool-queue", "pool-nice",
        "pool-newest-first",
    ];
    "protects private keys, and the program has its own: limit core dumps with ulimit -c, or LimitCORE= of systemd" => [
        "core-dumps",
    ];
    "is a key of the application of prefork serve: prefork run starts your program instead" => [
        "root", "fallback", "error-page-404", "cache-control", "dotfiles", "follow-symlinks", "health-paths",
        "max-body-size", "max-buffered-bodies", "demo", "faults",
    ];
    "cannot be had: the listening sockets stay open while workers come and go, and a port that a worker binds itself is \
     closed with it. Let the program listen on descriptor 3 (LISTEN_FDS, or {fd} in its arguments); for Node leave \
     node-shim on" => [
        "port-per-worker",
    ];
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{AppSettings, ProgramSettings};
    use tokio_prefork::cli::all_keys;

    /// The keys of the server that are about processes and sockets.
    const KEPT_KEYS: [&str; 35] = [
        "admin",
        "admin-token-file",
        "backlog",
        "bind",
        "boot-attempts",
        "boot-timeout",
        "control",
        "dispatch",
        "drain-delay",
        "fd-store",
        "graceful-timeout",
        "group",
        "ipv6-only",
        "log",
        "log-file",
        "log-format",
        "max-lifetime",
        "max-rss",
        "max-rss-hard",
        "min-uptime",
        "overlay",
        "pid-file",
        "reload-max-unavailable",
        "reload-surge",
        "stall-timeout",
        "stall-warn",
        "tcp-keep-alive",
        "unix-group",
        "unix-mode",
        "unix-owner",
        "user",
        "watch",
        "watch-ignore",
        "watch-poll",
        "workers",
    ];

    #[test]
    fn every_key_of_serve_either_holds_for_run_or_is_refused_with_a_reason() {
        let run: Vec<&str> = all_keys::<ProgramSettings>().iter().map(|key| key.name).collect();
        for key in all_keys::<AppSettings>() {
            let is_refused = REFUSED_KEYS.iter().any(|refused| refused.name == key.name);
            let is_kept = KEPT_KEYS.contains(&key.name);
            assert!(
                is_refused != is_kept,
                "{}: add it either to the refused keys, with the reason, or to those that hold",
                key.name
            );
            assert_eq!(run.contains(&key.name), is_kept, "{}", key.name);
        }
    }

    #[test]
    fn refused_keys_are_unique_and_no_keys_of_run() {
        let mut names: Vec<&str> = REFUSED_KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for key in all_keys::<ProgramSettings>() {
            assert!(!names.contains(&key.name), "{}", key.name);
        }
    }
}
