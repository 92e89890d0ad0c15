//! PodDisruptionBudget: how many of some pods may be taken away at once by those who ask for it before they do.

use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};

use super::table::{self, Printer};
use super::workload::{self, Printed};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, MetadataRules, Parts, StaticInfo};
use crate::meta::NameRule;
use crate::parts;
use crate::selector::LabelSelector;
use crate::{conditions, names, selector};

/// See [`PodDisruptionBudget`].
pub struct PodDisruptionBudgetKind;

/// The API group.
pub const GROUP: &str = "policy";
/// The version.
pub const VERSION: &str = "v1";
/// The resource.
pub const PLURAL: &str = "poddisruptionbudgets";

/// The condition that says whether a budget lets any pod go.
pub const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";
/// Why none may go: what the budget needs to know could not be found out.
pub const SYNC_FAILED: &str = "SyncFailed";
const SUFFICIENT_PODS: &str = "SufficientPods";
const INSUFFICIENT_PODS: &str = "InsufficientPods";

/// The policy by which pods that are not ready may always go.
pub const ALWAYS_ALLOW: &str = "AlwaysAllow";
const POLICIES: [&str; 2] = [ALWAYS_ALLOW, "IfHealthyBudget"];

/// The pods that a budget is about; it is about those of its own namespace alone.
pub fn selected(budget: &PodDisruptionBudget) -> LabelSelector {
    let spec = budget.spec.as_ref();
    LabelSelector::from_api(spec.and_then(|spec| spec.selector.as_ref()))
}

/// Says in a status whether any pod may go, as its number says.
pub fn tell_allowed(status: &mut PodDisruptionBudgetStatus, now: Time) {
    let (status_of, reason) = match status.disruptions_allowed.unwrap_or(0) > 0 {
        true => ("True", SUFFICIENT_PODS),
        false => ("False", INSUFFICIENT_PODS),
    };
    let condition = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: status_of.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: status.observed_generation,
        last_transition_time: now,
    };
    conditions::set(&mut status.conditions, condition);
}

/// Says in a status that no pod may go, because it is not known how many may.
pub fn tell_failed(status: &mut PodDisruptionBudgetStatus, message: String, now: Time) {
    status.disruptions_allowed = Some(0);
    let condition = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: "False".to_owned(),
        reason: SYNC_FAILED.to_owned(),
        message,
        observed_generation: status.observed_generation,
        last_transition_time: now,
    };
    conditions::set(&mut status.conditions, condition);
}

/// A spec as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedSpec<'a> {
    min_available: Option<&'a IntOrString>,
    selector: Option<Printed<'a>>,
    max_unavailable: Option<&'a IntOrString>,
    unhealthy_pod_eviction_policy: Option<&'a str>,
}

fn validate_spec(spec: &PodDisruptionBudgetSpec, path: &Path, errors: &mut ErrorList) {
    let amounts = [
        ("minAvailable", spec.min_available.as_ref()),
        ("maxUnavailable", spec.max_unavailable.as_ref()),
    ];
    if amounts.iter().all(|(_, amount)| amount.is_some()) {
        let printed = PrintedSpec {
            min_available: spec.min_available.as_ref(),
            selector: spec.selector.as_ref().map(Printed::from),
            max_unavailable: spec.max_unavailable.as_ref(),
            unhealthy_pod_eviction_policy: spec.unhealthy_pod_eviction_policy.as_deref(),
        };
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.invalid(path, printed, detail);
    }
    for (name, amount) in amounts {
        if let Some(amount) = amount {
            workload::validate_amount(amount, &path.child(name), errors);
            workload::validate_at_most_all(amount, &path.child(name), errors);
        }
    }
    if let Some(selector) = &spec.selector {
        selector::validate(selector, &path.child("selector"), errors);
    }
    if let Some(policy) = spec.unhealthy_pod_eviction_policy.as_deref()
        && !POLICIES.contains(&policy)
    {
        let path = path.child("unhealthyPodEvictionPolicy");
        errors.not_supported(&path, policy, &POLICIES);
    }
}

/// An amount as tables show it.
fn amount_cell(amount: Option<&IntOrString>) -> Value {
    match amount {
        None => json!("N/A"),
        Some(IntOrString::Int(number)) => json!(number.to_string()),
        Some(IntOrString::String(text)) => json!(text),
    }
}

impl Kind for PodDisruptionBudgetKind {
    type Object = PodDisruptionBudget;

