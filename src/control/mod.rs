//! What an operator may ask while we run.

mod ledger;

pub(crate) use ledger::Ledger;
