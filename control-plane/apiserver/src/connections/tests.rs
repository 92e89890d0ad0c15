use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

struct Clients {
    listener: TcpListener,
    connections: Arc<Connections>,
}

impl Clients {
    async fn new(unknown: usize, users: usize, budget: usize) -> Self {
        let limits = ConnectionLimits { unknown, users };
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            connections: Connections::new(limits, Budget::new(budget)),
        }
    }

    /// One that says it comes from an address.
    async fn connect(&self, from: &str) -> (Connected, TcpStream) {
        let address = self.listener.local_addr().expect("an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        let from = from.parse().expect("an address");
        let connected = self.connections.admit(accepted.expect("accepted").0, from);
        (connected, client.expect("connected"))
    }
}

/// Whether the other side has closed it.
async fn is_ended(client: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_millis(50), client.read(&mut byte));
    matches!(read.await, Ok(Ok(0) | Err(_)))
}

/// The clock goes on.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

fn user(name: &str) -> Identity {
    Identity::new(name, &["system:authenticated"])
}

#[tokio::test]
async fn newcomers_displace_the_oldest_strangers_of_their_address_first() {
    let clients = Clients::new(8, 8, 1 << 20).await;
    let mut quiet = clients.connect("10.0.0.1").await;
    let mut flood = Vec::new();
    for _ in 0..6 {
        flood.push(clients.connect("10.0.0.2").await);
    }
    // A quarter is what one address may have.
    for (number, (_, client)) in flood.iter_mut().enumerate() {
        assert_eq!(is_ended(client).await, number < 4, "{number}");
    }
    assert!(!is_ended(&mut quiet.1).await);
    // From many addresses, the oldest of all goes first.
    let mut many = Vec::new();
    for number in 0..6 {
        many.push(clients.connect(&format!("10.0.1.{number}")).await);
    }
    assert!(is_ended(&mut quiet.1).await);
    assert!(!is_ended(&mut many[0].1).await);
}

#[tokio::test]
async fn addresses_of_one_ipv6_network_are_one() {
    assert_eq!(
        Source::of("2001:db8::1".parse().expect("an address")),
        Source::of("2001:db8::ffff:2".parse().expect("an address"))
    );
    assert_ne!(
        Source::of("2001:db8:0:1::1".parse().expect("an address")),
        Source::of("2001:db8::1".parse().expect("an address"))
    );
    assert_eq!(
        Source::of("::ffff:10.0.0.1".parse().expect("an address")),
        Source::of("10.0.0.1".parse().expect("an address"))
    );
}

#[tokio::test]
async fn the_known_stay_whoever_else_comes() {
    let clients = Clients::new(8, 8, 1 << 20).await;
    let mut node = clients.connect("10.0.0.1").await;
    let identity = Identity::new("system:node:one", &["system:nodes"]);
    node.0.connection().introduce(&identity);
    let mut known = clients.connect("10.0.0.1").await;
    known.0.connection().introduce(&user("somebody"));
    let mut anonymous = Vec::new();
    for number in 0..20 {
        let client = clients.connect(&format!("10.0.1.{number}")).await;
        client.0.connection().introduce(&Identity::anonymous());
        anonymous.push(client);
    }
    let mut left = 0;
    for (_, client) in &mut anonymous {
        left += usize::from(!is_ended(client).await);
    }
    // Strangers keep the other half.
    assert_eq!(left, 4);
    for _ in 0..20 {
        drop(clients.connect("10.0.2.1").await);
    }
    assert!(!is_ended(&mut node.1).await);
    assert!(!is_ended(&mut known.1).await);
    assert_eq!(node.0.connection().standing(), Standing::Own);
}

