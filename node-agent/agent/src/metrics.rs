//! What the node tells Prometheus: programming of services, endpoints, connection tracking, peers; and the page with it.
//! Names are Kubernetes' where it has one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use gantry_network::{ServiceName, VxlanOverlay};
use http::{Response, StatusCode, header};
use http_body_util::Full;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, TextEncoder,
    exponential_buckets,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::pages::Pages;

/// Between looks at the overlay's counters.
const COUNT: Duration = Duration::from_secs(10);
/// Scrapes at once; further ones wait.
const CONNECTIONS: usize = 64;
/// Services that cold starts are told of by name.
const MOST_SERVICES: usize = 1000;
const CONNTRACK: &str = "/proc/sys/net/netfilter/nf_conntrack";

/// The metrics of every agent of this process together.
pub(crate) struct Metrics {
    /// One transaction of service rules.
    pub(crate) sync: Histogram,
    /// From a change's arrival to its acknowledgement.
    pub(crate) programming: Histogram,
    pub(crate) sync_failures: IntCounter,
    pub(crate) policy_failures: IntCounter,
    pub(crate) flushes: IntCounter,
    pub(crate) overlay_failures: IntCounter,
    pub(crate) endpoints: IntGauge,
    pub(crate) services: IntGauge,
    pub(crate) held_ports: IntGauge,
    conntrack_entries: IntGauge,
    conntrack_limit: IntGauge,
    pub(crate) peers: IntGauge,
    pub(crate) unreachable_peers: IntGauge,
    pub(crate) overlay_errors: IntGauge,
    pub(crate) overlay_dropped: IntGauge,
    pub(crate) drain_timeouts: IntCounter,
    pub(crate) connections_held: IntCounter,
    pub(crate) connections_released: IntCounter,
    pub(crate) connections_refused: IntCounter,
}

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    sync: histogram(
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "How long one transaction of service rules took.",
    ),
    // kubeproxy_network_programming_duration_seconds is another: it begins where the change was made, by another
    // machine's clock.
    programming: histogram(
        "gantry_network_programming_duration_seconds",
        "From the arrival of a service's change on this node to the acknowledgement that its rules are in the kernel.",
    ),
    sync_failures: counter(
        "gantry_network_sync_failures_total",
        "Transactions of service rules that the kernel refused, and that were tried again.",
    ),
    policy_failures: counter(
        "gantry_network_policy_failures_total",
        "Transactions of network policies that were refused, and that were tried again.",
    ),
    flushes: counter(
        "gantry_network_flushes_total",
        "How often somebody else has removed tables of this node's rules, which were put back.",
    ),
    overlay_failures: counter(
        "gantry_overlay_failures_total",
        "Attempts at the ways to other nodes after which some were missing, and that were made again.",
    ),
    endpoints: gauge(
        "gantry_network_endpoints",
        "Endpoints that this node's service rules lead to.",
    ),
    services: gauge(
        "gantry_network_services",
        "Services with rules on this node.",
    ),
    held_ports: gauge(
        "gantry_network_held_ports",
        "Ports of services that a process of this node listens on.",
    ),
    conntrack_entries: gauge(
        "node_nf_conntrack_entries",
        "Connections that this node's kernel tracks.",
    ),
    conntrack_limit: gauge(
        "node_nf_conntrack_entries_limit",
        "Connections that it can track.",
    ),
    peers: gauge(
        "gantry_overlay_peers",
        "Other nodes that this node has routes to.",
    ),
    unreachable_peers: gauge(
        "gantry_overlay_unreachable_peers",
        "Other nodes that are Ready and do not answer on the way of pods' packets.",
    ),
    overlay_errors: gauge(
        "gantry_overlay_errors",
        "Packets that the overlay's device could not send or receive, since it was made.",
    ),
    overlay_dropped: gauge(
        "gantry_overlay_dropped",
        "Packets that the overlay's device dropped, since it was made.",
    ),
    drain_timeouts: counter(
        "gantry_pod_drain_timeouts_total",
        "Pods stopped before every node had acknowledged that it sends them nothing any more.",
    ),
    connections_held: counter(
        "gantry_held_connections_total",
        "Connections that came to wait on this node for a service that nothing served.",
    ),
    connections_released: counter(
        "gantry_released_connections_total",
        "Connections of those that went on to a pod.",
    ),
    connections_refused: counter(
        "gantry_refused_connections_total",
        "Connections that were refused since nothing served them in time, or too many waited.",
    ),
});

