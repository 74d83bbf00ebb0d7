//! The status of a cluster: its primary, its workers, their counters and the requests in progress.
//!
//! Two sources give the same [`ClusterStatus`]. The primary answers
//! [`control::ControlClient::status`](crate::control::ControlClient::status) and `prefork status` from its own memory and from the
//! scoreboard, the shared memory in which every worker publishes its figures. A worker has
//! only the scoreboard: [`Worker::cluster_status`](crate::Worker::cluster_status) leaves some fields empty, and their
//! comments say which.
//!
//! The figures are to show, not to rely on: a worker can publish anything.

mod accept_queue;
mod admin_status;
mod certificate_status;
mod isolated_pool_status;
mod job_durations;
mod kept_figures;
mod pool_status;
mod process_usage;
mod request_counters;
mod shared_metrics;
mod states;
mod supervision;
mod tls_handshakes;
mod traffic_counters;
mod worker_status;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::shared::SharedMetric;
use crate::text::printable_json;
use prefork_supervisor::{ClusterView, Generation, Slot, WEB_KIND, WorkerId};

pub use accept_queue::{AcceptQueueStatus, QueueWaitStatus};
pub use admin_status::AdminStatus;
pub use certificate_status::CertificateStatus;
pub use isolated_pool_status::IsolatedPoolStatus;
pub use job_durations::JobDurations;
pub(crate) use job_durations::{JOB_DURATION_BUCKETS, duration_bucket, duration_us};
pub(crate) use kept_figures::{DelayHistogram, KeptFigures};
pub use pool_status::PoolStatus;
pub(crate) use pool_status::{DEFAULT_POOL_NAME, add_pools};
pub use request_counters::{AccessLogCounters, RequestDurations, RequestsBy};
pub(crate) use request_counters::{
    METHOD_CLASSES, REQUEST_DURATION_BUCKETS, STATUS_CLASSES, request_duration_bucket,
};
pub use states::{PrimaryPhase, WorkerState};
pub(crate) use supervision::EXIT_REASONS;
pub use supervision::{ChangeCounters, SupervisionCounters};
pub(crate) use tls_handshakes::TLS_HANDSHAKE_RESULTS;
#[cfg(feature = "tls")]
pub(crate) use tls_handshakes::TlsHandshakeResult;
pub use tls_handshakes::TlsHandshakes;
pub(crate) use traffic_counters::TRAFFIC_COUNTERS;
pub use traffic_counters::TrafficCounters;
pub use worker_status::{InFlightRequest, ProgramFigures, RunningJob, ThreadStatus, WorkerStatus};

/// How many requests in progress are listed over all workers. It bounds the reply; beyond it, they are only counted.
const MAX_LISTED_REQUESTS: usize = 2048;

/// How many pools of workers are listed. Beyond it, they are only part of the sums.
const MAX_LISTED_POOLS: usize = 1024;

/// How many pools with different names are listed.
const MAX_POOL_NAMES: usize = 128;

/// The largest whole number that every JSON reader keeps exactly. Larger figures are garbage and are cut to it.
pub(crate) const MAX_JSON_INTEGER: u64 = (1 << 53) - 1;