#[tokio::test]
async fn a_user_leaves_others_some_and_loses_idle_connections_first() {
    let clients = Clients::new(64, 8, 1 << 20).await;
    let mut busy = Vec::new();
    let mut answering = Vec::new();
    for number in 0..9 {
        let client = clients.connect(&format!("10.0.0.{number}")).await;
        if number != 2 {
            answering.push(Answering::begin(client.0.connection()));
        }
        client.0.connection().introduce(&user("greedy"));
        busy.push(client);
    }
    let mut ended = Vec::new();
    for (number, (_, client)) in busy.iter_mut().enumerate() {
        if is_ended(client).await {
            ended.push(number);
        }
    }
    // The idle one for the seventh; then nothing of its own can go.
    assert_eq!(ended, [2, 7, 8]);
    let mut other = clients.connect("10.0.1.1").await;
    other.0.connection().introduce(&user("another"));
    assert!(!is_ended(&mut other.1).await);
}

#[tokio::test]
async fn what_has_been_without_requests_for_longest_goes_first() {
    let clients = Clients::new(64, 8, 1 << 20).await;
    let mut idle = Vec::new();
    for _ in 0..6 {
        let (connected, client) = clients.connect("10.0.0.1").await;
        connected.connection().introduce(&user("somebody"));
        idle.push((connected, client));
        pass(Duration::from_secs(1)).await;
    }
    drop(Answering::begin(idle[0].0.connection()));
    let (newcomer, _client) = clients.connect("10.0.0.1").await;
    newcomer.connection().introduce(&user("somebody"));
    let ended = idle.iter().map(|(one, _)| one.connection().is_ended());
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended, [false, true, false, false, false, false]);
    assert!(!newcomer.connection().is_ended());
}

#[tokio::test]
async fn users_that_have_all_connections_let_others_in() {
    let clients = Clients::new(64, 8, 1 << 20).await;
    let mut all = Vec::new();
    for name in [["one"; 6].as_slice(), &["two"; 2]].concat() {
        let (connected, client) = clients.connect("10.0.0.1").await;
        connected.connection().introduce(&user(name));
        all.push((connected, client));
    }
    let (newcomer, _client) = clients.connect("10.0.0.1").await;
    newcomer.connection().introduce(&user("three"));
    assert!(!newcomer.connection().is_ended());
    let ended = all.iter().map(|(one, _)| one.connection().is_ended());
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
    assert_eq!(ended[6..], [false, false], "who has the most has one less");
    // What is busy is nobody else's.
    let busy = all
        .iter()
        .map(|(one, _)| Answering::begin(one.connection()));
    let _busy: Vec<_> = busy.collect();
    let _answering = Answering::begin(newcomer.connection());
    let (late, _client) = clients.connect("10.0.0.1").await;
    late.connection().introduce(&user("four"));
    assert!(late.connection().is_ended());
}

#[tokio::test]
async fn a_node_has_only_so_many_connections() {
    let clients = Clients::new(64, 64, 16 << 20).await;
    let node = |name: &str| Identity::new(&format!("system:node:{name}"), &["system:nodes"]);
    let (mut all, mut answering) = (Vec::new(), Vec::new());
    for _ in 0..crowd::OF_ITS_OWN {
        let (connected, client) = clients.connect("10.0.0.1").await;
        connected.connection().introduce(&node("one"));
        answering.push(Answering::begin(connected.connection()));
        all.push((connected, client));
    }
    let newcomer = async |name: &str| {
        let (connected, client) = clients.connect("10.0.0.1").await;
        connected.connection().introduce(&node(name));
        (connected, client)
    };
    let (refused, _client) = newcomer("one").await;
    assert!(refused.connection().is_ended(), "all others are busy");
    let (other, _client) = newcomer("two").await;
    assert!(!other.connection().is_ended(), "it has its own");
    drop(answering.remove(5));
    let (late, _client) = newcomer("one").await;
    assert!(!late.connection().is_ended() && all[5].0.connection().is_ended());
}

