//! Deployment: brings the pods of an application to its current template, by way of one ReplicaSet per template.

mod canary;
mod evidence;
mod monitor;
pub(crate) mod plan;
mod policy;
mod resizing;
mod revision;
mod rollback;
mod sizing;
mod status;
#[cfg(test)]
mod tests;
mod undo;

use std::sync::Arc;
use std::time::Duration;

use gantry_informer::object::controller_of;
use gantry_informer::{Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};

use self::canary::Canary;
use self::monitor::Monitor;
use self::plan::{Observed, Plan, set_name};
use self::policy::Policy;
use self::revision::{same_template, sorted};
use self::sizing::is_rolling;
pub(crate) use self::sizing::{scaled, wanted};
use crate::claim::{claim, settle};
use crate::context::{Context, ORPHANS};
use crate::error::{Doing, Error, Result, code, namespace_terminating, taken_in, words};
use crate::figures::{Figures, Metric, PodValue};
use crate::horizontal_pod_autoscaler::readings;
use crate::pods::is_finished;
use crate::selecting::{Selects, Wanted, selector_of};
use crate::template_hash::template_hash;

pub(crate) const COMPONENT: &str = "deployment-controller";
const AT_ONCE: usize = 16;
/// No more events of a pod than this are looked through.
const MOST_ANSWERS: u32 = 100;
/// Whoever has not told a metric by then has no figures: other Deployments wait meanwhile.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, figures: Arc<dyn Figures>, recorder: Recorder) {
    let queue = Arc::new(Queue::<Key>::default());
    context.deployments.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(deployment) = change.last() {
                queue.add(Key::of(&deployment.metadata));
            }
        }
    }));
    context.replica_sets.subscribe(Box::new({
        let (queue, deployments) = (queue.clone(), context.deployments.clone());
        move |change| {
            for set in [change.old, change.new].into_iter().flatten() {
                for key in deployments.concerned(&set.metadata) {
                    queue.add(key);
                }
            }
        }
    }));
    // Recreate waits for the end of old pods, which their sets do not report once scaled to zero; a pod in trouble may be
    // what a rollout fails by.
    context.pods.subscribe(Box::new({
        let (queue, sets) = (queue.clone(), context.replica_sets.clone());
        move |change| {
            let matters = change
                .new
                .is_none_or(|pod| is_finished(pod) || evidence::is_troubled(pod));
            let owner = change.last().filter(|_| matters).and_then(|pod| {
                let owner = controller_of(&pod.metadata)?;
                let namespace = pod.metadata.namespace.as_deref()?;
                sets.get(&Key::new(namespace, &owner.name))
            });
            if let Some(set) = owner
                && let Some(owner) = controller_of(&set.metadata)
            {
                let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
                queue.add(Key::new(namespace, &owner.name));
            }
        }
    }));
    context.namespaces.subscribe(Box::new({
        let (queue, deployments) = (queue.clone(), context.deployments.clone());
        move |change| {
            let policy = |namespace: Option<&Arc<Namespace>>| {
                namespace.map(|namespace| Policy::of(&namespace.metadata, None))
            };
            let name = change
                .new
                .and_then(|namespace| namespace.metadata.name.as_deref());
            if let Some(name) = name
                && policy(change.old) != policy(change.new)
            {
                for deployment in deployments.in_namespace(name) {
                    queue.add(Key::of(&deployment.metadata));
                }
            }
        }
    }));
    let (stop, monitor) = (context.stop.clone(), Arc::new(Monitor::default()));
    runner::run("deployment", queue, AT_ONCE, stop, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        let (figures, monitor) = (figures.clone(), monitor.clone());
        async move { reconcile(&context, &*figures, &recorder, &monitor, &key).await }
    })
    .await;
}

impl Selects for Deployment {
    fn wanted(&self) -> Option<Wanted<'_>> {
        let spec = self.spec.as_ref()?;
        Some(Wanted::Selector(&spec.selector))
    }
}

