//! Text lines of the CPU pools, for `prefork status`.

use std::time::Duration;

use tokio_prefork::status::{ClusterStatus, JobDurations, PoolStatus};
use tokio_prefork::text::{HumanDuration, printable};

/// Maximum number of characters of a line. A longer one is continued on the next line.
const MAX_LINE: usize = 100;

/// Formats a line for each pool; empty if there are none.
pub(super) fn format_pools(status: &ClusterStatus) -> String {
    status.pools.iter().map(format_pool).collect()
}

fn format_pool(pool: &PoolStatus) -> String {
    let mut parts = vec![
        format!("{}/{} busy ({}%)", pool.running, pool.threads, pool.utilisation),
        format!("{} of {} queued", pool.depth, pool.capacity),
        format!("{} done", pool.done),
    ];
    add_counts(
        &mut parts,
        &[
            (pool.panicked, "panicked"),
            (pool.timed_out, "timed out"),
            (pool.cancelled, "cancelled"),
            (pool.rejected, "refused"),
            (pool.closed, "refused by a closed pool"),
        ],
    );
    add_durations(&mut parts, &pool.wait, &pool.run);
    wrap_list(&format!("pool {}: ", printable(&pool.name)), &parts)
}

/// Adds the counts that are not 0.
fn add_counts(parts: &mut Vec<String>, counts: &[(u64, &str)]) {
    let nonzero = counts.iter().filter(|(count, _)| *count > 0);
    parts.extend(nonzero.map(|(count, name)| format!("{count} {name}")));
}

/// Adds the median and the 99th percentile of how long jobs waited and ran.
fn add_durations(parts: &mut Vec<String>, wait: &JobDurations, run: &JobDurations) {
    for (name, durations) in [("waited", wait), ("ran", run)] {
        if let (Some(p50), Some(p99)) = (durations.quantile(0.5), durations.quantile(0.99)) {
            parts.push(format!("{name} p50 {} p99 {}", format_short(p50), format_short(p99)));
        }
    }
}

/// Formats a duration with microseconds where it is that short.
fn format_short(duration: Duration) -> String {
    match duration.as_micros() {
        us if us < 1_000 => format!("{us} µs"),
        _ => HumanDuration(duration).to_string(),
    }
}

/// Joins the parts with commas, and continues on an indented line where `MAX_LINE` is reached.
fn wrap_list(prefix: &str, parts: &[String]) -> String {
    let (mut text, mut column) = (prefix.to_string(), prefix.chars().count());
    for (n, part) in parts.iter().enumerate() {
        let is_last = n + 1 == parts.len();
        let length = part.chars().count() + usize::from(!is_last);
        if n > 0 && column + 1 + length > MAX_LINE {
            text.push_str("\n    ");
            column = 4;
        } else if n > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(part);
        text.push_str(if is_last { "\n" } else { "," });
        column += length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pools: &str) -> ClusterStatus {
        let reply = include_str!("status_sample.json");
        let mut reply: serde_json::Value = serde_json::from_str(reply).expect("JSON");
        reply["status"]["pools"] = serde_json::from_str(pools).expect("pools");
        serde_json::from_value(reply["status"].clone()).expect("status")
    }

    #[test]
    fn each_pool_has_a_line_with_its_percentiles() {
        let text = format_pools(&status(
            r#"[{"name":"default","threads":2,"running":1,"utilisation":40,"capacity":256},
            {"name":"images","threads":1,"done":120,"rejected":3,"timed_out":1,
            "wait":{"max_us":20000,"sum_us":1,"buckets":[[8,118],[24576,2]]},
            "run":{"max_us":3000000,"sum_us":1,"buckets":[[3145728,120]]}}]"#,
        ));
        assert_eq!(
            text,
            "pool default: 1/2 busy (40%), 0 of 256 queued, 0 done\n\
             pool images: 0/1 busy (0%), 0 of 0 queued, 120 done, 1 timed out, 3 refused,\n    \
             waited p50 4 µs p99 18 ms, ran p50 2.5 s p99 3 s\n"
        );
    }

    #[test]
    fn lines_stay_within_the_width() {
        let pool = r#"[{"name":"NAME","threads":99,"running":99,"utilisation":100,"capacity":99999,"depth":99999,
            "done":123456789012,"panicked":1234567,"timed_out":1234567,"cancelled":1234567,"rejected":1234567,
            "closed":1234567,"wait":{"max_us":9999999,"buckets":[[null,9]]},
            "run":{"max_us":9999999,"buckets":[[null,9]]}}]"#;
        let text = format_pools(&status(&pool.replace("NAME", &"x".repeat(32))));
        assert!(text.lines().all(|line| line.chars().count() <= MAX_LINE), "{text}");
        assert!(text.lines().count() > 1 && text.contains("ran p50"), "{text}");
    }

    #[test]
    fn the_name_of_a_pool_cannot_steer_the_terminal() {
        let text = format_pools(&status(r#"[{"name":"\u001b[2J"}]"#));
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