/// The status of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// The primary itself.
    pub primary: PrimaryStatus,
    /// The addresses that are listened on; empty while the cluster stops, and in a worker.
    pub listeners: Vec<String>,
    /// The certificates of TLS, the default one first; empty without TLS, and in a worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// How many connections wait to be accepted, for each listening TCP socket; empty in a worker.
    #[serde(default)]
    pub queues: Vec<AcceptQueueStatus>,
    /// How long connections waited to be accepted.
    #[serde(default)]
    pub queue_wait: QueueWaitStatus,
    /// Sums over all workers, living and dead.
    pub totals: TrafficCounters,
    /// What the primary has done.
    #[serde(default)]
    pub supervision: SupervisionCounters,
    /// The finished requests of all workers, living and dead, by method and class of status.
    #[serde(default, skip_serializing_if = "RequestsBy::is_empty")]
    pub requests_by: RequestsBy,
    /// How long they took.
    #[serde(default, skip_serializing_if = "RequestDurations::is_empty")]
    pub durations: RequestDurations,
    /// The lines of the access log, of all workers, living and dead.
    #[serde(default, skip_serializing_if = "AccessLogCounters::is_empty")]
    pub access_log: AccessLogCounters,
    /// The TLS handshakes of all workers, living and dead.
    #[serde(default, skip_serializing_if = "TlsHandshakes::is_empty")]
    pub tls_handshakes: TlsHandshakes,
    /// The CPU pools by name, each added up over all workers: its gauges over the living ones, its counts and durations over
    /// living and dead ones. A pool is listed from its first job on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolStatus>,
    /// The pools of isolated processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated: Vec<IsolatedPoolStatus>,
    /// What the application declared in [`shared`](crate::shared), in the order of the declarations; the first 16384
    /// numbers of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedMetric>,
    /// The process of the admin listener. `None` without one, and in a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminStatus>,
    /// Every worker that exists or is being forked, oldest first. In a worker: every forked worker, by its page on the
    /// scoreboard.
    pub workers: Vec<WorkerStatus>,
    /// All that is kept of dead workers, with the living ones added; its public parts are fields above.
    #[serde(skip)]
    #[cfg_attr(not(feature = "admin"), allow(dead_code, reason = "only metrics read it"))]
    pub(crate) kept: KeptFigures,
}

/// The status of the primary.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PrimaryStatus {
    /// Its process id.
    pub pid: u32,
    /// The name of the application, set by [`ConfigBuilder::name`](crate::ConfigBuilder::name). Empty from an old version.
    #[serde(default)]
    pub name: String,
    /// The version of the application; empty if it has set none.
    pub version: String,
    /// The version of this crate in the process that made the status. Empty from an old version.
    #[serde(default)]
    pub library_version: String,
    /// The command line of the foreign program that the workers run, with
    /// [`Cluster::serve_program`](crate::Cluster::serve_program); cut to 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// How long it has been running, in milliseconds. In the primary it counts from the last upgrade.
    pub uptime_ms: u64,
    /// The state of the primary. A worker only knows `running` and `stopping`.
    pub phase: PrimaryPhase,
    /// The generation in force. A reload raises it when it has succeeded.
    pub generation: Generation,
    /// How many workers of the kind `web` there should be.
    pub workers_wanted: u32,
    /// How many workers of each other kind there should be; empty in a worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<WorkerKindStatus>,
    /// The dispatch policy in force: `shared`, `reuseport`, ... Empty from an old version.
    #[serde(default)]
    pub dispatch: String,
    /// What in the kernel selects the worker, if a policy has several ways: `ebpf`, `cbpf-weights`, `cbpf-random`,
    /// `ip-hash` or `hash`.
    /// Empty under other policies, and in a worker.
    #[serde(default, rename = "dispatch_rung")]
    pub dispatch_backend: String,
    /// The concurrency model in force: `prefork`, `threads`, ... Empty from an old version.
    #[serde(default)]
    pub model: String,
    /// How many workers replaced one that exited unexpectedly.
    pub restarts: u64,
    /// Log lines of all processes that were dropped since the primary started, because the reader of standard error did
    /// not keep up or the file could not be written.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// Messages of the application that were lost on their way to a worker: it did not read them, or exited without another one to take
    /// them. What a killed worker had been sent and had not read is not known.
    #[serde(default)]
    pub messages_lost: u64,
    /// Slots that stay empty until the next reload or scale, as their workers are not to be replaced; empty in a worker.
    #[serde(default, rename = "vacant")]
    pub empty_slots: Vec<Slot>,
}

/// The wanted number of workers of a kind other than `web`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerKindStatus {
    /// The name of the worker kind.
    pub name: String,
    /// How many workers of it there should be, now.
    pub workers_wanted: u32,
    /// The smallest number of workers, if the number follows the demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_workers: Option<u32>,
    /// The largest number of workers, if the number follows the demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_workers: Option<u32>,
}

