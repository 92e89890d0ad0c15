//! Names of other zones.

use std::time::Instant;

use super::stub::{Manner, Stub};
use super::upstream::{AT_ONCE, AskError};
use super::*;

const WWW: &str = "www.example.com.";
/// Times that something is tried which a busy machine may hold up now and then.
const TURNS: usize = 20;
/// Nobody waits for less before a resolver's silence is a failure: what takes no longer, on however busy a machine, has not
/// waited for that.
const SILENCE: Duration = Duration::from_secs(2);

/// Lets the clock's hands jump.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Asks for names that nobody asked for before, one of which must be answered before a second resolver would be asked:
/// a busy machine may be slow, but not each time.
async fn quickly(label: &str, server: &DnsServer, expected: [&str; 1]) {
    let mut best = Duration::MAX;
    for turn in 0..TURNS {
        let (start, name) = (Instant::now(), format!("{label}{turn}.example.com."));
        assert_eq!(data(&ask(server, &name, RecordType::A).await), expected);
        best = best.min(start.elapsed());
        if best < Duration::from_millis(140) {
            return;
        }
    }
    panic!("{best:?}");
}

#[tokio::test]
async fn other_names_are_forwarded_and_remembered() {
    let stub = Stub::new(Manner::Answer).await;
    let server = server(vec![stub.address]).await;
    for _ in 0..3 {
        let answer = ask(&server, WWW, RecordType::A).await;
        assert_eq!(data(&answer), ["192.0.2.7"]);
        assert!(!answer.metadata.authoritative);
        assert_eq!(
            code(&server, "nosuch.example.org.").await,
            ResponseCode::NXDomain
        );
    }
    assert_eq!(stub.asked().len(), 2, "one query for each name");
    let alias = ask(&server, "ext.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&alias), [WWW, "192.0.2.7"]);
    let unknown = ask(&server, "9.9.9.9.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(stub.asked().len(), 3);
}

#[tokio::test]
async fn each_asker_finds_its_own_spelling_and_the_time_that_is_left() {
    let stub = Stub::new(Manner::Answer).await;
    let server = server(vec![stub.address]).await;
    let first = ask(&server, WWW, RecordType::A).await;
    assert_eq!(first.answers[0].ttl, 60);
    later(Duration::from_secs(20)).await;
    let second = ask(&server, "wWw.eXample.COM.", RecordType::A).await;
    assert_eq!(second.answers[0].name.to_ascii(), "wWw.eXample.COM.");
    assert!(
        (38..=40).contains(&second.answers[0].ttl),
        "{}",
        second.answers[0].ttl
    );
    assert_eq!(stub.asked().len(), 1);
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let stub = Stub::new(Manner::Truncate).await;
    let server = server(vec![stub.address]).await;
    assert_eq!(data(&ask(&server, WWW, RecordType::A).await), ["192.0.2.7"]);
    assert_eq!(stub.over_tcp.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let stub = Stub::new(Manner::Forge).await;
    let server = server(vec![stub.address]).await;
    assert_eq!(data(&ask(&server, WWW, RecordType::A).await), ["192.0.2.7"]);
}

#[tokio::test]
async fn a_silent_resolver_costs_a_moment_and_is_then_passed_over() {
    let (silent, good) = (
        Stub::new(Manner::Silent).await,
        Stub::new(Manner::Answer).await,
    );
    let server = server(vec![silent.address, good.address]).await;
    let resolver = Arc::clone(&server.lookup.upstreams.resolvers()[0]);
    for turn in 0..3 {
        let start = Instant::now();
        let name = format!("n{turn}.example.com.");
        assert_eq!(
            data(&ask(&server, &name, RecordType::A).await),
            ["192.0.2.7"]
        );
        assert!(start.elapsed() < SILENCE, "{:?}", start.elapsed());
    }
    until("it is noticed", || !resolver.is_up()).await;
    let asked = silent.asked().len();
    quickly("after", &server, ["192.0.2.7"]).await;
    assert_eq!(silent.asked().len(), asked, "it was not asked");
    // When it is back, a question that it gets beside the others finds out.
    silent.behave(Manner::Answer);
    later(Duration::from_secs(40)).await;
    ask(&server, "probe.example.com.", RecordType::A).await;
    until("it is back", || resolver.is_up()).await;
    ask(&server, "again.example.com.", RecordType::A).await;
    assert!(
        silent.asked().contains(&"A again.example.com.".to_owned()),
        "the first is first again"
    );
}

#[tokio::test]
async fn one_that_fails_or_refuses_is_passed_over_at_once_and_none_at_all_is_a_failure() {
    // Bound, then closed: nobody answers there.
    let down = UdpSocket::bind(ANY_PORT)
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let (failing, good) = (
        Stub::new(Manner::Fail).await,
        Stub::new(Manner::Answer).await,
    );
    let with_one = server(vec![down, failing.address, good.address]).await;
    quickly("www", &with_one, ["192.0.2.7"]).await;
    for upstreams in [vec![], vec![down], vec![failing.address, down]] {
        let failing = server(upstreams).await;
        let start = Instant::now();
        assert_eq!(code(&failing, WWW).await, ResponseCode::ServFail);
        assert!(start.elapsed() < SILENCE, "{:?}", start.elapsed());
        let web = ask(&failing, "web.default.svc.cluster.local.", RecordType::A).await;
        assert_eq!(data(&web), ["10.96.0.5"]);
    }
}

#[tokio::test]
async fn silence_is_a_failure_within_three_seconds_and_remembered_for_one() {
    let stubs = [
        Stub::new(Manner::Silent).await,
        Stub::new(Manner::Silent).await,
    ];
    let server = server(stubs.iter().map(|stub| stub.address).collect()).await;
    let start = Instant::now();
    assert_eq!(code(&server, WWW).await, ResponseCode::ServFail);
    let waited = start.elapsed();
    assert!(waited > SILENCE && waited < PATIENCE, "{waited:?}");
    assert!(
        stubs[0].asked().len() >= 2,
        "packets are lost: it was asked again"
    );
    let again = Instant::now();
    assert_eq!(code(&server, WWW).await, ResponseCode::ServFail);
    assert!(again.elapsed() < SILENCE, "{:?}", again.elapsed());
}

#[tokio::test]
async fn what_was_known_is_given_while_nobody_answers() {
    let stub = Stub::with_ttl(Manner::Answer, 30).await;
    let server = server(vec![stub.address]).await;
    ask(&server, WWW, RecordType::A).await;
    stub.behave(Manner::Silent);
    later(Duration::from_secs(31)).await;
    let start = Instant::now();
    let stale = ask(&server, WWW, RecordType::A).await;
    assert_eq!(
        (data(&stale), stale.answers[0].ttl),
        (vec!["192.0.2.7".to_owned()], 5)
    );
    assert!(start.elapsed() < SILENCE, "{:?}", start.elapsed());
    let resolver = &server.lookup.upstreams.resolvers()[0];
    for name in ["a.example.com.", "b.example.com."] {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        server
            .lookup
            .upstreams
            .begin(&query, false, std::net::Ipv4Addr::LOCALHOST.into());
    }
    until("its silence is noticed", || !resolver.is_up()).await;
    let mut best = Duration::MAX;
    for _ in 0..TURNS {
        let start = Instant::now();
        assert_eq!(data(&ask(&server, WWW, RecordType::A).await), ["192.0.2.7"]);
        best = best.min(start.elapsed());
        if best < Duration::from_millis(400) {
            break;
        }
    }
    assert!(best < Duration::from_millis(400), "{best:?}");
    stub.behave(Manner::Answer);
    later(Duration::from_secs(40)).await;
    let mut fresh = 5;
    let deadline = Instant::now() + DEADLINE;
    while fresh <= 5 && Instant::now() < deadline {
        fresh = ask(&server, WWW, RecordType::A).await.answers[0].ttl;
    }
    assert_eq!(fresh, 30);
    stub.behave(Manner::Silent);
    later(Duration::from_secs(30 + 3600)).await;
    assert_eq!(
        code(&server, WWW).await,
        ResponseCode::ServFail,
        "an hour, not for ever"
    );
}

#[tokio::test]
async fn the_same_question_is_asked_once_for_all() {
    let stub = Stub::with_ttl(Manner::Hold, 0).await;
    let server = Arc::new(server(vec![stub.address]).await);
    let mut askers = JoinSet::new();
    for _ in 0..20 {
        let server = Arc::clone(&server);
        askers.spawn(async move { data(&ask(&server, WWW, RecordType::A).await) });
    }
    until("all wait", || server.lookup.waiting() == 20).await;
    until("it is asked", || !stub.asked().is_empty()).await;
    stub.release.notify_waiters();
    // Should a slow machine have asked anew before that, it is answered too.
    stub.behave(Manner::Answer);
    let answers = timeout(DEADLINE, askers.join_all()).await.unwrap();
    assert!(answers.iter().all(|answer| answer == &["192.0.2.7"]));
    let distinct: std::collections::BTreeSet<_> = stub.asked().into_iter().collect();
    assert_eq!(distinct.len(), 1);
    assert!(stub.asked().len() <= 2, "{:?}", stub.asked());
}

/// One of as many clients as there are questions.
fn client(index: usize) -> std::net::IpAddr {
    std::net::Ipv4Addr::from(0x0af4_0000 + u32::try_from(index).unwrap()).into()
}

#[tokio::test]
async fn one_client_leaves_room_for_others() {
    let stub = Stub::new(Manner::Silent).await;
    let server = server(vec![stub.address]).await;
    let upstreams = &server.lookup.upstreams;
    let query = |index: usize| {
        let name = Name::from_ascii(format!("n{index}.example.com.")).unwrap();
        Query::query(name, RecordType::A)
    };
    (0..AT_ONCE).for_each(|index| upstreams.begin(&query(index), false, client(1)));
    let refused = upstreams.ask(&query(AT_ONCE), false, client(1)).await;
    assert!(matches!(refused, Err(AskError::TooMany)), "{refused:?}");
    // Somebody else's question, which finds the resolver well again.
    stub.behave(Manner::Answer);
    assert_eq!(code(&server, WWW).await, ResponseCode::NoError);
}

#[tokio::test]
async fn a_burst_is_bounded_and_the_rest_is_told_so() {
    let stub = Stub::new(Manner::Silent).await;
    let server = server(vec![stub.address]).await;
    let upstreams = &server.lookup.upstreams;
    let query = |index: usize| {
        let name = Name::from_ascii(format!("n{index}.example.com.")).unwrap();
        Query::query(name, RecordType::A)
    };
    (0..AT_ONCE).for_each(|index| upstreams.begin(&query(index), false, client(index)));
    let start = Instant::now();
    assert_eq!(
        code(&server, "onemore.example.com.").await,
        ResponseCode::ServFail
    );
    assert!(start.elapsed() < SILENCE, "at once: {:?}", start.elapsed());
    let web = ask(&server, "web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&web), ["10.96.0.5"]);
    // When they have failed there is room again.
    stub.behave(Manner::Answer);
    let deadline = Instant::now() + DEADLINE;
    while code(&server, "onemore.example.com.").await != ResponseCode::NoError {
        assert!(Instant::now() < deadline, "there is no room");
    }
}

#[tokio::test]
async fn a_resolver_that_asks_us_in_turn_is_found_out() {
    // It forwards every question to the server under test, as a resolver on the same host might.
    let looping = Arc::new(UdpSocket::bind(ANY_PORT).await.unwrap());
    let server = server(vec![looping.local_addr().unwrap()]).await;
    let to = server.addresses()[0];
    let relay = tokio::spawn(async move {
        let mut buffer = vec![0; 1500];
        loop {
            let (length, client) = looping.recv_from(&mut buffer).await.unwrap();
            let (bytes, looping) = (buffer[..length].to_vec(), Arc::clone(&looping));
            tokio::spawn(async move {
                let socket = UdpSocket::bind(ANY_PORT).await.unwrap();
                socket.send_to(&bytes, to).await.unwrap();
                let mut buffer = vec![0; 1500];
                if let Ok(Ok(length)) = timeout(DEADLINE, socket.recv(&mut buffer)).await {
                    looping.send_to(&buffer[..length], client).await.unwrap();
                }
            });
        }
    });
    let resolver = &server.lookup.upstreams.resolvers()[0];
    until("the loop is found", || resolver.is_looping()).await;
    let start = Instant::now();
    assert_eq!(code(&server, WWW).await, ResponseCode::ServFail);
    assert!(start.elapsed() < SILENCE, "{:?}", start.elapsed());
    relay.abort();
}

#[tokio::test]
async fn a_question_with_signatures_is_another_question() {
    let stub = Stub::new(Manner::Answer).await;
    let server = server(vec![stub.address]).await;
    ask(&server, WWW, RecordType::A).await;
    let mut request = question(WWW, RecordType::A);
    let mut edns = hickory_proto::op::Edns::new();
    edns.flags_mut().dnssec_ok = true;
    request.set_edns(edns);
    let answer = ask_with(&server, &request).await;
    assert!(answer.edns.unwrap().flags().dnssec_ok);
    assert_eq!(stub.asked().len(), 2);
}
