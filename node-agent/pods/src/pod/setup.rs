//! What surrounds a pod's containers: network, volumes, generated files, the sandbox; and its removal.

use std::net::IpAddr;
use std::sync::Arc;

use gantry_cri::network::{HostPort, MakeNamespace, PodAttachment, Protocol};
use gantry_cri::runtime::{PodUid, SandboxSpec};
use gantry_cri::words;
use gantry_idmap::{IdBlock, Users};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::admission;
use super::files;
use super::launch::Sandbox;
use super::node::Node;
use crate::limits;
use crate::resolv::HostResolver;
use crate::volumes::{self, PodTokens, VolumeContext};

/// A log is rotated at this size, and this many are kept.
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;
const LOG_MAX_FILES: u32 = 5;

/// Why the pod cannot start; tried again.
#[derive(Debug)]
pub(crate) struct NotSetUp {
    /// The Event's reason.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Makes everything that containers need. Idempotent: also used to take over what an earlier process left.
pub(crate) async fn set_up(
    node: Arc<Node>,
    pod: Arc<Pod>,
    uid: String,
) -> Result<Sandbox, NotSetUp> {
    let spec = pod.spec.clone().unwrap_or_default();
    let sandbox_failed = |message: String| NotSetUp {
        reason: "FailedCreatePodSandBox",
        message: format!("Failed to create pod sandbox: {message}"),
    };
    admission::check_supported(&spec, admission::has_selinux()).map_err(sandbox_failed)?;
    let hostname = files::kernel_hostname(&pod, &node.cluster_domain).map_err(sandbox_failed)?;
    let (netns, users, pod_ips) = if spec.host_network == Some(true) {
        (None, None, node.addresses.clone())
    } else {
        let own_users = spec.host_users == Some(false);
        let make = own_users.then(|| make_namespace(&node));
        let ports = host_ports(&spec);
        let attachment = node.network.attach_namespace(&uid, &ports, make).await;
        let attachment = attachment.map_err(|error| sandbox_failed(words(&error)))?;
        let users = match own_users {
            false => None,
            true => Some(own_users_of(&attachment).map_err(sandbox_failed)?),
        };
        let ips = attachment.addresses();
        let isolated = node.isolation.isolate(&uid, ips.clone());
        isolated
            .await
            .map_err(|error| sandbox_failed(error.to_string()))?;
        (Some(attachment.netns), users, ips)
    };
    let paths = {
        let (tokens, missing) = tokens(&node, &pod, &uid).await;
        if let Some(missing) = missing {
            return Err(missing);
        }
        let (node, pod, uid, ips) = (node.clone(), pod.clone(), uid.clone(), pod_ips.clone());
        let prepared =
            tokio::task::spawn_blocking(move || prepare(&node, &pod, &uid, &ips, &tokens)).await;
        prepared.map_err(|error| sandbox_failed(error.to_string()))??
    };
    let sysctls = spec
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten());
    let sandbox = SandboxSpec {
        pod: PodUid(uid.clone()),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        hostname,
        netns,
        users: users.as_ref().map(|users| users.ids),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_pid: spec.share_process_namespace == Some(true),
        sysctls: sysctls
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        resources: limits::pod(&spec, node.pids_limit, node.memory_policy),
        log_dir: node.log_dir(&pod),
        log_max_bytes: LOG_MAX_BYTES,
        log_max_files: LOG_MAX_FILES,
    };
    node.runtime
        .start_sandbox(sandbox)
        .await
        .map_err(|error| sandbox_failed(words(&error)))?;
    Ok(Sandbox {
        pod_ips,
        volumes: paths,
        users,
    })
}

/// Makes the network namespace of a pod with users of its own, which have to be there before it.
fn make_namespace(node: &Arc<Node>) -> MakeNamespace {
    let runtime = Arc::clone(&node.runtime);
    Arc::new(move |address| {
        let ids = IdBlock::of(address)
            .ok_or_else(|| std::io::Error::other(format!("{address} has no block of user ids")))?;
        runtime.own_network(ids)
    })
}

/// The users that [`make_namespace`] has made for a pod, now or earlier.
fn own_users_of(attachment: &PodAttachment) -> Result<Users, String> {
    let failed = |error: std::io::Error| format!("finding the pod's user namespace: {error}");
    let ids = IdBlock::of(attachment.ip).ok_or("the pod's address has no block of user ids")?;
    Users::of_network(&attachment.netns, ids).map_err(failed)
}

fn prepare(
    node: &Node,
    pod: &Pod,
    uid: &str,
    pod_ips: &[IpAddr],
    tokens: &PodTokens,
) -> Result<std::collections::BTreeMap<String, std::path::PathBuf>, NotSetUp> {
    let pod_dir = node.pod_dir(uid);
    let context = VolumeContext {
        pod,
        objects: &*node.objects,
        pod_dir: &pod_dir,
        pod_ips,
        host_ips: &node.addresses,
        allocatable: &node.allocatable,
        tokens,
    };
    let paths = volumes::set_up(&context)
        .map_err(|(name, error)| not_mounted(&name, &error.to_string()))?;
    write_files(node, pod, uid, pod_ips).map_err(|error| NotSetUp {
        reason: "FailedCreatePodSandBox",
        message: format!("Failed to create pod sandbox: writing the pod's /etc files: {error}"),
    })?;
    Ok(paths)
}

