//! To zero and back: takes the replicas of a Deployment away that nobody has connected to for as long as its annotation says,
//! and brings them back when somebody does.
//!
//! - Since when nobody has is in this leader's memory alone, and begins anew with whatever changes ([`quiet`]): what is not
//!   known is not idle.
//! - A Deployment is idled only once a Service names it as one to wake ([`marks`]). Nodes hold connections to such a Service
//!   while nothing serves it, and say so ([`demand`]).
//! - How many replicas there were is written with their end, and taken off with their return ([`annotations`]): nobody
//!   else's zero is touched, whoever leads.
//! - Waking waits for nothing ([`waking`]).

mod annotations;
pub mod demand;
mod marking;
mod marks;
mod plan;
mod quiet;
#[cfg(test)]
mod tests;
mod waking;

use std::collections::HashMap;
use std::sync::Arc;

use gantry_informer::{Change, Informer, Informers, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use self::annotations::{IDLE_AFTER, IDLE_REPLICAS, concerns};
use self::demand::Demand;
use self::marks::obstacle;
use self::plan::{Complaint, Observed, Step, plan};
use self::quiet::{Pods, Quiet};
use self::waking::Wakes;
use crate::context::Context;
use crate::deployment::wanted;
use crate::error::{Doing, Result, code, taken_in};
use crate::horizontal_pod_autoscaler::index::{OF_TARGET, of_target, targeting};
use crate::horizontal_pod_autoscaler::{may_have_none, was_scaled_to_zero};
use crate::metrics::METRICS;
use crate::pods::is_finished;
use crate::selecting::selector_of;
use crate::selection::{deployments_of, selected, services_of_template, template_labels};

pub(crate) const COMPONENT: &str = "idling-controller";
const AT_ONCE: usize = 16;
/// Wakes wait for no other.
const WAKES_AT_ONCE: usize = 128;

/// What is remembered of a Deployment.
#[derive(Default)]
struct Memory {
    uid: Option<String>,
    quiet: Option<Quiet>,
    /// What keeps it from idling, as it was told.
    told: Option<Complaint>,
}

struct Controller {
    context: Arc<Context>,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    demand: Arc<dyn Demand>,
    recorder: Recorder,
    deployments: Arc<Queue<Key>>,
    services: Arc<Queue<Key>>,
    wakes: Wakes,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// Whether an autoscaler may take all replicas of a Deployment away, and then goes by something else than its pods.
fn scales_to_zero(autoscaler: &HorizontalPodAutoscaler) -> bool {
    let target = &autoscaler.spec.scale_target_ref;
    let version = target.api_version.as_deref().unwrap_or_default();
    target.kind == "Deployment" && version.starts_with("apps/") && may_have_none(&autoscaler.spec)
}

/// Runs until stopped.
pub(crate) async fn run(
    context: Arc<Context>,
    informers: &Informers,
    demand: Arc<dyn Demand>,
    recorder: Recorder,
) {
    let autoscalers = informers.of::<HorizontalPodAutoscaler>();
    let stop = context.stop.clone();
    let controller = Arc::new(Controller {
        autoscalers: autoscalers.index(OF_TARGET, of_target),
        context,
        demand,
        recorder,
        deployments: Arc::default(),
        services: Arc::default(),
        wakes: Wakes::default(),
        memory: Mutex::default(),
    });
    if stop
        .run_until_cancelled(controller.autoscalers.synced())
        .await
        .is_none()
    {
        return;
    }
    controller.subscribe();
    let (idling, marking, waking) = (controller.clone(), controller.clone(), controller.clone());
    tokio::join!(
        runner::run(
            "idling",
            controller.deployments.clone(),
            AT_ONCE,
            stop.clone(),
            move |key| {
                let controller = idling.clone();
                async move { controller.reconcile(&key).await }
            }
        ),
        runner::run(
            "marking of services",
            controller.services.clone(),
            AT_ONCE,
            stop.clone(),
            move |key| {
                let controller = marking.clone();
                async move { controller.mark(&key).await }
            }
        ),
        runner::run(
            "waking",
            controller.wakes.queue.clone(),
            WAKES_AT_ONCE,
            stop.clone(),
            move |key| {
                let controller = waking.clone();
                async move { controller.wake(&key).await }
            }
        ),
    );
}

/// Whether something has changed that decides which Services are to wake it.
fn marks_change(change: &Change<'_, Deployment>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else {
        return true;
    };
    let annotation = |of: &Deployment, name: &str| {
        let annotations = of.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(name).cloned())
    };
    let is_same = |name| annotation(old, name) == annotation(new, name);
    !is_same(IDLE_AFTER)
        || !is_same(IDLE_REPLICAS)
        || (wanted(old) == 0) != (wanted(new) == 0)
        || template_labels(old) != template_labels(new)
        || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
}

