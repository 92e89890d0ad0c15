//! What a pod's /etc/resolv.conf contains, and what the node's own says. Pure, except for reading the latter.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use gantry_cri::network::NetworkError;

/// Name servers that a resolver heeds.
const MOST_NAMESERVERS: usize = 3;
/// Search domains, and the characters of them all, that Kubernetes allows.
const MOST_SEARCHES: usize = 32;
const LONGEST_SEARCHES: usize = 2048;
/// Where DNS is answered.
const PORT: u16 = 53;

/// `spec.dnsPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPolicy {
    /// The cluster's DNS, unless the pod is on the host's network.
    #[default]
    ClusterFirst,
    /// The cluster's DNS, also on the host's network.
    ClusterFirstWithHostNet,
    /// The node's.
    Default,
    /// Only what `spec.dnsConfig` says.
    None,
}

impl FromStr for DnsPolicy {
    type Err = NetworkError;

    fn from_str(word: &str) -> Result<Self, NetworkError> {
        match word {
            "ClusterFirst" | "" => Ok(Self::ClusterFirst),
            "ClusterFirstWithHostNet" => Ok(Self::ClusterFirstWithHostNet),
            "Default" => Ok(Self::Default),
            "None" => Ok(Self::None),
            other => Err(NetworkError::Unsupported(format!(
                "dnsPolicy {other:?}: use ClusterFirst, ClusterFirstWithHostNet, Default or None"
            ))),
        }
    }
}

/// `spec.dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Name servers, added to those of the policy.
    pub nameservers: Vec<String>,
    /// Search domains, added to those of the policy.
    pub searches: Vec<String>,
    /// Options: name, and value if any. They replace those of the same name.
    pub options: Vec<(String, Option<String>)>,
}

/// What decides about a pod's resolv.conf.
#[derive(Clone, Debug)]
pub struct PodDns<'a> {
    /// `spec.dnsPolicy`.
    pub policy: DnsPolicy,
    /// `spec.dnsConfig`.
    pub config: Option<&'a DnsConfig>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Such as `cluster.local`.
    pub cluster_domain: &'a str,
    /// Addresses of the cluster's DNS service, in the order of its address families.
    pub nameservers: &'a [IpAddr],
    /// The node's own resolv.conf.
    pub host: &'a HostResolver,
}

/// The node's resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostResolver {
    /// `nameserver` lines.
    pub nameservers: Vec<String>,
    /// The last `search` (or `domain`) line.
    pub searches: Vec<String>,
    /// All `options`.
    pub options: Vec<(String, Option<String>)>,
}

impl HostResolver {
    /// Reads the node's configuration. Where /etc/resolv.conf names only a resolver on the loopback (systemd-resolved),
    /// which pods cannot reach, the file behind it is taken. None at all is an empty configuration.
    pub fn read() -> Result<Self, NetworkError> {
        let host = Self::read_file(Path::new("/etc/resolv.conf"))?;
        if !host.nameservers.is_empty() && host.nameservers.iter().all(|server| is_loopback(server))
        {
            let behind = Self::read_file(Path::new("/run/systemd/resolve/resolv.conf"))?;
            if !behind.nameservers.is_empty() {
                return Ok(behind);
            }
        }
        Ok(host)
    }

    fn read_file(path: &Path) -> Result<Self, NetworkError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(NetworkError::Io {
                doing: format!("reading {}", path.display()),
                source,
            }),
        }
    }

    /// Understands the format of resolv.conf(5); unknown lines are passed over.
    pub fn parse(text: &str) -> Self {
        let mut host = Self::default();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with(['#', ';']))
        {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => host.nameservers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => {
                    host.searches = words.map(search).collect();
                }
                Some("options") => host.options.extend(words.map(option)),
                _ => {}
            }
        }
        host
    }

    /// The name servers as addresses to forward queries to.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.nameservers
            .iter()
            .filter_map(|server| Some((server.parse::<IpAddr>().ok()?, PORT).into()))
            .collect()
    }
}

