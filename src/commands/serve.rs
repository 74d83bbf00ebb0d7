//! `prefork serve`: runs the built-in application.

use std::cell::Cell;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use hyper::http::HeaderValue;

use socket2::SockRef;

use crate::app::{self, AppOptions, CLIENT_PATH, FileServerConfig, OverlayTag, RootDir};
use crate::dev::{self, DevState, WatchSettings};
use crate::logging;
use crate::settings::{AppSettings, FlagValues, PROGRAM, Settings};
use tokio_prefork::log_output::install_panic_hook;
use tokio_prefork::{Config, ListenAddr};
use tokio_prefork::{Error, Result, exit};

/// Logged once if [`is_demo_exposed`].
const DEMO_WARNING: &str = "\
the demonstration paths are reachable from other machines: /cluster describes every process, and /fib, /hash, /bytes, /echo \
and /sleep let anyone use CPU, bandwidth and connections; give --demo=false to serve only /healthz and /readyz, --root DIR \
to serve files, or --bind 127.0.0.1:PORT";

/// Runs the server until a signal or a control request stops it, and returns its exit status.
pub(crate) fn run_serve(flags: FlagValues) -> Result<ExitCode> {
    let sources = flags.sources(PROGRAM);
    let settings = sources.resolve()?;
    tokio_prefork::close_inherited_fds(settings.config())?;
    logging::init_logger(&settings.app().log, settings.app().log_format);
    install_panic_hook();
    settings.log_warnings();
    if settings.config().user().is_none() && nix::unistd::geteuid().is_root() {
        log::debug!("the workers run as root: give --user to drop their privileges");
    }
    if settings.app().faults {
        log::warn!("--faults is set: any client can crash or hang a worker");
    }
    let was_exposed = Cell::new(false);
    let warn_if_demo_exposed = move |settings: &Settings| {
        if !was_exposed.replace(is_demo_exposed(settings)) && was_exposed.get() {
            log::warn!("{DEMO_WARNING}");
        }
    };
    warn_if_demo_exposed(&settings);
    let overlay_tag = OverlayTag::default();
    let dev_state = DevState::new(watch_settings(&settings)?, None);
    if settings.app().overlay {
        let tag = overlay_tag.clone();
        dev_state.show_overlay(move |element| tag.set(element));
    }
    let dev_of_reload = dev_state.clone();
    let (log_filter, log_format) = (settings.app().log.clone(), settings.app().log_format);
    app::serve_app(build_config(settings, &overlay_tag)?, &dev_state, move || {
        let settings = sources.resolve()?;
        settings.log_warnings();
        dev_of_reload.set_settings(watch_settings(&settings)?);
        warn_if_demo_exposed(&settings);
        logging::warn_about_changed_log(
            (&settings.app().log, settings.app().log_format),
            (&log_filter, log_format),
        );
        build_config(settings, &overlay_tag)
    })?;
    Ok(ExitCode::from(exit::OK))
}

/// Returns what to watch: with `auto` the root directory and the configuration file.
fn watch_settings(settings: &Settings) -> Result<Option<WatchSettings>> {
    let root = settings.app().root.as_deref();
    let paths = root.into_iter().chain(settings.config_file());
    settings.app().watch.resolve(&paths.map(Path::to_path_buf).collect::<Vec<_>>())
}

/// Builds the cluster's configuration with the application's options attached, so that a reload changes both.
///
/// Opens the root directory here, so that all workers of a generation serve the same directory even if its path is a
/// symbolic link that changes later.
fn build_config(settings: Settings, overlay_tag: &OverlayTag) -> Result<Config> {
    let app = settings.app();
    let options = AppOptions {
        health_paths: app.health_paths,
        max_body_size: app.max_body_size,
        max_buffered_bodies: app.max_buffered_bodies,
        faults: app.faults,
        demo: app.demo,
        files: app
            .root
            .as_deref()
            .map(|root| file_server_config(root, app, overlay_tag))
            .transpose()?,
    };
    // The built-in application looks at client addresses for this path only.
    let config = settings.config().clone().into_builder().connection_info(false);
    let config = if app.overlay { dev::overlay_config(settings.config(), config)? } else { config };
    config.connection_info_path(CLIENT_PATH).app_settings(options).build()
}

fn file_server_config(
    root: &Path,
    app: &AppSettings,
    overlay_tag: &OverlayTag,
) -> Result<FileServerConfig> {
    let root_dir = RootDir::open(root, app.follow_symlinks).map_err(|e| {
        Error::config(format!(
            "root = {} cannot be opened: {e}; give a directory that exists",
            root.display()
        ))
    })?;
    let cache_control = app.cache_control.as_deref().map(HeaderValue::from_str).transpose();
    Ok(FileServerConfig {
        root: Arc::new(root_dir),
        fallback: app.fallback.clone(),
        error_page_404: app.error_page_404.clone(),
        cache_control: cache_control
            .map_err(|e| Error::config(format!("cache-control cannot be sent: {e}")))?,
        dotfiles: app.dotfiles,
        overlay_tag: overlay_tag.clone(),
    })
}

/// Returns whether other machines can reach the demonstration paths.
fn is_demo_exposed(settings: &Settings) -> bool {
    let is_remote = |addr: &ListenAddr| match addr {
        ListenAddr::Tcp(addr) => !addr.ip().to_canonical().is_loopback(),
        ListenAddr::Unix(_) => false,
        // A descriptor that is not an IP socket cannot be reached from other machines.
        ListenAddr::Fd(number) => prefork_os::fd::duplicate_fd(*number)
            .ok()
            .and_then(|socket| SockRef::from(&socket).local_addr().ok()?.as_socket())
            .is_some_and(|addr| !addr.ip().to_canonical().is_loopback()),
        // A host name may resolve to any address.
        ListenAddr::Host(host) => host.name != "localhost",
        _ => true,
    };
    let is_demo_served = settings.app().demo && settings.app().root.is_none();
    is_demo_served && settings.config().bind().iter().any(is_remote)
}
