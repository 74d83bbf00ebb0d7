//! The table of CPU pools and of pools of isolated processes.

use std::time::Duration;

use super::format::{format_duration, format_rate};
use super::rates::Rates;
use super::sample::Sample;
use super::table::{Cell, Column, Row, Table, Tone};
use tokio_prefork::status::{IsolatedPoolStatus, JobDurations, PoolStatus};
use tokio_prefork::text::printable;

const POOL: Column = Column::text("POOL");

const COLUMNS: [Column; 14] = [
    POOL,
    Column::text("TYPE").drop_order(4),
    Column::number("BUSY"),
    Column::number("OF").drop_order(1),
    Column::number("QUEUED"),
    Column::number("LIMIT").drop_order(7),
    Column::number("JOBS/S").drop_order(2),
    Column::number("DONE").drop_order(8),
    Column::number("FAILED").drop_order(3),
    Column::number("REFUSED").drop_order(5),
    Column::number("WAIT p50").drop_order(10),
    Column::number("WAIT p99").drop_order(9),
    Column::number("RUN p50").drop_order(11),
    Column::number("RUN p99").drop_order(6),
];

/// The figures that both sorts of pools have.
struct PoolFigures<'a> {
    name: &'a str,
    pool_type: &'static str,
    busy: u64,
    size: u64,
    queued: u64,
    limit: u64,
    jobs_per_second: Option<f64>,
    done: u64,
    /// Jobs that began and have no result.
    failed: u64,
    /// Jobs that did not begin.
    refused: u64,
    wait: &'a JobDurations,
    run: &'a JobDurations,
}

/// Returns a row for each CPU pool that was used, and for each isolated pool.
pub(super) fn pool_table(sample: &Sample, rates: &Rates) -> Table {
    let cpu = sample.status.pools.iter().map(|pool| cpu_pool(pool, rates));
    let isolated = sample.status.isolated.iter().map(|pool| isolated_pool(pool, rates));
    let rows = cpu.chain(isolated).enumerate();
    let rows = rows.map(|(index, pool)| pool_row(index as u64, &pool)).collect();
    Table { columns: COLUMNS.to_vec(), rows }
}

fn sum<const N: usize>(counts: [u64; N]) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

fn cpu_pool<'a>(pool: &'a PoolStatus, rates: &Rates) -> PoolFigures<'a> {
    PoolFigures {
        name: &pool.name,
        pool_type: "cpu",
        busy: pool.running,
        size: pool.threads,
        queued: pool.depth,
        limit: pool.capacity,
        jobs_per_second: rates.pool_jobs.get(&pool.name).copied(),
        done: pool.done,
        failed: sum([pool.panicked, pool.timed_out, pool.cancelled]),
        refused: sum([pool.rejected, pool.closed]),
        wait: &pool.wait,
        run: &pool.run,
    }
}

fn isolated_pool<'a>(pool: &'a IsolatedPoolStatus, rates: &Rates) -> PoolFigures<'a> {
    let ends = [
        pool.failed,
        pool.panicked,
        pool.died,
        pool.timed_out,
        pool.cut,
        pool.abandoned,
        pool.lost,
    ];
    PoolFigures {
        name: &pool.name,
        pool_type: "isolated",
        busy: pool.running,
        size: pool.processes,
        queued: pool.depth,
        limit: pool.capacity,
        jobs_per_second: rates.isolated_jobs.get(&pool.name).copied(),
        done: pool.done,
        failed: sum(ends),
        refused: sum([pool.refused, pool.closed]),
        wait: &pool.wait,
        run: &pool.run,
    }
}

fn pool_row(key: u64, pool: &PoolFigures) -> Row {
    let quantile = |durations: &JobDurations, q| {
        let duration = durations.quantile(q);
        Cell::number(duration.as_ref().map(Duration::as_secs_f64), format_duration(duration))
    };
    let cells = vec![
        Cell::text(printable(pool.name)),
        Cell::text(pool.pool_type),
        Cell::count(pool.busy),
        Cell::count(pool.size),
        Cell::count(pool.queued),
        Cell::count(pool.limit),
        Cell::number(pool.jobs_per_second, format_rate(pool.jobs_per_second)),
        Cell::count(pool.done),
        Cell::count(pool.failed),
        Cell::count(pool.refused),
        quantile(pool.wait, 0.5),
        quantile(pool.wait, 0.99),
        quantile(pool.run, 0.5),
        quantile(pool.run, 0.99),
    ];
    let tone = match pool {
        _ if pool.limit > 0 && pool.queued >= pool.limit => Tone::Error,
        _ if pool.queued > 0 => Tone::Warning,
        _ => Tone::Normal,
    };
    Row { key, cells, tone }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::sample;
    use super::*;

    #[test]
    fn both_sorts_of_pools_have_a_row_with_their_figures() {
        let mut rates = Rates::default();
        rates.isolated_jobs.insert("danger".to_string(), 2.5);
        let sample = sample(|status| {
            let pools = r#"[{"name":"danger","processes":2,"running":1,"depth":64,"capacity":64,"done":120,"died":2,
                "timed_out":1,"refused":3,"run":{"max_us":900,"buckets":[[1024,9]]}}]"#;
            status.isolated = serde_json::from_str(pools).expect("pools");
        });
        let table = pool_table(&sample, &rates);
        let texts = |row: &Row| row.cells.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&table.rows[0])[..8], ["default", "cpu", "1", "1", "3", "8", "-", "0"]);
        assert_eq!(
            texts(&table.rows[1]),
            [
                "danger", "isolated", "1", "2", "64", "64", "2.5", "120", "3", "3", "-", "-",
                "841 us", "900 us"
            ]
        );
        assert_eq!([table.rows[0].tone, table.rows[1].tone], [Tone::Warning, Tone::Error]);
    }
}
