//! The fields of [`Config`]: types, defaults and bounds, each in one row.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::app_identity::AppIdentity;
use super::app_settings::AppSettings;
use super::{
    ClientAuth, ConcurrencyModel, ConfigBuilder, ControlSocket, Dispatch, FdStore, HalfClosePolicy,
    MeasureDurations, WhenFull, WorkerCount,
};
use crate::access_log::{AccessLog, AccessLogFormat, AccessLogSample};
use crate::client::{ForwardedHeaders, ProxyProtocol, TrustedProxies};
use crate::error::{Error, Result};
use crate::https_redirect::{Hsts, RedirectAddr};
use crate::listener::{BindOptions, ListenAddr, OwnListener};
use crate::privilege::WorkerCredentials;
use crate::program::Program;
use crate::tls::TlsCertificates;

/// The longest configurable duration: no deadline arithmetic overflows with it.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest time in which TCP keep-alive can detect a vanished host: the kernel counts whole seconds, and four
/// probes follow as many idle seconds.
const MIN_TCP_KEEP_ALIVE: Duration = Duration::from_secs(8);

/// Bounds of a duration that may be zero.
const FROM_ZERO: RangeInclusive<Duration> = Duration::ZERO..=MAX_DURATION;

/// Bounds of a duration that may not be zero.
const FROM_ONE_MS: RangeInclusive<Duration> = Duration::from_millis(1)..=MAX_DURATION;