#[tokio::test]
async fn a_node_whose_certificate_counts_no_more_is_ended() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let mut nodes = Vec::new();
    for name in ["kept", "removed"] {
        let (connected, client) = clients.connect("10.0.0.1").await;
        let identity = Identity::new(&format!("system:node:{name}"), &["system:nodes"]);
        let peer = Peer {
            address: "10.0.0.1".parse().expect("an address"),
            identity: Some(identity.clone()),
            key: None,
        };
        connected.connection().showed(&Arc::new(peer));
        connected.connection().introduce(&identity);
        nodes.push((connected, client));
    }
    let sweep = || {
        let kept = |peer: &Peer| peer.node() == Some("kept");
        clients.connections.sweep(kept);
        let ended = nodes.iter().map(|(node, _)| node.connection().is_ended());
        ended.collect::<Vec<_>>()
    };
    assert_eq!(sweep(), [false, false], "it may be told why");
    assert_eq!(sweep(), [false, false]);
    pass(CERTIFICATES).await;
    assert_eq!(sweep(), [false, true]);
}

#[tokio::test]
async fn what_had_arrived_is_not_read_after_the_end() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let (mut connected, mut client) = clients.connect("10.0.0.1").await;
    client.write_all(b"xy").await.expect("sent");
    let mut byte = [0];
    assert_eq!(connected.read(&mut byte).await.expect("a byte"), 1);
    connected.connection().end("room");
    assert_eq!(connected.read(&mut byte).await.expect("the end"), 0);
}

#[tokio::test]
async fn each_answer_that_ends_begins_the_idle_time_anew() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let (connected, _client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection();
    let (first, second) = (Answering::begin(connection), Answering::begin(connection));
    pass(Duration::from_secs(200)).await;
    let now = clients.connections.now();
    drop(first);
    assert!(connection.idle_since.load(Ordering::Acquire) >= now);
    drop(second);
    assert!(connection.is_idle() && !connection.is_overdue(now));
}

#[tokio::test]
async fn a_link_counts_until_it_ends() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let (connected, _client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection();
    let link = trusted(Body::from("said"), Answering::begin(connection));
    assert_eq!(http_body::Body::size_hint(&link).exact(), Some(4));
    assert!(!connection.is_idle());
    let said = link.collect().await.expect("it is whole").to_bytes();
    assert_eq!(said, "said");
    assert!(connection.is_idle());
    assert_eq!(connection.unread.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn what_takes_too_long_is_ended() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let now = clients.connections.now();
    let (stranger, _one) = clients.connect("10.0.0.1").await;
    let (known, _two) = clients.connect("10.0.0.1").await;
    let (node, _three) = clients.connect("10.0.0.1").await;
    let (stranger, known, node) = (stranger.connection(), known.connection(), node.connection());
    // The handshake is no head.
    stranger.heard();
    known.heard();
    known.introduce(&user("somebody"));
    node.introduce(&Identity::new("system:node:one", &["system:nodes"]));
    let after = |seconds: u64| now + 1000 * seconds;
    assert!(!stranger.is_overdue(after(14)));
    assert!(stranger.is_overdue(after(16)));
    assert!(!known.is_overdue(after(110)));
    assert!(known.is_overdue(after(125)));
    assert!(!node.is_overdue(after(10_000)));
    // Half a head.
    known.heard();
    assert!(!known.is_overdue(after(9)));
    assert!(known.is_overdue(after(12)));
    // Under way: a watch may be quiet for hours.
    let answering = Answering::begin(known);
    assert!(!known.is_overdue(after(10_000)));
    // But it must be read.
    let delivery = Delivery::begin(answering);
    let charge = delivery.await_reading(100);
    assert!(known.stalled(after(25)).is_empty());
    assert_eq!(known.stalled(after(35)).len(), 1);
    delivery.was_read(100);
    assert!(known.stalled(after(10_000)).is_empty());
    drop((delivery, charge));
    let delivery = Delivery::begin(Answering::begin(known).patiently(true));
    let charge = delivery.await_reading(100);
    assert!(known.stalled(after(10_000)).is_empty());
    delivery.was_read(100);
    drop((delivery, charge));
    assert!(!known.is_overdue(after(60)));
    // Pings of HTTP/2 are no heads.
    known.is_multiplexed();
    known.heard();
    assert!(!known.is_overdue(after(60)));
}

#[tokio::test]
async fn an_answer_is_made_as_it_is_read_and_counted_until_it_has_left() {
    let clients = Clients::new(64, 64, 64 * PIECE).await;
    let budget = clients.connections.budget().clone();
    let (connected, _client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection();
    let before = budget.used();
    let made = Arc::new(AtomicUsize::new(0));
    let pieces = futures::stream::repeat_with({
        let made = made.clone();
        move || {
            made.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; PIECE]))
        }
    });
    let mut body = metered(
        Body::from_stream(pieces),
        Answering::begin(connection),
        true,
    );
    let first = body.frame().await.expect("a frame").expect("data");
    assert_eq!(budget.used() - before, PIECE);
    let waiting = tokio::time::timeout(Duration::from_millis(50), body.frame()).await;
    waiting.expect_err("nothing is made while that is unread");
    assert_eq!(made.load(Ordering::Relaxed), 1);
    drop(first);
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(budget.used(), before);
    assert!(!connection.is_idle());
    drop(body);
    assert!(connection.is_idle());
}