    const INFO: StaticInfo = StaticInfo {
        group: GROUP,
        version: VERSION,
        kind: "PodDisruptionBudget",
        plural: PLURAL,
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        categories: &[],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const NAME_RULE: NameRule = names::path_segment;

    const PARTS: Parts<PodDisruptionBudget> = parts!(PodDisruptionBudget: spec, status);

    const METADATA: MetadataRules = MetadataRules::Late;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::None;

    const UNCONDITIONAL_UPDATE: bool = false;

    fn validate(object: &PodDisruptionBudget, errors: &mut ErrorList) {
        if let Some(spec) = &object.spec {
            validate_spec(spec, &Path::new("spec"), errors);
        }
    }

    fn validate_status_update(
        new: &PodDisruptionBudget,
        _old: &PodDisruptionBudget,
        errors: &mut ErrorList,
    ) {
        let Some(status) = &new.status else {
            return;
        };
        let path = Path::new("status");
        let told = status.conditions.as_deref();
        conditions::validate(told, &path.child("conditions"), errors);
        for (name, number) in [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ] {
            workload::validate_not_negative(number, &path.child(name), errors);
        }
    }

    fn printer() -> Printer<PodDisruptionBudget> {
        let columns = [
            table::column(
                "Min Available",
                "string",
                "The minimum number of pods that must be available.",
                0,
            ),
            table::column(
                "Max Unavailable",
                "string",
                "The maximum number of pods that may be unavailable.",
                0,
            ),
            table::column(
                "Allowed Disruptions",
                "integer",
                "Calculated number of pods that may be disrupted at this time.",
                0,
            ),
        ];
        Printer::<PodDisruptionBudget>::named()
            .columns(columns, |object, _| {
                let spec = object.spec.as_ref();
                let allowed = object.status.as_ref();
                let allowed = allowed.and_then(|status| status.disruptions_allowed);
                [
                    amount_cell(spec.and_then(|spec| spec.min_available.as_ref())),
                    amount_cell(spec.and_then(|spec| spec.max_unavailable.as_ref())),
                    json!(allowed.unwrap_or(0)),
                ]
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let object = json!({"metadata": {"name": "b"}, "spec": spec, "status": status});
        serde_json::from_value(object).expect("a budget")
    }

    fn refused(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        PodDisruptionBudgetKind::validate(&budget(spec, json!({})), &mut errors);
        errors.told()
    }

    #[test]
    fn a_budget_says_one_amount_of_all_at_most() {
        for fine in [
            json!({}),
            json!({"minAvailable": 0}),
            json!({"maxUnavailable": "100%"}),
            json!({"selector": {}, "unhealthyPodEvictionPolicy": "IfHealthyBudget"}),
        ] {
            assert_eq!(refused(fine), Vec::<String>::new());
        }
        let both = refused(json!({
            "minAvailable": 1, "maxUnavailable": "50%", "selector": {"matchLabels": {"a": "b"}}
        }));
        assert_eq!(
            both,
            [
                "spec: Invalid value: {\"MinAvailable\":1,\"Selector\":{\"matchLabels\":{\"a\":\"b\"}},\"MaxUnavailable\":\"50%\",\"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set"
            ]
        );
        assert_eq!(
            refused(json!({"minAvailable": "101%"})),
            ["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"]
        );
        let text = refused(json!({"maxUnavailable": "half"}));
        assert!(text[0].starts_with("spec.maxUnavailable: Invalid value: \"half\": a valid"));
    }

    #[test]
    fn counts_of_a_status_are_none_below_zero() {
        let status = json!({
            "disruptionsAllowed": -1, "currentHealthy": -1, "desiredHealthy": 0, "expectedPods": -1,
        });
        let mut errors = ErrorList::default();
        let new = budget(json!({}), status);
        PodDisruptionBudgetKind::validate_status_update(&new, &new, &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        assert_eq!(
            paths,
            [
                "status.disruptionsAllowed",
                "status.currentHealthy",
                "status.expectedPods"
            ]
        );
    }

    #[test]
    fn a_row_shows_what_is_asked_for_and_what_is_left() {
        let cells = |spec: Value, status: Value| {
            PodDisruptionBudgetKind::printer().row(&budget(spec, status), 0)
        };
        let shown = cells(json!({"minAvailable": 2}), json!({"disruptionsAllowed": 3}));
        assert_eq!(shown[1..4], [json!("2"), json!("N/A"), json!(3)]);
        let shown = cells(json!({"maxUnavailable": "10%"}), json!({}));
        assert_eq!(shown[1..4], [json!("N/A"), json!("10%"), json!(0)]);
    }

    #[test]
    fn the_condition_follows_the_number() {
        let at = |second: i64| Time(Timestamp::from_second(second).expect("in range"));
        let mut status = PodDisruptionBudgetStatus::default();
        let told = |status: &PodDisruptionBudgetStatus| {
            let found = conditions::find(status.conditions.as_deref(), DISRUPTION_ALLOWED);
            let found = found.expect("it is told");
            (
                found.status.clone(),
                found.reason.clone(),
                found.last_transition_time.0.as_second(),
            )
        };
        let expected =
            |status: &str, reason: &str, since| (status.to_owned(), reason.to_owned(), since);
        status.disruptions_allowed = Some(1);
        tell_allowed(&mut status, at(1));
        assert_eq!(told(&status), expected("True", "SufficientPods", 1));
        tell_failed(&mut status, "why".to_owned(), at(2));
        assert_eq!(status.disruptions_allowed, Some(0));
        assert_eq!(told(&status), expected("False", "SyncFailed", 2));
        tell_allowed(&mut status, at(3));
        assert_eq!(told(&status), expected("False", "InsufficientPods", 2));
    }

    #[test]
    fn no_selector_selects_nothing_and_an_empty_one_everything() {
        assert!(!selected(&budget(json!({}), json!({}))).matches_map(None));
        let all = budget(json!({"selector": {}}), json!({}));
        assert!(selected(&all).matches_map(None));
    }
}
