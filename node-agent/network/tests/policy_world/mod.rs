//! The world of the truth table in a real kernel: two nodes in namespaces of their own, joined by a link and routes, the
//! table's pods on them, and two outsiders.
//!
//! The policies are compiled by the simplest means that can be right for this small world, quite apart from how servers
//! do it.

#[path = "../../../../e2e/src/policy_cases/mod.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "the table is shared with others"
)]
pub(crate) mod policy_cases;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use gantry_network::{
    BridgeNetwork, Ipv6Network, IsolatedPod, NftPolicyRules, NodeNetwork, NodePolicies, PeerSet,
    PodNetwork as _, PolicyPeers, PolicyPort, PolicyRule, PolicyRuleSet, PolicyRules as _,
    Protocol,
};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::lab::{DEADLINE, Lab, SILENCE, ip};
use policy_cases::{Case, PODS, PORTS, Probe, Speaks};

/// Does asynchronous work on a node: in a runtime whose threads all live there.
pub(crate) fn on_node<T: Send>(lab: &Lab, node: &File, work: impl AsyncFnOnce() -> T + Send) -> T {
    lab.inside(node, || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work())
    })
}

pub(crate) struct Place {
    pub(crate) netns: File,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

pub(crate) struct World<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) rules: Vec<NftPolicyRules>,
    nodes: Vec<File>,
    places: BTreeMap<String, Place>,
    first: NodeNetwork,
    second: NodeNetwork,
    _data: tempfile::TempDir,
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        let second = &self.second;
        let torn_down = self
            .lab
            .inside(&self.nodes[1], || BridgeNetwork::teardown(second));
        if !std::thread::panicking() {
            torn_down.expect("teardown of the second node");
        }
    }
}

fn new_namespace() -> File {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("making a namespace");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        made.join().expect("the namespace's thread")
    })
}

/// Joins the calling thread's namespace with another, as `here` and `eth0`: `.1` and `.2` of a network.
fn join(lab: &Lab, other: &File, here: &str, v4: &str, v6: &str) {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/{}/fd/{}", std::process::id(), other.as_raw_fd());
    ip(&format!(
        "link add {here} type veth peer name eth0 netns {path}"
    ));
    let address = |link: &str, last: u8| {
        ip(&format!("addr add {v4}{last}/24 dev {link}"));
        ip(&format!("-6 addr add {v6}{last}/64 dev {link} nodad"));
        ip(&format!("link set {link} up"));
    };
    address(here, 1);
    lab.inside(other, || {
        address("eth0", 2);
        ip(&format!("route add default via {v4}1"));
        ip(&format!("-6 route add default via {v6}1"));
    });
}

