//! Requests and limits: the rules that they keep. What follows from them is in [`super::amounts`].

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::amounts::{Amounts, amount, is_for_pods, limits_of, most_at_once, requests_of};
use crate::field::{ErrorList, Path};
use crate::names;
use crate::quantity::Quantity;

/// What the names of resources that are huge pages begin with.
pub(crate) const HUGE_PAGES: &str = "hugepages-";

/// Resources that are counted in whole units, beside those of devices.
const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// Resources that are measured, beside those of containers.
const MEASURED: [&str; 8] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "storage",
];

fn is_of_containers(resource: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&resource) || resource.starts_with(HUGE_PAGES)
}

fn is_standard(resource: &str) -> bool {
    is_of_containers(resource)
        || COUNTED.contains(&resource)
        || MEASURED.contains(&resource)
        || resource.starts_with("requests.hugepages-")
}

/// Whether a ResourceQuota may limit a resource whose name has no domain.
pub(in crate::kinds) fn is_of_quotas(resource: &str) -> bool {
    is_standard(resource) && resource != "storage"
}

/// Whether a resource is Kubernetes' own.
pub(crate) fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

/// Whether a name is one that devices of a node may be counted under.
pub(crate) fn is_extended(resource: &str) -> bool {
    !is_native(resource)
        && !resource.starts_with("requests.")
        && names::qualified_name(&format!("requests.{resource}")).is_empty()
}

/// Whether a resource comes in whole units.
fn is_whole_only(resource: &str) -> bool {
    is_extended(resource) || COUNTED.contains(&resource)
}

/// Whether more of it may be promised than there is.
pub(in crate::kinds) fn may_be_overcommitted(resource: &str) -> bool {
    is_native(resource) && !resource.starts_with(HUGE_PAGES)
}

/// Whose requests and limits are checked: these differ in what may be named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Container,
    Pod,
}

fn check_name(resource: &str, owner: Owner, path: &Path, errors: &mut ErrorList) {
    if owner == Owner::Pod {
        if !is_for_pods(resource) {
            errors.not_supported(path, resource, &["cpu", HUGE_PAGES, "memory"]);
        }
        return;
    }
    check_resource_name(resource, true, path, errors);
}

/// Checks what a resource is called: one that containers ask for, or any that there is.
pub(in crate::kinds) fn check_resource_name(
    resource: &str,
    of_containers: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let details = names::qualified_name(resource);
    if details.is_empty() && !resource.contains('/') && !is_standard(resource) {
        let detail = "must be a standard resource type or fully qualified";
        errors.invalid(path, resource, detail);
    }
    errors.invalid_each(path, resource, details);
    if !of_containers {
        return;
    }
    if !resource.contains('/') {
        if !is_of_containers(resource) {
            errors.invalid(path, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        let detail = "doesn't follow extended resource name standard";
        errors.invalid(path, resource, detail);
    }
}

/// Checks how much there is, or should be, of a resource. An amount that is none was refused when the object was decoded.
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
        errors.invalid(path, parsed.to_string(), names::NOT_NEGATIVE);
    }
    if is_whole_only(resource) && !parsed.is_whole() {
        errors.invalid(path, parsed.to_string(), "must be an integer");
    }
}

/// Whether so many bytes are pages of the size that the resource names.
fn is_whole_pages(resource: &str, amount: Quantity) -> bool {
    let size = resource
        .strip_prefix(HUGE_PAGES)
        .and_then(|size| size.parse::<Quantity>().ok());
    size.is_some_and(|size| {
        size.sign() > 0 && size.is_whole() && amount.units() % size.units() == 0
    })
}

fn check_pages(resource: &str, amount: &ApiQuantity, path: &Path, errors: &mut ErrorList) {
    let Ok(parsed) = amount.0.parse::<Quantity>() else {
        return;
    };
    if resource.starts_with(HUGE_PAGES) && !is_whole_pages(resource, parsed) {
        let detail = format!("{parsed} is not positive integer multiple of {resource}");
        errors.invalid(path, parsed.to_string(), &detail);
    }
}