/// Declares [`Config`], its defaults, its getters, the setters of [`ConfigBuilder`] and the check of the bounds.
///
/// A row is `name: TYPE = DEFAULT;`. Options, in this order: `as TYPE` for what the getter returns, if the field is not
/// `Copy`; `, from TYPE` for a setter that takes `impl Into<TYPE>`; after the default, `, in BOUNDS`.
macro_rules! config_fields {
    ($(
        $(#[$doc:meta])*
        $name:ident: $type:ty $(as $get:ty)? $(, from $set:ty)? = $default:expr $(, in $bounds:expr)?;
    )*) => {
        /// The checked configuration of a cluster. Built by [`Config::builder`], and unchangeable from then on.
        ///
        /// Every value has a default. A getter has the name of its setter in [`ConfigBuilder`], and, with hyphens, of its
        /// flag and key in the TOML file.
        ///
        /// ```
        /// use tokio_prefork::Config;
        ///
        /// let config = Config::builder().listen("127.0.0.1:8080")?.workers(4).build()?;
        /// assert_eq!(config.workers().to_string(), "4");
        /// assert_eq!(config.bind()[0].to_string(), "127.0.0.1:8080");
        /// # Ok::<(), tokio_prefork::Error>(())
        /// ```
        #[derive(Debug, Clone)]
        pub struct Config {
            $(pub(crate) $name: $type,)*
            /// Whether `bind` is the default, which the first [`ConfigBuilder::listen`] replaces.
            pub(super) is_default_bind: bool,
            /// The options of each address of `bind`. May be shorter than `bind`.
            pub(super) bind_options: Vec<BindOptions>,
            /// What was read from the files of `tls_cert` and `tls_key`.
            pub(crate) tls_certificates: TlsCertificates,
            /// The path whose requests have their `ConnectionInfo` in any case.
            pub(super) connection_info_path: Option<&'static str>,
            pub(super) app: AppIdentity,
            /// Listening sockets that the program made itself.
            pub(super) own_listeners: Vec<OwnListener>,
            pub(super) app_settings: AppSettings,
            /// The foreign program that the workers run.
            pub(super) program: Option<Arc<Program>>,
            /// `user` and `group` as numbers.
            pub(super) credentials: Option<WorkerCredentials>,
        }

        impl Default for Config {
            fn default() -> Config {
                Config {
                    $($name: $default,)*
                    is_default_bind: true,
                    bind_options: Vec::new(),
                    tls_certificates: TlsCertificates::default(),
                    connection_info_path: None,
                    app: AppIdentity::default(),
                    own_listeners: Vec::new(),
                    app_settings: AppSettings::default(),
                    program: None,
                    credentials: None,
                }
            }
        }

        /// Values, each with the name of its setter.
        impl Config {$(
            config_fields!(@getter $(#[$doc])* $name: $type $(as $get)?);
        )*}

        /// Setters, each with the name of its getter in [`Config`].
        impl ConfigBuilder {$(
            config_fields!(@setter $(#[$doc])* $name: $type $(, from $set)?);
        )*}

        impl Config {
            /// Checks each field against its bounds.
            pub(super) fn check_bounds(&self) -> Result<()> {
                $($(self.$name.check_bounds(stringify!($name), $bounds)?;)?)*
                Ok(())
            }
        }
    };
    (@getter $(#[$doc:meta])* $name:ident: $type:ty as $get:ty) => {
        $(#[$doc])*
        pub fn $name(&self) -> $get {
            self.$name.borrowed()
        }
    };
    (@getter $(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        pub fn $name(&self) -> $type {
            self.$name
        }
    };
    (@setter $(#[$doc:meta])* bind: $type:ty) => {};
    (@setter $(#[$doc:meta])* admin: $type:ty) => {};
    (@setter $(#[$doc:meta])* https_redirect: $type:ty) => {};
    (@setter $(#[$doc:meta])* $name:ident: $type:ty, from $set:ty) => {
        $(#[$doc])*
        pub fn $name(mut self, value: impl Into<$set>) -> ConfigBuilder {
            let value: $set = value.into();
            self.config.$name = value.into();
            self
        }
    };
    (@setter $(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        pub fn $name(mut self, value: $type) -> ConfigBuilder {
            self.config.$name = value;
            self
        }
    };
}

config_fields! {
    /// Addresses to listen on, at least one. Default: `127.0.0.1:3000`.
    bind: Vec<ListenAddr> as &[ListenAddr] = vec![ListenAddr::default()];
    /// Whether `[::]` accepts IPv6 connections only, so that IPv4 on the same port is free for another program. Sockets that are
    /// open keep their setting until a restart. Default: false, both.
    ipv6_only: bool = false;
    /// Permissions of the files of Unix sockets that name none themselves ([`UnixAddr::mode`](crate::UnixAddr::mode)).
    /// Default: what the umask leaves of 0777.
    unix_mode: Option<u32>, from Option<u32> = None;
    /// Owner of the files of Unix sockets, by name or number. Default: the user who starts the primary.
    unix_owner: Option<String> as Option<&str>, from String = None;
    /// Group of the files of Unix sockets, by name or number. Default: the group of the primary.
    unix_group: Option<String> as Option<&str>, from String = None;
    /// What serves the connections: processes or threads. Default: [`ConcurrencyModel::Prefork`].
    model: ConcurrencyModel = ConcurrencyModel::Prefork;
    /// How many workers; threads under [`ConcurrencyModel::Threads`] and [`ConcurrencyModel::ThreadPerCore`]. Default: [`WorkerCount::Auto`].
    workers: WorkerCount, from WorkerCount = WorkerCount::Auto;
    /// Length of the kernel's accept queue, capped by `net.core.somaxconn`. Default: 4096, which is the default of that
    /// cap since Linux 5.4.
    backlog: u32 = 4096, in 1..=65_535;
    /// How long a TCP connection may wait in the accept queue before it gets a 503 with `Retry-After`; the kernel measures it
    /// in ticks of 1 to 10 ms. Clusters of [`Cluster::serve_connections`](crate::Cluster::serve_connections) get every
    /// connection. `None` disables it. Default: `None`.
    max_queue_wait: Option<Duration>, from Option<Duration> = None, in FROM_ONE_MS;
    /// Which worker gets the next connection. Default: [`Dispatch::Shared`], the only policy of the models with one process.
    dispatch: Dispatch = Dispatch::Shared;
    /// How long a draining worker may finish its requests before its connections are cut. Default: 30 s.
    graceful_timeout: Duration = Duration::from_secs(30), in FROM_ZERO;
    /// How long a draining worker keeps idle connections open, so that a request that is already on its way is answered
    /// instead of reset. Default: 1 s.
    linger_timeout: Duration = Duration::from_secs(1), in FROM_ZERO;
    /// How long a stopping cluster continues to accept while [`Worker::is_ready`](crate::Worker::is_ready) is already
    /// false, so that load balancers stop sending connections. A second request to stop ends the delay. Default: 0.
    drain_delay: Duration = Duration::ZERO, in FROM_ZERO;
    /// Whether a draining worker hands its idle HTTP/1.1 connections over to another worker instead of closing them.
    /// Default: true; never under [`ConcurrencyModel::Threads`].
    hand_over: bool = true;
    /// How long a worker may take from its fork to READY. Default: 30 s.
    boot_timeout: Duration = Duration::from_secs(30), in FROM_ONE_MS;
    /// A worker that crashes sooner than this after READY counts towards a crash loop. Default: 1 s.
    min_uptime: Duration = Duration::from_secs(1), in FROM_ZERO;
    /// Failed rounds of boots, before any worker was ever ready, after which the primary gives up. Default: 5.
    boot_attempts: u32 = 5, in 1..=1_000;
    /// Workers that a reload may start beyond the wanted number at a time. `None` is a quarter of the workers, rounded up.
    /// Default: `None`.
    reload_surge: Option<u32>, from Option<u32> = None, in 1..=WorkerCount::MAX;
    /// Workers that a reload may stop before their successors start, which saves memory and costs capacity. Default: 0.
    reload_max_unavailable: u32 = 0;
    /// Requests after which a worker is replaced, minus up to 20 % jitter. `None` disables it. Default: `None`.
    max_requests: Option<u32>, from Option<u32> = None, in 1..=u32::MAX;
    /// Resident memory in bytes above which a worker is drained and replaced. `None` disables it. Default: `None`.
    max_rss: Option<u64>, from Option<u64> = None, in 1..=u64::MAX;
    /// Resident memory in bytes above which a worker is killed and replaced. `None` disables it. Default: `None`.
    max_rss_hard: Option<u64>, from Option<u64> = None, in 1..=u64::MAX;
    /// Age at which a worker is replaced, minus up to 20 % jitter. `None` disables it. Default:
    /// `None`.
    max_lifetime: Option<Duration>, from Option<Duration> = None, in FROM_ONE_MS;
    /// How long an event loop may stall before the request that blocks it is logged. `None` disables it. Default: 1 s.
    stall_warn: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(1)), in FROM_ONE_MS;
    /// How long an event loop may stall before its worker is killed and replaced. `None` disables it. Default:
    /// 30 s.
    stall_timeout: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(30)), in FROM_ONE_MS;
    /// How long a client may take to send a request head. Default: 10 s.
    header_timeout: Duration = Duration::from_secs(10), in FROM_ONE_MS;
    /// How long a client may take for the TLS handshake, from the accept on. Default: 10 s.
    tls_handshake_timeout: Duration = Duration::from_secs(10), in FROM_ONE_MS;
    /// TLS handshakes in progress per worker; per thread if `workers` counts threads. A further one closes the connection whose
    /// handshake has waited longest. At most half of `worker_connections` are used for handshakes. Default: 512.
    tls_max_handshakes: u32 = 512, in 1..=1_000_000;
    /// How long a kept-alive connection may stay idle. Default: 65 s, longer than the 60 s of common load balancers, so
    /// that they close first.
    keep_alive_timeout: Duration = Duration::from_secs(65), in FROM_ONE_MS;
    /// How long to wait for the next bytes of a request body before the request is refused with 408, or the connection
    /// closed if the response has begun. Counts only while the handler reads, and for the first bytes in any case, which
    /// hyper reads before the handler asks. `None`: no limit. Default: 60 s.
    body_timeout: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(60)), in FROM_ONE_MS;
    /// How long to wait for the client to take the next bytes of a response before the connection is closed. `None`: no
    /// limit. Default: 60 s.
    send_timeout: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(60)), in FROM_ONE_MS;
    /// Fewest bytes per second of a request body, over each 5 s of waiting for them; below it, as for `body_timeout`.
    /// `None`: no limit. Default: `None`.
    min_body_rate: Option<u64>, from Option<u64> = None, in 1..=1 << 30;
    /// Fewest bytes per second of a response, over each 5 s of waiting for the client to take them; below it, as for
    /// `send_timeout`. `None`: no limit. Default: `None`.
    min_send_rate: Option<u64>, from Option<u64> = None, in 1..=1 << 30;
    /// How long a request may take, from its head to the end of its response. Then its handler is dropped and the client
    /// gets 503; if the response has begun, the connection (HTTP/2: the stream) is closed. A handler changes the limit of its
    /// own request with [`RequestDeadline`](crate::RequestDeadline). `None`: no limit. Default: `None`.
    request_timeout: Option<Duration>, from Option<Duration> = None, in FROM_ONE_MS;
    /// How to treat HTTP/1 clients that close their sending side while they wait for a response. Default:
    /// [`HalfClosePolicy::Probe`].
    half_close: HalfClosePolicy = HalfClosePolicy::Probe;
    /// How long a TCP connection is kept whose host has vanished: TCP keep-alive begins to probe after half of it.
    /// `None`: the kernel does not probe. Default: 2 min.
    tcp_keep_alive: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(120)), in MIN_TCP_KEEP_ALIVE..=MAX_DURATION;
    /// Largest request head in bytes; a larger one gets 431 (HTTP/2: SETTINGS_MAX_HEADER_LIST_SIZE). Default: 16 KiB. At least 8 KiB.
    max_header_size: usize = 16 * 1024, in 8 * 1024..=1024 * 1024;
    /// Open connections that a worker accepts before it leaves new ones to the others; per thread if `workers` counts
    /// threads. Default: 10 000.
    worker_connections: u32 = 10_000, in 1..=1_000_000;
    /// What happens to new connections while all workers have `worker_connections`. Default: [`WhenFull::Wait`].
    when_full: WhenFull = WhenFull::Wait;
    /// Most threads of each worker's CPU pool; each starts when a job finds no idle one. `None` is the cores that this process may
    /// use, divided by the workers, at least one. Default: `None`.
    pool_threads: Option<u32>, from Option<u32> = None, in 1..=1_024;
    /// Threads of each worker's CPU pool that start with the first job and stay when they are idle. Default: 0.
    pool_min_threads: u32 = 0, in 0..=1_024;
    /// How long an idle thread of the CPU pool beyond `pool_min_threads` waits for a job before it ends. `None`: threads end with
    /// their worker. Default: `None`.
    pool_idle_timeout: Option<Duration>, from Option<Duration> = None, in FROM_ONE_MS;
    /// Stack size of the threads of the CPU pool in bytes. `None` is the default of Rust's threads: 2 MiB, or `RUST_MIN_STACK`.
    /// Default: `None`.
    pool_stack: Option<u64>, from Option<u64> = None, in 16 << 10..=1 << 30;
    /// Jobs that may wait in each worker's CPU pool; more get [`PoolError::Full`](crate::pool::PoolError). Default: 256.
    pool_queue: u32 = 256, in 0..=1_000_000;
    /// Nice value of the threads of the CPU pool, from 0 to 19, so that they give way to the event loops. Default: 19.
    pool_nice: u32 = 19, in 0..=19;
    /// Whether a CPU pool runs the newest job first while its queue is more than half full, as the callers of the oldest
    /// have most likely given up. Default: false.
    pool_newest_first: bool = false;
    /// Has no effect but a warning, and goes with the next release: responses of pipelined requests that are ready together always
    /// leave in one write of up to 32 KiB. Default: false.
    pipeline_flush: bool = false;
    /// Whether to accept HTTP/2: over TLS by ALPN, and without TLS from clients with prior knowledge. Needs the feature `http2` of this crate. Default:
    /// true with that feature.
    http2: bool = cfg!(feature = "http2");
    /// HTTP/2: requests of one connection at the same time; clients wait with more (SETTINGS_MAX_CONCURRENT_STREAMS). Default:
    /// 200.
    http2_max_concurrent_streams: u32 = 200, in 1..=1_000_000;
    /// HTTP/2: bytes of a request body that a client may send before the handler reads them
    /// (SETTINGS_INITIAL_WINDOW_SIZE). A client far away needs more for fast uploads. Default: 1 MiB.
    http2_stream_window_size: usize = 1 << 20, in 1_024..=(1 << 31) - 1;
    /// HTTP/2: bytes of all request bodies of one connection that a client may send before handlers read them. Default:
    /// 1 MiB.
    http2_connection_window_size: usize = 1 << 20, in 65_535..=(1 << 31) - 1;
    /// HTTP/2: how often to ping a client, to notice one that has vanished. `None`: never. Default: 65 s.
    http2_ping_interval: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(65)), in FROM_ONE_MS;
    /// HTTP/2: how long to wait for the answer to a ping before the connection is closed. Default: 20 s.
    http2_ping_timeout: Duration = Duration::from_secs(20), in FROM_ONE_MS;
    /// HTTP/2: whether clients may open tunnels with extended CONNECT (RFC 8441), as browsers do for WebSocket. Handlers see
    /// the method CONNECT, and the protocol as `hyper::ext::Protocol` in the extensions. Default: false.
    http2_extended_connect: bool = false;
    /// Addresses that speak plain HTTP and answer each request with a redirect to its https URL, status 308. Default: none.
    https_redirect: Vec<RedirectAddr> as &[RedirectAddr] = Vec::new();
    /// Directory with the files of ACME challenges (RFC 8555, section 8.3), which the addresses of `https_redirect` serve under
    /// `/.well-known/acme-challenge/`. It contains the files themselves, or is the web root that an ACME client is given, in which they
    /// are below `.well-known/acme-challenge`. Workers must be able to read it. Default: `None`, such requests are redirected, too.
    acme_challenge_dir: Option<PathBuf> as Option<&Path>, from PathBuf = None;
    /// The header `Strict-Transport-Security` of responses over TLS that have none of the application. Browsers then refuse plain HTTP
    /// to this host for its `max-age`, so begin with a short one. Default: `None`, no header.
    hsts: Option<Hsts>, from Option<Hsts> = None;
    /// Whether each request has its [`ConnectionInfo`](crate::ConnectionInfo) in its extensions. Without it, a request of
    /// a service that does not use it costs a few hundred processor instructions less. Default: true.
    connection_info: bool = true;
    /// Whether connections begin with a header of the PROXY protocol, at addresses for which [`BindAddr`](crate::BindAddr) says
    /// nothing else. Needs `trusted_proxies`. Default: [`ProxyProtocol::Off`].
    proxy_protocol: ProxyProtocol = ProxyProtocol::Off;
    /// Proxies whose PROXY header and forwarded headers are believed; see [`ClientInfo`](crate::ClientInfo). Default: none.
    trusted_proxies: TrustedProxies as &TrustedProxies = TrustedProxies::default();
    /// Which headers of `trusted_proxies` are believed. Name the kind that they set, as clients can make up the other one. Default:
    /// [`ForwardedHeaders::Auto`].
    forwarded_headers: ForwardedHeaders = ForwardedHeaders::Auto;
    /// Whether every request has a [`RequestId`](crate::RequestId): in its extensions, in both of its headers `X-Request-Id`, in log lines
    /// about it, and, with its client, in the status. Default: false.
    request_id: bool = false;
    /// Whether to measure how long requests take, for the status and the metrics. Default: [`MeasureDurations::Auto`], while the admin
    /// listener is on.
    request_durations: MeasureDurations = MeasureDurations::Auto;
    /// Files with the certificate chains in PEM, each with the server's own certificate first. With any, TCP addresses speak TLS; see
    /// [`BindAddr`](crate::BindAddr). The name that a client asks for (SNI) selects the certificate; the first one is the default.
    /// `credential:NAME` is a file in `$CREDENTIALS_DIRECTORY` (systemd: `LoadCredential=NAME:PATH`). Read by the primary at the start
    /// and at each reload. Needs the feature `tls` of this crate. Default: none.
    tls_cert: Vec<PathBuf> as &[PathBuf] = Vec::new();
    /// Files with the private keys in PEM, one for each of `tls_cert` in the same order. Read by the primary, before workers change
    /// their user. None: the keys are in the files of `tls_cert`. Default: none.
    tls_key: Vec<PathBuf> as &[PathBuf] = Vec::new();
    /// File with the certificates in PEM of the authorities (CA) that issue certificates to TLS clients. With it, clients must show one
    /// unless `tls_client_auth` is [`ClientAuth::Optional`]; see [`ClientCertificate`](crate::client::ClientCertificate). Read by the
    /// primary at the start and at each reload. Default: `None`, clients are not asked.
    tls_client_ca: Option<PathBuf> as Option<&Path>, from PathBuf = None;
    /// Whether TLS clients must show a certificate. Needs `tls_client_ca`. Default: `None`, which means [`ClientAuth::Required`] with
    /// `tls_client_ca`.
    tls_client_auth: Option<ClientAuth>, from Option<ClientAuth> = None;
    /// File with the revocation lists (CRL) in PEM of all authorities that issue certificates in the chains of clients, read like
    /// `tls_client_ca`. A client whose chain has a revoked certificate, or one without a valid list, is refused. Default: `None`.
    tls_client_crl: Option<PathBuf> as Option<&Path>, from PathBuf = None;
    /// How long a client may resume its TLS session, with any worker, which saves both sides the costly part of a handshake: the
    /// lifetime of a session ticket. The keys of tickets are replaced as often, and deleted after twice the time. In whole seconds.
    /// `None`: sessions are not resumed. Default: 12 h.
    tls_ticket_lifetime: Option<Duration>, from Option<Duration> = Some(Duration::from_secs(12 * 60 * 60)), in Duration::from_secs(1)..=MAX_DURATION;
    /// Whether workers may write core dumps although they serve TLS: a dump holds the private keys. Without TLS, dumps are not
    /// changed. Default: false.
    core_dumps: bool = false;
    /// User that workers become, by name or number, with its groups and without any capability. The primary must be started
    /// as root, and stays root. Default: `None`, the primary's user.
    user: Option<String> as Option<&str>, from String = None;
    /// Group that workers get instead of the user's own, by name or number. Default: `None`.
    group: Option<String> as Option<&str>, from String = None;
    /// File to which the primary writes its pid: mode 0644, locked while the primary runs, removed at its end. Default:
    /// `None`.
    pid_file: Option<PathBuf> as Option<&Path>, from PathBuf = None;
    /// File to which the log, and whatever else is printed to standard error, is appended; SIGUSR1 opens it again after a
    /// rename. Default: `None`, standard error.
    log_file: Option<PathBuf> as Option<&Path>, from PathBuf = None;
    /// Where a line for each request goes; see [`AccessLog`]. SIGUSR1 opens the file again after a rename. Default:
    /// [`AccessLog::Off`].
    access_log: AccessLog as &AccessLog, from AccessLog = AccessLog::Off;
    /// The format of the lines of the access log. Default: [`AccessLogFormat::combined`].
    access_log_format: AccessLogFormat as &AccessLogFormat = AccessLogFormat::combined();
    /// The share of requests that get a line in the access log; those with a status of 500 or more get one in any case. Default:
    /// [`AccessLogSample::ALL`].
    access_log_sample: AccessLogSample = AccessLogSample::ALL;
    /// How long a request must take to get a line in the access log, unless its status is 500 or more, or
    /// `access_log_sample` is set and contains it. `None`: any time. Default: `None`.
    access_log_slower_than: Option<Duration>, from Option<Duration> = None, in Duration::from_micros(1)..=MAX_DURATION;
    /// Paths whose requests get no line in the access log and do not count for `max_requests`, such as those of health checks.
    /// A path that ends with `*` stands for all that begin with what is before it. Default: none.
    access_log_skip: Vec<String> as &[String] = Vec::new();
    /// Whether `ps` shows `NAME: primary` and `NAME: worker 3 (gen 2)`; see [`ConfigBuilder::name`]. Default: false; the `prefork` command sets it.
    titles: bool = false;
    /// Where the primary answers `prefork status` and the other verbs. Default: [`ControlSocket::Off`].
    control: ControlSocket as &ControlSocket = ControlSocket::Off;
    /// Address of the admin listener: health checks, metrics, status, events and a dashboard, served by a process of its own. Needs
    /// the feature `admin` of this crate. Default: `None`, no admin listener.
    admin: Option<ListenAddr> as Option<&ListenAddr> = None;
    /// File with the token that requests to the admin listener must present, other than health checks. An address that other
    /// machines reach requires one. Read at the start and at each reload; group and others must have no access to it.
    /// Default: `None`.
    admin_token_file: Option<PathBuf> as Option<&Path>, from PathBuf = None;
    /// Whether systemd keeps the listening sockets, so that they survive a primary that is killed. Default:
    /// [`FdStore::Auto`].
    fd_store: FdStore = FdStore::Auto;
}

/// A value whose getter returns a borrowed form of it.
trait Borrowed<'a, T> {
    fn borrowed(&'a self) -> T;
}

impl<'a, T> Borrowed<'a, &'a [T]> for Vec<T> {
    fn borrowed(&'a self) -> &'a [T] {
        self
    }
}

impl<'a> Borrowed<'a, Option<&'a str>> for Option<String> {
    fn borrowed(&'a self) -> Option<&'a str> {
        self.as_deref()
    }
}

impl<'a> Borrowed<'a, Option<&'a Path>> for Option<PathBuf> {
    fn borrowed(&'a self) -> Option<&'a Path> {
        self.as_deref()
    }
}

impl<'a> Borrowed<'a, Option<&'a ListenAddr>> for Option<ListenAddr> {
    fn borrowed(&'a self) -> Option<&'a ListenAddr> {
        self.as_ref()
    }
}

impl<'a> Borrowed<'a, &'a ControlSocket> for ControlSocket {
    fn borrowed(&'a self) -> &'a ControlSocket {
        self
    }
}

impl<'a> Borrowed<'a, &'a TrustedProxies> for TrustedProxies {
    fn borrowed(&'a self) -> &'a TrustedProxies {
        self
    }
}

impl<'a> Borrowed<'a, &'a AccessLog> for AccessLog {
    fn borrowed(&'a self) -> &'a AccessLog {
        self
    }
}

impl<'a> Borrowed<'a, &'a AccessLogFormat> for AccessLogFormat {
    fn borrowed(&'a self) -> &'a AccessLogFormat {
        self
    }
}

/// A value that has bounds.
trait Bounded {
    type Bound;

    /// Returns an error that names the key if the value is out of bounds.
    fn check_bounds(&self, field: &str, bounds: RangeInclusive<Self::Bound>) -> Result<()>;
}

macro_rules! bounded_numbers {
    ($($type:ty),*) => {$(
        impl Bounded for $type {
            type Bound = $type;

            fn check_bounds(&self, field: &str, bounds: RangeInclusive<$type>) -> Result<()> {
                if bounds.contains(self) {
                    return Ok(());
                }
                Err(out_of_range(field, self, bounds.start(), bounds.end()))
            }
        }
    )*};
}

bounded_numbers!(u32, u64, usize);

impl Bounded for Duration {
    type Bound = Duration;

    fn check_bounds(&self, field: &str, bounds: RangeInclusive<Duration>) -> Result<()> {
        if bounds.contains(self) {
            return Ok(());
        }
        let [value, least, most] = [self, bounds.start(), bounds.end()].map(|d| format!("{d:?}"));
        Err(out_of_range(field, value, least, most))
    }
}

impl<T: Bounded> Bounded for Option<T> {
    type Bound = T::Bound;

    fn check_bounds(&self, field: &str, bounds: RangeInclusive<T::Bound>) -> Result<()> {
        self.as_ref().map_or(Ok(()), |value| value.check_bounds(field, bounds))
    }
}

fn out_of_range<T: std::fmt::Display>(field: &str, value: T, least: T, most: T) -> Error {
    let key = field.replace('_', "-");
    Error::config(format!("{key} = {value} is out of range: give {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_named_with_the_key() {
        for (builder, message) in [
            (Config::builder().backlog(0), "backlog = 0 is out of range: give 1 to 65535"),
            (
                Config::builder().header_timeout(Duration::ZERO),
                "header-timeout = 0ns is out of range: give 1ms to 86400s",
            ),
            (
                Config::builder().min_body_rate(Some(0)),
                "min-body-rate = 0 is out of range: give 1 to 1073741824",
            ),
        ] {
            assert_eq!(builder.build().expect_err(message).to_string(), message);
        }
        Config::builder().min_body_rate(None).build().expect("no limit is within bounds");
    }
}
