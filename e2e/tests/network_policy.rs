//! The truth table of NetworkPolicy in a whole cluster: policies go through the API, probes are real connections of real
//! pods on the same and on different nodes.
//!
//! A probe that must not arrive proves nothing where nothing arrives anyway, nor does one that must arrive before its
//! policies are in force. So the cluster is seen open before the first and after every case, with every probe passing;
//! and a case that allows all it probes begins behind closed doors, which are removed after its policies have come.
//!
//! Two machines outside the cluster stand for the table's outsiders: the switch, where clients are, and the server's.
//! They reach pods by routes that this test gives them.
//!
//! Not shown here but in `node-agent/network/tests/policy.rs`: IPv6, SCTP, and what becomes of connections that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::policy_cases::{
    Case, CasePod, NAMESPACES, OUTSIDERS, PODS, PORTS, Probe, Speaks, cases,
};
use gantry_e2e::{Fleet, TOOLS, eventually};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// How long a packet that must be dropped is waited for.
const SILENCE: Duration = Duration::from_millis(400);
/// How long an answer that must come may take once the policies are in force.
const PATIENCE: Duration = Duration::from_secs(20);
/// The table has more; fewer would mean that this test looks at something else.
const FEWEST_CASES: usize = 40;

/// Somebody who probes and is probed.
struct Place {
    netns: File,
    address: IpAddr,
}

/// By what the table calls them.
type Places = BTreeMap<String, Place>;

struct World<'a> {
    fleet: &'a Fleet,
    places: Places,
}

