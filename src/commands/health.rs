//! `prefork health`: checks over HTTP whether a server is ready.
//!
//! Meant for health checks in containers that have no other HTTP client.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use socket2::{Domain, SockAddr, Socket, Type};

use prefork_bench::load::unverified_stream;

use crate::settings::{FlagValues, PROGRAM};
use prefork_os::unix_path::with_unix_addr;
use tokio_prefork::cli::parse_duration;
use tokio_prefork::text::HumanDuration;
use tokio_prefork::text::printable;
use tokio_prefork::{BindAddr, ListenAddr, UnixAddr};
use tokio_prefork::{Error, Result, exit};

const HELP: &str = "\
ADDRESS is HOST:PORT, :PORT or unix:PATH; https://HOST:PORT and unix:PATH?tls=on speak TLS. The default is the first listening \
address that the environment or the configuration file sets (PREFORK_BIND, PORT, PREFORK_CONFIG), with TLS if it speaks TLS \
(PREFORK_TLS_CERT); with --admin, the admin listener (PREFORK_ADMIN). The certificate is not verified. Where clients need a \
certificate, ask the admin listener or an address without TLS.

Exit status: 0 the response has a status of 200 to 299, 1 it has another status, 69 there was no response in time.

Examples:
  prefork health
  prefork health --admin --path /livez
  prefork health :8080 --path /readyz --timeout 1s
  HEALTHCHECK CMD [\"/prefork\", \"health\"]";

/// Maximum number of bytes to read for the status line of the response.
const MAX_STATUS_LINE: usize = 256;

/// Upper bound of `--timeout`: one day. Prevents an overflow of the deadline.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Arguments of `prefork health`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HealthCall {
    address: Option<BindAddr>,
    /// Whether the default address is that of the admin listener.
    admin: bool,
    path: String,
    timeout: Duration,
}

/// Returns the definition of the verb `health`.
pub(crate) fn health_command() -> Command {
    let address = Arg::new("address").value_name("ADDRESS").value_parser(parse_address);
    let path = Arg::new("path").long("path").value_name("PATH").default_value("/readyz");
    let timeout = Arg::new("timeout").long("timeout").value_name("DURATION").default_value("2s");
    Command::new("health")
        .about("Check over HTTP whether a server is ready")
        .after_help(HELP)
        .arg(address.help("Address of the server"))
        .arg(
            Arg::new("admin")
                .long("admin")
                .action(ArgAction::SetTrue)
                .help("Ask the admin listener that the environment or the configuration file sets"),
        )
        .arg(path.help("Path to request"))
        .arg(timeout.value_parser(parse_duration).help("Timeout for the response"))
}

/// Parses the address of a server. Its error does not repeat the text, which the error of the command line has.
fn parse_address(text: &str) -> Result<BindAddr, String> {
    text.parse::<BindAddr>().map_err(|error| {
        let error = error.to_string();
        error.strip_prefix(&format!("bind = {text:?} ")).unwrap_or(&error).to_string()
    })
}

/// Reads the arguments of `health`.
pub(crate) fn parse_health(matches: &ArgMatches) -> Option<HealthCall> {
    Some(HealthCall {
        address: matches.get_one::<BindAddr>("address").cloned(),
        admin: matches.get_flag("admin"),
        path: matches.get_one::<String>("path")?.clone(),
        timeout: *matches.get_one("timeout")?,
    })
}

/// Sends the request. A status other than 200 to 299 is an error.
pub(crate) fn run_health(call: HealthCall) -> Result<ExitCode> {
    let (address, uses_tls) = match call.address {
        Some(BindAddr { addr, tls, .. }) => (addr, tls == Some(true)),
        None => configured_address(call.admin)?,
    };
    if call.path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::config(
            "--path contains white space or a control character: percent-encode it",
        ));
    }
    let timeout = call.timeout.clamp(Duration::from_millis(1), MAX_TIMEOUT);
    let deadline = Instant::now() + timeout;
    let line = request_status_line(&address, uses_tls, &call.path, deadline).map_err(|e| {
        match e.kind() {
            // A timeout set as a socket option is reported as `WouldBlock`.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let why = format!("no response within {}", HumanDuration(timeout));
                Error::target(&address, io::Error::new(io::ErrorKind::TimedOut, why))
            }
            _ => Error::target(&address, e),
        }
    })?;
    match parse_status(&line) {
        Some(200..=299) => Ok(ExitCode::from(exit::OK)),
        Some(code) => {
            Err(Error::refused(format!("not ready: {} returns status {code}", call.path)))
        }
        None => Err(Error::refused(format!("{address} does not speak HTTP: {}", printable(&line)))),
    }
}

