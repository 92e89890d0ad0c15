//! What the node says of itself: its Node object with capacity, conditions, addresses and versions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use gantry_cri::image::Image;
use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Value, json};

use crate::pressure::{Condition, meminfo};

/// Images reported, largest first, as Kubernetes limits them.
const IMAGES: usize = 50;

/// The machine's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
}

impl Machine {
    /// Of the machine this runs on; `data_dir` names the disk.
    pub(crate) fn here(data_dir: &Path) -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let disk = rustix::fs::statvfs(data_dir).map_or(0, |disk| disk.f_blocks * disk.f_frsize);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: meminfo(&text, "MemTotal").unwrap_or(0),
            disk_bytes: disk,
        }
    }
}

/// The value of a field of /etc/os-release.
fn os_release(text: &str, field: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
        .unwrap_or_default()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What the Node object is made of.
pub(crate) struct Description<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: &'a [IpAddr],
    /// Beside the usual ones.
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) taints: &'a [Taint],
    pub(crate) machine: Machine,
    /// Pods this node takes.
    pub(crate) pods: u32,
    pub(crate) pressures: [Condition; 3],
    /// Why pods cannot be here for want of a network.
    pub(crate) network_trouble: Option<&'a str>,
    /// What else there is to say: conditions that are there only where something is known.
    pub(crate) findings: &'a [Condition],
    pub(crate) images: &'a [Image],
    /// RFC 3339.
    pub(crate) now: &'a str,
    /// Keeps the transition times of unchanged conditions.
    pub(crate) earlier: Option<&'a Node>,
}

/// Kubernetes' names for instruction sets.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn conditions(node: &Description<'_>) -> Vec<Value> {
    let (reason, message) = match node.network_trouble {
        None => ("KubeletReady", "kubelet is posting ready status"),
        Some(trouble) => ("KubeletNotReady", trouble),
    };
    let ready = Condition {
        kind: "Ready",
        holds: node.network_trouble.is_none(),
        reason,
        message: message.to_owned().into(),
    };
    let before = node
        .earlier
        .and_then(|earlier| earlier.status.as_ref()?.conditions.as_ref());
    let written = |condition: &Condition| {
        let status = if condition.holds { "True" } else { "False" };
        let since = before
            .and_then(|before| {
                before
                    .iter()
                    .find(|known| known.type_ == condition.kind && known.status == status)
            })
            .and_then(|known| serde_json::to_value(&known.last_transition_time).ok())
            .filter(|time| !time.is_null())
            .unwrap_or_else(|| json!(node.now));
        json!({
            "type": condition.kind, "status": status,
            "reason": condition.reason, "message": condition.message,
            "lastHeartbeatTime": node.now, "lastTransitionTime": since,
        })
    };
    let all = node.pressures.iter().chain(node.findings).chain([&ready]);
    all.map(written).collect()
}

fn addresses(node: &Description<'_>) -> Vec<Value> {
    let internal = node
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}));
    let hostname = json!({"type": "Hostname", "address": node.name});
    internal.chain([hostname]).collect()
}

/// The Node as the agent registers it.
pub(crate) fn describe(node: &Description<'_>) -> Value {
    let (machine, architecture) = (node.machine, architecture());
    let mut labels = json!({
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": architecture,
    });
    for (key, value) in node.labels {
        labels[key] = json!(value);
    }
    let capacity = json!({
        "cpu": machine.cpus.to_string(),
        "memory": format!("{}Ki", machine.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", machine.disk_bytes / 1024),
        "pods": node.pods.to_string(),
    });
    let mut largest: Vec<&Image> = node.images.iter().collect();
    largest.sort_by_key(|image| std::cmp::Reverse(image.size));
    let images: Vec<Value> = largest
        .iter()
        .take(IMAGES)
        .map(|image| {
            let names: Vec<&String> = image.digests.iter().chain(&image.tags).collect();
            json!({"names": names, "sizeBytes": image.size})
        })
        .collect();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let version = concat!("v1.36.0+gantry.", env!("CARGO_PKG_VERSION"));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": labels,
        },
        "spec": {"taints": node.taints},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": conditions(node),
            "addresses": addresses(node),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {
                "machineID": read("/etc/machine-id"),
                "systemUUID": read("/sys/class/dmi/id/product_uuid"),
                "bootID": read("/proc/sys/kernel/random/boot_id"),
                "kernelVersion": read("/proc/sys/kernel/osrelease"),
                "osImage": os_release(&release, "PRETTY_NAME"),
                "containerRuntimeVersion": concat!("gantry://", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": version,
                "kubeProxyVersion": version,
                "operatingSystem": "linux",
                "architecture": architecture,
            },
            "images": images,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pressure::{Pressures, Sample};

    #[test]
    fn the_machines_files_are_read() {
        assert_eq!(
            os_release("NAME=\"X\"\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME"),
            "Debian 12"
        );
    }

    #[test]
    fn a_condition_that_stays_keeps_its_transition_time() {
        let mut pressures = Pressures::default();
        let at = |now, pressures: &Pressures, earlier: Option<&Node>| {
            let described = describe(&Description {
                name: "n",
                addresses: &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
                labels: &BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
                taints: &[],
                machine: Machine {
                    cpus: 2,
                    memory_bytes: 1 << 30,
                    disk_bytes: 1 << 30,
                },
                pods: 7,
                pressures: pressures.conditions(),
                network_trouble: None,
                findings: &[Condition {
                    kind: "PeersReachable",
                    holds: pressures
                        .conditions()
                        .iter()
                        .all(|pressure| !pressure.holds),
                    reason: "AllPeersAnswer",
                    message: "they do".into(),
                }],
                images: &[],
                now,
                earlier,
            });
            (
                serde_json::from_value::<Node>(described.clone()).expect("a Node"),
                described,
            )
        };
        let (first, _) = at("2026-01-01T00:00:00Z", &pressures, None);
        let short = Sample {
            memory_available: 0,
            ..Sample::default()
        };
        pressures.observe(&short, tokio::time::Instant::now());
        let (_, second) = at("2026-01-02T00:00:00Z", &pressures, Some(&first));
        let ready = &second["status"]["conditions"][4];
        assert_eq!(ready["type"], "Ready");
        assert_eq!(ready["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(ready["lastHeartbeatTime"], "2026-01-02T00:00:00Z");
        let memory = &second["status"]["conditions"][0];
        assert_eq!(
            (&memory["status"], &memory["lastTransitionTime"]),
            (&json!("True"), &json!("2026-01-02T00:00:00Z"))
        );
        let peers = &second["status"]["conditions"][3];
        assert_eq!(
            (&peers["type"], &peers["status"], &peers["message"]),
            (&json!("PeersReachable"), &json!("False"), &json!("they do"))
        );
        assert_eq!(second["status"]["capacity"]["memory"], "1048576Ki");
        assert_eq!(second["status"]["allocatable"]["pods"], "7");
        assert_eq!(second["metadata"]["labels"]["zone"], "a");
        assert_eq!(
            second["status"]["addresses"],
            json!([
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
                {"type": "Hostname", "address": "n"},
            ])
        );
    }
}