async fn reconcile(
    context: &Context,
    figures: &dyn Figures,
    recorder: &Recorder,
    monitor: &Monitor,
    key: &Key,
) -> Result<Next> {
    let Some(deployment) = context.deployments.get(key) else {
        monitor.gone(key);
        return Ok(Next::Changed);
    };
    if selector_of(&*deployment).is_everything() {
        recorder.warning(
            Reference::to(&*deployment),
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.".to_owned(),
        );
        let mut changed = (*deployment).clone();
        let status = changed.status.get_or_insert_default();
        status.observed_generation = changed.metadata.generation;
        if changed != *deployment {
            write_status(context, &changed).await?;
        }
        return Ok(Next::Changed);
    }
    let (sets, current) = sorted(&deployment, claimed(context, &deployment).await?);
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = match deployment.spec.as_ref() {
        Some(spec) => template_hash(&spec.template, collisions),
        None => return Ok(Next::Changed),
    };
    let namespace = context.namespaces.get(&Key::new("", &key.namespace));
    let namespace = namespace.as_ref().map(|namespace| &namespace.metadata);
    let policy = Policy::of(&deployment.metadata, namespace);
    let canary = Canary::of(&deployment);
    let new = current.and_then(|at| sets.get(at));
    let walked = new.filter(|set| canary.is_walked(set));
    let looked_at = new.filter(|_| policy.is_on).or(walked);
    let uid = looked_at.and_then(|set| set.metadata.uid.as_deref());
    let pods = uid.map_or_else(Vec::new, |uid| context.pods.owned_by(uid));
    let figures = match canary.bound.as_ref().filter(|_| walked.is_some()) {
        Some(bound) => Some(metric(figures, &key.namespace, &bound.name, &pods).await),
        None => None,
    };
    let observed = Observed {
        old_pods_run: !is_rolling(&deployment) && old_pods_run(context, &sets, current),
        deployment: &deployment,
        pods,
        figures,
        sets,
        hash: hash.clone(),
        policy,
        canary,
        answer: None,
        now: context.clock.now(),
    };
    let again = observed.policy.is_on.then(|| observed.clone());
    let mut plan = plan::plan(observed);
    if let Some(pod) = plan.asks.take()
        && let Some(mut again) = again
    {
        again.answer = probes_answer(context, &key.namespace, &pod).await;
        plan = plan::plan(again);
    }
    carry_out(context, recorder, monitor, &deployment, plan, &hash).await
}

/// A metric of pods, or why nobody knows it.
async fn metric(
    figures: &dyn Figures,
    namespace: &str,
    name: &str,
    pods: &[Arc<Pod>],
) -> std::result::Result<Vec<PodValue>, String> {
    let metric = Metric {
        namespace,
        name,
        selector: None,
    };
    readings::of_pods(figures, metric, pods, LONGEST_WAIT).await
}

/// What a probe of the pod with that uid was answered last, as its events tell.
async fn probes_answer(context: &Context, namespace: &str, pod: &str) -> Option<String> {
    let api: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let fields = format!("involvedObject.uid={pod},reason=Unhealthy");
    let parameters = ListParams::default().fields(&fields).limit(MOST_ANSWERS);
    let events = match api.list(&parameters).await {
        Ok(list) => list.items,
        Err(error) => {
            tracing::debug!(%namespace, error = words(&error), "looking for what a probe was answered");
            return None;
        }
    };
    let last = events
        .iter()
        .max_by_key(|event| event.last_timestamp.clone())?;
    last.message.as_deref().map(evidence::shown)
}

/// Whether pods of other sets than the current one run, or such a set still says so.
fn old_pods_run(context: &Context, sets: &[ReplicaSet], current: Option<usize>) -> bool {
    let mut old = sets
        .iter()
        .enumerate()
        .filter(|(at, _)| Some(*at) != current);
    old.any(|(_, set)| {
        let told = set.status.as_ref().map_or(0, |status| status.replicas);
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let pods = context.pods.owned_by(uid);
        told > 0 || pods.iter().any(|pod| !is_finished(pod))
    })
}

