//! Files that every container of a pod sees: /etc/hosts, /etc/hostname and /etc/resolv.conf.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use gantry_cri::network::NetworkError;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use rustix::fs::{Mode, OFlags};

use crate::hosts::{HostAlias, PodHosts, hosts_file};
use crate::resolv::{DnsConfig, HostResolver, PodDns, resolv_conf};

/// Characters that the kernel takes.
const LONGEST_HOSTNAME: usize = 64;

/// What a pod is called: its hostname, and its full name when it has a subdomain.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    let overriding = spec.and_then(|spec| spec.hostname_override.clone());
    if let Some(hostname) = overriding.filter(|name| !name.is_empty()) {
        return (hostname, None);
    }
    let named = spec
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| !name.is_empty());
    let hostname = named
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    // Names are ASCII; a DNS label takes no more of it.
    let hostname: String = hostname.chars().take(63).collect();
    let hostname = hostname.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec
        .and_then(|spec| spec.subdomain.as_deref())
        .filter(|name| !name.is_empty());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let full = subdomain
        .map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.{cluster_domain}"));
    (hostname, full)
}

/// What the kernel and the container's HOSTNAME call a pod: its hostname, or its full name when it asks for that; in the
/// node's network, what they call the node.
pub(crate) fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        let node = rustix::system::uname();
        return Ok(node.nodename().to_string_lossy().into_owned());
    }
    let (hostname, full) = hostname(pod, cluster_domain);
    let wanted = match full {
        Some(full) if spec.and_then(|spec| spec.set_hostname_as_fqdn) == Some(true) => full,
        _ => hostname,
    };
    match wanted.len() {
        ..=LONGEST_HOSTNAME => Ok(wanted),
        length => Err(format!(
            "the pod's hostname {wanted} is too long ({LONGEST_HOSTNAME} characters is the max, {length} characters requested): choose a shorter one, or leave out setHostnameAsFQDN"
        )),
    }
}

/// /etc/hosts. `host_file` is the node's own, for pods in its network.
pub(crate) fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, host_file: &str) -> String {
    let spec = pod.spec.as_ref();
    let (hostname, full) = hostname(pod, cluster_domain);
    let domain = full
        .as_deref()
        .and_then(|full| full.split_once('.'))
        .map(|(_, domain)| domain);
    let written = spec
        .iter()
        .flat_map(|spec| spec.host_aliases.iter().flatten());
    let aliases: Vec<HostAlias> = written
        .map(|alias| HostAlias {
            ip: alias.ip.clone(),
            hostnames: alias.hostnames.clone().unwrap_or_default(),
        })
        .collect();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    hosts_file(&PodHosts {
        ips,
        hostname: &hostname,
        domain,
        aliases: &aliases,
        host_file: host_network.then_some(host_file),
    })
}

/// /etc/resolv.conf by the pod's dnsPolicy and dnsConfig. `host` is the node's own.
pub(crate) fn resolver(
    spec: &PodSpec,
    namespace: &str,
    nameserver: Ipv4Addr,
    cluster_domain: &str,
    host: &HostResolver,
) -> Result<String, NetworkError> {
    let config = spec.dns_config.as_ref().map(|config| DnsConfig {
        nameservers: config.nameservers.clone().unwrap_or_default(),
        searches: config.searches.clone().unwrap_or_default(),
        options: config
            .options
            .iter()
            .flatten()
            .filter_map(|option| Some((option.name.clone()?, option.value.clone())))
            .collect(),
    });
    Ok(resolv_conf(&PodDns {
        policy: spec.dns_policy.as_deref().unwrap_or_default().parse()?,
        config: config.as_ref(),
        host_network: spec.host_network == Some(true),
        namespace,
        cluster_domain,
        nameservers: &[nameserver.into()],
        host,
    }))
}

