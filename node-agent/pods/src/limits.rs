//! From Kubernetes' resource requirements to what the kernel's cgroups take, and the quality-of-service class.

use std::collections::BTreeMap;
use std::time::Duration;

use gantry_base::quantity::Quantity;
use gantry_cri::runtime::Resources;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

/// Length of a CFS period.
const PERIOD_MICROS: i64 = 100_000;
/// The kernel takes no smaller quota.
const MIN_QUOTA_MICROS: i64 = 1_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// The API takes any number of seconds; ten years are as good as for ever.
const LONGEST_GRACE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A pod's quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container's limits equal its requests, for cpu and memory.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None at all.
    BestEffort,
}

/// Whether memory that was requested is kept from being taken back, on cgroup v2: a kubelet's `memoryReservationPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryReservation {
    /// It is not.
    #[default]
    None,
    /// From Guaranteed pods it is never taken, from Burstable ones last.
    Tiered,
}

/// What a node decides about the memory of all its pods, on cgroup v2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// When a container runs out of memory one process of it is killed, not all: a kubelet's `singleProcessOOMKill`.
    pub single_process_oom_kill: bool,
    /// What requests are worth when memory is short.
    pub reservation: MemoryReservation,
}

impl MemoryPolicy {
    /// memory.min and memory.low for requested bytes.
    fn protection(self, class: QosClass, requested: i64) -> (Option<i64>, Option<i64>) {
        match (self.reservation, class) {
            (MemoryReservation::Tiered, _) if requested <= 0 => (None, None),
            (MemoryReservation::Tiered, QosClass::Guaranteed) => (Some(requested), None),
            (MemoryReservation::Tiered, QosClass::Burstable) => (None, Some(requested)),
            _ => (None, None),
        }
    }
}

type Amounts = BTreeMap<String, Written>;

fn quantity(amounts: Option<&Amounts>, name: &str) -> Option<Quantity> {
    amounts?.get(name)?.0.parse().ok()
}

/// A limit counts as request where no request is written.
fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<Quantity> {
    let resources = resources?;
    quantity(resources.requests.as_ref(), name)
        .or_else(|| quantity(resources.limits.as_ref(), name))
}

fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<Quantity> {
    quantity(resources?.limits.as_ref(), name).filter(|value| value.sign() > 0)
}