async fn carry_out(
    context: &Context,
    recorder: &Recorder,
    monitor: &Monitor,
    deployment: &Deployment,
    plan: Plan,
    hash: &str,
) -> Result<Next> {
    let key = Key::of(&deployment.metadata);
    let sets: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &key.namespace);
    if let Some(set) = &plan.create {
        match sets.create(&PostParams::default(), set).await {
            Ok(set) => context.replica_sets.observe(set),
            Err(error) => return refused(context, recorder, deployment, hash, error).await,
        }
    }
    for set in &plan.update {
        let set_key = Key::of(&set.metadata);
        let written = sets
            .replace(&set_key.name, &PostParams::default(), set)
            .await;
        taken_in(written, &sets, &context.replica_sets, &set_key.name)
            .await
            .doing("writing replica set", &set_key)?;
    }
    for message in plan.events {
        recorder.normal(Reference::to(deployment), "ScalingReplicaSet", message);
    }
    for name in &plan.delete {
        match sets.delete(name, &DeleteParams::background()).await {
            Ok(answer) => {
                if let Some(set) = answer.left() {
                    context.replica_sets.observe_deleting(set);
                }
            }
            Err(error) if code(&error) == Some(404) => {}
            Err(error) => return Err(error).doing("deleting an old replica set of", &key),
        }
    }
    if let Some(changed) = &plan.deployment {
        write_status(context, changed).await?;
        monitor.wrote(deployment, changed);
    }
    if let Some(changed) = &plan.rewrite {
        let api: Api<Deployment> = Api::namespaced(context.client.clone(), &key.namespace);
        let written = api
            .replace(&key.name, &PostParams::default(), changed)
            .await;
        taken_in(written, &api, &context.deployments, &key.name)
            .await
            .doing("writing the template of deployment", &key)?;
    }
    for told in plan.told {
        let about = Reference::to(deployment);
        match told.is_warning {
            true => recorder.warning(about, told.reason, told.message),
            false => recorder.normal(about, told.reason, told.message),
        }
    }
    Ok(plan.wake.map_or(Next::Changed, Next::After))
}

/// Writes status and revision; Kubernetes lets the status subresource change a deployment's annotations.
async fn write_status(context: &Context, changed: &Deployment) -> Result<()> {
    let key = Key::of(&changed.metadata);
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), &key.namespace);
    let written = api
        .replace_status(&key.name, &PostParams::default(), changed)
        .await;
    match taken_in(written, &api, &context.deployments, &key.name).await {
        Err(error) if code(&error) == Some(404) => Ok(()),
        other => other.doing("updating the status of deployment", &key),
    }
}

/// The set of the current template could not be created.
async fn refused(
    context: &Context,
    recorder: &Recorder,
    deployment: &Deployment,
    hash: &str,
    error: kube::Error,
) -> Result<Next> {
    if namespace_terminating(&error) {
        return Ok(Next::Changed);
    }
    let key = Key::of(&deployment.metadata);
    let name = set_name(deployment, hash);
    let mut changed = deployment.clone();
    let now = context.clock.now();
    let mut status = changed.status.take().unwrap_or_default();
    if code(&error) == Some(409) {
        let sets: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &key.namespace);
        let existing = sets
            .get_opt(&name)
            .await
            .doing("looking at a replica set of", &key)?;
        if let Some(existing) = existing {
            let ours = controller_of(&existing.metadata)
                .is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref());
            let same = existing
                .spec
                .as_ref()
                .and_then(|spec| spec.template.as_ref())
                .zip(deployment.spec.as_ref())
                .is_some_and(|(own, spec)| same_template(own, &spec.template));
            if ours && same {
                // It was made before, by an answer that never arrived.
                context.replica_sets.observe(existing);
                return Err(Error::NotYet {
                    object: key.to_string(),
                    why: format!("replica set {name} is there already"),
                });
            }
            // Another object has the name: the next pass hashes with the collision counted in.
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
    } else {
        let message = format!(
            "Failed to create new replica set {name:?}: {}",
            words(&error)
        );
        recorder.warning(
            Reference::to(deployment),
            status::FAILED_CREATE,
            message.clone(),
        );
        if status::deadline(deployment).is_some() {
            let condition = status::new_condition(
                status::PROGRESSING,
                "False",
                status::FAILED_CREATE,
                message,
                now,
            );
            status::set_condition(&mut status, condition);
        }
    }
    changed.status = Some(status);
    if changed != *deployment {
        write_status(context, &changed).await?;
    }
    Err(error).doing("creating the replica set of", &key)
}

/// The sets that are ours, after adopting and releasing.
async fn claimed(context: &Context, deployment: &Deployment) -> Result<Vec<ReplicaSet>> {
    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
    let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
    let selector = selector_of(deployment);
    let mut sets = context.replica_sets.owned_by(uid);
    sets.extend(context.replica_sets.indexed(ORPHANS, namespace));
    let decided = sets.into_iter().map(|set| {
        let decision = claim(&deployment.metadata, &selector, &set.metadata);
        (set, decision)
    });
    let decided = decided.collect();
    let ours = settle(&context.client, deployment, &context.replica_sets, decided).await?;
    Ok(ours.into_iter().map(Arc::unwrap_or_clone).collect())
}
