//! An echo server on plain TCP: `serve_connections` serves any protocol.
//!
//! The server sends a greeting, echoes each line, and sends `goodbye` when its worker drains.
//!
//! ```text
//! cargo run --example tcp_echo -- 127.0.0.1:3000
//! nc 127.0.0.1 3000
//! ```

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_prefork::{AcceptedStream, Cluster, Config, Main, Worker};

/// Longest accepted line in bytes, so that a client cannot fill the memory. A longer one ends the connection.
const MAX_LINE_LENGTH: u64 = 64 * 1024;

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve_connections(|worker: Worker| async move {
        Ok(move |stream: AcceptedStream| {
            let worker = worker.clone();
            async move {
                if let Err(e) = echo(&worker, stream).await {
                    log::info!("pid {}: {e}", worker.pid());
                }
            }
        })
    })
}

async fn echo(worker: &Worker, stream: AcceptedStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("echo from pid {}\n", worker.pid()).as_bytes()).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut stream).take(MAX_LINE_LENGTH);
        tokio::select! {
            read = limited.read_until(b'\n', &mut line) => match read? {
                0 => return Ok(()),
                _ if !line.ends_with(b"\n") && line.len() as u64 == MAX_LINE_LENGTH => {
                    return Err(io::Error::other("the line is too long"));
                }
                _ => stream.write_all(&line).await?,
            },
            () = worker.draining() => return stream.write_all(b"goodbye\n").await,
        }
    }
}
