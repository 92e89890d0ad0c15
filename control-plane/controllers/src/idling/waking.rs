//! Brings back what is wanted, at once: a wake is looked up in caches alone, waits behind no other work, and costs one write,
//! however many nodes say it.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_informer::{Key, Next, Queue, Reference, is_conflict};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use parking_lot::Mutex;

use super::annotations::idled;
use super::demand::Wanted;
use super::marks::named;
use super::{Controller, scales_to_zero};
use crate::deployment::wanted;
use crate::error::{Doing, Result};
use crate::horizontal_pod_autoscaler::was_scaled_to_zero;
use crate::metrics::METRICS;
use crate::selection::selects;

/// How often a Deployment is written that others write, too.
const ATTEMPTS: usize = 5;

/// Who wants a Deployment.
#[derive(Clone, Debug)]
struct By {
    service: String,
    node: String,
}

/// The Deployments that are wanted: as many as there are that idle.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) queue: Arc<Queue<Key>>,
    wanted: Mutex<HashMap<Key, By>>,
}

/// How many replicas a Deployment gets that is wanted; none if it has some, or has none for another reason than idling.
pub(super) fn woken(
    deployment: &Deployment,
    autoscalers: &[Arc<HorizontalPodAutoscaler>],
) -> Option<i32> {
    if wanted(deployment) != 0 || deployment.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let is_zero = |autoscaler: &Arc<HorizontalPodAutoscaler>| {
        scales_to_zero(autoscaler) && was_scaled_to_zero(autoscaler)
    };
    idled(deployment).or_else(|| autoscalers.iter().any(is_zero).then_some(1))
}

impl Controller {
    /// Takes a wake. It has to be about a Service that is marked, and selects the pods of a Deployment that idles.
    pub(super) fn wanted(&self, wanted: Wanted<'_>) {
        let key = Key::new(wanted.namespace, wanted.service);
        let Some(service) = self.context.services.get(&key) else {
            return;
        };
        for name in named(&service) {
            let key = Key::new(wanted.namespace, name);
            let deployment = self.context.deployments.get(&key);
            let deployment = deployment.filter(|deployment| {
                selects(&service, deployment)
                    && woken(deployment, &self.autoscalers_of(&key)).is_some()
            });
            if deployment.is_some() {
                let by = By {
                    service: wanted.service.to_owned(),
                    node: wanted.node.to_owned(),
                };
                self.wakes.wanted.lock().entry(key.clone()).or_insert(by);
                self.wakes.queue.add(key);
            }
        }
    }

    /// Brings back a Deployment that is wanted.
    pub(super) async fn wake(&self, key: &Key) -> Result<Next> {
        let mut attempts = 1;
        loop {
            let deployment = self.context.deployments.get(key);
            let replicas = deployment.as_ref().and_then(|deployment| {
                let autoscalers = self.autoscalers_of(key);
                woken(deployment, &autoscalers)
            });
            let (Some(deployment), Some(replicas)) = (deployment, replicas) else {
                self.wakes.wanted.lock().remove(key);
                return Ok(Next::Changed);
            };
            match self.scale(&deployment, replicas, None).await {
                Ok(true) => {
                    self.tell_woken(&deployment, replicas, key);
                    return Ok(Next::Changed);
                }
                Ok(false) => {
                    self.wakes.wanted.lock().remove(key);
                    return Ok(Next::Changed);
                }
                Err(error) if is_conflict(&error) && attempts < ATTEMPTS => attempts += 1,
                Err(error) => return Err(error).doing("waking deployment", key),
            }
        }
    }

    fn tell_woken(&self, deployment: &Deployment, replicas: i32, key: &Key) {
        METRICS.woken.inc();
        let Some(By { service, node }) = self.wakes.wanted.lock().remove(key) else {
            return;
        };
        tracing::info!(%key, replicas, service, node, "woken");
        let message = format!(
            "Scaled up from 0 to {replicas}: node {node} holds connections to Service {service}"
        );
        let about = Reference::to(deployment);
        self.recorder.normal(about, "Woken", message);
    }
}
