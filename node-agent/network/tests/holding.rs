//! Connections to services that sleep, in a real kernel: they wait, are heard of, and go to a pod as soon as there is one.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod connecting;
mod lab;
mod policy_lab;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, PacketHeaders};
use gantry_network::{
    BridgeNetwork, FakeHolding, Held, Holding, HoldingLimits, HoldingNews, Ipv6Network,
    LoggedHolding, NftPolicyRules, NftServiceRules, PodNetwork as _, PolicyRules as _, ServiceName,
    ServicePort, ServiceRules as _,
};
use lab::{
    DEADLINE, HOST, Lab, OUTSIDE, Pod, SILENCE, ask, changed, inside, name, on_own_machine, only,
    serve, service,
};
use policy_lab::reached_by;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, bind, ipproto, listen, recv, sendto, socket,
    sockopt,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const VIP: [u8; 4] = [10, 96, 0, 50];
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x96, 0, 0, 0, 0, 0, 0x50);
/// A client sends its first packet again after so long.
const RETRANSMISSION: Duration = Duration::from_secs(1);

struct Node {
    network: Arc<BridgeNetwork>,
    holding: Arc<LoggedHolding>,
    rules: NftServiceRules,
}

impl Node {
    fn new(lab: &Lab, limits: HoldingLimits) -> Self {
        let network = Arc::new(BridgeNetwork::new(lab.node.clone()).unwrap());
        let holding = Arc::new(LoggedHolding::listen(network.clone(), limits).unwrap());
        let rules = NftServiceRules::with_holding(&lab.node, holding.clone()).unwrap();
        Self {
            network,
            holding,
            rules,
        }
    }

    /// Pods, which answer with their names.
    async fn pods<const N: usize>(&self, lab: &Lab, names: [&str; N]) -> [Pod; N] {
        let mut pods = Vec::new();
        for name in names {
            pods.push(lab.pod(&*self.network, name, 8080).await);
        }
        let pods: Option<[Pod; N]> = pods.try_into().ok();
        pods.expect("one for each name")
    }

    /// The service `web`, and no other, is to be so.
    async fn program(&self, web: ServicePort) {
        self.rules.apply(only([("web", web)])).await.unwrap();
    }

    /// The service `web` is to be so from now on.
    async fn change(&self, web: ServicePort) {
        self.rules.apply(changed([("web", web)])).await.unwrap();
    }

    /// What happens next to the connections of a service.
    async fn news(&self, of: &str) -> HoldingNews {
        let next = async {
            loop {
                if let Some(news) = self.holding.news().await.remove(&name(of)) {
                    return news;
                }
            }
        };
        tokio::time::timeout(DEADLINE, next).await.expect("news")
    }

    /// Returns when so many connections wait.
    async fn waiting(&self, of: &str, count: u64) {
        let enough = async {
            while self.holding.held().get(&name(of)) != Some(&count) {
                self.holding.news().await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, enough).await;
        assert!(waited.is_ok(), "{:?} wait", self.holding.held());
    }
}

/// A service that nobody answers, and that can be woken.
fn asleep(cluster_ip: impl Into<IpAddr>) -> ServicePort {
    ServicePort {
        held: Some(Held::default()),
        ..service(cluster_ip, vec![])
    }
}

/// A node on which the service `web` sleeps, and pods.
async fn sleeping<const N: usize>(
    lab: &Lab,
    limits: HoldingLimits,
    pods: [&str; N],
) -> (Node, [Pod; N]) {
    let node = Node::new(lab, limits);
    let pods = node.pods(lab, pods).await;
    node.program(asleep(VIP)).await;
    (node, pods)
}

/// A client that connects, and is told something.
struct Client(JoinHandle<(Result<String, ErrorKind>, Instant)>);

impl Client {
    /// In a namespace, on its way from now on.
    fn start(netns: &File, address: impl Into<IpAddr>, port: u16) -> Self {
        let (netns, address) = (netns.try_clone().unwrap(), address.into());
        Self(std::thread::spawn(move || {
            inside(&netns, || (ask(address, port), Instant::now()))
        }))
    }

