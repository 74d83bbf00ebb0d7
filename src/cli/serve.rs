//! `prefork serve`.

use std::process::ExitCode;

use super::logger;
use crate::ListenAddr;
use crate::app::{self, Options};
use crate::config::raw::{Inputs, RawFlags};
use crate::error::{Error, Result};
use crate::sys;

pub(super) fn run(flags: RawFlags) -> Result<ExitCode> {
    let settings = Inputs::of_process(flags).resolve()?;
    tidy_descriptors(&settings.config.bind)?;
    logger::init(&settings.log);
    for warning in &settings.warnings {
        log::warn!("{warning}");
    }
    let options = Options {
        root: settings.app.root,
        max_body_size: settings.app.max_body_size,
        faults: settings.app.faults,
    };
    app::serve(settings.config, options)
}

/// No socket of ours may land on a standard stream, and nothing that was left open by accident may live on in
/// the workers.
fn tidy_descriptors(bind: &[ListenAddr]) -> Result<()> {
    sys::fd::fill_standard_streams()
        .map_err(|e| Error::system("open /dev/null for a closed standard stream", e))?;
    let passed: Vec<i32> = bind
        .iter()
        .filter_map(|addr| match addr {
            ListenAddr::Fd(number) => Some(*number),
            ListenAddr::Tcp(_) | ListenAddr::Unix(_) => None,
        })
        .collect();
    sys::fd::close_inherited_except(&passed)
        .map_err(|e| Error::system("close inherited descriptors", e))
}
