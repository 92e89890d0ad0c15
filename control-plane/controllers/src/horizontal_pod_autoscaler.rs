//! HorizontalPodAutoscaler: gives a target as many pods as their figures ask for.
//!
//! An autoscaler is looked at when figures of its pods arrive, when it or its target changes, and every now and then; but never
//! more often than its period says, and never twice at once. What it waits for keeps no other waiting.

mod behavior;
mod conditions;
pub mod figures;
mod history;
pub(crate) mod index;
mod metrics;
mod monitor;
mod observed;
mod period;
mod plan;
pub(crate) mod readings;
mod replicas;
mod requests;
#[cfg(test)]
mod tests;
mod watched;
mod writing;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use gantry_api::selector::LabelSelector;
use gantry_informer::{
    Change, Informer, Informers, Key, Next, Object, Queue, Recorder, Reference, is_conflict, runner,
};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::figures::{Arrival, Figures};
use self::history::Kept;
use self::index::{OF_OBJECTS, OF_TARGET, going_by, of_objects, of_target, targeting};
use self::monitor::{Action, Fault};
use self::observed::{Observed, Selection, Target};
use self::period::{DEFAULT, sync_period};
use self::plan::{Decision, decide, needs_figures};
pub(crate) use self::plan::{may_have_none, was_scaled_to_zero};
use self::watched::Watched;
use crate::context::Context;
use crate::error::{Doing, Result, code, taken_in, words};
use crate::scale::{Found, Targets};
use crate::selection::selected;

pub(crate) const COMPONENT: &str = "horizontal-pod-autoscaler";
/// Those that wait for an answer are many rather than fast.
const AT_ONCE: usize = 128;
/// An autoscaler is looked at this often even if nothing arrives.
const RESYNC: Duration = Duration::from_secs(15);
/// Figures alone are written no more often.
const FIGURES_WRITTEN: Duration = Duration::from_secs(5);
/// How often a status is written that has changed meanwhile.
const ATTEMPTS: usize = 3;
/// What is remembered of an autoscaler.
struct Memory {
    uid: Option<String>,
    /// It is not looked at earlier.
    not_before: Instant,
    kept: Kept,
    /// When its status was last written.
    written: Option<Instant>,
}

struct Controller {
    context: Arc<Context>,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    figures: Arc<dyn Figures>,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    targets: Targets,
    watched: Watched,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// Runs until stopped.
pub(crate) async fn run(
    context: Arc<Context>,
    informers: &Informers,
    figures: Arc<dyn Figures>,
    recorder: Recorder,
) {
    let autoscalers = informers.of::<HorizontalPodAutoscaler>();
    let autoscalers = autoscalers
        .index(OF_TARGET, of_target)
        .index(OF_OBJECTS, of_objects);
    let (stop, queue) = (context.stop.clone(), Arc::new(Queue::<Key>::default()));
    let controller = Arc::new(Controller {
        targets: Targets::new(context.client.clone()),
        context,
        autoscalers,
        figures,
        recorder,
        queue: queue.clone(),
        watched: Watched::default(),
        memory: Mutex::default(),
    });
    controller.subscribe();
    runner::run(
        "horizontal-pod-autoscaler",
        queue,
        AT_ONCE,
        stop,
        move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        },
    )
    .await;
}

