//! Something that workers wait for as long as a test wants.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A fifo named `gate`, at which the workers of `boot-fails-if-broken` wait before they are ready.
pub struct Gate(File);

impl Gate {
    /// Closed until [`Gate::open`].
    pub fn closed(dir: &Path) -> Gate {
        let path = dir.join("gate");
        mkfifo(&path, Mode::S_IRWXU).expect("a fifo");
        // Both ends, so that opening waits for nobody and what is written stays.
        Gate(OpenOptions::new().read(true).write(true).open(path).expect("the fifo"))
    }

    /// For those who wait, and for all who come later while the gate lives.
    pub fn open(&mut self) {
        self.0.write_all(b"!").expect("the gate opens");
    }
}
