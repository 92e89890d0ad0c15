//! ReplicaSet and ReplicationController: keep the wanted number of pods of one template.

mod plan;
mod rank;
mod replicas;

use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};

use self::plan::Change;
pub(crate) use self::plan::nonzero;
pub(crate) use self::rank::victims;
pub(crate) use self::replicas::Replicas;
use crate::context::Context;
use crate::error::{Doing, Error, Result, code, taken_in};
use crate::pod_control::{self, Claiming, claimed};
use crate::pods::{is_active, is_terminating};
use crate::selecting::selector_of;

const AT_ONCE: usize = 16;

/// Runs those of one kind until stopped.
pub(crate) async fn run<K: Replicas>(context: Arc<Context>, recorder: Recorder) {
    let queue = Arc::new(Queue::<Key>::default());
    K::known(&context).subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(set) = change.last() {
                queue.add(Key::of(set.meta()));
            }
        }
    }));
    context.pods.subscribe(Box::new({
        let (queue, sets) = (queue.clone(), K::known(&context).clone());
        move |change| {
            for pod in [change.old, change.new].into_iter().flatten() {
                for key in sets.concerned(&pod.metadata) {
                    queue.add(key);
                }
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run(K::QUEUE, queue, AT_ONCE, stop, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        async move { reconcile::<K>(&context, &recorder, &key).await }
    })
    .await;
}

async fn reconcile<K: Replicas>(context: &Context, recorder: &Recorder, key: &Key) -> Result<Next> {
    let sets = K::known(context);
    let Some(set) = sets.get(key) else {
        return Ok(Next::Changed);
    };
    let selector = selector_of(&*set);
    let active = claimed(
        context,
        &Claiming {
            owner: &*set,
            selector: &selector,
            concerns: is_active,
            finalizer: None,
        },
    )
    .await?;
    let terminating = terminating(context, &*set, &selector);
    let now = context.clock.now();
    let related = related(context, &*set);
    let outcome = match plan::change(&*set, &active, &related, now) {
        Change::Nothing => Ok(()),
        Change::Create(count) => {
            let pod = plan::pod_of(&*set);
            let pods = vec![&pod; count];
            pod_control::create(context, recorder, &Reference::to(&*set), &pods).await
        }
        Change::Delete(victims) => {
            pod_control::delete(context, recorder, &Reference::to(&*set), &victims).await
        }
    };
    let failure = outcome.as_ref().err();
    let (status, wake) = plan::status(&*set, &active, terminating, failure, now);
    let mut changed = (*set).clone();
    changed.set_status(status);
    if set.status() != changed.status() {
        let api: Api<K> = Api::namespaced(context.client.clone(), &key.namespace);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await;
        match taken_in(written, &api, sets, &key.name).await {
            Err(error) if code(&error) == Some(404) => return Ok(Next::Changed),
            other => other.doing("updating the status of", key)?,
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
fn terminating<K: Replicas>(context: &Context, set: &K, selector: &LabelSelector) -> usize {
    let uid = set.meta().uid.as_deref().unwrap_or_default();
    let pods = context.pods.owned_by(uid);
    pods.iter()
        .filter(|pod| is_terminating(pod) && selector.matches_map(pod.metadata.labels.as_ref()))
        .count()
}

/// The active pods of all sets with the same controller; of a set without one, none.
fn related<K: Replicas>(context: &Context, set: &K) -> Vec<Arc<Pod>> {
    let Some(owner) = controller_of(set.meta()) else {
        return Vec::new();
    };
    let siblings = K::known(context).owned_by(&owner.uid);
    siblings
        .iter()
        .filter_map(|set| set.meta().uid.as_deref())
        .flat_map(|uid| context.pods.owned_by(uid))
        .filter(|pod| is_active(pod))
        .collect()
}
