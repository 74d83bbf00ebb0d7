//! Scales of plot axes: linear from 0, or logarithmic where values span more than a decade.

/// Ratio of the largest to the smallest value from which an axis is logarithmic.
const LOG_SCALE_SPAN: f64 = 10.0;
/// Most decades with a tick at each.
const MAX_LABELED_DECADES: i32 = 6;

/// Ratios that are close to 1 get a scale of this range.
const NARROW_RATIOS: (f64, f64) = (0.8, 1.25);

/// A scale that places values on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum PlotScale {
    /// From 0 to `top`.
    Linear { top: f64 },
    /// From `bottom` to `top`, both above 0.
    Log { bottom: f64, top: f64 },
}

impl PlotScale {
    /// Returns a linear scale from 0 to a round number.
    pub(crate) fn linear(largest: f64) -> PlotScale {
        PlotScale::Linear { top: round_ticks(largest, |_| String::new()).1 }
    }

    /// Returns a scale for these values: logarithmic if they span more than a decade.
    pub(crate) fn for_values(values: impl IntoIterator<Item = f64>) -> PlotScale {
        let finite = values.into_iter().filter(|value| value.is_finite() && *value > 0.0);
        let (least, most) =
            finite.fold((f64::INFINITY, 0.0f64), |(least, most), v| (least.min(v), most.max(v)));
        if most <= least * LOG_SCALE_SPAN {
            return PlotScale::linear(most);
        }
        PlotScale::log(least, most)
    }

    /// Returns a logarithmic scale around these values, both above 0.
    pub(crate) fn log(least: f64, most: f64) -> PlotScale {
        // A bar of the smallest value stays visible.
        PlotScale::Log { bottom: round_down(least / 1.25), top: round_up(most) }
    }

    /// Returns a logarithmic scale for ratios around 1: narrow if they all are close to it.
    pub(crate) fn ratios(values: impl IntoIterator<Item = f64>) -> PlotScale {
        let finite = values.into_iter().filter(|value| value.is_finite() && *value > 0.0);
        let (least, most) =
            finite.fold((1.0f64, 1.0f64), |(least, most), v| (least.min(v), most.max(v)));
        match least >= NARROW_RATIOS.0 && most <= NARROW_RATIOS.1 {
            true => PlotScale::Log { bottom: NARROW_RATIOS.0, top: NARROW_RATIOS.1 },
            false => PlotScale::log(least.min(0.9), most.max(1.1)),
        }
    }

    /// Returns whether equal distances are equal ratios.
    pub(crate) fn is_log(&self) -> bool {
        matches!(self, PlotScale::Log { .. })
    }

    /// Returns the position of a value, from 0 to 1.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let at = match self {
            PlotScale::Linear { top } => value / top,
            PlotScale::Log { bottom, top } => {
                (value.max(*bottom) / bottom).ln() / (top / bottom).ln()
            }
        };
        if at.is_nan() { 0.0 } else { at.clamp(0.0, 1.0) }
    }

    /// Returns ticks at round numbers: position and label.
    pub(crate) fn ticks(&self, label: impl Fn(f64) -> String) -> Vec<(f64, String)> {
        let (bottom, top) = match self {
            PlotScale::Linear { top } => return round_ticks(*top, label).0,
            PlotScale::Log { bottom, top } => (*bottom, *top),
        };
        let decades = (top / bottom).log10();
        let first = bottom.log10().floor() as i32;
        let last = top.log10().ceil() as i32;
        let step = if last - first > MAX_LABELED_DECADES { 2 } else { 1 };
        let multiples: &[f64] = match decades {
            few if few <= 0.25 => &[1.0, 1.1, 1.2, 8.0, 9.0],
            few if few <= 2.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let all = (first..=last)
            .step_by(step)
            .flat_map(|power| multiples.iter().map(move |multiple| multiple * 10f64.powi(power)));
        // Computed values may miss the ends by a rounding error.
        let inside = all.filter(|v| *v >= bottom * 0.999 && *v <= top * 1.001);
        inside.map(|value| (self.place(value), label(value))).collect()
    }
}

/// Returns the largest of 1, 2 and 5 times a power of ten that is not above `value`.
fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let fits = |m: &f64| m * power <= value * 1.000_001;
    [5.0, 2.0, 1.0].into_iter().find(fits).unwrap_or(1.0) * power
}

/// Returns the smallest of 1, 2 and 5 times a power of ten that is not below `value`.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let fits = |m: &f64| m * power >= value * 0.999_999;
    [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0) * power
}

/// Returns ticks at round numbers from 0 to at least `largest`, and the value of the last tick.
pub(crate) fn round_ticks(
    largest: f64,
    label: impl Fn(f64) -> String,
) -> (Vec<(f64, String)>, f64) {
    let largest = if largest > 0.0 && largest.is_finite() { largest } else { 1.0 };
    let power = 10f64.powf((largest / 4.0).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power);
    let step = steps.into_iter().find(|s| largest / s <= 4.0).unwrap_or(power * 10.0);
    let count = (largest / step).ceil().max(1.0);
    let top = step * count;
    let all = (0..=count as usize).map(|n| (n as f64 / count, label(n as f64 * step)));
    (all.collect(), top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_up_to_the_largest() {
        for (largest, top, count) in
            [(0.0, 1.0, 5), (1.0, 1.0, 5), (87.0, 100.0, 5), (11_113.0, 15_000.0, 4), (4.1, 6.0, 4)]
        {
            let (ticks, found) = round_ticks(largest, |v| v.to_string());
            assert_eq!((found, ticks.len()), (top, count), "{largest}: {ticks:?}");
            assert_eq!((ticks[0].0, ticks[count - 1].0), (0.0, 1.0));
        }
    }

    #[test]
    fn a_scale_is_logarithmic_if_values_span_more_than_a_decade() {
        assert_eq!(PlotScale::for_values([20.0, 100.0, 0.0]), PlotScale::Linear { top: 100.0 });
        let scale = PlotScale::for_values([540.0, 2870.0, 354_000.0]);
        assert_eq!(scale, PlotScale::Log { bottom: 200.0, top: 500_000.0 });
        let ticks = scale.ticks(|v| format!("{v:.0}"));
        assert_eq!(
            ticks.iter().map(|(_, label)| label.as_str()).collect::<Vec<_>>(),
            ["1000", "10000", "100000"]
        );
        assert!(scale.place(540.0) > 0.1, "the smallest bar is visible");
        assert_eq!([0.0, 1e9, f64::NAN].map(|v| scale.place(v)), [0.0, 1.0, 0.0]);
        let few = PlotScale::log(0.4, 2.2).ticks(|v| v.to_string());
        assert!(few.iter().any(|(_, label)| label == "1") && few.len() >= 3, "{few:?}");
        assert_eq!(PlotScale::for_values([]), PlotScale::Linear { top: 1.0 });
    }

    #[test]
    fn ratios_close_to_1_have_a_narrow_scale() {
        let narrow = PlotScale::ratios([0.97, 1.02, f64::INFINITY]);
        let labels: Vec<String> =
            narrow.ticks(|v| format!("{v:.1}")).into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0.8", "0.9", "1.0", "1.1", "1.2"]);
        assert_eq!(PlotScale::ratios([0.5, 1.1]), PlotScale::log(0.5, 1.1));
    }
}
