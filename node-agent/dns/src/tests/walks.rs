//! Walks through a client's search list, answered at its first question.

use std::time::Instant;

use super::stub::{Manner, Stub};
use super::*;

const SEARCHES: [&str; 4] = [
    "default.svc.cluster.local",
    "svc.cluster.local",
    "cluster.local",
    "corp.example",
];

/// A server that knows the test's search list.
async fn searched(upstreams: Vec<SocketAddr>) -> DnsServer {
    let server = server(upstreams).await;
    let searches = SEARCHES.map(str::to_owned).to_vec();
    server.client(Ipv4Addr::LOCALHOST.into(), Some(searches));
    server
}

fn first(wanted: &str) -> String {
    format!("{wanted}.default.svc.cluster.local.")
}

#[tokio::test]
async fn an_external_name_is_found_in_one_round_trip() {
    let stub = Stub::new(Manner::Answer).await;
    let server = searched(vec![stub.address]).await;
    for _ in 0..2 {
        let answer = ask(&server, &first("WWW.example.com"), RecordType::A).await;
        assert_eq!(data(&answer), ["WWW.example.com.", "192.0.2.7"]);
        let owners: Vec<_> = answer.answers.iter().map(|r| r.name.to_ascii()).collect();
        assert_eq!(
            owners,
            [first("WWW.example.com"), "WWW.example.com.".to_owned()]
        );
        // What has no IPv6 address is found as well, and has none.
        let none = ask(&server, &first("www.example.com"), RecordType::AAAA).await;
        assert_eq!(none.metadata.response_code, ResponseCode::NoError);
        assert_eq!(data(&none), ["www.example.com."]);
    }
    let mut asked = stub.asked();
    asked.sort();
    assert_eq!(
        asked
            .iter()
            .map(|asked| asked.to_lowercase())
            .collect::<Vec<_>>(),
        [
            "a www.example.com.",
            "a www.example.com.corp.example.",
            "aaaa www.example.com.",
            "aaaa www.example.com.corp.example.",
        ],
        "each once, and no name of the cluster"
    );
}

#[tokio::test]
async fn the_first_name_that_exists_is_the_answer_for_both_families() {
    let stub = Stub::new(Manner::Answer).await;
    let server = searched(vec![stub.address]).await;
    // `six.corp.example` has IPv6 addresses only: the walk for IPv4 ends there too, and finds none.
    for (wanted, found) in [
        (RecordType::AAAA, vec!["six.corp.example.", "fd00::7"]),
        (RecordType::A, vec!["six.corp.example."]),
    ] {
        let answer = ask(&server, &first("six"), wanted).await;
        assert_eq!(data(&answer), found);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    }
    // A service of another namespace, named as such, and an alias.
    let other = ServiceName {
        namespace: "other".into(),
        name: "web".into(),
    };
    let table = DnsTable {
        records: BTreeMap::from([(
            "web.other.svc.cluster.local".to_owned(),
            vec![addresses(&["10.96.7.7"])],
        )]),
        ..DnsTable::default()
    };
    server.change(other, Some(table));
    let before = stub.asked().len();
    let answer = ask(&server, &first("web.other"), RecordType::A).await;
    assert_eq!(data(&answer), ["web.other.svc.cluster.local.", "10.96.7.7"]);
    assert_eq!(stub.asked().len(), before, "nobody else was asked");
    // A namespace is no host, though its name exists: the walk goes on, and finds nothing.
    assert_eq!(code(&server, &first("other")).await, ResponseCode::NXDomain);
}

#[tokio::test]
async fn nothing_that_exists_is_hidden_and_nothing_is_invented() {
    let stub = Stub::new(Manner::Answer).await;
    let server = searched(vec![stub.address]).await;
    let web = ask(&server, &first("web"), RecordType::A).await;
    assert_eq!(data(&web), ["10.96.0.5"]);
    let web = ask(&server, &first("web"), RecordType::AAAA).await;
    assert_eq!(
        (web.answers.len(), web.metadata.response_code),
        (0, ResponseCode::NoError)
    );
    assert!(stub.asked().is_empty());
    // What exists nowhere, and what is no first step of this client.
    for name in [
        first("nosuch"),
        "www.example.com.svc.cluster.local.".into(),
        "www.example.com.other.svc.cluster.local.".into(),
    ] {
        let answer = ask(&server, &name, RecordType::A).await;
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NXDomain,
            "{name}"
        );
        assert!(answer.answers.is_empty() && answer.authorities.len() == 1);
    }
    let service = ask(&server, &first("www.example.com"), RecordType::SRV).await;
    assert_eq!(service.metadata.response_code, ResponseCode::NXDomain);
    server.client(Ipv4Addr::LOCALHOST.into(), None);
    let gone = code(&server, &first("www.example.com")).await;
    assert_eq!(gone, ResponseCode::NXDomain);
}

#[tokio::test]
async fn without_other_resolvers_the_cluster_is_still_answered() {
    let silent = Stub::new(Manner::Silent).await;
    for upstreams in [vec![], vec![silent.address]] {
        let server = searched(upstreams).await;
        let start = Instant::now();
        // It is certain that the name does not exist; the rest of the walk is the client's.
        assert_eq!(
            code(&server, &first("www.example.com")).await,
            ResponseCode::NXDomain
        );
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        let web = ask(&server, &first("web"), RecordType::A).await;
        assert_eq!(data(&web), ["10.96.0.5"]);
    }
}

#[tokio::test]
async fn answers_that_nobody_may_remember_end_the_walk_as_well() {
    let stub = Stub::with_ttl(Manner::Answer, 0).await;
    let server = searched(vec![stub.address]).await;
    for _ in 0..2 {
        let answer = ask(&server, &first("www.example.com"), RecordType::A).await;
        assert_eq!(data(&answer), ["www.example.com.", "192.0.2.7"]);
        let none = ask(&server, &first("www.example.com"), RecordType::AAAA).await;
        assert_eq!(data(&none), ["www.example.com."]);
    }
}

#[tokio::test]
async fn what_was_known_ends_the_walk_while_nobody_answers() {
    let stub = Stub::with_ttl(Manner::Answer, 20).await;
    let server = searched(vec![stub.address]).await;
    let name = first("www.example.com");
    ask(&server, &name, RecordType::A).await;
    stub.behave(Manner::Silent);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(21)).await;
    tokio::time::resume();
    let start = Instant::now();
    let answer = ask(&server, &name, RecordType::A).await;
    assert_eq!(data(&answer), ["www.example.com.", "192.0.2.7"]);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}