pub(crate) static COLD_STARTS: LazyLock<ColdStarts> = LazyLock::new(ColdStarts::new);

/// How long the first connections to services waited, by service.
pub(crate) struct ColdStarts {
    seconds: HistogramVec,
    services: Mutex<BTreeSet<ServiceName>>,
}

impl ColdStarts {
    fn new() -> Self {
        let buckets = vec![
            0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
        ];
        let options = HistogramOpts::new(
            "gantry_cold_start_seconds",
            "From the first connection that waited on this node for a service to the rules that lead it to a pod.",
        );
        let seconds = HistogramVec::new(options.buckets(buckets), &["namespace", "service"]);
        Self {
            seconds: registered(seconds.expect("the name is well-formed")),
            services: Mutex::default(),
        }
    }

    /// Counts one. Services beyond the first [`MOST_SERVICES`] are counted together, under no name.
    pub(crate) fn observe(&self, service: &ServiceName, waited: Duration) {
        let mut services = self.services.lock();
        let is_told = services.contains(service) || services.len() < MOST_SERVICES;
        let labels = match is_told {
            true => [&*service.namespace, &*service.name],
            false => ["", ""],
        };
        let histogram = self.seconds.with_label_values(&labels);
        histogram.observe(waited.as_secs_f64());
        if is_told {
            services.insert(service.clone());
        }
    }
}

fn histogram(name: &str, help: &str) -> Histogram {
    let buckets = exponential_buckets(0.000_5, 2.0, 16).expect("the bounds are positive");
    let options = HistogramOpts::new(name, help).buckets(buckets);
    registered(Histogram::with_opts(options).expect("the name is well-formed"))
}

fn gauge(name: &str, help: &str) -> IntGauge {
    registered(IntGauge::new(name, help).expect("the name is well-formed"))
}

fn counter(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help).expect("the name is well-formed"))
}

fn registered<M: Collector + Clone + 'static>(metric: M) -> M {
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        tracing::warn!(%error, "a metric of the node is not exposed");
    }
    metric
}

/// A number that the kernel shows; absent without connection tracking.
fn read(path: &str) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The page, with what is read off the kernel at this moment.
fn render() -> Result<Vec<u8>> {
    for (gauge, file) in [
        (&METRICS.conntrack_entries, "count"),
        (&METRICS.conntrack_limit, "max"),
    ] {
        if let Some(value) = read(&format!("{CONNTRACK}_{file}")) {
            gauge.set(value);
        }
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&prometheus::gather(), &mut text)?;
    Ok(text)
}

/// What is at a path of the node's own metrics; 404 where nothing is.
pub(crate) fn answer(path: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match path {
        "/healthz" => *response.body_mut() = Full::from("ok"),
        "/metrics" => match render() {
            Ok(text) => {
                *response.body_mut() = Full::from(text);
                let kind =
                    header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            Err(error) => {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                *response.body_mut() = Full::from(format!("{error:#}\n"));
            }
        },
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}

/// Keeps the numbers of the overlay's device. Runs until it is dropped.
pub(crate) async fn follow_overlay(overlay: Arc<VxlanOverlay>) {
    let mut ticks = tokio::time::interval(COUNT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    loop {
        ticks.tick().await;
        match overlay.counters().await {
            Ok(counted) => {
                METRICS
                    .overlay_errors
                    .set(number(counted.rx_errors + counted.tx_errors));
                METRICS
                    .overlay_dropped
                    .set(number(counted.rx_dropped + counted.tx_dropped));
            }
            // There is no device before there is another node.
            Err(error) => tracing::debug!(%error, "reading what the overlay has counted"),
        }
    }
}

/// Takes the port.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address} for readers of the node's metrics: choose another address with --metrics")
    })
}

