//! Request metrics, under Kubernetes' names.

use std::sync::LazyLock;
use std::time::Duration;

use http::StatusCode;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, TextEncoder,
};

use crate::response::Answer;

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::register);

pub(crate) struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    in_flight: IntGaugeVec,
    rejected: IntCounterVec,
    authentications: IntCounterVec,
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
        let registry = prometheus::default_registry();
        for collector in [
            Box::new(requests.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(durations.clone()),
            Box::new(in_flight.clone()),
            Box::new(rejected.clone()),
            Box::new(authentications.clone()),
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

    pub(crate) fn observe(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        self.requests
            .with_label_values(&[verb, resource, &code.to_string()])
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
