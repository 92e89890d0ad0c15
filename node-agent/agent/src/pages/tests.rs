use gantry_rpc::node::{ContainerUsage, NodeUsage, Resource, Traffic};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::desired::tests::change;

const SECOND: u64 = 1_000_000_000;

fn amounts_of(cpu_nanoseconds: u64) -> Option<Amounts> {
    Some(Amounts {
        cpu_nanoseconds,
        working_set_bytes: 4096,
        processes: 3,
        ..Amounts::default()
    })
}

/// What is read at a second.
fn usage(second: u64) -> Usage {
    let read_at = second * SECOND;
    Usage {
        clock: 1,
        node: Some(NodeUsage {
            read_at,
            amounts: amounts_of(2 * read_at),
            available_bytes: 7,
            traffic: None,
        }),
        pods: vec![PodUsage {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "1-2".to_owned(),
            read_at,
            amounts: amounts_of(read_at),
            traffic: Some(Traffic {
                received_bytes: 11,
                ..Traffic::default()
            }),
            connections: None,
            containers: vec![ContainerUsage {
                name: "c".to_owned(),
                attempt: 2,
                amounts: amounts_of(read_at / 2),
            }],
        }],
        held: Vec::new(),
    }
}

fn pages(readings: u64) -> Arc<Pages> {
    let figures = Figures::default();
    for second in 0..readings {
        figures.read(usage(second + 1));
    }
    let desired = Desired::default();
    let started = "2026-01-02T03:04:05Z";
    let container = json!({
        "name": "c", "image": "example.com/web:1", "imageID": "i", "ready": true, "restartCount": 2,
        "state": {"running": {"startedAt": started}},
    });
    let pod = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "1-2"}, "spec": {},
        "status": {"startTime": started, "containerStatuses": [container]},
    });
    desired
        .apply(&change(Resource::Pod, &pod))
        .expect("it is read");
    Arc::new(Pages::new("one", Arc::new(figures), Arc::new(desired)))
}

async fn get(pages: &Pages, path: &str) -> (StatusCode, String) {
    let response = pages.answer(&Method::GET, path);
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body");
    let text = String::from_utf8(body.to_bytes().to_vec());
    (status, text.expect("text"))
}

/// The value of a series.
fn value<'a>(page: &'a str, series: &str) -> &'a str {
    let mut lines = page.lines();
    let own = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let own = own.unwrap_or_else(|| panic!("{series} is not on the page:\n{page}"));
    own.split(' ').next().unwrap_or_default()
}

#[tokio::test]
async fn metrics_servers_read_what_is_used() {
    let pages = pages(2);
    let (status, page) = get(&pages, "/metrics/resource").await;
    assert_eq!(status, StatusCode::OK);
    let container = "{container=\"c\",namespace=\"default\",pod=\"web\"}";
    for (series, expected) in [
        ("node_cpu_usage_seconds_total", "4"),
        ("node_memory_working_set_bytes", "4096"),
        (
            "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"web\"}",
            "2",
        ),
        ("resource_scrape_error", "0"),
    ] {
        assert_eq!(value(&page, series), expected);
    }
    for (name, expected) in [
        ("container_cpu_usage_seconds_total", "1"),
        ("container_memory_working_set_bytes", "4096"),
        ("container_start_time_seconds", "1767323045"),
    ] {
        assert_eq!(value(&page, &format!("{name}{container}")), expected);
    }
    let (_, page) = get(&pages, "/metrics/cadvisor").await;
    let container = "{container=\"c\",id=\"/1-2/c-2\",image=\"example.com/web:1\",name=\"1-2/c-2\",namespace=\"default\",pod=\"web\"}";
    let series = format!("container_cpu_usage_seconds_total{container}");
    assert_eq!(value(&page, &series), "1");
    let pod = "container=\"\",id=\"/1-2\",image=\"\",name=\"\",namespace=\"default\",pod=\"web\"";
    let series = format!("container_network_receive_bytes_total{{{pod},interface=\"eth0\"}}");
    assert_eq!(value(&page, &series), "11");
    assert_eq!(page.matches("# TYPE container_memory_rss gauge").count(), 1);
}

#[tokio::test]
async fn the_summary_is_a_kubelets() {
    let (_, text) = get(&pages(2), "/stats/summary").await;
    let summary: Value = serde_json::from_str(&text).expect("JSON");
    let node = &summary["node"];
    assert_eq!(node["nodeName"], "one");
    assert_eq!(node["cpu"]["usageNanoCores"], 2 * SECOND);
    assert_eq!(node["memory"]["availableBytes"], 7);
    let pod = &summary["pods"][0];
    assert_eq!(
        pod["podRef"],
        json!({"name": "web", "namespace": "default", "uid": "1-2"})
    );
    assert_eq!(pod["startTime"], "2026-01-02T03:04:05Z");
    assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 2 * SECOND);
    assert_eq!(pod["network"]["interfaces"][0]["rxBytes"], 11);
    assert_eq!(pod["process_stats"]["process_count"], 3);
    let container = &pod["containers"][0];
    assert_eq!(container["name"], "c");
    assert_eq!(container["cpu"]["usageNanoCores"], SECOND / 2);
    assert_eq!(container["startTime"], "2026-01-02T03:04:05Z");
}

#[tokio::test]
async fn before_anything_is_read_the_pages_say_so() {
    let (_, page) = get(&pages(0), "/metrics/resource").await;
    assert_eq!(value(&page, "resource_scrape_error"), "1");
    assert_eq!(page.lines().count(), 3, "{page}");
    let (_, text) = get(&pages(1), "/stats/summary").await;
    let summary: Value = serde_json::from_str(&text).expect("JSON");
    assert!(summary["node"]["cpu"]["usageNanoCores"].is_null());
    let refused = pages(0).answer(&Method::POST, "/stats/summary");
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get(&pages(0), "/pods").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&pages(0), "/healthz").await.1, "ok");
}

#[tokio::test]
async fn a_connection_is_answered() {
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn(pages(1).serve(far));
    let request = b"GET /stats/summary HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n";
    near.write_all(request).await.expect("written");
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"podRef\""), "{answer}");
    serving.await.expect("it ends");
}
