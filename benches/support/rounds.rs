//! Rounds of measurements: every target once in each, in rotated order, so that a drifting machine speed affects all.

use super::target::{BenchSetup, BenchTarget, REFERENCE};

/// Values of one target in one round.
pub struct Sample {
    pub values: Vec<f64>,
    /// Mean values of the floor just before and after.
    pub floor: Option<Vec<f64>>,
}

/// All rounds of one target.
pub struct Series {
    pub target: BenchTarget,
    pub samples: Vec<Sample>,
}

/// Number and kind of rounds.
#[derive(Clone, Copy)]
pub struct Rounds {
    pub count: usize,
    /// Whether the floor is measured between any two others, as a reference close in time.
    pub with_floor: bool,
}

/// Runs the rounds for the targets that `can` selects. A target that fails once is reported and left out.
pub fn run(
    setup: &BenchSetup,
    rounds: Rounds,
    can: impl Fn(BenchTarget) -> bool,
    measure: impl Fn(BenchTarget) -> Result<Vec<f64>, String>,
) -> Vec<Series> {
    let names = setup.targets.iter();
    let mut all: Vec<Series> =
        names.map(|target| Series { target: *target, samples: Vec::new() }).collect();
    let with_floor = rounds.with_floor && setup.targets.contains(&REFERENCE);
    let mut alive: Vec<BenchTarget> = setup.targets.clone();
    alive.retain(|target| can(*target) && !(with_floor && *target == REFERENCE));
    for round in 0..rounds.count {
        let mut order = alive.clone();
        order.rotate_left(round % alive.len().max(1));
        let floor = |all: &mut Vec<Series>| -> Option<Vec<f64>> {
            let values = with_floor.then(|| measure_target(REFERENCE, round, &measure))??;
            let reference = all.iter_mut().find(|one| one.target == REFERENCE)?;
            reference.samples.push(Sample { values: values.clone(), floor: Some(values.clone()) });
            Some(values)
        };
        let mut before = floor(&mut all);
        for target in order {
            let Some(values) = measure_target(target, round, &measure) else {
                alive.retain(|other| *other != target);
                continue;
            };
            let after = floor(&mut all);
            let floor = mean(before.as_deref(), after.as_deref());
            before = after;
            if let Some(one) = all.iter_mut().find(|one| one.target == target) {
                one.samples.push(Sample { values, floor });
            }
        }
    }
    all.retain(|one| !one.samples.is_empty());
    all
}

fn measure_target(
    target: BenchTarget,
    round: usize,
    measure: &impl Fn(BenchTarget) -> Result<Vec<f64>, String>,
) -> Option<Vec<f64>> {
    let name = target.title();
    match measure(target) {
        Ok(values) => {
            let texts: Vec<String> = values.iter().map(|value| format!("{value:.2}")).collect();
            eprintln!("round {} {name}: {}", round + 1, texts.join(" "));
            Some(values)
        }
        Err(why) => {
            eprintln!("left out: {name}: {why}");
            None
        }
    }
}

fn mean(a: Option<&[f64]>, b: Option<&[f64]>) -> Option<Vec<f64>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect()),
        (one, other) => one.or(other).map(<[f64]>::to_vec),
    }
}
