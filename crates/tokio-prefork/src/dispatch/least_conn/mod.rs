//! `least-conn`: the kernel chooses the healthy slot with the fewest connections.

pub(super) mod count_reconciliation;
pub(super) mod load_page;
pub(super) mod memory;
pub(super) mod program;
pub(super) mod weights;
