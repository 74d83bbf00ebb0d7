//! Makes the plans for the load generator from the loads of a workload.

use std::time::Duration;

use super::{LoadKind, LoadRate, RequestLoad, Workload};
use crate::load::LoadPlan;
use crate::load::plan::MAX_REQUESTS_PER_SECOND;

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
}

/// The plans of a workload.
#[derive(Debug)]
pub(super) struct ScenarioPlans {
    pub(super) measured: PlannedLoad,
    pub(super) background: Vec<PlannedLoad>,
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
        let mut measured = None;
        for load in &workload.loads {
            let LoadKind::Requests(requests) = &load.kind;
            let mut plan = requests.plan(base)?;
            if http2 && !plan.is_http2() {
                plan = plan.with_http2();
            }
            let part_of_capacity = match requests.rate {
                Some(LoadRate::PartOfCapacity(part)) => Some(part),
                _ => None,
            };
            let mut planned = PlannedLoad { name: load.name.clone(), plan, part_of_capacity };
            let describe = |why: String| format!("load {:?}: {why}", load.name);
            match load.measured {
                true => {
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
        Ok(ScenarioPlans { measured, background })
    }

    /// Returns the plans of all loads.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut PlannedLoad> {
        std::iter::once(&mut self.measured).chain(&mut self.background)
    }
}

impl RequestLoad {
    fn plan(&self, base: &LoadPlan) -> Result<LoadPlan, String> {
        let mut plan = LoadPlan {
            target: base.target.with_request_target(&self.request.path)?,
            connections: self.connections,
            threads: self.threads,
            rate: match self.rate {
                Some(LoadRate::PerSecond(rate)) => Some(rate),
                Some(LoadRate::PartOfCapacity(_)) | None => None,
            },
            reconnect_each_request: self.close,
            pipeline_depth: self.pipeline,
            http2_streams: self.http2.then_some(self.streams),
            method: self.request.method.clone(),
            headers: self.request.headers.clone(),
            body: self.request.body_size.map(|size| vec![b'x'; size as usize]),
            timeout: self.timeout,
            ..base.clone()
        };
        plan.tls.resume |= self.resume;
        Ok(plan)
    }
}

impl PlannedLoad {
    /// Sets a rate that is a part of the capacity.
    pub(super) fn set_capacity(&mut self, per_second: f64) {
        if let Some(part) = self.part_of_capacity {
            let rate = (per_second * part).round().min(f64::from(MAX_REQUESTS_PER_SECOND));
            self.plan.rate = Some((rate as u32).max(1));
        }
    }

    /// Returns the closed loop of the same load that measures the capacity.
    pub(super) fn capacity_plan(&self) -> LoadPlan {
        let duration = self.plan.duration / 2;
        LoadPlan {
            rate: None,
            rounds: 1,
            faults: None,
            duration: duration.clamp(MIN_CAPACITY_DURATION, MAX_CAPACITY_DURATION),
            ..self.plan.clone()
        }
    }
}