#[tokio::test]
async fn what_is_made_counts_although_http_does_not_ask_for_it() {
    let clients = Clients::new(64, 64, 64 << 20).await;
    let budget = clients.connections.budget().clone();
    let (connected, _client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection();
    let before = budget.used();
    let whole = || {
        let body = Body::from(vec![b'x'; 20_000]);
        metered(body, Answering::begin(connection), true)
    };
    let (mut first, second) = (whole(), whole());
    assert_eq!(budget.used() - before, 40_000);
    assert_eq!(connection.unread.load(Ordering::Acquire), 40_000);
    assert_eq!(clients.connections.unknown.budget.used(), 40_000);
    assert_eq!(http_body::Body::size_hint(&first).exact(), Some(20_000));
    let frame = first.frame().await.expect("a frame").expect("data");
    assert_eq!(frame.data_ref().map(Bytes::len), Some(20_000));
    assert_eq!(http_body::Body::size_hint(&first).exact(), Some(0));
    assert!(http_body::Body::is_end_stream(&first));
    assert_eq!(budget.used() - before, 40_000);
    drop((first, frame));
    assert_eq!(budget.used() - before, 20_000);
    drop(second);
    assert_eq!(budget.used(), before);
    assert!(connection.deliveries().is_empty() && connection.is_idle());
}

fn endless() -> Body {
    Body::from_stream(futures::stream::repeat_with(|| {
        Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; PIECE]))
    }))
}

#[tokio::test]
async fn only_streams_that_succeed_are_waited_for() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let (connected, _client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection();
    connection.introduce(&user("somebody"));
    let later = clients.connections.now() + 1000 * 35;
    for (body, succeeded, stalls) in [
        (Body::from("refused"), false, true),
        (Body::from("done"), true, true),
        (endless(), false, true),
        (endless(), true, false),
    ] {
        let answering = Answering::begin(connection).patiently(true);
        let mut body = metered(body, answering, succeeded);
        let frame = body.frame().await.expect("a frame").expect("data");
        let stalled = connection.stalled(later).len();
        assert_eq!(stalled, usize::from(stalls), "{succeeded} {stalls}");
        drop((body, frame));
    }
}

