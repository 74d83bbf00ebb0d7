//! Latency distributions as curves, from HDR histograms.

use hdrhistogram::Histogram;

use super::plot_scale::PlotScale;
use super::svg_plot::{PlotAxis, PlotLine, line_plot};
use super::text_table::format_tick_micros;

/// Points of a curve for each further nine.
const POINTS_PER_NINE: u32 = 12;
/// Most nines on the axis: 99.999 %.
const MAX_NINES: f64 = 5.0;

/// A latency distribution, in nanoseconds.
pub(crate) struct LatencyCurve<'a> {
    pub(crate) class: String,
    pub(crate) latency: &'a Histogram<u64>,
}

/// Plots latency by percentile: each further nine takes the same width. `None` without a value.
pub(crate) fn latency_plot(about: &str, curves: &[LatencyCurve<'_>]) -> Option<String> {
    let curves: Vec<&LatencyCurve<'_>> =
        curves.iter().filter(|curve| !curve.latency.is_empty()).collect();
    // Not more nines than the number of requests can resolve.
    let most = curves.iter().map(|curve| curve.latency.len()).max()?;
    let nines = (most as f64).log10().clamp(1.0, MAX_NINES);
    let points: Vec<Vec<(f64, f64)>> =
        curves.iter().map(|curve| curve_points(curve.latency, nines)).collect();
    let scale = PlotScale::for_values(points.iter().flatten().map(|(_, micros)| *micros));
    let placed: Vec<Vec<(f64, f64)>> = points
        .iter()
        .map(|points| points.iter().map(|(x, micros)| (*x, scale.place(*micros))).collect())
        .collect();
    let named = [("0", 0.0), ("90 %", 1.0), ("99 %", 2.0), ("99.9 %", 3.0), ("99.99 %", 4.0)];
    let named = named.iter().filter(|(_, at)| at / nines < 0.99);
    let x = PlotAxis {
        name: "percentile".to_string(),
        ticks: named.map(|(label, at)| (at / nines, label.to_string())).collect(),
    };
    let log = if scale.is_log() { ", log scale" } else { "" };
    let y = PlotAxis { name: format!("latency{log}"), ticks: scale.ticks(format_tick_micros) };
    let lines: Vec<PlotLine<'_>> = curves
        .iter()
        .zip(&placed)
        .map(|(curve, points)| PlotLine {
            class: &curve.class,
            points,
            filled: curves.len() == 1,
            dotted: false,
        })
        .collect();
    Some(line_plot(about, &x, &y, &lines, &[]))
}

/// Returns the points of a curve: position from 0 to 1, and microseconds.
fn curve_points(latency: &Histogram<u64>, nines: f64) -> Vec<(f64, f64)> {
    let own_nines = (latency.len() as f64).log10().min(nines);
    let steps = (own_nines * f64::from(POINTS_PER_NINE)).ceil().max(1.0) as u32;
    let at = |step: u32| own_nines * f64::from(step) / f64::from(steps);
    let point = |step| {
        let quantile = 1.0 - 10f64.powf(-at(step));
        (at(step) / nines, latency.value_at_quantile(quantile) as f64 / 1e3)
    };
    (0..=steps).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: impl Iterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).expect("a histogram");
        values.for_each(|value| histogram.record(value).expect("grows"));
        histogram
    }

    #[test]
    fn a_curve_ends_at_the_percentile_that_its_requests_resolve() {
        let latency = histogram((1..=1000).map(|n| n * 1000));
        let points = curve_points(&latency, 5.0);
        let (last, highest) = points[points.len() - 1];
        assert!((last - 0.6).abs() < 1e-9, "{last}");
        assert!((990.0..=1001.0).contains(&highest), "{highest}");
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{points:?}");
    }

    #[test]
    fn each_distribution_has_a_line() {
        let (fast, slow) = (histogram(1000..2000), histogram((1..50).map(|n| n * 1_000_000)));
        let curves = [("s0", &fast), ("s1", &slow)]
            .map(|(class, latency)| LatencyCurve { class: class.into(), latency });
        let svg = latency_plot("latency", &curves).expect("a plot");
        assert!(svg.contains("class=\"s0 line\"") && svg.contains("class=\"s1 line\""), "{svg}");
        assert!(svg.contains("log scale"), "{svg}");
        assert_eq!(latency_plot("nothing", &[]), None);
    }
}
