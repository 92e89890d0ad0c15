//! ReplicaSet: keeps the wanted number of pods of one template.

mod plan;
mod rank;

use std::sync::Arc;

use futures::future::join_all;
use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Cache, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

pub(crate) use self::plan::{BURST, batches, nonzero};
use self::plan::{Change, Failure};
use crate::claim::{claim, settle};
use crate::context::{Context, ORPHANS};
use crate::error::{Doing, Error, Result, code, namespace_terminating, taken_in, words};
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
    let pods = claimed(context, &set).await?;
    let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let terminating = pods.iter().filter(|pod| is_terminating(pod)).count();
    let now = context.clock.now();
    let related = related(context, &set);
    let outcome = match plan::change(&set, &active, &related, now) {
        Change::Nothing => Ok(()),
        Change::Create(count) => create(context, recorder, &set, count).await,
        Change::Delete(victims) => delete(context, recorder, &set, &victims).await,
    };
    let failure = outcome.as_ref().err().map(|(failure, _)| failure);
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
        Err((failure, retry)) if retry => Err(Error::Refused {
            object: key.to_string(),
            why: failure.message,
        }),
        Err(_) => Ok(Next::Changed),
    }
}

/// The pods that are ours, after adopting and releasing. A pod that ended is not worth adopting.
async fn claimed(context: &Context, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let selector = selector(set);
    let orphans = context.pods.indexed(ORPHANS, namespace);
    let orphans = orphans.into_iter().filter(|pod| is_active(pod));
    let candidates = context.pods.owned_by(uid).into_iter().chain(orphans);
    let decided = candidates.map(|pod| {
        let decision = claim(&set.metadata, &selector, &pod.metadata);
        (pod, decision)
    });
    settle(&context.client, set, &context.pods, decided.collect()).await
}

/// The active pods of all sets with the same controller.
fn related(context: &Context, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let own = set.metadata.uid.clone().unwrap_or_default();
    let mut sets = vec![own];
    if let Some(owner) = controller_of(&set.metadata) {
        let siblings = context.replica_sets.owned_by(&owner.uid);
        sets = siblings
            .iter()
            .filter_map(|set| set.metadata.uid.clone())
            .collect();
    }
    sets.iter()
        .flat_map(|uid| context.pods.owned_by(uid))
        .filter(|pod| is_active(pod))
        .collect()
}

type Outcome = std::result::Result<(), (Failure, bool)>;

async fn create(context: &Context, recorder: &Recorder, set: &ReplicaSet, count: usize) -> Outcome {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let pod = plan::pod_of(set);
    let about = Reference::to(set);
    for batch in plan::batches(count) {
        let parameters = PostParams::default();
        let made = join_all((0..batch).map(|_| api.create(&parameters, &pod))).await;
        let mut failed = None;
        for outcome in made {
            match outcome {
                Ok(pod) => {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    recorder.normal(
                        about.clone(),
                        "SuccessfulCreate",
                        format!("Created pod: {name}"),
                    );
                    context.pods.observe(pod);
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            let message = words(&error);
            let terminating = namespace_terminating(&error);
            if !terminating {
                recorder.warning(about, "FailedCreate", format!("Error creating: {message}"));
            }
            return Err((
                Failure {
                    reason: "FailedCreate",
                    message,
                },
                !terminating,
            ));
        }
    }
    Ok(())
}

async fn delete(
    context: &Context,
    recorder: &Recorder,
    set: &ReplicaSet,
    victims: &[Arc<Pod>],
) -> Outcome {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let api = &api;
    let about = Reference::to(set);
    let deleted = join_all(victims.iter().map(|pod| async move {
        let key = Key::of(&pod.metadata);
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
        (pod, api.delete(&key.name, &parameters).await)
    }))
    .await;
    let mut failure = None;
    for (pod, outcome) in deleted {
        let key = Key::of(&pod.metadata);
        match outcome {
            Ok(answer) => {
                recorder.normal(
                    about.clone(),
                    "SuccessfulDelete",
                    format!("Deleted pod: {}", key.name),
                );
                if let Some(pod) = answer.left() {
                    context.pods.observe_deleting(pod);
                }
            }
            Err(error) if matches!(code(&error), Some(404 | 409)) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                context.pods.observe_gone(&key, uid);
            }
            Err(error) => {
                let message = words(&error);
                recorder.warning(
                    about.clone(),
                    "FailedDelete",
                    format!("Error deleting: {message}"),
                );
                failure = Some(Failure {
                    reason: "FailedDelete",
                    message,
                });
            }
        }
    }
    failure.map_or(Ok(()), |failure| Err((failure, true)))
}
