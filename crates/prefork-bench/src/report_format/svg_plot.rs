//! Line plots as SVG; the page's style sheet colors them.

use std::fmt::Write;

use super::html_page::escape_html;
use super::plot_scale::round_ticks;

/// Size of a plot in user units: small, so that its text stays readable on a phone.
pub(super) const PLOT_WIDTH: f64 = 420.0;
const PLOT_HEIGHT: f64 = 230.0;
const LEFT_MARGIN: f64 = 70.0;
/// Approximate width of a character.
pub(super) const CHAR_WIDTH: f64 = 6.6;
const RIGHT_MARGIN: f64 = 14.0;
const TOP_MARGIN: f64 = 14.0;
const BOTTOM_MARGIN: f64 = 40.0;
/// Number of colors in the style sheet; further lines begin again with another width.
const SERIES_COLORS: usize = 8;

/// Returns the style classes of the line or bar with this number: its color, and the width of its line after the last color.
pub(crate) fn series_class(number: usize) -> String {
    let width = ["", " wide-line", " thin-line"][(number / SERIES_COLORS).min(2)];
    format!("s{}{width}", number % SERIES_COLORS)
}

/// An axis with its ticks: position from 0 to 1, and label.
pub(crate) struct PlotAxis {
    pub(crate) name: String,
    pub(crate) ticks: Vec<(f64, String)>,
}

/// Returns an axis of the measured time, `whole_s` seconds.
pub(crate) fn time_axis(whole_s: f64) -> PlotAxis {
    let (ticks, end) = round_ticks(whole_s, |s| format!("{s} s"));
    let fits = ticks.into_iter().map(|(at, label)| (at * end / whole_s, label));
    PlotAxis {
        name: "time measured".to_string(),
        ticks: fits.filter(|(at, _)| *at <= 1.0).collect(),
    }
}

/// A line through points from 0 to 1 on both axes.
pub(crate) struct PlotLine<'a> {
    pub(crate) class: &'a str,
    pub(crate) points: &'a [(f64, f64)],
    /// Whether the area below it is filled.
    pub(crate) filled: bool,
    /// Whether each point has a dot.
    pub(crate) dotted: bool,
}

/// Something that happened at a time, from 0 to 1 on the x axis.
pub(crate) struct PlotMark {
    /// Style class, which also chooses the sign: `kill`, `reload` or `freeze`.
    pub(crate) class: &'static str,
    pub(crate) from: f64,
    /// When it ended; equal to `from` if it took no time.
    pub(crate) until: f64,
}

/// Draws lines between two axes, with marks behind them; `about` is the accessible description.
pub(crate) fn line_plot(
    about: &str,
    x: &PlotAxis,
    y: &PlotAxis,
    lines: &[PlotLine<'_>],
    marks: &[PlotMark],
) -> String {
    let mut svg = open_svg(about, PLOT_HEIGHT);
    let bottom = PLOT_HEIGHT - BOTTOM_MARGIN;
    for (at, label) in &y.ticks {
        let at = plot_y(*at);
        // Writing to a string cannot fail.
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
        // A label at the right end stays within the picture.
        let half = label.chars().count() as f64 * CHAR_WIDTH / 2.0;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            at.min(PLOT_WIDTH - half),
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
        escape_html(&x.name),
        (TOP_MARGIN + bottom) / 2.0,
        escape_html(&y.name)
    );
    for mark in marks {
        svg.push_str(&mark_path(mark, bottom));
    }
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
    if line.dotted {
        for (x, y) in line.points {
            let (x, y) = (plot_x(*x), plot_y(*y));
            let _ = write!(
                text,
                "<circle class=\"{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>",
                line.class
            );
        }
    }
    text
}

/// Draws a fault as a vertical line with a symbol on top. A fault that took time also gets a band.
fn mark_path(mark: &PlotMark, bottom: f64) -> String {
    let (from, until, class) = (plot_x(mark.from), plot_x(mark.until), mark.class);
    let mut text = String::new();
    if until - from >= 1.0 {
        let _ = write!(
            text,
            "<rect class=\"{class} band\" x=\"{from:.1}\" y=\"{TOP_MARGIN}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            until - from,
            bottom - TOP_MARGIN
        );
    }
    let _ = write!(
        text,
        "<path class=\"{class} mark\" d=\"M{from:.1} {TOP_MARGIN} L{from:.1} {bottom}\"/>\
         <path class=\"{class} sign\" transform=\"translate({from:.1} 7)\" d=\"{}\"/>",
        mark_sign(class)
    );
    text
}

/// Returns the sign of a kind of mark, around 0: also told apart without color.
fn mark_sign(class: &str) -> &'static str {
    match class {
        "kill" => "M-5 -5 L5 -5 L0 5 Z",
        "reload" => "M0 -6 L6 0 L0 6 L-6 0 Z",
        _ => "M-4.5 -4.5 L4.5 -4.5 L4.5 4.5 L-4.5 4.5 Z",
    }
}

/// Returns a legend of lines: style class and name of each.
pub(crate) fn line_legend(names: &[(String, String)]) -> String {
    let keys = names.iter().map(|(class, name)| {
        format!(
            "<li><svg class=\"key\" viewBox=\"0 0 26 10\" aria-hidden=\"true\">\
             <path class=\"{class} line\" d=\"M0 5 L26 5\"/></svg>{}</li>",
            escape_html(name)
        )
    });
    format!("<ul class=\"legend\">{}</ul>", keys.collect::<String>())
}

/// Returns a legend of marks: style class and name of each.
pub(crate) fn mark_legend(names: &[(&str, String)]) -> String {
    let keys = names.iter().map(|(class, name)| {
        format!(
            "<li><svg class=\"key sign\" viewBox=\"-7 -7 14 14\" aria-hidden=\"true\">\
             <path class=\"{class} sign\" d=\"{}\"/></svg>{}</li>",
            mark_sign(class),
            escape_html(name)
        )
    });
    format!("<ul class=\"legend\">{}</ul>", keys.collect::<String>())
}

pub(super) fn open_svg(about: &str, height: f64) -> String {
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
    fn points_are_clamped_to_the_plot_and_text_is_escaped() {
        let points = [(-1.0, 0.0), (2.0, 9.0)];
        let line = PlotLine { class: "s0", points: &points, filled: true, dotted: true };
        let axis = |name: &str| PlotAxis { name: name.into(), ticks: vec![(0.5, "<b>".into())] };
        let mark = PlotMark { class: "freeze", from: 0.5, until: 0.75 };
        let svg = line_plot("a \"b\" <c>", &axis("x"), &axis("y"), &[line], &[mark]);
        assert!(
            svg.contains(&format!(
                "M{LEFT_MARGIN:.1} 190.0 L{:.1} {TOP_MARGIN:.1}",
                PLOT_WIDTH - RIGHT_MARGIN
            )),
            "{svg}"
        );
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("a &quot;b&quot; &lt;c&gt;"), "{svg}");
        assert!(svg.contains("freeze band") && svg.contains("freeze sign"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn legends_have_the_style_and_the_name_of_each_line_and_mark() {
        let lines = line_legend(&[(series_class(9), "a<b".to_string())]);
        assert!(
            lines.contains("class=\"s1 wide-line line\"") && lines.contains("a&lt;b"),
            "{lines}"
        );
        let marks = mark_legend(&[("kill", "kill".to_string()), ("reload", "reload".to_string())]);
        assert_ne!(mark_sign("kill"), mark_sign("reload"));
        assert!(marks.contains(mark_sign("kill")), "{marks}");
    }
}
