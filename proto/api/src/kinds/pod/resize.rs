//! What the subresource `resize` writes of a pod: how much of processors and memory its containers, and the pod as a whole, ask
//! for and may use.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::annotations;
use crate::field::{ErrorList, Path};
use crate::kinds::internal::Internal;
use crate::kinds::pod_spec::{self, MIRROR};

/// The resources that a running pod may get more or less of.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

type Amounts = BTreeMap<String, Quantity>;

/// Takes over everything but resources and what their change does to a container. Other containers than there are stay, to
/// be refused.
pub(super) fn prepare(new: &mut Pod, old: &Pod) {
    let before = old.spec.clone().unwrap_or_default();
    let asked = new.spec.get_or_insert_default();
    let count = |spec: &PodSpec| {
        let init = spec.init_containers.as_ref().map_or(0, Vec::len);
        (spec.containers.len(), init)
    };
    if count(asked) != count(&before) {
        return;
    }
    let asked = std::mem::take(asked);
    let init = asked.init_containers.filter(|list| !list.is_empty());
    let old_init = before.init_containers;
    new.spec = Some(PodSpec {
        containers: merged(asked.containers, &before.containers),
        init_containers: match init {
            Some(list) => Some(merged(list, old_init.as_deref().unwrap_or_default())),
            None => old_init,
        },
        resources: asked.resources,
        ..before
    });
    new.status.clone_from(&old.status);
    let (metadata, kept) = (&mut new.metadata, &old.metadata);
    metadata.labels.clone_from(&kept.labels);
    metadata.annotations.clone_from(&kept.annotations);
    metadata.finalizers.clone_from(&kept.finalizers);
    metadata.owner_references.clone_from(&kept.owner_references);
}

fn merged(new: Vec<Container>, old: &[Container]) -> Vec<Container> {
    let mut both = new.iter().zip(old);
    if both.any(|(container, before)| container.name != before.name) {
        return new;
    }
    let both = new.into_iter().zip(old);
    let merge = |(container, before): (Container, &Container)| Container {
        resources: container.resources,
        resize_policy: container.resize_policy,
        ..before.clone()
    };
    both.map(merge).collect()
}

/// Checks what [`prepare`] made.
pub(super) fn validate(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let empty = PodSpec::default();
    let spec = new.spec.as_ref().unwrap_or(&empty);
    let before = old.spec.as_ref().unwrap_or(&empty);
    if let Some(detail) = never(old, before) {
        errors.forbidden(&Path::new("[]"), detail);
        return;
    }
    let path = Path::new("spec");
    let told = errors.0.len();
    annotations::validate(new, errors);
    let name = new.metadata.name.as_deref();
    pod_spec::validate_for_pod(new.spec.as_ref(), name, &path, errors);
    let class = class(old);
    if class.unwrap_or_else(|| pod_spec::qos_class(before)) != pod_spec::qos_class(spec) {
        let shown = new.status.as_ref();
        let shown = shown.and_then(|status| status.qos_class.as_deref());
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.invalid(&path, shown.unwrap_or_default(), detail);
    }
    if !node_tells_resources(old) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let (now, then) = (spec.resources.as_ref(), before.resources.as_ref());
    let is_same_whole = if is_set(now) || is_set(then) {
        check_whole(now, then, &path, errors)
    } else {
        printed(now) == printed(then)
    };
    let claims = old.status.as_ref();
    let claims = claims.and_then(|status| status.node_allocatable_resource_claim_statuses.as_ref());
    if claims.is_some_and(|claims| !claims.is_empty()) {
        let detail = "pods with node allocatable resource claims cannot be resized";
        errors.forbidden(&path, detail);
    }
    if check_order(spec, before, &path, errors) {
        check_containers(spec, before, &path, errors);
        if errors.0.len() == told && !is_same_whole {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
}

/// Why a pod is never resized.
fn never(pod: &Pod, spec: &PodSpec) -> Option<&'static str> {
    let annotations = pod.metadata.annotations.as_ref();
    if annotations.is_some_and(|annotations| annotations.contains_key(MIRROR)) {
        return Some("static pods cannot be resized");
    }
    let on_windows = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    on_windows.then_some("windows pods cannot be resized")
}

/// The class that a pod was given.
fn class(pod: &Pod) -> Option<&str> {
    let class = pod.status.as_ref()?.qos_class.as_deref()?;
    Some(class).filter(|class| !class.is_empty())
}

/// Whether the pod's node can resize it: such a node tells what the containers have that run.
fn node_tells_resources(pod: &Pod) -> bool {
    let status = pod.status.iter();
    let mut statuses = status.flat_map(|status| status.container_statuses.iter().flatten());
    let running = statuses.find(|status| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.running.is_some())
    });
    running.is_none_or(|status| status.resources.is_some())
}

fn limits(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources?.limits.as_ref()
}

fn requests(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources?.requests.as_ref()
}

fn is_set(resources: Option<&ResourceRequirements>) -> bool {
    let all = [limits(resources), requests(resources)];
    all.iter().flatten().any(|amounts| !amounts.is_empty())
}

fn printed(resources: Option<&ResourceRequirements>) -> Internal {
    Internal::of(&resources, "*ResourceRequirements")
}