impl<'a> World<'a> {
    /// The host of the lab is the first node, its neighbour the second, reached by routes.
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let data = tempfile::tempdir().expect("a data directory");
        let of_node = |number: usize, node: NodeNetwork| NodeNetwork {
            ipv6: Some(Ipv6Network {
                pod_cidr: format!("fd77:{number}::/64").parse().expect("CIDR"),
                cluster_pod_cidr: "fd77::/20".parse().expect("CIDR"),
                service_cidr: None,
            }),
            ..node
        };
        let first = of_node(1, lab.node.clone());
        let second = NodeNetwork {
            pod_cidr: "10.244.2.0/24".parse().expect("CIDR"),
            data_dir: data.path().join("network"),
            ..lab.node.clone()
        };
        let second = of_node(2, second);
        let nodes = vec![
            File::open("/proc/thread-self/ns/net").expect("our own namespace"),
            lab.outside.try_clone().expect("the neighbour"),
        ];
        ip("-6 addr add fd77:c0::1/64 dev uplink nodad");
        ip("route add 10.244.2.0/24 via 192.0.2.2");
        ip("-6 route add fd77:2::/64 via fd77:c0::2");
        lab.inside(&nodes[1], || {
            ip("-6 addr add fd77:c0::2/64 dev eth0 nodad");
            ip("-6 route add default via fd77:c0::1");
        });
        let mut world = Self {
            lab,
            rules: Vec::new(),
            nodes,
            places: BTreeMap::new(),
            first,
            second,
            _data: data,
        };
        for (index, id) in policy_cases::OUTSIDERS.iter().enumerate() {
            let netns = new_namespace();
            let (v4, v6) = (
                format!("198.51.{}.", 100 + index),
                format!("fd77:{}::", 100 + index),
            );
            join(lab, &netns, &format!("out{index}"), &v4, &v6);
            world.settle(id, netns, &format!("{v4}2"), &format!("{v6}2"));
        }
        for node in 0..2 {
            world.start_node(node);
        }
        world
    }

    fn start_node(&mut self, node: usize) {
        let config = if node == 0 { &self.first } else { &self.second };
        let netns = self.nodes[node].try_clone().expect("the node");
        let pods = PODS.iter().filter(|pod| pod.node == node);
        let (rules, attached) = on_node(self.lab, &netns, async || {
            let network = BridgeNetwork::new(config.clone()).expect("the node's network");
            let mut attached = Vec::new();
            for pod in pods {
                let attachment = network.attach(&uid(pod.id), &[]).await.expect("attach");
                attached.push((pod.id, attachment));
            }
            (NftPolicyRules::new(config).expect("nft"), attached)
        });
        self.rules.push(rules);
        for (id, attachment) in attached {
            let netns = File::open(&attachment.netns).expect("the pod's namespace");
            let v6 = attachment.ip6.expect("an IPv6 address").to_string();
            self.settle(id, netns, &attachment.ip.to_string(), &v6);
        }
        let number = node + 1;
        self.settle(
            &format!("node-{node}"),
            netns,
            &format!("192.0.2.{number}"),
            &format!("fd77:c0::{number}"),
        );
    }

    fn settle(&mut self, id: &str, netns: File, v4: &str, v6: &str) {
        self.lab
            .inside(&netns, || PORTS.iter().for_each(|port| serve(*port)));
        let place = Place {
            netns,
            v4: v4.parse().expect("an address"),
            v6: v6.parse().expect("an address"),
        };
        self.places.insert(id.to_owned(), place);
    }

    pub(crate) fn place(&self, id: &str) -> &Place {
        &self.places[id]
    }

    pub(crate) fn address(&self, id: &str, v6: bool) -> IpAddr {
        let place = self.place(id);
        if v6 { place.v6 } else { place.v4 }
    }

    /// Does something where a pod, node or outsider is.
    pub(crate) fn at<T: Send>(&self, id: &str, work: impl FnOnce() -> T + Send) -> T {
        self.lab.inside(&self.place(id).netns, work)
    }

    /// Programs what the policies mean into both nodes.
    pub(crate) fn program(&self, policies: &[(&str, Value)]) {
        for (node, rules) in self.rules.iter().enumerate() {
            let desired = self.compile(policies, node);
            on_node(self.lab, &self.nodes[node], async || {
                rules.sync(desired).await.expect("programmed");
            });
        }
    }

    /// The probes that came out otherwise than the table says.
    pub(crate) fn wrong(&self, case: &Case, v6: bool) -> Vec<String> {
        self.program(&case.policies);
        let wrong = |probe: &Probe| {
            (self.arrives(probe, v6) != probe.allowed).then(|| format!("{}: {probe:?}", case.name))
        };
        std::thread::scope(|scope| {
            let probes: Vec<_> = case
                .probes
                .iter()
                .map(|probe| scope.spawn(move || wrong(probe)))
                .collect();
            probes
                .into_iter()
                .filter_map(|probe| probe.join().expect("a probe"))
                .collect()
        })
    }

    fn arrives(&self, probe: &Probe, v6: bool) -> bool {
        let wait = if probe.allowed { DEADLINE } else { SILENCE };
        let to = SocketAddr::new(self.address(probe.to, v6), probe.port);
        self.at(probe.from, || match probe.speaks {
            Speaks::Tcp => tcp(to, wait),
            Speaks::Udp => udp(to, wait),
            Speaks::Icmp => echo(to.ip(), wait),
        })
    }

    fn compile(&self, policies: &[(&str, Value)], node: usize) -> NodePolicies {
        let mut desired = NodePolicies::default();
        for (index, (namespace, spec)) in policies.iter().enumerate() {
            let name = format!("policy-{index}");
            let compiler = Compiler {
                world: self,
                namespace,
                name: &name,
            };
            let (ingress, egress) = directions(spec);
            let of = |direction: &str, wanted: bool| match (wanted, spec[direction].as_array()) {
                (true, Some(rules)) => rules.clone(),
                _ => Vec::new(),
            };
            let rules = PolicyRuleSet {
                ingress: compiler.rules(&of("ingress", ingress), "from", &mut desired.peers),
                egress: compiler.rules(&of("egress", egress), "to", &mut desired.peers),
            };
            desired.policies.insert(name.clone(), Arc::new(rules));
            for pod in PODS {
                if pod.node != node
                    || !pod.id.starts_with(&format!("{namespace}/"))
                    || !selects(&spec["podSelector"], &[("app", pod.app)])
                {
                    continue;
                }
                let place = self.place(pod.id);
                let isolated = desired.pods.entry(uid(pod.id)).or_insert(IsolatedPod {
                    addresses: vec![place.v4, place.v6],
                    ingress: false,
                    egress: false,
                    policies: BTreeSet::new(),
                    ports: [(Protocol::Tcp, "http".to_owned(), pod.http)].into(),
                });
                isolated.ingress |= ingress;
                isolated.egress |= egress;
                isolated.policies.insert(name.clone());
            }
        }
        desired
    }
}

