use gantry_cri::network::FakePodNetwork;
use gantry_rpc::node::{Resource, WantedSeries as WantedName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::target::tests::pod;
use super::*;
use crate::desired::tests::change;

/// What has to come comes long before.
const DEADLINE: Duration = Duration::from_secs(20);

fn want(name: &str) -> ScrapeWanted {
    ScrapeWanted {
        series: vec![WantedName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: Vec::new(),
        }],
    }
}

/// An application that answers each request with how many there were, unless it hangs.
async fn application(hangs: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        for count in 1.. {
            let (mut stream, _) = listener.accept().await.expect("a client");
            if hangs {
                kept.push(stream);
                continue;
            }
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await;
            assert!(read.expect("a request") > 0);
            let answer = format!("HTTP/1.1 200 OK\r\n\r\nasked_total {count}\n");
            stream.write_all(answer.as_bytes()).await.expect("a reader");
        }
    });
    port
}

/// A pod on the node's network, whose address is this machine's own.
fn known(name: &str, port: u16) -> gantry_rpc::node::ObjectChange {
    let mut pod = pod(json!({"prometheus.io/port": port.to_string()}));
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.uid = Some(name.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.host_network = Some(true);
    }
    let pod = serde_json::to_value(pod).expect("JSON");
    change(Resource::Pod, &pod)
}

#[tokio::test]
async fn pods_are_asked_while_something_is_wanted() {
    let desired = Arc::new(Desired::default());
    for (name, hangs) in [("web", false), ("mute", true)] {
        let port = application(hangs).await;
        desired.apply(&known(name, port)).expect("a pod");
    }
    let network = FakePodNetwork::new("10.244.0.0/24".parse().expect("a range"));
    let scrapes = Arc::new(Scrapes::default());
    let from = Sources {
        desired,
        network: Arc::new(network),
        addresses: vec![IpAddr::from([127, 0, 0, 1])],
        connections: Arc::default(),
    };
    let connections = from.connections.clone();
    let following = tokio::spawn(follow(from, scrapes.clone()));
    let mut answers = scrapes.subscribe();
    scrapes.want(want("asked_total"));
    let of = |answers: &Option<Arc<Scraped>>, name: &str| {
        let mut pods = answers.iter().flat_map(|answers| &answers.pods);
        pods.find(|pod| pod.name == name).cloned()
    };
    let counted = answers.wait_for(|answers| {
        let web = of(answers, "web").and_then(|pod| pod.series.first().cloned());
        let mute = of(answers, "mute");
        web.is_some_and(|series| series.counter && series.value >= 2.0)
            && mute.is_some_and(|pod| pod.trouble.contains("no answer within 1 s"))
    });
    let counted = tokio::time::timeout(DEADLINE, counted).await;
    drop(counted.expect("in time").expect("it runs"));
    scrapes.want(ScrapeWanted::default());
    let over = answers.wait_for(|answers| answers.iter().all(|answers| answers.pods.is_empty()));
    drop(
        tokio::time::timeout(DEADLINE, over)
            .await
            .expect("in time")
            .expect("it runs"),
    );
    let counted = connections.of("web", std::time::Instant::now());
    assert!(counted.made >= 2, "nobody used the pod: {counted:?}");
    following.abort();
}

#[test]
fn only_pods_of_a_namespace_that_is_wanted_from_are_asked() {
    let scrapes = Scrapes::default();
    scrapes.want(want("a"));
    let wanted = scrapes.wanted.borrow().clone();
    let mut other = pod(json!({}));
    other.metadata.namespace = Some("other".to_owned());
    let pods = vec![Arc::new(pod(json!({}))), Arc::new(other)];
    let here = |_: &Pod| Some(IpAddr::from([10, 0, 0, 1]));
    assert_eq!(asked(pods.clone(), &wanted, here).len(), 1);
    assert_eq!(
        asked(pods, &wanted, |_| None).len(),
        0,
        "it has no address yet"
    );
}

#[test]
fn what_is_wanted_again_is_no_news() {
    let scrapes = Scrapes::default();
    let mut news = scrapes.wanted.subscribe();
    scrapes.want(want("a"));
    assert!(news.has_changed().expect("it is there"));
    news.mark_unchanged();
    scrapes.want(want("a"));
    assert!(!news.has_changed().expect("it is there"));
}

#[test]
fn who_fails_is_asked_less_and_less_often() {
    let seconds: Vec<u64> = (0..7).map(|failures| pause(failures).as_secs()).collect();
    assert_eq!(seconds, [0, 1, 2, 4, 8, 8, 8]);
    assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
}

#[test]
fn answers_never_fill_the_link() {
    let series = |value: f64| Series {
        name: "a".to_owned(),
        labels: [("path".to_owned(), "x".repeat(100))].into(),
        is_counter: false,
        value,
    };
    let answer = || Ok((0..10).map(|number| series(f64::from(number))).collect());
    let pods = (0..20).map(|_| told(&pod(json!({})), answer(), 1));
    let one = told(&pod(json!({})), answer(), 1).encoded_len();
    let all = within(3 * one + one / 2, pods);
    let whole = all.iter().filter(|pod| pod.trouble.is_empty());
    assert_eq!((all.len(), whole.count()), (20, 3));
    assert!(
        all.iter()
            .all(|pod| pod.trouble.is_empty() != pod.series.is_empty())
    );
    let long = told(&pod(json!({})), Err("\u{e9}".repeat(100_000)), 1);
    assert!(long.encoded_len() < 4 * TROUBLE_CHARS);
}
