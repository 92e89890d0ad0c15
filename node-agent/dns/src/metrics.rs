//! What DNS tells Prometheus, through the default registry and under CoreDNS' names where it has one, so that its
//! dashboards and alerts go on working.

use std::net::SocketAddr;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    exponential_buckets,
};

/// The metrics of every DNS server of this process together.
pub(crate) struct Metrics {
    requests: IntCounterVec,
    responses: IntCounterVec,
    duration: HistogramVec,
    pub(crate) cache_hits: IntCounterVec,
    pub(crate) cache_misses: IntCounter,
    pub(crate) cache_stale: IntCounter,
    pub(crate) cache_evictions: IntCounter,
    pub(crate) cache_entries: IntGauge,
    pub(crate) upstream: HistogramVec,
    pub(crate) upstream_failures: IntCounterVec,
    pub(crate) upstream_up: IntGaugeVec,
    pub(crate) rejected: IntCounter,
    pub(crate) shared: IntCounter,
    pub(crate) in_flight: IntGauge,
    pub(crate) walks: IntCounter,
    pub(crate) unanswered: IntCounter,
}

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    requests: counters(
        "coredns_dns_requests_total",
        "DNS requests.",
        &["server", "zone", "proto", "family", "type"],
    ),
    responses: counters(
        "coredns_dns_responses_total",
        "DNS responses by their code.",
        &["server", "zone", "rcode"],
    ),
    duration: histograms(
        "coredns_dns_request_duration_seconds",
        "From a request's arrival to its answer.",
        &["server", "zone"],
    ),
    cache_hits: counters(
        "coredns_cache_hits_total",
        "Answers found in the cache; denials are those that say there is nothing.",
        &["type"],
    ),
    cache_misses: counter(
        "coredns_cache_misses_total",
        "Questions to which the cache had no answer.",
    ),
    cache_stale: counter(
        "coredns_cache_served_stale_total",
        "Answers past their time that were given because no resolver answered.",
    ),
    cache_evictions: counter(
        "coredns_cache_evictions_total",
        "Answers that made room for others.",
    ),
    cache_entries: registered(
        IntGauge::new("coredns_cache_entries", "Answers in the cache.")
            .expect("the name is well-formed"),
    ),
    upstream: histograms(
        "coredns_proxy_request_duration_seconds",
        "How long other resolvers took to answer.",
        &["proxy_name", "to", "rcode"],
    ),
    upstream_failures: counters(
        "coredns_proxy_healthcheck_failures_total",
        "Questions that a resolver left unanswered.",
        &["proxy_name", "to"],
    ),
    upstream_up: registered(
        IntGaugeVec::new(
            Opts::new(
                "gantry_dns_upstream_up",
                "1 while a resolver answers, 0 while it is passed over.",
            ),
            &["to"],
        )
        .expect("the name is well-formed"),
    ),
    rejected: counter(
        "coredns_forward_max_concurrent_rejects_total",
        "Questions refused because too many were waiting for other resolvers.",
    ),
    shared: counter(
        "gantry_dns_shared_questions_total",
        "Questions that waited for an answer which was under way already.",
    ),
    in_flight: registered(
        IntGauge::new(
            "gantry_dns_upstream_questions",
            "Questions that other resolvers have not answered yet.",
        )
        .expect("the name is well-formed"),
    ),
    walks: counter(
        "coredns_autopath_success_total",
        "Walks through a search list that were answered at the first question.",
    ),
    unanswered: counter(
        "gantry_dns_unanswered_total",
        "Packets that were no DNS requests, and answers that could not be sent.",
    ),
});

fn counter(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help).expect("the name is well-formed"))
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(IntCounterVec::new(Opts::new(name, help), labels).expect("the name is well-formed"))
}

fn histograms(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    // 25 microseconds to 6.5 seconds: from a name of the cluster to a resolver that is silent.
    let buckets = exponential_buckets(0.000_025, 2.0, 19).expect("the bounds are positive");
    let options = HistogramOpts::new(name, help).buckets(buckets);
    registered(HistogramVec::new(options, labels).expect("the name is well-formed"))
}

fn registered<M: Collector + Clone + 'static>(metric: M) -> M {
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        tracing::warn!(%error, "a metric of DNS is not exposed");
    }
    metric
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Types that are counted by name; the others are counted together.
const TYPES: [RecordType; 12] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::CNAME,
    RecordType::TXT,
    RecordType::MX,
    RecordType::NS,
    RecordType::SOA,
    RecordType::HTTPS,
    RecordType::SVCB,
    RecordType::ANY,
];
/// Codes up to BADVERS.
const CODES: usize = 17;

