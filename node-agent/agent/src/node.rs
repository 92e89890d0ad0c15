//! What the node says of itself: its Node object with capacity, conditions, addresses and versions.

use std::net::Ipv4Addr;
use std::path::Path;

use gantry_image::Image;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

/// Pods per node, as Kubernetes' default.
const PODS: u32 = 110;
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
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let disk = rustix::fs::statvfs(data_dir).map_or(0, |disk| disk.f_blocks * disk.f_frsize);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: total_memory(&meminfo).unwrap_or(0),
            disk_bytes: disk,
        }
    }
}

/// `MemTotal` of /proc/meminfo in bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
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

/// The Node as the agent registers it. `now` is RFC 3339; `earlier` keeps transition times of unchanged conditions.
pub(crate) fn describe(
    name: &str,
    address: Ipv4Addr,
    machine: Machine,
    images: &[Image],
    now: &str,
    earlier: Option<&Node>,
) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let capacity = json!({
        "cpu": machine.cpus.to_string(),
        "memory": format!("{}Ki", machine.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", machine.disk_bytes / 1024),
        "pods": PODS.to_string(),
    });
    let conditions: Vec<Value> = [
        (
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        (
            "Ready",
            "True",
            "KubeletReady",
            "kubelet is posting ready status",
        ),
    ]
    .iter()
    .map(|(kind, status, reason, message)| {
        let since = earlier
            .and_then(|node| node.status.as_ref()?.conditions.as_ref())
            .and_then(|conditions| {
                conditions
                    .iter()
                    .find(|condition| condition.type_ == *kind && condition.status == *status)
            })
            .and_then(|condition| serde_json::to_value(&condition.last_transition_time).ok())
            .filter(|time| !time.is_null())
            .unwrap_or_else(|| json!(now));
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since,
        })
    })
    .collect();
    let mut largest: Vec<&Image> = images.iter().collect();
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
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": architecture,
                "beta.kubernetes.io/os": "linux",
                "beta.kubernetes.io/arch": architecture,
            },
        },
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": address.to_string()},
                {"type": "Hostname", "address": name},
            ],
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

    #[test]
    fn the_machines_files_are_read() {
        assert_eq!(
            total_memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16 << 20)
        );
        assert_eq!(total_memory(""), None);
        assert_eq!(
            os_release("NAME=\"X\"\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME"),
            "Debian 12"
        );
    }

    #[test]
    fn a_condition_that_stays_keeps_its_transition_time() {
        let machine = Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 30,
        };
        let first = describe(
            "n",
            Ipv4Addr::LOCALHOST,
            machine,
            &[],
            "2026-01-01T00:00:00Z",
            None,
        );
        let node: Node = serde_json::from_value(first).expect("a Node");
        let second = describe(
            "n",
            Ipv4Addr::LOCALHOST,
            machine,
            &[],
            "2026-01-02T00:00:00Z",
            Some(&node),
        );
        let ready = &second["status"]["conditions"][3];
        assert_eq!(ready["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(ready["lastHeartbeatTime"], "2026-01-02T00:00:00Z");
        assert_eq!(second["status"]["capacity"]["memory"], "1048576Ki");
    }
}
