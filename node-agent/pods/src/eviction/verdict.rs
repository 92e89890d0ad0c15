//! Who has to go, and in which words: a kubelet's rules for local storage, as pure functions.

use std::collections::BTreeMap;

use gantry_base::quantity::Quantity;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::usage::Usage;
use crate::disk::Share;
use crate::limits;
use crate::pod::containers;

/// The resource's name in Kubernetes.
pub(super) const STORAGE: &str = "ephemeral-storage";
/// Pods of this priority and above are the cluster's own and stay.
const CRITICAL: i32 = 2_000_000_000;

/// What a pod takes of the node's disk.
#[derive(Clone, Debug, Default)]
pub(super) struct PodUsage {
    /// Writable layers and logs, by container.
    pub(super) containers: BTreeMap<String, Usage>,
    /// By volume; none that is in memory or the host's.
    pub(super) volumes: BTreeMap<String, Usage>,
    /// What cannot be told to be either's.
    pub(super) rest: Usage,
}

impl PodUsage {
    pub(super) fn total(&self) -> Usage {
        let mut total = self.rest;
        for part in self.containers.values().chain(self.volumes.values()) {
            total += *part;
        }
        total
    }
}

fn bytes(amount: u64) -> Quantity {
    Quantity::from_bytes(i64::try_from(amount).unwrap_or(i64::MAX))
}

/// The disk limits of a pod, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// By emptyDir on disk, with the text that was written.
    volumes: BTreeMap<String, (u64, String)>,
    pod: Option<u64>,
    containers: BTreeMap<String, (u64, String)>,
}

impl Limits {
    pub(super) fn of(spec: &PodSpec) -> Self {
        let positive = |text: &str| -> Option<(u64, String)> {
            let quantity: Quantity = text.parse().ok()?;
            let amount = u64::try_from(quantity.units()).ok()?;
            (amount > 0).then(|| (amount, quantity.to_string()))
        };
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
            let source = volume.empty_dir.as_ref()?;
            let on_disk = source.medium.as_deref() != Some("Memory");
            let limit = source.size_limit.as_ref().filter(|_| on_disk)?;
            Some((volume.name.clone(), positive(&limit.0)?))
        });
        let own = containers(spec).filter_map(|(_, container)| {
            let limits = container.resources.as_ref()?.limits.as_ref()?;
            Some((container.name.clone(), positive(&limits.get(STORAGE)?.0)?))
        });
        Self {
            volumes: volumes.collect(),
            pod: limits::total(spec, STORAGE).and_then(|limit| u64::try_from(limit).ok()),
            containers: own.collect(),
        }
    }

    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Why a pod has to go that takes so much; `None` while it keeps its limits.
    pub(super) fn exceeded(&self, usage: &PodUsage) -> Option<String> {
        for (name, (limit, written)) in &self.volumes {
            if usage
                .volumes
                .get(name)
                .is_some_and(|used| used.bytes > *limit)
            {
                return Some(format!(
                    "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{written}\". "
                ));
            }
        }
        if let Some(limit) = self.pod
            && usage.total().bytes > limit
        {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                bytes(limit)
            ));
        }
        let mut exceeded = self.containers.iter().filter(|(name, (limit, _))| {
            let used = usage.containers.get(*name);
            used.is_some_and(|used| used.bytes > *limit)
        });
        exceeded.next().map(|(name, (_, written))| {
            format!("Container {name} exceeded its local ephemeral storage limit \"{written}\". ")
        })
    }
}

/// What of the node's disk runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Bytes,
    Inodes,
}

impl Signal {
    fn of(self, usage: Usage) -> u64 {
        match self {
            Self::Bytes => usage.bytes,
            Self::Inodes => usage.inodes,
        }
    }

    /// Requests are in bytes; nobody requests inodes.
    fn request(self, spec: &PodSpec) -> u64 {
        match self {
            Self::Bytes => limits::requested(spec, STORAGE),
            Self::Inodes => 0,
        }
    }
}

/// The pod that goes first: one of which nobody can tell what it takes, then one that takes more than it requested before
/// others, then by priority, then by how much more. Each pod comes with whether it cannot be told.
pub(super) fn first<'a>(
    pods: impl Iterator<Item = (&'a Pod, &'a PodUsage, bool)>,
    signal: Signal,
) -> Option<&'a Pod> {
    let ranked = pods.filter_map(|(pod, usage, uncounted)| {
        let spec = pod.spec.as_ref()?;
        let priority = spec.priority.unwrap_or(0);
        if priority >= CRITICAL {
            return None;
        }
        let (used, requested) = (signal.of(usage.total()), signal.request(spec));
        let over = i128::from(used) - i128::from(requested);
        // Nothing would come of it.
        let some = uncounted || used > 0;
        some.then_some(((uncounted, over > 0, -i64::from(priority), over), pod))
    });
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, pod)| pod)
}

