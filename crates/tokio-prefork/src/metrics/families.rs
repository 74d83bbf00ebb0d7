//! The metrics of a cluster, made of its status. All names begin with `prefork_`; units are seconds and bytes.

mod certificate_families;
mod job_families;
mod worker_families;

use std::collections::BTreeMap;

use super::family::{
    CounterValue, HistogramValue, Labels, MetricFamily, MetricUnit, Series, label, labels,
};
use crate::scoreboard::DURATION_BUCKETS;
use crate::status::{
    ChangeCounters, ClusterStatus, DelayHistogram, EXIT_REASONS, RequestDurations,
    SupervisionCounters,
};

/// Returns all metrics but those of the application.
pub(super) fn families_of(status: &ClusterStatus) -> Vec<MetricFamily> {
    let mut all = primary_families(status);
    all.extend(worker_families::families_of(status));
    all.extend(supervision_families(&status.supervision));
    if status.primary.program.is_none() {
        // Nobody counts the requests of a foreign program.
        all.extend(request_families(status));
        all.extend(connection_families(status));
        all.extend(certificate_families::families_of(status));
        all.extend(tls_families(status));
        all.extend(delay_families(status));
        all.push(access_log_family(status));
    }
    all.extend(queue_families(status));
    all.extend(job_families::families_of(status));
    all.extend(log_families(status));
    all
}

fn primary_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    let primary = &status.primary;
    let build = labels([
        ("name", &primary.name),
        ("version", &primary.version),
        ("library_version", &primary.library_version),
        ("model", &primary.model),
        ("dispatch", &primary.dispatch),
    ]);
    let started = status.supervision.started_at_ms as f64 / 1000.0;
    vec![
        MetricFamily::new(
            "prefork_build",
            "Name and versions of the application and the server, and how it serves.",
            Series::Info(build),
        ),
        MetricFamily::gauge(
            "prefork_start_time",
            "When the primary started, in seconds since 1970. An upgrade in place is no start.",
            started,
        )
        .in_unit(MetricUnit::Seconds),
        MetricFamily::gauge(
            "prefork_generation",
            "The generation in force. Each reload and upgrade that succeeds raises it.",
            primary.generation.0 as f64,
        ),
    ]
}

fn supervision_families(supervision: &SupervisionCounters) -> Vec<MetricFamily> {
    let exits = EXIT_REASONS.iter().map(|reason| {
        let count = supervision.exits.get(*reason).copied().unwrap_or(0);
        (label("reason", *reason), count)
    });
    let mut all = vec![
        MetricFamily::counter(
            "prefork_worker_forks",
            "Workers that were forked, of all kinds.",
            supervision.forks,
        ),
        MetricFamily::counters(
            "prefork_worker_exits",
            "Workers that have exited, of all kinds, by reason.",
            exits.collect(),
        ),
    ];
    all.extend(change_families(
        &supervision.reloads,
        [
            ("prefork_reloads", "Reloads that have ended, by outcome."),
            ("prefork_reload_running", "Whether a reload is in progress."),
            (
                "prefork_reload_last_timestamp",
                "When a reload last ended, by outcome, in seconds since 1970; 0 for never.",
            ),
            ("prefork_reload_last_duration", "How long the last reload took."),
        ],
    ));
    all.extend(change_families(
        &supervision.upgrades,
        [
            ("prefork_upgrades", "Upgrades in place that have ended, by outcome."),
            ("prefork_upgrade_running", "Whether an upgrade in place is in progress."),
            (
                "prefork_upgrade_last_timestamp",
                "When an upgrade in place last ended, by outcome, in seconds since 1970; 0 for never.",
            ),
            ("prefork_upgrade_last_duration", "How long the last upgrade in place took."),
        ],
    ));
    all
}

fn change_families(
    changes: &ChangeCounters,
    [count, running, at, took]: [(&str, &'static str); 4],
) -> [MetricFamily; 4] {
    let outcome = |name: &'static str| label("outcome", name);
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let at_series = vec![
        (outcome("succeeded"), seconds(changes.last_succeeded_at_ms)),
        (outcome("failed"), seconds(changes.last_failed_at_ms)),
    ];
    let counts =
        vec![(outcome("succeeded"), changes.succeeded), (outcome("failed"), changes.failed)];
    [
        MetricFamily::counters(count.0, count.1, counts),
        MetricFamily::gauge(running.0, running.1, f64::from(u8::from(changes.is_running()))),
        MetricFamily::gauges(at.0, at.1, at_series).in_unit(MetricUnit::Seconds),
        MetricFamily::gauge(took.0, took.1, seconds(changes.last_duration_ms))
            .in_unit(MetricUnit::Seconds),
    ]
}

fn request_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    let finished = status
        .requests_by
        .iter()
        .map(|(method, class, count)| (labels([("method", method), ("status", class)]), count));
    let totals = &status.totals;
    let bytes = |name: &str, help: &'static str, bytes: u64| {
        MetricFamily::counter(name, help, bytes).in_unit(MetricUnit::Bytes)
    };
    vec![
        MetricFamily::counter(
            "prefork_http_requests_received",
            "Requests whose head was received.",
            totals.requests,
        ),
        MetricFamily::counters(
            "prefork_http_requests",
            "Requests that have ended, by method and class of status; none: ended before a response.",
            finished.collect(),
        ),
        MetricFamily::durations(
            "prefork_http_request_duration",
            "Time from the head of a request to the end of its response.",
            vec![(Labels::new(), request_durations(&status.durations))],
        ),
        MetricFamily::counter(
            "prefork_http_handler_panics",
            "Handlers that panicked.",
            totals.panics,
        ),
        MetricFamily::counter(
            "prefork_http_request_timeouts",
            "Requests that request-timeout has ended.",
            totals.timed_out,
        ),
        bytes("prefork_received", "Bytes read from clients.", totals.bytes_in),
        bytes("prefork_sent", "Bytes written to clients.", totals.bytes_out),
    ]
}

