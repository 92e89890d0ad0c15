//! A machine of its own for each test: a thread in fresh network and mount namespaces, in which the code under test
//! runs as on a host. When the thread ends, the kernel removes everything it made, however it ended.
//!
//! The namespace has a neighbour, `outside`, on the network 192.0.2.0/24: the host is .1, the neighbour .2.

#![allow(
    dead_code,
    reason = "each test binary and the benchmark use a part of it"
)]

pub(crate) mod hosts;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gantry_network::{
    BridgeNetwork, Endpoint, NodeNetwork, PodNetwork, Protocol, ServiceChanges, ServiceName,
    ServicePort,
};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use tokio::runtime::Runtime;

/// Long enough for a loaded machine, short enough to notice that nobody answers.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// How long a packet that must be dropped is waited for.
pub(crate) const SILENCE: Duration = Duration::from_millis(700);

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The machine.
pub(crate) struct Lab {
    pub(crate) node: NodeNetwork,
    pub(crate) outside: File,
    own: File,
    _data: tempfile::TempDir,
}

/// Runs a test on a machine of its own, with a runtime whose threads all live on it.
pub(crate) fn on_own_machine(test: impl AsyncFnOnce(&mut Lab) + Send) {
    blocking_on_own_machine(|lab, runtime| runtime.block_on(test(lab)));
}

/// The same for what drives the runtime itself.
pub(crate) fn blocking_on_own_machine(test: impl FnOnce(&mut Lab, &Runtime) + Send) {
    apart(|| {
        let runtime = runtime();
        let mut lab = Lab::new();
        test(&mut lab, &runtime);
    });
}

/// A runtime whose threads live in the network namespace of the thread that makes it.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Runs a test on a thread with network and mounts of its own.
fn apart(test: impl FnOnce() + Send) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces and nftables rules: run it as root (sudo make test)"
    );
    std::thread::scope(|scope| {
        let machine = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("making namespaces");
            mount_change(
                "/",
                MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
            )
            .expect("private mounts");
            hide_names();
            test();
        });
        if let Err(panic) = machine.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Takes away the files that protocols and ports are looked up in by name: minimal systems have none, and no rule may
/// need them.
fn hide_names() {
    let files = ["/etc/protocols", "/etc/services", "/etc/ethertypes"].map(Path::new);
    for file in files.into_iter().filter(|file| file.exists()) {
        mount_bind("/dev/null", file).expect("hiding a file");
    }
}

impl Drop for Lab {
    /// Also after a failure: what is mounted keeps the data directory from being removed.
    fn drop(&mut self) {
        let torn_down = BridgeNetwork::teardown(&self.node);
        if !std::thread::panicking() {
            torn_down.expect("teardown after the test");
        }
    }
}

impl Lab {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("a data directory");
        let node = NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: "10.244.1.0/24".parse().expect("CIDR"),
            cluster_pod_cidr: "10.244.0.0/16".parse().expect("CIDR"),
            service_cidr: "10.96.0.0/12".parse().expect("CIDR"),
            data_dir: data.path().join("network"),
            ipv6: None,
            overlay: None,
        };
        let outside = new_namespace();
        let own = File::open("/proc/thread-self/ns/net").expect("our own namespace");
        let lab = Self {
            node,
            outside,
            own,
            _data: data,
        };
        ip("link set lo up");
        let neighbour = path(&lab.outside);
        ip(&format!(
            "link add uplink type veth peer name eth0 netns {neighbour}"
        ));
        ip(&format!("addr add {HOST}/24 dev uplink"));
        ip("link set uplink up");
        lab.inside(&lab.outside, || {
            ip("link set lo up");
            ip(&format!("addr add {OUTSIDE}/24 dev eth0"));
            ip("link set eth0 up");
            ip(&format!("route add default via {HOST}"));
        });
        lab
    }

    /// Does something inside a namespace.
    pub(crate) fn inside<T: Send>(&self, namespace: &File, work: impl FnOnce() -> T + Send) -> T {
        inside(namespace, work)
    }

    /// Does something on the host.
    pub(crate) fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inside(&self.own, work)
    }

    /// Attaches a pod in which a server answers on TCP and UDP `port` with its name and the client's address.
    pub(crate) async fn pod(&self, network: &impl PodNetwork, name: &str, port: u16) -> Pod {
        let attachment = network.attach(name, &[]).await.expect("attach");
        let netns = File::open(&attachment.netns).expect("the pod's namespace");
        self.inside(&netns, || serve(name, Ipv4Addr::UNSPECIFIED, port));
        Pod {
            ip: attachment.ip,
            netns,
        }
    }
}