/// What the primary knows besides the supervisor's view and the workers' pages.
pub(crate) struct PrimaryReport {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) program: Option<String>,
    pub(crate) started: Instant,
    pub(crate) dispatch: &'static str,
    pub(crate) dispatch_backend: &'static str,
    pub(crate) model: &'static str,
    pub(crate) listeners: Vec<String>,
    pub(crate) certificates: Vec<CertificateStatus>,
    pub(crate) queues: Vec<AcceptQueueStatus>,
    pub(crate) dead: SumsOfDeadWorkers,
    pub(crate) supervision: SupervisionCounters,
    pub(crate) isolated: Vec<IsolatedPoolStatus>,
    pub(crate) shared: Vec<SharedMetric>,
    pub(crate) admin: Option<AdminStatus>,
    /// Whether the primary accepts for all workers, and none of its sockets gives it a connection.
    pub(crate) cannot_accept: bool,
}

/// The sums over dead workers.
#[derive(Debug, Clone, Default)]
pub(crate) struct SumsOfDeadWorkers {
    pub(crate) totals: TrafficCounters,
    pub(crate) kept: KeptFigures,
    /// By name.
    pub(crate) pools: Vec<PoolStatus>,
}

impl ClusterStatus {
    /// Combines what the primary knows with what the workers publish. `read_worker` reads the pages of a worker; the
    /// primary finds them by its own memory and uses their content only as figures to show.
    pub(crate) fn from_primary(
        view: &ClusterView,
        report: PrimaryReport,
        now: Instant,
        read_worker: impl Fn(WorkerId) -> Option<WorkerStatus>,
    ) -> ClusterStatus {
        let worker_of = |known| {
            let mut worker = WorkerStatus::from_primary(known, read_worker(known.tag.id), now);
            let serves = worker.kind == WEB_KIND && worker.state == WorkerState::Serving;
            if report.cannot_accept && serves {
                worker.state = WorkerState::CannotAccept;
            }
            worker
        };
        let workers = view.workers.iter().map(worker_of).collect();
        let kinds = view.wanted_by_kind.iter();
        let range_of = |name: &str| view.demand_ranges.iter().find(|range| range.0 == name);
        let primary = PrimaryStatus {
            pid: std::process::id(),
            name: report.name,
            version: report.version,
            library_version: env!("CARGO_PKG_VERSION").to_string(),
            program: report.program,
            uptime_ms: millis_between(report.started, now),
            phase: PrimaryPhase::from_name(view.phase),
            generation: view.generation,
            workers_wanted: view.wanted_workers,
            kinds: kinds
                .map(|(name, wanted)| WorkerKindStatus {
                    name: name.to_string(),
                    workers_wanted: *wanted,
                    min_workers: range_of(name).map(|(_, range)| range.min),
                    max_workers: range_of(name).map(|(_, range)| range.max),
                })
                .collect(),
            dispatch: report.dispatch.to_string(),
            dispatch_backend: report.dispatch_backend.to_string(),
            model: report.model.to_string(),
            restarts: view.restart_count,
            log_lines_dropped: report.supervision.log_lines_dropped,
            messages_lost: report.supervision.messages_lost,
            empty_slots: view.empty_slots.clone(),
        };
        let status = ClusterStatus::new(primary, report.dead, report.shared, workers);
        let PrimaryReport { listeners, certificates, queues, .. } = report;
        let PrimaryReport { isolated, supervision, admin, .. } = report;
        ClusterStatus { listeners, certificates, queues, isolated, supervision, admin, ..status }
    }