/// The counters of one address that is listened on: found once, then only counted up.
#[derive(Debug)]
pub(crate) struct Meter {
    server: String,
    family: &'static str,
    zones: [ZoneMeter; 2],
}

#[derive(Debug)]
struct ZoneMeter {
    zone: String,
    requests: [[OnceLock<IntCounter>; TYPES.len() + 1]; 2],
    responses: [OnceLock<IntCounter>; CODES],
    duration: OnceLock<Histogram>,
}

impl Meter {
    pub(crate) fn new(address: SocketAddr, domain: &str) -> Self {
        let zone = |zone: &str| ZoneMeter {
            zone: zone.to_owned(),
            requests: Default::default(),
            responses: Default::default(),
            duration: OnceLock::new(),
        };
        Self {
            server: format!("dns://{address}"),
            family: if address.is_ipv4() { "1" } else { "2" },
            zones: [zone(domain), zone(".")],
        }
    }

    /// Counts a request that was answered. `ours`: of the cluster's zone.
    pub(crate) fn answered(
        &self,
        transport: Transport,
        ours: bool,
        wanted: Option<RecordType>,
        code: ResponseCode,
        took: Duration,
    ) {
        let zone = &self.zones[usize::from(!ours)];
        let by_name = TYPES.iter().position(|known| Some(*known) == wanted);
        let (protocol, word) = match transport {
            Transport::Udp => (0, "udp"),
            Transport::Tcp => (1, "tcp"),
        };
        let requests = &zone.requests[protocol][by_name.unwrap_or(TYPES.len())];
        requests
            .get_or_init(|| {
                let name = by_name.map(|index| TYPES[index].to_string());
                let name = name.as_deref().unwrap_or("other");
                let labels = [&self.server, &zone.zone, word, self.family, name];
                METRICS.requests.with_label_values(&labels)
            })
            .inc();
        let responses = &zone.responses[usize::from(u16::from(code)).min(CODES - 1)];
        responses
            .get_or_init(|| {
                let labels = [self.server.as_str(), &zone.zone, rcode(code)];
                METRICS.responses.with_label_values(&labels)
            })
            .inc();
        let duration = zone.duration.get_or_init(|| {
            let labels = [self.server.as_str(), &zone.zone];
            METRICS.duration.with_label_values(&labels)
        });
        duration.observe(took.as_secs_f64());
    }
}

/// A response code as CoreDNS names it.
pub(crate) fn rcode(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_type_and_code_under_the_known_names() {
        let meter = Meter::new("192.0.2.99:53".parse().unwrap(), "cluster.local.");
        let took = Duration::from_micros(40);
        let types = [
            Some(RecordType::A),
            Some(RecordType::A),
            Some(RecordType::CAA),
            None,
        ];
        for wanted in types {
            meter.answered(Transport::Udp, true, wanted, ResponseCode::NXDomain, took);
        }
        let name = ("server", "dns://192.0.2.99:53");
        let mut found = Vec::new();
        for family in prometheus::gather() {
            for metric in family.get_metric() {
                let labels = metric.get_label();
                if !labels
                    .iter()
                    .any(|label| (label.name(), label.value()) == name)
                {
                    continue;
                }
                let value = |name: &str| {
                    labels
                        .iter()
                        .find(|l| l.name() == name)
                        .map(|l| l.value().to_owned())
                };
                let count = match family.name() {
                    "coredns_dns_request_duration_seconds" => {
                        metric.get_histogram().get_sample_count() as f64
                    }
                    _ => metric.get_counter().get_value(),
                };
                let kind = value("type").or(value("rcode")).unwrap_or_default();
                found.push((family.name().to_owned(), kind, count));
            }
        }
        found.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let expected = [
            ("coredns_dns_request_duration_seconds", "", 4.0),
            ("coredns_dns_requests_total", "A", 2.0),
            ("coredns_dns_requests_total", "other", 2.0),
            ("coredns_dns_responses_total", "NXDOMAIN", 4.0),
        ];
        let expected =
            expected.map(|(name, kind, count)| (name.to_owned(), kind.to_owned(), count));
        assert_eq!(found, expected);
    }
}