#[test]
fn the_truth_table_holds_in_a_cluster() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    let world = World::new(&fleet).with_context(|| fleet.logs())?;
    let table = cases(&|id| world.places[id].address.to_string());
    let probes: Vec<Probe> = table.iter().flat_map(|case| case.probes.clone()).collect();
    ensure!(
        table.len() >= FEWEST_CASES,
        "the table has only {} cases",
        table.len()
    );
    let began = Instant::now();
    world
        .becomes("everything to pass without policies", &all(&probes, true))
        .with_context(|| fleet.logs())?;
    for (number, case) in table.iter().enumerate() {
        world
            .holds(case, &format!("case-{number}"))
            .with_context(|| format!("case {number}, {:?}", case.name))
            .with_context(|| fleet.logs())?;
    }
    println!(
        "{} cases with {} probes held, in {:.1} s",
        table.len(),
        probes.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

impl<'a> World<'a> {
    /// The table's namespaces and pods, with everybody serving.
    fn new(fleet: &'a Fleet) -> Result<Self> {
        let nodes = fleet.node_names();
        let namespaces = NAMESPACES.map(|(name, team)| {
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"team": team}},
            })
        });
        fleet.apply_all(&namespaces)?;
        let pods = PODS.map(|pod| manifest(&pod, &nodes[pod.node]));
        // A namespace's service account comes a moment after the namespace.
        eventually("the pods to be accepted", || fleet.apply_all(&pods))?;
        let running = eventually("the pods to run", || {
            let listed = fleet.kubectl("s1", &["get", "pods", "--all-namespaces", "-o", "json"])?;
            let listed: Value = serde_json::from_str(&listed)?;
            PODS.iter()
                .map(|pod| running(pod, &listed))
                .collect::<Result<Vec<(String, Ipv4Addr)>>>()
        })?;

        let mut world = Self {
            fleet,
            places: Places::new(),
        };
        for (pod, (uid, address)) in PODS.iter().zip(&running) {
            let data_dir = fleet.data_dir(&nodes[pod.node]);
            let path = data_dir.join("agent/network/netns").join(uid);
            let netns = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            world.settle(pod.id, netns, IpAddr::V4(*address))?;
        }
        for (index, node) in nodes.iter().enumerate() {
            let address: Ipv4Addr = fleet.node_address(node)?.parse()?;
            let netns = fleet.on_node(node, own_namespace)?;
            world.settle(&format!("node-{index}"), netns, IpAddr::V4(address))?;
        }
        let outside = [
            fleet.block_on(|| async { own_namespace() })?,
            fleet.on_node("s1", own_namespace)?,
        ];
        let gateway: Ipv4Addr = fleet.node_address(&nodes[0])?.parse()?;
        for (id, netns) in OUTSIDERS.into_iter().zip(outside) {
            for (pod, (_, address)) in PODS.iter().zip(&running) {
                let (to, via) = (address.to_string(), fleet.node_address(&nodes[pod.node])?);
                inside(&netns, || ip(&["route", "replace", &to, "via", via]))?;
            }
            let address = inside(&netns, || address_towards(gateway))?;
            world.settle(id, netns, address)?;
        }
        Ok(world)
    }

    /// Has somebody serve.
    fn settle(&mut self, id: &str, netns: File, address: IpAddr) -> Result<()> {
        inside(&netns, || {
            PORTS
                .iter()
                .try_for_each(|port| serve(id, SocketAddr::new(address, *port)))
        })
        .with_context(|| format!("serving at {id}"))?;
        self.places.insert(id.to_owned(), Place { netns, address });
        Ok(())
    }

    /// Goes through a case: from an open cluster to an open cluster.
    fn holds(&self, case: &Case, name: &str) -> Result<()> {
        let behind_closed_doors = case.probes.iter().all(|probe| probe.allowed);
        if behind_closed_doors {
            let nobody = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
            let closed = NAMESPACES.map(|(namespace, _)| (namespace, nobody.clone()));
            self.make("closed", &closed)?;
            self.becomes("nothing to pass", &all(&case.probes, false))?;
        }
        self.make(name, &case.policies)?;
        if behind_closed_doors {
            self.remove("closed")?;
        }
        self.becomes("the policies to be in force", &case.probes)?;
        agree(&self.places, &case.probes, PATIENCE).context("it did not last")?;
        if !case.policies.is_empty() {
            self.remove(name)?;
            self.becomes("everything to pass again", &all(&case.probes, true))?;
        }
        Ok(())
    }

    /// Makes policies, given by their namespaces and specs.
    fn make(&self, name: &str, policies: &[(&str, Value)]) -> Result<()> {
        let policies: Vec<Value> = policies
            .iter()
            .enumerate()
            .map(|(number, (namespace, spec))| {
                json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {
                        "name": format!("{name}-{number}"),
                        "namespace": namespace,
                        "labels": {"case": name},
                    },
                    "spec": spec,
                })
            })
            .collect();
        if policies.is_empty() {
            return Ok(());
        }
        self.fleet.apply_all(&policies)
    }

    /// Removes what [`World::make`] has made.
    fn remove(&self, name: &str) -> Result<()> {
        let selector = format!("--selector=case={name}");
        let arguments = [
            "delete",
            "networkpolicies",
            "--all-namespaces",
            &selector,
            "--wait=false",
        ];
        self.fleet.kubectl("s1", &arguments).map(drop)
    }

    /// Waits until all probes come out as they should at the same time.
    fn becomes(&self, what: &str, probes: &[Probe]) -> Result<()> {
        eventually(what, || agree(&self.places, probes, SILENCE))
    }
}

fn manifest(pod: &CasePod, node: &str) -> Value {
    let (namespace, name) = pod.id.split_once('/').expect("ids are namespace/name");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": pod.app}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            // It sleeps: the test serves in its place.
            "containers": [{
                "name": "tools",
                "image": TOOLS,
                "ports": [{"name": "http", "containerPort": pod.http}],
            }],
        },
    })
}

/// The uid and the address of a pod among those listed.
fn running(pod: &CasePod, listed: &Value) -> Result<(String, Ipv4Addr)> {
    let is_it = |item: &&Value| {
        let metadata = &item["metadata"];
        let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str());
        namespace.zip(name) == pod.id.split_once('/')
    };
    let items = listed["items"].as_array().context("a list has items")?;
    let found = items.iter().find(is_it);
    let found = found.with_context(|| format!("{} is missing", pod.id))?;
    let status = &found["status"];
    ensure!(status["phase"] == "Running", "{}: {status}", pod.id);
    let uid = found["metadata"]["uid"].as_str().context("a uid")?;
    let address = status["podIP"].as_str().context("an address")?;
    Ok((uid.to_owned(), address.parse()?))
}

