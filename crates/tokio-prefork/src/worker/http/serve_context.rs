//! What HTTP serving needs from a worker; implemented with `Rc` for one thread, `Arc` for several.
//!
//! The code that serves is generic over it and compiled for each, so a single-threaded worker pays for no atomic
//! operation and needs no `Send` handler.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::connection_state::ConnectionState;
use super::request_observers::{EndedRequest, RequestObservers};
use super::request_record::RequestRecord;
use crate::access_log::LineBuffer;
use crate::client::RequestIds;
use crate::config::Config;
use crate::scoreboard::{RequestRecorder, WorkerPage};
use crate::worker::connection_registry::ConnectionEntry;
use crate::worker::local_state::LocalWorkerState;
use prefork_supervisor::WorkerTag;

/// What HTTP serving needs from a worker; implemented with `Rc` for one thread, `Arc` for several.
pub(crate) trait ServeContext: Sized + 'static {
    /// The reference-counted pointer that connections share data with: `Rc` or `Arc`.
    type Ptr<T: 'static>: Deref<Target = T> + Clone;
    type Recorder: RequestRecorder;

    /// Moves `value` into a shared pointer.
    fn new_shared<T: 'static>(value: T) -> Self::Ptr<T>;

    fn tag(&self) -> WorkerTag;
    fn config(&self) -> &Config;
    /// The scoreboard page that requests are recorded in.
    fn worker_page(&self) -> &Self::Recorder;
    /// Returns what observes the requests; `None` if nothing does.
    fn observers(&self) -> Option<&RequestObservers>;
    /// Calls `act` with the buffer for lines of the access log of this thread.
    fn with_line_buffer<T>(&self, act: impl FnOnce(&mut LineBuffer) -> T) -> T;
    /// Returns what gives ids to requests; `None` without `request-id`.
    fn request_ids(&self) -> Option<&RequestIds>;
    /// Returns how to speak TLS; `None` without a certificate.
    #[cfg(feature = "tls")]
    fn tls_config(&self) -> Option<&Arc<rustls::ServerConfig>>;
    fn is_draining(&self) -> bool;
    /// Whether connections between two requests have to move to another worker now.
    fn should_hand_over(&self) -> bool;
    /// Whether the next response has to carry `Connection: close`.
    fn should_announce_close(&self, conn: &ConnectionState) -> bool;

    /// Hands a request that has ended to the observers. `ended_ns` is 0 if the record has no start.
    fn report_ended(&self, record: Box<RequestRecord>, ended_ns: u64) {
        if let Some(observers) = self.observers() {
            self.with_line_buffer(|buffer| {
                let ended = EndedRequest { record: &record, ended_ns };
                observers.request_ended(&ended, buffer);
                buffer.keep_record(record);
            });
        }
    }

    /// Milliseconds on the monotonic clock at the last heartbeat: up to 100 ms old, but needs no system call.
    fn now_ms(&self) -> u64 {
        self.worker_page().byte_meter().coarse_now_ms()
    }
}

impl ServeContext for LocalWorkerState {
    type Ptr<T: 'static> = Rc<T>;
    type Recorder = WorkerPage;

    fn new_shared<T: 'static>(value: T) -> Rc<T> {
        Rc::new(value)
    }

    fn tag(&self) -> WorkerTag {
        self.tag
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn worker_page(&self) -> &WorkerPage {
        &self.worker_page
    }

    fn observers(&self) -> Option<&RequestObservers> {
        self.observers.as_deref()
    }

    fn with_line_buffer<T>(&self, act: impl FnOnce(&mut LineBuffer) -> T) -> T {
        act(&mut self.line_buffer.borrow_mut())
    }

    fn request_ids(&self) -> Option<&RequestIds> {
        self.shared.request_ids.as_ref()
    }

    #[cfg(feature = "tls")]
    fn tls_config(&self) -> Option<&Arc<rustls::ServerConfig>> {
        self.shared.tls_config.as_ref()
    }

    fn is_draining(&self) -> bool {
        self.drain.current_order().is_some()
    }

    fn should_hand_over(&self) -> bool {
        LocalWorkerState::should_hand_over(self)
    }

    fn should_announce_close(&self, conn: &ConnectionState) -> bool {
        LocalWorkerState::should_announce_close(self, conn)
    }
}

/// What the task that serves a connection needs of it: its state, and to be woken when the state changes.
pub(crate) trait ConnectionHandle {
    fn state(&self) -> &Arc<ConnectionState>;

    /// Registers the task's waker. Called in each poll.
    fn register_waker(&self, waker: &Waker);
}

impl ConnectionHandle for ConnectionEntry {
    fn state(&self) -> &Arc<ConnectionState> {
        &self.conn
    }

    fn register_waker(&self, waker: &Waker) {
        ConnectionEntry::register_waker(self, waker);
    }
}