/// Compares a request with its limit.
fn check_limit(
    resource: &str,
    request: Quantity,
    limit: Option<Quantity>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let overcommit = may_be_overcommitted(resource);
    let Some(limit) = limit else {
        if !overcommit {
            let detail = "Limit must be set for non overcommitable resources";
            errors.required(&path.child("limits"), detail);
        }
        return;
    };
    let relation = match request.cmp(&limit) {
        std::cmp::Ordering::Equal => return,
        _ if !overcommit => "equal to",
        std::cmp::Ordering::Greater => "less than or equal to",
        std::cmp::Ordering::Less => return,
    };
    let detail = format!("must be {relation} {resource} limit of {limit}");
    errors.invalid(&path.child("requests"), request.to_string(), &detail);
}

fn check(resources: &ResourceRequirements, owner: Owner, path: &Path, errors: &mut ErrorList) {
    let empty = Amounts::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    for (resource, limit) in limits {
        let path = path.child("limits").key(resource);
        check_name(resource, owner, &path, errors);
        check_amount(resource, limit, &path, errors);
        check_pages(resource, limit, &path, errors);
    }
    for (resource, request) in requests {
        let key_path = path.child("requests").key(resource);
        check_name(resource, owner, &key_path, errors);
        check_amount(resource, request, &key_path, errors);
        if let Some(asked) = amount(requests, resource) {
            check_limit(resource, asked, amount(limits, resource), path, errors);
        }
        check_pages(resource, request, &key_path, errors);
    }
    let has =
        |found: &dyn Fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|name| found(name));
    if has(&|name| name.starts_with(HUGE_PAGES)) && !has(&|name| ["cpu", "memory"].contains(&name))
    {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

/// Checks the requests and limits of one container, or what else is counted as a container's.
pub(in crate::kinds) fn validate(
    resources: &ResourceRequirements,
    path: &Path,
    errors: &mut ErrorList,
) {
    check(resources, Owner::Container, path, errors);
}

/// Checks which of the pod's claims a container uses.
pub(super) fn validate_claims(
    resources: &ResourceRequirements,
    claims: &BTreeSet<&str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("claims");
    let mut seen = BTreeSet::new();
    for (index, claim) in resources.claims.iter().flatten().enumerate() {
        let path = path.index(index);
        let name = claim.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let whole = match claim.request.as_deref().unwrap_or_default() {
            "" => name.to_owned(),
            request => {
                let details = names::dns1123_label(request);
                errors.invalid_each(&path.child("request"), request, details);
                format!("{name}/{request}")
            }
        };
        if seen.contains(&whole) {
            errors.duplicate(&path, &whole);
        } else {
            seen.insert(whole);
        }
        if !claims.contains(name) {
            let known: Vec<&str> = claims.iter().copied().collect();
            let mut detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            match known.is_empty() {
                true => detail.push_str(" which is empty"),
                false => detail = format!("{detail}: {}", known.join(", ")),
            }
            errors.not_found_among(&path, name, &detail);
        }
    }
}

/// Checks the requests and limits of the pod as a whole, which have room for those of its containers.
pub(super) fn validate_pod(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let Some(resources) = &spec.resources else {
        return;
    };
    for _ in resources.claims.iter().flatten() {
        let detail = "claims may not be set for Resources at pod-level";
        errors.forbidden(&path.child("claims"), detail);
    }
    check(resources, Owner::Pod, path, errors);
    validate_claims(resources, &super::validation::claims(spec), path, errors);
    let empty = Amounts::new();
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    for (resource, all) in most_at_once(spec, requests_of) {
        if let Some(asked) = amount(requests, resource).filter(|asked| *asked < all)
            && is_for_pods(resource)
        {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {all}");
            let path = path.child("requests").key(resource);
            errors.invalid(&path, asked.to_string(), &detail);
        }
    }
    for (resource, all) in most_at_once(spec, limits_of) {
        if let Some(most) = amount(limits, resource).filter(|most| *most < all)
            && resource.starts_with(HUGE_PAGES)
        {
            let detail =
                format!("must be greater than or equal to aggregate container limits of {all}");
            let path = path.child("limits").key(resource);
            errors.invalid(&path, most.to_string(), &detail);
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        for resource in limits_of(container).keys() {
            let limit = amount(limits_of(container), resource);
            let (Some(limit), Some(most)) = (limit, amount(limits, resource)) else {
                continue;
            };
            if limit > most {
                let path = path.child("containers").index(index).key(resource);
                let detail = format!("must be less than or equal to pod limits of {most}");
                errors.invalid(&path.child("limits"), limit.to_string(), &detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(check: impl Fn(&mut ErrorList)) -> Vec<String> {
        let mut errors = ErrorList::default();
        check(&mut errors);
        errors.told()
    }

    fn container(resources: Value) -> Vec<String> {
        let resources: ResourceRequirements = serde_json::from_value(resources).unwrap();
        told(|errors| validate(&resources, &Path::new("r"), errors))
    }

    #[test]
    fn names_are_those_of_containers_or_have_a_domain() {
        for name in [
            "cpu",
            "memory",
            "ephemeral-storage",
            "example.com/gpu",
            "kubernetes.io/x",
        ] {
            let told = container(json!({"limits": {name: "1"}, "requests": {name: "1"}}));
            assert!(told.is_empty(), "{told:?}");
        }
        let standard = "must be a standard resource type or fully qualified";
        let of_containers = "must be a standard resource for containers";
        assert_eq!(
            container(json!({"limits": {"gpu": "1"}})),
            [
                format!("r.limits[gpu]: Invalid value: \"gpu\": {standard}"),
                format!("r.limits[gpu]: Invalid value: \"gpu\": {of_containers}"),
            ]
        );
        assert_eq!(container(json!({"limits": {"pods": "1"}})).len(), 1);
        let bad = container(json!({"limits": {"a b": "1"}}));
        assert!(bad[0].contains("name part must consist") && bad[1].ends_with(of_containers));
        let extended = container(json!({"limits": {"requests.example.com/gpu": "1"}}));
        assert!(extended[0].ends_with("doesn't follow extended resource name standard"));
    }

    #[test]
    fn amounts_are_told_in_their_canonical_form() {
        assert_eq!(
            container(json!({"limits": {"memory": "-1024Ki", "example.com/gpu": "1.5"}})),
            [
                "r.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
                "r.limits[memory]: Invalid value: \"-1Mi\": must be greater than or equal to 0",
            ]
        );
        assert_eq!(
            container(
                json!({"limits": {"cpu": "1000m"}, "requests": {"cpu": "2.5", "example.com/gpu": "1"}})
            ),
            [
                "r.requests: Invalid value: \"2500m\": must be less than or equal to cpu limit of 1",
                "r.limits: Required value: Limit must be set for non overcommitable resources",
            ]
        );
    }

    #[test]
    fn huge_pages_are_whole_and_beside_others() {
        let pages = |amount: &str| json!({"hugepages-2Mi": amount});
        assert_eq!(
            container(json!({"limits": pages("3Mi"), "requests": pages("3Mi")})),
            [
                "r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                "r.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                "r: Forbidden: HugePages require cpu or memory",
            ]
        );
        let with_memory = json!({"hugepages-2Mi": "4Mi", "memory": "1Gi"});
        assert!(container(json!({"limits": with_memory})).is_empty());
    }

    #[test]
    fn a_pod_has_room_for_its_containers() {
        let spec: PodSpec = serde_json::from_value(json!({
            "resources": {"requests": {"cpu": "1", "example.com/gpu": "1"}, "limits": {"cpu": "2"}},
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}},
                {"name": "b", "resources": {"requests": {"cpu": "500m"}}}
            ]
        }))
        .unwrap();
        assert_eq!(
            told(|errors| validate_pod(&spec, &Path::new("r"), errors)),
            [
                "r.requests[example.com/gpu]: Unsupported value: \"example.com/gpu\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
                "r.limits: Required value: Limit must be set for non overcommitable resources",
                "r.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1500m",
                "r.containers[0][cpu].limits: Invalid value: \"3\": must be less than or equal to pod limits of 2",
            ]
        );
    }

    #[test]
    fn claims_are_the_pods() {
        let resources: ResourceRequirements = serde_json::from_value(json!({
            "claims": [
                {"name": "a"}, {"name": "a", "request": "x"}, {"name": "a", "request": "x"},
                {"name": ""}, {"name": "b"}
            ]
        }))
        .unwrap();
        let known = BTreeSet::from(["a", "c"]);
        assert_eq!(
            told(|errors| validate_claims(&resources, &known, &Path::new("r"), errors)),
            [
                "r.claims[2]: Duplicate value: \"a/x\"",
                "r.claims[3]: Required value",
                "r.claims[4]: Not found: \"b\": must be one of the names in pod.spec.resourceClaims: a, c",
            ]
        );
    }
}
