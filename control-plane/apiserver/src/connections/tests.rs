use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
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
async fn what_takes_too_long_is_ended() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let now = clients.connections.now();
    let (stranger, _one) = clients.connect("10.0.0.1").await;
    let (known, _two) = clients.connect("10.0.0.1").await;
    let (node, _three) = clients.connect("10.0.0.1").await;
    let (stranger, known, node) = (stranger.connection(), known.connection(), node.connection());
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
    let charge = known.await_reading(100);
    assert!(!known.is_overdue(after(25)));
    assert!(known.is_overdue(after(35)));
    let answering = answering.patiently(true);
    assert!(!known.is_overdue(after(10_000)));
    drop((answering, charge));
    known.was_read(100);
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
    let mut body = metered(Body::from_stream(pieces), Answering::begin(connection));
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
async fn the_reader_that_leaves_most_for_longest_goes_first() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let mut slow = clients.connect("10.0.0.1").await;
    let mut quick = clients.connect("10.0.0.1").await;
    let held = slow.0.connection().await_reading(600 << 10);
    pass(SLOW).await;
    let more = quick.0.connection().await_reading(500 << 10);
    assert!(is_ended(&mut slow.1).await);
    assert!(!is_ended(&mut quick.1).await);
    drop((held, more));
}

#[tokio::test]
async fn a_place_is_freed_by_the_one_that_does_not_read() {
    let clients = Clients::new(64, 64, 1 << 20).await;
    let limits = crate::limits::Limits::default();
    let (reader, mut reading) = clients.connect("10.0.0.1").await;
    let (sleeper, mut sleeping) = clients.connect("10.0.0.1").await;
    let mut answering = Vec::new();
    for connected in [&reader, &sleeper] {
        let place = limits
            .enter(Class::Reads, &user("somebody"), &clients.connections)
            .await
            .expect("there is room");
        let connection = connected.connection();
        answering.push(Answering::begin(connection).holding(place));
    }
    let held = sleeper.connection().await_reading(1);
    clients.connections.free_place(Class::Reads);
    assert!(!is_ended(&mut sleeping).await, "it has had no time");
    pass(SLOW).await;
    clients.connections.free_place(Class::Watches);
    assert!(!is_ended(&mut sleeping).await, "it has no such place");
    clients.connections.free_place(Class::Reads);
    assert!(is_ended(&mut sleeping).await);
    assert!(!is_ended(&mut reading).await);
    drop(held);
}
