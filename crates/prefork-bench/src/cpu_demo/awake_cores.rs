//! Keeps all cores of the machine awake during a measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use prefork_os::thread::{block_signals_in_thread, set_thread_idle_policy};

/// Threads that compute whenever their core has nothing else to do, until this is dropped.
///
/// A core with nothing to do sleeps, and waking it takes longer than taking it from such a thread: on a virtual machine its host must
/// schedule it first. Without them an idle server looks slower than one that is busy in the background.
#[derive(Debug)]
pub(super) struct AwakeCores {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl AwakeCores {
    /// Starts a thread per core.
    pub(super) fn start(cores: usize) -> AwakeCores {
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = (0..cores).map(|_| {
            let is_over = is_over.clone();
            std::thread::spawn(move || {
                // Otherwise they would disturb what is measured.
                if block_signals_in_thread().is_err() || set_thread_idle_policy().is_err() {
                    return;
                }
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        });
        let threads = threads.collect();
        AwakeCores { is_over, threads }
    }
}

impl Drop for AwakeCores {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}
