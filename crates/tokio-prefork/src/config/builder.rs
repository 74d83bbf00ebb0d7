//! The builder of the configuration, with its checks.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::app_settings::AppSettings;
use super::{ConcurrencyModel, Config, Dispatch, WorkerCount};
use crate::error::{Error, Result};
use crate::https_redirect::RedirectAddr;
use crate::listener::{BindAddr, ListenAddr, OwnListener};
use crate::log_file::is_same_file;
use crate::privilege::WorkerCredentials;
use crate::program::{Program, Readiness};

/// Builds a [`Config`]; nothing is checked before [`ConfigBuilder::build`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ConfigBuilder {
    pub(crate) config: Config,
}

impl ConfigBuilder {
    /// Attaches settings of the application, for [`Config::app_settings`] in the workers. A reload brings those of
    /// the new configuration to the new workers. `Send` and `Sync`, as a worker may have several threads.
    pub fn app_settings<T: Send + Sync + 'static>(mut self, settings: T) -> ConfigBuilder {
        self.config.app_settings = AppSettings(Some(Arc::new(settings)));
        self
    }

    /// Makes the workers run a foreign program, for [`Cluster::serve_program`](crate::Cluster::serve_program). A reload brings that of
    /// the new configuration. The settings of HTTP, TLS and connections have no effect on it. Default: none.
    pub fn program(mut self, program: Program) -> ConfigBuilder {
        self.config.program = Some(Arc::new(program));
        self
    }

    /// Sets the name of the application, shown in process titles, the log, the status and errors. Default: the file name of
    /// the executable.
    ///
    /// ```
    /// use tokio_prefork::Config;
    ///
    /// let config = Config::builder().name("greeter").version(env!("CARGO_PKG_VERSION")).build()?;
    /// assert_eq!(config.name(), "greeter");
    /// # Ok::<(), tokio_prefork::Error>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> ConfigBuilder {
        self.config.app.name = name.into();
        self
    }

    /// Sets the version of the application, shown in the log and in the status. Default: none.
    pub fn version(mut self, version: impl Into<String>) -> ConfigBuilder {
        self.config.app.version = Some(version.into());
        self
    }

    /// Gives requests for this path their [`ConnectionInfo`](crate::ConnectionInfo) even if
    /// [`connection_info`](ConfigBuilder::connection_info) is false: for a page by which operators check the way of requests
    /// through their proxies. Default: none.
    pub fn connection_info_path(mut self, path: &'static str) -> ConfigBuilder {
        self.config.connection_info_path = Some(path);
        self
    }

    /// Adds an address to listen on. The first one replaces the default, `127.0.0.1:3000`.
    ///
    /// In text: `HOST:PORT`, `:PORT` (all addresses, IPv4 and IPv6), `unix:PATH`, `unix:@NAME` or `fd://N`, perhaps with
    /// options (see [`BindAddr`]). A host name stands for all its IPv4 and IPv6 addresses, and is looked up at the start
    /// and at each reload. Port 0 is a free port, the same for all workers.
    ///
    /// ```
    /// use tokio_prefork::Config;
    ///
    /// let config = Config::builder().listen("127.0.0.1:8080")?.listen("unix:/run/app.sock")?.build()?;
    /// assert_eq!(config.bind().len(), 2);
    /// # Ok::<(), tokio_prefork::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The text is no address; the error lists the forms.
    pub fn listen<A>(mut self, addr: A) -> Result<ConfigBuilder>
    where
        A: TryInto<BindAddr>,
        A::Error: Into<Error>,
    {
        let addr = addr.try_into().map_err(Into::into)?;
        if std::mem::take(&mut self.config.is_default_bind) {
            self.config.clear_bind();
        }
        self.config.push_bind(addr);
        Ok(self)
    }

    /// Adds a certificate chain and its private key, both as files in PEM: one more of [`tls_cert`](ConfigBuilder::tls_cert) and of
    /// [`tls_key`](ConfigBuilder::tls_key). TCP addresses speak TLS then.
    ///
    /// The files are read by the primary when the cluster starts and at each reload, with the privileges that it has. An error of
    /// them ends the start; a reload fails with it, and the old certificates stay in use.
    ///
    /// ```
    /// use tokio_prefork::Config;
    ///
    /// # #[cfg(feature = "tls")] {
    /// let config = Config::builder()
    ///     .listen("https://0.0.0.0:8443")?
    ///     .certificate("/etc/app/example.org.crt", "/etc/app/example.org.key")
    ///     .certificate("credential:example.com.crt", "credential:example.com.key")
    ///     .build()?;
    /// assert_eq!(config.tls_cert().len(), 2);
    /// # }
    /// # Ok::<(), tokio_prefork::Error>(())
    /// ```
    pub fn certificate(
        mut self,
        cert_file: impl Into<PathBuf>,
        key_file: impl Into<PathBuf>,
    ) -> ConfigBuilder {
        self.config.tls_cert.push(cert_file.into());
        self.config.tls_key.push(key_file.into());
        self
    }

    /// Sets the address of the admin listener, in the text forms of [`listen`](ConfigBuilder::listen). Default: none.
    ///
    /// ```
    /// use tokio_prefork::Config;
    ///
    /// # #[cfg(feature = "admin")] {
    /// let config = Config::builder().admin("127.0.0.1:9090")?.build()?;
    /// assert_eq!(config.admin().expect("set").to_string(), "127.0.0.1:9090");
    /// # }
    /// # Ok::<(), tokio_prefork::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The text is no address.
    pub fn admin<A>(mut self, addr: A) -> Result<ConfigBuilder>
    where
        A: TryInto<ListenAddr>,
        A::Error: Into<Error>,
    {
        self.config.admin = Some(addr.try_into().map_err(Into::into)?);
        Ok(self)
    }

    /// Adds an address whose every request gets a redirect to https, in the text forms of [`listen`](ConfigBuilder::listen), perhaps
    /// with `?https-port=443` (see [`RedirectAddr`]). Default: none.
    ///
    /// ```
    /// use tokio_prefork::Config;
    ///
    /// let config = Config::builder().https_redirect("[::]:80?https-port=443")?.build()?;
    /// assert_eq!(config.https_redirect()[0].https_port, Some(443));
    /// # Ok::<(), tokio_prefork::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The text is no address.
    pub fn https_redirect<A>(mut self, addr: A) -> Result<ConfigBuilder>
    where
        A: TryInto<RedirectAddr>,
        A::Error: Into<Error>,
    {
        self.config.https_redirect.push(addr.try_into().map_err(Into::into)?);
        Ok(self)
    }

    /// Adds a listening socket that the program has made: Node's `listen(handle)`. Its address counts as one of
    /// [`listen`](ConfigBuilder::listen).
    ///
    /// The primary owns it from here on and passes it to the workers. An upgrade in place runs the program again, which
    /// cannot bind the address a second time; so make the socket by [`inherit_socket`](crate::inherit_socket):
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    /// use tokio_prefork::{Config, inherit_socket};
    ///
    /// # fn config() -> tokio_prefork::Result<Config> {
    /// let web = inherit_socket("web", || TcpListener::bind("127.0.0.1:3000"))?;
    /// Config::builder().listener(web)?.build()
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// It is not a listening TCP socket, or Unix stream socket with a path.
    pub fn listener(mut self, listener: impl Into<OwnedFd>) -> Result<ConfigBuilder> {
        let own = OwnListener::new(listener.into())?;
        let addr = own.addr().clone();
        self.config.own_listeners.push(own);
        self.listen(addr)
    }

    /// Replaces all addresses to listen on. [`ConfigBuilder::listen`] adds one.
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use tokio_prefork::Config;
    ///
    /// let config = Config::builder().bind([(Ipv4Addr::UNSPECIFIED, 8080)]).build()?;
    /// assert_eq!(config.bind()[0].to_string(), "0.0.0.0:8080");
    /// # Ok::<(), tokio_prefork::Error>(())
    /// ```
    pub fn bind<A: Into<BindAddr>>(mut self, addrs: impl IntoIterator<Item = A>) -> ConfigBuilder {
        self.config.clear_bind();
        addrs.into_iter().for_each(|addr| self.config.push_bind(addr.into()));
        self.config.is_default_bind = false;
        self
    }

    /// Checks every value against its bounds, and looks up user and group.
    pub fn build(self) -> Result<Config> {
        let mut c = self.config;
        if c.bind.is_empty() {
            return Err(Error::config("no address to listen on: give at least one bind"));
        }
        c.remove_redirect_addrs();
        let is_repeated =
            |(i, addr): &(usize, &ListenAddr)| c.bind[..*i].contains(addr) && !addr.is_free_port();
        if let Some(twice) = c.bind.iter().enumerate().find(is_repeated) {
            return Err(Error::config(format!("bind = {} is given twice", twice.1)));
        }
        check_redirect_keys(&c)?;
        c.add_redirect_addrs();
        c.apply_unix_socket_defaults()?;
        if c.http2 && cfg!(not(feature = "http2")) {
            return Err(Error::config(
                "http2 = true needs the feature http2 of tokio-prefork: add it in Cargo.toml, or give false",
            ));
        }
        c.check_proxy_protocol()?;
        c.check_tls_keys()?;
        check_admin_keys(&c)?;
        c.app.check()?;
        check_model_limits(&c)?;
        check_program(&c)?;
        c.check_bounds()?;
        if let (Some(log), Some(pid)) = (&c.log_file, &c.pid_file)
            && is_same_file(log, pid)
        {
            return Err(Error::config(format!(
                "log-file = {} is the pid-file, too: give each a file of its own",
                log.display()
            )));
        }
        check_access_log(&c)?;
        c.credentials = WorkerCredentials::resolve(c.user.as_deref(), c.group.as_deref())?;
        Ok(c)
    }
}

