//! What is compared, how often and for how long: pure.

use std::time::Duration;

use super::{Contestant, Workload};

/// What starting and stopping a server and ending a load take, in addition to the time measured.
const OVERHEAD: Duration = Duration::from_millis(300);
/// What `--quick` may plan for, and when it begins no further measurement.
const QUICK: Duration = Duration::from_secs(90);
const QUICK_LIMIT: Duration = Duration::from_secs(108);
/// A measurement that is shorter says little.
const SHORT: Duration = Duration::from_millis(250);
const SHORTEST: Duration = Duration::from_millis(200);

/// A comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub contestants: Vec<Contestant>,
    pub workloads: Vec<Workload>,
    /// Workers of each contestant, if it has workers.
    pub workers: usize,
    /// How often each contestant is measured under each workload.
    pub rounds: usize,
    /// How long each time.
    pub duration: Duration,
    /// How long the load runs before.
    pub warm_up: Duration,
    /// After this time no measurement begins.
    pub limit: Option<Duration>,
}

/// One measurement: places in the plan's lists, and the round from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub round: usize,
    pub workload: usize,
    pub contestant: usize,
}

impl Plan {
    /// Five rounds of three seconds.
    pub fn new(contestants: Vec<Contestant>, workloads: Vec<Workload>, workers: usize) -> Plan {
        let (warm_up, duration) = (Duration::from_millis(500), Duration::from_secs(3));
        Plan { contestants, workloads, workers, rounds: 5, duration, warm_up, limit: None }
    }

    /// As many rounds, up to five, and as long ones as fit into a minute and a half; a machine on which all takes
    /// longer is stopped short of two minutes.
    pub fn quick(mut self) -> Plan {
        let cells = (self.contestants.len() * self.workloads.len()).max(1) as u32;
        self.warm_up = Duration::from_millis(100);
        let left = |rounds: usize| {
            let each = QUICK / (cells * rounds as u32);
            each.saturating_sub(OVERHEAD + self.warm_up)
        };
        self.rounds = (1..=5).rev().find(|rounds| left(*rounds) >= SHORT).unwrap_or(1);
        let longest = Duration::from_secs(3);
        self.duration = left(self.rounds).clamp(SHORTEST, longest);
        self.limit = Some(QUICK_LIMIT);
        self
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// The value that does not, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if self.contestants.is_empty() || self.workloads.is_empty() {
            return Err("nothing to compare: give --models and --workloads, or neither".to_string());
        }
        for (at, one) in self.contestants.iter().enumerate() {
            if self.contestants[..at].iter().any(|other| other.name == one.name) {
                return Err(format!("{} takes part twice: name each once", one.name));
            }
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

    /// How long it will take, more or less.
    pub fn length(&self) -> Duration {
        let each = self.warm_up + self.duration + OVERHEAD;
        each * (self.rounds * self.workloads.len() * self.contestants.len()) as u32
    }

    /// Every measurement in its order: the contestants take turns under each workload, and another one begins in
    /// each round.
    pub fn turns(&self) -> Vec<Turn> {
        let mut turns = Vec::new();
        let count = self.contestants.len();
        for round in 0..self.rounds {
            for workload in 0..self.workloads.len() {
                let order = (0..count).map(|place| (place + round + workload) % count);
                turns.extend(order.map(|contestant| Turn { round, workload, contestant }));
            }
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_prefork::{Dispatch, Model};

    fn plan(dispatch: bool) -> Plan {
        let models = Model::ALL.map(|model| Contestant::own(model, None, 2));
        let policies = Dispatch::ALL.map(|p| Contestant::own(Model::Prefork, Some(p), 2));
        let policies = policies.into_iter().filter(|_| dispatch);
        Plan::new(models.into_iter().chain(policies).collect(), Workload::ALL.to_vec(), 2)
    }

    #[test]
    fn a_quick_plan_fits_its_budget_and_uses_it() {
        let quick = plan(false).quick();
        assert_eq!((quick.rounds, quick.check()), (4, Ok(())));
        let fits = Duration::from_secs(60)..=QUICK;
        assert!(fits.contains(&quick.length()), "{:?}", quick.length());
        let large = plan(true).quick();
        assert!(large.length() <= QUICK_LIMIT, "{:?}", large.length());
        let mut small = plan(false);
        (small.workloads, small.contestants) =
            (vec![Workload::Bodies], small.contestants[..2].into());
        let small = small.quick();
        assert_eq!((small.rounds, small.duration), (5, Duration::from_secs(3)));
    }

    #[test]
    fn everybody_has_the_same_turns_and_nobody_is_always_first() {
        let plan = plan(false);
        let turns = plan.turns();
        assert_eq!(turns.len(), 5 * 8 * 4);
        for contestant in 0..4 {
            let own = turns.iter().filter(|turn| turn.contestant == contestant);
            assert_eq!(own.count(), 5 * 8);
            let first = turns.chunks(4).filter(|chunk| chunk[0].contestant == contestant);
            assert_eq!(first.count(), 10);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        type Change = fn(&mut Plan);
        let wrong: [(Change, &str); 4] = [
            (|p| p.contestants.clear(), "nothing to compare"),
            (|p| p.contestants.push(p.contestants[0].clone()), "prefork takes part twice"),
            (|p| p.rounds = 0, "--rounds 0"),
            (|p| p.duration = Duration::ZERO, "--duration 0ns"),
        ];
        for (change, piece) in wrong {
            let mut plan = plan(false);
            change(&mut plan);
            let why = plan.check().expect_err(piece);
            assert!(why.contains(piece), "{why}");
        }
    }
}
