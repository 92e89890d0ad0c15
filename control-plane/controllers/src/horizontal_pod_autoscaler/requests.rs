//! What a pod asks for of a resource, as utilization is measured against it.

use std::collections::BTreeMap;

use gantry_api::kinds::pod_spec::requests_at_once;
use gantry_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

/// Whether a pod as a whole may ask for it.
fn is_for_pods(resource: &str) -> bool {
    ["cpu", "memory"].contains(&resource) || resource.starts_with("hugepages-")
}

fn amount(amounts: Option<&BTreeMap<String, Written>>, resource: &str) -> Option<Quantity> {
    amounts?.get(resource)?.0.parse().ok()
}

/// What the pod asks for in thousandths: in one of its containers where that is named, otherwise as a whole if it says so, and
/// otherwise in all containers that run together. Each of those has to ask for some.
pub(super) fn request(pod: &Pod, container: Option<&str>, resource: &str) -> Result<i64, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let own = spec
        .resources
        .as_ref()
        .and_then(|own| own.requests.as_ref());
    let says_so = own.is_some_and(|own| own.keys().any(|resource| is_for_pods(resource)));
    if container.is_none() && says_so {
        let all = requests_at_once(spec).get(resource).copied();
        let overhead = amount(spec.overhead.as_ref(), resource);
        let all = match (all, overhead) {
            (Some(all), Some(overhead)) => Some(all.plus(overhead)),
            (all, overhead) => all.or(overhead),
        };
        let missing = || format!("missing pod-level request for {resource} in Pod {name}");
        return all.map(|all| all.millis()).ok_or_else(missing);
    }
    let init = spec.init_containers.iter().flatten();
    let staying = init.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let found = amount(requests, resource).map(|amount| amount.millis());
        found.ok_or_else(|| {
            let container = &container.name;
            format!("missing request for {resource} in container {container} of Pod {name}")
        })
    };
    let mut all = spec.containers.iter().chain(staying);
    match container {
        Some(wanted) => match all.find(|container| container.name == wanted) {
            Some(found) => of(found),
            None => Err(format!("container {wanted} not found in Pod {name}")),
        },
        None => all.try_fold(
            0i64,
            |sum, container| Ok(sum.saturating_add(of(container)?)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
    }

    fn container(name: &str, cpu: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn containers_that_run_together_are_added_up() {
        let mut sidecar = container("side", "50m");
        let init = container("init", "4");
        if let Some(members) = sidecar.as_object_mut() {
            members.insert("restartPolicy".to_owned(), json!("Always"));
        }
        let spec = json!({"containers": [container("a", "100m"), container("b", "200m")], "initContainers": [init, sidecar]});
        let pod = pod(spec);
        assert_eq!(request(&pod, None, "cpu"), Ok(350));
        assert_eq!(request(&pod, Some("b"), "cpu"), Ok(200));
        assert_eq!(request(&pod, Some("side"), "cpu"), Ok(50));
        let missing = request(&pod, Some("init"), "cpu");
        assert_eq!(missing, Err("container init not found in Pod p".to_owned()));
        let missing = request(&pod, None, "memory");
        let why = "missing request for memory in container a of Pod p";
        assert_eq!(missing, Err(why.to_owned()));
    }

    #[test]
    fn what_a_pod_says_as_a_whole_goes_before_its_containers() {
        let spec = json!({
            "containers": [container("a", "100m"), {"name": "b"}],
            "resources": {"requests": {"cpu": "1"}},
            "overhead": {"cpu": "10m"},
        });
        let pod = pod(spec);
        assert_eq!(request(&pod, None, "cpu"), Ok(1010));
        assert_eq!(request(&pod, Some("a"), "cpu"), Ok(100));
        let why = "missing pod-level request for memory in Pod p";
        assert_eq!(request(&pod, None, "memory"), Err(why.to_owned()));
    }
}