/// Whether something has changed of an autoscaler that decides whether its target is woken.
fn is_other(change: &Change<'_, HorizontalPodAutoscaler>) -> bool {
    let of = |one: &HorizontalPodAutoscaler| (scales_to_zero(one), was_scaled_to_zero(one));
    let (Some(old), Some(new)) = (change.old, change.new) else {
        return true;
    };
    of(old) != of(new) || old.spec.scale_target_ref != new.spec.scale_target_ref
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let controller = self.clone();
        self.context.deployments.subscribe(Box::new(move |change| {
            let states = [change.old, change.new].into_iter().flatten();
            if marks_change(change) {
                for deployment in states.clone() {
                    controller.services_changed(deployment);
                }
            }
            if states.into_iter().any(|deployment| concerns(deployment))
                && let Some(deployment) = change.last()
            {
                let key = Key::of(&deployment.metadata);
                controller.deployments.add(key);
            }
        }));
        let controller = self.clone();
        self.context.services.subscribe(Box::new(move |change| {
            if let Some(service) = change.last() {
                controller.services.add(Key::of(&service.metadata));
            }
            for service in [change.old, change.new].into_iter().flatten() {
                for deployment in deployments_of(&controller.context.deployments, service) {
                    if concerns(&deployment) {
                        let key = Key::of(&deployment.metadata);
                        controller.deployments.add(key);
                    }
                }
            }
        }));
        let controller = self.clone();
        self.autoscalers.subscribe(Box::new(move |change| {
            if !is_other(change) {
                return;
            }
            for autoscaler in [change.old, change.new].into_iter().flatten() {
                let namespace = autoscaler.metadata.namespace.as_deref();
                let target = &autoscaler.spec.scale_target_ref;
                let key = Key::new(namespace.unwrap_or_default(), &target.name);
                if let Some(deployment) = controller.context.deployments.get(&key) {
                    controller.services_changed(&deployment);
                }
            }
        }));
        let controller = self.clone();
        let wake = move |wanted: demand::Wanted<'_>| controller.wanted(wanted);
        self.demand.subscribe(&self.context.stop, Box::new(wake));
    }

    /// Has the Services looked at that select the pods of a Deployment.
    fn services_changed(&self, deployment: &Deployment) {
        for service in services_of_template(&self.context.services, deployment) {
            self.services.add(service);
        }
    }

    fn autoscalers_of(&self, deployment: &Key) -> Vec<Arc<HorizontalPodAutoscaler>> {
        targeting(&self.autoscalers, "Deployment", deployment)
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let deployment = self.context.deployments.get(key);
        let Some(deployment) = deployment.filter(|deployment| concerns(deployment)) else {
            self.memory.lock().remove(key);
            return Ok(Next::Changed);
        };
        let uid = &deployment.metadata.uid;
        let mut memory = self.memory.lock().remove(key).unwrap_or_default();
        if memory.uid != *uid {
            memory = Memory {
                uid: uid.clone(),
                ..Memory::default()
            };
        }
        let plan = plan(self.observed(key, &deployment), &mut memory.quiet);
        if memory.told != plan.complaint {
            if let Some(complaint) = &plan.complaint {
                let (about, message) = (Reference::to(&*deployment), complaint.message.clone());
                self.recorder.warning(about, complaint.reason, message);
            }
            memory.told = plan.complaint;
        }
        self.memory.lock().insert(key.clone(), memory);
        self.act(key, &deployment, plan.step).await
    }

    fn observed<'a>(&self, key: &Key, deployment: &'a Deployment) -> Observed<'a> {
        let context = &self.context;
        let mut services = services_of_template(&context.services, deployment);
        // So that what is told of them is the same each time.
        services.sort();
        let services = services.iter();
        let services: Vec<_> = services
            .filter_map(|service| context.services.get(service))
            .collect();
        let pods = selected(&context.pods, &key.namespace, &selector_of(deployment));
        let pods = pods.iter().filter(|pod| !is_finished(pod));
        let pods = pods.filter_map(|pod| {
            let uid = pod.metadata.uid.clone()?;
            let connections = self.demand.connections(&uid);
            Some((uid, connections))
        });
        Observed {
            deployment,
            obstacle: obstacle(deployment, services.iter().map(|service| &**service)),
            pods: pods.collect::<Pods>(),
            now: Instant::now(),
        }
    }

    async fn act(&self, key: &Key, deployment: &Deployment, step: Step) -> Result<Next> {
        let about = || Reference::to(deployment);
        match step {
            Step::Wait(None) => return Ok(Next::Changed),
            Step::Wait(Some(wait)) => return Ok(Next::After(wait)),
            Step::Idle { replicas, after } => {
                let scaled = self.scale(deployment, 0, Some(replicas)).await;
                if scaled.doing("idling deployment", key)? {
                    METRICS.idled.inc();
                    tracing::info!(%key, replicas, "idled");
                    let message =
                        format!("Scaled down from {replicas} to 0: no connection for {after:?}");
                    self.recorder.normal(about(), "Idled", message);
                }
            }
            Step::Return { replicas, why } => {
                let scaled = self.scale(deployment, replicas, None).await;
                if scaled.doing("bringing back deployment", key)? {
                    let message = format!("Scaled up from 0 to {replicas}: {why}");
                    self.recorder.normal(about(), "Woken", message);
                }
            }
            Step::Forget => {
                let replicas = wanted(deployment);
                let scaled = self.scale(deployment, replicas, None).await;
                scaled.doing("clearing the annotation of deployment", key)?;
            }
        }
        Ok(Next::Changed)
    }

    /// Writes how many replicas a Deployment is to have, and how many it had before it was idled; nothing that somebody else
    /// has written since is touched. False when it is gone.
    async fn scale(
        &self,
        deployment: &Deployment,
        replicas: i32,
        remembered: Option<i32>,
    ) -> kube::Result<bool> {
        let key = Key::of(&deployment.metadata);
        let patch = Patch::Merge(json!({
            "metadata": {
                "uid": deployment.metadata.uid,
                "resourceVersion": deployment.metadata.resource_version,
                "annotations": {IDLE_REPLICAS: remembered.map(|replicas| replicas.to_string())},
            },
            "spec": {"replicas": replicas},
        }));
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let answer = api.patch(&key.name, &PatchParams::default(), &patch).await;
        match taken_in(answer, &api, &self.context.deployments, &key.name).await {
            Ok(()) => Ok(true),
            Err(error) if code(&error) == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
