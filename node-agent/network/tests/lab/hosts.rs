//! Several hosts: network namespaces on switches, which a router joins. The test's own namespace is the router: it
//! forwards between the subnets, and knows nothing of pods.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gantry_network::{
    BridgeNetwork, Ipv6Network, NodeNetwork, Overlay, OverlayMode, OverlaySettings, PeerNode,
    PeerPath, PodNetwork, VxlanOverlay,
};

use super::{DEADLINE, SILENCE, apart, inside, ip, new_namespace, path, runtime};

/// Where pods answer with their name and the client's address.
pub(crate) const PORT: u16 = 8080;
/// Where pods send back what they are sent.
pub(crate) const ECHO: u16 = 8081;
/// What an underlay of Ethernet leaves for pods.
pub(crate) const MTU: usize = 1450;
pub(crate) const MIB: usize = 1 << 20;

/// The router and its subnets, each with 256 addresses, of which the router has the 254th.
pub(crate) struct World {
    data: tempfile::TempDir,
    ports: AtomicU32,
}

/// Runs a test among hosts of its own.
pub(crate) fn among_hosts(test: impl FnOnce(&World) + Send) {
    apart(|| {
        ip("link set lo up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        test(&World {
            data: tempfile::tempdir().expect("a data directory"),
            ports: AtomicU32::new(0),
        });
    });
}

impl World {
    /// Makes a switch for the subnet `network.0/24`.
    pub(crate) fn subnet(&self, name: &str, network: &str) {
        ip(&format!("link add {name} type bridge"));
        ip(&format!("addr add {network}.254/24 dev {name}"));
        ip(&format!("link set {name} up"));
    }

    /// Plugs a machine into a switch.
    pub(crate) fn machine(&self, subnet: &str, address: Ipv4Addr) -> File {
        let namespace = new_namespace();
        let port = format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed));
        ip(&format!(
            "link add {port} type veth peer name eth0 netns {}",
            path(&namespace)
        ));
        ip(&format!("link set {port} master {subnet} up"));
        let [a, b, c, _] = address.octets();
        inside(&namespace, || {
            ip("link set lo up");
            ip(&format!("addr add {address}/24 dev eth0"));
            ip("link set eth0 up");
            ip(&format!("route add default via {a}.{b}.{c}.254"));
        });
        namespace
    }

    /// A host whose pods are in 10.244.`number`.0/24.
    pub(crate) fn host(
        &self,
        subnet: &str,
        address: [u8; 4],
        number: u8,
        mode: OverlayMode,
    ) -> Host {
        let address = Ipv4Addr::from(address);
        let overlay = OverlaySettings {
            mode,
            ..OverlaySettings::new(address.into())
        };
        let node = NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: format!("10.244.{number}.0/24").parse().expect("CIDR"),
            cluster_pod_cidr: "10.244.0.0/16".parse().expect("CIDR"),
            service_cidr: "10.96.0.0/12".parse().expect("CIDR"),
            data_dir: self.data.path().join(format!("host-{number}")),
            ipv6: None,
            overlay: Some(overlay),
        };
        Host {
            address,
            netns: self.machine(subnet, address),
            number,
            node,
        }
    }

    /// Two hosts on one subnet, 192.0.2.1 and 192.0.2.2.
    pub(crate) fn pair(&self, mode: OverlayMode) -> [Host; 2] {
        self.subnet("lan", "192.0.2");
        [1, 2].map(|number| self.host("lan", [192, 0, 2, number], number, mode))
    }
}

/// A machine with an agent's network.
pub(crate) struct Host {
    pub(crate) address: Ipv4Addr,
    pub(crate) netns: File,
    pub(crate) node: NodeNetwork,
    number: u8,
}

impl Host {
    /// Makes the cluster a dual-stack one.
    pub(crate) fn dual_stack(mut self) -> Self {
        self.node.ipv6 = Some(Ipv6Network {
            pod_cidr: format!("fd00:10:244:{}::/64", self.number)
                .parse()
                .expect("CIDR"),
            cluster_pod_cidr: "fd00:10:244::/48".parse().expect("CIDR"),
            service_cidr: None,
        });
        self
    }

    /// Does something on the host, with a runtime whose threads live there.
    pub(crate) fn on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        inside(&self.netns, || runtime().block_on(work()))
    }

    /// Sets up the network as a new agent process would.
    pub(crate) fn start(&self) -> (BridgeNetwork, VxlanOverlay) {
        self.on(async || {
            (
                BridgeNetwork::new(self.node.clone()).expect("the bridge"),
                VxlanOverlay::new(self.node.clone()).expect("the overlay"),
            )
        })
    }

    /// How other hosts know this one.
    pub(crate) fn peer(&self) -> PeerNode {
        let ipv6 = self.node.ipv6.map(|ipv6| ipv6.pod_cidr.into());
        PeerNode {
            name: format!("host-{}", self.number),
            address: self.address.into(),
            pod_cidrs: [self.node.pod_cidr.into()]
                .into_iter()
                .chain(ipv6)
                .collect(),
        }
    }

    /// Leads to exactly these hosts.
    pub(crate) fn know(&self, overlay: &VxlanOverlay, hosts: &[&Host]) {
        let peers = hosts.iter().map(|host| host.peer()).collect();
        self.on(async || overlay.sync(peers).await.expect("sync"));
    }

    /// Attaches a pod.
    pub(crate) fn pod(&self, network: &BridgeNetwork, name: &str) -> Far {
        let attachment = self.on(async || network.attach(name, &[]).await.expect("attach"));
        Far {
            netns: File::open(&attachment.netns).expect("the pod's namespace"),
            ip: attachment.ip,
            ip6: attachment.ip6.map(IpAddr::V6),
        }
    }
}

