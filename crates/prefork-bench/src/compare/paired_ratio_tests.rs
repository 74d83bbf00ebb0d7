use super::*;
use crate::compare::random_order::RandomOrder;

#[test]
fn intervals_have_the_ranks_of_published_tables() {
    // Ranks from 1 of the 95 % and 99 % intervals of a median (Conover, table A3; also in C. D. Lentner, *Geigy
    // Scientific Tables*, volume 2).
    for (count, rank_95, rank_99) in [
        (6, Some(1), None),
        (8, Some(1), Some(1)),
        (10, Some(2), Some(1)),
        (15, Some(4), Some(3)),
        (20, Some(6), Some(4)),
        (30, Some(10), Some(8)),
        (50, Some(18), Some(16)),
        (100, Some(40), Some(37)),
    ] {
        for (rank, error_rate) in [(rank_95, 0.05), (rank_99, 0.01)] {
            let ends = rank.map(|rank: usize| (rank - 1, count - rank));
            assert_eq!(median_interval(count, error_rate), ends, "{count} values, {error_rate}");
        }
    }
    assert_eq!([0, 1, 5].map(|count| median_interval(count, 0.05)), [None; 3]);
    assert_eq!([0.05, 0.05 / 10.0, 0.05 / 100.0].map(rounds_needed), [6, 9, 12]);
}

#[test]
fn a_ratio_and_its_inverse_agree() {
    let pairs = [(1.0, 2.0), (3.0, 4.0), (5.0, 5.0), (9.0, 1.0), (0.0, 7.0), (7.0, 8.0)];
    let ratio = PairedRatio::from_pairs(pairs, 0.05).expect("six rounds");
    let inverse = PairedRatio::from_pairs(pairs.map(|(a, b)| (b, a)), 0.05).expect("six rounds");
    assert!((ratio.median * inverse.median - 1.0).abs() < 1e-12, "{ratio:?} {inverse:?}");
    assert_eq!((ratio.low, ratio.high), (Some(0.0), Some(9.0)));
    assert_eq!((inverse.low, inverse.high), (Some(1.0 / 9.0), Some(f64::INFINITY)));
    assert!(!ratio.shows_difference() && !ratio.is_precise(0.5));
    assert_eq!(PairedRatio::from_pairs([(0.0, 0.0)], 0.05), None);
}

#[test]
fn precision_is_relative_and_clear_differences_need_less_of_it() {
    let ratio = |median: f64, width: f64| PairedRatio {
        median,
        low: Some(median / width),
        high: Some(median * width),
        rounds: 10,
    };
    assert!(ratio(1.0, 1.04).is_precise(0.05) && !ratio(1.0, 1.06).is_precise(0.05));
    assert!(ratio(1.3, 1.04).is_precise(0.05) && !ratio(1.3, 1.06).is_precise(0.05));
    assert!(ratio(500.0, 1.5).is_precise(0.05) && !ratio(500.0, 2.0).is_precise(0.05));
}

#[test]
fn few_rounds_have_a_median_and_no_interval() {
    let ratio = PairedRatio::from_pairs([(3.0, 1.0); 5], 0.05).expect("rounds");
    assert_eq!((ratio.median, ratio.interval(), ratio.shows_difference()), (3.0, None, false));
    assert!(!ratio.is_precise(0.05));
}

/// Measured values of a server of speed 1 on a busy machine: speed drifts by a third within a few rounds, each
/// measurement has 5 % of noise of its own, and one in ten loses up to half to another process.
fn busy_machine(speed: f64, drift: f64, random: &mut RandomOrder) -> f64 {
    let noise = random.normal() * 0.05;
    let stolen = if random.unit() < 0.1 { random.unit() * 0.7 } else { 0.0 };
    speed * (drift + noise - stolen).exp()
}

