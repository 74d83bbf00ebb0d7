//! Environment variables that run all tests under another dispatch policy or concurrency model, or over TLS.

use std::collections::HashSet;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustls::ClientConfig;
use tempfile::TempDir;

use super::tls::{PairFiles, TestAuthority};

/// The name in the certificate of all servers under `PREFORK_TEST_TLS`.
pub const TLS_NAME: &str = "localhost";

/// The ports of servers that speak TLS because of `PREFORK_TEST_TLS`.
static TLS_PORTS: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// The certificate of all servers, and their clients: of HTTP/1.1, and of HTTP/2.
struct TlsOverride {
    files: PairFiles,
    clients: [Arc<ClientConfig>; 2],
    _dir: TempDir,
}

static TLS: LazyLock<TlsOverride> = LazyLock::new(|| {
    let authority = TestAuthority::new();
    let dir = tempfile::tempdir().expect("directory");
    let files = authority.issue(&[TLS_NAME]).write(dir.path(), "override");
    let clients = [b"http/1.1".to_vec(), b"h2".to_vec()].map(|protocol| {
        let mut config = authority.client_config();
        config.alpn_protocols = vec![protocol];
        Arc::new(config)
    });
    TlsOverride { files, clients, _dir: dir }
});

/// Returns the model of `PREFORK_TEST_MODEL`, unless it is the default.
pub fn model_override() -> Option<String> {
    std::env::var("PREFORK_TEST_MODEL").ok().filter(|model| model != "prefork")
}

/// Sets the dispatch policy of `PREFORK_TEST_DISPATCH`, if there is one.
pub fn apply_dispatch_override(command: &mut Command) {
    std::env::var_os("PREFORK_TEST_DISPATCH").map(|policy| command.env("PREFORK_DISPATCH", policy));
}

/// Whether all servers speak TLS, and all clients as well: `PREFORK_TEST_TLS`.
pub fn is_tls() -> bool {
    std::env::var_os("PREFORK_TEST_TLS").is_some()
}

/// Lets a server speak TLS on its TCP addresses.
pub fn apply_tls_override(command: &mut Command) {
    command.env("PREFORK_TLS_CERT", &TLS.files.certificate);
    command.env("PREFORK_TLS_KEY", &TLS.files.key);
}

/// Records that a server has this port from now on, or no longer.
pub fn set_speaks_tls(port: u16, speaks_tls: bool) {
    let mut ports = TLS_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let ports = ports.get_or_insert_default();
    if speaks_tls {
        ports.insert(port);
    } else {
        ports.remove(&port);
    }
}

/// Whether a server speaks TLS on this port because of `PREFORK_TEST_TLS`.
pub fn speaks_tls(port: u16) -> bool {
    let ports = TLS_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    ports.as_ref().is_some_and(|ports| ports.contains(&port))
}

/// Returns the settings of a client of such a server.
pub fn tls_client(is_http2: bool) -> Arc<ClientConfig> {
    let [http1, http2] = &TLS.clients;
    Arc::clone(if is_http2 { http2 } else { http1 })
}
