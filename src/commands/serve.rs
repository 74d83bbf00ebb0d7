//! `prefork serve`.

use std::cell::Cell;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use hyper::http::HeaderValue;

use socket2::SockRef;

use crate::app::{self, FileSettings, Options, RootDir};
use crate::logging;
use crate::settings::{AppSettings, ConfigSources, FlagValues, Settings};
use tokio_prefork::{Config, ListenAddr};
use tokio_prefork::{Error, Result};

/// What is logged once where [`exposes_demo`].
const DEMO_WARNING: &str = "\
the demonstration is reachable from other machines: /cluster tells about every process, and /fib, /hash, /bytes, /echo and \
/sleep let anybody use up CPU, bandwidth and connections; give --demo=false to serve only /healthz and /readyz, --root DIR \
to serve files, or --bind 127.0.0.1:PORT";

pub(crate) fn run_serve(flags: FlagValues) -> Result<ExitCode> {
    let inputs = ConfigSources::of_this_process(flags);
    let settings = inputs.resolve()?;
    tokio_prefork::close_inherited_fds(&settings.config)?;
    logging::init_logger(&settings.log);
    logging::panic_hook::install();
    for warning in &settings.warnings {
        log::warn!("{warning}");
    }
    if settings.config.user.is_none() && nix::unistd::geteuid().is_root() {
        log::debug!("the workers run as root: give --user to let them drop their privileges");
    }
    if settings.app.faults {
        log::warn!("--faults is on: anybody who reaches the port can crash or hang a worker");
    }
    let warned = Cell::new(false);
    let warn = move |settings: &Settings| {
        if !warned.replace(exposes_demo(settings)) && warned.get() {
            log::warn!("{DEMO_WARNING}");
        }
    };
    warn(&settings);
    app::serve(configure(settings)?, move || {
        let settings = inputs.resolve()?;
        for warning in &settings.warnings {
            log::warn!("{warning}");
        }
        warn(&settings);
        configure(settings)
    })
}

/// The cluster's configuration with the application's options attached, so that a reload changes both.
///
/// The root is opened here, so that all workers of a generation serve the directory that a symbolic link led to when the
/// configuration was read.
fn configure(settings: Settings) -> Result<Config> {
    let app = settings.app;
    let options = Options {
        health_paths: app.health_paths,
        max_body_size: app.max_body_size,
        max_buffered_bodies: app.max_buffered_bodies,
        faults: app.faults,
        demo: app.demo,
        files: app.root.as_deref().map(|root| file_settings(root, &app)).transpose()?,
    };
    settings.config.into_builder().titles(true).app_settings(options).build()
}

fn file_settings(root: &Path, app: &AppSettings) -> Result<FileSettings> {
    let opened = RootDir::open(root, app.follow_symlinks).map_err(|e| {
        Error::config(format!(
            "root = {} cannot be opened: {e}; give a directory that exists",
            root.display()
        ))
    })?;
    let cache_control = app.cache_control.as_deref().map(HeaderValue::from_str).transpose();
    Ok(FileSettings {
        root: Arc::new(opened),
        fallback: app.fallback.clone(),
        error_page_404: app.error_page_404.clone(),
        cache_control: cache_control
            .map_err(|e| Error::config(format!("cache-control cannot be sent: {e}")))?,
        dotfiles: app.dotfiles,
    })
}

/// Whether other machines can reach the paths of the demonstration.
fn exposes_demo(settings: &Settings) -> bool {
    let is_remote = |addr: &ListenAddr| match addr {
        ListenAddr::Tcp(addr) => !addr.ip().to_canonical().is_loopback(),
        ListenAddr::Unix(_) => false,
        // What is no IP socket is no way in from outside.
        ListenAddr::Fd(number) => prefork_os::fd::duplicate_fd(*number)
            .ok()
            .and_then(|socket| SockRef::from(&socket).local_addr().ok()?.as_socket())
            .is_some_and(|addr| !addr.ip().to_canonical().is_loopback()),
        // A name may be that of any address.
        ListenAddr::Host(host) => host.name != "localhost",
        _ => true,
    };
    let is_there = settings.app.demo && settings.app.root.is_none();
    is_there && settings.config.bind.iter().any(is_remote)
}
