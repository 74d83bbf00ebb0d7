//! Loads with requests of several kinds: their order, and their bytes.

use super::plan::LoadPlan;

/// Most kinds of requests of a load.
pub(crate) const MAX_REQUEST_KINDS: usize = 64;
/// Most requests of a cycle.
const MAX_CYCLE_REQUESTS: u32 = 1000;
/// Largest cycle in bytes: 64 MiB.
const MAX_CYCLE_BYTES: usize = 64 << 20;
/// Bytes of repeated requests that are kept for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// A kind of request of a load, sent in proportion to its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedRequest {
    /// Name in reports.
    pub name: String,
    /// How many of these requests are sent for each round through all kinds.
    pub weight: u32,
    /// Path and query.
    pub request_target: String,
    /// Method.
    pub method: String,
    /// Header fields, as `Name: value`.
    pub headers: Vec<String>,
    /// Body; `None` sends none.
    pub body: Option<Vec<u8>>,
}

impl LoadPlan {
    /// Returns a plan for each kind of request; this plan, if there is one kind.
    ///
    /// # Errors
    /// A path has characters that must be percent-encoded.
    pub(crate) fn plans_of_kinds(&self) -> Result<Vec<LoadPlan>, String> {
        if self.mix.is_empty() {
            return Ok(vec![self.clone()]);
        }
        let base = LoadPlan { mix: Vec::new(), ..self.clone() };
        let plan = |request: &WeightedRequest| {
            Ok(LoadPlan {
                target: self.target.with_request_target(&request.request_target)?,
                method: request.method.clone(),
                headers: request.headers.clone(),
                body: request.body.clone(),
                ..base.clone()
            })
        };
        self.mix.iter().map(plan).collect()
    }

    /// Checks the kinds of requests.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub(crate) fn validate_mix(&self) -> Result<(), String> {
        if self.mix.len() > MAX_REQUEST_KINDS {
            return Err(format!(
                "{} kinds of requests: give up to {MAX_REQUEST_KINDS}",
                self.mix.len()
            ));
        }
        let order = RequestOrder::from_weights(self.mix.iter().map(|one| one.weight))?;
        let plans = self.plans_of_kinds()?;
        let lengths: Vec<usize> = plans.iter().map(|plan| plan.encode_request().len()).collect();
        let bytes: usize = order.kinds.iter().map(|kind| lengths[usize::from(*kind)]).sum();
        match bytes > MAX_CYCLE_BYTES {
            true => Err(format!(
                "the requests of one round through all weights have {bytes} bytes: give smaller weights or bodies, up \
                 to {MAX_CYCLE_BYTES} bytes together"
            )),
            false => plans.iter().try_for_each(LoadPlan::validate_request),
        }
    }
}

/// The order in which the kinds follow each other, over and over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RequestOrder {
    /// Index of each request's kind.
    kinds: Vec<u16>,
}

