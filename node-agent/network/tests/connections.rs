//! What the kernel counts of pods' connections, however they came about.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use gantry_network::{BridgeNetwork, Connections, Ipv6Network, PodAttachment, PodNetwork};
use lab::{DEADLINE, inside, on_own_machine};

const PORT: u16 = 8080;

async fn of(network: &BridgeNetwork, uid: &str) -> Connections {
    network.traffic().await.unwrap().connections[uid]
}

/// Waits until a pod has so many open, and answers how many it has accepted.
async fn open(network: &BridgeNetwork, uid: &str, wanted: u64) -> u64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = of(network, uid).await;
        if found.open == wanted {
            return found.accepted;
        }
        assert!(
            Instant::now() < deadline,
            "{uid} has {found:?}, not {wanted} open"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A pod in which the kernel takes every connection to a port, of either family.
struct Listening {
    netns: File,
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    listener: TcpListener,
}

impl Listening {
    async fn attach(network: &BridgeNetwork, uid: &str) -> Self {
        let PodAttachment { netns, ip, ip6 } = network.attach(uid, &[]).await.unwrap();
        let netns = File::open(netns).unwrap();
        let listener = inside(&netns, || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap()
        });
        Self {
            netns,
            ip,
            ip6,
            listener,
        }
    }

    /// Both ends of a connection from the thread's namespace.
    fn connect(&self, to: impl Into<IpAddr>) -> (TcpStream, TcpStream) {
        let from = connect(to);
        (from, self.listener.accept().unwrap().0)
    }
}

fn connect(to: impl Into<IpAddr>) -> TcpStream {
    TcpStream::connect_timeout(&SocketAddr::new(to.into(), PORT), DEADLINE).unwrap()
}

#[test]
fn connections_to_a_pod_count_and_its_own_do_not() {
    on_own_machine(async |lab| {
        lab.node.ipv6 = Some(Ipv6Network {
            pod_cidr: "fd00:10:244:1::/64".parse().unwrap(),
            cluster_pod_cidr: "fd00:10:244::/48".parse().unwrap(),
            service_cidr: None,
        });
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let web = Listening::attach(&network, "web").await;
        let db = Listening::attach(&network, "db").await;
        assert_eq!(of(&network, "web").await, Connections::default());
        let clients = [
            web.connect(web.ip),
            web.connect(web.ip6.unwrap()),
            web.connect(web.ip),
        ];
        assert_eq!(open(&network, "web", 3).await, 3);
        let queries: Vec<_> = inside(&web.netns, || (0..2).map(|_| db.connect(db.ip)).collect());
        assert_eq!(open(&network, "db", 2).await, 2);
        assert_eq!(open(&network, "web", 3).await, 3, "its own do not count");
        let more: Vec<_> = inside(&web.netns, || {
            (0..5).map(|_| db.connect(db.ip6.unwrap())).collect()
        });
        assert_eq!(open(&network, "db", 7).await, 7);
        assert_eq!(open(&network, "web", 3).await, 3, "nor when they are new");
        drop(clients);
        drop((queries, more));
        open(&network, "db", 0).await;
        let to_itself = inside(&db.netns, || db.connect(Ipv4Addr::LOCALHOST));
        assert_eq!(
            open(&network, "db", 1).await,
            8,
            "by the end that was connected to"
        );
        drop(to_itself);
    });
}

#[test]
fn a_pod_that_is_attached_anew_is_counted_anew() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let web = Listening::attach(&network, "web").await;
        let client = web.connect(web.ip);
        assert_eq!(open(&network, "web", 1).await, 1);
        network.detach("web").await.unwrap();
        assert_eq!(network.traffic().await.unwrap().connections.len(), 0);
        let again = Listening::attach(&network, "web").await;
        assert_eq!(of(&network, "web").await, Connections::default());
        let _other = again.connect(again.ip);
        assert_eq!(open(&network, "web", 1).await, 1);
        drop(client);
        // Another agent begins with what the kernel has counted.
        drop(network);
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        assert_eq!(open(&network, "web", 1).await, 1);
    });
}