/// Writes a file in place, so that containers which have it mounted see the new contents. They may have made anything of
/// it meanwhile.
pub(crate) fn write(path: &Path, content: &str) -> io::Result<()> {
    if holds(path, content.as_bytes()).unwrap_or(false) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let mut file = open(path, flags)?;
    file.write_all(content.as_bytes())?;
    // Every user of the container reads it.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// Opens a file itself, not what a link there leads to, and without a wait for who is at the other end of a pipe.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Whether this is all that is in a file. A longer one, as a container can make it without a cost, is not read.
fn holds(path: &Path, content: &[u8]) -> io::Result<bool> {
    let file = open(path, OFlags::RDONLY)?;
    let (metadata, length) = (file.metadata()?, content.len() as u64);
    if !metadata.is_file() || metadata.len() != length {
        return Ok(false);
    }
    // It may grow while it is read.
    let mut found = Vec::with_capacity(content.len());
    file.take(length + 1).read_to_end(&mut found)?;
    Ok(found == content)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        let mut value = value;
        value["containers"] = json!([]);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_policy_and_configuration_of_the_pod_are_told() {
        let host = HostResolver::parse("nameserver 192.0.2.53\nsearch corp.example\n");
        let make = |value| {
            resolver(
                &spec(value),
                "shop",
                Ipv4Addr::new(10, 96, 0, 10),
                "cluster.local",
                &host,
            )
        };
        let cluster = make(json!({})).unwrap();
        assert!(
            cluster.contains("nameserver 10.96.0.10") && cluster.contains("shop.svc.cluster.local"),
            "{cluster}"
        );
        assert!(
            make(json!({"dnsPolicy": "Default"}))
                .unwrap()
                .contains("192.0.2.53")
        );
        assert!(
            make(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"}))
                .unwrap()
                .contains("192.0.2.53")
        );
        let custom = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}]}});
        let custom = make(custom).unwrap();
        assert!(
            custom.contains("192.0.2.1") && custom.contains("a.b") && custom.contains("ndots:2"),
            "{custom}"
        );
        assert!(make(json!({"dnsPolicy": "Nonsense"})).is_err());
    }

    #[test]
    fn the_kernel_is_told_what_the_pod_asks_for() {
        let named = |mut spec: Value| {
            spec["containers"] = json!([]);
            let pod = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec});
            kernel_hostname(&serde_json::from_value(pod).unwrap(), "cluster.local")
        };
        let long = "x".repeat(40);
        let full = "h.web.shop.svc.cluster.local";
        for (spec, expected) in [
            (json!({}), "web-0"),
            (json!({"hostname": "h", "subdomain": "web"}), "h"),
            (json!({"hostname": "h", "setHostnameAsFQDN": true}), "h"),
            (
                json!({"hostname": "h", "subdomain": "web", "setHostnameAsFQDN": true}),
                full,
            ),
            (
                json!({"hostname": "h", "subdomain": &long, "setHostnameAsFQDN": false}),
                "h",
            ),
            (
                json!({"hostname": "h", "subdomain": "web", "hostnameOverride": "a.b"}),
                "a.b",
            ),
        ] {
            assert_eq!(named(spec.clone()).as_deref(), Ok(expected), "{spec}");
        }
        let too_long = json!({"hostname": "h", "subdomain": &long, "setHostnameAsFQDN": true});
        let refused = named(too_long).unwrap_err();
        assert!(refused.contains("64 characters is the max"), "{refused}");
        assert!(named(json!({"hostnameOverride": "y".repeat(65)})).is_err());
        let node = named(json!({"hostNetwork": true, "hostname": "h"})).unwrap();
        assert_eq!(node, rustix::system::uname().nodename().to_str().unwrap());
    }

    #[test]
    fn hosts_file_names_the_pod() {
        let pod = |spec: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}),
            )
            .unwrap()
        };
        let text = hosts(
            &pod(
                json!({"containers": [], "subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
            ),
            &["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            "cluster.local",
            "",
        );
        for ip in ["10.0.0.5", "fd00::5"] {
            let line = format!("{ip}\tweb-0.web.shop.svc.cluster.local\tweb-0\n");
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
        let host = hosts(
            &pod(json!({"containers": [], "hostNetwork": true})),
            &["192.0.2.1".parse().unwrap()],
            "cluster.local",
            "127.0.0.1 me\n",
        );
        assert!(host.ends_with("127.0.0.1 me\n") && !host.contains("web-0"));
        let (name, full) = hostname(
            &pod(json!({"containers": [], "hostname": "h"})),
            "cluster.local",
        );
        assert_eq!((name.as_str(), full), ("h", None));
    }

    #[test]
    fn what_a_container_made_of_a_file_is_not_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/hosts");
        let read = || std::fs::read_to_string(&path).unwrap();
        write(&path, "one").unwrap();
        let inode = || std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
        let first = inode();
        // More than the machine's memory.
        let grown = File::options().write(true).open(&path).unwrap();
        grown.set_len(1 << 42).unwrap();
        write(&path, "one").unwrap();
        assert_eq!((read().as_str(), inode()), ("one", first));
        write(&path, "two").unwrap();
        assert_eq!((read().as_str(), inode()), ("two", first));
        let outside = directory.path().join("outside");
        std::fs::write(&outside, "theirs").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert!(write(&path, "three").is_err());
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "theirs");
    }
}
