//! ResourceQuota: how much of anything the objects of a namespace may use together. What they count for is in
//! [`crate::quota`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ResourceQuota, ResourceQuotaSpec, ScopeSelector, ScopedResourceSelectorRequirement,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::Serialize;
use serde_json::{Value, json};

use super::pod_spec;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::meta::IMMUTABLE;
use crate::parts;
use crate::quantity::Quantity;

/// See [`ResourceQuota`].
pub struct ResourceQuotaKind;

/// The resource.
pub const PLURAL: &str = "resourcequotas";

const OF_CLAIMS: &str = "VolumeAttributesClass";
const BY_CLASS: &str = "PriorityClass";
/// Scopes in which an object is or is not, whatever is said of it.
const PLAIN: [&str; 5] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "Terminating",
];
/// Scopes of which no object is in both.
const OPPOSITES: [[&str; 2]; 2] = [
    ["BestEffort", "NotBestEffort"],
    ["NotTerminating", "Terminating"],
];

type Amounts = BTreeMap<String, ApiQuantity>;

/// Whether there may be a limit of that name, beside those with a domain.
fn is_standard(name: &str) -> bool {
    pod_spec::is_of_quotas(name)
}

/// The names of limits, those that are known first. Kubernetes has no order for them.
fn names(hard: &Amounts) -> Vec<&String> {
    let mut names: Vec<&String> = hard.keys().collect();
    names.sort_by_key(|name| !is_standard(name));
    names
}

fn validate_amounts(amounts: Option<&Amounts>, path: &Path, errors: &mut ErrorList) {
    let Some(amounts) = amounts else {
        return;
    };
    for name in names(amounts) {
        if errors.is_full() {
            return;
        }
        let path = path.key(name);
        pod_spec::check_resource_name(name, false, &path, errors);
        if !name.contains('/') && !is_standard(name) {
            errors.invalid(&path, name, "must be a standard resource for quota");
        }
        if let Some(amount) = amounts.get(name) {
            pod_spec::check_amount(name, amount, &path, errors);
        }
    }
}

fn is_scope(name: &str) -> bool {
    PLAIN.contains(&name) || name == OF_CLAIMS || name == BY_CLASS
}

/// Whether a limit of that name can be of objects in a scope.
fn goes_with(scope: &str, name: &str) -> bool {
    let of_pods = [
        "cpu",
        "limits.cpu",
        "limits.memory",
        "memory",
        "pods",
        "requests.cpu",
        "requests.memory",
    ];
    match scope {
        "BestEffort" => name == "pods",
        OF_CLAIMS => ["persistentvolumeclaims", "requests.storage"].contains(&name),
        scope if is_scope(scope) => of_pods.contains(&name),
        _ => true,
    }
}

/// How many of a quota's limits cannot be of objects in a scope.
fn misplaced(spec: &ResourceQuotaSpec, scope: &str) -> usize {
    let limits = spec.hard.iter().flat_map(|hard| hard.keys());
    let misplaced = limits.filter(|name| is_standard(name) && !goes_with(scope, name));
    misplaced.count()
}

/// Checks that nothing would have to be in two scopes at once of which it can be in one.
fn check_opposites<'a>(
    scopes: impl Iterator<Item = &'a str>,
    spec: &ResourceQuotaSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let scopes: Vec<&str> = scopes.collect();
    for opposites in OPPOSITES {
        if opposites.iter().all(|scope| scopes.contains(scope)) {
            errors.invalid(path, &spec.scopes, "conflicting scopes");
        }
    }
}

const MISPLACED: &str = "unsupported scope applied to resource";

fn validate_scopes(spec: &ResourceQuotaSpec, path: &Path, errors: &mut ErrorList) {
    let path = path.child("scopes");
    let scopes = spec.scopes.as_deref().unwrap_or_default();
    for scope in scopes {
        if errors.is_full() {
            return;
        }
        if !is_scope(scope) {
            errors.invalid(&path, scopes, "unsupported scope");
        }
        for _ in 0..misplaced(spec, scope) {
            errors.invalid(&path, scopes, MISPLACED);
        }
    }
    check_opposites(scopes.iter().map(String::as_str), spec, &path, errors);
}

/// A selector as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Printed<'a> {
    match_expressions: Option<Vec<PrintedRequirement<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedRequirement<'a> {
    scope_name: &'a str,
    operator: &'a str,
    values: Option<&'a Vec<String>>,
}

