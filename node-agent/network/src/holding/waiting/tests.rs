use std::net::SocketAddr;

use proptest::prelude::*;

use super::super::syn::Origin;
use super::super::syn::tests::syn as packet;
use super::*;

const LIMITS: HoldingLimits = HoldingLimits {
    total: 6,
    of_service: 4,
    of_source: 3,
    time: Duration::from_secs(30),
};

fn service(name: &str) -> Arc<ServiceName> {
    Arc::new(ServiceName {
        namespace: "shop".into(),
        name: name.into(),
    })
}

/// The frontend of the n-th service.
fn frontend(number: u8) -> Frontend {
    Frontend::Address(Protocol::Tcp, [10, 96, 0, number].into(), 80)
}

/// A connection of a client, from its port.
fn syn(client: u8, port: u16, to: u8, sequence: u32) -> Syn {
    let from = SocketAddr::new([10, 244, 1, client].into(), port);
    let to = SocketAddr::new([10, 96, 0, to].into(), 80);
    Syn::parse(&packet(from, to, sequence), Origin::Link).unwrap()
}

struct Bed {
    waiting: Waiting,
    now: Instant,
}

impl Bed {
    /// With services `a` and `b` that sleep behind the frontends 1 and 2.
    fn new() -> Self {
        let mut bed = Self {
            waiting: Waiting::new(LIMITS),
            now: Instant::now(),
        };
        bed.receive(1, Reception::Held(service("a")));
        bed.receive(2, Reception::Held(service("b")));
        bed
    }

    fn arrive(&mut self, syn: Syn) -> Orders {
        let mut orders = Orders::default();
        self.waiting.arrived(syn, self.now, &mut orders);
        orders
    }

    fn receive(&mut self, number: u8, reception: Reception) -> Orders {
        let mut orders = Orders::default();
        self.waiting
            .receive(frontend(number), &reception, self.now, &mut orders);
        orders
    }

    fn pass(&mut self, seconds: u64) -> Orders {
        self.now += Duration::from_secs(seconds);
        let mut orders = Orders::default();
        self.waiting.expire(self.now, &mut orders);
        orders
    }

    fn news(&mut self, name: &str) -> HoldingNews {
        self.waiting
            .take_news()
            .remove(&*service(name))
            .unwrap_or_default()
    }

    fn held(&self, name: &str) -> u64 {
        self.waiting.held().remove(&*service(name)).unwrap_or(0)
    }
}

#[test]
fn a_connection_waits_until_somebody_answers_and_is_sent_again_as_last_heard() {
    let mut bed = Bed::new();
    assert!(bed.arrive(syn(7, 40000, 1, 5)).is_empty());
    let began = HoldingNews {
        began: true,
        held: 1,
        ..HoldingNews::default()
    };
    assert_eq!(bed.news("a"), began);
    bed.pass(3);
    assert!(bed.arrive(syn(7, 40000, 1, 6)).is_empty(), "sent again");
    assert_eq!((bed.held("a"), bed.held("b")), (1, 0));
    assert_eq!(bed.news("a"), HoldingNews::default());
    bed.pass(1);
    let orders = bed.receive(1, Reception::Served);
    assert_eq!(orders.again, [syn(7, 40000, 1, 6)]);
    assert!(orders.refuse.is_empty());
    let released = HoldingNews {
        released: 1,
        waited: Some(Duration::from_secs(4)),
        ..HoldingNews::default()
    };
    assert_eq!(bed.news("a"), released);
    assert_eq!(bed.held("a"), 0);
    assert!(bed.receive(1, Reception::Served).is_empty(), "only once");
}

#[test]
fn what_is_heard_of_too_late_is_sent_again_at_once_and_nothing_long_after() {
    let mut bed = Bed::new();
    bed.receive(1, Reception::Served);
    let late = bed.arrive(syn(7, 40000, 1, 5));
    assert_eq!(late.again, [syn(7, 40000, 1, 5)]);
    assert_eq!((bed.news("a").released, bed.held("a")), (1, 0));
    bed.pass(3);
    assert!(bed.arrive(syn(7, 40001, 1, 5)).is_empty());
    assert!(bed.arrive(syn(7, 40001, 9, 5)).is_empty(), "of no service");
    assert_eq!(bed.held("a"), 0);
}

#[test]
fn too_many_are_refused_and_there_is_room_when_some_have_gone() {
    let mut bed = Bed::new();
    for port in 0..3 {
        assert!(bed.arrive(syn(7, port, 1, 5)).is_empty());
    }
    let refused = bed.arrive(syn(7, 3, 1, 5));
    assert_eq!(refused.refuse, [syn(7, 3, 1, 5)], "of one address");
    assert!(bed.arrive(syn(8, 0, 1, 5)).is_empty());
    let refused = bed.arrive(syn(9, 0, 1, 5));
    assert_eq!(refused.refuse.len(), 1, "to one service");
    assert!(bed.arrive(syn(8, 0, 2, 5)).is_empty());
    assert!(bed.arrive(syn(9, 0, 2, 5)).is_empty());
    let left = bed.arrive(syn(10, 0, 2, 5));
    assert!(left.is_empty(), "in total: its client comes again");
    let news = bed.news("a");
    assert_eq!((news.held, news.refused), (4, 2));
    assert_eq!(bed.receive(1, Reception::Served).again.len(), 4);
    assert!(bed.arrive(syn(7, 0, 2, 5)).is_empty());
    assert_eq!(bed.held("b"), 3);
}

