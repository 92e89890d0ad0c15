//! What a pod's containers ask for, taken together, and the quality of service that follows from it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

pub(crate) type Amounts = BTreeMap<String, ApiQuantity>;

/// Amounts by resource, of a pod or a part of it.
pub type Parsed<'a> = BTreeMap<&'a str, Quantity>;

static NONE: Amounts = BTreeMap::new();

/// How much of a resource there is; none where none is given.
pub(super) fn amount(amounts: &Amounts, resource: &str) -> Option<Quantity> {
    amounts.get(resource)?.0.parse().ok()
}

fn limits(resources: Option<&ResourceRequirements>) -> &Amounts {
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    limits.unwrap_or(&NONE)
}

fn requests(resources: Option<&ResourceRequirements>) -> &Amounts {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.unwrap_or(&NONE)
}

/// A container's limits.
pub(crate) fn limits_of(container: &Container) -> &Amounts {
    limits(container.resources.as_ref())
}

/// Whether requests and limits of a pod as a whole may be of it.
pub(super) fn is_for_pods(resource: &str) -> bool {
    ["cpu", "memory"].contains(&resource) || resource.starts_with("hugepages-")
}

/// A container's requests.
pub(crate) fn requests_of(container: &Container) -> &Amounts {
    requests(container.resources.as_ref())
}

/// The amounts of a list, but for those that are none.
pub(crate) fn parsed(amounts: &Amounts) -> Parsed<'_> {
    let each = amounts.keys();
    each.filter_map(|resource| Some((resource.as_str(), amount(amounts, resource)?)))
        .collect()
}

fn add<'a>(sum: &mut Parsed<'a>, amounts: &Parsed<'a>) {
    for (resource, more) in amounts {
        let all = sum.entry(*resource).or_default();
        *all = all.plus(*more);
    }
}

/// Raises what there is of each resource to what there is of it elsewhere.
pub(crate) fn raise<'a>(most: &mut Parsed<'a>, amounts: Parsed<'a>) {
    for (resource, needed) in amounts {
        let found = most.entry(resource).or_insert(needed);
        *found = needed.max(*found);
    }
}

/// The most that the containers have, of requests or of limits, at once: those that stay together, and before them one
/// initialising after the other, each beside those that were told to stay.
pub(super) fn most_at_once(spec: &PodSpec, of: fn(&Container) -> &Amounts) -> Parsed<'_> {
    at_once(spec, |container| parsed(of(container)))
}

/// As [`most_at_once`], of whatever the containers are said to have.
fn at_once<'a>(spec: &'a PodSpec, of: impl Fn(&'a Container) -> Parsed<'a>) -> Parsed<'a> {
    let mut staying = Parsed::new();
    let mut most = Parsed::new();
    for container in spec.init_containers.iter().flatten() {
        let mut now = staying.clone();
        add(&mut now, &of(container));
        if container.restart_policy.as_deref() == Some("Always") {
            staying.clone_from(&now);
        }
        raise(&mut most, now);
    }
    for container in &spec.containers {
        add(&mut staying, &of(container));
    }
    raise(&mut most, staying);
    most
}

/// What a pod asks for as a whole: what it says of itself, and otherwise the most that its containers ask for at once.
pub fn requests_at_once(spec: &PodSpec) -> Parsed<'_> {
    requests_with(spec, |container| parsed(requests_of(container)))
}

/// As [`requests_at_once`], of its limits.
pub fn limits_at_once(spec: &PodSpec) -> Parsed<'_> {
    limits_with(spec, |container| parsed(limits_of(container)))
}

/// As [`requests_at_once`], where a container asks for what `of` says.
pub(crate) fn requests_with<'a>(
    spec: &'a PodSpec,
    of: impl Fn(&'a Container) -> Parsed<'a>,
) -> Parsed<'a> {
    of_the_whole(spec, requests, of)
}

/// As [`requests_with`], of limits.
pub(crate) fn limits_with<'a>(
    spec: &'a PodSpec,
    of: impl Fn(&'a Container) -> Parsed<'a>,
) -> Parsed<'a> {
    of_the_whole(spec, limits, of)
}

/// Whether something is said of the pod as a whole.
pub(crate) fn says_of_the_whole(spec: &PodSpec) -> bool {
    let whole = spec.resources.as_ref();
    let mut named = limits(whole).keys().chain(requests(whole).keys());
    named.any(|resource| is_for_pods(resource))
}

fn of_the_whole<'a>(
    spec: &'a PodSpec,
    own: fn(Option<&ResourceRequirements>) -> &Amounts,
    of: impl Fn(&'a Container) -> Parsed<'a>,
) -> Parsed<'a> {
    let mut all = at_once(spec, of);
    let own = own(spec.resources.as_ref());
    for resource in own.keys().filter(|resource| is_for_pods(resource)) {
        if let Some(amount) = amount(own, resource) {
            all.insert(resource, amount);
        }
    }
    all
}

/// How readily the pod gives way under pressure: `Guaranteed`, `Burstable` or `BestEffort`. What is said of the pod as a whole
/// goes before what its containers say.
pub(crate) fn qos_class(spec: &PodSpec) -> &'static str {
    let (mut any, mut all) = (false, true);
    let whole = spec.resources.as_ref().filter(|_| says_of_the_whole(spec));
    let init = spec.init_containers.iter().flatten();
    let containers = spec.containers.iter().chain(init);
    let each: Vec<Option<&ResourceRequirements>> = match whole {
        Some(whole) => vec![Some(whole)],
        None => containers
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    for resources in each {
        for name in ["cpu", "memory"] {
            let positive =
                |amounts: &Amounts| amount(amounts, name).filter(|amount| amount.sign() > 0);
            let (request, limit) = (positive(requests(resources)), positive(limits(resources)));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn containers_that_initialise_follow_each_other() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let spec = spec(json!({
            "containers": [{"name": "a", "resources": cpu("1")}, {"name": "b", "resources": cpu("2")}],
            "initContainers": [
                {"name": "i", "resources": cpu("5")},
                {"name": "s", "restartPolicy": "Always", "resources": cpu("500m")},
                {"name": "j", "resources": cpu("4")}
            ]
        }));
        let most = most_at_once(&spec, requests_of);
        assert_eq!(
            most.get("cpu").map(ToString::to_string).as_deref(),
            Some("5")
        );
    }

    #[test]
    fn the_pod_as_a_whole_decides_its_class() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let container = json!({"name": "a"});
        let class = |pod: Value, container: &Value| {
            qos_class(&spec(json!({"resources": pod, "containers": [container]})))
        };
        assert_eq!(class(json!({}), &container), "BestEffort");
        let guaranteed = json!({"limits": both, "requests": both});
        assert_eq!(class(guaranteed.clone(), &container), "Guaranteed");
        let whole = json!({"name": "a", "resources": guaranteed});
        assert_eq!(class(json!({}), &whole), "Guaranteed");
        assert_eq!(
            class(json!({"requests": {"cpu": "1"}}), &whole),
            "Burstable"
        );
    }
}
