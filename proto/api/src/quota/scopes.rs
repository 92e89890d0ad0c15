//! Scopes: which of the objects that a quota is about count for it.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodAffinityTerm, ResourceQuota};

use super::Item;
use crate::kinds::persistent_volume_claim::classes_of_attributes;
use crate::kinds::pod_spec;

/// One requirement of a quota.
pub(super) struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: &'a [String],
}

/// All requirements: an object must meet every one.
pub(super) fn all(quota: &ResourceQuota) -> impl Iterator<Item = Scope<'_>> {
    let plain = quota.spec.iter().flat_map(|spec| &spec.scopes).flatten();
    let plain = plain.map(|name| Scope {
        name,
        operator: "Exists",
        values: &[],
    });
    let selector = quota.spec.iter().flat_map(|spec| &spec.scope_selector);
    let selector = selector
        .flat_map(|selector| &selector.match_expressions)
        .flatten();
    plain.chain(selector.map(|requirement| Scope {
        name: &requirement.scope_name,
        operator: &requirement.operator,
        values: requirement.values.as_deref().unwrap_or_default(),
    }))
}

impl Scope<'_> {
    pub(super) fn has(&self, item: &Item<'_>) -> bool {
        match item {
            Item::Pod(pod) => self.has_pod(pod),
            Item::Claim(claim) => self.has_claim(claim),
            // Nothing else is ever in a scope.
            Item::Service(_) | Item::Other(_) => false,
        }
    }

    fn has_pod(&self, pod: &Pod) -> bool {
        let class = pod.spec.as_ref();
        let class = class.and_then(|spec| spec.priority_class_name.as_deref());
        match self.name {
            "Terminating" => is_terminating(pod),
            "NotTerminating" => !is_terminating(pod),
            "BestEffort" => is_best_effort(pod),
            "NotBestEffort" => !is_best_effort(pod),
            "PriorityClass" => self.suits(class.filter(|class| !class.is_empty())),
            "CrossNamespacePodAffinity" => looks_elsewhere(pod),
            _ => false,
        }
    }

    fn has_claim(&self, claim: &PersistentVolumeClaim) -> bool {
        let classes = classes_of_attributes(claim);
        self.name == "VolumeAttributesClass"
            && match classes.is_empty() {
                true => self.suits(None),
                false => classes.into_iter().any(|class| self.suits(Some(class))),
            }
    }

    /// Whether what an object says, or does not say, is what the operator asks for.
    fn suits(&self, said: Option<&str>) -> bool {
        let is_listed = said.is_some_and(|said| self.values.iter().any(|value| value == said));
        match self.operator {
            "Exists" => said.is_some(),
            "DoesNotExist" => said.is_none(),
            "In" => is_listed,
            "NotIn" => !is_listed,
            _ => false,
        }
    }
}

/// Whether a pod ends by itself after some time, however long.
fn is_terminating(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.active_deadline_seconds)
        .is_some_and(|seconds| seconds >= 0)
}

fn is_best_effort(pod: &Pod) -> bool {
    let told = pod.status.as_ref();
    let told = told.and_then(|status| status.qos_class.as_deref());
    let computed = || pod.spec.as_ref().map_or("BestEffort", pod_spec::qos_class);
    told.filter(|class| !class.is_empty())
        .unwrap_or_else(computed)
        == "BestEffort"
}

/// Whether a pod asks for, or against, the neighbourhood of pods of other namespaces.
fn looks_elsewhere(pod: &Pod) -> bool {
    let elsewhere = |term: &PodAffinityTerm| {
        let namespaces = term.namespaces.as_deref().unwrap_or_default();
        !namespaces.is_empty() || term.namespace_selector.is_some()
    };
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else {
        return false;
    };
    let near = affinity.pod_affinity.as_ref();
    let far = affinity.pod_anti_affinity.as_ref();
    let required = [
        near.and_then(|near| {
            near.required_during_scheduling_ignored_during_execution
                .as_ref()
        }),
        far.and_then(|far| {
            far.required_during_scheduling_ignored_during_execution
                .as_ref()
        }),
    ];
    let preferred = [
        near.and_then(|near| {
            near.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }),
        far.and_then(|far| {
            far.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }),
    ];
    let mut preferred = preferred.into_iter().flatten().flatten();
    required.into_iter().flatten().flatten().any(elsewhere)
        || preferred.any(|weighted| elsewhere(&weighted.pod_affinity_term))
}
