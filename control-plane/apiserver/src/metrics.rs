//! Request metrics, under Kubernetes' names.

use std::sync::LazyLock;
use std::time::Duration;

use http::StatusCode;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, TextEncoder,
};

use crate::response::Answer;

/// Stands for whatever a client made up. A label's values are what the server serves, or there would be as many series as
/// a client likes.
pub(crate) const UNKNOWN: &str = "unknown";

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::register);

pub(crate) struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    in_flight: IntGaugeVec,
    rejected: IntCounterVec,
    authentications: IntCounterVec,
    pub(crate) connections: IntGauge,
    ended: IntCounterVec,
}

impl Metrics {
    fn register() -> Self {
        let requests = IntCounterVec::new(
            Opts::new(
                "apiserver_request_total",
                "Requests by verb, resource and HTTP status code.",
            ),
            &["verb", "resource", "code"],
        )
        .expect("the metric's name and labels are valid");
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "apiserver_request_duration_seconds",
                "Seconds until the answer starts.",
            )
            .buckets(vec![
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
            ]),
            &["verb", "resource"],
        )
        .expect("the metric's name and labels are valid");
        let in_flight = IntGaugeVec::new(
            Opts::new(
                "gantry_apiserver_requests_in_flight",
                "Requests under way by class; a watch is for as long as it lasts.",
            ),
            &["class"],
        )
        .expect("the metric's name and labels are valid");
        let rejected = IntCounterVec::new(
            Opts::new(
                "gantry_apiserver_requests_rejected_total",
                "Requests refused with 429 by class, since too many were under way.",
            ),
            &["class"],
        )
        .expect("the metric's name and labels are valid");
        let authentications = IntCounterVec::new(
            Opts::new(
                "authentication_attempts",
                "Credentials that were refused, by result: \"failure\", or \"limited\" when they were not looked at.",
            ),
            &["result"],
        )
        .expect("the metric's name and labels are valid");
        let connections = IntGauge::new(
            "gantry_apiserver_connections",
            "Connections of clients, nodes and servers.",
        )
        .expect("the metric's name and labels are valid");
        let ended = IntCounterVec::new(
            Opts::new(
                "gantry_apiserver_connections_ended_total",
                "Connections that the server ended, by what they took too much of, or for their certificate.",
            ),
            &["reason"],
        )
        .expect("the metric's name and labels are valid");
        let registry = prometheus::default_registry();
        for collector in [
            Box::new(requests.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(durations.clone()),
            Box::new(in_flight.clone()),
            Box::new(rejected.clone()),
            Box::new(authentications.clone()),
            Box::new(connections.clone()),
            Box::new(ended.clone()),
        ] {
            if let Err(error) = registry.register(collector) {
                tracing::warn!(%error, "a metric is not published");
            }
        }
        Self {
            requests,
            durations,
            in_flight,
            rejected,
            authentications,
            connections,
            ended,
        }
    }

    /// Credentials were refused: `failure`, or `limited` without a look at them.
    pub(crate) fn authenticated(&self, result: &str) {
        self.authentications.with_label_values(&[result]).inc();
    }

    /// A request of a class is under way.
    pub(crate) fn entered(&self, class: &str) {
        self.in_flight.with_label_values(&[class]).inc();
    }

    /// A request of a class is no longer under way.
    pub(crate) fn left(&self, class: &str) {
        self.in_flight.with_label_values(&[class]).dec();
    }

    /// A request of a class was refused.
    pub(crate) fn rejected(&self, class: &str) {
        self.rejected.with_label_values(&[class]).inc();
    }

    /// A connection was ended for what it took too much of, or because its certificate does not count any more.
    pub(crate) fn ended(&self, reason: &'static str) {
        self.ended.with_label_values(&[reason]).inc();
    }

    /// An answer to a request for a resource that is served, or for [`UNKNOWN`].
    pub(crate) fn observe(
        &self,
        verb: &'static str,
        resource: &str,
        status: StatusCode,
        took: Duration,
    ) {
        // What is behind a proxy may answer with any number.
        let code = match status.canonical_reason() {
            Some(_) => status.as_str(),
            None => UNKNOWN,
        };
        self.requests
            .with_label_values(&[verb, resource, code])
            .inc();
        if verb != "watch" {
            self.durations
                .with_label_values(&[verb, resource])
                .observe(took.as_secs_f64());
        }
    }

    /// `/metrics`
    pub(crate) fn render(&self) -> Answer {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&prometheus::gather(), &mut text) {
            Ok(()) => Answer::text(StatusCode::OK, String::from_utf8_lossy(&text).into_owned())
                .with_content_type("text/plain; version=0.0.4; charset=utf-8"),
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
