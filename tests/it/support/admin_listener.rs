//! Requests to the admin listener of a server.

use std::net::SocketAddr;

use super::http::{Address, Client, Failure, Response};
use super::{Server, wait};

/// Returns the address of the admin listener.
#[track_caller]
pub fn admin_address(server: &Server) -> Address {
    let text = wait::wait_until_some("an admin process", || {
        let status = server.try_status()?;
        (status["admin"]["state"] == "serving").then(|| status["admin"]["listeners"][0].clone())
    });
    let text = text.as_str().expect("an address");
    match text.strip_prefix("unix:") {
        Some(path) => Address::Unix(server.dir().join(path)),
        None => {
            let addr = text.trim_start_matches("http://").parse::<SocketAddr>();
            Address::Tcp(addr.expect("an address"))
        }
    }
}

/// Returns the pid of the admin process, if one serves.
pub fn admin_pid(server: &Server) -> Option<u32> {
    u32::try_from(server.try_status()?["admin"]["pid"].as_u64()?).ok()
}

/// Sends a GET request with more header fields on a new connection.
pub fn try_get(address: &Address, path: &str, headers: &str) -> Result<Response, Failure> {
    let mut client = Client::connect(address)?;
    client.send_and_read(format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
    ))
}

/// Sends a GET request on a new connection.
#[track_caller]
pub fn get(address: &Address, path: &str) -> Response {
    try_get(address, path, "").unwrap_or_else(|e| panic!("GET {path}: {e:?}"))
}