impl Config {
    /// Checks that somebody is trusted to send PROXY headers.
    fn check_proxy_protocol(&self) -> Result<()> {
        let Some((addr, protocol)) = self.addr_with_proxy_protocol() else { return Ok(()) };
        if !self.trusted_proxies.is_empty() {
            return Ok(());
        }
        Err(Error::config(format!(
            "proxy-protocol = {protocol} at {addr} needs trusted-proxies: give the addresses of the load balancers that send \
             the PROXY header, such as 10.0.0.0/8 (unix for Unix sockets)"
        )))
    }

    /// Sets the defaults for mode, owner and group of Unix sockets, and checks the names.
    fn apply_unix_socket_defaults(&mut self) -> Result<()> {
        let (mode, owner, group) = (self.unix_mode, &self.unix_owner, &self.unix_group);
        if let Some(mode) = mode.filter(|mode| *mode > 0o777) {
            return Err(Error::config(format!(
                "unix-mode = {mode:o} is out of range: give 0 to 777"
            )));
        }
        for addr in self.bind.iter_mut().chain(&mut self.admin) {
            let ListenAddr::Unix(unix) = addr else { continue };
            if unix.abstract_name().is_some() {
                continue;
            }
            unix.mode = unix.mode.or(mode);
            unix.owner = unix.owner.take().or_else(|| owner.clone());
            unix.group = unix.group.take().or_else(|| group.clone());
            unix.access().map_err(|why| Error::config(format!("bind = {unix}: {why}")))?;
        }
        Ok(())
    }
}