/// The content of a pod's resolv.conf.
pub fn resolv_conf(pod: &PodDns<'_>) -> String {
    let cluster = match pod.policy {
        DnsPolicy::ClusterFirst => !pod.host_network,
        DnsPolicy::ClusterFirstWithHostNet => true,
        DnsPolicy::Default | DnsPolicy::None => false,
    };
    let mut conf = match pod.policy {
        DnsPolicy::None => HostResolver::default(),
        _ if cluster => {
            let domain = pod.cluster_domain.trim_matches('.');
            let mut searches = vec![
                format!("{}.svc.{domain}", pod.namespace),
                format!("svc.{domain}"),
                domain.to_owned(),
            ];
            extend(&mut searches, &pod.host.searches);
            HostResolver {
                nameservers: pod.nameservers.iter().map(IpAddr::to_string).collect(),
                searches,
                options: vec![("ndots".to_owned(), Some("5".to_owned()))],
            }
        }
        _ => pod.host.clone(),
    };
    if let Some(config) = pod.config {
        extend(&mut conf.nameservers, &config.nameservers);
        extend(&mut conf.searches, &config.searches);
        for (name, value) in &config.options {
            match conf.options.iter_mut().find(|(known, _)| known == name) {
                Some(known) => known.1.clone_from(value),
                None => conf.options.push((name.clone(), value.clone())),
            }
        }
    }
    render(conf)
}