/// Returns the ratio of two servers over `rounds` rounds on a virtual machine that has either its full speed or three fifths of
/// it. Before each measurement it changes from one to the other with a probability of 1/6.
fn simulate_steps(ratio: f64, rounds: usize, error_rate: f64, seed: u64) -> PairedRatio {
    let mut random = RandomOrder::from_seed(seed);
    let mut is_slow = false;
    let pairs: Vec<(f64, f64)> = (0..rounds)
        .map(|_| {
            let mut measure = |speed: f64| {
                is_slow ^= random.unit() < 1.0 / 6.0;
                let step = if is_slow { 0.6 } else { 1.0 };
                speed * step * (0.02 * random.normal()).exp()
            };
            let (first, second) = (measure(1.0), measure(1.0));
            match random.unit() < 0.5 {
                true => (ratio * first, second),
                false => (ratio * second, first),
            }
        })
        .collect();
    PairedRatio::from_pairs(pairs, error_rate).expect("rounds")
}

/// Returns the ratio of two servers over `rounds` rounds on a busy machine.
fn simulate(ratio: f64, rounds: usize, error_rate: f64, seed: u64) -> PairedRatio {
    let mut random = RandomOrder::from_seed(seed);
    let mut drift: f64 = 0.0;
    let pairs: Vec<(f64, f64)> = (0..rounds)
        .map(|_| {
            drift = 0.7 * drift + 0.15 * random.normal();
            // Between two measurements of a round the machine drifts too; a coin decides which is first.
            let later = drift + 0.03 * random.normal();
            let (own, other) = if random.unit() < 0.5 { (drift, later) } else { (later, drift) };
            (busy_machine(ratio, own, &mut random), busy_machine(1.0, other, &mut random))
        })
        .collect();
    PairedRatio::from_pairs(pairs, error_rate).expect("rounds")
}

#[test]
fn known_differences_are_told_apart_or_called_equal_at_the_stated_confidence() {
    // Of a report with 20 comparisons.
    let error_rate = 0.05 / 20.0;
    for (ratio, rounds, is_resolved) in [
        (1.0, 20, false),
        (1.0, 200, false),
        (1.03, 20, false),
        (1.03, 500, true),
        (1.10, 100, true),
        (1.0 / 1.10, 100, true),
        (500.0, 10, true),
        (1.0 / 500.0, 10, true),
    ] {
        let mut missed = 0;
        for seed in 0..20 {
            let found = simulate(ratio, rounds, error_rate, seed);
            let (low, high) = found.interval().expect("enough rounds");
            missed += usize::from(!(low..=high).contains(&ratio));
            let shown = found.shows_difference();
            if is_resolved {
                assert!(
                    shown,
                    "{ratio} in {rounds} rounds is not shown with seed {seed}: {found:?}"
                );
            }
            if shown {
                assert_eq!(found.median > 1.0, ratio > 1.0, "the wrong one wins: {found:?}");
            }
        }
        // At a chance of 1 in 400 each, two of 20 miss once in 850 such sets.
        assert!(missed <= 1, "{missed} of 20 intervals miss {ratio} in {rounds} rounds");
    }
}

#[test]
fn equal_servers_differ_no_more_often_than_stated() {
    for simulate in [simulate, simulate_steps] {
        for rounds in [6, 9, 15, 40] {
            let runs = 4000;
            let shows = |seed: &u64| simulate(1.0, rounds, 0.05, *seed).shows_difference();
            let wrong = (0..runs).filter(shows).count() as f64 / runs as f64;
            assert!(wrong <= 0.06, "{wrong} of the runs with {rounds} rounds show a difference");
        }
    }
}

#[test]
fn differences_are_told_apart_on_a_machine_with_steps() {
    for (ratio, rounds) in [(1.05, 40), (1.10, 40), (500.0, 12)] {
        let runs = || (0..20).map(|seed| simulate_steps(ratio, rounds, 0.05 / 20.0, seed));
        let contains = |found: &PairedRatio| {
            found.interval().is_some_and(|(low, high)| (low..=high).contains(&ratio))
        };
        assert!(runs().filter(contains).count() >= 19, "{ratio} in {rounds} rounds");
        let told = runs().filter(|found| found.low > Some(1.0)).count();
        assert!(told >= 19, "{ratio} is told apart in {told} of 20 runs with {rounds} rounds");
    }
}
