//! Queries over real sockets on the loopback, and a resolver of our own to forward to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData};

use super::*;
use crate::DnsRecord;

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn table() -> DnsTable {
    let addresses = |addresses: &[&str]| {
        DnsRecord::Addresses(addresses.iter().map(|a| a.parse().unwrap()).collect())
    };
    let records = BTreeMap::from([
        (
            "web.default.svc.cluster.local".to_owned(),
            vec![addresses(&["10.96.0.5"])],
        ),
        (
            "dual.default.svc.cluster.local".to_owned(),
            vec![addresses(&["10.96.0.6", "fd00::6"])],
        ),
        (
            "db.default.svc.cluster.local".to_owned(),
            vec![addresses(&["10.244.0.2", "10.244.0.3", "10.244.0.4"])],
        ),
        (
            "db-0.db.default.svc.cluster.local".to_owned(),
            vec![addresses(&["10.244.0.2"])],
        ),
        (
            "_sql._tcp.db.default.svc.cluster.local".to_owned(),
            vec![DnsRecord::Services(vec![(
                0,
                100,
                5432,
                "db-0.db.default.svc.cluster.local".to_owned(),
            )])],
        ),
        (
            "ext.default.svc.cluster.local".to_owned(),
            vec![DnsRecord::Alias("www.example.com".to_owned())],
        ),
        (
            "near.default.svc.cluster.local".to_owned(),
            vec![DnsRecord::Alias("web.default.svc.cluster.local".into())],
        ),
        (
            "loop.default.svc.cluster.local".to_owned(),
            vec![DnsRecord::Alias("loop.default.svc.cluster.local".into())],
        ),
        (
            "many.default.svc.cluster.local".to_owned(),
            vec![DnsRecord::Addresses(
                (0..200).map(|d| IpAddr::from([10, 244, 9, d])).collect(),
            )],
        ),
    ]);
    let reverse = BTreeMap::from([(
        "10.96.0.5".parse().unwrap(),
        "web.default.svc.cluster.local".to_owned(),
    )]);
    DnsTable { records, reverse }
}

fn all(table: DnsTable) -> BTreeMap<ServiceName, DnsTable> {
    let name = ServiceName {
        namespace: "default".into(),
        name: "web".into(),
    };
    BTreeMap::from([(name, table)])
}

async fn server(upstreams: Vec<SocketAddr>) -> DnsServer {
    let server = DnsServer::start(&[ANY_PORT.into()], "cluster.local", upstreams)
        .await
        .unwrap();
    server.replace(all(table()));
    server
}

fn question(name: &str, wanted: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
    request
}

async fn exchange(server: &DnsServer, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(ANY_PORT).await.unwrap();
    socket.send_to(bytes, server.addresses()[0]).await.unwrap();
    let mut buffer = vec![0; 65535];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    buffer.truncate(length);
    buffer
}

async fn ask_with(server: &DnsServer, request: &Message) -> Message {
    let bytes = exchange(server, &request.to_vec().unwrap()).await;
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.id, request.metadata.id);
    assert_eq!(answer.queries, request.queries);
    answer
}

async fn ask(server: &DnsServer, name: &str, wanted: RecordType) -> Message {
    ask_with(server, &question(name, wanted)).await
}

