//! What a pod counts for: what it asks for, or still has, until it has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};

use super::{Amounts, REQUESTS};
use crate::kinds::pod_spec::{self, HUGE_PAGES, Parsed, is_extended};
use crate::quantity::Quantity;

/// Resources of which a quota that limits them wants every container to say how much.
const SAID: [&str; 6] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

fn has_ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Until when a pod counts that is to go, in nanoseconds since the epoch, unless it has ended before: one whose node is lost
/// must not keep its place for ever.
pub fn counts_until(pod: &Pod) -> Option<i64> {
    if has_ended(pod) {
        return None;
    }
    let deadline = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds?;
    let deadline = i64::try_from(deadline.as_nanosecond()).unwrap_or(i64::MAX);
    Some(deadline.saturating_add(grace.saturating_mul(1_000_000_000)))
}

fn counts(pod: &Pod, now: i64) -> bool {
    !has_ended(pod) && counts_until(pod).is_none_or(|end| now <= end)
}

/// What the node tells of a pod's containers: until a resize is done they have other amounts than they ask for.
struct Told<'a> {
    statuses: HashMap<&'a str, &'a ContainerStatus>,
    /// The node will never have what the pod asks for.
    infeasible: bool,
}

impl<'a> Told<'a> {
    fn of(pod: &'a Pod) -> Self {
        let status = pod.status.as_ref();
        let inits = status.and_then(|status| status.init_container_statuses.as_ref());
        let mains = status.and_then(|status| status.container_statuses.as_ref());
        let all = [mains, inits].into_iter().flatten().flatten();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        let pending = conditions.find(|condition| condition.type_ == "PodResizePending");
        Self {
            statuses: all.map(|status| (status.name.as_str(), status)).collect(),
            infeasible: pending
                .is_some_and(|pending| pending.reason.as_deref() == Some("Infeasible")),
        }
    }

    /// What a container has, where the node tells it, and what it asks for, of the list that `of` takes from both.
    fn both(
        &self,
        container: &'a Container,
        of: fn(&Container) -> &pod_spec::Amounts,
        had: fn(&ResourceRequirements) -> Option<&pod_spec::Amounts>,
    ) -> (Parsed<'a>, Option<&'a ContainerStatus>) {
        let asked = pod_spec::parsed(of(container));
        let status = self.statuses.get(container.name.as_str()).copied();
        let Some((status, resources)) =
            status.and_then(|status| Some((status, status.resources.as_ref()?)))
        else {
            return (asked, None);
        };
        let mut most = match self.infeasible {
            true => Parsed::new(),
            false => asked,
        };
        if let Some(had) = had(resources) {
            pod_spec::raise(&mut most, pod_spec::parsed(had));
        }
        (most, Some(status))
    }

    /// Whichever is more of what a container asks for, what it has been given, and what it has.
    fn requests(&self, container: &'a Container) -> Parsed<'a> {
        let of = pod_spec::requests_of;
        let (mut most, status) = self.both(container, of, |told| told.requests.as_ref());
        let given = status.and_then(|status| status.allocated_resources.as_ref());
        if let Some(given) = given {
            pod_spec::raise(&mut most, pod_spec::parsed(given));
        }
        most
    }

    fn limits(&self, container: &'a Container) -> Parsed<'a> {
        let of = pod_spec::limits_of;
        self.both(container, of, |told| told.limits.as_ref()).0
    }
}

/// Adds what a pod counts for beside itself.
pub(super) fn add_usage(pod: &Pod, now: i64, usage: &mut Amounts) {
    if !counts(pod, now) {
        return;
    }
    usage.insert("pods".to_owned(), Quantity::from_units(1));
    let Some(spec) = &pod.spec else {
        return;
    };
    let told = Told::of(pod);
    let mut requests = pod_spec::requests_with(spec, |container| told.requests(container));
    let mut limits = pod_spec::limits_with(spec, |container| told.limits(container));
    let overhead = spec.overhead.as_ref().map(pod_spec::parsed);
    for (resource, more) in overhead.into_iter().flatten() {
        let asked = requests.entry(resource).or_default();
        *asked = asked.plus(more);
        if let Some(limit) = limits.get_mut(resource).filter(|limit| limit.sign() != 0) {
            *limit = limit.plus(more);
        }
    }
    for (name, amount) in named(&requests, &limits) {
        usage.insert(name, amount);
    }
}

/// Requests and limits by the names that quotas have for them.
fn named(requests: &Parsed<'_>, limits: &Parsed<'_>) -> Amounts {
    let mut named = Amounts::new();
    for (resource, amount) in requests {
        let plain = ["cpu", "memory", "ephemeral-storage"].contains(resource)
            || resource.starts_with(HUGE_PAGES);
        if plain {
            named.insert((*resource).to_owned(), *amount);
        }
        if plain || is_extended(resource) {
            named.insert(format!("{REQUESTS}{resource}"), *amount);
        }
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(resource) {
            named.insert(format!("limits.{resource}"), *amount);
        }
    }
    named
}

/// What containers do not say and a quota that limits `limited` wants them to, in Kubernetes' words.
pub(super) fn unsaid<'a>(pod: &Pod, limited: impl Iterator<Item = &'a str>) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if pod_spec::says_of_the_whole(spec) {
        return None;
    }
    let wanted: Vec<&str> = limited.filter(|name| SAID.contains(name)).collect();
    if wanted.is_empty() {
        return None;
    }
    let inits = spec.init_containers.iter().flatten();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in spec.containers.iter().chain(inits) {
        let said = named(
            &pod_spec::parsed(pod_spec::requests_of(container)),
            &pod_spec::parsed(pod_spec::limits_of(container)),
        );
        for name in wanted.iter().filter(|name| !said.contains_key(**name)) {
            missing.entry(*name).or_default().insert(&container.name);
        }
    }
    if missing.is_empty() {
        return None;
    }
    let each = missing.into_iter().map(|(name, containers)| {
        let containers: Vec<&str> = containers.into_iter().collect();
        format!("{name} for: {}", containers.join(","))
    });
    let each: Vec<String> = each.collect();
    Some(format!("must specify {}", each.join("; ")))
}
