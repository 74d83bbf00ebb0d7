//! Verbs of the command, one module each: arguments, action and exit status.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod demo;
pub(crate) mod dev_cert;
pub(crate) mod dispatch_program;
pub(crate) mod health;
pub(crate) mod man_pages;
pub(crate) mod reference_pages;
mod report_file;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod top;
