//! The overlay in the browser: its admin listener, and the script element that pages include.

use tokio_prefork::{Config, ConfigBuilder, Error, ListenAddr, PrimaryHandle, Result};

/// The address of the admin listener where none is configured. The kernel chooses the port.
const DEFAULT_ADMIN_ADDRESS: &str = "127.0.0.1:0";

/// Returns the configuration with an admin listener, which serves the script of the overlay.
///
/// # Errors
/// No browser can use the configured listener.
pub(crate) fn overlay_config(given: &Config, builder: ConfigBuilder) -> Result<ConfigBuilder> {
    match given.admin() {
        None => builder.admin(DEFAULT_ADMIN_ADDRESS),
        Some(_) if given.admin_token_file().is_some() => Err(Error::config(
            "overlay = true conflicts with admin-token-file, as a script element presents no token: remove one of them",
        )),
        Some(ListenAddr::Unix(path)) => Err(Error::config(format!(
            "overlay = true needs an admin listener that a browser reaches, which {path} is not: give admin = 127.0.0.1:0"
        ))),
        Some(_) => Ok(builder),
    }
}

/// Returns the script element that a page includes. `None` without an address that a browser reaches.
pub(crate) fn script_element(primary: &PrimaryHandle<'_>) -> Option<String> {
    let addresses = primary.admin_addresses();
    let tcp = addresses.iter().find_map(|address| match address {
        ListenAddr::Tcp(address) => Some(address),
        _ => None,
    })?;
    Some(format!(r#"<script async src="http://{tcp}/overlay.js"></script>"#))
}
