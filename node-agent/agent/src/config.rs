//! What an agent is configured with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_network::OverlayMode;
use gantry_pods::limits::MemoryPolicy;
use gantry_pods::pull_verification::PullVerification;
use gantry_pods::sysctls::SysctlPattern;
use k8s_openapi::api::core::v1::Taint;

use crate::identity::NodeIdentity;

/// No token is older, as with a kubelet.
const TOKEN_REFRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Who the agent is, where it reports to, and where it keeps its things. Every path and kernel name derives from the
/// data directory, so that several agents share a machine.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Servers, tried in turn.
    pub servers: Vec<SocketAddr>,
    /// Where clients on this node reach the API; `None` for nowhere.
    pub local_api: Option<SocketAddr>,
    /// Where the node's metrics are read; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// How the node and the cluster recognise each other.
    pub identity: NodeIdentity,
    /// The address other nodes reach this one at.
    pub node_address: Ipv4Addr,
    /// The same of IPv6, where the machine has one.
    pub node_address_v6: Option<Ipv6Addr>,
    /// Which packets to pods of other nodes are wrapped into VXLAN.
    pub overlay_mode: OverlayMode,
    /// Labels of the Node object beside the usual ones.
    pub labels: BTreeMap<String, String>,
    /// What the Node object is tainted with when it is made; later it is the cluster's own.
    pub taints: Vec<Taint>,
    /// State that survives a reboot: images, journals, logs, checkpoints.
    pub data_dir: PathBuf,
    /// Sockets, shims and checkpointed secrets; on a tmpfs.
    pub run_dir: PathBuf,
    /// Below every cgroup hierarchy's root.
    pub cgroup_root: PathBuf,
    /// Names the bridge and tables; at most 8 characters.
    pub network_prefix: String,
    /// The binary to execute as shim: one whose `main` calls `gantry_runtime::dispatch` first.
    pub shim_command: PathBuf,
    /// Pods this node takes.
    pub max_pods: u32,
    /// Processes and threads of one pod.
    pub pod_pids_limit: i64,
    /// What is done about the memory of pods, on cgroup v2.
    pub memory: MemoryPolicy,
    /// Kernel settings that pods may ask for beside those that are safe everywhere.
    pub allowed_unsafe_sysctls: Vec<SysctlPattern>,
    /// Which images that are here pods must show that they may pull.
    pub pull_verification: PullVerification,
    /// Pods' tokens are replaced after this time, or when four fifths of their life are over.
    pub token_refresh: Duration,
}

impl AgentConfig {
    /// The configuration of the agent that lives in this directory; name, servers and credentials are still to be set.
    pub fn in_directory(data_dir: &Path) -> Self {
        let prefix = prefix(data_dir);
        Self {
            node_name: String::new(),
            servers: Vec::new(),
            local_api: None,
            metrics: None,
            identity: NodeIdentity::default(),
            node_address: Ipv4Addr::LOCALHOST,
            node_address_v6: None,
            overlay_mode: OverlayMode::default(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            data_dir: data_dir.to_owned(),
            run_dir: Path::new("/run/gantry").join(&prefix),
            cgroup_root: Path::new("/gantry").join(&prefix),
            network_prefix: prefix,
            shim_command: PathBuf::from("/proc/self/exe"),
            max_pods: 110,
            pod_pids_limit: 4096,
            memory: MemoryPolicy::default(),
            allowed_unsafe_sysctls: Vec::new(),
            pull_verification: PullVerification::default(),
            token_refresh: TOKEN_REFRESH,
        }
    }

    /// The node's addresses, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let v6 = self.node_address_v6.map(IpAddr::from);
        std::iter::once(self.node_address.into())
            .chain(v6)
            .collect()
    }

    /// Where the image service listens.
    pub fn image_socket(&self) -> PathBuf {
        self.run_dir.join("images.sock")
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.data_dir.join("logs")
    }
}

/// Whether a link's name is one of those that agents give: the network prefix of some directory, and what it is.
pub fn is_agents_link(name: &str) -> bool {
    let rest = name
        .strip_prefix('g')
        .and_then(|rest| rest.split_once(['-', '.']));
    rest.is_some_and(|(hash, what)| {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        hash.len() == 6 && hash.bytes().all(digits) && !what.is_empty()
    })
}

/// A short name for a directory: the same for the same path, and very unlikely to be another's.
fn prefix(data_dir: &Path) -> String {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    // FNV-1a: must never change, since names in the kernel are found again by it.
    let hash = absolute
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("g{:06x}", (hash ^ (hash >> 32)) & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_derive_from_the_directory() {
        let one = AgentConfig::in_directory(Path::new("/var/lib/a"));
        let again = AgentConfig::in_directory(Path::new("/var/lib/a"));
        let other = AgentConfig::in_directory(Path::new("/var/lib/b"));
        assert_eq!(
            (&one.network_prefix, &one.run_dir),
            (&again.network_prefix, &again.run_dir)
        );
        assert_ne!(one.network_prefix, other.network_prefix);
        assert_eq!(one.network_prefix.len(), 7);
        assert!(is_agents_link(&format!("{}-br", one.network_prefix)));
        assert!(is_agents_link("g00af3c.12"));
        for other in [
            "eth0",
            "g00af3c",
            "g00af3c-",
            "g00af3cd-br",
            "g00AF3C-br",
            "docker-br",
        ] {
            assert!(!is_agents_link(other), "{other}");
        }
    }
}
