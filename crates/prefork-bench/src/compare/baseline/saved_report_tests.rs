use super::*;
use crate::compare::report::tests::sample_report;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

fn refusal(text: &str) -> String {
    SavedReport::parse(text.as_bytes()).expect_err("no report")
}

#[test]
fn a_report_is_read_back_from_its_json() {
    let report = sample_report(6);
    let saved = SavedReport::parse(report.to_json().as_bytes()).expect("a report");
    assert_eq!(saved.server_names(), ["prefork", "single", "threads"]);
    assert_eq!(saved.workload_names(), ["keep-alive", "noisy-neighbour"]);
    let own = saved.workload("keep-alive").and_then(|w| w.server("prefork")).expect("measured");
    let samples = &report.workloads[0].servers[0].samples;
    let expected: Vec<f64> = samples.iter().map(|sample| sample.per_second).collect();
    let found: Vec<f64> =
        own.samples.iter().filter_map(|s| s.value(ComparedMetric::RequestsPerSecond)).collect();
    assert_eq!(found, expected);
    assert!(own.samples[0].value(ComparedMetric::Memory).is_some());
    assert!(saved.workload("keep-alive").and_then(SavedWorkload::control).is_some());
}

#[test]
fn other_files_are_refused_and_named() {
    let report = sample_report(3).to_json();
    let as_version = |version: &str| report.replacen("\"format_version\": 1", version, 1);
    let cases = [
        (" \n".to_string(), "is empty"),
        (report[..report.len() / 2].to_string(), "is truncated"),
        ("<html>".to_string(), "is not JSON"),
        ("[1, 2]".to_string(), "JSON of another program"),
        (r#"{"metrics": {"http_req_duration": {}}}"#.to_string(), "JSON of another program"),
        (r#"{"timeline": {}, "latency": {}}"#.to_string(), "a report of prefork bench"),
        (r#"{"verdict": {}, "workloads": []}"#.to_string(), "an older prefork compare"),
        (as_version("\"format_version\": 0"), "an older prefork compare: its format version is 0"),
        (as_version("\"format_version\": 99"), "a newer prefork compare: its format version is 99"),
        (as_version("\"other\": 1"), "format version is none"),
        (r#"{"format": "k6"}"#.to_string(), "another format, \"k6\""),
        (report.replacen("\"workers\": 2", "\"workers\": \"two\"", 1), "damaged report"),
        (report.replacen("\"duration_s\": 1.0", "\"duration_s\": -1.0", 1), "impossible"),
    ];
    for (text, expected) in cases {
        let why = refusal(&text);
        assert!(why.contains(expected) && why.contains("prefork compare --json"), "{why}");
    }
}

#[test]
fn only_regular_files_are_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    mkfifo(&path("fifo"), Mode::S_IRWXU).expect("a FIFO");
    std::fs::write(path("large"), "").expect("a file");
    let large = File::options().write(true).open(path("large")).expect("the file");
    large.set_len(MAX_REPORT_BYTES + 1).expect("a sparse file");
    let mut nothing = sample_report(3);
    nothing.workloads.iter_mut().for_each(|workload| {
        workload.servers.iter_mut().for_each(|server| server.samples.clear());
    });
    std::fs::write(path("nothing"), nothing.to_json()).expect("a file");
    for (name, expected) in [
        ("missing", "No such file"),
        ("fifo", "it is a FIFO"),
        (".", "it is a directory"),
        ("large", "larger than 64 MiB"),
        ("nothing", "nothing was measured"),
    ] {
        let why = SavedReport::read(&path(name)).expect_err("no report");
        assert!(why.contains(expected) && why.contains(name), "{why}");
    }
    std::fs::write(path("report"), sample_report(3).to_json()).expect("a file");
    assert!(SavedReport::read(&path("report")).is_ok());
}
