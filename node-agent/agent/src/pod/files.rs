//! Files that every container of a pod sees: /etc/hosts, /etc/hostname and /etc/resolv.conf.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Limits of the resolver.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What a pod is called: its hostname, and its full name when it has a subdomain.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    let named = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut hostname = named.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    // The kernel's limit.
    hostname.truncate(63);
    let hostname = hostname.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let full = subdomain.map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.{cluster_domain}"));
    (hostname, full)
}

/// /etc/hosts of a pod with a network of its own; `None` for one in the host's that adds nothing.
pub(crate) fn hosts(pod: &Pod, pod_ip: &str, cluster_domain: &str, host_file: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = if spec.and_then(|spec| spec.host_network) == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let (hostname, full) = hostname(pod, cluster_domain);
        let names = full.map_or_else(|| hostname.clone(), |full| format!("{full}\t{hostname}"));
        format!(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
             {pod_ip}\t{names}\n"
        )
    };
    let aliases = spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    for (index, alias) in aliases.enumerate() {
        if index == 0 {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        // Writing to a String cannot fail.
        writeln!(text, "{}\t{}", alias.ip, alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")).ok();
    }
    text
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let key = words.next().unwrap_or_default();
            let rest = words.map(str::to_owned);
            match key {
                "nameserver" => resolver.nameservers.extend(rest.take(1)),
                "search" | "domain" => resolver.searches = rest.collect(),
                "options" => resolver.options.extend(rest),
                _ => {}
            }
        }
        resolver
    }

    fn text(mut self) -> String {
        self.searches.dedup();
        let mut text = String::new();
        for server in self.nameservers.iter().take(MAX_NAMESERVERS) {
            writeln!(text, "nameserver {server}").ok();
        }
        if !self.searches.is_empty() {
            self.searches.truncate(MAX_SEARCHES);
            text.insert_str(0, &format!("search {}\n", self.searches.join(" ")));
        }
        if !self.options.is_empty() {
            writeln!(text, "options {}", self.options.join(" ")).ok();
        }
        text
    }
}

/// /etc/resolv.conf by the pod's dnsPolicy and dnsConfig. `host_file` is the node's own.
pub(crate) fn resolv_conf(
    spec: &PodSpec,
    namespace: &str,
    cluster_dns: Option<IpAddr>,
    cluster_domain: &str,
    host_file: &str,
) -> String {
    let host_network = spec.host_network == Some(true);
    let mut resolver = match (spec.dns_policy.as_deref(), cluster_dns) {
        (Some("None"), _) => Resolver::default(),
        (Some("Default"), _) | (_, None) => Resolver::parse(host_file),
        (Some("ClusterFirst") | None, _) if host_network => Resolver::parse(host_file),
        (_, Some(dns)) => {
            let mut searches = vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            searches.extend(Resolver::parse(host_file).searches);
            Resolver { nameservers: vec![dns.to_string()], searches, options: vec!["ndots:5".to_owned()] }
        }
    };
    if let Some(config) = &spec.dns_config {
        resolver.nameservers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            // A pod's own value replaces the policy's.
            resolver.options.retain(|known| known.split(':').next() != Some(name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    resolver.text()
}

/// Writes a file in place, so that containers which have it mounted see the new contents.
pub(crate) fn write(path: &Path, content: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|known| known == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, content)
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
    fn dns_policies() {
        let host = "# c\nnameserver 192.0.2.53\nsearch corp.example\noptions rotate\n";
        let dns = Some("10.96.0.10".parse().unwrap());
        let make = |value| resolv_conf(&spec(value), "shop", dns, "cluster.local", host);
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n";
        let own = "search corp.example\nnameserver 192.0.2.53\noptions rotate\n";
        assert_eq!(make(json!({})), cluster);
        assert_eq!(make(json!({"dnsPolicy": "Default"})), own);
        assert_eq!(make(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"})), own);
        assert_eq!(make(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})), cluster);
        let custom = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(make(custom), "search a.b\nnameserver 192.0.2.1\noptions ndots:2 edns0\n");
        let overridden = make(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
        assert!(overridden.ends_with("options ndots:1\n"), "{overridden}");
    }

    #[test]
    fn hosts_file_names_the_pod() {
        let pod = |spec: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
        };
        let text = hosts(&pod(json!({"containers": [], "subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]})), "10.0.0.5", "cluster.local", "");
        assert!(text.contains("10.0.0.5\tweb-0.web.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
        let host = hosts(&pod(json!({"containers": [], "hostNetwork": true})), "192.0.2.1", "cluster.local", "127.0.0.1 me\n");
        assert!(host.ends_with("127.0.0.1 me\n") && !host.contains("web-0"));
        let (name, full) = hostname(&pod(json!({"containers": [], "hostname": "h"})), "cluster.local");
        assert_eq!((name.as_str(), full), ("h", None));
    }
}
