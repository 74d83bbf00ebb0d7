//! Bar charts as SVG: values with intervals on an axis, ratios to a baseline, and shares.

use std::fmt::Write;

use super::html_page::escape_html;
use super::plot_scale::PlotScale;
use super::svg_plot::{CHAR_WIDTH, PLOT_WIDTH, open_svg};

const ROW_HEIGHT: f64 = 26.0;
const TOP_MARGIN: f64 = 6.0;
/// Room for the labels of the axis.
const AXIS_HEIGHT: f64 = 22.0;

/// A bar with its label on the left and its value on the right.
pub(crate) struct ChartBar {
    pub(crate) label: String,
    /// Style class.
    pub(crate) class: String,
    /// Value, on the scale of the chart.
    pub(crate) value: f64,
    /// Lowest and highest value of its interval.
    pub(crate) interval: Option<(f64, f64)>,
    /// Text on the right.
    pub(crate) text: String,
}

/// What a chart of bars has besides the bars.
pub(crate) struct BarAxis<'a> {
    pub(crate) scale: PlotScale,
    /// Formats the label of a tick.
    pub(crate) label: &'a dyn Fn(f64) -> String,
    /// Value at which a dashed line is drawn.
    pub(crate) baseline: Option<f64>,
    /// Whether values are dots instead of bars: for ratios, which do not begin at 0.
    pub(crate) has_dots: bool,
}

/// Left end and width of the area for the bars.
struct ChartArea {
    left: f64,
    room: f64,
    bottom: f64,
}

impl ChartArea {
    fn new<'a>(rows: usize, labels: impl Iterator<Item = (&'a str, &'a str)>) -> ChartArea {
        let width = |text: &str| text.chars().count() as f64 * CHAR_WIDTH;
        let (label, value) = labels.fold((0.0f64, 0.0f64), |(label, value), (left, right)| {
            (label.max(width(left)), value.max(width(right)))
        });
        let left = (label + 8.0).clamp(50.0, PLOT_WIDTH / 2.0);
        let right = (value + 14.0).clamp(50.0, PLOT_WIDTH / 3.0);
        let bottom = TOP_MARGIN + ROW_HEIGHT * rows as f64;
        ChartArea { left, room: PLOT_WIDTH - left - right, bottom }
    }

    fn x(&self, part: f64) -> f64 {
        self.left + part.clamp(0.0, 1.0) * self.room
    }

    fn row_top(row: usize) -> f64 {
        TOP_MARGIN + ROW_HEIGHT * row as f64
    }
}

/// Draws horizontal bars; `about` is the accessible description.
pub(crate) fn bar_chart(about: &str, axis: &BarAxis<'_>, rows: &[ChartBar]) -> String {
    let labels = rows.iter().map(|row| (row.label.as_str(), row.text.as_str()));
    let area = ChartArea::new(rows.len(), labels);
    let mut svg = open_svg(about, area.bottom + AXIS_HEIGHT);
    write_axis(&mut svg, axis, &area);
    for (number, row) in rows.iter().enumerate() {
        write_bar(&mut svg, axis, &area, ChartArea::row_top(number), row);
    }
    if let Some(baseline) = axis.baseline {
        let at = area.x(axis.scale.place(baseline));
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<path class=\"baseline\" d=\"M{at:.1} {:.1} L{at:.1} {:.1}\"/>",
            TOP_MARGIN - 4.0,
            area.bottom + 4.0
        );
    }
    svg + "</svg>"
}

fn write_axis(svg: &mut String, axis: &BarAxis<'_>, area: &ChartArea) {
    let mut free_from = f64::NEG_INFINITY;
    for (at, label) in axis.scale.ticks(axis.label) {
        let at = area.x(at);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP_MARGIN}\" y2=\"{:.1}\"/>",
            area.bottom + 4.0
        );
        // Labels that would overlap are left out.
        let half = label.chars().count() as f64 * CHAR_WIDTH / 2.0;
        if at - half < free_from {
            continue;
        }
        free_from = at + half + CHAR_WIDTH;
        let _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            area.bottom + 17.0,
            escape_html(&label)
        );
    }
}

/// Writes the label of a row, left of its bars.
fn write_row_label(svg: &mut String, area: &ChartArea, top: f64, label: &str) {
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        area.left - 6.0,
        top + 17.0,
        escape_html(label)
    );
}

