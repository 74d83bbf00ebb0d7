use std::time::Duration;

use super::fault_attribution::FaultCost;
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
    assert!(why.contains("the first freeze"), "{why}");
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
    let pids = pids.to_vec();
    InjectedFault { kind, from: from * MS, until: until * MS, pids, client_ports: None }
}

fn affected_at_ms(effect: FaultEffect, from: u64, until: u64, pid: Option<u32>) -> AffectedRequest {
    AffectedRequest { effect, from: from * MS, until: until * MS, pid, port: None }
}

/// Returns the name of the causes of one request.
fn causes(faults: &[InjectedFault], request: AffectedRequest) -> String {
    let injected = InjectedFaults { faults: faults.to_vec(), skipped: [0; 3] };
    let costs = FaultCosts::of_round(&injected, &[request]);
    let found = FaultCauses::all()
        .into_iter()
        .find(|causes| costs.of_causes(*causes) != FaultCost::default());
    found.expect("one request").name()
}

#[test]
fn a_request_counts_for_the_fault_on_its_process_and_else_for_all_kinds_that_are_possible() {
    let faults = [
        fault_at_ms(FaultKind::Freeze, 1000, 2000, &[7]),
        fault_at_ms(FaultKind::Kill, 1500, 1500, &[8]),
        fault_at_ms(FaultKind::Reload, 9000, 9000, &[7, 9]),
    ];
    use FaultEffect::{Late, Lost, Refused};
    for (effect, from, until, pid, expected) in [
        // On the frozen worker, although a kill came later.
        (Late, 1400, 2000, Some(7), "freeze"),
        // On the killed worker.
        (Lost, 1490, 1501, Some(8), "kill"),
        // Answered late by a successor of the killed worker, for which it has waited.
        (Late, 1600, 1900, Some(10), "kill"),
        // A new connection, in a time with two faults.
        (Refused, 1600, 1601, None, "kill or freeze"),
        // On a replaced worker, and on one that the reload started.
        (Lost, 9500, 9600, Some(9), "reload"),
        (Lost, 9500, 9600, Some(10), "none"),
        // Before the first fault, and long after the last.
        (Lost, 10, 20, Some(7), "none"),
        (Late, 5000, 5200, Some(7), "none"),
        (Late, 20_000, 20_200, None, "none"),
        // It began before the freeze.
        (Late, 500, 1400, Some(7), "freeze"),
    ] {
        let request = affected_at_ms(effect, from, until, pid);
        assert_eq!(causes(&faults, request), expected, "{request:?}");
    }
}

#[test]
fn a_handed_over_connection_is_charged_to_the_kill_of_the_process_that_had_it() {
    let mut faults = vec![
        fault_at_ms(FaultKind::Reload, 7000, 7000, &[1, 2]),
        fault_at_ms(FaultKind::Kill, 7500, 7500, &[4]),
    ];
    // Worker 1 answered last. The reload has moved the connection to worker 4, and the client cannot see that.
    let lost = affected_at_ms(FaultEffect::Lost, 7499, 7501, Some(1));
    assert_eq!(causes(&faults, lost), "kill or reload", "the connections of worker 4 are unknown");
    faults[1].client_ports = Some(vec![40_000, 40_002]);
    let at_port = |port| AffectedRequest { port: Some(port), ..lost };
    assert_eq!(causes(&faults, at_port(40_002)), "kill");
    // It may have been on the way to worker 4 in a channel.
    assert_eq!(causes(&faults, at_port(40_001)), "kill or reload");
    // The kernel closes connections at once, so what is sent later is not lost by the kill.
    let later = affected_at_ms(FaultEffect::Lost, 7900, 7901, Some(1));
    assert_eq!(causes(&faults, later), "reload");
}

#[test]
fn costs_of_rounds_are_added() {
    let injected = InjectedFaults {
        faults: vec![fault_at_ms(FaultKind::Kill, 100, 100, &[7])],
        skipped: [0; 3],
    };
    let affected =
        [FaultEffect::Lost, FaultEffect::Late].map(|e| affected_at_ms(e, 100, 101, Some(7)));
    let costs = FaultCosts::of_round(&injected, &affected);
    let kill = FaultCauses::all()[0];
    assert_eq!((kill.name().as_str(), kill.single()), ("kill", Some(FaultKind::Kill)));
    let sum = costs.combine(&costs).of_causes(kill);
    assert_eq!(sum, FaultCost { refused: 0, lost: 2, late: 2 });
    let names: Vec<String> = FaultCauses::all().into_iter().map(FaultCauses::name).collect();
    assert_eq!(names[..4], ["kill", "reload", "freeze", "kill or reload"]);
    assert_eq!(names[7], "none");
}
