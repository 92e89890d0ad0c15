//! What a budget of disruptions says of one eviction more, in Kubernetes' words.

use gantry_api::conditions;
use gantry_api::kinds::pod_disruption_budget::{
    ALWAYS_ALLOW, DISRUPTION_ALLOWED, GROUP, SYNC_FAILED, tell_allowed,
};
use gantry_api::status::{Cause, Details, StatusError};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Evictions that the controller of budgets has not seen yet. With more, it is behind, and none is allowed.
const MOST_UNSEEN: usize = 2_000;
/// In how many seconds a budget will have been looked at.
const AGAIN: u32 = 10;

/// 429, for this reason.
fn refused(why: String, again: u32) -> StatusError {
    let cause = Cause {
        reason: "DisruptionBudget".to_owned(),
        message: why,
        field: String::new(),
    };
    let details = Details {
        causes: vec![cause],
        retry_after_seconds: again,
        ..Details::default()
    };
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    StatusError::new(429, "TooManyRequests", message, Some(details))
}

/// 429: what a budget says is not about the present yet.
pub(super) fn being_processed(name: &str) -> StatusError {
    let why = format!("The disruption budget {name} is still being processed by the server.");
    refused(why, AGAIN)
}

/// Whether a pod that is not ready may go without being counted.
pub(super) fn lets_unready_go(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    let policy = spec.and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    let (healthy, desired) = healthy(budget.status.as_ref());
    policy == Some(ALWAYS_ALLOW) || healthy >= desired && desired > 0
}

/// Healthy pods that there are, and those that there must be.
fn healthy(status: Option<&PodDisruptionBudgetStatus>) -> (i32, i32) {
    let numbers = status.map(|status| (status.current_healthy, status.desired_healthy));
    let (current, desired) = numbers.unwrap_or_default();
    (current.unwrap_or(0), desired.unwrap_or(0))
}

/// Takes one disruption from a budget for a pod, or says why there is none to take. `now` in nanoseconds.
pub(super) fn spend(
    budget: &mut PodDisruptionBudget,
    pod: &str,
    now: i64,
) -> Result<(), StatusError> {
    let name = budget.metadata.name.clone().unwrap_or_default();
    let status = budget.status.get_or_insert_default();
    let observed = status.observed_generation.unwrap_or(0);
    if observed < budget.metadata.generation.unwrap_or(0) {
        return Err(being_processed(&name));
    }
    let forbidden = |why| StatusError::forbidden_resource(GROUP, "poddisruptionbudget", &name, why);
    let allowed = status.disruptions_allowed.unwrap_or(0);
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    let unseen = status.disrupted_pods.as_ref();
    if unseen.is_some_and(|unseen| unseen.len() > MOST_UNSEEN) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(forbidden(why));
    }
    if allowed == 0 {
        return Err(refused(why_none(&name, status), 0));
    }
    let now = Timestamp::from_second(now.div_euclid(1_000_000_000)).unwrap_or(Timestamp::MAX);
    let unseen = status.disrupted_pods.get_or_insert_default();
    unseen.insert(pod.to_owned(), Time(now));
    status.disruptions_allowed = Some(allowed - 1);
    if allowed == 1 {
        tell_allowed(status, Time(now));
    }
    Ok(())
}

