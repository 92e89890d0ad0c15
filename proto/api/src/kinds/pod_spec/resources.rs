//! Requests and limits: checks, and the quality of service that follows from them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::field::{ErrorList, Path};
use crate::names;
use crate::quantity::Quantity;

type Amounts = BTreeMap<String, ApiQuantity>;

/// Requests and limits of a container; empty where none are given.
fn requests_and_limits(container: &Container) -> (&Amounts, &Amounts) {
    static NONE: Amounts = BTreeMap::new();
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    (requests.unwrap_or(&NONE), limits.unwrap_or(&NONE))
}

/// How readily the pod gives way under pressure: `Guaranteed`, `Burstable` or `BestEffort`.
pub(in crate::kinds) fn qos_class(spec: &PodSpec) -> &'static str {
    let (mut any, mut all) = (false, true);
    let init = spec.init_containers.iter().flatten();
    for container in spec.containers.iter().chain(init) {
        let (requests, limits) = requests_and_limits(container);
        for name in ["cpu", "memory"] {
            let amount = |amounts: &Amounts| {
                let amount: Option<Quantity> = amounts.get(name)?.0.parse().ok();
                amount.filter(|amount| amount.sign() > 0)
            };
            let (request, limit) = (amount(requests), amount(limits));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Whether more of it may be promised than there is.
fn may_be_overcommitted(resource: &str) -> bool {
    !resource.starts_with("hugepages-")
        && (!resource.contains('/') || resource.contains("kubernetes.io/"))
}

fn check_name(resource: &str, path: &Path, errors: &mut ErrorList) {
    let messages = names::qualified_name(resource);
    for detail in &messages {
        errors.invalid(path, resource, detail);
    }
    if !messages.is_empty() || resource.contains('/') {
        return;
    }
    if !["cpu", "memory", "ephemeral-storage"].contains(&resource)
        && !resource.starts_with("hugepages-")
    {
        let detail = "must be a standard resource type or fully qualified";
        errors.invalid(path, resource, detail);
        errors.invalid(path, resource, "must be a standard resource for containers");
    }
}

/// Checks names and amounts; an amount that is none was refused when the object was decoded.
fn check_amounts(amounts: &Amounts, path: &Path, errors: &mut ErrorList) {
    for (resource, amount) in amounts {
        let path = path.key(resource);
        check_name(resource, &path, errors);
        check_amount(resource, amount, &path, errors);
    }
}

/// Checks how much there is, or should be, of a resource.
pub(in crate::kinds) fn check_amount(
    resource: &str,
    amount: &ApiQuantity,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Ok(parsed) = amount.0.parse::<Quantity>() else {
        return;
    };
    if parsed.sign() < 0 {
        errors.invalid(path, &amount.0, names::NOT_NEGATIVE);
    }
    if !may_be_overcommitted(resource) && !parsed.is_whole() {
        errors.invalid(path, &amount.0, "must be an integer");
    }
}

/// Checks the requests and limits of one container.
pub(in crate::kinds) fn validate(
    resources: Option<&ResourceRequirements>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(resources) = resources else {
        return;
    };
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let empty = Amounts::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    check_amounts(limits, &limits_path, errors);
    check_amounts(requests, &requests_path, errors);
    for (resource, request) in requests {
        let overcommit = may_be_overcommitted(resource);
        let Some(limit) = limits.get(resource) else {
            if !overcommit {
                let detail = "Limit must be set for non overcommitable resources";
                errors.required(&limits_path, detail);
            }
            continue;
        };
        let (Ok(asked), Ok(most)) = (request.0.parse::<Quantity>(), limit.0.parse::<Quantity>())
        else {
            continue;
        };
        let relation = match asked.cmp(&most) {
            std::cmp::Ordering::Equal => continue,
            _ if !overcommit => "equal to",
            std::cmp::Ordering::Greater => "less than or equal to",
            std::cmp::Ordering::Less => continue,
        };
        let detail = format!("must be {relation} {resource} limit of {most}");
        errors.invalid(&requests_path, asked.to_string(), &detail);
    }
}