/// What a pod is told that has to go because the node runs short.
pub(super) fn low(
    pod: &Pod,
    usage: &PodUsage,
    signal: Signal,
    threshold: u64,
    share: Share,
) -> String {
    let amount = |number: u64| match signal {
        Signal::Bytes => bytes(number).to_string(),
        Signal::Inodes => number.to_string(),
    };
    let resource = match signal {
        Signal::Bytes => STORAGE,
        Signal::Inodes => "inodes",
    };
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(threshold),
        amount(share.available)
    );
    let spec = pod.spec.iter();
    for (_, container) in spec.flat_map(containers) {
        let Some(used) = usage.containers.get(&container.name) else {
            continue;
        };
        let requested = match signal {
            Signal::Bytes => limits::request_of(container, STORAGE),
            Signal::Inodes => 0,
        };
        if signal.of(*used) > requested {
            message.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                amount(signal.of(*used)),
                amount(requested)
            ));
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn of(bytes: u64) -> Usage {
        Usage { bytes, inodes: 1 }
    }

    fn usage(containers: &[(&str, u64)], volumes: &[(&str, u64)]) -> PodUsage {
        let parts = |parts: &[(&str, u64)]| {
            let parts = parts.iter();
            parts
                .map(|(name, bytes)| ((*name).to_owned(), of(*bytes)))
                .collect()
        };
        PodUsage {
            containers: parts(containers),
            volumes: parts(volumes),
            rest: Usage::default(),
        }
    }

    #[test]
    fn each_limit_has_its_words() {
        let spec = json!({"containers": [
            {"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
            {"name": "b", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "512Ki"}},
                {"name": "m", "emptyDir": {"sizeLimit": "1", "medium": "Memory"}},
                {"name": "free", "emptyDir": {}}]});
        let limits = Limits::of(pod(spec).spec.as_ref().unwrap());
        let mi = 1 << 20;
        let table = [
            (usage(&[("a", mi), ("b", mi)], &[("v", mi / 2)]), None),
            (
                usage(&[], &[("v", mi / 2 + 1)]),
                Some("Usage of EmptyDir volume \"v\" exceeds the limit \"512Ki\". "),
            ),
            (
                usage(&[("a", mi)], &[("free", 2 * mi + 1), ("m", 5)]),
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ",
                ),
            ),
            (
                usage(&[("a", mi + 1)], &[]),
                Some("Container a exceeded its local ephemeral storage limit \"1Mi\". "),
            ),
        ];
        for (used, expected) in table {
            assert_eq!(limits.exceeded(&used).as_deref(), expected);
        }
        let none =
            pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}));
        assert!(Limits::of(none.spec.as_ref().unwrap()).are_none());
        for nonsense in ["0", "-1", "x"] {
            let zero = pod(
                json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": nonsense}}]}),
            );
            assert!(
                Limits::of(zero.spec.as_ref().unwrap()).are_none(),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn who_takes_more_than_requested_goes_first_then_by_priority_and_usage() {
        let with = |name: &str, request: &str, priority: i32| {
            let mut pod = pod(json!({"priority": priority, "containers": [
                {"name": "c", "resources": {"requests": {"ephemeral-storage": request}}}]}));
            pod.metadata.name = Some(name.to_owned());
            pod
        };
        let used = |bytes| usage(&[("c", bytes)], &[]);
        let pods = [
            (with("within", "1Gi", -5), used(1 << 29)),
            (with("important", "0", 100), used(1 << 30)),
            (with("small", "0", 0), used(10)),
            (with("large", "0", 0), used(1000)),
            (with("system", "0", 2_000_000_000), used(1 << 40)),
            (with("idle", "0", -10), used(0)),
        ];
        let mut order = Vec::new();
        let mut left: Vec<_> = pods.iter().collect();
        while let Some(next) = first(
            left.iter().map(|(pod, used)| (pod, used, false)),
            Signal::Bytes,
        ) {
            let name = next.metadata.name.clone().unwrap();
            left.retain(|(pod, _)| pod.metadata.name.as_ref() != Some(&name));
            order.push(name);
        }
        assert_eq!(order, ["large", "small", "important", "within"]);
        let hidden = |pod: &Pod| {
            ["idle", "system"]
                .map(Some)
                .contains(&pod.metadata.name.as_deref())
        };
        let uncounted = pods.iter().map(|(pod, used)| (pod, used, hidden(pod)));
        let next = first(uncounted, Signal::Bytes).unwrap();
        assert_eq!(next.metadata.name.as_deref(), Some("idle"));
    }

    #[test]
    fn no_annotation_keeps_a_pod() {
        let mut mirror = pod(json!({"containers": [{"name": "c"}]}));
        mirror.metadata.annotations =
            serde_json::from_value(json!({"kubernetes.io/config.mirror": "x"})).unwrap();
        let used = usage(&[("c", 1)], &[]);
        let first = first([(&mirror, &used, false)].into_iter(), Signal::Bytes);
        assert!(first.is_some(), "anybody may write one");
    }

    #[test]
    fn a_node_that_runs_short_says_who_took_what() {
        let pod = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let share = Share {
            available: 10 << 20,
            total: 1 << 30,
        };
        let used = usage(&[("a", 100 << 20)], &[]);
        assert_eq!(
            low(&pod, &used, Signal::Bytes, 100 << 20, share),
            "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 10Mi. Container a was \
             using 100Mi, request is 0, has larger consumption of ephemeral-storage. "
        );
        let few = Share {
            available: 5,
            total: 1000,
        };
        let words = low(&pod, &used, Signal::Inodes, 50, few);
        assert!(
            words.starts_with(
                "The node was low on resource: inodes. Threshold quantity: 50, available: 5. "
            ),
            "{words}"
        );
    }
}