fn uid(id: &str) -> String {
    id.replace('/', "-")
}

fn directions(spec: &Value) -> (bool, bool) {
    match spec["policyTypes"].as_array() {
        Some(types) => (
            types.contains(&"Ingress".into()),
            types.contains(&"Egress".into()),
        ),
        None => (
            true,
            spec["egress"]
                .as_array()
                .is_some_and(|rules| !rules.is_empty()),
        ),
    }
}

fn selects(selector: &Value, labels: &[(&str, &str)]) -> bool {
    let label = |key: &str| {
        labels
            .iter()
            .find(|(own, _)| *own == key)
            .map(|(_, value)| *value)
    };
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    equal
        .into_iter()
        .all(|(key, value)| label(key) == value.as_str())
        && expressions.into_iter().all(|expression| {
            let value = label(expression["key"].as_str().expect("a key"));
            let listed = || {
                expression["values"]
                    .as_array()
                    .expect("values")
                    .iter()
                    .any(|one| one.as_str() == value)
            };
            match expression["operator"].as_str() {
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                Some("In") => listed(),
                Some("NotIn") => !listed(),
                other => panic!("the table uses {other:?}"),
            }
        })
}

struct Compiler<'a> {
    world: &'a World<'a>,
    namespace: &'a str,
    name: &'a str,
}

impl Compiler<'_> {
    fn rules(
        &self,
        rules: &[Value],
        side: &str,
        sets: &mut BTreeMap<String, PeerSet>,
    ) -> Vec<PolicyRule> {
        let mut compiled = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let peers = rule[side].as_array().cloned().unwrap_or_default();
            let ports: Vec<PolicyPort> = rule["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .map(port)
                .collect();
            let pods: Vec<_> = PODS
                .iter()
                .filter(|pod| peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, pod)))
                .collect();
            let name = format!("{}-{side}-{index}", self.name);
            let addresses = |id: &str| [self.world.place(id).v4, self.world.place(id).v6];
            let (named, numbers): (Vec<_>, Vec<_>) = ports
                .iter()
                .cloned()
                .partition(|port| side == "to" && matches!(port, PolicyPort::Named(..)));
            if !named.is_empty() {
                let with_ports = pods
                    .iter()
                    .flat_map(|pod| addresses(pod.id).map(|ip| (ip, pod.http)));
                let set = PeerSet {
                    with_ports: true,
                    peers: with_ports.collect(),
                };
                sets.insert(format!("{name}-http"), set);
                compiled.push(PolicyRule {
                    peers: PolicyPeers::Of {
                        sets: vec![format!("{name}-http")],
                        blocks: vec![],
                    },
                    ports: Some(vec![PolicyPort::OfPeer(Protocol::Tcp)]),
                });
                if numbers.is_empty() {
                    continue;
                }
            }
            let peers = if peers.is_empty() {
                PolicyPeers::Anyone
            } else {
                let of_pods = pods
                    .iter()
                    .flat_map(|pod| addresses(pod.id).map(|ip| (ip, 0)));
                sets.insert(
                    name.clone(),
                    PeerSet {
                        with_ports: false,
                        peers: of_pods.collect(),
                    },
                );
                let mut blocks = Vec::new();
                for block in peers
                    .iter()
                    .map(|peer| &peer["ipBlock"])
                    .filter(|block| block.is_object())
                {
                    let net = |text: &Value| {
                        text.as_str()
                            .expect("text")
                            .parse::<IpNet>()
                            .expect("a CIDR")
                    };
                    let except: Vec<IpNet> = block["except"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(net)
                        .collect();
                    without(net(&block["cidr"]), &except, &mut blocks);
                }
                PolicyPeers::Of {
                    sets: vec![name],
                    blocks,
                }
            };
            compiled.push(PolicyRule {
                peers,
                ports: (!numbers.is_empty()).then_some(numbers),
            });
        }
        compiled
    }

    fn is_peer(&self, peer: &Value, pod: &policy_cases::CasePod) -> bool {
        let (pods, namespaces) = (&peer["podSelector"], &peer["namespaceSelector"]);
        if pods.is_null() && namespaces.is_null() {
            return false;
        }
        let (own, _) = pod.id.split_once('/').expect("namespace/name");
        let team = policy_cases::NAMESPACES
            .iter()
            .find(|(name, _)| *name == own)
            .expect("a namespace")
            .1;
        let in_namespace = match namespaces.is_null() {
            true => own == self.namespace,
            false => selects(
                namespaces,
                &[("team", team), ("kubernetes.io/metadata.name", own)],
            ),
        };
        in_namespace && selects(pods, &[("app", pod.app)])
    }
}

