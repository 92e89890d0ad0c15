//! Where figures for autoscalers, and for the steps of rollouts, come from: what containers use, and the metrics of pods, objects and anything outside.
//!
//! Whoever implements it answers from what it already holds: an evaluation waits for an answer, if only for so long.

pub mod fake;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

/// What one container has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name in the pod.
    pub name: String,
    /// Billionths of a processor, on average over the window.
    pub cpu_nanocores: u64,
    /// Memory that cannot be taken back, at the end of the window, in bytes.
    pub working_set_bytes: u64,
}

/// What the containers of a pod that run have used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// The end of the window.
    pub at: Timestamp,
    /// How long it was looked at.
    pub window: Duration,
    /// Each that runs.
    pub containers: Vec<ContainerUsage>,
}

/// A metric of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodValue {
    /// The pod's name.
    pub pod: String,
    /// Thousandths, rounded up.
    pub millis: i64,
    /// When it was so.
    pub at: Timestamp,
    /// Over how long it was measured.
    pub window: Duration,
}

/// Why there are no figures, in the words of the API that serves them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FiguresError(pub String);

/// The metric that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Metric<'a> {
    /// The namespace of the autoscaler.
    pub namespace: &'a str,
    /// The metric's name.
    pub name: &'a str,
    /// Which of its series, if not all.
    pub selector: Option<&'a LabelSelector>,
}

/// What has just arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// A pod's usage, or metrics of its own.
    Pod {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// Metrics of objects of a namespace, or external ones that are asked for there.
    Namespace(&'a str),
}

/// Called for each arrival. It is quick, and does not call back.
pub type Wake = Box<dyn Fn(Arrival<'_>) + Send + Sync>;

/// Figures as autoscalers ask for them.
pub trait Figures: Send + Sync {
    /// What the pod with this uid has used lately; none when nothing is known of it.
    fn usage(&self, pod_uid: &str) -> Result<Option<Arc<PodUsage>>, FiguresError>;

    /// A metric of each of the pods that has it: `custom.metrics.k8s.io`.
    fn of_pods<'a>(
        &'a self,
        metric: Metric<'a>,
        pods: &'a [Arc<Pod>],
    ) -> BoxFuture<'a, Result<Vec<PodValue>, FiguresError>>;

    /// A metric of an object of the namespace, or of the namespace itself, in thousandths: `custom.metrics.k8s.io`.
    fn of_object<'a>(
        &'a self,
        metric: Metric<'a>,
        object: &'a CrossVersionObjectReference,
    ) -> BoxFuture<'a, Result<i64, FiguresError>>;

    /// All series of a metric that has nothing to do with the cluster, in thousandths: `external.metrics.k8s.io`.
    fn external<'a>(&'a self, metric: Metric<'a>) -> BoxFuture<'a, Result<Vec<i64>, FiguresError>>;

    /// Calls `wake` for what arrives from now on, until stopped.
    fn subscribe(&self, stop: &CancellationToken, wake: Wake);
}

/// A cluster in which nobody measures anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFigures;

fn not_served<T: Send + 'static>(why: String) -> BoxFuture<'static, Result<T, FiguresError>> {
    Box::pin(std::future::ready(Err(FiguresError(why))))
}

impl Figures for NoFigures {
    fn usage(&self, _pod_uid: &str) -> Result<Option<Arc<PodUsage>>, FiguresError> {
        let why = "the server could not find the requested resource (get pods.metrics.k8s.io)";
        Err(FiguresError(why.to_owned()))
    }

    fn of_pods<'a>(
        &'a self,
        _metric: Metric<'a>,
        _pods: &'a [Arc<Pod>],
    ) -> BoxFuture<'a, Result<Vec<PodValue>, FiguresError>> {
        not_served("no custom metrics API (custom.metrics.k8s.io) registered".to_owned())
    }

    fn of_object<'a>(
        &'a self,
        _metric: Metric<'a>,
        _object: &'a CrossVersionObjectReference,
    ) -> BoxFuture<'a, Result<i64, FiguresError>> {
        not_served("no custom metrics API (custom.metrics.k8s.io) registered".to_owned())
    }

    fn external<'a>(&'a self, metric: Metric<'a>) -> BoxFuture<'a, Result<Vec<i64>, FiguresError>> {
        let resource = format!("{}.external.metrics.k8s.io", metric.name);
        not_served(format!(
            "the server could not find the requested resource (get {resource})"
        ))
    }

    fn subscribe(&self, _stop: &CancellationToken, _wake: Wake) {}
}