#[tokio::test]
async fn an_answer_that_is_read_says_nothing_of_another() {
    let clients = Clients::new(64, 64, 16 << 20).await;
    let (connected, _client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection();
    connection.introduce(&user("somebody"));
    let left = metered(Body::from("left alone"), Answering::begin(connection), true);
    let mut read = metered(endless(), Answering::begin(connection), true);
    for _ in 0..35 {
        drop(read.frame().await.expect("a frame").expect("data"));
        pass(Duration::from_secs(1)).await;
    }
    let now = clients.connections.now();
    let stalled = connection.stalled(now);
    assert_eq!(stalled.len(), 1);
    assert_eq!(stalled[0].unread(), "left alone".len());
    // A stream whose turn never came is judged as well: its first piece is always made.
    let mut waits = metered(endless(), Answering::begin(connection), true);
    let piece = waits.frame().await.expect("a frame").expect("data");
    assert_eq!(connection.stalled(now + 1000 * 35).len(), 2);
    drop((left, read, piece));
}

#[tokio::test]
async fn one_answer_ends_without_the_others_of_its_connection() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let clients = Clients::new(64, 64, 16 << 20).await;
    let (connected, client) = clients.connect("10.0.0.1").await;
    let connection = connected.connection().clone();
    connection.introduce(&user("somebody"));
    let service = hyper::service::service_fn({
        let connection = connection.clone();
        move |request: http::Request<hyper::body::Incoming>| {
            let connection = connection.clone();
            // Within the stream, as requests are answered.
            async move {
                let body = match request.uri().path() {
                    "/endless" => endless(),
                    _ => Body::from("short"),
                };
                let answer = metered(body, Answering::begin(&connection), true);
                Ok::<_, std::convert::Infallible>(http::Response::new(answer))
            }
        }
    });
    tokio::spawn(
        hyper::server::conn::http2::Builder::new(Streams)
            .serve_connection(TokioIo::new(connected), service),
    );
    let (mut sender, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(100)
        .handshake::<_, Body>(TokioIo::new(client))
        .await
        .expect("HTTP/2");
    tokio::spawn(driver);
    let ask = |path: &str| {
        let request = http::Request::get(format!("http://server{path}"));
        request.body(Body::empty()).expect("a request")
    };
    let endless = sender
        .send_request(ask("/endless"))
        .await
        .expect("answered");
    let now = clients.connections.now();
    let stalled = connection.stalled(now + 1000 * 35);
    assert_eq!(stalled.len(), 1, "what it may not send waits");
    stalled
        .iter()
        .for_each(|delivery| delivery.end("time", now));
    drop(stalled);
    let (mut endless, mut read) = (endless.into_body(), 0);
    while let Some(frame) = endless.frame().await {
        match frame {
            Ok(frame) => read += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => break,
        }
        assert!(read < 1 << 20, "it goes on");
    }
    let short = sender.send_request(ask("/short")).await.expect("answered");
    let short = short.into_body().collect().await.expect("it is whole");
    assert_eq!(short.to_bytes(), "short");
    assert!(!connection.ended.load(Ordering::Acquire));
}

/// An answer of which so many bytes wait, with its client.
struct Waiting {
    client: TcpStream,
    connected: Connected,
    delivery: Arc<Delivery>,
    _counted: Option<[Option<Charge>; 2]>,
}

impl Clients {
    async fn waiting(&self, identity: &Identity, bytes: usize, place: Option<Place>) -> Waiting {
        let (connected, client) = self.connect("10.0.0.1").await;
        connected.connection().introduce(identity);
        let mut answering = Answering::begin(connected.connection());
        if let Some(place) = place {
            answering = answering.holding(place);
        }
        let delivery = Delivery::begin(answering);
        Waiting {
            client,
            _counted: delivery.await_reading(bytes),
            delivery,
            connected,
        }
    }
}

impl Waiting {
    fn is_ended(&self) -> bool {
        self.connected.connection().ended.load(Ordering::Acquire)
    }
}

#[tokio::test]
async fn the_reader_that_leaves_most_for_longest_goes_first() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let mut slow = clients.waiting(&user("somebody"), 600 << 10, None).await;
    pass(SLOW).await;
    let mut quick = clients.waiting(&user("another"), 500 << 10, None).await;
    assert!(is_ended(&mut slow.client).await);
    assert!(!is_ended(&mut quick.client).await);
}

