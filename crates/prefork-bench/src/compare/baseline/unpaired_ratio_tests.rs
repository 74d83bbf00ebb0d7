use super::*;
use crate::compare::random_order::RandomOrder;

#[test]
fn intervals_have_the_critical_values_of_published_tables() {
    // Critical values of the two-sided test of Mann and Whitney at 5 % and 1 % (Hollander, Wolfe and Chicken, table A.6).
    for (now, before, critical_95, critical_99) in [
        (4, 4, Some(0), None),
        (5, 5, Some(2), Some(0)),
        (8, 8, Some(13), Some(7)),
        (5, 10, Some(8), Some(4)),
        (10, 10, Some(23), Some(16)),
        (15, 15, Some(64), Some(51)),
        (20, 20, Some(127), Some(105)),
    ] {
        for (critical, error_rate) in [(critical_95, 0.05), (critical_99, 0.01)] {
            let ends = critical.map(|low| (low, now * before - 1 - low));
            assert_eq!(
                interval_ends(now, before, error_rate),
                ends,
                "{now}, {before}, {error_rate}"
            );
            assert_eq!(interval_ends(before, now, error_rate), ends);
        }
    }
    assert_eq!([(0, 5), (3, 3)].map(|(a, b)| interval_ends(a, b, 0.05)), [None, None]);
    assert_eq!([0.05, 0.05 / 10.0, 0.05 / 100.0].map(rounds_needed), [4, 6, 8]);
}

#[test]
fn the_counts_of_the_statistic_are_those_of_all_arrangements() {
    assert_eq!(statistic_counts(2, 2), [1, 1, 2, 1, 1]);
    assert_eq!(statistic_counts(1, 3), [1, 1, 1, 1]);
    let counts = statistic_counts(MAX_EXACT_VALUES, MAX_EXACT_VALUES);
    assert!(counts.iter().eq(counts.iter().rev()), "the distribution is symmetric");
    // 128 values, 64 of them of one run.
    assert_eq!(counts.iter().sum::<u128>(), 23_951_146_041_928_082_866_135_587_776_380_551_750);
}

#[test]
fn the_normal_distribution_is_never_more_sure_than_the_exact_one() {
    for error_rate in [0.05, 0.01, 0.05 / 40.0, 0.05 / 1000.0] {
        for (now, before) in [(20, 20), (40, 64), (64, 64)] {
            let exact = exact_quantile(now, before, error_rate / 2.0).expect("enough");
            let normal =
                normal_quantile_of_statistic(now, before, error_rate / 2.0).expect("enough");
            assert!(normal <= exact && normal + 45 > exact, "{now}, {before}: {normal}, {exact}");
        }
    }
    assert!(interval_ends(200, 1000, 0.001).is_some());
}

#[test]
fn the_estimate_and_its_inverse_agree() {
    let (now, before) = ([2.0, 3.0, 4.0, 5.0], [1.0, 1.5, 2.0, 2.5, 3.0]);
    let ratio = UnpairedRatio::from_values(&now, &before, 0.05).expect("values");
    let inverse = UnpairedRatio::from_values(&before, &now, 0.05).expect("values");
    assert!((ratio.median * inverse.median - 1.0).abs() < 1e-12, "{ratio:?} {inverse:?}");
    assert!((ratio.low.expect("low") * inverse.high.expect("high") - 1.0).abs() < 1e-12);
    assert_eq!((ratio.rounds_now, ratio.rounds_before), (4, 5));
    assert_eq!(UnpairedRatio::from_values(&now, &[], 0.05), None);
}

#[test]
fn values_of_zero_are_compared() {
    let none = UnpairedRatio::from_values(&[0.0; 6], &[0.0; 6], 0.05).expect("values");
    assert_eq!((none.median, none.shows_change()), (1.0, false));
    let some = UnpairedRatio::from_values(&[3.0; 6], &[0.0; 6], 0.05).expect("values");
    assert_eq!((some.median, some.shows_change()), (f64::INFINITY, true));
}

#[test]
fn few_rounds_have_an_estimate_and_no_interval() {
    let ratio = UnpairedRatio::from_values(&[2.0; 3], &[1.0; 3], 0.05).expect("values");
    assert_eq!((ratio.median, ratio.interval(), ratio.shows_change()), (2.0, None, false));
}

/// Returns in how many of `runs` pairs of runs the interval misses the true ratio, and in how many a change is shown.
fn simulate(
    ratio: f64,
    rounds: usize,
    runs: u64,
    noise: fn(&mut RandomOrder) -> f64,
) -> (usize, usize) {
    let (mut missed, mut shown) = (0, 0);
    for seed in 0..runs {
        let mut random = RandomOrder::from_seed(seed);
        let mut run = |factor: f64| -> Vec<f64> {
            (0..rounds).map(|_| factor * noise(&mut random).exp()).collect()
        };
        let (before, now) = (run(1.0), run(ratio));
        let found = UnpairedRatio::from_values(&now, &before, 0.05).expect("values");
        let (low, high) = found.interval().expect("enough rounds");
        missed += usize::from(!(low..=high).contains(&ratio));
        shown += usize::from(found.shows_change());
    }
    (missed, shown)
}

/// Noise of 3 %, with one measurement in ten that loses up to half to another process.
fn heavy_tails(random: &mut RandomOrder) -> f64 {
    let stolen = if random.unit() < 0.1 { random.unit() * 0.7 } else { 0.0 };
    0.03 * random.normal() - stolen
}

#[test]
fn intervals_miss_no_more_often_than_stated() {
    for rounds in [5, 12, 30] {
        let runs = 400;
        let (missed, shown) = simulate(1.0, rounds, runs, heavy_tails);
        assert!(missed == shown && missed as f64 <= 0.08 * runs as f64, "{missed} of {runs}");
        let (missed, _) = simulate(1.1, rounds, runs, heavy_tails);
        assert!(
            missed as f64 <= 0.08 * runs as f64,
            "{missed} of {runs} miss with {rounds} rounds"
        );
    }
}

#[test]
fn known_changes_are_shown() {
    assert_eq!(simulate(1.10, 20, 20, heavy_tails).1, 20);
    assert_eq!(simulate(1.0 / 500.0, 5, 20, heavy_tails).1, 20);
    assert!(simulate(1.03, 60, 20, heavy_tails).1 >= 18);
}