fn data(answer: &Message) -> Vec<String> {
    answer
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[tokio::test]
async fn names_of_the_cluster() {
    let server = server(vec![]).await;
    let web = ask(&server, "Web.default.SVC.cluster.local.", RecordType::A).await;
    assert_eq!(data(&web), ["10.96.0.5"]);
    assert_eq!(
        web.answers[0].name.to_ascii(),
        "Web.default.SVC.cluster.local.",
        "the asker's own spelling"
    );
    assert_eq!(web.answers[0].ttl, 5);
    assert!(web.metadata.authoritative && web.metadata.recursion_available);
    assert_eq!(
        data(&ask(&server, "dual.default.svc.cluster.local.", RecordType::AAAA).await),
        ["fd00::6"]
    );
    let pointer = ask(&server, "5.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(data(&pointer), ["web.default.svc.cluster.local."]);
    let srv = ask(
        &server,
        "_sql._tcp.db.default.svc.cluster.local.",
        RecordType::SRV,
    )
    .await;
    assert_eq!(
        data(&srv),
        ["0 100 5432 db-0.db.default.svc.cluster.local."]
    );
    assert_eq!(srv.additionals.len(), 1);
    assert_eq!(
        srv.additionals[0].data,
        RData::A(Ipv4Addr::new(10, 244, 0, 2).into())
    );
    let near = ask(&server, "near.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&near), ["web.default.svc.cluster.local.", "10.96.0.5"]);
    assert_eq!(
        data(
            &ask(
                &server,
                "10-244-0-9.default.pod.cluster.local.",
                RecordType::A
            )
            .await
        ),
        ["10.244.0.9"]
    );
    assert_eq!(
        data(&ask(&server, "dns-version.cluster.local.", RecordType::TXT).await),
        ["1.1.0"]
    );
    assert_eq!(
        ask(&server, "cluster.local.", RecordType::SOA)
            .await
            .answers
            .len(),
        1
    );
    let looping = ask(&server, "loop.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(looping.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn absent_names_and_absent_types_differ_and_both_carry_the_soa() {
    let server = server(vec![]).await;
    for (name, wanted, code) in [
        (
            "nosuch.default.svc.cluster.local.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
        (
            "web.default.svc.cluster.local.",
            RecordType::AAAA,
            ResponseCode::NoError,
        ),
        (
            "_tcp.db.default.svc.cluster.local.",
            RecordType::A,
            ResponseCode::NoError,
        ),
        ("svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        (
            "10-244-0.default.pod.cluster.local.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
        (
            "10-244-0-9.more.default.pod.cluster.local.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
    ] {
        let answer = ask(&server, name, wanted).await;
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len()),
            (code, 0),
            "{name}"
        );
        assert!(
            matches!(answer.authorities[0].data, RData::SOA(_)),
            "{name}"
        );
        assert_eq!(answer.authorities[0].name.to_ascii(), "cluster.local.");
    }
}

#[tokio::test]
async fn what_is_published_replaces_what_was() {
    let server = server(vec![]).await;
    let name = "new.default.svc.cluster.local.";
    assert_eq!(
        ask(&server, name, RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    let mut next = table();
    next.records.insert(
        name.trim_end_matches('.').to_owned(),
        vec![DnsRecord::Addresses(vec![[10, 96, 0, 9].into()])],
    );
    next.records.remove("web.default.svc.cluster.local");
    server.replace(all(next));
    assert_eq!(
        data(&ask(&server, name, RecordType::A).await),
        ["10.96.0.9"]
    );
    let gone = ask(&server, "web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn addresses_take_turns() {
    let server = server(vec![]).await;
    let mut firsts = std::collections::BTreeSet::new();
    for id in 0..3 {
        let mut request = question("db.default.svc.cluster.local.", RecordType::A);
        request.metadata.id = id;
        firsts.insert(data(&ask_with(&server, &request).await)[0].clone());
    }
    assert_eq!(firsts.len(), 3, "{firsts:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_and_whole_over_tcp() {
    let server = server(vec![]).await;
    let request = question("many.default.svc.cluster.local.", RecordType::A);
    let bytes = exchange(&server, &request.to_vec().unwrap()).await;
    assert!(bytes.len() <= 512, "{}", bytes.len());
    assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);

    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    let encoded = request.to_vec().unwrap();
    for _ in 0..2 {
        stream
            .write_all(&u16::try_from(encoded.len()).unwrap().to_be_bytes())
            .await
            .unwrap();
        stream.write_all(&encoded).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(
            (answer.answers.len(), answer.metadata.truncation),
            (200, false)
        );
    }
}

#[tokio::test]
async fn extensions_are_answered_in_kind() {
    let server = server(vec![]).await;
    let mut request = question("web.default.svc.cluster.local.", RecordType::A);
    assert!(ask_with(&server, &request).await.edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0);
    request.set_edns(edns.clone());
    assert_eq!(
        ask_with(&server, &request)
            .await
            .edns
            .unwrap()
            .max_payload(),
        1232
    );
    edns.set_version(1);
    request.set_edns(edns);
    // The code's high bits are in the extension.
    let answer = ask_with(&server, &request).await;
    assert_eq!(
        (
            answer.edns.as_ref().unwrap().rcode_high(),
            answer.answers.len()
        ),
        (1, 0)
    );
}

#[tokio::test]
async fn bad_input_is_refused_or_ignored_and_the_server_goes_on() {
    let server = server(vec![]).await;
    let mut two = question("a.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut update = question("cluster.local.", RecordType::SOA);
    update.metadata.op_code = OpCode::Notify;
    let transfer = question("cluster.local.", RecordType::AXFR);
    for (request, code) in [
        (two, ResponseCode::FormErr),
        (chaos, ResponseCode::Refused),
        (update, ResponseCode::NotImp),
        (transfer, ResponseCode::Refused),
    ] {
        assert_eq!(
            ask_with(&server, &request).await.metadata.response_code,
            code
        );
    }
    // A header that promises a question which is not there.
    let cut = exchange(&server, &[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    assert_eq!(
        (&cut[..2], cut[3] & 0xf),
        (&[0x12, 0x34][..], 1),
        "FORMERR with the asker's number"
    );
    let socket = UdpSocket::bind(ANY_PORT).await.unwrap();
    let mut response = question("web.default.svc.cluster.local.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    for ignored in [
        vec![],
        vec![0xff],
        vec![0xff; 600],
        response.to_vec().unwrap(),
    ] {
        socket
            .send_to(&ignored, server.addresses()[0])
            .await
            .unwrap();
    }
    let mut last = question("web.default.svc.cluster.local.", RecordType::A);
    last.metadata.id = 4711;
    socket
        .send_to(&last.to_vec().unwrap(), server.addresses()[0])
        .await
        .unwrap();
    let mut buffer = vec![0; 1500];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(first.metadata.id, 4711, "nothing before it was answered");
}

/// A resolver that knows every name of example.com and counts the queries; it answers over UDP only that TCP be used.
async fn resolver(count: Arc<AtomicUsize>, truncate: bool) -> SocketAddr {
    let udp = UdpSocket::bind(ANY_PORT).await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    fn answer(bytes: &[u8]) -> Message {
        let request = Message::from_vec(bytes).unwrap();
        let mut answer = reply(&request, ResponseCode::NoError);
        let name = request.queries[0].name().clone();
        if name.to_ascii().ends_with("example.com.") {
            let data = RData::A(Ipv4Addr::new(192, 0, 2, 7).into());
            answer.add_answer(Record::from_rdata(name, 60, data));
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(name.clone(), name, 1, 1, 1, 1, 60);
            answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
        }
        answer
    }
    tokio::spawn(async move {
        let mut buffer = vec![0; 1500];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let mut answer = answer(&buffer[..length]);
            if truncate {
                answer = answer.truncate();
            }
            udp.send_to(&answer.to_vec().unwrap(), client)
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut bytes).await.unwrap();
            let answer = answer(&bytes).to_vec().unwrap();
            stream
                .write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes())
                .await
                .unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn other_names_are_forwarded_and_remembered() {
    let count = Arc::new(AtomicUsize::new(0));
    let server = server(vec![resolver(Arc::clone(&count), false).await]).await;
    for _ in 0..3 {
        let answer = ask(&server, "www.example.com.", RecordType::A).await;
        assert_eq!(data(&answer), ["192.0.2.7"]);
        assert!(!answer.metadata.authoritative);
        let absent = ask(&server, "nosuch.example.org.", RecordType::A).await;
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(count.load(Ordering::SeqCst), 2, "one query for each name");
    let alias = ask(&server, "ext.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&alias), ["www.example.com.", "192.0.2.7"]);
    let unknown = ask(&server, "9.9.9.9.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let server = server(vec![resolver(Arc::default(), true).await]).await;
    assert_eq!(
        data(&ask(&server, "www.example.com.", RecordType::A).await),
        ["192.0.2.7"]
    );
}

#[tokio::test]
async fn a_resolver_that_is_down_is_passed_over_and_none_at_all_is_a_failure() {
    // Bound, then closed: nobody answers there.
    let down = UdpSocket::bind(ANY_PORT)
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let with_one = server(vec![down, resolver(Arc::clone(&count), false).await]).await;
    assert_eq!(
        data(&ask(&with_one, "www.example.com.", RecordType::A).await),
        ["192.0.2.7"]
    );
    for upstreams in [vec![], vec![down]] {
        let failing = server(upstreams).await;
        let answer = ask(&failing, "www.example.com.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(
            data(&ask(&failing, "web.default.svc.cluster.local.", RecordType::A).await),
            ["10.96.0.5"]
        );
    }
}

#[tokio::test]
async fn a_port_in_use_and_a_bad_domain_are_named() {
    let server = server(vec![]).await;
    let taken = server.addresses()[0];
    let error = DnsServer::start(&[taken], "cluster.local", vec![])
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    for bad in ["", "..", "a..b"] {
        let error = DnsServer::start(&[ANY_PORT.into()], bad, vec![])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("domain"), "{error}");
    }
    let address = server.addresses()[0];
    drop(server);
    let socket = UdpSocket::bind(ANY_PORT).await.unwrap();
    socket.connect(address).await.unwrap();
    let refused = timeout(Duration::from_secs(10), async {
        loop {
            let sent = socket.send(b"?").await;
            if sent.is_err() || socket.recv(&mut [0; 10]).await.is_err() {
                return;
            }
        }
    });
    refused
        .await
        .expect("a dropped server does not listen any more");
}
