//! The output of a program whose primary is dead: nobody reads it any more, and a program that waits in its writes finishes no
//! request.

use std::io;
use std::os::fd::OwnedFd;

use crate::worker_stdio::take_output_readers;
use prefork_os::async_fd::register_readable;

/// Reads and discards what the program prints, until it ends.
pub(super) fn discard_output() {
    for reader in take_output_readers() {
        // If it fails, the program waits until the graceful timeout.
        tokio::task::spawn_local(discard(reader));
    }
}

async fn discard(reader: OwnedFd) -> io::Result<()> {
    let reader = register_readable(reader)?;
    let mut buffer = [0; 8192];
    loop {
        let mut ready = reader.readable().await?;
        let read = ready.try_io(|pipe| Ok(nix::unistd::read(pipe, &mut buffer)?));
        match read {
            Ok(Ok(0)) => return Ok(()),
            Ok(Err(e)) => return Err(e),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}
