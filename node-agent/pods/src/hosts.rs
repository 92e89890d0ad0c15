//! What a pod's /etc/hosts contains. Pure.

use std::fmt::Write;
use std::net::IpAddr;

/// `hostAliases` of a pod: an address and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAlias {
    /// Address.
    pub ip: String,
    /// Names.
    pub hostnames: Vec<String>,
}

/// What decides about a pod's hosts file.
#[derive(Clone, Debug, Default)]
pub struct PodHosts<'a> {
    /// Addresses of the pod, none yet for a pod on the host's network.
    pub ips: &'a [IpAddr],
    /// Name of the pod's host: `spec.hostname` or the pod's name.
    pub hostname: &'a str,
    /// With `spec.subdomain`: `<subdomain>.<namespace>.svc.<cluster domain>`.
    pub domain: Option<&'a str>,
    /// `spec.hostAliases`.
    pub aliases: &'a [HostAlias],
    /// For a pod on the host's network: the content of the host's file.
    pub host_file: Option<&'a str>,
}

/// The file's content, as a kubelet writes it: its own entries (or the host's), the pod's, then the aliases.
pub fn hosts_file(pod: &PodHosts<'_>) -> String {
    let mut file = match pod.host_file {
        Some(host) => format!("# Kubernetes-managed hosts file (host network).\n{host}"),
        None => own_entries(pod),
    };
    if !pod.aliases.is_empty() {
        if !file.ends_with('\n') {
            file.push('\n');
        }
        file.push_str("\n# Entries added by HostAliases.\n");
        for alias in pod.aliases {
            let _infallible = writeln!(file, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
        }
    }
    file
}

fn own_entries(pod: &PodHosts<'_>) -> String {
    let mut file = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in pod.ips {
        let _infallible = match pod.domain {
            Some(domain) => writeln!(file, "{ip}\t{0}.{domain}\t{0}", pod.hostname),
            None => writeln!(file, "{ip}\t{}", pod.hostname),
        };
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_knows_itself_and_its_aliases() {
        let ips = ["10.244.0.5".parse().unwrap()];
        let aliases = [HostAlias {
            ip: "192.0.2.1".into(),
            hostnames: vec!["foo.local".into(), "bar.local".into()],
        }];
        let plain = PodHosts {
            ips: &ips,
            hostname: "web-0",
            ..PodHosts::default()
        };
        assert!(hosts_file(&plain).ends_with("ip6-allrouters\n10.244.0.5\tweb-0\n"));
        let full = PodHosts {
            domain: Some("web.default.svc.cluster.local"),
            aliases: &aliases,
            ..plain
        };
        assert!(hosts_file(&full).ends_with(
            "10.244.0.5\tweb-0.web.default.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n\
             192.0.2.1\tfoo.local\tbar.local\n"
        ));
    }

    #[test]
    fn on_the_hosts_network_it_is_the_hosts_file() {
        let aliases = [HostAlias {
            ip: "192.0.2.1".into(),
            hostnames: vec!["foo".into()],
        }];
        let pod = PodHosts {
            host_file: Some("127.0.0.1 localhost"),
            aliases: &aliases,
            ..PodHosts::default()
        };
        assert_eq!(
            hosts_file(&pod),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n\
             # Entries added by HostAliases.\n192.0.2.1\tfoo\n"
        );
    }
}
