//! What a budget of disruptions says of its pods: how many are healthy, how many must be, and how many may go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::kinds::pod_disruption_budget::{tell_allowed, tell_failed};
use gantry_informer::clock::seconds;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use crate::deployment::scaled;
use crate::pods::is_ready;

/// A pod that was evicted is expected to be seen going within this; one that is not counts as any other again.
pub(super) const DELETION_TIMEOUT: Duration = Duration::from_secs(120);
/// What is told of a failure, in characters.
const LONGEST_FAILURE: usize = 1 << 10;

/// What comes of looking at a budget.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// What the status is to say; none where it says so already.
    pub(super) status: Option<PodDisruptionBudgetStatus>,
    /// Pods that were evicted, and stayed.
    pub(super) stayed: Vec<Arc<Pod>>,
    /// When a pod that was evicted is not waited for any more.
    pub(super) again: Option<Duration>,
}

/// Whether what a budget asks for depends on how many pods their owners want.
pub(super) fn asks_owners(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|spec| {
        let is_share = matches!(spec.min_available, Some(IntOrString::String(_)));
        spec.max_unavailable.is_some() || is_share
    })
}

/// How many pods are expected, and how many of them must be healthy. `wanted` is what the owners want, of all of them.
fn demanded(spec: &PodDisruptionBudgetSpec, pods: usize, wanted: i32) -> (i32, i32) {
    if let Some(unavailable) = &spec.max_unavailable {
        let unavailable = scaled(Some(unavailable), wanted, true);
        return (wanted, wanted.saturating_sub(unavailable).max(0));
    }
    match &spec.min_available {
        Some(IntOrString::Int(number)) => (i32::try_from(pods).unwrap_or(i32::MAX), *number),
        Some(share) => (wanted, scaled(Some(share), wanted, true)),
        None => (0, 0),
    }
}

/// When a pod that was evicted then is not waited for any more.
fn given_up(evicted: &Time) -> Timestamp {
    evicted
        .0
        .checked_add(DELETION_TIMEOUT)
        .unwrap_or(Timestamp::MAX)
}

/// Looks at a budget and the pods that it selects. `wanted` is what their owners want, where that is asked.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    wanted: i32,
    now: Timestamp,
) -> Plan {
    let known = budget.status.clone().unwrap_or_default();
    let evicted = known.disrupted_pods.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let mut awaited: BTreeMap<String, Time> = BTreeMap::new();
    let mut healthy: i32 = 0;
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Some(time) = evicted.get(name) {
            let end = given_up(time);
            if end > now {
                let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
                awaited.insert(name.to_owned(), time.clone());
                continue;
            }
            plan.stayed.push(pod.clone());
        }
        if is_ready(pod) {
            healthy = healthy.saturating_add(1);
        }
    }
    let empty = PodDisruptionBudgetSpec::default();
    let spec = budget.spec.as_ref().unwrap_or(&empty);
    let (expected, desired) = demanded(spec, pods.len(), wanted);
    // Where nobody is expected, nobody is known either: the first pods must not find a budget that lets them go.
    let allowed = match expected > 0 {
        true => healthy.saturating_sub(desired).max(0),
        false => 0,
    };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(awaited).filter(|awaited| !awaited.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: known.conditions.clone(),
    };
    tell_allowed(&mut status, seconds(now));
    plan.status = Some(status).filter(|status| *status != known);
    plan
}

/// What the status of a budget is to say for which no plan could be made; none where it says so already.
pub(super) fn failed(
    budget: &PodDisruptionBudget,
    why: &str,
    now: Timestamp,
) -> Option<PodDisruptionBudgetStatus> {
    let known = budget.status.clone().unwrap_or_default();
    let mut status = known.clone();
    let why = why.chars().take(LONGEST_FAILURE).collect();
    tell_failed(&mut status, why, seconds(now));
    Some(status).filter(|status| *status != known)
}
