//! Files that every container of a pod sees: /etc/hosts, /etc/hostname and /etc/resolv.conf.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use gantry_network::{
    DnsConfig, HostAlias, HostResolver, NetworkError, PodDns, PodHosts, hosts_file, resolv_conf,
};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// What a pod is called: its hostname, and its full name when it has a subdomain.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
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

/// Writes a file in place, so that containers which have it mounted see the new contents.
pub(crate) fn write(path: &Path, content: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|known| known == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, content)?;
    // Every user of the container reads it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
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
}
