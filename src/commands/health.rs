//! `prefork health`: whether a server is ready, asked as a balancer asks: over its port. For health checks of
//! containers, which have no other program in them.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command, value_parser};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::settings::value_syntax::parse_duration;
use crate::settings::{ConfigSources, FlagValues};
use tokio_prefork::text::HumanDuration;
use tokio_prefork::text::printable;
use tokio_prefork::{Error, Result, exit};
use tokio_prefork::{ListenAddr, UnixAddr};

const HELP: &str = "\
ADDRESS is HOST:PORT, :PORT or unix:PATH. Without it the first address is asked that the environment and the \
configuration file name (PREFORK_BIND, PORT, PREFORK_CONFIG).

Exit status: 0 it answered with a status of 200 to 299, 1 with another one, 69 nobody answered in time.

Examples:
  prefork health
  prefork health :8080 --path /readyz --timeout 1s
  HEALTHCHECK CMD [\"/prefork\", \"health\"]";

/// The longest head of an answer that is waited for.
const LONGEST_LINE: usize = 256;

/// The longest time that an answer may take, whatever is asked for: beyond it, clocks overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Whom to ask, and for what.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HealthCall {
    address: Option<ListenAddr>,
    path: String,
    timeout: Duration,
}

/// The words after `prefork health`.
pub(crate) fn health_command() -> Command {
    let address = Arg::new("address").value_name("ADDRESS").value_parser(value_parser!(ListenAddr));
    let path = Arg::new("path").long("path").value_name("PATH").default_value("/readyz");
    let timeout = Arg::new("timeout").long("timeout").value_name("DURATION").default_value("2s");
    Command::new("health")
        .about("Ask a server whether it is ready, for health checks of containers")
        .after_help(HELP)
        .arg(address.help("Where it listens"))
        .arg(path.help("What is asked for"))
        .arg(timeout.value_parser(parse_duration).help("How long an answer may take"))
}

/// Reads the words.
pub(crate) fn parse_health(matches: &ArgMatches) -> Option<HealthCall> {
    Some(HealthCall {
        address: matches.get_one::<ListenAddr>("address").cloned(),
        path: matches.get_one::<String>("path")?.clone(),
        timeout: *matches.get_one("timeout")?,
    })
}

pub(crate) fn run_health(call: HealthCall) -> Result<ExitCode> {
    let configured = || {
        let bind = ConfigSources::of_this_process(FlagValues::default()).resolve()?.config.bind;
        bind.into_iter().next().ok_or_else(|| Error::config("no address to ask: name one"))
    };
    let address = call.address.map_or_else(configured, Ok)?;
    if call.path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::config("the path has a blank in it: write it as in a URL"));
    }
    let timeout = call.timeout.clamp(Duration::from_millis(1), MAX_TIMEOUT);
    let line = ask(&address, &call.path, Instant::now() + timeout).map_err(|e| match e.kind() {
        // A timeout of a socket option is told as `WouldBlock`.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let why = format!("no answer within {}", HumanDuration(timeout));
            Error::target(&address, io::Error::new(io::ErrorKind::TimedOut, why))
        }
        _ => Error::target(&address, e),
    })?;
    match status(&line) {
        Some(200..=299) => Ok(ExitCode::from(exit::OK)),
        Some(code) => Err(Error::refused(format!("not ready: {} answers {code}", call.path))),
        None => Err(Error::refused(format!("{address} does not speak HTTP: {}", printable(&line)))),
    }
}

/// The first line of the answer.
fn ask(address: &ListenAddr, path: &str, deadline: Instant) -> io::Result<String> {
    match address {
        ListenAddr::Tcp(addr) => {
            let stream = TcpStream::connect_timeout(&reachable(*addr), left(deadline)?)?;
            exchange(&stream, path, deadline)
        }
        ListenAddr::Host(host) => {
            let addrs = (host.name.as_str(), host.port).to_socket_addrs()?;
            let mut failed = io::Error::other("the name has no address");
            for addr in addrs {
                match TcpStream::connect_timeout(&addr, left(deadline)?) {
                    Ok(stream) => return exchange(&stream, path, deadline),
                    Err(e) => failed = e,
                }
            }
            Err(failed)
        }
        ListenAddr::Unix(unix) => exchange(&connect_unix(unix, deadline)?, path, deadline),
        // `Fd`, and what is not known yet.
        _ => Err(io::Error::other("a descriptor has no address: name one")),
    }
}

/// Connects to a Unix socket. The kernel waits while the queue of the server is full, for as long as a write may take.
fn connect_unix(unix: &UnixAddr, deadline: Instant) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(left(deadline)?))?;
    let addr = match unix.abstract_name() {
        // The kernel knows an abstract name by the NUL before it.
        Some(name) => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat()))?,
        None => SockAddr::unix(&unix.path)?,
    };
    match socket.connect(&addr) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        outcome => outcome.map(|()| socket),
    }
}

fn exchange<S: AsFd>(stream: &S, path: &str, deadline: Instant) -> io::Result<String>
where
    for<'a> &'a S: Read + Write,
{
    let (socket, mut stream) = (SockRef::from(stream), stream);
    socket.set_write_timeout(Some(left(deadline)?))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    let mut piece = [0; LONGEST_LINE];
    while !line.contains(&b'\n') && line.len() < LONGEST_LINE {
        socket.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            n => line.extend_from_slice(&piece[..n]),
        }
    }
    let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
    Ok(String::from_utf8_lossy(&line[..end]).trim_end().to_string())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Where to connect to, for a server that listens on all addresses.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    addr
}

fn status(line: &str) -> Option<u16> {
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_asked_on_this_machine() {
        for (listens, asked) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(reachable(listens.parse().expect("address")).to_string(), asked);
        }
    }

    #[test]
    fn the_status_is_read_from_http_only() {
        assert_eq!(status("HTTP/1.1 200 OK"), Some(200));
        assert_eq!(status("HTTP/1.0 503"), Some(503));
        for line in ["", "HTTP/1.1", "SSH-2.0-x 200", "HTTP/1.1 many"] {
            assert_eq!(status(line), None, "{line}");
        }
    }

    #[test]
    fn the_words_are_read() {
        let matches = health_command().get_matches_from(["health", ":80", "--timeout", "1s"]);
        let call = parse_health(&matches).expect("call");
        let address = Some(":80".parse().expect("address"));
        let timeout = Duration::from_secs(1);
        assert_eq!(call, HealthCall { address, path: "/readyz".to_string(), timeout });
    }
}
