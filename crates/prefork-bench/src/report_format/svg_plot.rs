//! Line plots and bar charts as SVG; the page's style sheet colors them.

use std::fmt::Write;

use super::html_page::escape_html;

/// Size of a plot in user units: small, so that its text stays readable on a phone.
const PLOT_WIDTH: f64 = 420.0;
const PLOT_HEIGHT: f64 = 230.0;
const LEFT_MARGIN: f64 = 70.0;
/// Approximate width of a character.
const CHAR_WIDTH: f64 = 6.6;
const RIGHT_MARGIN: f64 = 12.0;
const TOP_MARGIN: f64 = 12.0;
const BOTTOM_MARGIN: f64 = 40.0;

/// An axis with its ticks: position from 0 to 1, and label.
pub(crate) struct PlotAxis {
    pub(crate) name: &'static str,
    pub(crate) ticks: Vec<(f64, String)>,
}

/// A line through points from 0 to 1 on both axes.
pub(crate) struct PlotLine<'a> {
    pub(crate) class: &'static str,
    pub(crate) points: &'a [(f64, f64)],
    /// Whether the area below it is filled.
    pub(crate) filled: bool,
}

/// Draws lines between two axes; `about` is the accessible description.
pub(crate) fn line_plot(about: &str, x: &PlotAxis, y: &PlotAxis, lines: &[PlotLine<'_>]) -> String {
    let mut svg = open_svg(about, PLOT_HEIGHT);
    let bottom = PLOT_HEIGHT - BOTTOM_MARGIN;
    for (at, label) in &y.ticks {
        let at = plot_y(*at);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT_MARGIN}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            PLOT_WIDTH - RIGHT_MARGIN,
            LEFT_MARGIN - 6.0,
            at + 4.0,
            escape_html(label)
        );
    }
    for (at, label) in &x.ticks {
        let at = plot_x(*at);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            bottom + 17.0,
            escape_html(label)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"name\" transform=\"translate(11 {:.1}) rotate(-90)\" \
         text-anchor=\"middle\">{}</text>",
        (LEFT_MARGIN + PLOT_WIDTH - RIGHT_MARGIN) / 2.0,
        PLOT_HEIGHT - 6.0,
        escape_html(x.name),
        (TOP_MARGIN + bottom) / 2.0,
        escape_html(y.name)
    );
    for line in lines {
        svg.push_str(&line_path(line, bottom));
    }
    svg + "</svg>"
}

fn line_path(line: &PlotLine<'_>, bottom: f64) -> String {
    let place = |(x, y): &(f64, f64)| format!("{:.1} {:.1}", plot_x(*x), plot_y(*y));
    let points: Vec<String> = line.points.iter().map(place).collect();
    let (Some(first), Some(last)) = (line.points.first(), line.points.last()) else {
        return String::new();
    };
    let way = points.join(" L");
    let mut text = String::new();
    if line.filled {
        let (from, to) = (plot_x(first.0), plot_x(last.0));
        let _ = write!(
            text,
            "<path class=\"{} area\" d=\"M{from:.1} {bottom} L{way} L{to:.1} {bottom} Z\"/>",
            line.class
        );
    }
    let _ = write!(text, "<path class=\"{} line\" d=\"M{way}\"/>", line.class);
    text
}

/// A bar with its label on the left and its value on the right.
pub(crate) struct ChartBar {
    pub(crate) label: String,
    /// Length, as a fraction of the longest bar.
    pub(crate) fraction: f64,
    /// Minimum and maximum, as such fractions.
    pub(crate) range: Option<(f64, f64)>,
    pub(crate) value: String,
}