#[tokio::test]
async fn bytes_that_strangers_leave_end_no_user() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let (anonymous, somebody) = (Identity::anonymous(), user("somebody"));
    let reader = clients.waiting(&somebody, 100 << 10, None).await;
    pass(SLOW).await;
    let first = clients.waiting(&anonymous, 60 << 10, None).await;
    pass(SLOW).await;
    assert!(!first.is_ended(), "strangers have a sixteenth");
    let second = clients.waiting(&anonymous, 10 << 10, None).await;
    assert!(first.is_ended() && !second.is_ended() && !reader.is_ended());
    drop(first);
    // What a user needs is taken from strangers before users, and from the cluster's own by nobody.
    let node = Identity::new("system:node:one", &["system:nodes"]);
    let own = clients.waiting(&node, 400 << 10, None).await;
    pass(SLOW).await;
    let quick = clients.waiting(&user("another"), 540 << 10, None).await;
    assert!(second.is_ended() && reader.is_ended());
    assert!(!own.is_ended() && !quick.is_ended());
}

#[tokio::test]
async fn places_are_freed_by_strangers_first_and_by_nobody_of_higher_standing() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let limits = crate::limits::Limits::default();
    let (anonymous, somebody) = (Identity::anonymous(), user("somebody"));
    let place = async |identity: &Identity| {
        let place = limits.enter(Class::Reads, identity, &clients.connections);
        Some(place.await.expect("there is room"))
    };
    let reader = clients.waiting(&somebody, 1, place(&somebody).await).await;
    pass(SLOW).await;
    clients.connections.free_place(Class::Reads, &anonymous);
    assert!(!reader.is_ended(), "a stranger asks");
    let stranger = clients
        .waiting(&anonymous, 1, place(&anonymous).await)
        .await;
    pass(SLOW).await;
    clients.connections.free_place(Class::Reads, &somebody);
    assert!(stranger.is_ended() && !reader.is_ended());
    drop(stranger);
    clients.connections.free_place(Class::Reads, &somebody);
    assert!(reader.is_ended());
}

#[tokio::test]
async fn whoever_does_not_read_a_refusal_keeps_no_place() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let limits = crate::limits::Limits::default();
    let (connected, _client) = clients.connect("10.0.0.1").await;
    for (body, succeeded, keeps) in [
        (Body::from("refused"), false, false),
        (Body::from("done"), true, true),
        // It is not made yet: its place is for what makes it.
        (endless(), false, true),
    ] {
        let somebody = user("somebody");
        let place = limits.enter(Class::Reads, &somebody, &clients.connections);
        let place = place.await.expect("there is room");
        let answering = Answering::begin(connected.connection()).holding(place);
        let _unread = metered(body, answering, succeeded);
        let deliveries = connected.connection().deliveries();
        assert_eq!(deliveries[0].holds(Class::Reads), keeps, "{succeeded}");
    }
}

#[tokio::test]
async fn a_place_is_freed_by_the_one_that_does_not_read() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let limits = crate::limits::Limits::default();
    let somebody = user("somebody");
    let place = async || {
        let place = limits.enter(Class::Reads, &somebody, &clients.connections);
        Some(place.await.expect("there is room"))
    };
    let mut reading = clients.waiting(&somebody, 0, place().await).await;
    let mut sleeping = clients.waiting(&somebody, 1, place().await).await;
    assert!(reading.delivery.holds(Class::Reads));
    let free = |class: Class| clients.connections.free_place(class, &somebody);
    free(Class::Reads);
    assert!(!is_ended(&mut sleeping.client).await, "it has had no time");
    pass(SLOW).await;
    free(Class::Watches);
    assert!(
        !is_ended(&mut sleeping.client).await,
        "it has no such place"
    );
    free(Class::Reads);
    assert!(is_ended(&mut sleeping.client).await);
    assert!(!is_ended(&mut reading.client).await);
}