/// Why a budget allows no disruption.
fn why_none(name: &str, status: &PodDisruptionBudgetStatus) -> String {
    let told = conditions::find(status.conditions.as_deref(), DISRUPTION_ALLOWED);
    let told = told.filter(|told| told.status == "False" && !told.message.is_empty());
    let (healthy, desired) = healthy(Some(status));
    match told {
        // What it counted then is not to be trusted.
        Some(told) if told.reason == SYNC_FAILED => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            told.message
        ),
        _ if healthy <= desired => format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        ),
        Some(told) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            told.reason, told.message
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let object =
            json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status});
        serde_json::from_value(object).expect("a budget")
    }

    fn with(more: Value) -> PodDisruptionBudget {
        let mut status = json!({
            "observedGeneration": 2, "disruptionsAllowed": 0, "currentHealthy": 3, "desiredHealthy": 3, "expectedPods": 3,
        });
        for (field, value) in more.as_object().expect("an object") {
            status[field] = value.clone();
        }
        budget(json!({}), status)
    }

    fn refusal(mut budget: PodDisruptionBudget) -> (u16, String, u32) {
        let error = spend(&mut budget, "p", 0).expect_err("it is refused");
        let details = error.details().cloned().unwrap_or_default();
        let cause = details.causes.first();
        let told = cause.map_or(error.message().to_owned(), |cause| {
            assert_eq!(cause.reason, "DisruptionBudget");
            cause.message.clone()
        });
        (error.code(), told, details.retry_after_seconds)
    }

    #[test]
    fn a_budget_says_why_no_pod_may_go() {
        let refused = |more: Value, told: &str, again| {
            let told = format!("The disruption budget b {told}");
            assert_eq!(refusal(with(more)), (429, told, again));
        };
        let behind = json!({"observedGeneration": 1, "disruptionsAllowed": 1});
        refused(behind, "is still being processed by the server.", 10);
        refused(json!({}), "needs 3 healthy pods and has 3 currently", 0);
        let condition = |reason: &str| {
            json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": "why",
                "lastTransitionTime": "2026-01-02T03:04:05Z"}])
        };
        refused(
            json!({"conditions": condition("SyncFailed")}),
            "does not allow evicting pods currently because it failed sync: why",
            0,
        );
        refused(
            json!({"conditions": condition("Other"), "currentHealthy": 4}),
            "does not allow evicting pods currently (Other): why",
            0,
        );
        refused(
            json!({"currentHealthy": 4}),
            "does not allow evicting pods currently",
            0,
        );
    }

    #[test]
    fn what_nobody_can_have_counted_is_forbidden() {
        let negative = refusal(with(json!({"disruptionsAllowed": -1})));
        let words =
            "poddisruptionbudget.policy \"b\" is forbidden: pdb disruptions allowed is negative";
        assert_eq!(negative, (403, words.to_owned(), 0));
        let mut full = with(json!({"disruptionsAllowed": 5}));
        let unseen = (0..=MOST_UNSEEN).map(|number| (number.to_string(), Time(Timestamp::MIN)));
        full.status.get_or_insert_default().disrupted_pods = Some(unseen.collect());
        let (code, words, _) = refusal(full);
        assert_eq!(code, 403);
        assert!(words.ends_with(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller"
        ));
    }

    #[test]
    fn one_is_taken_for_a_pod_and_the_last_one_is_told() {
        let mut budget = with(json!({"disruptionsAllowed": 2, "currentHealthy": 5}));
        spend(&mut budget, "p", 1_000_000_000).expect("there is one");
        let status = budget.status.clone().expect("a status");
        assert_eq!(status.disruptions_allowed, Some(1));
        assert_eq!(status.conditions, None);
        spend(&mut budget, "q", 2_000_000_000).expect("there is one");
        let status = budget.status.clone().expect("a status");
        assert_eq!(status.disruptions_allowed, Some(0));
        let unseen = status.disrupted_pods.expect("both");
        let seconds: Vec<i64> = unseen.values().map(|time| time.0.as_second()).collect();
        assert_eq!(seconds, [1, 2]);
        let told = conditions::find(status.conditions.as_deref(), DISRUPTION_ALLOWED);
        assert_eq!(told.map(|told| &*told.reason), Some("InsufficientPods"));
        assert_eq!(told.and_then(|told| told.observed_generation), Some(2));
        spend(&mut budget, "r", 0).expect_err("there is none left");
    }

    #[test]
    fn unready_pods_go_where_the_others_are_enough_or_nobody_minds() {
        let status = |healthy: i32, desired: i32| json!({"currentHealthy": healthy, "desiredHealthy": desired, "disruptionsAllowed": 0, "expectedPods": 3});
        for (policy, healthy, desired, goes) in [
            (Value::Null, 3, 3, true),
            (Value::Null, 2, 3, false),
            (Value::Null, 0, 0, false),
            (json!("IfHealthyBudget"), 2, 3, false),
            (json!("AlwaysAllow"), 0, 3, true),
        ] {
            let spec = json!({"unhealthyPodEvictionPolicy": policy});
            let budget = budget(spec, status(healthy, desired));
            assert_eq!(lets_unready_go(&budget), goes);
        }
    }
}