/// Does something inside a namespace.
pub(crate) fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
            work()
        });
        entered
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A network namespace that goes with its file, and with what is open in it.
fn new_namespace() -> File {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("making a network namespace");
            File::open("/proc/thread-self/ns/net").expect("opening the namespace")
        });
        made.join().expect("the namespace's thread")
    })
}

/// How iproute2 is told of a namespace.
fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// A pod of a test.
pub(crate) struct Pod {
    pub(crate) ip: Ipv4Addr,
    pub(crate) netns: File,
}

impl Pod {
    pub(crate) fn endpoint(&self, port: u16) -> Endpoint {
        endpoint(self.ip, port)
    }
}

/// An endpoint on this node.
pub(crate) fn endpoint(ip: impl Into<IpAddr>, port: u16) -> Endpoint {
    Endpoint {
        ip: ip.into(),
        port,
        local: true,
    }
}

pub(crate) fn name(service: &str) -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: service.into(),
    }
}

/// These services and no others.
pub(crate) fn only<const N: usize>(services: [(&str, ServicePort); N]) -> ServiceChanges {
    ServiceChanges {
        complete: true,
        ..changed(services)
    }
}

/// These services, and the others as they were.
pub(crate) fn changed<const N: usize>(services: [(&str, ServicePort); N]) -> ServiceChanges {
    ServiceChanges {
        complete: false,
        services: services
            .map(|(service, port)| (name(service), vec![port]))
            .into(),
    }
}

/// A service's TCP port 80.
pub(crate) fn service(cluster_ip: impl Into<IpAddr>, endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort {
        port_name: String::new(),
        protocol: Protocol::Tcp,
        cluster_ip: cluster_ip.into(),
        port: 80,
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        node_port: None,
        client_ip_affinity: None,
        external_local: false,
        internal_local: false,
        endpoints,
        local_endpoints: vec![],
        held: None,
    }
}

/// Runs iproute2 in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    command("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// Runs a program and answers what it prints.
pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("running a program");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Starts a server in the calling thread's namespace; it ends with the process.
pub(crate) fn serve(name: &str, address: impl Into<IpAddr>, port: u16) {
    let address = address.into();
    let tcp = TcpListener::bind((address, port)).expect("listening on TCP");
    let udp = UdpSocket::bind((address, port)).expect("listening on UDP");
    let answer = move |name: &str, peer: SocketAddr| format!("{name} {}", peer.ip());
    let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            if let Ok(peer) = stream.peer_addr() {
                let _client_may_be_gone = stream.write_all(answer(&tcp_name, peer).as_bytes());
                let _client_may_be_gone = stream.shutdown(Shutdown::Both);
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _client_may_be_gone = udp.send_to(answer(&udp_name, peer).as_bytes(), peer);
        }
    });
}

/// What a server answers over TCP, or why there is no connection.
pub(crate) fn ask(address: impl Into<IpAddr>, port: u16) -> Result<String, ErrorKind> {
    ask_within(DEADLINE, address, port)
}

/// The same with a deadline of one's own.
pub(crate) fn ask_within(
    deadline: Duration,
    address: impl Into<IpAddr>,
    port: u16,
) -> Result<String, ErrorKind> {
    let address = SocketAddr::new(address.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, deadline).map_err(|e| e.kind())?;
    stream
        .set_read_timeout(Some(deadline))
        .map_err(|e| e.kind())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
    Ok(answer)
}

/// What a server answers over UDP.
pub(crate) fn ask_udp(address: impl Into<IpAddr>, port: u16) -> Result<String, ErrorKind> {
    let client = UdpClient::new(address, port)?;
    client.ask()
}

/// A client that keeps its port.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    pub(crate) fn new(address: impl Into<IpAddr>, port: u16) -> Result<Self, ErrorKind> {
        let address = address.into();
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).map_err(|e| e.kind())?;
        socket.connect((address, port)).map_err(|e| e.kind())?;
        socket
            .set_read_timeout(Some(DEADLINE))
            .map_err(|e| e.kind())?;
        Ok(Self(socket))
    }

    pub(crate) fn ask(&self) -> Result<String, ErrorKind> {
        self.0.send(b"?").map_err(|e| e.kind())?;
        let mut buffer = [0; 512];
        let length = self.0.recv(&mut buffer).map_err(|e| e.kind())?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

/// Who answered, of an answer.
pub(crate) fn who(answer: &str) -> &str {
    answer.split(' ').next().unwrap_or_default()
}
