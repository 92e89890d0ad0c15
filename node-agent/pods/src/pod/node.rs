//! What all workers of a node share.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use gantry_cri::dns::ClusterDns;
use gantry_cri::image::Images;
use gantry_cri::network::{NodeConnections, PodNetwork};
use gantry_cri::runtime::Runtime;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::resize::Allocations;
use crate::limits::MemoryPolicy;
use crate::pull_records::PullRecords;
use crate::sysctls::SysctlPattern;
use crate::tokens::Tokens;
use crate::traits::{Objects, PodIsolation, PodReports, TrafficDrain};

/// The node as its pod workers see it.
pub struct Node {
    /// Runs their containers.
    pub runtime: Arc<dyn Runtime>,
    /// Has their images.
    pub images: Arc<dyn Images>,
    /// Which pods may use them.
    pub pulls: Arc<PullRecords>,
    /// Connects them.
    pub network: Arc<dyn PodNetwork>,
    /// Where the connections are counted that probes and hooks make to them.
    pub connections: Arc<NodeConnections>,
    /// Is told which search lists they have.
    pub dns: Arc<dyn ClusterDns>,
    /// The pods, and what they name.
    pub objects: Arc<dyn Objects>,
    /// Isolates them as NetworkPolicies say.
    pub isolation: Arc<dyn PodIsolation>,
    /// Takes their statuses and Events.
    pub reports: Arc<dyn PodReports>,
    /// Waits with the end of a pod for services to let go of it.
    pub drain: Arc<dyn TrafficDrain>,
    /// The tokens of their accounts.
    pub tokens: Arc<Tokens>,
    /// The node's, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// A directory per pod uid: journal, volumes, generated files.
    pub pods_dir: PathBuf,
    /// `<namespace>_<name>_<uid>/<container>/<attempt>.log`
    pub logs_dir: PathBuf,
    /// Profiles that `seccompProfile.localhostProfile` names.
    pub seccomp_dir: PathBuf,
    /// What pods may have of the node, by resource.
    pub allocatable: BTreeMap<String, Quantity>,
    /// What they have been given of it.
    pub allocations: Arc<Allocations>,
    /// Bytes of memory that the node has.
    pub memory: i64,
    /// Processes and threads of one pod; none for as many as the node has.
    pub pids_limit: Option<i64>,
    /// What of the kernel's memory protection pods get.
    pub memory_policy: MemoryPolicy,
    /// Kernel settings that pods may ask for beside the safe ones.
    pub sysctls: Vec<SysctlPattern>,
    /// Where the cluster's names are answered.
    pub cluster_dns: Ipv4Addr,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
}

impl Node {
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir.join(uid)
    }

    pub(crate) fn log_dir(&self, pod: &Pod) -> PathBuf {
        let part = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &pod.metadata;
        self.logs_dir.join(format!(
            "{}_{}_{}",
            part(&meta.namespace),
            part(&meta.name),
            part(&meta.uid)
        ))
    }

    /// The log directory of a pod of which only the uid is known.
    pub(crate) fn log_dir_of(&self, uid: &str) -> PathBuf {
        let suffix = format!("_{uid}");
        let entries = std::fs::read_dir(&self.logs_dir)
            .into_iter()
            .flatten()
            .flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        self.logs_dir
            .join(names.find(|name| name.ends_with(&suffix)).unwrap_or(suffix))
    }
}

/// A pod as messages name it: `name_namespace(uid)`.
pub(crate) fn full_name(pod: &Pod) -> String {
    let part = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!(
        "{}_{}({})",
        part(&meta.name),
        part(&meta.namespace),
        part(&meta.uid)
    )
}