    /// What it was told, and when.
    async fn answer(self) -> (Result<String, ErrorKind>, Instant) {
        while !self.0.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.0.join().unwrap()
    }
}

fn host(lab: &Lab) -> File {
    lab.on_host(|| File::open("/proc/thread-self/ns/net").unwrap())
}

/// Has a client wait until `awake` is programmed, and answers what it is told. Its packet is sent for it: it need not send
/// it again.
async fn wakes(node: &Node, client: Client, awake: ServicePort) -> String {
    let began = node.news("web").await;
    assert_eq!((began.began, began.held), (true, 1));
    node.change(awake).await;
    let programmed = Instant::now();
    let (answer, answered) = client.answer().await;
    let took = answered.saturating_duration_since(programmed);
    println!("{took:?} from programming to the answer");
    assert!(took < RETRANSMISSION / 2, "{took:?}");
    let released = node.news("web").await;
    assert_eq!((released.released, released.refused), (1, 0));
    assert!(released.waited.unwrap() < RETRANSMISSION);
    assert_eq!(node.holding.held(), BTreeMap::<ServiceName, u64>::new());
    answer.unwrap()
}

/// What every [`Holding`] keeps of the service `web`, which sleeps: `connect` brings a connection to it, `wake` somebody who
/// answers.
async fn contract(holding: &impl Holding, connect: impl AsyncFnOnce(), wake: impl AsyncFnOnce()) {
    let news = async || tokio::time::timeout(DEADLINE, holding.news()).await;
    let nothing = async || tokio::time::timeout(SILENCE / 4, holding.news()).await;
    assert!(holding.held().is_empty());
    assert!(nothing().await.is_err(), "nothing has happened");
    connect().await;
    let began = HoldingNews {
        began: true,
        held: 1,
        ..HoldingNews::default()
    };
    assert_eq!(news().await.unwrap(), [(name("web"), began)].into());
    assert_eq!(holding.held(), [(name("web"), 1)].into());
    assert!(nothing().await.is_err(), "it is told once");
    wake().await;
    let released = news().await.unwrap().remove(&name("web")).unwrap();
    assert_eq!(
        (released.held, released.released, released.refused),
        (0, 1, 0)
    );
    assert!(!released.began && released.waited.is_some());
    assert!(holding.held().is_empty());
    assert!(nothing().await.is_err(), "it is over");
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let fake = FakeHolding::default();
    let connect = async || {
        let began = HoldingNews {
            began: true,
            held: 1,
            ..HoldingNews::default()
        };
        fake.happen(name("web"), 1, began);
    };
    let wake = async || {
        let released = HoldingNews {
            released: 1,
            waited: Some(RETRANSMISSION),
            ..HoldingNews::default()
        };
        fake.happen(name("web"), 0, released);
    };
    contract(&fake, connect, wake).await;
}

#[test]
fn the_kernel_keeps_the_contract() {
    on_own_machine(async |lab| {
        let node = Node::new(lab, HoldingLimits::default());
        let [web, client] = node.pods(lab, ["web", "client"]).await;
        let apply = async |port| node.change(port).await;
        apply(asleep(VIP)).await;
        let connect = async || drop(Client::start(&client.netns, VIP, 80));
        let wake = async || apply(service(VIP, vec![web.endpoint(8080)])).await;
        contract(&*node.holding, connect, wake).await;
    });
}

#[test]
fn a_pod_waits_and_is_answered_as_itself_when_somebody_is_there() {
    on_own_machine(async |lab| {
        let (node, [client]) = sleeping(lab, HoldingLimits::default(), ["client"]).await;
        let waiting = Client::start(&client.netns, VIP, 80);
        let web = lab.pod(&*node.network, "web", 8080).await;
        let awake = service(VIP, vec![web.endpoint(8080)]);
        let answer = wakes(&node, waiting, awake).await;
        assert_eq!(answer, format!("web {}", client.ip));
        let next = lab.inside(&client.netns, || ask(VIP, 80)).unwrap();
        assert_eq!(next, answer, "what comes later does not wait");
    });
}

#[test]
fn the_node_itself_waits_too() {
    on_own_machine(async |lab| {
        let (node, [web]) = sleeping(lab, HoldingLimits::default(), ["web"]).await;
        let waiting = Client::start(&host(lab), VIP, 80);
        let awake = service(VIP, vec![web.endpoint(8080)]);
        assert!(wakes(&node, waiting, awake).await.starts_with("web "));
    });
}

#[test]
fn ipv6_waits_as_ipv4_does() {
    on_own_machine(async |lab| {
        lab.node.ipv6 = Some(Ipv6Network {
            pod_cidr: "fd10:244:0:1::/64".parse().unwrap(),
            cluster_pod_cidr: "fd10:244::/48".parse().unwrap(),
            service_cidr: Some("fd10:96::/112".parse().unwrap()),
        });
        lab.on_host(|| lab::ip("-6 addr replace 2001:db8::1/64 dev uplink nodad"));
        let node = Node::new(lab, HoldingLimits::default());
        let [web, client] = node.pods(lab, ["web", "client"]).await;
        let attached = node.network.attached().await.unwrap();
        let [web6, client6] = ["web", "client"].map(|pod| attached[pod].ip6.unwrap());
        lab.inside(&web.netns, || serve("web", web6, 8080));
        let awake = service(VIP6, vec![lab::endpoint(web6, 8080)]);
        for (netns, from) in [(&client.netns, Some(client6)), (&host(lab), None)] {
            node.program(asleep(VIP6)).await;
            let waiting = Client::start(netns, VIP6, 80);
            let answer = wakes(&node, waiting, awake.clone()).await;
            if let Some(from) = from {
                assert_eq!(answer, format!("web {from}"));
            }
        }
    });
}

/// Nothing can be sent for who is elsewhere; its own next packet finds the way.
#[test]
fn a_stranger_at_a_node_port_waits_for_its_own_next_packet() {
    on_own_machine(async |lab| {
        let node = Node::new(lab, HoldingLimits::default());
        let web = lab.pod(&*node.network, "web", 8080).await;
        let mut port = asleep(VIP);
        port.node_port = Some(30080);
        node.program(port.clone()).await;
        let begun = Instant::now();
        let waiting = Client::start(&lab.outside, HOST, 30080);
        assert!(node.news("web").await.began);
        port.endpoints = vec![web.endpoint(8080)];
        node.change(port).await;
        let (answer, when) = waiting.answer().await;
        assert!(answer.unwrap().starts_with("web "));
        let took = when - begun;
        assert!(took >= RETRANSMISSION * 9 / 10, "{took:?}: nobody helped");
    });
}

#[test]
fn a_thousand_at_once_are_all_answered() {
    let most = Rlimit {
        current: Some(4096),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, most).unwrap();
    on_own_machine(async |lab| {
        let node = Node::new(lab, HoldingLimits::default());
        let [web, client] = node.pods(lab, ["web", "client"]).await;
        lab.inside(&web.netns, || accept_all(8081));
        node.program(asleep(VIP)).await;
        let sockets: Vec<connecting::Connecting> = lab.inside(&client.netns, || {
            (0..1000)
                .map(|_| connecting::connect((VIP, 80).into()))
                .collect()
        });
        node.waiting("web", 1000).await;
        let awake = service(VIP, vec![web.endpoint(8081)]);
        let begun = Instant::now();
        node.change(awake).await;
        for socket in &sockets {
            while !socket.is_connected().unwrap() {
                assert!(begun.elapsed() < DEADLINE, "some wait still");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        println!("{:?} for 1,000 connections", begun.elapsed());
        let news = node.news("web").await;
        assert_eq!((news.released, news.refused), (1000, 0));
    });
}

#[test]
fn too_many_too_late_and_too_much_asked_are_refused_and_the_rest_waits() {
    on_own_machine(async |lab| {
        let limits = HoldingLimits {
            of_source: 3,
            time: Duration::from_secs(2),
            ..HoldingLimits::default()
        };
        let node = Node::new(lab, limits);
        let [client, other] = node.pods(lab, ["client", "other"]).await;
        let mut port = asleep(VIP);
        port.held = Some(Held {
            ignored: vec![IpAddr::from(other.ip).into(), IpAddr::from(OUTSIDE).into()],
        });
        port.node_port = Some(30080);
        node.program(port.clone()).await;
        let begun = Instant::now();
        let waiting: Vec<Client> = (0..3)
            .map(|_| Client::start(&client.netns, VIP, 80))
            .collect();
        node.waiting("web", 3).await;
        // One more than may wait, and who does not wait at all.
        for (netns, to) in [
            (&client.netns, (IpAddr::from(VIP), 80)),
            (&other.netns, (IpAddr::from(VIP), 80)),
            (&lab.outside, (HOST.into(), 30080)),
        ] {
            let (refused, when) = Client::start(netns, to.0, to.1).answer().await;
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{to:?}");
            assert!(when - begun < limits.time, "at once");
        }
        assert_eq!(node.holding.held(), [(name("web"), 3)].into());
        for client in waiting {
            let (refused, when) = client.answer().await;
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
            assert!(when - begun >= limits.time, "{:?}", when - begun);
        }
        // The node's own, of a service that goes.
        let waiting = Client::start(&host(lab), VIP, 80);
        node.waiting("web", 1).await;
        node.rules.apply(only([])).await.unwrap();
        let refused = waiting.answer().await.0;
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    });
}

/// A pod that asks for connections as fast as it can is heard of so often and no more, has so many places and no more, and keeps
/// nobody else from waiting. The kernel remembers none of what it drops.
#[test]
fn a_flood_is_bounded_and_others_are_heard() {
    on_own_machine(async |lab| {
        const SENT: u16 = 12_000;
        let limits = HoldingLimits {
            of_source: 50,
            ..HoldingLimits::default()
        };
        let (node, [web, client, flood]) = sleeping(lab, limits, ["web", "client", "flood"]).await;
        let tracked = || {
            let count = lab.on_host(|| {
                std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap()
            });
            count.trim().parse::<u32>().unwrap()
        };
        let before = tracked();
        let begun = Instant::now();
        lab.inside(&flood.netns, || {
            let socket = raw(ipproto::RAW);
            let to = SocketAddr::from((VIP, 0));
            for port in 0..SENT {
                let mut packet = Vec::new();
                PacketBuilder::ipv4(flood.ip.octets(), VIP, 64)
                    .tcp(10_000 + port, 80, 5, 1000)
                    .syn()
                    .write(&mut packet, &[])
                    .unwrap();
                sendto(&socket, &packet, SendFlags::empty(), &to).unwrap();
            }
        });
        let waiting = Client::start(&client.netns, VIP, 80);
        let mut refused = 0;
        while node.holding.held().get(&name("web")) != Some(&51) {
            refused += node.news("web").await.refused;
        }
        let most = 2500 + 200 * begun.elapsed().as_secs();
        assert!(refused <= most, "{refused} of {SENT} were heard of");
        let now = tracked();
        assert!(now < before + 100, "{before} and then {now} are tracked");
        let awake = service(VIP, vec![web.endpoint(8080)]);
        node.change(awake).await;
        let (answer, _) = waiting.answer().await;
        assert_eq!(answer, Ok(format!("web {}", client.ip)));
    });
}

/// What waits is forgotten with the agent, and heard of by the next one when it is sent again; each listens for itself.
#[test]
fn a_later_agent_hears_of_who_waits_still() {
    on_own_machine(async |lab| {
        let (earlier, [web, client]) =
            sleeping(lab, HoldingLimits::default(), ["web", "client"]).await;
        let waiting = Client::start(&client.netns, VIP, 80);
        earlier.waiting("web", 1).await;
        let later = Node::new(lab, HoldingLimits::default());
        drop(earlier);
        later.program(asleep(VIP)).await;
        later.waiting("web", 1).await;
        let awake = service(VIP, vec![web.endpoint(8080)]);
        later.change(awake).await;
        let (answer, _) = waiting.answer().await;
        assert_eq!(answer, Ok(format!("web {}", client.ip)));
    });
}

/// Only what begins a connection waits; what belongs to none is answered as it is where nobody listens.
#[test]
fn what_begins_no_connection_is_reset() {
    on_own_machine(async |lab| {
        let (node, [client]) = sleeping(lab, HoldingLimits::default(), ["client"]).await;
        let answer = lab.inside(&client.netns, || {
            let hears = raw(ipproto::TCP);
            let mut packet = Vec::new();
            PacketBuilder::ipv4(client.ip.octets(), VIP, 64)
                .tcp(40000, 80, 5, 1000)
                .ack(9)
                .write(&mut packet, &[])
                .unwrap();
            let to = SocketAddr::from((VIP, 0));
            sendto(raw(ipproto::RAW), &packet, SendFlags::empty(), &to).unwrap();
            let mut answer = [0; 256];
            let (length, _) = recv(&hears, &mut answer[..], RecvFlags::empty()).unwrap();
            answer[..length].to_vec()
        });
        let headers = PacketHeaders::from_ip_slice(&answer).unwrap();
        let tcp = headers.transport.unwrap().tcp().unwrap();
        assert!(tcp.rst, "{tcp:?}");
        assert_eq!((tcp.source_port, tcp.destination_port), (80, 40000));
        assert!(node.holding.held().is_empty());
    });
}

#[test]
fn a_policy_forbids_what_has_waited_as_it_forbids_the_rest() {
    on_own_machine(async |lab| {
        let node = Node::new(lab, HoldingLimits::default());
        let policies = NftPolicyRules::new(&lab.node).unwrap();
        let [web, friend, stranger] = node.pods(lab, ["web", "friend", "stranger"]).await;
        policies
            .sync(reached_by(&web, &[&friend], 8080))
            .await
            .unwrap();
        node.program(asleep(VIP)).await;
        let start = |pod: &Pod| Client::start(&pod.netns, VIP, 80);
        let (allowed, forbidden) = (start(&friend), start(&stranger));
        node.waiting("web", 2).await;
        let awake = service(VIP, vec![web.endpoint(8080)]);
        node.change(awake).await;
        assert_eq!(allowed.answer().await.0, Ok(format!("web {}", friend.ip)));
        tokio::time::sleep(SILENCE).await;
        assert!(!forbidden.0.is_finished(), "it is not answered");
        assert_eq!(forbidden.answer().await.0, Err(ErrorKind::TimedOut));
    });
}

/// What sleeps again holds again, and a fresh start of the rules loses nobody.
#[test]
fn a_service_that_comes_and_goes_holds_each_time() {
    on_own_machine(async |lab| {
        let node = Node::new(lab, HoldingLimits::default());
        let [web, client] = node.pods(lab, ["web", "client"]).await;
        let awake = service(VIP, vec![web.endpoint(8080)]);
        for round in 0..3 {
            node.program(asleep(VIP)).await;
            let waiting = Client::start(&client.netns, VIP, 80);
            node.waiting("web", 1).await;
            if round == 2 {
                lab.on_host(|| lab::command("nft", &["flush", "ruleset"]));
                node.network.reassert().await.unwrap();
            }
            let begun = Instant::now();
            node.change(awake.clone()).await;
            let (answer, when) = waiting.answer().await;
            assert_eq!(answer, Ok(format!("web {}", client.ip)));
            assert!(when - begun < RETRANSMISSION, "{:?}", when - begun);
        }
    });
}

fn raw(protocol: rustix::net::Protocol) -> rustix::fd::OwnedFd {
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(protocol)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
    socket
}

/// Accepts any number of connections in the calling thread's namespace, and ends each; it ends with the process.
fn accept_all(port: u16) {
    let address = SocketAddr::from(([0, 0, 0, 0], port));
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &address).unwrap();
    listen(&listener, 4096).unwrap();
    let listener = std::net::TcpListener::from(listener);
    std::thread::spawn(move || while listener.accept().is_ok() {});
}
