//! What all workers of a node share.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use gantry_cri::dns::ClusterDns;
use gantry_image::Images;
use gantry_network::PodNetwork;
use gantry_runtime::Runtime;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::desired::Desired;
use crate::limits::MemoryPolicy;
use crate::policies::Policies;
use crate::pull_records::PullRecords;
use crate::reports::Reports;
use crate::routed::Routed;
use crate::sysctls::SysctlPattern;
use crate::tokens::Tokens;

/// The node as its pod workers see it.
pub(crate) struct Node {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    /// Which pods may use them.
    pub(crate) pulls: Arc<PullRecords>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) dns: Arc<dyn ClusterDns>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) reports: Arc<Reports>,
    /// The node's, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    /// A directory per pod uid: journal, volumes, generated files.
    pub(crate) pods_dir: PathBuf,
    /// `<namespace>_<name>_<uid>/<container>/<attempt>.log`
    pub(crate) logs_dir: PathBuf,
    /// Profiles that `seccompProfile.localhostProfile` names.
    pub(crate) seccomp_dir: PathBuf,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    /// Bytes.
    pub(crate) memory: i64,
    pub(crate) pids_limit: Option<i64>,
    pub(crate) memory_policy: MemoryPolicy,
    /// Kernel settings that pods may ask for beside the safe ones.
    pub(crate) sysctls: Vec<SysctlPattern>,
    pub(crate) cluster_dns: Ipv4Addr,
    pub(crate) cluster_domain: String,
    /// Addresses to which services send new connections.
    pub(crate) routed: Arc<Routed>,
    pub(crate) tokens: Arc<Tokens>,
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