/// Hosts with their networks, each leading to all the others, and a pod on each.
pub(crate) struct Cluster {
    pub(crate) hosts: Vec<Host>,
    pub(crate) networks: Vec<BridgeNetwork>,
    pub(crate) overlays: Vec<VxlanOverlay>,
    pub(crate) pods: Vec<Far>,
}

impl Cluster {
    pub(crate) fn of(hosts: impl IntoIterator<Item = Host>) -> Self {
        let hosts: Vec<Host> = hosts.into_iter().collect();
        let (networks, overlays): (Vec<_>, Vec<_>) = hosts.iter().map(Host::start).unzip();
        let pods = hosts
            .iter()
            .zip(&networks)
            .map(|(host, network)| host.pod(network, "pod"))
            .collect();
        let cluster = Self {
            hosts,
            networks,
            overlays,
            pods,
        };
        for (index, host) in cluster.hosts.iter().enumerate() {
            let others: Vec<&Host> = cluster
                .hosts
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(_, host)| host)
                .collect();
            host.know(&cluster.overlays[index], &others);
        }
        cluster
    }
}

impl Drop for Cluster {
    /// What is mounted keeps the data directory from being removed, also after a failure.
    fn drop(&mut self) {
        for host in &self.hosts {
            let torn_down = host.on(async || BridgeNetwork::teardown(&host.node));
            if !std::thread::panicking() {
                torn_down.expect("teardown after the test");
            }
        }
    }
}

/// A pod that is reached from another host.
pub(crate) struct Far {
    pub(crate) netns: File,
    pub(crate) ip: Ipv4Addr,
    pub(crate) ip6: Option<IpAddr>,
}

/// Starts a server in the calling thread's namespace that sends back what it is sent, over TCP when the client has
/// said everything, over UDP each datagram; it ends with the process.
pub(crate) fn echo(address: impl Into<IpAddr>, port: u16) {
    let address = SocketAddr::new(address.into(), port);
    let tcp = TcpListener::bind(address).expect("listening on TCP");
    let udp = UdpSocket::bind(address).expect("listening on UDP");
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut said = Vec::new();
            if stream.read_to_end(&mut said).is_ok() {
                let _client_may_be_gone = stream.write_all(&said);
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let _client_may_be_gone = udp.send_to(&buffer[..length], peer);
        }
    });
}

/// Sends bytes to such a server over TCP and answers how many came back right.
pub(crate) fn there_and_back(address: impl Into<IpAddr>, port: u16, length: usize) -> usize {
    let sent: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
    let address = SocketAddr::new(address.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).expect("connecting");
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(DEADLINE)).expect("a deadline");
    }
    stream.write_all(&sent).expect("sending");
    stream.shutdown(Shutdown::Write).expect("the end");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("receiving");
    back.iter().zip(&sent).filter(|(a, b)| a == b).count()
}

/// Sends one datagram to such a server and answers how many bytes came back.
pub(crate) fn datagram(
    address: impl Into<IpAddr>,
    port: u16,
    length: usize,
) -> std::io::Result<usize> {
    datagram_within(DEADLINE, address.into(), port, length)
}

/// The same until one comes back: the first ones may be what tells either side of a size.
pub(crate) fn datagram_at_last(address: impl Into<IpAddr>, port: u16, length: usize) -> usize {
    let (address, began) = (address.into(), Instant::now());
    loop {
        match datagram_within(SILENCE, address, port, length) {
            Ok(back) => return back,
            Err(error) => assert!(began.elapsed() < DEADLINE, "{length} bytes: {error}"),
        }
    }
}

fn datagram_within(
    deadline: Duration,
    address: IpAddr,
    port: u16,
    length: usize,
) -> std::io::Result<usize> {
    let own: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((own, 0))?;
    socket.connect((address, port))?;
    socket.set_read_timeout(Some(deadline))?;
    socket.send(&vec![7; length])?;
    let mut buffer = vec![0; 1 << 16];
    socket.recv(&mut buffer)
}

/// A node that need not exist.
pub(crate) fn node(name: &str, address: &str, pod_cidr: &str) -> PeerNode {
    PeerNode {
        name: name.into(),
        address: address.parse().expect("an address"),
        pod_cidrs: vec![pod_cidr.parse().expect("an address")],
    }
}

/// How a host reaches its peers, in the order of their ranges.
pub(crate) fn paths(host: &Host, overlay: &VxlanOverlay) -> Vec<PeerPath> {
    let routes = host.on(async || overlay.routes().await.expect("routes"));
    routes.iter().map(|route| route.path).collect()
}
