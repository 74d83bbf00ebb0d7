//! What to compare, how often and for how long.

use std::sync::Arc;
use std::time::Duration;

use super::confidence::Confidence;
use super::paired_ratio::MAX_ROUNDS;
use super::{ComparedServer, Workload};

/// Expected time for starting and stopping a server, in addition to the measurement.
const MEASUREMENT_OVERHEAD: Duration = Duration::from_millis(250);
/// Planned duration of `--quick`.
const QUICK_BUDGET: Duration = Duration::from_secs(100);
/// Time after which `--quick` starts no further measurement.
const QUICK_TIME_LIMIT: Duration = Duration::from_secs(112);
/// Shortest measurement of `--quick`.
const QUICK_MIN_DURATION: Duration = Duration::from_millis(200);
/// Default of `--precision`: 5 %.
pub const DEFAULT_PRECISION: f64 = 0.05;
/// Default of `--time-limit`: 20 minutes.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Plan of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparePlan {
    /// The servers to compare.
    pub servers: Vec<ComparedServer>,
    /// The workloads to measure each under.
    pub workloads: Vec<Arc<Workload>>,
    /// Whether all servers speak TLS, with a certificate made for the run. Default `false`.
    pub https: bool,
    /// Whether requests are sent over HTTP/2. Default `false`.
    pub http2: bool,
    /// Workers of each server that has workers.
    pub workers: usize,
    /// Name of the server that the others are compared with. Default: the single-process model, or else the first.
    pub reference: Option<String>,
    /// Seed of the random order of the measurements. `None`, the default, takes a random one.
    pub seed: Option<u64>,
    /// Why peers were left out, for the report. Default none.
    pub left_out: Vec<String>,
    /// Measurements of each server under each workload. `None`, the default: as many as `precision` and `time_limit`
    /// say.
    pub rounds: Option<usize>,
    /// Rounds of a workload end when every interval is within this fraction of its ratio. Default 0.05; `None` goes
    /// on until `time_limit`. Not used with `rounds`.
    pub precision: Option<f64>,
    /// No measurement starts after this time. Default 20 min; `None` sets no limit.
    pub time_limit: Option<Duration>,
    /// Length of each measurement. Default 1 s.
    pub duration: Duration,
    /// Length of the load before each measurement. Default 300 ms.
    pub warm_up: Duration,
}

/// One measurement: indices into the lists of the plan, and the round from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeasurementId {
    /// Number of the round, from 0.
    pub(crate) round: usize,
    /// Index of the workload.
    pub(crate) workload: usize,
    /// Index of the server in [`ComparePlan::measured_servers`].
    pub(crate) server: usize,
}

impl ComparePlan {
    /// Creates a plan with the default precision, time limit and durations.
    pub fn new(
        servers: Vec<ComparedServer>,
        workloads: Vec<Arc<Workload>>,
        workers: usize,
    ) -> ComparePlan {
        ComparePlan {
            servers,
            workloads,
            https: false,
            http2: false,
            workers,
            reference: None,
            seed: None,
            left_out: Vec::new(),
            rounds: None,
            precision: Some(DEFAULT_PRECISION),
            time_limit: Some(DEFAULT_TIME_LIMIT),
            duration: Duration::from_secs(1),
            warm_up: Duration::from_millis(300),
        }
    }

    /// Chooses measurements so short that two minutes have as many rounds as a stated difference needs, if possible.
    pub fn into_quick(mut self) -> ComparePlan {
        (self.rounds, self.precision, self.time_limit) = (None, None, Some(QUICK_TIME_LIMIT));
        self.warm_up = Duration::from_millis(100);
        let measurements = self.measured_servers().len() * self.workloads.len();
        let rounds = self.confidence().rounds_needed();
        let each = QUICK_BUDGET / (measurements * rounds).max(1) as u32;
        let left = each.saturating_sub(MEASUREMENT_OVERHEAD + self.warm_up);
        self.duration = left.clamp(QUICK_MIN_DURATION, Duration::from_secs(1));
        self
    }

    /// Returns how sure the report is, and how many rounds that takes.
    pub(crate) fn confidence(&self) -> Confidence {
        Confidence::of_plan(self)
    }

    /// Returns the index of the server that the others are compared with: the chosen one, the single-process model, or the
    /// first.
    pub(crate) fn reference(&self) -> usize {
        let has_name = |server: &ComparedServer| Some(&server.name) == self.reference.as_ref();
        let chosen = self.servers.iter().position(has_name);
        let single = || self.servers.iter().position(ComparedServer::is_single_process);
        chosen.or_else(single).unwrap_or(0)
    }