impl RequestOrder {
    /// Spreads each kind evenly, as nginx does with weighted servers. One kind without weights.
    fn from_weights(weights: impl Iterator<Item = u32>) -> Result<RequestOrder, String> {
        let weights: Vec<u32> = weights.collect();
        if weights.len() < 2 {
            return Ok(RequestOrder { kinds: vec![0] });
        }
        if weights.contains(&0) {
            return Err("a weight is 0: give whole numbers from 1".to_string());
        }
        let divisor = weights.iter().copied().reduce(greatest_common_divisor).unwrap_or(1);
        let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
        let all: i64 = weights.iter().sum();
        if all > i64::from(MAX_CYCLE_REQUESTS) {
            return Err(format!(
                "the weights add up to {all} after division by their common divisor: give simpler ones, up to \
                 {MAX_CYCLE_REQUESTS} together"
            ));
        }
        let mut credits = vec![0; weights.len()];
        let mut kinds = Vec::new();
        for _ in 0..all {
            credits.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
            // The first of those with the highest credit.
            let next = (0..credits.len()).rev().max_by_key(|kind| credits[*kind]).unwrap_or(0);
            credits[next] -= all;
            kinds.push(next as u16);
        }
        Ok(RequestOrder { kinds })
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The requests of a connection over HTTP/1.1: a cycle of bytes, and where each request begins.
#[derive(Debug)]
pub(crate) struct RequestCycle {
    /// The bytes of all requests, repeated so that one write can send several.
    pub(crate) bytes: Vec<u8>,
    /// Length of one cycle in bytes.
    pub(crate) cycle_len: usize,
    /// Where each request of the cycle begins.
    starts: Vec<usize>,
    /// Index of each request's kind.
    kinds: Vec<u16>,
}

impl RequestCycle {
    /// Encodes the requests of a plan.
    ///
    /// # Errors
    /// The plan is invalid.
    pub(crate) fn from_plan(plan: &LoadPlan) -> Result<RequestCycle, String> {
        let order = RequestOrder::from_weights(plan.mix.iter().map(|one| one.weight))?;
        let kinds: Vec<Vec<u8>> =
            plan.plans_of_kinds()?.iter().map(LoadPlan::encode_request).collect();
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for kind in &order.kinds {
            starts.push(bytes.len());
            bytes.extend_from_slice(&kinds[usize::from(*kind)]);
        }
        let cycle_len = bytes.len();
        // One write fills the pipeline, unless the requests are large.
        let cycles = match order.kinds.len() {
            1 => plan.pipeline_depth,
            count => plan.pipeline_depth.div_ceil(count) + usize::from(plan.pipeline_depth > 1),
        };
        let bytes = bytes.repeat(cycles.min(WRITE_BYTES / cycle_len + 1));
        Ok(RequestCycle { bytes, cycle_len, starts, kinds: order.kinds })
    }

    /// Returns the kind of the request at a position of the cycle.
    pub(crate) fn kind(&self, position: usize) -> u16 {
        self.kinds[position]
    }

    /// Returns where the request at a position of the cycle begins.
    pub(crate) fn start(&self, position: usize) -> usize {
        self.starts[position]
    }

    /// Returns the length of the request at a position of the cycle.
    pub(crate) fn request_len(&self, position: usize) -> usize {
        let end = self.starts.get(position + 1).copied().unwrap_or(self.cycle_len);
        end - self.starts[position]
    }

    /// Returns the position after another.
    pub(crate) fn next(&self, position: usize) -> usize {
        if position + 1 < self.kinds.len() { position + 1 } else { 0 }
    }

    /// Returns the position at which connection `at` begins, so that not all send the same kind at once.
    pub(crate) fn first_position(&self, at: usize) -> usize {
        at % self.kinds.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TargetUrl;

    fn order(weights: &[u32]) -> Vec<u16> {
        RequestOrder::from_weights(weights.iter().copied()).expect("valid").kinds
    }

    fn mixed_plan(weights: &[u32]) -> LoadPlan {
        let mut plan = LoadPlan::new(TargetUrl::parse("http://h/").expect("url"));
        plan.mix = weights
            .iter()
            .enumerate()
            .map(|(at, weight)| WeightedRequest {
                name: format!("kind {at}"),
                weight: *weight,
                request_target: format!("/{at}"),
                method: "GET".to_string(),
                headers: Vec::new(),
                body: None,
            })
            .collect();
        plan
    }

    #[test]
    fn kinds_are_spread_in_proportion_to_their_weights() {
        assert_eq!(order(&[]), [0]);
        assert_eq!(order(&[7]), [0]);
        assert_eq!(order(&[1, 1]), [0, 1]);
        assert_eq!(order(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(order(&[70, 30]).iter().filter(|kind| **kind == 1).count(), 3);
        assert!(RequestOrder::from_weights([1, 0].into_iter()).is_err());
        assert!(RequestOrder::from_weights([1000, 1].into_iter()).is_err());
    }

    #[test]
    fn a_cycle_has_the_requests_of_all_kinds_one_behind_the_other() {
        let plan = mixed_plan(&[2, 1]);
        assert_eq!(plan.validate(), Ok(()));
        let cycle = RequestCycle::from_plan(&plan).expect("valid");
        let mut text = String::new();
        let mut position = 0;
        for _ in 0..3 {
            let from = cycle.start(position);
            let one = &cycle.bytes[from..from + cycle.request_len(position)];
            assert!(
                String::from_utf8_lossy(one)
                    .starts_with(&format!("GET /{} ", cycle.kind(position)))
            );
            text.push_str(&String::from_utf8_lossy(one));
            position = cycle.next(position);
        }
        assert_eq!((position, text.as_bytes()), (0, &cycle.bytes[..cycle.cycle_len]));
    }

    #[test]
    fn cycles_that_are_too_large_are_refused() {
        let mut plan = mixed_plan(&[100, 1]);
        plan.mix[0].body = Some(vec![0; 1 << 20]);
        let why = plan.validate().expect_err("large");
        assert!(why.contains("smaller weights"), "{why}");
        plan.mix[0].weight = 1;
        assert_eq!(plan.validate(), Ok(()));
        plan.mix[1].method = "G T".to_string();
        assert!(plan.validate().is_err());
    }
}
