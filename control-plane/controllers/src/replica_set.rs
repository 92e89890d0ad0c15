//! ReplicaSet: keeps the wanted number of pods of one template.

mod plan;
mod rank;

use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Cache, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};

use self::plan::Change;
pub(crate) use self::plan::nonzero;
pub(crate) use self::rank::victims;
use crate::context::Context;
use crate::error::{Doing, Error, Result, code, taken_in};
use crate::pod_control::{self, Claiming, claimed};
use crate::pods::{is_active, is_terminating};

pub(crate) const COMPONENT: &str = "replicaset-controller";
const AT_ONCE: usize = 16;

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, recorder: Recorder) {
    let queue = Arc::new(Queue::<Key>::default());
    context.replica_sets.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(set) = change.last() {
                queue.add(Key::of(&set.metadata));
            }
        }
    }));
    context.pods.subscribe(Box::new({
        let (queue, sets) = (queue.clone(), context.replica_sets.clone());
        move |change| {
            for pod in [change.old, change.new].into_iter().flatten() {
                for key in interested(&sets, pod) {
                    queue.add(key);
                }
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("replicaset", queue, AT_ONCE, stop, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        async move { reconcile(&context, &recorder, &key).await }
    })
    .await;
}

/// The sets a pod concerns: its controller, or, for an orphan, those that would adopt it.
fn interested(sets: &Cache<ReplicaSet>, pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match controller_of(&pod.metadata) {
        Some(owner) if owner.kind == "ReplicaSet" => vec![Key::new(namespace, &owner.name)],
        Some(_) => Vec::new(),
        None => sets
            .in_namespace(namespace)
            .iter()
            .filter(|set| selector(set).matches_map(pod.metadata.labels.as_ref()))
            .map(|set| Key::of(&set.metadata))
            .collect(),
    }
}

fn selector(set: &ReplicaSet) -> LabelSelector {
    LabelSelector::from_api(set.spec.as_ref().map(|spec| &spec.selector))
}

async fn reconcile(context: &Context, recorder: &Recorder, key: &Key) -> Result<Next> {
    let Some(set) = context.replica_sets.get(key) else {
        return Ok(Next::Changed);
    };
    let active = claimed(
        context,
        &Claiming {
            owner: &*set,
            selector: &selector(&set),
            concerns: is_active,
            finalizer: None,
        },
    )
    .await?;
    let terminating = terminating(context, &set);
    let now = context.clock.now();
    let related = related(context, &set);
    let outcome = match plan::change(&set, &active, &related, now) {
        Change::Nothing => Ok(()),
        Change::Create(count) => {
            let pod = plan::pod_of(&set);
            let pods = vec![&pod; count];
            pod_control::create(context, recorder, &Reference::to(&*set), &pods).await
        }
        Change::Delete(victims) => {
            pod_control::delete(context, recorder, &Reference::to(&*set), &victims).await
        }
    };
    let failure = outcome.as_ref().err();
    let (status, wake) = plan::status(&set, &active, terminating, failure, now);
    if set.status.as_ref() != Some(&status) {
        let mut changed = (*set).clone();
        changed.status = Some(status);
        let api: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &key.namespace);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await;
        match taken_in(written, &api, &context.replica_sets, &key.name).await {
            Err(error) if code(&error) == Some(404) => return Ok(Next::Changed),
            other => other.doing("updating the status of replica set", key)?,
        }
    }
    match outcome {
        Ok(()) => Ok(wake.map_or(Next::Changed, Next::After)),
        Err(failure) => Err(Error::Refused {
            object: key.to_string(),
            why: failure.message,
        }),
    }
}

/// How many of our pods are on their way out.
fn terminating(context: &Context, set: &ReplicaSet) -> usize {
    let selector = selector(set);
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let pods = context.pods.owned_by(uid);
    pods.iter()
        .filter(|pod| is_terminating(pod) && selector.matches_map(pod.metadata.labels.as_ref()))
        .count()
}

/// The active pods of all sets with the same controller; of a set without one, none.
fn related(context: &Context, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let Some(owner) = controller_of(&set.metadata) else {
        return Vec::new();
    };
    let siblings = context.replica_sets.owned_by(&owner.uid);
    siblings
        .iter()
        .filter_map(|set| set.metadata.uid.as_deref())
        .flat_map(|uid| context.pods.owned_by(uid))
        .filter(|pod| is_active(pod))
        .collect()
}
