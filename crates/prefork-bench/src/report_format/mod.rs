//! Pieces that the reports of all three commands are made of.

pub(crate) mod statistics;
pub(crate) mod svg_plot;