/// Each of the probes once, with this as what is expected.
fn all(probes: &[Probe], allowed: bool) -> Vec<Probe> {
    let mut seen = BTreeSet::new();
    probes
        .iter()
        .filter(|probe| seen.insert((probe.from, probe.to, probe.speaks, probe.port)))
        .map(|probe| Probe { allowed, ..*probe })
        .collect()
}

/// Sends all probes at once. What may pass is waited for this long.
fn agree(places: &Places, probes: &[Probe], patience: Duration) -> Result<()> {
    let arrived: Vec<Result<bool>> = std::thread::scope(|scope| {
        let sent: Vec<_> = probes
            .iter()
            .map(|probe| {
                let wait = if probe.allowed { patience } else { SILENCE };
                scope.spawn(move || arrives(places, probe, wait))
            })
            .collect();
        sent.into_iter()
            .map(|probe| probe.join().expect("probes do not panic"))
            .collect()
    });
    let mut wrong = Vec::new();
    for (probe, arrived) in probes.iter().zip(arrived) {
        match arrived {
            Ok(arrived) if arrived == probe.allowed => {}
            Ok(_) => wrong.push(format!("{probe:?}")),
            Err(error) => wrong.push(format!("{probe:?}: {error:#}")),
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} probes came out otherwise: {wrong:#?}",
        wrong.len(),
        probes.len()
    );
    Ok(())
}

/// Whether a probe is answered. An error is neither an answer nor the silence that a dropped packet leaves.
fn arrives(places: &Places, probe: &Probe, wait: Duration) -> Result<bool> {
    let place = |id: &str| places.get(id).with_context(|| format!("nobody is {id}"));
    let (from, to) = (place(probe.from)?, place(probe.to)?);
    let address = SocketAddr::new(to.address, probe.port);
    let answer = inside(&from.netns, || {
        Ok(match probe.speaks {
            Speaks::Tcp => tcp(address, wait),
            Speaks::Udp => udp(address, wait),
            // Whoever answers does not say its name.
            Speaks::Icmp => ping(to.address, wait).map(|()| probe.to.to_owned()),
        })
    })?;
    match answer {
        Ok(name) => {
            ensure!(name == probe.to, "{name:?} answered");
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the server of a connection says.
fn tcp(to: SocketAddr, wait: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, wait)?;
    stream.set_read_timeout(Some(wait))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The answer to a datagram.
fn udp(to: SocketAddr, wait: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    ask(&socket, b"?", wait)
}

/// A ping, by way of the sockets that pods may open without any rights.
fn ping(to: IpAddr, wait: Duration) -> io::Result<()> {
    let echoes = socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP))?;
    let echoes = UdpSocket::from(echoes);
    echoes.connect(SocketAddr::new(to, 0))?;
    ask(&echoes, &[8, 0, 0, 0, 0, 0, 0, 1], wait).map(drop)
}

fn ask(socket: &UdpSocket, question: &[u8], wait: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(wait))?;
    socket.send(question)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Tells its name to whoever connects or asks, until the process ends.
fn serve(id: &str, at: SocketAddr) -> Result<()> {
    let tcp = TcpListener::bind(at).with_context(|| format!("listening on TCP {at}"))?;
    let udp = UdpSocket::bind(at).with_context(|| format!("listening on UDP {at}"))?;
    let name = id.to_owned();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            // The client may be gone.
            stream.write_all(name.as_bytes()).ok();
        }
    });
    let name = id.to_owned();
    std::thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((_, client)) = udp.recv_from(&mut question) {
            // The client may be gone.
            udp.send_to(name.as_bytes(), client).ok();
        }
    });
    Ok(())
}

/// The network namespace that the calling thread is in.
fn own_namespace() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening the thread's network namespace")
}

/// Does something on a thread that is in a network namespace; sockets made there stay there.
fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let there = || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering a network namespace")?;
        work()
    };
    std::thread::scope(|scope| match scope.spawn(there).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The address that the calling thread's machine has on the way to another one.
fn address_towards(other: Ipv4Addr) -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Sends nothing. The port is of no matter.
    socket.connect((other, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// Runs `ip` in the calling thread's network namespace.
fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("running ip")?;
    ensure!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