impl<'a> From<&'a ScopeSelector> for Printed<'a> {
    fn from(selector: &'a ScopeSelector) -> Self {
        let requirements = selector.match_expressions.as_ref();
        let printed = |requirement: &'a ScopedResourceSelectorRequirement| PrintedRequirement {
            scope_name: &requirement.scope_name,
            operator: &requirement.operator,
            values: requirement.values.as_ref(),
        };
        Self {
            match_expressions: requirements.map(|all| all.iter().map(printed).collect()),
        }
    }
}

fn validate_requirement(
    requirement: &ScopedResourceSelectorRequirement,
    path: &Path,
    errors: &mut ErrorList,
) {
    let operator = requirement.operator.as_str();
    if PLAIN.contains(&requirement.scope_name.as_str()) && operator != "Exists" {
        let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.invalid(&path.child("operator"), operator, detail);
    }
    let values = requirement.values.as_deref().unwrap_or_default();
    let at = path.child("values");
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let detail =
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.required(&at, detail);
        }
        "In" | "NotIn" => {}
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail =
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errors.invalid(&at, values, detail);
        }
        "Exists" | "DoesNotExist" => {}
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
}

fn validate_selector(spec: &ResourceQuotaSpec, path: &Path, errors: &mut ErrorList) {
    let Some(selector) = &spec.scope_selector else {
        return;
    };
    let path = path.child("scopeSelector").child("matchExpressions");
    let requirements = selector.match_expressions.as_deref().unwrap_or_default();
    let shown = Printed::from(selector);
    for requirement in requirements {
        if errors.is_full() {
            return;
        }
        let scope = requirement.scope_name.as_str();
        if !is_scope(scope) {
            errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..misplaced(spec, scope) {
            errors.invalid(&path, &shown, MISPLACED);
        }
        validate_requirement(requirement, &path, errors);
    }
    let scopes = requirements.iter();
    let scopes = scopes.map(|requirement| requirement.scope_name.as_str());
    check_opposites(scopes, spec, &path, errors);
}

fn validate_spec(object: &ResourceQuota, errors: &mut ErrorList) {
    let Some(spec) = &object.spec else {
        return;
    };
    let path = Path::new("spec");
    validate_amounts(spec.hard.as_ref(), &path.child("hard"), errors);
    validate_scopes(spec, &path, errors);
    validate_selector(spec, &path, errors);
}

/// The scopes of a quota, in order and each once.
fn scopes(object: &ResourceQuota) -> BTreeSet<&String> {
    let scopes = object.spec.iter().flat_map(|spec| &spec.scopes).flatten();
    scopes.collect()
}

/// How much there is of a resource.
fn amount(amounts: Option<&Amounts>, name: &str) -> Option<Quantity> {
    amounts?.get(name)?.0.parse().ok()
}

/// What is used of each limit, those of requests and those of limits apart.
fn row(object: &ResourceQuota) -> [Value; 2] {
    let status = object.status.as_ref();
    let hard = status.and_then(|status| status.hard.as_ref());
    let used = status.and_then(|status| status.used.as_ref());
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for name in hard.into_iter().flat_map(|hard| hard.keys()) {
        let of = |amounts| amount(amounts, name).unwrap_or_default();
        let shown = format!("{name}: {}/{}", of(used), of(hard));
        match name.starts_with("limits.") {
            true => limits.push(shown),
            false => requests.push(shown),
        }
    }
    [json!(requests.join(", ")), json!(limits.join(", "))]
}

impl Kind for ResourceQuotaKind {
    type Object = ResourceQuota;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "ResourceQuota",
        plural: PLURAL,
        singular: "resourcequota",
        short_names: &["quota"],
        categories: &[],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<ResourceQuota> = parts!(ResourceQuota: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn validate(object: &ResourceQuota, errors: &mut ErrorList) {
        validate_spec(object, errors);
    }

    fn validate_update(new: &ResourceQuota, old: &ResourceQuota, errors: &mut ErrorList) {
        validate_spec(new, errors);
        if scopes(new) != scopes(old) {
            let asked = new.spec.as_ref().and_then(|spec| spec.scopes.as_ref());
            errors.invalid(&Path::new("spec").child("scopes"), asked, IMMUTABLE);
        }
    }

    fn validate_status_update(new: &ResourceQuota, _old: &ResourceQuota, errors: &mut ErrorList) {
        let path = Path::new("status");
        let status = new.status.as_ref();
        let hard = status.and_then(|status| status.hard.as_ref());
        validate_amounts(hard, &path.child("hard"), errors);
        let used = status.and_then(|status| status.used.as_ref());
        validate_amounts(used, &path.child("used"), errors);
    }

    fn warnings(new: &ResourceQuota, old: Option<&ResourceQuota>) -> Vec<String> {
        let hard = new.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        let mut warnings = Vec::new();
        for resource in ["cpu", "memory", "storage", "ephemeral-storage"] {
            let mut name = format!("requests.{resource}");
            let mut request = amount(hard, &name);
            if request.is_none() && ["cpu", "memory"].contains(&resource) {
                name = resource.to_owned();
                request = amount(hard, &name);
            }
            let of = format!("limits.{resource}");
            if let (None, Some(request), Some(limit)) = (old, request, amount(hard, &of))
                && request > limit
            {
                warnings.push(format!(
                    "ResourceQuota {name} ({request}) should be less than {of} ({limit})"
                ));
            }
        }
        warnings
    }

    fn printer() -> Printer<ResourceQuota> {
        let request =
            "Request represents a minimum amount of cpu/memory that a container may consume.";
        let limit = "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.";
        let columns = [
            table::column("Request", "string", request, 0),
            table::column("Limit", "string", limit, 0),
        ];
        let printer = Printer::<ResourceQuota>::named();
        printer.columns(columns, |object, _| row(object)).age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(spec: Value) -> ResourceQuota {
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": spec})).expect("a quota")
    }

    fn refused(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        ResourceQuotaKind::validate(&quota(spec), &mut errors);
        errors.told()
    }

    #[test]
    fn limits_have_known_names_or_a_domain() {
        let fine = json!({"hard": {
            "pods": "1", "cpu": "1500m", "requests.storage": "1Gi", "hugepages-2Mi": "2Mi",
            "count/deployments.apps": "1", "requests.example.com/gpu": "1",
            "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"
        }});
        assert_eq!(refused(fine), [""; 0]);
        let bad = json!({"hard": {"storage": "1", "foo": "1", "pods": "1.5"}});
        assert_eq!(
            refused(bad),
            [
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource for quota",
                "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota",
            ]
        );
    }

    #[test]
    fn selectors_go_with_their_limits_and_operators() {
        let by = |scope: &str, operator: &str, values: Value| {
            json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": scope, "operator": operator, "values": values}]}})
        };
        assert_eq!(refused(by("PriorityClass", "In", json!(["a"]))), [""; 0]);
        assert_eq!(refused(by("BestEffort", "Exists", json!(null))), [""; 0]);
        let path = "spec.scopeSelector.matchExpressions";
        assert_eq!(
            refused(by("PriorityClass", "In", json!([]))),
            [format!(
                "{path}.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
            )]
        );
        assert_eq!(
            refused(by("VolumeAttributesClass", "Exists", json!(null))),
            [format!(
                "{path}: Invalid value: {{\"MatchExpressions\":[{{\"ScopeName\":\"VolumeAttributesClass\",\"Operator\":\"Exists\",\"Values\":null}}]}}: unsupported scope applied to resource"
            )]
        );
        assert_eq!(refused(by("Terminating", "In", json!(["a"]))).len(), 1);
        assert_eq!(refused(by("Other", "Like", json!(null))).len(), 2);
    }

    #[test]
    fn scopes_stay_whatever_their_order() {
        let changed = |old: Value, new: Value| {
            let mut errors = ErrorList::default();
            ResourceQuotaKind::validate_update(&quota(new), &quota(old), &mut errors);
            errors.told()
        };
        let scopes = |scopes: &[&str]| json!({"scopes": scopes});
        let both = ["BestEffort", "Terminating"];
        let turned = ["Terminating", "BestEffort", "Terminating"];
        assert_eq!(changed(scopes(&both), scopes(&turned)), [""; 0]);
        assert_eq!(
            changed(scopes(&both), json!({})),
            ["spec.scopes: Invalid value: null: field is immutable"]
        );
    }

    #[test]
    fn a_new_quota_is_warned_of_requests_that_no_limit_has_room_for() {
        let quota = quota(json!({"hard": {"memory": "2Gi", "limits.memory": "1Gi"}}));
        assert_eq!(
            ResourceQuotaKind::warnings(&quota, None),
            ["ResourceQuota memory (2Gi) should be less than limits.memory (1Gi)"]
        );
        assert_eq!(ResourceQuotaKind::warnings(&quota, Some(&quota)), [""; 0]);
    }
}
