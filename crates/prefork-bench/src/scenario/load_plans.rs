//! Makes the plans for the load generator from the loads of a workload.

use std::time::Duration;

use super::{LoadKind, LoadRate, RequestLoad, ScenarioRequest, Workload};
use crate::load::plan::MAX_REQUESTS_PER_SECOND;
use crate::load::{LoadPlan, WeightedRequest};
use crate::load_kinds::slow_readers::ReaderPlan;

/// Shortest closed loop that measures the capacity of a server.
const MIN_CAPACITY_DURATION: Duration = Duration::from_millis(300);
/// Longest closed loop that measures the capacity of a server.
const MAX_CAPACITY_DURATION: Duration = Duration::from_secs(5);

/// A load of requests, ready to run.
#[derive(Debug, Clone)]
pub(super) struct PlannedLoad {
    /// Name of the load.
    pub(super) name: String,
    /// Its plan. A rate that is a part of the capacity is not yet set.
    pub(super) plan: LoadPlan,
    /// The part of the capacity that is due, such as 0.8.
    pub(super) part_of_capacity: Option<f64>,
    /// The rate at the end of a ramp.
    pub(super) rate_at_end: Option<LoadRate>,
}

/// The plans of a workload.
#[derive(Debug)]
pub(super) struct ScenarioPlans {
    pub(super) measured: PlannedLoad,
    pub(super) background: Vec<PlannedLoad>,
    /// Slow readers in the background.
    pub(super) readers: Option<ReaderPlan>,
}

impl ScenarioPlans {
    /// Returns the plans for the server, TLS options, and times of `base`.
    ///
    /// # Errors
    /// A load is invalid together with `base`.
    pub(super) fn new(
        workload: &Workload,
        base: &LoadPlan,
        http2: bool,
    ) -> Result<ScenarioPlans, String> {
        let mut background = Vec::new();
        let (mut measured, mut readers) = (None, None);
        for load in &workload.loads {
            let requests = match &load.kind {
                LoadKind::Requests(requests) => requests,
                LoadKind::SlowReaders(slow) => {
                    readers = Some(slow.plan(base)?);
                    continue;
                }
                other => return Err(format!("load {:?}: {} runs alone", load.name, other.name())),
            };
            let mut plan = requests.plan(base)?;
            if http2 && !plan.is_http2() {
                plan = plan.with_http2();
            }
            let mut planned = PlannedLoad {
                name: load.name.clone(),
                plan,
                part_of_capacity: requests.rate.and_then(LoadRate::part),
                rate_at_end: requests.rate_at_end,
            };
            let describe = |why: String| format!("load {:?}: {why}", load.name);
            match load.measured {
                true => {
                    planned.plan.faults = workload.fault_plan()?.or(base.faults);
                    planned.plan.validate().map_err(describe)?;
                    measured = Some(planned);
                }
                false => {
                    // It runs for as long as the measured one.
                    planned.plan.duration = base.warm_up + base.duration;
                    (planned.plan.warm_up, planned.plan.faults) = (Duration::ZERO, None);
                    planned.plan.validate().map_err(describe)?;
                    background.push(planned);
                }
            }
        }
        let measured = measured.ok_or("no load is measured")?;
        Ok(ScenarioPlans { measured, background, readers })
    }

    /// Returns the plans of all loads.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut PlannedLoad> {
        std::iter::once(&mut self.measured).chain(&mut self.background)
    }
}

impl RequestLoad {
    pub(super) fn plan(&self, base: &LoadPlan) -> Result<LoadPlan, String> {
        let body =
            |request: &ScenarioRequest| request.body_size.map(|size| vec![b'x'; size as usize]);
        let request = self.request.as_ref();
        let rate = self.rate.and_then(LoadRate::per_second);
        let rate_at_end = self.rate_at_end.and_then(LoadRate::per_second);
        let mix = self.requests.iter().map(|kind| WeightedRequest {
            name: kind.name.clone(),
            weight: kind.weight,
            request_target: kind.request.path.clone(),
            method: kind.request.method.clone(),
            headers: kind.request.headers.clone(),
            body: body(&kind.request),
        });
        let mut plan = LoadPlan {
            target: base.target.with_request_target(request.map_or("/", |one| &one.path))?,
            connections: self.connections,
            threads: self.threads,
            rate,
            // Set with the rate, if that depends on the capacity.
            rate_at_end: rate_at_end.filter(|_| rate.is_some()),
            connection_ramp: self.connection_ramp.unwrap_or_default(),
            mix: mix.collect(),
            reconnect_each_request: self.close,
            pipeline_depth: self.pipeline,
            http2_streams: self.http2.then_some(self.streams),
            method: request.map_or("GET", |one| &one.method).to_string(),
            headers: request.map(|one| one.headers.clone()).unwrap_or_default(),
            body: request.and_then(body),
            timeout: self.timeout,
            ..base.clone()
        };
        plan.tls.resume |= self.resume;
        Ok(plan)
    }
}

impl LoadRate {
    /// Returns the part of the capacity, if it is one.
    fn part(self) -> Option<f64> {
        match self {
            LoadRate::PartOfCapacity(part) => Some(part),
            LoadRate::PerSecond(_) => None,
        }
    }

    /// Returns the number of requests per second, if it is one.
    fn per_second(self) -> Option<u32> {
        match self {
            LoadRate::PerSecond(rate) => Some(rate),
            LoadRate::PartOfCapacity(_) => None,
        }
    }
}

impl PlannedLoad {
    /// Returns whether a rate is a part of the capacity.
    pub(super) fn needs_capacity(&self) -> bool {
        self.part_of_capacity.is_some() || self.rate_at_end.and_then(LoadRate::part).is_some()
    }

    /// Sets a rate that is a part of the capacity.
    pub(super) fn set_capacity(&mut self, per_second: f64) {
        let rate = |part: f64| {
            let rate = (per_second * part).round().min(f64::from(MAX_REQUESTS_PER_SECOND));
            (rate as u32).max(1)
        };
        self.plan.rate = self.part_of_capacity.map(rate).or(self.plan.rate);
        self.plan.rate_at_end = self.rate_at_end.map(|at_end| match at_end {
            LoadRate::PerSecond(rate) => rate,
            LoadRate::PartOfCapacity(part) => rate(part),
        });
    }

    /// Returns the closed loop of the same load that measures the capacity.
    pub(super) fn capacity_plan(&self) -> LoadPlan {
        let duration = self.plan.duration / 2;
        LoadPlan {
            rate: None,
            rate_at_end: None,
            connection_ramp: Duration::ZERO,
            rounds: 1,
            faults: None,
            duration: duration.clamp(MIN_CAPACITY_DURATION, MAX_CAPACITY_DURATION),
            ..self.plan.clone()
        }
    }
}