fn render(mut conf: HostResolver) -> String {
    conf.nameservers.truncate(MOST_NAMESERVERS);
    conf.searches.truncate(MOST_SEARCHES);
    while conf
        .searches
        .iter()
        .map(|search| search.len() + 1)
        .sum::<usize>()
        > LONGEST_SEARCHES + 1
    {
        conf.searches.pop();
    }
    let mut text = String::new();
    if !conf.searches.is_empty() {
        text.push_str(&format!("search {}\n", conf.searches.join(" ")));
    }
    for server in &conf.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !conf.options.is_empty() {
        let options: Vec<String> = conf
            .options
            .into_iter()
            .map(|(name, value)| match value.as_deref() {
                None | Some("") => name,
                Some(value) => format!("{name}:{value}"),
            })
            .collect();
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn extend(list: &mut Vec<String>, more: &[String]) {
    for entry in more {
        if !list.contains(entry) {
            list.push(entry.clone());
        }
    }
}

/// A search domain without its trailing dot, so that it counts once. The root keeps it.
fn search(word: &str) -> String {
    match word.strip_suffix('.') {
        Some(domain) if !domain.is_empty() => domain.to_owned(),
        _ => word.to_owned(),
    }
}

fn option(word: &str) -> (String, Option<String>) {
    match word.split_once(':') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

fn is_loopback(server: &str) -> bool {
    server
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const CLUSTER_DNS: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))];

    fn host() -> HostResolver {
        HostResolver::parse(
            "# a comment\nnameserver 192.0.2.53\nnameserver fd00::53\nsearch old.example\nsearch example.com. .\n\
             options rotate timeout:1\nsortlist 10.0.0.0\n",
        )
    }

    fn pod<'a>(
        policy: DnsPolicy,
        host: &'a HostResolver,
        config: Option<&'a DnsConfig>,
    ) -> PodDns<'a> {
        PodDns {
            policy,
            config,
            host_network: false,
            namespace: "shop",
            cluster_domain: "cluster.local",
            nameservers: &CLUSTER_DNS,
            host,
        }
    }

    #[test]
    fn the_hosts_file_is_understood() {
        let host = host();
        assert_eq!(host.searches, ["example.com", "."], "the last line counts");
        assert_eq!(
            host.upstreams(),
            [
                "192.0.2.53:53".parse().unwrap(),
                "[fd00::53]:53".parse().unwrap()
            ]
        );
        assert_eq!(
            host.options[1],
            ("timeout".to_owned(), Some("1".to_owned()))
        );
    }

    #[test]
    fn each_policy() {
        let host = host();
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local example.com .\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let own = "search example.com .\nnameserver 192.0.2.53\nnameserver fd00::53\noptions rotate timeout:1\n";
        assert_eq!(
            resolv_conf(&pod(DnsPolicy::ClusterFirst, &host, None)),
            cluster
        );
        assert_eq!(resolv_conf(&pod(DnsPolicy::Default, &host, None)), own);
        assert_eq!(resolv_conf(&pod(DnsPolicy::None, &host, None)), "");
        let on_host = |policy| PodDns {
            host_network: true,
            ..pod(policy, &host, None)
        };
        assert_eq!(resolv_conf(&on_host(DnsPolicy::ClusterFirst)), own);
        assert_eq!(
            resolv_conf(&on_host(DnsPolicy::ClusterFirstWithHostNet)),
            cluster
        );
        assert_eq!(
            "ClusterFirst".parse::<DnsPolicy>().unwrap(),
            DnsPolicy::ClusterFirst
        );
        assert!("clusterfirst".parse::<DnsPolicy>().is_err());
    }

    #[test]
    fn the_pods_own_configuration_is_added_and_its_options_win() {
        let host = host();
        let config = DnsConfig {
            nameservers: vec![
                "10.96.0.10".into(),
                "192.0.2.1".into(),
                "192.0.2.2".into(),
                "192.0.2.3".into(),
            ],
            searches: vec!["svc.cluster.local".into(), "my.example".into()],
            options: vec![("ndots".into(), Some("2".into())), ("edns0".into(), None)],
        };
        assert_eq!(
            resolv_conf(&pod(DnsPolicy::ClusterFirst, &host, Some(&config))),
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.com . my.example\n\
             nameserver 10.96.0.10\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            resolv_conf(&pod(DnsPolicy::None, &host, Some(&config)))
                .lines()
                .next(),
            Some("search svc.cluster.local my.example")
        );
    }

    #[test]
    fn the_cluster_may_have_name_servers_in_both_families() {
        let host = HostResolver::default();
        let both = [CLUSTER_DNS[0], IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let dual = PodDns {
            nameservers: &both,
            ..pod(DnsPolicy::ClusterFirst, &host, None)
        };
        assert!(resolv_conf(&dual).contains("\nnameserver 10.96.0.10\nnameserver ::1\n"));
    }

    #[test]
    fn an_option_without_a_value_takes_one_and_loses_it() {
        let host =
            HostResolver::parse("nameserver 192.0.2.53\noptions rotate timeout:1 attempts:2\n");
        let config = DnsConfig {
            options: vec![
                ("timeout".into(), Some("3".into())),
                ("attempts".into(), None),
            ],
            ..DnsConfig::default()
        };
        assert_eq!(
            resolv_conf(&pod(DnsPolicy::Default, &host, Some(&config))),
            "nameserver 192.0.2.53\noptions rotate timeout:3 attempts\n"
        );
    }

    #[test]
    fn what_is_written_reads_as_what_was_meant() {
        let host = host();
        let text = resolv_conf(&pod(DnsPolicy::ClusterFirst, &host, None));
        let read = HostResolver::parse(&text);
        assert_eq!(read.nameservers, ["10.96.0.10"]);
        assert_eq!(
            read.searches,
            [
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "example.com",
                "."
            ]
        );
        assert_eq!(read.options, [("ndots".to_owned(), Some("5".to_owned()))]);
    }

    #[test]
    fn search_domains_are_limited_in_number_and_length() {
        let host = HostResolver::default();
        let many = DnsConfig {
            searches: (0..60).map(|i| format!("d{i}")).collect(),
            ..DnsConfig::default()
        };
        let conf = resolv_conf(&pod(DnsPolicy::ClusterFirst, &host, Some(&many)));
        assert_eq!(
            conf.lines().next().unwrap().split(' ').count(),
            1 + MOST_SEARCHES
        );
        let long = DnsConfig {
            searches: (0..20).map(|i| format!("{i}{}", "x".repeat(200))).collect(),
            ..many
        };
        let conf = resolv_conf(&pod(DnsPolicy::None, &host, Some(&long)));
        assert!(conf.lines().next().unwrap().len() <= "search ".len() + LONGEST_SEARCHES);
        assert_eq!(conf.lines().next().unwrap().split(' ').count(), 1 + 10);
    }
}