    /// Adds to a status that was read from the scoreboard what only the primary's memory knows. `primary` is that part,
    /// made `age_ms` ago, with workers without figures.
    #[cfg(feature = "admin")]
    pub(crate) fn with_primary_part(self, primary: &ClusterStatus, age_ms: u64) -> ClusterStatus {
        let now = SystemTime::now();
        let is_stopping = self.primary.phase == PrimaryPhase::Stopping;
        let own = &primary.primary;
        let of_primary = PrimaryStatus {
            uptime_ms: own.uptime_ms + age_ms,
            phase: match own.phase {
                PrimaryPhase::Booting | PrimaryPhase::Running if is_stopping => {
                    PrimaryPhase::Stopping
                }
                phase => phase,
            },
            restarts: own.restarts.max(self.primary.restarts),
            log_lines_dropped: self.primary.log_lines_dropped,
            messages_lost: self.primary.messages_lost,
            ..own.clone()
        };
        let known_of = |id| primary.workers.iter().find(|known| known.id == id);
        let add_known = |mut worker: WorkerStatus| {
            if let Some(known) = known_of(worker.id) {
                worker.set_known_by_primary(known, age_ms);
            }
            worker
        };
        let is_unforked = |known: &&WorkerStatus| known.state == WorkerState::Forking;
        let has_no_page =
            |known: &&WorkerStatus| !self.workers.iter().any(|one| one.id == known.id);
        let unforked = primary.workers.iter().filter(is_unforked).filter(has_no_page);
        let unforked: Vec<WorkerStatus> = unforked.cloned().collect();
        let workers = self.workers.into_iter().map(add_known).chain(unforked);
        let admin = primary
            .admin
            .clone()
            .map(|admin| AdminStatus { uptime_ms: admin.uptime_ms + age_ms, ..admin });
        ClusterStatus {
            primary: of_primary,
            listeners: primary.listeners.clone(),
            certificates: primary.certificates.iter().map(|one| one.clone().at(now)).collect(),
            queues: primary.queues.clone(),
            admin,
            workers: workers.collect(),
            ..self
        }
    }

    /// Builds a status without listeners, queues and isolated pools, with sums over `workers`.
    pub(crate) fn new(
        primary: PrimaryStatus,
        dead: SumsOfDeadWorkers,
        shared: Vec<SharedMetric>,
        mut workers: Vec<WorkerStatus>,
    ) -> ClusterStatus {
        let mut pools = dead.pools;
        let mut kept = dead.kept;
        let (mut room, mut room_for_pools) = (MAX_LISTED_REQUESTS, MAX_LISTED_POOLS);
        for worker in &mut workers {
            worker.serving.truncate(room);
            room -= worker.serving.len();
            add_pools(&mut pools, worker.pools.iter().cloned());
            kept = kept.sum_with(&worker.kept);
            worker.pools.truncate(room_for_pools);
            room_for_pools -= worker.pools.len();
        }
        pools.sort_by_key(|pool| (pool.name != DEFAULT_POOL_NAME, pool.name.clone()));
        pools.truncate(MAX_POOL_NAMES);
        ClusterStatus {
            primary,
            listeners: Vec::new(),
            certificates: Vec::new(),
            queues: Vec::new(),
            queue_wait: QueueWaitStatus::of_workers(&workers),
            totals: workers.iter().fold(dead.totals, |sum, worker| sum.sum_with(worker.counters)),
            supervision: SupervisionCounters::default(),
            requests_by: kept.requests_by,
            durations: kept.durations,
            access_log: kept.access_log,
            tls_handshakes: kept.tls_handshakes,
            kept,
            pools,
            isolated: Vec::new(),
            shared: shared_metrics::limit_shared_metrics(shared),
            admin: None,
            workers,
        }
    }

    /// Returns the status as indented JSON.
    /// Of programs, it has no figures about requests: these are not known.
    pub fn to_json(&self) -> String {
        // Numbers and strings: this cannot fail.
        let json = match self.primary.program {
            None => serde_json::to_string_pretty(self),
            Some(_) => serde_json::to_value(self)
                .map(without_requests)
                .and_then(|value| serde_json::to_string_pretty(&value)),
        };
        printable_json(&json.unwrap_or_default()).into_owned()
    }
}

/// What is known only if the workers serve HTTP themselves.
const REQUEST_FIGURES: [&str; 6] =
    ["totals", "queue_wait", "requests_by", "durations", "access_log", "tls_handshakes"];

