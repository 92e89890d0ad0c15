//! Queries over real sockets on the loopback, and resolvers of our own to forward to.

mod cluster;
mod forwarding;
mod stub;
mod walks;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use gantry_cri::dns::DnsRecord;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const DEADLINE: Duration = Duration::from_secs(30);
/// When clients ask again.
const PATIENCE: Duration = Duration::from_secs(5);

fn name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: name.into(),
    }
}

/// The names of a service, relative to it: an empty one is its own.
fn named(service: &str, records: &[(&str, DnsRecord)]) -> DnsTable {
    let absolute = |relative: &str| {
        let name = format!("{relative}.{service}.default.svc.cluster.local");
        name.trim_start_matches('.').to_owned()
    };
    let records = records.iter().cloned();
    DnsTable {
        records: records
            .map(|(relative, record)| (absolute(relative), vec![record]))
            .collect(),
        reverse: BTreeMap::new(),
    }
}

fn addresses(addresses: &[&str]) -> DnsRecord {
    DnsRecord::Addresses(addresses.iter().map(|a| a.parse().unwrap()).collect())
}

fn services() -> BTreeMap<ServiceName, DnsTable> {
    let alias = |target: &str| DnsRecord::Alias(target.to_owned());
    let target = "db-0.db.default.svc.cluster.local".to_owned();
    let many = (0..200).map(|d| IpAddr::from([10, 244, 9, d])).collect();
    let mut web = named("web", &[("", addresses(&["10.96.0.5"]))]);
    let reverse = "web.default.svc.cluster.local".to_owned();
    web.reverse.insert([10, 96, 0, 5].into(), reverse);
    let tables = [
        ("web", web),
        (
            "dual",
            named("dual", &[("", addresses(&["10.96.0.6", "fd00::6"]))]),
        ),
        (
            "db",
            named(
                "db",
                &[
                    ("", addresses(&["10.244.0.2", "10.244.0.3", "10.244.0.4"])),
                    ("db-0", addresses(&["10.244.0.2"])),
                    (
                        "_sql._tcp",
                        DnsRecord::Services(vec![(0, 100, 5432, target)]),
                    ),
                ],
            ),
        ),
        ("ext", named("ext", &[("", alias("www.example.com"))])),
        (
            "near",
            named("near", &[("", alias("web.default.svc.cluster.local"))]),
        ),
        (
            "loop",
            named("loop", &[("", alias("loop.default.svc.cluster.local"))]),
        ),
        ("many", named("many", &[("", DnsRecord::Addresses(many))])),
    ];
    tables.map(|(service, table)| (name(service), table)).into()
}

async fn server(upstreams: Vec<SocketAddr>) -> DnsServer {
    let server = DnsServer::start(&[ANY_PORT.into()], "cluster.local", upstreams)
        .await
        .unwrap();
    server.replace(services());
    server
}

fn question(name: &str, wanted: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
    request
}

async fn exchange(server: &DnsServer, bytes: &[u8]) -> Vec<u8> {
    let to = server.addresses()[0];
    let any = SocketAddr::new(to.ip(), 0);
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.send_to(bytes, to).await.unwrap();
    let mut buffer = vec![0; 65535];
    let received = timeout(DEADLINE, socket.recv(&mut buffer)).await;
    let length = received.unwrap().unwrap();
    buffer.truncate(length);
    buffer
}

async fn ask_with(server: &DnsServer, request: &Message) -> Message {
    let bytes = exchange(server, &request.to_vec().unwrap()).await;
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.id, request.metadata.id);
    assert!(
        answer.queries[0].name().eq_case(request.queries[0].name()),
        "the question, letter for letter"
    );
    answer
}

async fn ask(server: &DnsServer, name: &str, wanted: RecordType) -> Message {
    ask_with(server, &question(name, wanted)).await
}

async fn code(server: &DnsServer, name: &str) -> ResponseCode {
    ask(server, name, RecordType::A)
        .await
        .metadata
        .response_code
}

fn data(answer: &Message) -> Vec<String> {
    let records = answer.answers.iter();
    records.map(|record| record.data.to_string()).collect()
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(DEADLINE, waiting).await.is_ok(), "{what}");
}