/// Checks the addresses that redirect to https, and what belongs to them.
fn check_redirect_keys(c: &Config) -> Result<()> {
    for (index, RedirectAddr { addr, .. }) in c.https_redirect.iter().enumerate() {
        if addr.is_free_port() {
            continue;
        }
        if c.bind.contains(addr) {
            return Err(Error::config(format!(
                "https-redirect = {addr} is an address of bind, too: give the redirect an address of its own, such as :80"
            )));
        }
        if c.https_redirect[..index].iter().any(|earlier| earlier.addr == *addr) {
            return Err(Error::config(format!("https-redirect = {addr} is given twice")));
        }
    }
    let has_no_port = |redirect: &&RedirectAddr| redirect.https_port.is_none();
    if let Some(redirect) = c.https_redirect.iter().find(has_no_port)
        && !c.bind_addrs().any(|bind| c.speaks_tls_by(&bind))
    {
        return Err(Error::config(format!(
            "https-redirect = {redirect} is given, and no address speaks TLS: give tls-cert and tls-key, or the port of the https \
             URLs, as in {redirect}?https-port=443"
        )));
    }
    match &c.acme_challenge_dir {
        Some(dir) if !c.has_https_redirect() => Err(Error::config(format!(
            "acme-challenge-dir = {} is given without https-redirect, whose addresses serve it: give https-redirect = \":80\" as \
             well, or leave it out",
            dir.display()
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Checks the keys of the admin listener, as far as that is possible without its socket.
fn check_admin_keys(c: &Config) -> Result<()> {
    let Some(addr) = &c.admin else {
        return match &c.admin_token_file {
            None => Ok(()),
            Some(path) => Err(Error::config(format!(
                "admin-token-file = {} is given without an admin listener: give admin as well, or leave it out",
                path.display()
            ))),
        };
    };
    if cfg!(not(feature = "admin")) {
        return Err(Error::config(format!(
            "admin = {addr} needs the feature admin of tokio-prefork: add it in Cargo.toml, or leave admin out"
        )));
    }
    if c.bind.contains(addr) && !addr.is_free_port() {
        return Err(Error::config(format!(
            "admin = {addr} is an address of the service, too: give the admin listener an address of its own"
        )));
    }
    match addr {
        ListenAddr::Tcp(tcp) if c.admin_token_file.is_none() && !tcp.ip().is_loopback() => {
            Err(missing_token_error(addr))
        }
        _ => Ok(()),
    }
}

/// Returns the error of an admin listener that other machines reach and that asks for no token.
pub(crate) fn missing_token_error(addr: &dyn std::fmt::Display) -> Error {
    Error::config(format!(
        "admin = {addr} can be reached from other machines and has no token: give admin-token-file, or an address of this machine only, such as 127.0.0.1:9090 or unix:PATH"
    ))
}

/// Checks the paths of the access log.
fn check_access_log(c: &Config) -> Result<()> {
    crate::access_log::check_paths(&c.access_log_skip)
        .map_err(|why| Error::config(format!("access-log-skip {why}")))?;
    let Some(log) = c.access_log.path() else { return Ok(()) };
    // Both logs may go to a device such as /dev/null, or to the same standard stream.
    if log.metadata().is_ok_and(|meta| !meta.is_file()) {
        return Ok(());
    }
    for (key, other) in [("pid-file", &c.pid_file), ("log-file", &c.log_file)] {
        if other.as_ref().is_some_and(|other| is_same_file(&log, other)) {
            return Err(Error::config(format!(
                "access-log = {} is the {key}, too: give each a file of its own",
                log.display()
            )));
        }
    }
    Ok(())
}

fn has_only_unix_sockets(c: &Config) -> bool {
    !c.bind.is_empty() && c.bind.iter().all(|addr| matches!(addr, ListenAddr::Unix(_)))
}

/// Checks that the settings fit a foreign program: it accepts connections itself, in a process of its own.
fn check_program(c: &Config) -> Result<()> {
    let Some(program) = &c.program else { return Ok(()) };
    if let Readiness::Http(path) = program.readiness()
        && (c.dispatch == Dispatch::Shared || has_only_unix_sockets(c))
    {
        return Err(Error::config(format!(
            "ready-http = {path} cannot reach one worker, as all have the same socket: give a TCP address and dispatch = \
             reuseport, or ready = notify"
        )));
    }
    if c.model != ConcurrencyModel::Prefork {
        return Err(Error::config(format!(
            "model = {} does not fit a program, whose threads are its own: leave model out",
            c.model
        )));
    }
    match c.dispatch {
        Dispatch::Shared | Dispatch::Reuseport | Dispatch::IpHash => Ok(()),
        Dispatch::RoundRobin | Dispatch::LeastConn => Err(Error::config(format!(
            "dispatch = {} does not fit a program: {}; give reuseport, ip-hash or shared",
            c.dispatch,
            match c.dispatch {
                Dispatch::RoundRobin =>
                    "it accepts connections itself, so the primary cannot pass them on",
                _ => "it does not say how many connections it has",
            }
        ))),
    }
}

/// Checks that no setting contradicts the concurrency model: one process has one accept queue.
fn check_model_limits(c: &Config) -> Result<()> {
    if c.model.is_one_process() && c.dispatch != Dispatch::default() {
        return Err(Error::config(format!(
            "dispatch = {} does not fit model = {}: there is one worker process; leave dispatch out, or give model = \
             prefork",
            c.dispatch, c.model
        )));
    }
    match c.workers {
        WorkerCount::Count(n) if n > WorkerCount::MAX => Err(Error::config(format!(
            "workers = {n} is out of range: give auto or 0 to {}",
            WorkerCount::MAX
        ))),
        WorkerCount::Count(0) if c.model.is_one_process() => Err(Error::config(format!(
            "workers = 0 does not fit model = {}, whose one process serves: give at least 1, or auto",
            c.model
        ))),
        WorkerCount::Count(n) if c.model == ConcurrencyModel::Single && n > 1 => {
            Err(Error::config(format!(
                "workers = {n} does not fit model = single, which has one: leave workers out, or give another model"
            )))
        }
        WorkerCount::Count(_) | WorkerCount::Auto => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::builder().build().expect("defaults");
    }

    #[test]
    fn a_value_out_of_bounds_is_an_error_of_the_configuration() {
        let error = Config::builder().backlog(0).build().expect_err("0 is out of range");
        assert_eq!(error.exit_status(), crate::error::exit::CONFIG);
        let error = Config::builder().workers(WorkerCount::MAX + 1).build().expect_err("too many");
        assert_eq!(error.to_string(), "workers = 1025 is out of range: give auto or 0 to 1024");
    }

    #[test]
    fn a_model_of_one_process_refuses_what_it_cannot_do() {
        let one = Config::builder().model(ConcurrencyModel::Single);
        let two = one.clone().workers(2).build();
        assert!(two.expect_err("one process").to_string().starts_with("workers = 2 does not fit"));
        one.clone().workers(1).build().expect("fits");
        let spread = one.dispatch(Dispatch::Reuseport).build().expect_err("one process");
        assert!(spread.to_string().starts_with("dispatch = reuseport does not fit"), "{spread}");
    }

    #[test]
    fn threads_are_counted_by_workers_and_the_process_is_one() {
        for (model, processes, threads, pages) in [
            (ConcurrencyModel::Prefork, 4, 1, 1),
            (ConcurrencyModel::Threads, 1, 4, 1),
            (ConcurrencyModel::ThreadPerCore, 1, 4, 4),
        ] {
            let config = Config::builder().model(model).workers(4).build().expect("fits");
            assert_eq!(config.supervisor_config().workers, processes, "{model}");
            assert_eq!(
                (config.threads(), config.scoreboard_page_count()),
                (threads, pages),
                "{model}"
            );
            assert_eq!(config.max_process_connections(), 10_000 * threads, "{model}");
        }
    }

    #[test]
    fn listen_adds_to_what_was_set_and_replaces_only_the_default() {
        let texts = |builder: ConfigBuilder| -> Vec<String> {
            builder.build().expect("valid").bind().iter().map(ToString::to_string).collect()
        };
        let builder = || Config::builder();
        assert_eq!(texts(builder()), ["127.0.0.1:3000"]);
        let one = builder().listen("127.0.0.1:1").expect("an address");
        let two = one.clone().listen("unix:app.sock").expect("an address");
        assert_eq!(texts(two), ["127.0.0.1:1", "unix:app.sock"]);
        let built = one.build().expect("valid").into_builder();
        assert_eq!(texts(built.listen("[::1]:1").expect("an address")), ["127.0.0.1:1", "[::1]:1"]);
        let set = builder().bind(["127.0.0.1:2".parse::<std::net::SocketAddr>().expect("address")]);
        assert_eq!(
            texts(set.listen("127.0.0.1:3").expect("an address")),
            ["127.0.0.1:2", "127.0.0.1:3"]
        );
        assert!(builder().bind(Vec::<ListenAddr>::new()).build().is_err(), "no address");
    }

    #[test]
    fn limits_take_a_value_some_or_none() {
        let config = Config::builder().max_requests(1000).max_rss(Some(1 << 30)).stall_warn(None);
        let config = config.user("0").pid_file("app.pid").build().expect("valid");
        assert_eq!((config.max_requests(), config.max_rss()), (Some(1000), Some(1 << 30)));
        assert_eq!((config.stall_warn(), config.user()), (None, Some("0")));
        assert_eq!(config.pid_file(), Some(std::path::Path::new("app.pid")));
        assert!(Config::builder().max_requests(0).build().is_err(), "0 is no limit");
    }

    #[test]
    fn the_same_address_twice_is_refused() {
        let twice = vec![ListenAddr::default(), ListenAddr::default()];
        assert!(Config::builder().bind(twice).build().is_err());
    }
}