/// Whether something has changed that an autoscaler is decided by: what it says, not what is said of it.
fn is_other(change: &Change<'_, HorizontalPodAutoscaler>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else {
        return true;
    };
    old.metadata.uid != new.metadata.uid
        || old.spec != new.spec
        || old.metadata.annotations != new.metadata.annotations
        || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let controller = self.clone();
        self.autoscalers.subscribe(Box::new(move |change| {
            if let Some(autoscaler) = change.last().filter(|_| is_other(change)) {
                controller.wake(Key::of(&autoscaler.metadata));
            }
        }));
        let context = &self.context;
        self.wake_by_size(&context.deployments, |of| of.spec.as_ref()?.replicas);
        self.wake_by_size(&context.replica_sets, |of| of.spec.as_ref()?.replicas);
        self.wake_by_size(&context.replication_controllers, |of| {
            of.spec.as_ref()?.replicas
        });
        let controller = self.clone();
        let wake = move |arrival: Arrival<'_>| controller.arrived(arrival);
        self.figures.subscribe(&self.context.stop, Box::new(wake));
    }

    /// Wakes those of a target of this kind that is there, or wanted in another size, since now.
    fn wake_by_size<K: Object>(
        self: &Arc<Self>,
        targets: &Informer<K>,
        replicas: fn(&K) -> Option<i32>,
    ) {
        let controller = self.clone();
        targets.subscribe(Box::new(move |change| {
            let (old, new) = (change.old.map(|old| replicas(old)), change.new);
            if let Some(new) = new.filter(|new| old != Some(replicas(new))) {
                controller.wake_of(&K::kind(&()), new.meta());
            }
        }));
    }

    /// Has the autoscaler looked at as soon as its period allows.
    fn wake(&self, key: Key) {
        let not_before = self.memory.lock().get(&key).map(|known| known.not_before);
        let wait = not_before.map(|at| at.saturating_duration_since(Instant::now()));
        self.queue.add_after(key, wait.unwrap_or_default());
    }

    /// Wakes those of a target.
    fn wake_of(&self, kind: &str, target: &ObjectMeta) {
        for autoscaler in targeting(&self.autoscalers, kind, &Key::of(target)) {
            self.wake(Key::of(&autoscaler.metadata));
        }
    }

    /// Wakes those that go by metrics of a pod, or of a service that it is behind: their target may be something else.
    fn wake_by_objects(&self, namespace: &str, name: &str, pod: Option<&Pod>) {
        if self.autoscalers.count(OF_OBJECTS, namespace) == 0 {
            return;
        }
        let services = pod.map(|pod| self.context.services.selecting(&pod.metadata));
        let services = services.into_iter().flatten();
        let services = services.map(|service| ("Service", service));
        for (kind, object) in services.chain([("Pod", Key::new(namespace, name))]) {
            for autoscaler in going_by(&self.autoscalers, kind, &object) {
                self.wake(Key::of(&autoscaler.metadata));
            }
        }
    }

    fn arrived(&self, arrival: Arrival<'_>) {
        match arrival {
            Arrival::Pod { namespace, name } => {
                let pod = self.context.pods.get(&Key::new(namespace, name));
                let labels = pod.as_ref().and_then(|pod| pod.metadata.labels.as_ref());
                for key in self.watched.of(namespace, labels) {
                    self.wake(key);
                }
                self.wake_by_objects(namespace, name, pod.as_deref());
            }
            Arrival::Namespace(namespace) => {
                for autoscaler in self.autoscalers.in_namespace(namespace) {
                    let metrics = autoscaler.spec.metrics.iter().flatten();
                    let mut sorts = metrics.map(|metric| metric.type_.as_str());
                    if sorts.any(|sort| !matches!(sort, "Resource" | "ContainerResource")) {
                        self.wake(Key::of(&autoscaler.metadata));
                    }
                }
            }
        }
    }

    /// What is remembered of the autoscaler, which is not looked at again within the period from now on.
    fn remembered(&self, key: &Key, uid: Option<&String>, period: Duration) -> Kept {
        let mut memory = self.memory.lock();
        let not_before = Instant::now() + period;
        let new = || Memory {
            uid: uid.cloned(),
            not_before,
            kept: Kept::default(),
            written: None,
        };
        let known = memory.entry(key.clone()).or_insert_with(new);
        if known.uid.as_ref() != uid {
            *known = new();
        }
        known.not_before = not_before;
        known.kept.clone()
    }

    fn remember(&self, key: &Key, kept: Kept) {
        if let Some(known) = self.memory.lock().get_mut(key) {
            known.kept = kept;
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let autoscaler = self.autoscalers.get(key);
        let Some(mut autoscaler) = autoscaler.filter(|of| of.metadata.deletion_timestamp.is_none())
        else {
            self.memory.lock().remove(key);
            self.watched.remove(key);
            return Ok(Next::Changed);
        };
        let began = Instant::now();
        let (period, bad_period) = match sync_period(&autoscaler.metadata) {
            Ok(period) => (period, None),
            Err(why) => (DEFAULT, Some(why)),
        };
        let uid = autoscaler.metadata.uid.as_ref();
        let mut kept = self.remembered(key, uid, period);
        let target = &autoscaler.spec.scale_target_ref;
        let found = self.targets.find(&key.namespace, target).await;
        let decision = self
            .decide(key, &autoscaler, &found, bad_period.as_deref(), &mut kept)
            .await;
        if let Some(status) = decision.before_zero(&autoscaler, self.context.clock.now()) {
            self.write(key, &autoscaler, status).await?;
            autoscaler = self.autoscalers.get(key).unwrap_or(autoscaler);
        }
        let rescale = decision.rescale.as_ref().map(|rescale| rescale.replicas);
        let mut came_to = decision.fault.map_or(Ok(Action::None), Err);
        let decision = match (rescale, found) {
            (Some(replicas), Ok(found)) => {
                let before = found.replicas();
                let outcome = found.set(replicas).await;
                match &outcome {
                    Ok(()) => {
                        came_to = Ok(Action::of(before, replicas));
                        tracing::info!(%key, before, replicas, "scaled");
                    }
                    Err(why) => {
                        came_to = Err(Fault::Internal);
                        tracing::warn!(%key, before, replicas, %why, "scaling failed");
                    }
                }
                let now = self.context.clock.now();
                decision.settle(&autoscaler, outcome, &mut kept, now)
            }
            _ => decision,
        };
        self.remember(key, kept);
        self.tell(&autoscaler, &decision);
        let written = self.write(key, &autoscaler, decision.status).await;
        if written.is_err() {
            came_to = came_to.and(Err(Fault::Internal));
        }
        monitor::reconciled(came_to, began.elapsed());
        written?;
        Ok(Next::After(RESYNC.max(period)))
    }

    /// What is to be done, by all that is known now.
    async fn decide(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        found: &std::result::Result<Found, String>,
        bad_period: Option<&str>,
        kept: &mut Kept,
    ) -> Decision {
        let (mut readings, mut took) = (Vec::new(), Vec::new());
        let selection = match found {
            Ok(found) => self.selection(key, found.selector()),
            Err(_) => Selection::Missing,
        };
        if let (Ok(found), Selection::Pods { pods, .. }) = (found, &selection)
            && needs_figures(autoscaler, found.replicas())
        {
            let metrics = autoscaler.spec.metrics.as_deref().unwrap_or_default();
            (readings, took) = readings::read(&*self.figures, &key.namespace, metrics, pods).await;
        }
        let target = match found {
            Ok(found) => Ok(Target {
                replicas: found.replicas(),
                observed: found.observed(),
                selection: &selection,
            }),
            Err(why) => Err(why.as_str()),
        };
        let observed = Observed {
            autoscaler,
            target,
            readings: &readings,
            bad_period,
            now: self.context.clock.now(),
        };
        let decision = decide(&observed, kept);
        for (computation, took) in decision.computed.iter().zip(took) {
            monitor::computed(computation, took);
        }
        decision
    }

    /// The pods of a target, and whose they are.
    fn selection(&self, key: &Key, text: &str) -> Selection {
        let selector = match LabelSelector::parse(text) {
            _ if text.is_empty() => {
                self.watched.remove(key);
                return Selection::Missing;
            }
            Ok(selector) => selector,
            Err(error) => {
                self.watched.remove(key);
                return Selection::Invalid(error.to_string());
            }
        };
        self.watched.put(key, &selector);
        let pods = selected(&self.context.pods, &key.namespace, &selector);
        Selection::Pods {
            selector: text.to_owned(),
            autoscalers: self.sharing(&key.namespace, &pods),
            pods,
        }
    }

    /// The autoscalers that the pods belong to, as far as there are several: then nothing else is to be known. Most pods of a
    /// target have the same labels.
    fn sharing(&self, namespace: &str, pods: &[Arc<Pod>]) -> Vec<Key> {
        let mut all = BTreeSet::new();
        let mut last = None;
        for pod in pods {
            let labels = pod.metadata.labels.as_ref();
            if last != Some(labels) {
                all.extend(self.watched.of(namespace, labels));
                last = Some(labels);
                if all.len() > 1 {
                    break;
                }
            }
        }
        all.into_iter().collect()
    }

    fn tell(&self, autoscaler: &HorizontalPodAutoscaler, decision: &Decision) {
        for told in &decision.events {
            let (about, message) = (Reference::to(autoscaler), told.message.clone());
            match told.is_warning {
                true => self.recorder.warning(about, told.reason, message),
                false => self.recorder.normal(about, told.reason, message),
            }
        }
    }

    /// Writes what is said of the autoscaler, if that is worth it.
    async fn write(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        status: HorizontalPodAutoscalerStatus,
    ) -> Result<()> {
        let known = self.memory.lock().get(key).and_then(|known| known.written);
        let since = known.map(|at| at.elapsed());
        if !is_worth_writing(autoscaler.status.as_ref(), &status, since) {
            return Ok(());
        }
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut changed = autoscaler.clone();
        changed.status = Some(status);
        let mut attempts = 1;
        let answer = loop {
            let parameters = PostParams::default();
            let answer = api.replace_status(&key.name, &parameters, &changed).await;
            let is_late = matches!(&answer, Err(error) if is_conflict(error));
            if !is_late || attempts == ATTEMPTS {
                break answer;
            }
            attempts += 1;
            // What it wishes for may have changed; what is said of it is nobody else's.
            let Ok(mut latest) = api.get(&key.name).await else {
                break answer;
            };
            if latest.metadata.uid != autoscaler.metadata.uid {
                return Ok(());
            }
            latest.status = changed.status.take();
            changed = latest;
        };
        if let Some(known) = self.memory.lock().get_mut(key) {
            known.written = Some(Instant::now());
        }
        match taken_in(answer, &api, &self.autoscalers, &key.name).await {
            Ok(()) => Ok(()),
            Err(error) if code(&error) == Some(404) => Ok(()),
            Err(error) => {
                if !is_conflict(&error) {
                    let about = Reference::to(autoscaler);
                    let message = words(&error);
                    self.recorder.warning(about, "FailedUpdateStatus", message);
                }
                Err(error).doing("updating the status of autoscaler", key)
            }
        }
    }
}

/// Whether a status says something new: other figures alone only now and then.
fn is_worth_writing(
    old: Option<&HorizontalPodAutoscalerStatus>,
    new: &HorizontalPodAutoscalerStatus,
    since: Option<Duration>,
) -> bool {
    let mut old = old.cloned().unwrap_or_default();
    let mut new = new.clone();
    for status in [&mut old, &mut new] {
        // No replicas, and no conditions, are kept as nothing.
        status.current_replicas = status.current_replicas.filter(|count| *count != 0);
        let conditions = status.conditions.take();
        status.conditions = conditions.filter(|conditions| !conditions.is_empty());
    }
    if old == new {
        return false;
    }
    old.current_metrics.clone_from(&new.current_metrics);
    old != new || since.is_none_or(|since| since >= FIGURES_WRITTEN)
}
