//! Names of the cluster, and the protocol.

use hickory_proto::op::{Edns, MessageType, OpCode};
use hickory_proto::rr::{DNSClass, RData};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stub::{Manner, Stub};
use super::*;

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
async fn a_change_is_answered_from_at_once() {
    let server = server(vec![]).await;
    let name = "new.default.svc.cluster.local.";
    assert_eq!(
        ask(&server, name, RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    let new = named("new", &[("", addresses(&["10.96.0.9"]))]);
    server.change(super::name("new"), Some(new));
    server.change(super::name("web"), None);
    assert_eq!(
        data(&ask(&server, name, RecordType::A).await),
        ["10.96.0.9"]
    );
    let gone = ask(&server, "web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    let pointer = ask(&server, "5.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    assert_ne!(pointer.metadata.response_code, ResponseCode::NoError);
    server.replace(services());
    let web = ask(&server, "web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&web), ["10.96.0.5"]);
    let gone = ask(&server, name, RecordType::A).await;
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
    let part = Message::from_vec(&bytes).unwrap();
    assert!(part.metadata.truncation);
    assert!(part.answers.len() > 20, "what fits: {}", part.answers.len());

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
    let length = timeout(DEADLINE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(first.metadata.id, 4711, "nothing before it was answered");
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
    let refused = timeout(DEADLINE, async {
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

#[tokio::test]
async fn queries_of_one_connection_do_not_hold_each_other_up() {
    let stub = Stub::new(Manner::Hold).await;
    let server = server(vec![stub.address]).await;
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    let mut ids = Vec::new();
    for name in ["slow.example.com.", "web.default.svc.cluster.local."] {
        let request = question(name, RecordType::A);
        ids.push(request.metadata.id);
        let bytes = request.to_vec().unwrap();
        let length = u16::try_from(bytes.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
    // It has no more to ask, and listens on.
    stream.shutdown().await.unwrap();
    let mut answers = Vec::new();
    for turn in 0..2 {
        if turn == 1 {
            until("it is asked", || !stub.asked().is_empty()).await;
            stub.release.notify_waiters();
        }
        let length = timeout(DEADLINE, stream.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        answers.push((answer.metadata.id, data(&answer)[0].clone()));
    }
    let expected = [
        (ids[1], "10.96.0.5".to_owned()),
        (ids[0], "192.0.2.7".to_owned()),
    ];
    assert_eq!(answers, expected);
    let end = timeout(DEADLINE, stream.read_u16()).await.unwrap();
    assert!(end.is_err(), "then the connection ends");
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let server = server(vec![]).await;
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    let request = question("web.default.svc.cluster.local.", RecordType::A);
    let bytes = request.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = timeout(DEADLINE, stream.read_u16()).await.unwrap().unwrap();
    stream
        .read_exact(&mut vec![0; usize::from(length)])
        .await
        .unwrap();
    tokio::time::pause();
    tokio::time::advance(listen::IDLE).await;
    tokio::time::resume();
    let end = timeout(DEADLINE, stream.read_u16()).await.unwrap();
    assert!(end.is_err(), "closed");
}

#[tokio::test]
async fn types_that_are_unknown_or_all_types() {
    let server = server(vec![]).await;
    let name = "web.default.svc.cluster.local.";
    for wanted in [RecordType::MX, RecordType::HTTPS, RecordType::Unknown(4711)] {
        let answer = ask(&server, name, wanted).await;
        let found = (answer.metadata.response_code, answer.answers.len());
        assert_eq!(found, (ResponseCode::NoError, 0), "{wanted}");
    }
    let any = ask(&server, "dual.default.svc.cluster.local.", RecordType::ANY).await;
    let mut any = data(&any);
    any.sort();
    assert_eq!(any, ["10.96.0.6", "fd00::6"]);
    let alias = ask(&server, "ext.default.svc.cluster.local.", RecordType::CNAME).await;
    assert_eq!(data(&alias), ["www.example.com."]);
}

#[tokio::test]
async fn ipv6_clients_are_answered_beside_ipv4_ones() {
    let both = [
        SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)),
        ANY_PORT.into(),
    ];
    let server = DnsServer::start(&both, "cluster.local", vec![])
        .await
        .unwrap();
    let mut dual = named("dual", &[("", addresses(&["10.96.0.6", "fd00::6"]))]);
    let own = "dual.default.svc.cluster.local".to_owned();
    dual.reverse.insert("fd00::6".parse().unwrap(), own);
    server.change(name("dual"), Some(dual));
    assert!(server.addresses()[0].is_ipv6());
    let dual = ask(&server, "dual.default.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!(data(&dual), ["fd00::6"]);
    let zeros = "0.".repeat(23);
    let reverse = format!("6.{zeros}0.0.0.0.0.0.d.f.ip6.arpa.");
    let pointer = ask(&server, &reverse, RecordType::PTR).await;
    assert_eq!(data(&pointer), ["dual.default.svc.cluster.local."]);
}

#[tokio::test]
async fn many_clients_are_divided_among_the_sockets_of_an_address() {
    let server = Arc::new(server(vec![]).await);
    let mut askers = JoinSet::new();
    for _ in 0..200 {
        let server = Arc::clone(&server);
        askers.spawn(async move {
            data(&ask(&server, "web.default.svc.cluster.local.", RecordType::A).await)
        });
    }
    let answers = timeout(DEADLINE, askers.join_all()).await.unwrap();
    assert_eq!(answers.len(), 200);
    assert!(answers.iter().all(|answer| answer == &["10.96.0.5"]));
}