fn port(written: &Value) -> PolicyPort {
    let protocol = match written["protocol"].as_str() {
        Some("UDP") => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let number = |value: &Value| u16::try_from(value.as_u64().expect("a number")).expect("a port");
    match &written["port"] {
        Value::Null => PolicyPort::All(protocol),
        Value::String(name) => PolicyPort::Named(protocol, name.clone()),
        first if written["endPort"].is_null() => {
            PolicyPort::Range(protocol, number(first), number(first))
        }
        first => PolicyPort::Range(protocol, number(first), number(&written["endPort"])),
    }
}

fn without(block: IpNet, except: &[IpNet], left: &mut Vec<IpNet>) {
    if except.contains(&block) {
        return;
    }
    if !except.iter().any(|out| block.contains(out)) {
        return left.push(block);
    }
    for half in block.subnets(block.prefix_len() + 1).expect("halves") {
        without(half, except, left);
    }
}

/// Answers on TCP and UDP, in both families.
fn serve(port: u16) {
    let (tcp, udp) = (
        TcpListener::bind(("::", port)),
        UdpSocket::bind(("::", port)),
    );
    let (tcp, udp) = (
        tcp.expect("listening on TCP"),
        udp.expect("listening on UDP"),
    );
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            // Echoes until the client has gone.
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let _client_may_be_gone = udp.send_to(&buffer[..length], peer);
        }
    });
}

/// Whether a message over an open connection comes back in time.
pub(crate) fn echoes(stream: &mut TcpStream, message: &[u8], wait: Duration) -> bool {
    let mut answer = vec![0; message.len()];
    stream.set_read_timeout(Some(wait)).expect("a timeout");
    stream.write_all(message).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == message
}

fn tcp(to: SocketAddr, wait: Duration) -> bool {
    TcpStream::connect_timeout(&to, wait).is_ok_and(|mut stream| echoes(&mut stream, b"?", wait))
}

fn asks(socket: &UdpSocket, question: &[u8], wait: Duration) -> bool {
    socket.set_read_timeout(Some(wait)).expect("a timeout");
    socket.send(question).is_ok() && socket.recv(&mut [0; 64]).is_ok()
}

pub(crate) fn udp(to: SocketAddr, wait: Duration) -> bool {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect(to).is_ok() && asks(&socket, b"?", wait)
}

/// A ping, by way of the sockets that pods may open without any rights.
fn echo(to: IpAddr, wait: Duration) -> bool {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = socket(family, SocketType::DGRAM, Some(protocol)).expect("a socket for pings");
    let socket = UdpSocket::from(socket);
    socket.connect(SocketAddr::new(to, 0)).is_ok()
        && asks(&socket, &[request, 0, 0, 0, 0, 0, 0, 1], wait)
}