/// What is known of a worker only if it serves HTTP itself.
const REQUEST_FIGURES_OF_WORKER: [&str; 7] =
    ["counters", "active", "serving", "durations", "queue_wait", "full", "parked"];

/// Removes the figures about requests, which nobody has counted.
fn without_requests(mut status: serde_json::Value) -> serde_json::Value {
    let remove = |object: &mut serde_json::Value, names: &[&str]| {
        if let Some(members) = object.as_object_mut() {
            members.retain(|name, _| !names.contains(&name.as_str()));
        }
    };
    remove(&mut status, &REQUEST_FIGURES);
    let workers = status.get_mut("workers").and_then(serde_json::Value::as_array_mut);
    for worker in workers.into_iter().flatten() {
        remove(worker, &REQUEST_FIGURES_OF_WORKER);
    }
    status
}

/// Returns the time in milliseconds since 1970.
pub(crate) fn unix_time_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn millis_between(since: Instant, now: Instant) -> u64 {
    let millis = now.saturating_duration_since(since).as_millis();
    u64::try_from(millis).unwrap_or(MAX_JSON_INTEGER).min(MAX_JSON_INTEGER)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use prefork_supervisor::{Generation, Slot, WorkerRange, WorkerTag, WorkerView};

    /// Returns the status of a cluster with `workers` booting workers that publish the same figures.
    pub(crate) fn status_of_booting_workers(
        workers: u32,
        published: Option<&WorkerStatus>,
    ) -> ClusterStatus {
        let views = (0..workers).map(|n| {
            let (id, slot) = (WorkerId(n.into()), Slot(n));
            let tag = WorkerTag { id, slot, generation: Generation(1), pid: None, kind: WEB_KIND };
            WorkerView { tag, state: "booting", forked_at: Instant::now() }
        });
        let view = ClusterView {
            phase: "booting",
            generation: Generation(1),
            wanted_workers: workers,
            wanted_by_kind: vec![("consumer", 2)],
            demand_ranges: vec![("consumer", WorkerRange { min: 1, max: 4 })],
            restart_count: 0,
            empty_slots: Vec::new(),
            workers: views.collect(),
        };
        let report = PrimaryReport {
            name: "greeter".into(),
            version: "1.2.3".into(),
            program: None,
            started: Instant::now(),
            dispatch: "shared",
            dispatch_backend: "",
            model: "prefork",
            listeners: vec![],
            certificates: vec![],
            queues: vec![],
            dead: SumsOfDeadWorkers::default(),
            supervision: SupervisionCounters::default(),
            isolated: vec![],
            shared: vec![],
            admin: None,
            cannot_accept: false,
        };
        ClusterStatus::from_primary(&view, report, Instant::now(), |_| published.cloned())
    }

    /// Returns the largest figures that a page can give, with an identity that is not the worker's.
    fn corrupted_worker_status() -> WorkerStatus {
        let (request, age_ms) = ("x".repeat(416), MAX_JSON_INTEGER);
        let (client, id) = (Some("x".repeat(192)), Some("x".repeat(256)));
        let request = InFlightRequest { request, age_ms, on_loop: true, client, request_id: id };
        let counts = [MAX_JSON_INTEGER; JOB_DURATION_BUCKETS];
        let durations = JobDurations::from_parts(counts, MAX_JSON_INTEGER, MAX_JSON_INTEGER);
        let pool = |n| PoolStatus {
            name: format!("{n:032}"),
            wait: durations.clone(),
            run: durations.clone(),
            ..PoolStatus::default()
        };
        WorkerStatus {
            stalled_in: None,
            guard_pid: Some(1),
            program: None,
            id: WorkerId(MAX_JSON_INTEGER),
            slot: Slot(u32::MAX),
            kind: "x".to_string(),
            generation: Generation(MAX_JSON_INTEGER),
            pid: Some(1),
            state: WorkerState::Serving,
            uptime_ms: MAX_JSON_INTEGER,
            heartbeat_age_ms: Some(MAX_JSON_INTEGER),
            loop_lag: [MAX_JSON_INTEGER; 16],
            queue_wait: [MAX_JSON_INTEGER; 16],
            connections: MAX_JSON_INTEGER,
            parked: MAX_JSON_INTEGER,
            full: true,
            active: MAX_JSON_INTEGER,
            counters: TrafficCounters::from_array([MAX_JSON_INTEGER; TRAFFIC_COUNTERS]),
            pools: (0..16).map(pool).collect(),
            job: Some(RunningJob { id: MAX_JSON_INTEGER, age_ms: MAX_JSON_INTEGER }),
            serving: vec![request; 23],
            threads: Vec::new(),
            durations: RequestDurations::from_parts([MAX_JSON_INTEGER; 17], MAX_JSON_INTEGER),
            rss_bytes: Some(MAX_JSON_INTEGER),
            open_fds: Some(MAX_JSON_INTEGER),
            cpu_ms: Some(MAX_JSON_INTEGER),
            kept: KeptFigures::default(),
        }
    }

    #[test]
    fn the_primary_knows_identities_itself_and_bounds_published_figures() {
        let status = status_of_booting_workers(2056, Some(&corrupted_worker_status()));
        let worker = &status.workers[1];
        assert_eq!(
            (worker.id, worker.slot, worker.generation),
            (WorkerId(1), Slot(1), Generation(1))
        );
        assert_eq!(worker.pid, None);
        assert_eq!((worker.state, worker.kind.as_str()), (WorkerState::Booting, WEB_KIND));
        assert_eq!(worker.connections, MAX_JSON_INTEGER);
        assert_eq!(status.totals.requests, MAX_JSON_INTEGER);
        assert_eq!(status.queue_wait.connections, MAX_JSON_INTEGER);
        let listed: usize = status.workers.iter().map(|worker| worker.serving.len()).sum();
        assert_eq!(listed, MAX_LISTED_REQUESTS);
        let listed: usize = status.workers.iter().map(|worker| worker.pools.len()).sum();
        assert_eq!((listed, status.pools.len()), (MAX_LISTED_POOLS, 16));
        let bytes = crate::control::Reply::Status(Box::new(status)).encode().len();
        assert!(bytes < crate::control::frame::MAX_REPLY_BYTES / 2, "{bytes}");
    }

    #[test]
    fn a_worker_cannot_accept_if_no_serving_thread_is_left() {
        let thread = |state| WorkerStatus { state, full: true, ..WorkerStatus::default() };
        use WorkerState::{CannotAccept, Serving, ThreadEnded};
        for (threads, state) in [
            ([CannotAccept, Serving], Serving),
            ([Serving, CannotAccept], Serving),
            ([CannotAccept, CannotAccept], CannotAccept),
            ([ThreadEnded, Serving], Serving),
            ([ThreadEnded, ThreadEnded], ThreadEnded),
        ] {
            let mut worker = thread(threads[0]);
            worker.add_thread(thread(threads[1]));
            assert_eq!((worker.state, worker.full), (state, true), "{threads:?}");
        }
    }

    #[test]
    fn status_of_an_older_version_is_read() {
        let old = r#"{"primary":{"pid":1,"version":"0","uptime_ms":1,"phase":"resting","generation":1,
            "workers_wanted":1,"restarts":0},"listeners":[],"totals":{},"workers":[{"id":1,"slot":0,"generation":1,
            "pid":null,"state":"new","uptime_ms":0,"beat_age_ms":null,"connections":0,"active":0,"counters":{},
            "serving":[]}]}"#;
        let status: ClusterStatus = serde_json::from_str(old).expect("status");
        assert_eq!(status.primary.phase, PrimaryPhase::Unknown);
        assert_eq!(status.workers[0].state, WorkerState::Unknown);
        assert_eq!(status.workers[0].kind, WEB_KIND);
        assert_eq!((status.workers[0].id, status.primary.generation), (WorkerId(1), Generation(1)));
        let written = serde_json::to_value(&status).expect("JSON");
        assert_eq!(written["workers"][0]["slot"], 0, "ids stay plain numbers");
    }
}
