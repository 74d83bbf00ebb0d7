//! A FIFO that holds back the boot of workers until a test releases it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A FIFO named `barrier`: workers of the program `boot-fails-if-broken` wait for it before they are ready.
pub struct BootBarrier(File);

impl BootBarrier {
    /// Creates the FIFO; workers wait until [`BootBarrier::release`].
    pub fn new(dir: &Path) -> BootBarrier {
        let path = dir.join("barrier");
        mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        // Opened for both, so that opening does not block and written bytes stay.
        BootBarrier(OpenOptions::new().read(true).write(true).open(path).expect("the FIFO"))
    }

    /// Releases waiting workers, and all later ones while the barrier lives.
    pub fn release(&mut self) {
        self.0.write_all(b"!").expect("write to the FIFO");
    }
}