    /// Returns all servers to measure: those to compare, then the control.
    ///
    /// The control is the reference once more. What differs between the two is noise.
    pub(crate) fn measured_servers(&self) -> Vec<ComparedServer> {
        let mut servers = self.servers.clone();
        if let Some(reference) = self.servers.get(self.reference()) {
            let mut control = reference.clone();
            // No peer can have a name with a space.
            control.name = format!("{} (control)", reference.name);
            servers.push(control);
        }
        servers
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        if self.servers.is_empty() || self.workloads.is_empty() {
            return Err("nothing to compare: give --models and --workloads, or neither".to_string());
        }
        for (at, one) in self.servers.iter().enumerate() {
            if self.servers[..at].iter().any(|other| other.name == one.name) {
                return Err(format!("{} is listed twice: list each server once", one.name));
            }
        }
        if let Some(name) = &self.reference
            && !self.servers.iter().any(|server| server.name == *name)
        {
            let names: Vec<&str> = self.servers.iter().map(|one| one.name.as_str()).collect();
            return Err(format!(
                "--reference {name}: it is not compared; give one of {}",
                names.join(", ")
            ));
        }
        for (at, one) in self.workloads.iter().enumerate() {
            one.check_duration(one.duration.unwrap_or(self.duration))?;
            if self.workloads[..at].iter().any(|other| other.name() == one.name()) {
                return Err(format!("the workload {} is listed twice: list each once", one.name()));
            }
        }
        if let Some(one) = self.workloads.iter().find(|one| one.https && !self.https) {
            return Err(format!("the workload {} needs --https", one.name()));
        }
        if let Some(rounds) = self.rounds.filter(|rounds| !(1..=MAX_ROUNDS).contains(rounds)) {
            return Err(format!("--rounds {rounds}: give 1 to {MAX_ROUNDS}"));
        }
        if let Some(precision) = self.precision.filter(|part| !(0.001..=1.0).contains(part)) {
            return Err(format!("--precision {} %: give 0.1 % to 100 %", precision * 100.0));
        }
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(600));
        if !(least..=most).contains(&self.duration) {
            return Err(format!("--duration {:?}: give {least:?} to {most:?}", self.duration));
        }
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600));
        if let Some(limit) = self.time_limit.filter(|limit| !(least..=most).contains(limit)) {
            return Err(format!("--time-limit {limit:?}: give 1s to 7d"));
        }
        Ok(())
    }

    /// Estimates how long one round of all workloads takes.
    pub fn estimated_round_duration(&self) -> Duration {
        let each = self.workloads.iter().map(|workload| {
            let warm_up = workload.warm_up.unwrap_or(self.warm_up);
            let duration = workload.duration.unwrap_or(self.duration);
            // The capacity is measured for about half of the time.
            let capacity =
                if workload.has_capacity_run() { warm_up + duration / 2 } else { Duration::ZERO };
            warm_up + duration + capacity + MEASUREMENT_OVERHEAD
        });
        each.sum::<Duration>() * self.measured_servers().len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_prefork::{ConcurrencyModel, Dispatch};

    fn sample_plan(dispatch: bool) -> ComparePlan {
        let models = ConcurrencyModel::ALL.map(|model| ComparedServer::built_in(model, None, 2));
        let policies =
            Dispatch::ALL.map(|p| ComparedServer::built_in(ConcurrencyModel::Prefork, Some(p), 2));
        let policies = policies.into_iter().filter(|_| dispatch);
        ComparePlan::new(
            models.into_iter().chain(policies).collect(),
            Workload::default_set(false, false),
            2,
        )
    }

    #[test]
    fn a_quick_plan_has_as_many_rounds_as_a_stated_difference_needs() {
        let mut quick = sample_plan(false);
        quick.workloads = Workload::default_set(true, false);
        let quick = quick.into_quick();
        assert_eq!(quick.validate(), Ok(()));
        let rounds = quick.confidence().rounds_needed() as u32;
        assert!(quick.estimated_round_duration() * rounds <= QUICK_BUDGET, "{quick:?}");
        let large = sample_plan(true).into_quick();
        assert_eq!((large.duration, large.validate()), (QUICK_MIN_DURATION, Ok(())));
    }

    #[test]
    fn the_reference_is_measured_twice() {
        let plan = sample_plan(false);
        let names: Vec<String> = plan.measured_servers().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["prefork", "single", "threads", "thread-per-core", "single (control)"]);
        assert!(plan.measured_servers()[4].is_single_process());
    }

    #[test]
    fn invalid_plans_name_the_wrong_value() {
        type ComparePlanChange = fn(&mut ComparePlan);
        let wrong: [(ComparePlanChange, &str); 7] = [
            (
                |p| p.workloads.push(Workload::built_in("full-handshakes").expect("built in")),
                "needs --https",
            ),
            (|p| p.servers.clear(), "nothing to compare"),
            (|p| p.servers.push(p.servers[0].clone()), "prefork is listed twice"),
            (|p| p.rounds = Some(0), "--rounds 0"),
            (|p| p.precision = Some(0.0), "--precision 0 %"),
            (|p| p.time_limit = Some(Duration::ZERO), "--time-limit 0ns"),
            (|p| p.duration = Duration::ZERO, "--duration 0ns"),
        ];
        for (change, piece) in wrong {
            let mut plan = sample_plan(false);
            change(&mut plan);
            let why = plan.validate().expect_err(piece);
            assert!(why.contains(piece), "{why}");
        }
    }
}