/// Returns the first configured address, or that of the admin listener, and whether it speaks TLS.
fn configured_address(admin: bool) -> Result<(ListenAddr, bool)> {
    let settings = FlagValues::default().sources(PROGRAM).resolve()?;
    let config = settings.config();
    let first = if admin { config.admin() } else { config.bind().first() };
    let missing = "no address of a server is configured: give ADDRESS";
    let address = first.cloned().ok_or_else(|| Error::config(missing))?;
    let is_unix = matches!(address, ListenAddr::Unix(_));
    let uses_tls = !admin && config.speaks_tls_at(&address, is_unix);
    Ok((address, uses_tls))
}

/// Sends a GET request and returns the first line of the response.
fn request_status_line(
    address: &ListenAddr,
    uses_tls: bool,
    path: &str,
    deadline: Instant,
) -> io::Result<String> {
    let socket: Socket = match address {
        ListenAddr::Tcp(addr) => {
            TcpStream::connect_timeout(&connectable_addr(*addr), time_remaining(deadline)?)?.into()
        }
        ListenAddr::Host(host) => connect_host(&host.name, host.port, deadline)?.into(),
        ListenAddr::Unix(unix) => connect_unix(unix, deadline)?,
        // `Fd`, and variants added later.
        _ => return Err(io::Error::other("cannot connect to a file descriptor: give ADDRESS")),
    };
    let stream = DeadlineStream { socket, deadline };
    match uses_tls {
        false => send_request(stream, path),
        true => send_request(unverified_stream(stream).map_err(io::Error::other)?, path),
    }
}

/// Connects to the first address of a host that accepts.
fn connect_host(name: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last_error = io::Error::other("the host name has no address");
    for addr in (name, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, time_remaining(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(e) => last_error = e,
        }
    }
    Err(last_error)
}

/// A socket whose reads and writes end at a deadline, all together.
struct DeadlineStream {
    socket: Socket,
    deadline: Instant,
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(time_remaining(self.deadline)?))?;
        self.socket.read(buffer)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(time_remaining(self.deadline)?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Connects to a Unix socket. While the server's accept queue is full, the kernel waits up to the write timeout.
fn connect_unix(unix: &UnixAddr, deadline: Instant) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(time_remaining(deadline)?))?;
    let connected = match unix.abstract_name() {
        // A leading NUL byte marks an abstract name.
        Some(name) => {
            let addr = SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat()))?;
            socket.connect(&addr)
        }
        None => with_unix_addr(&unix.path, |addr| socket.connect(addr)),
    };
    match connected {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        outcome => outcome.map(|()| socket),
    }
}

fn send_request(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    let mut chunk = [0; MAX_STATUS_LINE];
    while !line.contains(&b'\n') && line.len() < MAX_STATUS_LINE {
        match stream.read(&mut chunk)? {
            0 => break,
            n => line.extend_from_slice(&chunk[..n]),
        }
    }
    let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
    Ok(String::from_utf8_lossy(&line[..end]).trim_end().to_string())
}

/// Returns the time until `deadline`, or `TimedOut` if it has passed.
fn time_remaining(deadline: Instant) -> io::Result<Duration> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(remaining) }
}

/// Replaces the unspecified address (0.0.0.0 or ::), which servers listen on, with the loopback address.
fn connectable_addr(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    addr
}

/// Parses the status code of an HTTP/1 status line.
fn parse_status(line: &str) -> Option<u16> {
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_address_is_replaced_with_loopback() {
        for (bound, connectable) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(connectable_addr(bound.parse().expect("address")).to_string(), connectable);
        }
    }

    #[test]
    fn status_is_parsed_from_http_1_only() {
        assert_eq!(parse_status("HTTP/1.1 200 OK"), Some(200));
        assert_eq!(parse_status("HTTP/1.0 503"), Some(503));
        for line in ["", "HTTP/1.1", "SSH-2.0-x 200", "HTTP/1.1 many"] {
            assert_eq!(parse_status(line), None, "{line}");
        }
    }

    #[test]
    fn arguments_are_parsed() {
        let matches = health_command().get_matches_from(["health", ":80", "--timeout", "1s"]);
        let call = parse_health(&matches).expect("call");
        let address = Some(":80".parse::<BindAddr>().expect("address"));
        let timeout = Duration::from_secs(1);
        assert_eq!(
            call,
            HealthCall { address, admin: false, path: "/readyz".to_string(), timeout }
        );
    }
}