/// Draws horizontal bars; `about` is the accessible description.
pub(crate) fn bar_chart(about: &str, rows: &[ChartBar]) -> String {
    const BAR_ROW_HEIGHT: f64 = 26.0;
    let height = BAR_ROW_HEIGHT * rows.len() as f64 + 8.0;
    let longest = |text: fn(&ChartBar) -> &String| {
        let letters = rows.iter().map(|row| text(row).chars().count()).max();
        letters.unwrap_or(0) as f64 * CHAR_WIDTH
    };
    let left = (longest(|bar| &bar.label) + 8.0).clamp(50.0, PLOT_WIDTH / 2.0);
    let room = PLOT_WIDTH - left - (longest(|bar| &bar.value) + 12.0).clamp(60.0, PLOT_WIDTH / 3.0);
    let mut svg = open_svg(about, height);
    for (number, ChartBar { label, fraction, range, value }) in rows.iter().enumerate() {
        let top = 4.0 + BAR_ROW_HEIGHT * number as f64;
        let width = (fraction.clamp(0.0, 1.0) * room).max(1.0);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"main\" x=\"{left}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"18\" rx=\"2\"/>\
             <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 6.0,
            top + 15.0,
            escape_html(label),
            top + 2.0,
            left + width.max(range.map_or(0.0, |(_, to)| to.clamp(0.0, 1.0) * room)) + 6.0,
            top + 15.0,
            escape_html(value)
        );
        if let Some((from, to)) = range {
            let [from, to] = [from, to].map(|at| left + at.clamp(0.0, 1.0) * room);
            let (middle, above, below) = (top + 11.0, top + 7.0, top + 15.0);
            let _ = write!(
                svg,
                "<path class=\"range\" d=\"M{from:.1} {middle} L{to:.1} {middle} M{from:.1} {above} L{from:.1} {below} \
                 M{to:.1} {above} L{to:.1} {below}\"/>"
            );
        }
    }
    svg + "</svg>"
}

/// Returns ticks at round numbers from 0 to at least `largest`, and the value of the last tick.
pub(crate) fn round_ticks(
    largest: f64,
    label: impl Fn(f64) -> String,
) -> (Vec<(f64, String)>, f64) {
    let largest = if largest > 0.0 { largest } else { 1.0 };
    let power = 10f64.powf((largest / 4.0).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power);
    let step = steps.into_iter().find(|s| largest / s <= 4.0).unwrap_or(power * 10.0);
    let count = (largest / step).ceil().max(1.0);
    let top = step * count;
    let all = (0..=count as usize).map(|n| (n as f64 / count, label(n as f64 * step)));
    (all.collect(), top)
}

fn open_svg(about: &str, height: f64) -> String {
    let about = escape_html(about);
    format!("<svg viewBox=\"0 0 {PLOT_WIDTH} {height}\" role=\"img\" aria-label=\"{about}\">")
}

fn plot_x(x: f64) -> f64 {
    LEFT_MARGIN + x.clamp(0.0, 1.0) * (PLOT_WIDTH - LEFT_MARGIN - RIGHT_MARGIN)
}

fn plot_y(y: f64) -> f64 {
    PLOT_HEIGHT - BOTTOM_MARGIN - y.clamp(0.0, 1.0) * (PLOT_HEIGHT - BOTTOM_MARGIN - TOP_MARGIN)
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
    fn points_are_clamped_to_the_plot_and_text_is_escaped() {
        let line = PlotLine { class: "main", points: &[(-1.0, 0.0), (2.0, 9.0)], filled: true };
        let axis = |name| PlotAxis { name, ticks: vec![(0.5, "<b>".to_string())] };
        let svg = line_plot("a \"b\" <c>", &axis("x"), &axis("y"), &[line]);
        assert!(
            svg.contains(&format!(
                "M{LEFT_MARGIN:.1} 190.0 L{:.1} {TOP_MARGIN:.1}",
                PLOT_WIDTH - RIGHT_MARGIN
            )),
            "{svg}"
        );
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("a &quot;b&quot; &lt;c&gt;"), "{svg}");
        let rows = [ChartBar {
            label: "1".into(),
            fraction: 2.0,
            range: Some((0.5, 9.0)),
            value: "x".into(),
        }];
        assert!(bar_chart("b", &rows).contains("width=\"310.0\""));
    }
}
