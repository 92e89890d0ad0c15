//! What an autoscaler's plan is made of, and from.

use std::sync::Arc;

use gantry_informer::Key;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::metrics::Reading;

/// What is known of the target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// As it wants them.
    pub(super) replicas: i32,
    /// As it has them.
    pub(super) observed: i32,
    pub(super) selection: &'a Selection,
}

/// The pods of the target.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    /// It says of no pods that they are its own.
    Missing,
    /// Why nobody knows what it selects.
    Invalid(String),
    Pods {
        /// As the target writes it.
        selector: String,
        pods: Vec<Arc<Pod>>,
        /// The autoscalers that any of them belongs to.
        autoscalers: Vec<Key>,
    },
}

/// Everything that is decided by.
#[derive(Clone, Copy)]
pub(super) struct Observed<'a> {
    pub(super) autoscaler: &'a HorizontalPodAutoscaler,
    /// The target, or why it cannot be looked at.
    pub(super) target: Result<Target<'a>, &'a str>,
    /// One of each metric.
    pub(super) readings: &'a [Reading],
    /// What is wrong with the period.
    pub(super) bad_period: Option<&'a str>,
    pub(super) now: Timestamp,
}

/// An event to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) is_warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// That the target is to be scaled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rescale {
    pub(super) replicas: i32,
    pub(super) reason: String,
}