#[test]
fn nobody_waits_for_ever_nor_for_what_is_gone() {
    let mut bed = Bed::new();
    bed.arrive(syn(7, 1, 1, 5));
    assert!(bed.pass(29).is_empty());
    bed.arrive(syn(7, 1, 1, 5));
    bed.arrive(syn(7, 2, 1, 5));
    assert_eq!(bed.pass(1).refuse, [syn(7, 1, 1, 5)]);
    assert_eq!(bed.news("a").refused, 1);
    let gone = bed.receive(1, Reception::Refused);
    assert_eq!(gone.refuse, [syn(7, 2, 1, 5)]);
    assert!(bed.arrive(syn(7, 2, 1, 5)).is_empty());
    assert_eq!(bed.waiting.frontends(), [frontend(2)]);
    assert_eq!(bed.waiting.total, 0);
    assert!(bed.waiting.sources.is_empty());
}

#[test]
fn a_frontend_that_becomes_anothers_sends_its_clients_there() {
    let mut bed = Bed::new();
    bed.arrive(syn(7, 1, 1, 5));
    bed.receive(1, Reception::Held(service("a")));
    assert_eq!(bed.held("a"), 1);
    let moved = bed.receive(1, Reception::Held(service("b")));
    assert_eq!(moved.again.len(), 1);
    bed.arrive(syn(7, 1, 1, 5));
    assert_eq!((bed.held("a"), bed.held("b")), (0, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(u8, u16, u8),
    Receive(u8, u8),
    Pass(u64),
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u8..5, 0u16..4, 1u8..4).prop_map(|(client, port, to)| Step::Arrive(client, port, to)),
        2 => (1u8..4, 0u8..4).prop_map(|(number, how)| Step::Receive(number, how)),
        1 => (0u64..20).prop_map(Step::Pass),
        1 => Just(Step::Read),
    ]
}

proptest! {
    /// Bounds hold whatever happens, every connection that was counted in is counted out, and nothing is left of what is over.
    #[test]
    fn nothing_waits_beyond_its_bounds(steps in proptest::collection::vec(step(), 1..80)) {
        let mut bed = Bed::new();
        let (mut held, mut left) = (0, 0);
        let mut refused_at_once = 0;
        let mut total = HoldingNews::default();
        for step in steps {
            let before = bed.waiting.total;
            let orders = match step {
                Step::Arrive(client, port, to) => {
                    let orders = bed.arrive(syn(client, port, to, 5));
                    refused_at_once += orders.refuse.len();
                    held += bed.waiting.total - before;
                    // Sent on at once: it came and went.
                    held += orders.again.len();
                    left += orders.again.len();
                    orders
                }
                Step::Receive(number, how) => {
                    let reception = match how {
                        0 => Reception::Served,
                        1 => Reception::Refused,
                        2 => Reception::Held(service("a")),
                        _ => Reception::Held(service("b")),
                    };
                    let orders = bed.receive(number, reception);
                    left += orders.again.len() + orders.refuse.len();
                    orders
                }
                Step::Pass(seconds) => {
                    let orders = bed.pass(seconds);
                    left += orders.refuse.len();
                    prop_assert!(orders.again.is_empty());
                    orders
                }
                Step::Read => {
                    for news in bed.waiting.take_news().into_values() {
                        total.held += news.held;
                        total.refused += news.refused;
                    }
                    Orders::default()
                }
            };
            prop_assert!(orders.again.len() + orders.refuse.len() <= LIMITS.total.max(1));
            prop_assert!(bed.waiting.total <= LIMITS.total);
            prop_assert_eq!(bed.waiting.total, held - left);
            let by_service = bed.waiting.held();
            prop_assert!(by_service.values().all(|count| *count <= 4));
            prop_assert_eq!(by_service.values().sum::<u64>(), bed.waiting.total as u64);
            prop_assert!(bed.waiting.sources.values().all(|count| *count <= LIMITS.of_source));
            prop_assert_eq!(bed.waiting.sources.values().sum::<usize>(), bed.waiting.total);
        }
        bed.pass(60);
        for news in bed.waiting.take_news().into_values() {
            total.held += news.held;
            total.refused += news.refused;
        }
        prop_assert_eq!(total.held as usize, held);
        prop_assert!(total.refused as usize >= refused_at_once);
        prop_assert!(bed.waiting.services.is_empty(), "nothing is kept of services that nobody waits for");
        prop_assert_eq!(bed.waiting.total, 0);
    }
}