fn write_bar(svg: &mut String, axis: &BarAxis<'_>, area: &ChartArea, top: f64, row: &ChartBar) {
    let at = area.x(axis.scale.place(row.value));
    let ends = row.interval.map(|(from, to)| [from, to].map(|v| area.x(axis.scale.place(v))));
    write_row_label(svg, area, top, &row.label);
    if !axis.has_dots {
        let _ = write!(
            svg,
            "<rect class=\"{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\" rx=\"2\"/>",
            row.class,
            area.left,
            top + 4.0,
            (at - area.left).max(1.0)
        );
    }
    if let Some([from, to]) = ends {
        let (middle, above, below) = (top + 13.0, top + 9.0, top + 17.0);
        let path = format!(
            "M{from:.1} {middle} L{to:.1} {middle} M{from:.1} {above} L{from:.1} {below} M{to:.1} {above} L{to:.1} {below}"
        );
        // The wide line below has the color of the page, so that the thin one is visible on any bar.
        let _ =
            write!(svg, "<path class=\"halo\" d=\"{path}\"/><path class=\"range\" d=\"{path}\"/>");
    }
    if axis.has_dots {
        let _ = write!(
            svg,
            "<circle class=\"{} dot\" cx=\"{at:.1}\" cy=\"{:.1}\" r=\"5\"/>",
            row.class,
            top + 13.0
        );
    }
    let _ = write!(
        svg,
        "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        PLOT_WIDTH - 2.0,
        top + 17.0,
        escape_html(&row.text)
    );
}

/// A bar that is divided into shares.
pub(crate) struct ShareBar {
    pub(crate) label: String,
    /// Style class.
    pub(crate) class: String,
    /// Shares from 0 to 1, largest first.
    pub(crate) shares: Vec<f64>,
    /// Text on the right.
    pub(crate) text: String,
}

/// Draws horizontal bars of the same length, divided into shares; `about` is the accessible description.
pub(crate) fn share_chart(about: &str, rows: &[ShareBar]) -> String {
    let labels = rows.iter().map(|row| (row.label.as_str(), row.text.as_str()));
    let area = ChartArea::new(rows.len(), labels);
    let mut svg = open_svg(about, area.bottom + 4.0);
    for (number, row) in rows.iter().enumerate() {
        let top = ChartArea::row_top(number);
        write_row_label(&mut svg, &area, top, &row.label);
        let mut from = 0.0;
        for share in &row.shares {
            let (left, right) = (area.x(from), area.x(from + share));
            let _ = write!(
                svg,
                "<rect class=\"{} part\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\"/>",
                row.class,
                top + 4.0,
                (right - left).max(0.5)
            );
            from += share;
        }
        let _ = write!(
            svg,
            "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            PLOT_WIDTH - 2.0,
            top + 17.0,
            escape_html(&row.text)
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<ChartBar> {
        [("fast", 540.0), ("slow <b>", 354_000.0)]
            .map(|(label, value)| ChartBar {
                label: label.into(),
                class: "s0".into(),
                value,
                interval: Some((value * 0.9, value * 1.1)),
                text: "x".into(),
            })
            .into()
    }

    #[test]
    fn bars_on_a_log_scale_are_all_visible_and_have_intervals() {
        let scale = PlotScale::for_values(rows().iter().map(|row| row.value));
        assert!(scale.is_log());
        let label = |v: f64| v.to_string();
        let axis = BarAxis { scale, label: &label, baseline: Some(540.0), has_dots: false };
        let svg = bar_chart("b", &axis, &rows());
        let widths = svg.split("width=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let widths: Vec<f64> = widths.filter_map(|width| width.parse().ok()).collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!(widths.iter().all(|width| *width > 20.0), "{widths:?}");
        assert_eq!(svg.matches("class=\"halo\"").count(), 2);
        assert_eq!(svg.matches("class=\"baseline\"").count(), 1);
        assert!(svg.contains("slow &lt;b&gt;"), "{svg}");
        let dots = bar_chart("b", &BarAxis { has_dots: true, ..axis }, &rows());
        assert_eq!((dots.matches("<rect").count(), dots.matches("<circle").count()), (0, 2));
    }

    #[test]
    fn shares_fill_the_bar() {
        let row = ShareBar {
            label: "a".into(),
            class: "s0".into(),
            shares: vec![0.75, 0.25],
            text: "75 %".into(),
        };
        let svg = share_chart("shares", &[row]);
        assert_eq!(svg.matches("<rect").count(), 2, "{svg}");
    }
}
