//! Measures what the crash of one job costs the others.

use std::time::Instant;

use serde::Serialize;

use super::measured_program::{MeasuredProgram, ProgramError};
use super::program_plan::{CRASH_LINE, CrashOutcome, DONE_LINE, Measure};
use super::way_programs::WayProgram;
use super::{JobCostPlan, OTHER_JOBS};
use crate::report_format::statistics::median_min_max;
use prefork_os::signal::SignalPipe;

/// What a job that aborts its process costs, from its submission on. Medians of several crashes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CrashCost {
    /// Where the job ran.
    pub how: String,
    /// Whether the program survived, so that the caller of the job learned of the crash. Otherwise all of the program was
    /// gone, and the end of its process is the verdict.
    pub survived: bool,
    /// Microseconds until the verdict.
    pub verdict_us: f64,
    /// Microseconds until another job had its result: in a replaced process, in a new pool, or in the program started again.
    pub next_job_us: f64,
    /// Other jobs that had no result, the most of all crashes.
    pub lost_jobs: usize,
    /// Jobs that ran or waited beside the crash.
    pub other_jobs: usize,
}

/// Measures as many crashes as the plan wants.
pub(super) fn measure_crash(
    plan: &JobCostPlan,
    program: &WayProgram,
    signals: &mut SignalPipe,
) -> Result<CrashCost, ProgramError> {
    let mut outcomes = Vec::new();
    let mut survived = true;
    for _ in 0..plan.crashes.max(1) {
        let (outcome, has_survived) = measure_once(plan, program, signals)?;
        survived &= has_survived;
        outcomes.push(outcome);
    }
    let median = |figure: fn(&CrashOutcome) -> f64| {
        median_min_max(&outcomes.iter().map(figure).collect::<Vec<_>>())[0]
    };
    Ok(CrashCost {
        how: program.name.clone(),
        survived,
        verdict_us: median(|outcome| outcome.verdict_us),
        next_job_us: median(|outcome| outcome.next_job_us),
        lost_jobs: outcomes.iter().map(|outcome| outcome.lost_jobs).max().unwrap_or(0),
        other_jobs: OTHER_JOBS,
    })
}

/// Measures one crash. Returns also whether the program survived it.
fn measure_once(
    plan: &JobCostPlan,
    program: &WayProgram,
    signals: &mut SignalPipe,
) -> Result<(CrashOutcome, bool), ProgramError> {
    let mut running = MeasuredProgram::start(program, &plan.program_plan(Measure::Crash))?;
    let Some(begun) = wait_for_line(&mut running, CRASH_LINE, signals)? else {
        return Err(running.describe_exit());
    };
    if let Some((line, _)) = running.next_line(signals)? {
        let outcome = serde_json::from_str(&line)
            .map_err(|e| ProgramError::Failed(format!("it printed {line:.80}: {e}")))?;
        return Ok((outcome, true));
    }
    // Its output has ended, so the program is gone, or about to be.
    let status = running.wait()?;
    if std::os::unix::process::ExitStatusExt::signal(&status).is_none() {
        return Err(running.describe_exit());
    }
    let verdict_us = micros_since(begun);
    let mut running = MeasuredProgram::start(program, &plan.program_plan(Measure::Next))?;
    let Some(done) = wait_for_line(&mut running, DONE_LINE, signals)? else {
        return Err(running.describe_exit());
    };
    let next_job_us = (done - begun).as_secs_f64() * 1e6;
    Ok((CrashOutcome { verdict_us, next_job_us, lost_jobs: OTHER_JOBS }, false))
}

/// Waits for a line, and returns when it came; `None` if the program ended without it.
fn wait_for_line(
    running: &mut MeasuredProgram,
    wanted: &str,
    signals: &mut SignalPipe,
) -> Result<Option<Instant>, ProgramError> {
    while let Some((line, came)) = running.next_line(signals)? {
        if line == wanted {
            return Ok(Some(came));
        }
    }
    Ok(None)
}

fn micros_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}
