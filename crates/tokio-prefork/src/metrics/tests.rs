use super::*;
use crate::status::tests::status_of_booting_workers;
use crate::status::{
    AcceptQueueStatus, CertificateStatus, IsolatedPoolStatus, PoolStatus, ProgramFigures,
    WorkerState, WorkerStatus,
};
use family::{MetricUnit, Series};

/// Returns a status in which every metric has a series.
fn full_status() -> ClusterStatus {
    let published = WorkerStatus {
        state: WorkerState::Serving,
        connections: 5,
        active: 2,
        rss_bytes: Some(4096),
        open_fds: Some(9),
        ..WorkerStatus::default()
    };
    let mut status = status_of_booting_workers(2, Some(&published));
    let pool = PoolStatus { name: "default".to_string(), done: 3, ..PoolStatus::default() };
    let isolated = IsolatedPoolStatus { name: "images".to_string(), ..Default::default() };
    status.certificates.push(CertificateStatus::default());
    status.pools.push(pool);
    status.isolated.push(isolated);
    status.queues.push(AcceptQueueStatus::new("127.0.0.1:80".to_string(), 1, 4096));
    status
}

fn full_name(family: &MetricFamily) -> String {
    let unit = match family.unit {
        Some(MetricUnit::Seconds) => "_seconds",
        Some(MetricUnit::Bytes) => "_bytes",
        None => "",
    };
    let suffix = match family.series {
        Series::Counter(_) => "_total",
        Series::Info(_) => "_info",
        Series::Gauge(_) | Series::Histogram(_) => "",
    };
    format!("{}{unit}{suffix}", family.name)
}

fn type_name(family: &MetricFamily) -> &'static str {
    match family.series {
        Series::Counter(_) => "counter",
        Series::Gauge(_) | Series::Info(_) => "gauge",
        Series::Histogram(_) => "histogram",
    }
}

/// Returns the names of the labels of the first series.
fn label_names(family: &MetricFamily) -> Vec<&str> {
    let labels = match &family.series {
        Series::Counter(series) => series.first().map(|one| &one.0),
        Series::Gauge(series) => series.first().map(|one| &one.0),
        Series::Histogram(series) => series.first().map(|one| &one.0),
        Series::Info(labels) => Some(labels),
    };
    labels.into_iter().flatten().map(|(name, _)| &**name).collect()
}

#[test]
fn the_documentation_lists_every_metric_with_its_type_and_labels() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/metrics.md");
    let docs = std::fs::read_to_string(docs).expect("the page about metrics");
    let mut families = all_families(&full_status());
    let of_program = all_families(&status_of_program());
    let known: Vec<String> = families.iter().map(full_name).collect();
    families.extend(of_program.into_iter().filter(|one| !known.contains(&full_name(one))));
    for family in &families {
        assert!(family.has_series(), "{} has no series in this test", family.name);
        let labels = label_names(family).join(", ");
        let row = format!("| `{}` | {} | {labels}", full_name(family), type_name(family));
        let row = format!("{} |", row.trim_end());
        assert!(docs.contains(&row), "docs/src/metrics.md has no row that begins with {row}");
    }
    let listed = docs.lines().filter(|line| line.starts_with("| `prefork_")).count();
    assert_eq!(listed, families.len(), "docs/src/metrics.md lists a metric that does not exist");
}

/// Returns the status of a cluster whose workers run a foreign program.
fn status_of_program() -> ClusterStatus {
    let mut status = full_status();
    status.primary.program = Some("node app.js".to_string());
    for worker in &mut status.workers {
        worker.program = Some(ProgramFigures::default());
    }
    status
}

#[test]
fn programs_have_processes_and_no_requests() {
    let body = exposition(&status_of_program(), None).body;
    assert!(
        body.contains("\nprefork_program_processes{") && !body.contains("prefork_http_"),
        "{body}"
    );
    assert!(!exposition(&full_status(), None).body.contains("prefork_program_"));
}

#[test]
fn every_metric_has_one_name_and_a_help_text() {
    let families = all_families(&full_status());
    let mut names: Vec<String> = families.iter().map(full_name).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    for family in &families {
        assert!(family.name.starts_with("prefork_") && family.help.ends_with('.'), "{family:?}");
        assert!(!family.name.ends_with("_total") && !family.name.contains("__"), "{family:?}");
    }
}

#[test]
fn both_formats_are_negotiated() {
    let status = full_status();
    let plain = exposition(&status, None);
    assert_eq!(plain.content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert!(plain.body.contains("\nprefork_workers{kind=\"web\",state=\"booting\"} 2.0\n"));
    assert!(plain.body.contains("\nprefork_connections{slot=\"1\",state=\"idle\"} 3.0\n"));
    let open = exposition(&status, Some("application/openmetrics-text; version=1.0.0"));
    assert!(open.content_type.starts_with("application/openmetrics-text"));
    assert!(open.body.ends_with("# EOF\n"));
}

#[test]
fn the_accept_queues_of_one_address_are_one_series() {
    let mut status = full_status();
    status.queues.push(AcceptQueueStatus::new("127.0.0.1:80".to_string(), 2, 4096));
    let body = exposition(&status, None).body;
    let name = "prefork_accept_queue_connections{";
    let series: Vec<&str> = body.lines().filter(|line| line.starts_with(name)).collect();
    assert_eq!(series, [r#"prefork_accept_queue_connections{listener="127.0.0.1:80"} 3.0"#]);
}

#[test]
fn no_series_names_a_worker_by_its_id_or_pid() {
    for family in all_families(&full_status()) {
        let labels: Vec<_> = match family.series {
            Series::Counter(series) => series.into_iter().flat_map(|one| one.0).collect(),
            Series::Gauge(series) => series.into_iter().flat_map(|one| one.0).collect(),
            Series::Histogram(series) => series.into_iter().flat_map(|one| one.0).collect(),
            Series::Info(labels) => labels,
        };
        for (name, _) in labels {
            assert!(!["id", "pid", "worker", "instance", "job", "le"].contains(&&*name), "{name}");
        }
    }
}