/// The class of a pod, as in Kubernetes' documentation.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let positive = |value: Option<Quantity>| value.is_some_and(|value| value.sign() > 0);
    let (mut any, mut guaranteed) = (false, true);
    for container in spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
    {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let (request, limit) = (request(resources, name), limit(resources, name));
            any |= positive(request) || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// cpu.shares for a request in thousandths of a CPU.
fn shares(millis: i64) -> u64 {
    (millis.saturating_mul(1024) / 1000)
        .clamp(MIN_SHARES, MAX_SHARES)
        .unsigned_abs()
}

/// The quota for a limit in thousandths of a CPU.
fn quota(millis: i64) -> i64 {
    (millis.saturating_mul(PERIOD_MICROS) / 1000).max(MIN_QUOTA_MICROS)
}

/// oom_score_adj: the more of its memory a burstable container asked for, the later it is killed.
fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory: i64) -> i32 {
    match qos_class(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let requested =
                request(container.resources.as_ref(), "memory").map_or(0, |memory| memory.units());
            let share = i128::from(requested) * 1000 / i128::from(node_memory.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// What one container's cgroup gets. `node_memory` in bytes.
pub fn container(
    spec: &PodSpec,
    container: &Container,
    node_memory: i64,
    policy: MemoryPolicy,
) -> Resources {
    let resources = container.resources.as_ref();
    let cpu_limit = limit(resources, "cpu").map(|cpu| cpu.millis());
    let requested = request(resources, "memory").map_or(0, |memory| memory.units());
    let (memory_min, memory_low) = policy.protection(qos_class(spec), requested);
    Resources {
        cpu_shares: Some(shares(
            request(resources, "cpu").map_or(0, |cpu| cpu.millis()),
        )),
        cpu_quota_micros: cpu_limit.map(quota),
        cpu_period_micros: cpu_limit.map(|_| PERIOD_MICROS.unsigned_abs()),
        memory_limit: limit(resources, "memory").map(|memory| memory.units()),
        // As a kubelet's `swapBehavior: NoSwap`, its default: a limit of memory is one of memory.
        memory_swap: Some(0),
        memory_min,
        memory_low,
        oom_group: !policy.single_process_oom_kill,
        pids_limit: None,
        oom_score_adj: Some(oom_score_adj(spec, container, node_memory)),
    }
}

/// The most that `amount` comes to for containers that run at once: those that stay, with the sidecars, or an init container with
/// the sidecars before it. `None` where it gives nothing for any.
fn most(spec: &PodSpec, amount: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let add = |one: Option<i64>, other: Option<i64>| match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    };
    let (mut sidecars, mut most): (Option<i64>, Option<i64>) = (None, None);
    for init in spec.init_containers.iter().flatten() {
        let together = add(sidecars, amount(init));
        most = most.max(together);
        if is_sidecar(init) {
            sidecars = together;
        }
    }
    let staying = spec.containers.iter().map(amount).fold(sidecars, add);
    most.max(staying)
}

/// As [`most`], but `None` where it gives nothing for one of them: that one may take any amount.
fn most_if_all(spec: &PodSpec, amount: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let inits = spec.init_containers.iter().flatten();
    let mut all = spec.containers.iter().chain(inits);
    let bounded = all.all(|container| amount(container).is_some());
    most(spec, amount).filter(|_| bounded)
}

/// What the pod's cgroup gets: limits only where every container has one.
pub fn pod(spec: &PodSpec, pids_limit: Option<i64>, policy: MemoryPolicy) -> Resources {
    let own = spec.resources.as_ref();
    let millis = |value: Quantity| value.millis();
    let bytes = |value: Quantity| value.units();
    let cpu_requested = most_requested(spec, "cpu", millis);
    let memory_requested = most_requested(spec, "memory", bytes);
    let (memory_min, memory_low) = policy.protection(qos_class(spec), memory_requested);
    let cpu_limit = limit(own, "cpu").map(millis).or_else(|| {
        most_if_all(spec, |container| {
            limit(container.resources.as_ref(), "cpu").map(millis)
        })
    });
    let memory_limit = limit(own, "memory").map(bytes).or_else(|| {
        most_if_all(spec, |container| {
            limit(container.resources.as_ref(), "memory").map(bytes)
        })
    });
    Resources {
        cpu_shares: Some(shares(cpu_requested)),
        cpu_quota_micros: cpu_limit.map(quota),
        cpu_period_micros: cpu_limit.map(|_| PERIOD_MICROS.unsigned_abs()),
        memory_limit,
        memory_min,
        memory_low,
        pids_limit,
        ..Resources::default()
    }
}

/// What a pod requests of a resource: its own request, or those of the containers that run at once.
fn most_requested(spec: &PodSpec, name: &str, unit: impl Fn(Quantity) -> i64) -> i64 {
    match request(spec.resources.as_ref(), name) {
        Some(own) => unit(own),
        None => most(spec, |container| {
            request(container.resources.as_ref(), name).map(&unit)
        })
        .unwrap_or(0),
    }
}

/// The limits of a resource that containers have which run at once, in whole units; `None` when none has one.
pub fn total(spec: &PodSpec, name: &str) -> Option<i64> {
    let of = |resources: Option<&ResourceRequirements>| {
        limit(resources, name).map(|value| value.units())
    };
    of(spec.resources.as_ref()).or_else(|| most(spec, |container| of(container.resources.as_ref())))
}

/// What a container requests of a resource, in whole units.
pub fn request_of(container: &Container, name: &str) -> u64 {
    let requested = request(container.resources.as_ref(), name);
    requested.map_or(0, |value| u64::try_from(value.units()).unwrap_or(0))
}

/// What a pod requests of a resource, in whole units.
pub fn requested(spec: &PodSpec, name: &str) -> u64 {
    u64::try_from(most_requested(spec, name, |value| value.units())).unwrap_or(0)
}

/// What a pod requests together with its overhead: thousandths of a CPU, and bytes of memory.
pub fn requested_with_overhead(spec: &PodSpec) -> [i64; 2] {
    let overhead = |name: &str| quantity(spec.overhead.as_ref(), name).unwrap_or_default();
    let cpu = most_requested(spec, "cpu", |value| value.millis());
    let memory = most_requested(spec, "memory", |value| value.units());
    [
        cpu.saturating_add(overhead("cpu").millis()),
        memory.saturating_add(overhead("memory").units()),
    ]
}

/// What there is for requests, as [`requested_with_overhead`] counts them; `None` where that is not known.
pub fn room(allocatable: &Amounts) -> [Option<i64>; 2] {
    [
        quantity(Some(allocatable), "cpu").map(|cpu| cpu.millis()),
        quantity(Some(allocatable), "memory").map(|memory| memory.units()),
    ]
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// A `resourceFieldRef`'s value in units of its divisor, rounded up; a missing limit is the node's capacity.
pub fn field(
    container: &Container,
    resource: &str,
    divisor: Option<&Written>,
    node: &Amounts,
) -> Option<String> {
    let (kind, name) = resource.split_once('.')?;
    let resources = container.resources.as_ref();
    let value = match kind {
        "limits" => limit(resources, name).or_else(|| quantity(Some(node), name)),
        "requests" => request(resources, name),
        _ => return None,
    };
    let nanos = value.map_or(0, |value| value.nanos());
    let divisor = divisor
        .and_then(|divisor| divisor.0.parse::<Quantity>().ok())
        .map_or(0, |divisor| divisor.nanos());
    let divisor = if divisor > 0 { divisor } else { 1_000_000_000 };
    Some((nanos.saturating_add(divisor - 1) / divisor).to_string())
}

/// How long a pod that is asked to stop may take.
pub fn grace_period(pod: &Pod) -> Duration {
    let written = pod.metadata.deletion_grace_period_seconds.or_else(|| {
        pod.spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds)
    });
    grace(written.unwrap_or(DEFAULT_GRACE_SECONDS))
}

/// Written seconds of grace: none when negative, and never so long that a deadline could not be computed from it.
pub fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LONGEST_GRACE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(containers: Value) -> PodSpec {
        serde_json::from_value(json!({ "containers": containers })).unwrap()
    }

    #[test]
    fn limits_add_up_where_there_are_any() {
        let with = |limits: &[&str]| {
            let containers = limits.iter().map(|limit| match *limit {
                "" => json!({"name": "c"}),
                limit => json!({"name": "c", "resources": {"limits": {"memory": limit}}}),
            });
            spec(containers.collect())
        };
        assert_eq!(total(&with(&["", ""]), "memory"), None);
        assert_eq!(total(&with(&["1Mi", ""]), "memory"), Some(1 << 20));
        assert_eq!(total(&with(&["1Mi", "2Mi"]), "memory"), Some(3 << 20));
        assert_eq!(requested(&with(&["1Mi", "2Mi"]), "memory"), 3 << 20);
        let mut inits = with(&["1Mi"]);
        inits.init_containers = Some(with(&["4Mi", "2Mi"]).containers);
        assert_eq!(total(&inits, "memory"), Some(4 << 20));
    }

    #[test]
    fn classes() {
        let with = |resources: Value| spec(json!([{"name": "a", "resources": resources}]));
        let table = [
            (json!({}), QosClass::BestEffort),
            (json!({"requests": {"cpu": "100m"}}), QosClass::Burstable),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
                QosClass::Guaranteed,
            ),
            (json!({"limits": {"cpu": "1"}}), QosClass::Burstable),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                QosClass::Burstable,
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}),
                QosClass::Guaranteed,
            ),
        ];
        for (resources, class) in table {
            assert_eq!(qos_class(&with(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn kernel_units() {
        let requests = json!({"cpu": "250m", "memory": "256Mi"});
        let limits = json!({"cpu": "1500m", "memory": "512Mi"});
        let spec = spec(
            json!([{"name": "a", "resources": {"requests": requests, "limits": limits}}, {"name": "b"}]),
        );
        let a = container(&spec, &spec.containers[0], 1 << 30, MemoryPolicy::default());
        assert_eq!(a.cpu_shares, Some(256));
        assert_eq!(a.cpu_quota_micros, Some(150_000));
        assert_eq!(a.memory_limit, Some(512 << 20));
        assert_eq!(a.oom_score_adj, Some(750));
        let b = container(&spec, &spec.containers[1], 1 << 30, MemoryPolicy::default());
        assert_eq!(
            (b.cpu_shares, b.cpu_quota_micros, b.memory_limit),
            (Some(2), None, None)
        );
        let pod = pod(&spec, Some(100), MemoryPolicy::default());
        assert_eq!(
            (pod.cpu_shares, pod.cpu_quota_micros, pod.memory_limit),
            (Some(256), None, None)
        );
        assert_eq!(pod.pids_limit, Some(100));
    }

    #[test]
    fn memory_is_protected_by_class_when_the_node_says_so() {
        let tiered = MemoryPolicy {
            reservation: MemoryReservation::Tiered,
            ..MemoryPolicy::default()
        };
        let of = |resources: Value, policy: MemoryPolicy| {
            let spec = spec(json!([
                {"name": "a", "resources": resources}, {"name": "b", "resources": resources}
            ]));
            let own = container(&spec, &spec.containers[0], 1 << 30, policy);
            let pod = pod(&spec, None, policy);
            [
                (own.memory_min, own.memory_low),
                (pod.memory_min, pod.memory_low),
            ]
        };
        let mebibytes = |count: i64| Some(count << 20);
        let guaranteed = json!({"limits": {"cpu": "1", "memory": "8Mi"}});
        let burstable = json!({"requests": {"memory": "4Mi"}, "limits": {"memory": "8Mi"}});
        assert_eq!(
            of(guaranteed.clone(), tiered),
            [(mebibytes(8), None), (mebibytes(16), None)]
        );
        assert_eq!(
            of(burstable, tiered),
            [(None, mebibytes(4)), (None, mebibytes(8))]
        );
        assert_eq!(of(json!({}), tiered), [(None, None); 2]);
        assert_eq!(of(guaranteed, MemoryPolicy::default()), [(None, None); 2]);
    }

    #[test]
    fn a_container_out_of_memory_ends_whole_unless_the_node_says_otherwise() {
        let spec = spec(json!([{"name": "a"}]));
        let of = |policy| container(&spec, &spec.containers[0], 1 << 30, policy);
        let single = MemoryPolicy {
            single_process_oom_kill: true,
            ..MemoryPolicy::default()
        };
        assert!(of(MemoryPolicy::default()).oom_group);
        assert!(!of(single).oom_group);
        assert_eq!(of(single).memory_swap, Some(0));
        assert!(!pod(&spec, None, MemoryPolicy::default()).oom_group);
    }

    #[test]
    fn an_init_container_runs_beside_the_sidecars_before_it() {
        let of = |name: &str, mebibytes: u32, policy: Value| {
            let amount = json!({"memory": format!("{mebibytes}Mi")});
            let resources = json!({"limits": amount, "requests": amount});
            json!({"name": name, "resources": resources, "restartPolicy": policy})
        };
        let sidecar = |name: &str, mebibytes: u32| of(name, mebibytes, json!("Always"));
        let plain = |name: &str, mebibytes: u32| of(name, mebibytes, Value::Null);
        for (inits, expected) in [
            (json!([]), 2_i64),
            (json!([sidecar("s", 3)]), 5),
            (json!([sidecar("s", 3), plain("i", 4)]), 7),
            (json!([plain("i", 4), sidecar("s", 3)]), 5),
            (json!([sidecar("s", 1), plain("i", 2), sidecar("t", 3)]), 6),
        ] {
            let spec = json!({"initContainers": inits, "containers": [plain("a", 2)]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let expected = expected << 20;
            let pod = pod(&spec, None, MemoryPolicy::default());
            assert_eq!(pod.memory_limit, Some(expected), "{inits}");
            assert_eq!(total(&spec, "memory"), Some(expected), "{inits}");
            assert_eq!(requested(&spec, "memory"), expected.unsigned_abs());
        }
    }

    #[test]
    fn a_pods_limit_covers_init_containers() {
        let memory = |name: &str, limit: &str| json!({"name": name, "resources": {"limits": {"memory": limit}}});
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [memory("i", "3Mi")], "containers": [memory("a", "1Mi"), memory("b", "1Mi")]
        }))
        .unwrap();
        assert_eq!(
            pod(&spec, None, MemoryPolicy::default()).memory_limit,
            Some(3 << 20)
        );
    }

    #[test]
    fn absurd_amounts_saturate() {
        let most = json!({"cpu": "9E", "memory": "9E"});
        let spec = spec(json!([
            {"name": "a", "resources": {"requests": most, "limits": most}},
            {"name": "b", "resources": {"requests": most, "limits": most}},
        ]));
        let pod = pod(&spec, None, MemoryPolicy::default());
        assert_eq!(pod.cpu_shares, Some(MAX_SHARES.unsigned_abs()));
        assert_eq!(pod.memory_limit, Some(i64::MAX));
        assert_eq!(grace(i64::MAX), LONGEST_GRACE);
        assert_eq!(grace(-1), Duration::ZERO);
    }

    #[test]
    fn fields_are_divided_and_rounded_up() {
        let spec = spec(
            json!([{"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}}}]),
        );
        let node: Amounts = [("ephemeral-storage".to_owned(), Written("5Gi".into()))].into();
        let value = |resource, divisor: &str| {
            field(
                &spec.containers[0],
                resource,
                Some(&Written(divisor.into())),
                &node,
            )
        };
        assert_eq!(value("limits.cpu", "0").as_deref(), Some("2"));
        assert_eq!(value("limits.cpu", "1m").as_deref(), Some("1500"));
        assert_eq!(value("requests.memory", "1Mi").as_deref(), Some("100"));
        assert_eq!(
            value("limits.ephemeral-storage", "1Gi").as_deref(),
            Some("5")
        );
        assert_eq!(value("nonsense", "1"), None);
    }
}