fn write_files(node: &Node, pod: &Pod, uid: &str, pod_ips: &[IpAddr]) -> std::io::Result<()> {
    let etc = node.pod_dir(uid).join("etc");
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let host_file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hosts = files::hosts(pod, pod_ips, &node.cluster_domain, &host_file("/etc/hosts"));
    files::write(&etc.join("hosts"), &hosts)?;
    let host = HostResolver::read().map_err(std::io::Error::other)?;
    let resolv = files::resolver(
        &spec,
        namespace,
        node.cluster_dns,
        &node.cluster_domain,
        &host,
    );
    let resolv = resolv.map_err(std::io::Error::other)?;
    files::write(&etc.join("resolv.conf"), &resolv)?;
    if spec.host_network != Some(true) {
        let searches = HostResolver::parse(&resolv).searches;
        for ip in pod_ips {
            node.dns.client(*ip, Some(searches.clone()));
        }
        let hostname = files::kernel_hostname(pod, &node.cluster_domain);
        let hostname = hostname.map_err(std::io::Error::other)?;
        files::write(&etc.join("hostname"), &format!("{hostname}\n"))?;
    }
    Ok(())
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let containers = super::record::containers(spec).map(|(_, container)| container);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
    ports
        .filter_map(|port| {
            let host_ip = port
                .host_ip
                .as_deref()
                .and_then(|ip| ip.parse::<IpAddr>().ok());
            Some(HostPort {
                host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: number(port.host_port?)?,
                container_port: number(port.container_port)?,
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

fn not_mounted(volume: &str, why: &str) -> NotSetUp {
    NotSetUp {
        reason: "FailedMount",
        message: format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}"),
    }
}

/// The tokens that the pod's volumes are to show, and what one of them lacks.
async fn tokens(node: &Node, pod: &Pod, uid: &str) -> (PodTokens, Option<NotSetUp>) {
    let (tokens, missing) = node.tokens.of_pod(pod, uid, &node.pod_dir(uid)).await;
    let missing = missing
        .map(|(volume, error)| not_mounted(&volume, &format!("failed to fetch token: {error}")));
    (tokens, missing)
}

/// Brings volumes up to date with their objects, and with tokens that are replaced before they end. One that lacks its token
/// stays as it is, and keeps no other from being brought up to date.
pub(crate) async fn refresh(
    node: Arc<Node>,
    pod: Arc<Pod>,
    uid: String,
    pod_ips: Vec<IpAddr>,
) -> Result<(), NotSetUp> {
    let (tokens, missing) = tokens(&node, &pod, &uid).await;
    let refreshed =
        tokio::task::spawn_blocking(move || write_anew(&node, &pod, &uid, &pod_ips, &tokens));
    let refreshed = refreshed.await.unwrap_or_else(|error| {
        Err(NotSetUp {
            reason: "FailedMount",
            message: format!("bringing the volumes up to date: {error}"),
        })
    });
    // Why there is no token says more than that there is none.
    missing.map_or(refreshed, Err)
}

fn write_anew(
    node: &Node,
    pod: &Pod,
    uid: &str,
    pod_ips: &[IpAddr],
    tokens: &PodTokens,
) -> Result<(), NotSetUp> {
    let pod_dir = node.pod_dir(uid);
    let context = VolumeContext {
        pod,
        objects: &*node.objects,
        pod_dir: &pod_dir,
        pod_ips,
        host_ips: &node.addresses,
        allocatable: &node.allocatable,
        tokens,
    };
    volumes::refresh(&context).map_err(|(name, error)| not_mounted(&name, &error.to_string()))
}

/// Ends the sandbox and frees the network and root file systems; logs and the journal stay, so that a pod that is over can
/// still be looked at, and volumes until [`reclaim`].
pub(crate) async fn tear_down(
    node: Arc<Node>,
    uid: String,
    rootfs_keys: Vec<String>,
) -> Result<(), String> {
    node.runtime
        .remove_sandbox(&PodUid(uid.clone()))
        .await
        .map_err(|error| words(&error))?;
    for key in rootfs_keys {
        node.images
            .unmount_rootfs(&key)
            .await
            .map_err(|error| words(&error))?;
    }
    let attached = node.network.attached().await;
    let attached = attached.map_err(|error| words(&error))?;
    if let Some(attachment) = attached.get(&uid) {
        // While the address is still this pod's.
        for address in attachment.addresses() {
            node.dns.client(address, None);
        }
    }
    node.isolation.forget(&uid);
    node.tokens.forget(&uid);
    node.network
        .detach(&uid)
        .await
        .map_err(|error| words(&error))
}

/// Gives back what a pod that is over took of the disk; its journal stays, and with `logs_too` its logs do not.
pub(crate) async fn reclaim(
    node: Arc<Node>,
    uid: String,
    log_dir: std::path::PathBuf,
    logs_too: bool,
) -> Result<(), String> {
    let reclaimed = tokio::task::spawn_blocking(move || {
        volumes::reclaim(&node.pod_dir(&uid)).map_err(|error| error.to_string())?;
        match logs_too {
            true => remove_tree(&log_dir),
            false => Ok(()),
        }
    });
    reclaimed.await.map_err(|error| error.to_string())?
}

fn remove_tree(directory: &std::path::Path) -> Result<(), String> {
    gantry_durable::remove_tree(directory)
        .map_err(|error| format!("removing {}: {error}", directory.display()))
}

/// Removes the rest: volumes, journal and logs.
pub(crate) async fn remove(
    node: Arc<Node>,
    uid: String,
    log_dir: std::path::PathBuf,
) -> Result<(), String> {
    let removed = tokio::task::spawn_blocking(move || {
        volumes::tear_down(&node.pod_dir(&uid)).map_err(|error| error.to_string())?;
        remove_tree(&log_dir)
    });
    removed.await.map_err(|error| error.to_string())?
}
