//! The DNS service on its own address of the service range, for pods and for the host, beside programmed services.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

// The machine that the network's tests have.
#[path = "../../network/tests/lab/mod.rs"]
mod lab;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};

use gantry_cri::dns::{ClusterDns, DnsRecord, DnsTable};
use gantry_dns::DnsServer;
use gantry_network::{BridgeNetwork, NftServiceRules, ServiceName, ServiceRules};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use lab::{DEADLINE, Lab, Pod, ask, command, on_own_machine, service};
use nix::sched::{CloneFlags, setns};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const WEB: &str = "web.default.svc.cluster.local.";

fn query(name: &str) -> Vec<u8> {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    request.to_vec().unwrap()
}

fn addresses(answer: &[u8]) -> Vec<String> {
    let answer = Message::from_vec(answer).unwrap();
    let records = answer.answers.iter();
    records.map(|record| record.data.to_string()).collect()
}

fn resolve(name: &str) -> Vec<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // A connected socket hears only the address it asked.
    socket.connect((DNS, 53)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send(&query(name)).unwrap();
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).unwrap();
    addresses(&buffer[..length])
}

fn resolve_over_tcp(name: &str) -> Vec<String> {
    let address = SocketAddr::from((DNS, 53));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let query = query(name);
    let length = u16::try_from(query.len()).unwrap();
    stream
        .write_all(&[&length.to_be_bytes()[..], &query].concat())
        .unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    // No packet of it is under way any more once both sides have closed: one of an earlier connection would be tracked anew.
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    addresses(&answer)
}

/// Lets a pod, or the host, ask. Clients block, so they wait on threads of their own while the runtime serves.
async fn ask_from(
    pod: Option<&Pod>,
    ask: impl FnOnce() -> Vec<String> + Send + 'static,
) -> Vec<String> {
    let netns = pod.map(|pod| pod.netns.try_clone().unwrap());
    let asking = tokio::task::spawn_blocking(move || {
        let thread = std::thread::spawn(move || {
            if let Some(netns) = netns {
                setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
            }
            ask()
        });
        thread.join().unwrap()
    });
    asking.await.unwrap()
}

fn serve_web(server: &DnsServer) {
    let records = vec![DnsRecord::Addresses(vec![[10, 96, 0, 50].into()])];
    let name = ServiceName {
        namespace: "default".into(),
        name: "web".into(),
    };
    let table = DnsTable {
        records: BTreeMap::from([(WEB.trim_end_matches('.').to_owned(), records)]),
        reverse: BTreeMap::new(),
    };
    server.change(name, Some(table));
}

/// Connections to a port that the machine tracks.
fn tracked(lab: &Lab, port: u16) -> Vec<String> {
    let all = lab.on_host(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
    let wanted = format!("dport={port} ");
    let all = all.unwrap();
    let lines = all.lines().filter(|line| line.contains(&wanted));
    lines.map(str::to_owned).collect()
}

#[test]
fn pods_and_the_host_ask_the_service_address() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftServiceRules::new(&lab.node).unwrap();
        let pod = lab.pod(&network, "pod", 8080).await;
        let address = SocketAddr::from((DNS, 53));
        let early = DnsServer::start(&[address], "cluster.local", vec![])
            .await
            .unwrap_err()
            .to_string();
        assert!(
            early.contains("10.96.0.10:53") && early.contains("does the node hold it"),
            "{early}"
        );
        network.bind_dns_address(DNS).await.unwrap();
        let server = DnsServer::start(&[address], "cluster.local", vec![])
            .await
            .unwrap();
        serve_web(&server);
        rules
            .apply(lab::only([(
                "web",
                service([10, 96, 0, 50], vec![pod.endpoint(8080)]),
            )]))
            .await
            .unwrap();
        for client in [Some(&pod), None] {
            assert_eq!(ask_from(client, || resolve(WEB)).await, ["10.96.0.50"]);
            assert_eq!(
                ask_from(client, || resolve_over_tcp(WEB)).await,
                ["10.96.0.50"]
            );
        }
    });
}

#[test]
fn questions_are_not_tracked() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let pod = lab.pod(&network, "pod", 8080).await;
        network.bind_dns_address(DNS).await.unwrap();
        let server = DnsServer::start(&[(DNS, 53).into()], "cluster.local", vec![])
            .await
            .unwrap();
        serve_web(&server);
        let ask_both_ways = async || {
            for client in [Some(&pod), None] {
                assert_eq!(ask_from(client, || resolve(WEB)).await, ["10.96.0.50"]);
                assert_eq!(
                    ask_from(client, || resolve_over_tcp(WEB)).await,
                    ["10.96.0.50"]
                );
            }
        };
        ask_both_ways().await;
        let address = pod.ip;
        ask_from(None, move || vec![ask(address, 8080).unwrap()]).await;
        assert_eq!(tracked(lab, 8080).len(), 1, "others are");
        assert_eq!(tracked(lab, 53), [""; 0]);

        // Without the table they would be; and it is put back.
        command("nft", &["delete", "table", "inet", "gt-dns"]);
        ask_both_ways().await;
        assert_eq!(tracked(lab, 53).len(), 4);
        network.reassert().await.unwrap();
        let counted = command("nft", &["list", "chain", "inet", "gt-dns", "untracked"]);
        assert!(counted.contains("packets 0"), "{counted}");
        ask_both_ways().await;
        assert_eq!(tracked(lab, 53).len(), 4, "those from before");
        let counted = command("nft", &["list", "chain", "inet", "gt-dns", "untracked"]);
        assert!(!counted.contains("packets 0"), "{counted}");
    });
}
