//! The health checks: `/livez`, `/healthz` and `/readyz`, in the form of Kubernetes.

use std::fmt::Write;

use hyper::StatusCode;

use super::status_reader::{Readiness, StatusReader};
use crate::text::HumanDuration;
use std::time::Duration;

/// The result of one check: its name, and why it fails.
type Check = (&'static str, Option<String>);

/// The answer of a health check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HealthReport {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

/// Returns whether the loop of the primary turns.
pub(crate) fn liveness(name: &str, reader: &StatusReader, is_verbose: bool) -> HealthReport {
    report(name, &[primary_check(reader.overdue_ms())], is_verbose)
}

/// Returns whether the cluster serves.
pub(crate) fn readiness(name: &str, reader: &StatusReader, is_verbose: bool) -> HealthReport {
    report(name, &readiness_checks(reader.readiness()), is_verbose)
}

fn primary_check(overdue_ms: Option<u64>) -> Check {
    let failure = overdue_ms.map(|overdue| {
        let overdue = HumanDuration(Duration::from_millis(overdue));
        format!("the loop of the primary is stopped or blocked; overdue={overdue}")
    });
    ("primary-loop", failure)
}

fn readiness_checks(readiness: Option<Readiness>) -> Vec<Check> {
    let Some(readiness) = readiness else {
        return vec![("status", Some("the primary has not published its status yet".to_string()))];
    };
    let Readiness { is_stop_requested, serving, is_replaced, wanted, missing_of_other_kinds } =
        readiness;
    let stop = is_stop_requested.then(|| "the cluster is stopping".to_string());
    let workers = match (wanted, serving) {
        // A program without web workers is ready when its other workers are.
        (0, 0) if missing_of_other_kinds > 0 => {
            Some(format!("workers of other kinds do not serve; missing={missing_of_other_kinds}"))
        }
        (0, _) | (_, 1..) => None,
        (_, 0) if is_replaced => None,
        (_, 0) => Some(format!("no web worker serves; wanted={wanted}")),
    };
    vec![("stop", stop), ("workers", workers)]
}

fn report(name: &str, checks: &[Check], is_verbose: bool) -> HealthReport {
    let failures = checks.iter().any(|(_, failure)| failure.is_some());
    let status = if failures { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    if !failures && !is_verbose {
        return HealthReport { status, text: "ok\n".to_string() };
    }
    let mut text = String::new();
    for (check, failure) in checks {
        // Writing to a string cannot fail.
        let _ = match failure {
            None => writeln!(text, "[+]{check} ok"),
            Some(why) => writeln!(text, "[-]{check} failed: {why}"),
        };
    }
    let outcome = if failures { "failed" } else { "passed" };
    let _ = writeln!(text, "{name} check {outcome}");
    HealthReport { status, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(readiness: Readiness) -> StatusCode {
        report("readyz", &readiness_checks(Some(readiness)), false).status
    }

    #[test]
    fn readiness_needs_one_web_worker_and_no_stop() {
        let all = Readiness {
            is_stop_requested: false,
            serving: 2,
            is_replaced: false,
            wanted: 2,
            missing_of_other_kinds: 0,
        };
        let (ok, not) = (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ready(all), ok);
        assert_eq!(ready(Readiness { serving: 1, missing_of_other_kinds: 1, ..all }), ok);
        assert_eq!(ready(Readiness { serving: 0, ..all }), not);
        let replaced = Readiness { serving: 0, is_replaced: true, ..all };
        assert_eq!(ready(replaced), ok, "the workers of the next image serve");
        assert_eq!(ready(Readiness { is_stop_requested: true, ..replaced }), not);
        assert_eq!(ready(Readiness { is_stop_requested: true, ..all }), not);
        let none = Readiness { serving: 0, wanted: 0, ..all };
        assert_eq!(ready(none), ok, "a program without web workers");
        assert_eq!(ready(Readiness { missing_of_other_kinds: 1, ..none }), not);
        assert_eq!(report("readyz", &readiness_checks(None), false).status, not);
    }

    #[test]
    fn reports_say_why_as_kubernetes_does() {
        let passed = report("livez", &[primary_check(None)], true);
        assert_eq!(passed.text, "[+]primary-loop ok\nlivez check passed\n");
        assert_eq!(report("livez", &[primary_check(None)], false).text, "ok\n");
        let failed = report("livez", &[primary_check(Some(2500))], false);
        assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(failed.text.starts_with("[-]primary-loop failed: "), "{}", failed.text);
        assert!(failed.text.ends_with("\nlivez check failed\n"), "{}", failed.text);
    }
}
