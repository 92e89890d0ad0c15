//! `/stats/summary`: what the node, its pods and their containers use, as one document.

use gantry_base::json::Members;
use gantry_base::time;
use gantry_rpc::node::{Amounts, ContainerUsage, PodUsage, Traffic};
use serde_json::{Value, json};

use super::{View, amounts};

pub(super) fn page(view: &View<'_>) -> Value {
    let usage = view.usage.clone().unwrap_or_default();
    let pods = usage.pods.iter().map(|pod| of_pod(view, pod));
    json!({"node": of_node(view), "pods": pods.collect::<Vec<_>>()})
}

/// How fast a counter has grown between two readings: none where one is missing, or the counter began anew.
fn nanocores(before: Option<(u64, u64)>, now: (u64, u64)) -> Option<u64> {
    let (at, counted) = before?;
    let passed = now.0.checked_sub(at).filter(|passed| *passed > 0)?;
    let used = u128::from(now.1.checked_sub(counted)?);
    u64::try_from(used * 1_000_000_000 / u128::from(passed)).ok()
}

fn cpu(stamp: &str, used: &Amounts, rate: Option<u64>) -> Value {
    let mut cpu = json!({"time": stamp, "usageCoreNanoSeconds": used.cpu_nanoseconds});
    if let Some(rate) = rate {
        *cpu.member(&["usageNanoCores"]) = json!(rate);
    }
    cpu
}

fn memory(stamp: &str, used: &Amounts) -> Value {
    json!({
        "time": stamp,
        "usageBytes": used.memory_bytes,
        "workingSetBytes": used.working_set_bytes,
        "rssBytes": used.rss_bytes,
    })
}

fn network(stamp: &str, passed: &Traffic) -> Value {
    let of_link = json!({
        "name": "eth0",
        "rxBytes": passed.received_bytes,
        "rxErrors": passed.received_errors,
        "txBytes": passed.sent_bytes,
        "txErrors": passed.sent_errors,
    });
    let mut network = of_link.clone();
    *network.member(&["time"]) = json!(stamp);
    *network.member(&["interfaces"]) = json!([of_link]);
    network
}

fn of_node(view: &View<'_>) -> Value {
    let stamp = time::seconds(view.unix_nanos);
    let usage = view.usage.clone().unwrap_or_default();
    let node = usage.node.unwrap_or_default();
    let used = amounts(node.amounts);
    let before = view.before.as_ref().and_then(|before| before.node);
    let before = before.map(|before| (before.read_at, amounts(before.amounts).cpu_nanoseconds));
    let rate = nanocores(before, (node.read_at, used.cpu_nanoseconds));
    let mut told = json!({
        "nodeName": view.node,
        "cpu": cpu(&stamp, &used, rate),
        "memory": memory(&stamp, &used),
    });
    *told.member(&["memory", "availableBytes"]) = json!(node.available_bytes);
    if let Some(passed) = &node.traffic {
        *told.member(&["network"]) = network(&stamp, passed);
    }
    told
}

fn of_pod(view: &View<'_>, pod: &PodUsage) -> Value {
    let stamp = time::seconds(view.unix_nanos);
    let used = amounts(pod.amounts);
    let earlier = view.pod_before(&pod.uid);
    let before = earlier.map(|before| (before.read_at, amounts(before.amounts).cpu_nanoseconds));
    let rate = nanocores(before, (pod.read_at, used.cpu_nanoseconds));
    let containers = pod.containers.iter();
    let containers = containers.map(|container| of_container(view, pod, container));
    let mut told = json!({
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "containers": containers.collect::<Vec<_>>(),
        "cpu": cpu(&stamp, &used, rate),
        "memory": memory(&stamp, &used),
    });
    let status = view.pods.get(&pod.uid).and_then(|pod| pod.status.as_ref());
    if let Some(started) = status.and_then(|status| status.start_time.as_ref()) {
        *told.member(&["startTime"]) = json!(started);
    }
    if used.processes > 0 {
        *told.member(&["process_stats"]) = json!({"process_count": used.processes});
    }
    if let Some(passed) = &pod.traffic {
        *told.member(&["network"]) = network(&stamp, passed);
    }
    told
}

fn of_container(view: &View<'_>, pod: &PodUsage, container: &ContainerUsage) -> Value {
    let stamp = time::seconds(view.unix_nanos);
    let used = amounts(container.amounts);
    let same = |known: &&ContainerUsage| {
        known.name == container.name && known.attempt == container.attempt
    };
    let before = view.pod_before(&pod.uid).and_then(|before| {
        let known = before.containers.iter().find(same)?;
        Some((before.read_at, amounts(known.amounts).cpu_nanoseconds))
    });
    let rate = nanocores(before, (pod.read_at, used.cpu_nanoseconds));
    let mut told = json!({
        "name": container.name,
        "cpu": cpu(&stamp, &used, rate),
        "memory": memory(&stamp, &used),
    });
    if let Some(started) = view.started(&pod.uid, &container.name) {
        *told.member(&["startTime"]) = json!(time::seconds(started));
    }
    told
}