/// Whether something that had an amount has none any more.
fn is_removed(now: Option<&Amounts>, then: Option<&Amounts>) -> bool {
    let mut had = then.into_iter().flat_map(BTreeMap::keys);
    had.any(|resource| now.is_none_or(|now| !now.contains_key(resource)))
}

/// The amounts with those before of what may be resized.
fn kept(now: Option<&Amounts>, then: Option<&Amounts>) -> Option<Amounts> {
    let resizable = |resource: &str| RESIZABLE.contains(&resource);
    let now = now.into_iter().flatten();
    let then = then.into_iter().flatten();
    let others = now.filter(|(resource, _)| !resizable(resource));
    let all = others.chain(then.filter(|(resource, _)| resizable(resource)));
    let all: Amounts = all
        .map(|(resource, amount)| (resource.clone(), amount.clone()))
        .collect();
    Some(all).filter(|all| !all.is_empty())
}

/// Checks the resources of the pod as a whole; answers whether nothing else of them has changed than may.
fn check_whole(
    now: Option<&ResourceRequirements>,
    then: Option<&ResourceRequirements>,
    path: &Path,
    errors: &mut ErrorList,
) -> bool {
    let own = path.child("resources");
    let Some(resources) = now else {
        errors.forbidden(&own, "pod-level resources cannot be removed");
        return false;
    };
    if is_removed(requests(now), requests(then)) {
        let detail = "pod-level resource requests cannot be removed";
        errors.forbidden(&own.child("requests"), detail);
    }
    if is_removed(limits(now), limits(then)) {
        let detail = "pod-level resource limits cannot be removed";
        errors.forbidden(&own.child("limits"), detail);
    }
    let resources = ResourceRequirements {
        limits: kept(limits(now), limits(then)),
        requests: kept(requests(now), requests(then)),
        claims: resources.claims.clone(),
    };
    let claims = resources.claims.as_ref();
    let has_claims = claims.is_some_and(|claims| !claims.is_empty());
    let is_nothing = then.is_none() && !is_set(Some(&resources)) && !has_claims;
    let is_same = printed(Some(&resources).filter(|_| !is_nothing)) == printed(then);
    if !is_same {
        let detail = "only cpu and memory resources are mutable at pod-level";
        errors.forbidden(path, detail);
    }
    is_same
}

fn init(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// Checks that the containers are the same, one by one; answers whether they are.
fn check_order(spec: &PodSpec, before: &PodSpec, path: &Path, errors: &mut ErrorList) -> bool {
    let mut is_same = true;
    for (what, now, then) in [
        (
            "containers",
            spec.containers.as_slice(),
            before.containers.as_slice(),
        ),
        ("initContainers", init(spec), init(before)),
    ] {
        let path = path.child(what);
        if now.len() != then.len() {
            let detail = format!("{what} may not be added or removed on resize");
            errors.forbidden(&path, &detail);
            is_same = false;
            continue;
        }
        for (index, (container, before)) in now.iter().zip(then).enumerate() {
            if container.name != before.name {
                let detail = format!("{what} may not be renamed or reordered on resize");
                errors.forbidden(&path.index(index).child("name"), &detail);
                is_same = false;
            }
        }
    }
    is_same
}

/// Checks that containers which are the same keep everything but amounts, and have one of everything that they had one of.
fn check_containers(spec: &PodSpec, before: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let inits = init(spec).iter().zip(init(before)).enumerate();
    let containers = spec.containers.iter().zip(&before.containers).enumerate();
    for (what, pairs) in [
        ("initContainers", inits.clone()),
        ("containers", containers),
    ] {
        for (index, (container, before)) in pairs {
            let path = path.child(what).index(index).child("resources");
            let (now, then) = (container.resources.as_ref(), before.resources.as_ref());
            if is_removed(requests(now), requests(then)) {
                let detail = "resource requests cannot be removed";
                errors.forbidden(&path.child("requests"), detail);
            }
            if is_removed(limits(now), limits(then)) {
                let detail = "resource limits cannot be removed";
                errors.forbidden(&path.child("limits"), detail);
            }
        }
    }
    for (container, before) in spec.containers.iter().zip(&before.containers) {
        if !is_same_otherwise(container, before) {
            errors.forbidden(path, "only cpu and memory resources are mutable");
        }
    }
    for (index, (container, before)) in inits {
        if !is_same_otherwise(container, before) {
            let path = path.child("initContainers").index(index);
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            errors.forbidden(&path, detail);
        }
    }
}

/// Whether a container is the same but for what may be resized. One with claims of devices never is.
fn is_same_otherwise(container: &Container, before: &Container) -> bool {
    const FORM: &str = "Container";
    let (now, then) = (container.resources.as_ref(), before.resources.as_ref());
    let resources = ResourceRequirements {
        limits: kept(limits(now), limits(then)),
        requests: kept(requests(now), requests(then)),
        claims: None,
    };
    let container = Container {
        resources: Some(resources),
        ..container.clone()
    };
    container == *before || Internal::of(&container, FORM) == Internal::of(before, FORM)
}

#[cfg(test)]
mod tests;
