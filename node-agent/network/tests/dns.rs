//! The DNS service on its own address of the service range, for pods and for the host, beside programmed services.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use gantry_network::{
    BridgeNetwork, ClusterDns, DnsRecord, DnsServer, DnsTable, NftServiceRules, ServiceName,
    ServiceRules,
};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use lab::{DEADLINE, on_own_machine, service};
use nix::sched::{CloneFlags, setns};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn resolve(name: &str) -> Vec<String> {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // A connected socket hears only the address it asked.
    socket.connect((DNS, 53)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send(&request.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    answer
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
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
        let records = vec![DnsRecord::Addresses(vec![[10, 96, 0, 50].into()])];
        let web = ServiceName {
            namespace: "default".into(),
            name: "web".into(),
        };
        let table = DnsTable {
            records: BTreeMap::from([("web.default.svc.cluster.local".to_owned(), records)]),
            reverse: BTreeMap::new(),
        };
        server.change(web, Some(table));
        rules
            .sync(vec![service(
                "web",
                [10, 96, 0, 50],
                vec![pod.endpoint(8080)],
            )])
            .await
            .unwrap();
        // The clients block, so they wait on threads of their own while this runtime serves.
        let name = "web.default.svc.cluster.local.";
        let pod_netns = pod.netns.try_clone().unwrap();
        let from_pod = tokio::task::spawn_blocking(move || {
            let in_pod = std::thread::spawn(move || {
                setns(&pod_netns, CloneFlags::CLONE_NEWNET).unwrap();
                resolve(name)
            });
            in_pod.join().unwrap()
        });
        assert_eq!(from_pod.await.unwrap(), ["10.96.0.50"]);
        let from_host = tokio::task::spawn_blocking(move || resolve(name));
        assert_eq!(from_host.await.unwrap(), ["10.96.0.50"]);
    });
}
