//! Formatting shared by all reports: text tables, HTML pages, SVG plots, and summary statistics.

pub(crate) mod bar_chart;
pub(crate) mod html_page;
pub(crate) mod latency_plot;
pub(crate) mod plot_scale;
pub(crate) mod statistics;
pub(crate) mod svg_plot;
pub(crate) mod text_table;
