use std::time::Duration;

use super::*;

const MS: u64 = 1_000_000;

/// Parses milliseconds, seconds or minutes.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("", 1000)];
    let read = |(unit, ms)| Some(text.strip_suffix(unit)?.parse::<u64>().ok()? * ms);
    let ms = units.into_iter().find_map(read).ok_or("is not a duration")?;
    Ok(Duration::from_millis(ms))
}

fn parse(text: &str) -> Result<FaultPlan, String> {
    FaultPlan::parse(text, parse_duration)
}

#[test]
fn fault_plans_are_parsed() {
    let faults = parse("kill=1s,freeze=10s,reload=500ms").expect("faults");
    let ms = |ms| Some(Duration::from_millis(ms));
    assert_eq!(faults.intervals, [ms(1000), ms(500), ms(10_000)]);
    assert_eq!(faults.freeze_duration, Duration::from_secs(1));
    assert_eq!(parse("freeze=1s").expect("faults").freeze_duration, Duration::from_millis(500));
    assert_eq!(parse("freeze=1s/50ms").expect("faults").freeze_duration, Duration::from_millis(50));
    assert_eq!(faults.validate(Duration::from_secs(11)), Ok(()));
    let why = faults.validate(Duration::from_secs(10)).expect_err("too short");
    assert!(why.contains("--chaos freeze"), "{why}");
}

#[test]
fn invalid_fault_lists_say_what_to_write() {
    for (text, piece) in [
        ("", "give kill=1s"),
        ("kill", "give kill=1s"),
        ("pause=1s", "unknown fault \"pause\""),
        ("kill=soon", "is not a duration"),
        ("kill=1ms", "at least 100ms"),
        ("kill=1s,kill=2s", "twice"),
        ("kill=1s/2s", "only a freeze"),
        ("freeze=1s/1s", "shorter than"),
        ("freeze=1s/0", "shorter than"),
        ("freeze=10m/5m", "at most"),
    ] {
        let why = parse(text).expect_err(text);
        assert!(why.contains(piece), "{text}: {why}");
    }
}

fn fault_at_ms(kind: FaultKind, from: u64, until: u64, pids: &[u32]) -> InjectedFault {
    InjectedFault { kind, from: from * MS, until: until * MS, pids: pids.to_vec() }
}

fn affected_at_ms(effect: FaultEffect, from: u64, until: u64, pid: Option<u32>) -> AffectedRequest {
    AffectedRequest { effect, from: from * MS, until: until * MS, pid }
}

#[test]
fn an_affected_request_counts_for_the_fault_on_its_process_or_else_for_the_latest_one() {
    let faults = vec![
        fault_at_ms(FaultKind::Freeze, 1000, 2000, &[7]),
        fault_at_ms(FaultKind::Kill, 1500, 1500, &[8]),
        fault_at_ms(FaultKind::Reload, 9000, 9000, &[7, 9]),
    ];
    let injected = InjectedFaults { faults, skipped: [0; 3] };
    let affected = [
        // On the frozen worker, although a kill came later.
        affected_at_ms(FaultEffect::Late, 1400, 2000, Some(7)),
        // On the killed worker.
        affected_at_ms(FaultEffect::Lost, 1490, 1501, Some(8)),
        // A new connection: the latest fault counts.
        affected_at_ms(FaultEffect::Refused, 1600, 1601, None),
        // On a replaced worker.
        affected_at_ms(FaultEffect::Lost, 9500, 9600, Some(9)),
        // Before the first fault, and long after the last.
        affected_at_ms(FaultEffect::Lost, 10, 20, Some(7)),
        affected_at_ms(FaultEffect::Late, 5000, 5200, Some(7)),
        affected_at_ms(FaultEffect::Late, 20_000, 20_200, None),
    ];
    let [kill, reload, freeze, none] = costs_by_fault(&injected, &affected);
    assert_eq!(kill, FaultCost { refused: 1, lost: 1, late: 0 });
    assert_eq!(reload, FaultCost { refused: 0, lost: 1, late: 0 });
    assert_eq!(freeze, FaultCost { refused: 0, lost: 0, late: 1 });
    assert_eq!(none, FaultCost { refused: 0, lost: 1, late: 2 });
    assert_eq!(kill.combine(reload), FaultCost { refused: 1, lost: 2, late: 0 });
}

#[test]
fn a_request_that_started_before_a_freeze_counts_for_it() {
    let injected = InjectedFaults {
        faults: vec![fault_at_ms(FaultKind::Freeze, 1000, 2000, &[7])],
        skipped: [0; 3],
    };
    let cost = costs_by_fault(&injected, &[affected_at_ms(FaultEffect::Late, 500, 2100, Some(7))]);
    assert_eq!(cost[FaultKind::Freeze as usize].late, 1);
}
