//! Rounds: everybody once in each, in rotated order, so that a machine whose speed drifts is unfair to all.

use super::contestant::{Contestant, Ground, REFERENCE};

/// What one contestant did in one round.
pub struct Sample {
    pub values: Vec<f64>,
    /// What the floor did just before and just after, on average.
    pub floor: Option<Vec<f64>>,
}

/// All that one contestant did.
pub struct Series {
    pub who: Contestant,
    pub samples: Vec<Sample>,
}

/// How rounds are run.
#[derive(Clone, Copy)]
pub struct Rounds {
    pub count: usize,
    /// Measure the floor between any two others, so that each has a reference of its own time.
    pub with_floor: bool,
}

/// Runs the rounds for those who `can` take part. Whoever fails once is left out from then on, and it is said why.
pub fn run(
    ground: &Ground,
    rounds: Rounds,
    can: impl Fn(Contestant) -> bool,
    measure: impl Fn(Contestant) -> Result<Vec<f64>, String>,
) -> Vec<Series> {
    let names = ground.contestants.iter();
    let mut all: Vec<Series> = names.map(|who| Series { who: *who, samples: Vec::new() }).collect();
    let with_floor = rounds.with_floor && ground.contestants.contains(&REFERENCE);
    let mut alive: Vec<Contestant> = ground.contestants.clone();
    alive.retain(|who| can(*who) && !(with_floor && *who == REFERENCE));
    for round in 0..rounds.count {
        let mut order = alive.clone();
        order.rotate_left(round % alive.len().max(1));
        let floor = |all: &mut Vec<Series>| -> Option<Vec<f64>> {
            let values = with_floor.then(|| measured(REFERENCE, round, &measure))??;
            let reference = all.iter_mut().find(|one| one.who == REFERENCE)?;
            reference.samples.push(Sample { values: values.clone(), floor: Some(values.clone()) });
            Some(values)
        };
        let mut before = floor(&mut all);
        for who in order {
            let Some(values) = measured(who, round, &measure) else {
                alive.retain(|other| *other != who);
                continue;
            };
            let after = floor(&mut all);
            let floor = mean(before.as_deref(), after.as_deref());
            before = after;
            if let Some(one) = all.iter_mut().find(|one| one.who == who) {
                one.samples.push(Sample { values, floor });
            }
        }
    }
    all.retain(|one| !one.samples.is_empty());
    all
}

fn measured(
    who: Contestant,
    round: usize,
    measure: &impl Fn(Contestant) -> Result<Vec<f64>, String>,
) -> Option<Vec<f64>> {
    let name = who.title();
    match measure(who) {
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
