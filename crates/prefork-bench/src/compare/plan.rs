//! What to compare, how often and for how long.

use std::time::Duration;

use super::{ComparedServer, Workload};

/// Time for starting and stopping a server, in addition to the measurement.
const MEASUREMENT_OVERHEAD: Duration = Duration::from_millis(300);
/// What `--into_quick` may plan for, and when it begins no further measurement.
const QUICK_BUDGET: Duration = Duration::from_secs(90);
/// Time after which `--quick` starts no further measurement.
const QUICK_TIME_LIMIT: Duration = Duration::from_secs(108);
/// Shortest measurement that `--quick` prefers over a further round.
const PREFERRED_MIN_DURATION: Duration = Duration::from_millis(250);
/// Shortest measurement of `--quick`.
const MIN_DURATION: Duration = Duration::from_millis(200);

/// Plan of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparePlan {
    /// The servers to compare.
    pub servers: Vec<ComparedServer>,
    /// The workloads to measure each under.
    pub workloads: Vec<Workload>,
    /// Whether all servers speak TLS, with a certificate made for the run. Default `false`.
    pub https: bool,
    /// Whether requests are sent over HTTP/2. Default `false`.
    pub http2: bool,
    /// Workers of each server that has workers.
    pub workers: usize,
    /// Measurements of each server under each workload. Default 5.
    pub rounds: usize,
    /// Length of each measurement. Default 3 s.
    pub duration: Duration,
    /// Length of the load before each measurement. Default 500 ms.
    pub warm_up: Duration,
    /// No measurement starts after this time; `None` sets no limit.
    pub limit: Option<Duration>,
}

/// One measurement: indices into the lists of the plan, and the round from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedMeasurement {
    /// Number of the round, from 0.
    pub round: usize,
    /// Index of the workload.
    pub workload: usize,
    /// Index of the server.
    pub server: usize,
}

impl ComparePlan {
    /// Creates a plan with the default rounds and durations.
    pub fn new(
        servers: Vec<ComparedServer>,
        workloads: Vec<Workload>,
        workers: usize,
    ) -> ComparePlan {
        let (warm_up, duration) = (Duration::from_millis(500), Duration::from_secs(3));
        ComparePlan {
            servers,
            workloads,
            https: false,
            http2: false,
            workers,
            rounds: 5,
            duration,
            warm_up,
            limit: None,
        }
    }

    /// Chooses the number and length of rounds so that all fit into 90 seconds, and sets a limit of 108 s.
    pub fn into_quick(mut self) -> ComparePlan {
        let cells = (self.servers.len() * self.workloads.len()).max(1) as u32;
        self.warm_up = Duration::from_millis(100);
        let left = |rounds: usize| {
            let each = QUICK_BUDGET / (cells * rounds as u32);
            each.saturating_sub(MEASUREMENT_OVERHEAD + self.warm_up)
        };
        self.rounds =
            (1..=5).rev().find(|rounds| left(*rounds) >= PREFERRED_MIN_DURATION).unwrap_or(1);
        let longest = Duration::from_secs(3);
        self.duration = left(self.rounds).clamp(MIN_DURATION, longest);
        self.limit = Some(QUICK_TIME_LIMIT);
        self
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
        if let Some(one) = self.workloads.iter().find(|one| one.needs_tls() && !self.https) {
            return Err(format!("the workload {} needs --https", one.name()));
        }
        if !(1..=100).contains(&self.rounds) {
            return Err(format!("--rounds {}: give 1 to 100", self.rounds));
        }
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(600));
        if !(least..=most).contains(&self.duration) {
            return Err(format!("--duration {:?}: give {least:?} to {most:?}", self.duration));
        }
        Ok(())
    }

    /// Estimates how long all measurements take.
    pub fn estimated_duration(&self) -> Duration {
        let each = self.warm_up + self.duration + MEASUREMENT_OVERHEAD;
        each * (self.rounds * self.workloads.len() * self.servers.len()) as u32
    }

    /// Returns all measurements in order: each round starts each workload with another server.
    pub(crate) fn list_measurements(&self) -> Vec<PlannedMeasurement> {
        let mut measurements = Vec::new();
        let count = self.servers.len();
        for round in 0..self.rounds {
            for workload in 0..self.workloads.len() {
                let order = (0..count).map(|place| (place + round + workload) % count);
                measurements.extend(order.map(|server| PlannedMeasurement {
                    round,
                    workload,
                    server,
                }));
            }
        }
        measurements
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
        ComparePlan::new(models.into_iter().chain(policies).collect(), Workload::ALL.to_vec(), 2)
    }

    #[test]
    fn a_quick_plan_uses_its_time_budget() {
        let quick = sample_plan(false).into_quick();
        assert_eq!((quick.rounds, quick.validate()), (4, Ok(())));
        let fits = Duration::from_secs(60)..=QUICK_BUDGET;
        assert!(fits.contains(&quick.estimated_duration()), "{:?}", quick.estimated_duration());
        let large = sample_plan(true).into_quick();
        assert!(large.estimated_duration() <= QUICK_TIME_LIMIT, "{:?}", large.estimated_duration());
        let mut small = sample_plan(false);
        (small.workloads, small.servers) = (vec![Workload::Bodies], small.servers[..2].into());
        let small = small.into_quick();
        assert_eq!((small.rounds, small.duration), (5, Duration::from_secs(3)));
    }

    #[test]
    fn every_server_is_measured_equally_often_and_equally_often_first() {
        let plan = sample_plan(false);
        let measurements = plan.list_measurements();
        assert_eq!(measurements.len(), 5 * 8 * 4);
        for server in 0..4 {
            let own = measurements.iter().filter(|turn| turn.server == server);
            assert_eq!(own.count(), 5 * 8);
            let first = measurements.chunks(4).filter(|chunk| chunk[0].server == server);
            assert_eq!(first.count(), 10);
        }
    }

    #[test]
    fn invalid_plans_name_the_wrong_value() {
        type ComparePlanChange = fn(&mut ComparePlan);
        let wrong: [(ComparePlanChange, &str); 5] = [
            (|p| p.workloads.push(Workload::FullHandshakes), "needs --https"),
            (|p| p.servers.clear(), "nothing to compare"),
            (|p| p.servers.push(p.servers[0].clone()), "prefork is listed twice"),
            (|p| p.rounds = 0, "--rounds 0"),
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
