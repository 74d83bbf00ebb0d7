//! An application with sockets of its own that outlive an upgrade: a listener, a UDP socket of the workers, and an admin
//! socket of the primary.

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{BoxError, Cluster, Error, PrimaryHandle, Result, Worker, inherit_socket};

use super::ProgramArguments;

/// Writes the ports of the listener and of the UDP socket to the file `ports`, and a line to `opened` for each socket that
/// is not inherited.
pub(super) fn inherited_sockets(arguments: ProgramArguments) -> Result<()> {
    let own = inherit_socket("own", || {
        count_opened();
        TcpListener::bind("127.0.0.1:0")
    })?;
    let udp = inherit_socket("udp", || {
        count_opened();
        UdpSocket::bind("127.0.0.1:0")
    })?;
    let admin = inherit_socket("admin", || {
        count_opened();
        UnixListener::bind("admin.sock")
    })?;
    let failed = |e: std::io::Error| Error::system("set up the sockets", e);
    udp.set_nonblocking(true).map_err(failed)?;
    let port = |address: std::io::Result<std::net::SocketAddr>| address.map(|one| one.port());
    let ports = [port(own.local_addr()), port(udp.local_addr())];
    let [own_port, udp_port] = ports.map(|port| port.unwrap_or_default());
    fs::write("ports", format!("{own_port} {udp_port}")).map_err(failed)?;
    Cluster::new(arguments.config.into_builder().listener(own)?.build()?)
        .on_readable(admin, answer_admin)
        .serve(move |worker: Worker| {
            let udp = udp.try_clone();
            async move {
                tokio::task::spawn_local(answer_packets(worker.clone(), udp?));
                Ok(service_fn(move |_: Request<Incoming>| {
                    let text = worker.id().to_string();
                    async { Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(text)))) }
                }))
            }
        })
}

fn count_opened() {
    let file = fs::File::options().create(true).append(true).open("opened");
    let _ = file.and_then(|mut file| file.write_all(b"opened\n"));
}

/// Writes the number of upgrades to each client.
fn answer_admin(primary: &mut PrimaryHandle<'_>, admin: &mut UnixListener) {
    while let Ok((client, _)) = admin.accept() {
        write_line(client, primary.upgrade_count());
    }
}

fn write_line(mut client: impl Write, text: impl Display) {
    let _ = writeln!(client, "{text}");
}

/// Answers each packet with the generation of the worker.
async fn answer_packets(worker: Worker, udp: UdpSocket) -> Result<(), BoxError> {
    let udp = tokio::net::UdpSocket::from_std(udp)?;
    let mut packet = [0; 64];
    loop {
        let (_, from) = udp.recv_from(&mut packet).await?;
        udp.send_to(worker.generation().to_string().as_bytes(), from).await?;
    }
}
