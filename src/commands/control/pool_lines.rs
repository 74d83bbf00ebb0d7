//! Text lines of CPU pools and isolated pools, for `prefork status`.

use std::time::Duration;

use tokio_prefork::status::{ClusterStatus, IsolatedPoolStatus, JobDurations, PoolStatus};
use tokio_prefork::text::{HumanDuration, printable};

/// Maximum number of characters of a line. A longer one is continued on the next line.
const MAX_LINE: usize = 100;

/// Formats a line for each CPU pool and each pool of isolated processes; empty if there are none.
pub(super) fn format_pools(status: &ClusterStatus) -> String {
    let pools = status.pools.iter().map(format_pool);
    pools.chain(status.isolated.iter().map(format_isolated_pool)).collect()
}

fn format_pool(pool: &PoolStatus) -> String {
    let mut counts = vec![
        format!("{}/{} busy ({}%)", pool.running, pool.threads, pool.utilisation),
        format!("{} of {} queued", pool.depth, pool.capacity),
        format!("{} done", pool.done),
    ];
    add_counts(
        &mut counts,
        &[
            (pool.panicked, "panicked"),
            (pool.timed_out, "timed out"),
            (pool.cancelled, "cancelled"),
            (pool.rejected, "refused"),
            (pool.closed, "refused by a closed pool"),
        ],
    );
    let title = format!("pool {}: ", printable(&pool.name));
    wrap_line(&title, &counts, &format_durations(&pool.wait, &pool.run))
}

fn format_isolated_pool(pool: &IsolatedPoolStatus) -> String {
    let mut counts = vec![
        format!("{}/{} busy", pool.running, pool.processes),
        format!("{} of {} queued", pool.depth, pool.capacity),
        format!("{} done", pool.done),
    ];
    add_counts(
        &mut counts,
        &[
            (pool.waiting_for_room, "waiting for room"),
            (pool.failed, "failed"),
            (pool.panicked, "panicked"),
            (pool.died, "died"),
            (pool.timed_out, "timed out"),
            (pool.cut, "cut"),
            (pool.abandoned, "abandoned"),
            (pool.refused, "refused"),
            (pool.closed, "refused by a stop"),
            (pool.lost, "lost"),
        ],
    );
    let title = format!("isolated {}: ", printable(&pool.name));
    wrap_line(&title, &counts, &format_durations(&pool.wait, &pool.run))
}

/// Adds the counts that are not 0.
fn add_counts(parts: &mut Vec<String>, counts: &[(u64, &str)]) {
    let nonzero = counts.iter().filter(|(count, _)| *count > 0);
    parts.extend(nonzero.map(|(count, name)| format!("{count} {name}")));
}

/// Formats the median and the 99th percentile of how long jobs waited and ran.
fn format_durations(wait: &JobDurations, run: &JobDurations) -> Vec<String> {
    let formatted = [("waited", wait), ("ran", run)].map(|(name, durations)| {
        let (p50, p99) = (durations.quantile(0.5)?, durations.quantile(0.99)?);
        Some(format!("{name} p50 {} p99 {}", format_short(p50), format_short(p99)))
    });
    formatted.into_iter().flatten().collect()
}

/// Formats a duration with microseconds where it is that short.
fn format_short(duration: Duration) -> String {
    match duration.as_micros() {
        us if us < 1_000 => format!("{us} µs"),
        _ => HumanDuration(duration).to_string(),
    }
}

/// Joins title, counts and durations with commas. Continues on indented lines where `MAX_LINE` is reached: the durations
/// together, if they do not fit behind the counts.
fn wrap_line(title: &str, counts: &[String], durations: &[String]) -> String {
    let rest = durations.iter().map(|part| part.chars().count() + 2).sum::<usize>();
    let (mut text, mut column) = (title.to_string(), title.chars().count());
    for (n, part) in counts.iter().chain(durations).enumerate() {
        let length = part.chars().count();
        // The separator, which may end the line, counts too.
        let needed = if n == counts.len() { rest } else { length + 2 };
        if n > 0 && column + needed + 1 > MAX_LINE {
            text.push_str(",\n    ");
            column = 4;
        } else if n > 0 {
            text.push_str(", ");
            column += 2;
        }
        text.push_str(part);
        column += length;
    }
    text.push('\n');
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
    fn each_isolated_pool_has_a_line() {
        let mut status = status("[]");
        let pools = r#"[{"name":"danger","processes":1,"running":1,"depth":1,"capacity":64,"done":120,"died":2,
            "timed_out":1,"wait":{"max_us":900,"buckets":[[1024,9]]}}]"#;
        status.isolated = serde_json::from_str(pools).expect("pools");
        assert_eq!(
            format_pools(&status),
            "isolated danger: 1/1 busy, 1 of 64 queued, 120 done, 2 died, 1 timed out,\n    \
             waited p50 841 µs p99 900 µs\n"
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
