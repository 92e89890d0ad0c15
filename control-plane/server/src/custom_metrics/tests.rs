use std::time::Instant;

use gantry_apiserver::MetricOf;
use gantry_base::selector::LabelSelector;
use gantry_usage::{Connections, Figures, NodeSample, PodName, PodSample, Sample};

use super::*;

const SECOND: u64 = 1_000_000_000;

/// Namespace and name of a pod, and its connections: open, and opened before and after a second.
type PodWith = (&'static str, &'static str, Option<(u64, u64, u64)>);

/// What is told of pods.
fn source(pods: &[PodWith]) -> Sources {
    holding(0, pods)
}

/// As [`source`], while the node holds so many to the service `front`.
fn holding(held: u64, pods: &[PodWith]) -> Sources {
    let front = gantry_usage::ServiceName {
        namespace: "default".to_owned(),
        name: "front".to_owned(),
    };
    let figures = Arc::new(Figures::default());
    for at in 1..3 {
        let pods = pods.iter().map(|(namespace, name, connections)| PodSample {
            pod: Arc::new(PodName {
                namespace: (*namespace).to_owned(),
                name: (*name).to_owned(),
                uid: (*name).to_owned(),
            }),
            at: at * SECOND,
            amounts: Default::default(),
            traffic: None,
            connections: connections.map(|(open, before, after)| Connections {
                open,
                opened: if at == 1 { before } else { after },
            }),
            containers: Vec::new(),
        });
        let sample = Sample {
            clock: 1,
            node: NodeSample::default(),
            held: [(front.clone(), held)].into(),
            pods: pods.collect(),
        };
        let heard = i64::try_from(at).expect("small");
        figures.take("node", sample, Instant::now(), heard);
    }
    let names: Vec<&str> = pods.iter().map(|(_, name, _)| *name).collect();
    let cluster = Arc::new(Cluster::of_pods(&names));
    Sources(vec![Arc::new(ConnectionMetrics { figures, cluster })])
}

async fn told(
    source: &Sources,
    resource: &str,
    objects: &[&str],
    metric: &str,
) -> Result<Vec<(String, i64)>, NoMetric> {
    let objects: Vec<String> = objects.iter().map(|name| (*name).to_owned()).collect();
    let selector = LabelSelector::default();
    let values = source.values(MetricOf {
        namespace: "default",
        resource,
        objects: &objects,
        metric,
        selector: &selector,
    });
    let values = values.await?.into_iter();
    Ok(values.map(|value| (value.object, value.millis)).collect())
}

#[tokio::test]
async fn connections_are_told_of_pods_and_added_up_for_services() {
    let source = source(&[
        ("default", "db", Some((3, 10, 15))),
        ("default", "web", Some((4, 7, 7))),
        ("default", "host", None),
        ("other", "theirs", Some((50, 1, 9))),
    ]);
    let value = |name: &str, millis| (name.to_owned(), millis);
    let (open, new) = ("connections", "new_connections_per_second");
    for (resource, objects, metric, expected) in [
        (
            "pods",
            &["web", "host", "ghost", "db"][..],
            open,
            vec![value("web", 4000), value("db", 3000)],
        ),
        (
            "pods",
            &["web", "db"],
            new,
            vec![value("web", 0), value("db", 5000)],
        ),
        ("pods", &["theirs"], open, vec![]),
        (
            "services",
            &["front", "back"],
            open,
            vec![value("front", 7000)],
        ),
        ("services", &["front"], new, vec![value("front", 5000)]),
    ] {
        let found = told(&source, resource, objects, metric).await;
        assert_eq!(found, Ok(expected), "{metric} of {resource}");
    }
    for (resource, metric) in [("pods", "hits"), ("services", "hits"), ("nodes", open)] {
        let found = told(&source, resource, &["web"], metric).await;
        assert_eq!(found, Err(NoMetric::Unknown), "{metric} of {resource}");
    }
    let served = source.served().await.expect("known");
    assert_eq!(served.len(), 4);
    let labelled = LabelSelector::parse("verb=GET").expect("a selector");
    let objects = ["web".to_owned()];
    let asked = source.values(MetricOf {
        namespace: "default",
        resource: "pods",
        objects: &objects,
        metric: open,
        selector: &labelled,
    });
    assert_eq!(asked.await, Ok(Vec::new()), "there is no such series");
}

#[tokio::test]
async fn a_service_without_pods_has_none_and_one_whose_pods_are_unknown_is_unknown() {
    let none = source(&[]);
    let front = told(&none, "services", &["front"], "connections").await;
    assert_eq!(front, Ok(vec![("front".to_owned(), 0)]));
    let silent = source(&[("default", "web", None)]);
    let front = told(&silent, "services", &["front"], "connections").await;
    assert_eq!(front, Ok(Vec::new()));
}

#[tokio::test]
async fn what_nodes_hold_to_a_service_counts_as_its_own() {
    for (pods, open) in [(&[][..], 2), (&[("default", "web", Some((4, 7, 9)))], 6)] {
        let source = holding(2, pods);
        let front = told(&source, "services", &["front"], "connections").await;
        assert_eq!(front, Ok(vec![("front".to_owned(), open * 1000)]));
        let new = told(
            &source,
            "services",
            &["front"],
            "new_connections_per_second",
        )
        .await;
        let opened = if pods.is_empty() { 0 } else { 2000 };
        assert_eq!(new, Ok(vec![("front".to_owned(), opened)]));
    }
}

#[tokio::test]
async fn a_server_that_does_not_lead_tells_nothing() {
    for resource in ["pods", "services"] {
        let source = ConnectionMetrics {
            figures: Arc::default(),
            cluster: Arc::default(),
        };
        let source = Sources(vec![Arc::new(source)]);
        let asked = told(&source, resource, &["web"], "connections").await;
        assert!(matches!(asked, Err(NoMetric::Unavailable(_))), "{resource}");
    }
}
