//! Pieces that the reports of all three commands are made of.

pub(crate) mod html_page;
pub(crate) mod statistics;
pub(crate) mod svg_plot;
pub(crate) mod text_table;