fn connection_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    let totals = &status.totals;
    [
        ("prefork_connections_accepted", "Connections accepted.", totals.accepted),
        (
            "prefork_connections_cut",
            "Connections closed in use: at graceful-timeout, or as a response or TLS handshake took too long.",
            totals.cut,
        ),
        (
            "prefork_connections_shed",
            "Connections refused because they had waited for longer than max-queue-wait.",
            totals.shed,
        ),
        (
            "prefork_connections_over_limit",
            "Connections that came while all workers had worker-connections.",
            totals.over_limit,
        ),
        (
            "prefork_connections_handed_over",
            "Connections that draining workers sent to another one.",
            totals.handed_over,
        ),
        (
            "prefork_connections_taken_over",
            "Connections that workers took over from draining ones, or from the queues of ended ones.",
            totals.taken_over,
        ),
        (
            "prefork_connections_proxy_refused",
            "Connections closed because of their PROXY header.",
            totals.proxy_refused,
        ),
    ]
    .map(|(name, help, count)| MetricFamily::counter(name, help, count))
    .into()
}

fn queue_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    // With reuseport, each worker has a socket of its own at the same address.
    let queues = |figure: fn(&crate::status::AcceptQueueStatus) -> u32| {
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for queue in &status.queues {
            *sums.entry(&queue.listener).or_default() += f64::from(figure(queue));
        }
        sums.into_iter().map(|(address, sum)| (label("listener", address), sum)).collect()
    };
    vec![
        MetricFamily::gauges(
            "prefork_accept_queue_connections",
            "Connections that wait to be accepted, by listening TCP address.",
            queues(|queue| queue.depth),
        ),
        MetricFamily::gauges(
            "prefork_accept_queue_limit",
            "How many connections may wait to be accepted, by listening TCP address.",
            queues(|queue| queue.limit),
        ),
    ]
}

fn delay_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    vec![
        MetricFamily::durations(
            "prefork_accept_queue_wait",
            "How long connections waited to be accepted.",
            vec![(Labels::new(), delays(&status.kept.queue_wait))],
        ),
        MetricFamily::durations(
            "prefork_event_loop_lag",
            "How late the heartbeats of the event loops were.",
            vec![(Labels::new(), delays(&status.kept.loop_lag))],
        ),
    ]
}

fn tls_families(status: &ClusterStatus) -> [MetricFamily; 2] {
    let handshakes = &status.tls_handshakes;
    let results = handshakes.iter().map(|(result, count)| (label("result", result), count));
    [
        MetricFamily::counters(
            "prefork_tls_handshakes",
            "TLS handshakes that have ended, by result: full, resumed, or why they failed.",
            results.collect(),
        ),
        MetricFamily::gauge(
            "prefork_tls_handshakes_in_progress",
            "TLS handshakes in progress.",
            handshakes.in_progress() as f64,
        ),
    ]
}

fn access_log_family(status: &ClusterStatus) -> MetricFamily {
    let log = &status.access_log;
    let outcome = |name: &'static str| label("outcome", name);
    MetricFamily::counters(
        "prefork_access_log_lines",
        "Lines of the access log: written, lost (dropped), or left out on purpose (skipped).",
        vec![
            (outcome("written"), log.written),
            (outcome("dropped"), log.dropped),
            (outcome("skipped"), log.skipped),
        ],
    )
}

fn log_families(status: &ClusterStatus) -> Vec<MetricFamily> {
    vec![
        MetricFamily::counter(
            "prefork_log_lines_dropped",
            "Lines of the log that were lost because its reader or file did not keep up.",
            status.supervision.log_lines_dropped,
        ),
        MetricFamily::counter(
            "prefork_messages_lost",
            "Messages of the application that were lost on their way to a worker.",
            status.supervision.messages_lost,
        ),
    ]
}

fn request_durations(durations: &RequestDurations) -> HistogramValue {
    let buckets = durations.buckets().map(|(bound, count)| {
        (bound.map_or(f64::INFINITY, |bound| bound.as_micros() as f64 / 1e6), count)
    });
    HistogramValue { buckets: buckets.collect(), sum: durations.sum().as_micros() as f64 / 1e6 }
}

/// Converts a histogram by powers of two of a millisecond.
fn delays(delays: &DelayHistogram) -> HistogramValue {
    let bound = |bucket: usize| match bucket == DURATION_BUCKETS - 1 {
        true => f64::INFINITY,
        false => (1u64 << bucket) as f64 / 1000.0,
    };
    let counts = delays.counts.iter().enumerate();
    HistogramValue {
        buckets: counts.map(|(bucket, count)| (bound(bucket), *count)).collect(),
        sum: delays.sum_us as f64 / 1e6,
    }
}

/// Returns a sum of microseconds as a counter of seconds.
fn seconds_counter(name: &str, help: &'static str, us: u64) -> MetricFamily {
    let series = vec![(Labels::new(), CounterValue::Fraction(us as f64 / 1e6))];
    MetricFamily::new(name, help, Series::Counter(series)).in_unit(MetricUnit::Seconds)
}