/// Serves the node's pages until stopped.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<Pages>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: others will close theirs.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        connections.spawn(pages.clone().serve(stream));
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn body(path: &str) -> (StatusCode, String) {
        let response = answer(path);
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a body");
        (
            status,
            String::from_utf8(bytes.to_bytes().to_vec()).expect("text"),
        )
    }

    /// A metric's line.
    fn line<'a>(page: &'a str, name: &str) -> &'a str {
        let own = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        };
        page.lines()
            .find(own)
            .unwrap_or_else(|| panic!("{name} is not on the page:\n{page}"))
    }

    #[tokio::test]
    async fn the_page_has_what_is_counted() {
        METRICS.sync.observe(0.001);
        METRICS.programming.observe(0.001);
        METRICS.overlay_dropped.set(3);
        for counter in [
            &METRICS.sync_failures,
            &METRICS.policy_failures,
            &METRICS.overlay_failures,
            &METRICS.drain_timeouts,
            &METRICS.connections_held,
            &METRICS.connections_released,
            &METRICS.connections_refused,
        ] {
            counter.inc();
        }
        let (status, page) = body("/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            line(&page, "gantry_overlay_dropped"),
            "gantry_overlay_dropped 3"
        );
        for counted in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count",
            "gantry_network_programming_duration_seconds_count",
            "gantry_network_sync_failures_total",
            "gantry_network_policy_failures_total",
            "gantry_overlay_failures_total",
            "gantry_pod_drain_timeouts_total",
            "gantry_held_connections_total",
            "gantry_released_connections_total",
            "gantry_refused_connections_total",
        ] {
            assert!(!line(&page, counted).ends_with(" 0"), "{counted}");
        }
        for name in [
            "gantry_network_services",
            "gantry_network_endpoints",
            "gantry_network_flushes_total",
            "gantry_network_held_ports",
            "gantry_overlay_peers",
            "gantry_overlay_errors",
        ] {
            line(&page, name);
        }
        // Where the kernel tracks connections, as it says itself.
        let limit = std::fs::read_to_string(format!("{CONNTRACK}_max")).unwrap_or("0".into());
        assert_eq!(
            line(&page, "node_nf_conntrack_entries_limit"),
            format!("node_nf_conntrack_entries_limit {}", limit.trim())
        );
        line(&page, "node_nf_conntrack_entries");
        assert_eq!(body("/healthz").await.1, "ok");
        assert_eq!(body("/else").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn cold_starts_are_told_by_service_and_of_so_many_alone() {
        let service = |number: usize| ServiceName {
            namespace: "shop".to_owned(),
            name: format!("s{number}"),
        };
        for number in 0..MOST_SERVICES + 5 {
            COLD_STARTS.observe(&service(number), Duration::from_millis(70));
        }
        let (_, page) = body("/metrics").await;
        let count = |labels: &str| {
            let name = format!("gantry_cold_start_seconds_count{{{labels}}}");
            line(&page, &name).rsplit(' ').next().map(str::to_owned)
        };
        assert_eq!(
            count(r#"namespace="shop",service="s0""#).as_deref(),
            Some("1")
        );
        // Other tests may have told of a service.
        let rest: usize = count(r#"namespace="",service="""#)
            .unwrap()
            .parse()
            .unwrap();
        assert!((5..10).contains(&rest), "{rest}");
        let quick = r#"gantry_cold_start_seconds_bucket{namespace="shop",service="s0",le="0.1"}"#;
        assert_eq!(line(&page, quick), format!("{quick} 1"));
    }

    /// What operators are told of is there, and what is there they are told of.
    #[tokio::test]
    async fn each_metric_is_described_for_operators() {
        let service = ServiceName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        COLD_STARTS.observe(&service, Duration::from_millis(300));
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let guide = std::fs::read_to_string(guide).expect("the guide");
        let (_, page) = body("/metrics").await;
        let names: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
            .filter(|name| !name.starts_with("process_"))
            .collect();
        assert!(names.contains(&"gantry_network_programming_duration_seconds"));
        for name in names {
            assert!(guide.contains(&format!("`{name}`")), "{name}");
        }
    }
}
