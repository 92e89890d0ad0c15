//! What nodes say of figures.

use gantry_rpc::node::{
    ContainerUsage, HeldConnections, NodeUsage, PodUsage, Scraped, ScrapedPod, ScrapedSeries, Usage,
};
use gantry_usage::ScrapedMetric;

use super::super::allowance::STATUSES;
use super::super::*;
use super::{World, used_up};

fn usage(clock: u64, pods: &[(&str, &str, &str)]) -> agent_message::Message {
    let pods = pods.iter().map(|(namespace, name, uid)| PodUsage {
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
        uid: (*uid).to_owned(),
        read_at: clock,
        containers: vec![ContainerUsage {
            name: "c".to_owned(),
            ..ContainerUsage::default()
        }],
        ..PodUsage::default()
    });
    agent_message::Message::Usage(Usage {
        clock: 1,
        node: Some(NodeUsage {
            read_at: clock,
            ..NodeUsage::default()
        }),
        pods: pods.collect(),
        held: Vec::new(),
    })
}

fn holding(clock: u64, services: &[(&str, u64)]) -> agent_message::Message {
    let held = services.iter().map(|(service, held)| HeldConnections {
        namespace: "default".to_owned(),
        service: (*service).to_owned(),
        held: *held,
    });
    agent_message::Message::Usage(Usage {
        clock,
        node: Some(NodeUsage::default()),
        held: held.collect(),
        ..Usage::default()
    })
}

#[tokio::test]
async fn what_a_node_holds_counts_where_there_is_a_service() {
    let world = World::new().await;
    let (one, two) = (world.open("one"), world.open("two"));
    let held = |name: &str| {
        let service = said::service("default".to_owned(), name.to_owned());
        let service = service.expect("a name");
        world.reports.figures.held(&service, Instant::now())
    };
    world
        .say(&one, holding(1, &[("kubernetes", 3), ("none", 1)]))
        .await;
    world.say(&two, holding(1, &[("kubernetes", 4)])).await;
    assert_eq!((held("kubernetes"), held("none")), (7, 0));
    // What is not well-formed counts for nothing; the rest of the message does.
    let twice = holding(1, &[("kubernetes", 3), ("kubernetes", 3)]);
    world.say(&one, twice).await;
    assert_eq!(held("kubernetes"), 4);
}

#[tokio::test]
async fn figures_count_of_a_nodes_own_pods() {
    let world = World::new().await;
    let link = world.open("one");
    let (mine, theirs) = (world.uid("mine"), world.uid("theirs"));
    let told = || {
        let window = Duration::from_secs(1);
        let pods = world.reports.figures.pods(None, window, Instant::now());
        let names = pods.iter().map(|usage| usage.pod.name.clone());
        names.collect::<Vec<_>>()
    };
    let refused = || METRICS.reports_refused.get();
    let second = 1_000_000_000;
    for at in 1..3 {
        let before = refused();
        let pods = [
            ("default", "mine", mine.as_str()),
            ("default", "mine", mine.as_str()),
            ("default", "theirs", theirs.as_str()),
            ("default", "mine", "another-uid"),
            ("default", "nobody", "1-2"),
            ("de/fault", "mine", mine.as_str()),
        ];
        link.take(usage(at * second, &pods)).await;
        // Twice, of another node, of no namespace. Other tests count too.
        assert!(refused() >= before + 3);
    }
    assert_eq!(told(), ["mine"]);
    let node = world
        .reports
        .figures
        .node("one", Duration::ZERO, Instant::now());
    assert!(node.is_some() && link.known_pods.lock().len() == 1);
    // What it does not name any more is gone.
    link.take(usage(3 * second, &[])).await;
    assert_eq!(told(), [""; 0]);
    assert!(link.known_pods.lock().is_empty());
    // Neither what an older link says counts, nor what is too much.
    let new = world.open("one");
    link.take(usage(4 * second, &[("default", "mine", mine.as_str())]))
        .await;
    *new.allowances.usages.lock() = used_up(STATUSES);
    new.take(usage(5 * second, &[("default", "mine", mine.as_str())]))
        .await;
    assert!(new.known_pods.lock().is_empty());
    let (now, window) = (Instant::now(), Duration::ZERO);
    let figures = &world.reports.figures;
    let node = figures.node("one", window, now).expect("its figures");
    assert_eq!(node.counted.at, 3 * second);
}

#[tokio::test]
async fn answers_count_of_a_nodes_own_pods() {
    let world = World::new().await;
    let link = world.open("one");
    let answer = |name: &str, uid: &str| ScrapedPod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        read_at: 1,
        series: vec![ScrapedSeries {
            name: "a".to_owned(),
            value: 4.0,
            ..ScrapedSeries::default()
        }],
        ..ScrapedPod::default()
    };
    let (mine, theirs) = (world.uid("mine"), world.uid("theirs"));
    let pods = vec![
        answer("mine", &mine),
        answer("mine", &mine),
        answer("theirs", &theirs),
        answer("mine", "another-uid"),
    ];
    let before = METRICS.reports_refused.get();
    let said = Scraped { clock: 1, pods };
    link.take(agent_message::Message::Scraped(said)).await;
    assert!(METRICS.reports_refused.get() >= before + 2);
    let value = |uid: &str| {
        let metric = ScrapedMetric {
            namespace: "default",
            name: "a",
            selects: &|_| true,
            window: Duration::ZERO,
        };
        let figures = &world.reports.figures;
        let value = figures.scraped(uid, &metric, Instant::now());
        value.and_then(Result::ok).map(|value| value.value)
    };
    assert_eq!((value(&mine), value(&theirs)), (Some(4.0), None));
    link.take(agent_message::Message::Scraped(Scraped::default()))
        .await;
    assert_eq!(value(&mine), None);
}
