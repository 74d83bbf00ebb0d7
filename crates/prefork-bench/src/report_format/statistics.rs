//! Summary statistics.

/// Returns the largest share divided by the smallest, and the coefficient of variation; `None` for fewer than
/// two.
pub(crate) fn share_imbalance(shares: &[u64]) -> Option<(f64, f64)> {
    let (most, least) = (*shares.iter().max()?, *shares.iter().min()?);
    if shares.len() < 2 {
        return None;
    }
    let mean = shares.iter().sum::<u64>() as f64 / shares.len() as f64;
    let squares: f64 = shares.iter().map(|share| (*share as f64 - mean).powi(2)).sum();
    let deviation = (squares / shares.len() as f64).sqrt();
    Some((most as f64 / least as f64, deviation / mean))
}

/// Returns median, minimum and maximum; zeros if `values` is empty.
pub(crate) fn median_min_max(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return [0.0; 3] };
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        0 => (sorted[half - 1] + sorted[half]) / 2.0,
        _ => sorted[half],
    };
    [median, *least, *most]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imbalance_and_median_are_computed() {
        assert_eq!(share_imbalance(&[100, 100]), Some((1.0, 0.0)));
        assert_eq!(share_imbalance(&[3, 1]), Some((3.0, 0.5)));
        assert_eq!((share_imbalance(&[5]), share_imbalance(&[])), (None, None));
        assert_eq!(median_min_max(&[3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
        assert_eq!(median_min_max(&[4.0, 2.0]), [3.0, 2.0, 4.0]);
        assert_eq!(median_min_max(&[]), [0.0; 3]);
    }
}
