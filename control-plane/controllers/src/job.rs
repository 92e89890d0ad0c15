//! Job: pods that run to their end, so many of them, and what their ends make of the job.
//!
//! Each pod has a finalizer until its end is counted: `facts` says what is not counted yet, `plan` what is done to pods,
//! and `account` what is written and in which order, so that each pod is counted once. Pods of jobs that are gone, or over,
//! are given free.

mod account;
mod backoff;
mod facts;
mod indexes;
mod plan;
mod policy;
mod template;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;
use gantry_api::paths::segment;
use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::account::{conclude, note};
use self::backoff::Failures;
use self::facts::{Facts, is_tracked, spec_of};
pub(crate) use self::facts::{holds, is_finished};
use self::plan::{Change, Verdict};
use crate::context::Context;
use crate::error::{Doing, Error, Result, code, taken_in, words};
use crate::pod_control::{self, Claiming, Failure, claimed};
use crate::pods::is_active;
use crate::selecting::{Selects, Wanted, selector_of};

pub(crate) const COMPONENT: &str = "job-controller";
/// The finalizer of pods that are not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// What `spec.managedBy` says of jobs that this controller runs; of others it says whose they are.
const MANAGER: &str = "kubernetes.io/job-controller";
const AT_ONCE: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Job(Key),
    /// A pod that has the finalizer, and no job that would take it off.
    Stray(Key),
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    /// By the jobs' uids. They are lost with the process, and then told from the pods that are left.
    failures: Mutex<HashMap<String, Failures>>,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, recorder: Recorder) {
    let controller = Arc::new(Controller {
        context: context.clone(),
        recorder,
        failures: Mutex::default(),
    });
    let queue = Arc::new(Queue::<Work>::default());
    context.jobs.subscribe(Box::new({
        let (queue, controller) = (queue.clone(), controller.clone());
        move |change| {
            if let Some(job) = change.last() {
                queue.add(Work::Job(Key::of(&job.metadata)));
            }
            let uid = |job: &Arc<Job>| job.metadata.uid.clone();
            let gone = change
                .old
                .filter(|old| change.new.and_then(uid) != uid(old));
            let over = change.new.filter(|job| is_finished(job));
            for job in gone.into_iter().chain(over) {
                controller.give_up(&queue, job);
            }
        }
    }));
    context.pods.subscribe(Box::new({
        let (queue, context) = (queue.clone(), context.clone());
        move |change| {
            for pod in [change.old, change.new].into_iter().flatten() {
                for key in interested(&context, pod) {
                    queue.add(Work::Job(key));
                }
            }
            if let Some(pod) = change.new.filter(|pod| is_stray(&context, pod)) {
                queue.add(Work::Stray(Key::of(&pod.metadata)));
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("job", queue, AT_ONCE, stop, move |work| {
        let controller = controller.clone();
        async move {
            match work {
                Work::Job(key) => controller.reconcile(&key).await,
                Work::Stray(key) => controller.give_free(&key).await,
            }
        }
    })
    .await;
}

impl Selects for Job {
    fn wanted(&self) -> Option<Wanted<'_>> {
        let selector = spec_of(self)?.selector.as_ref()?;
        Some(Wanted::Selector(selector))
    }
}

/// Whether somebody else runs the job.
fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = spec_of(job).and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

fn is_job(owner: &OwnerReference) -> bool {
    owner.kind == "Job" && owner.api_version == "batch/v1"
}

/// The jobs a pod concerns: its controller, or, for an orphan, those that would adopt it.
fn interested(context: &Context, pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match controller_of(&pod.metadata) {
        Some(owner) if is_job(owner) => vec![Key::new(namespace, &owner.name)],
        Some(_) => Vec::new(),
        None => context.jobs.selecting(&pod.metadata),
    }
}

/// The job that controls a pod, if it is there.
fn job_of(context: &Context, pod: &Pod, owner: &OwnerReference) -> Option<Arc<Job>> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let job = context.jobs.get(&Key::new(namespace, &owner.name))?;
    Some(job).filter(|job| job.metadata.uid.as_ref() == Some(&owner.uid))
}

/// Whether nobody counts the pod, though it waits for that.
fn is_stray(context: &Context, pod: &Pod) -> bool {
    is_tracked(pod)
        && match controller_of(&pod.metadata) {
            None => true,
            Some(owner) if !is_job(owner) => false,
            Some(owner) => job_of(context, pod, owner)
                .is_none_or(|job| is_finished(&job) && !is_managed_elsewhere(&job)),
        }
}

/// The patch by which a pod loses the finalizer, whatever else was changed meanwhile.
fn untracking(metadata: &ObjectMeta) -> Value {
    json!({"metadata": {"uid": metadata.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING]}})
}

/// As [`untracking`], of a pod that is still as it was seen.
fn untracking_as_seen(metadata: &ObjectMeta) -> Value {
    json!({"metadata": {
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "$deleteFromPrimitiveList/finalizers": [TRACKING],
    }})
}

impl Controller {
    /// Leaves a job that is gone, or over, and has its pods looked at.
    fn give_up(&self, queue: &Queue<Work>, job: &Job) {
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        self.failures.lock().remove(uid);
        for pod in self.context.pods.owned_by(uid) {
            if is_tracked(&pod) {
                queue.add(Work::Stray(Key::of(&pod.metadata)));
            }
        }
    }

    /// Takes the finalizer off a pod that nobody counts.
    async fn give_free(&self, key: &Key) -> Result<Next> {
        let context = &self.context;
        let found = context.pods.get(key);
        let Some(pod) = found.filter(|pod| is_stray(context, pod)) else {
            return Ok(Next::Changed);
        };
        if let Some(owner) = controller_of(&pod.metadata)
            && job_of(context, &pod, owner).is_none()
        {
            // The pod may be known before the job is.
            let api: Api<Job> = Api::namespaced(context.client.clone(), &key.namespace);
            let found = api.get_metadata_opt(&segment(&owner.name)).await;
            let found = found.doing("looking for the job of pod", key)?;
            if found.is_some_and(|job| job.metadata.uid.as_ref() == Some(&owner.uid)) {
                return Err(Error::NotYet {
                    object: key.to_string(),
                    why: "its job was not yet told of".to_owned(),
                });
            }
        }
        let patched = self.patch(&pod, untracking_as_seen(&pod.metadata)).await;
        match patched {
            Err(error) if code(&error) == Some(404) => Ok(Next::Changed),
            other => other.doing("giving free pod", key).map(|()| Next::Changed),
        }
    }

    /// Changes a pod, and takes in what it has become.
    async fn patch(&self, pod: &Pod, patch: Value) -> kube::Result<()> {
        let key = Key::of(&pod.metadata);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patch = Patch::Strategic(patch);
        let pod = api
            .patch(&key.name, &PatchParams::default(), &patch)
            .await?;
        self.context.pods.observe(pod);
        Ok(())
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let context = &self.context;
        let Some(job) = context.jobs.get(key) else {
            return Ok(Next::Changed);
        };
        if is_managed_elsewhere(&job) || is_finished(&job) {
            return Ok(Next::Changed);
        }
        let selector = selector_of(&*job);
        let claiming = Claiming {
            owner: &*job,
            selector: &selector,
            concerns: |_| true,
            finalizer: Some(TRACKING),
        };
        let pods = claimed(context, &claiming).await?;
        self.track(&job, &pods).await?;
        let pods = self.pods(&job, &selector);
        let now = context.clock.now();
        let facts = Facts::of(&job, &pods);
        let verdict = plan::verdict(&facts, now);
        let change = plan::change(&facts, verdict.as_ref(), self.failures(&facts), now);
        let wait = match change {
            Change::Wait(left) => Some(left),
            _ => None,
        };
        let wake = plan::time_left(&facts, now).into_iter().chain(wait).min();
        let outcome = self.carry_out(&job, change).await;
        self.account(&job, &selector).await?;
        match outcome {
            Err(failure) => Err(Error::Refused {
                object: key.to_string(),
                why: failure.message,
            }),
            _ => Ok(wake
                .filter(|_| verdict.is_none())
                .map_or(Next::Changed, Next::After)),
        }
    }

    /// The pods of the job, as they are now.
    fn pods(&self, job: &Job, selector: &LabelSelector) -> Vec<Arc<Pod>> {
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let mut pods = self.context.pods.owned_by(uid);
        pods.retain(|pod| {
            let controller = controller_of(&pod.metadata);
            controller.is_some_and(|owner| owner.uid == uid)
                && selector.matches_map(pod.metadata.labels.as_ref())
        });
        pods
    }

    /// Sees to it that pods that run will be counted. One may have lost its finalizer to somebody, or to a deletion that did
    /// not come about.
    async fn track(&self, job: &Job, pods: &[Arc<Pod>]) -> Result<()> {
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        for pod in pods.iter().filter(|pod| is_active(pod) && !is_tracked(pod)) {
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "finalizers": [TRACKING]}});
            match self.patch(pod, patch).await {
                // Gone, or going.
                Err(error) if matches!(code(&error), Some(404 | 409 | 422)) => {}
                other => other.doing("tracking pod", &Key::of(&pod.metadata))?,
            }
        }
        Ok(())
    }

    /// The failures that the next pods wait for.
    fn failures(&self, facts: &Facts<'_>) -> Failures {
        let uid = facts.job.metadata.uid.as_deref().unwrap_or_default();
        let known = self.failures.lock().get(uid).copied();
        let [succeeded, failed] = facts.ends(known.is_none());
        known.unwrap_or_default().and(&succeeded, &failed)
    }

    /// Keeps the failures of which the status now says that they are noted.
    fn remember(&self, job: &Job, failures: Failures) {
        let Some(uid) = job.metadata.uid.clone() else {
            return;
        };
        let mut known = self.failures.lock();
        known.insert(uid.clone(), failures);
        let found = self.context.jobs.get(&Key::of(&job.metadata));
        // It may have gone, and been left, meanwhile.
        if found.is_none_or(|found| found.metadata.uid.as_ref() != Some(&uid)) {
            known.remove(&uid);
        }
    }

    async fn carry_out(&self, job: &Job, change: Change) -> std::result::Result<(), Failure> {
        let (context, recorder) = (&*self.context, &self.recorder);
        let about = Reference::to(job);
        match change {
            Change::Nothing | Change::Wait(_) => Ok(()),
            Change::Create(pods) => pod_control::create(context, recorder, &about, &pods).await,
            Change::End(pods) => pod_control::delete(context, recorder, &about, &pods).await,
            Change::Shrink(pods) => {
                let free = self.untrack(&pods, untracking_as_seen).await;
                let (free, failure) = match free {
                    Ok(free) => (free, None),
                    Err((free, error)) => (free, Some(error)),
                };
                pod_control::delete(context, recorder, &about, &free).await?;
                failure.map_or(Ok(()), |error| {
                    Err(Failure {
                        reason: "FailedDelete",
                        message: words(&error),
                    })
                })
            }
        }
    }

    /// Takes the finalizer off pods. Returns those that have none now, with the trouble there was with others; those that
    /// are gone, or have changed, are neither.
    async fn untrack(
        &self,
        pods: &[Arc<Pod>],
        patch: fn(&ObjectMeta) -> Value,
    ) -> std::result::Result<Vec<Arc<Pod>>, (Vec<Arc<Pod>>, kube::Error)> {
        let done = join_all(pods.iter().map(|pod| async move {
            let outcome = match is_tracked(pod) {
                true => self.patch(pod, patch(&pod.metadata)).await,
                false => Ok(()),
            };
            (pod.clone(), outcome)
        }))
        .await;
        let (mut free, mut trouble) = (Vec::new(), None);
        for (pod, outcome) in done {
            match outcome {
                Ok(()) => free.push(pod),
                Err(error) if matches!(code(&error), Some(404 | 409 | 422)) => {}
                Err(error) => trouble = Some(error),
            }
        }
        match trouble {
            None => Ok(free),
            Some(error) => Err((free, error)),
        }
    }

    /// Notes which pods have ended, gives them free, counts them, and ends the job when it is over.
    async fn account(&self, job: &Job, selector: &LabelSelector) -> Result<()> {
        let key = Key::of(&job.metadata);
        let now = self.context.clock.now();
        let pods = self.pods(job, selector);
        let noting = note(job, &pods, now);
        let failures = self.failures(&Facts::of(job, &pods));
        let Some(job) = self.write(job, &noting.status).await? else {
            return Ok(());
        };
        self.remember(&job, failures);
        match noting.suspends {
            Some(true) => self.tell(&job, "Suspended", "Job suspended"),
            Some(false) => self.tell(&job, "Resumed", "Job resumed"),
            None => {}
        }
        let freed = self.untrack(&noting.settled, untracking).await;
        let (status, is_over) = conclude(&job, &self.pods(&job, selector), &noting, now);
        let Some(job) = self.write(&job, &status).await? else {
            return Ok(());
        };
        if let Some(verdict) = noting.verdict.as_ref().filter(|_| is_over) {
            self.tell_end(&job, verdict);
        }
        match freed {
            Ok(_) => Ok(()),
            Err((_, error)) => Err(error).doing("counting the pods of job", &key),
        }
    }

    fn tell(&self, job: &Job, reason: &str, message: &str) {
        self.recorder
            .normal(Reference::to(job), reason, message.to_owned());
    }

    fn tell_end(&self, job: &Job, verdict: &Verdict) {
        let about = Reference::to(job);
        if !verdict.succeeds {
            self.recorder
                .warning(about, &verdict.reason, verdict.message.clone());
            return;
        }
        let succeeded = job.status.as_ref().and_then(|status| status.succeeded);
        let completions = spec_of(job).and_then(|spec| spec.completions);
        if completions.is_some_and(|completions| succeeded.unwrap_or(0) > completions) {
            let message = "Too many succeeded pods running after completion count reached";
            self.recorder
                .warning(about, "TooManySucceededPods", message.to_owned());
        }
        self.tell(job, "Completed", "Job completed");
    }

    /// Writes a status, if it is not the job's already. None when the job is gone.
    async fn write(&self, job: &Job, status: &JobStatus) -> Result<Option<Job>> {
        let mut changed = job.clone();
        if job.status.as_ref() == Some(status) {
            return Ok(Some(changed));
        }
        changed.status = Some(status.clone());
        let key = Key::of(&job.metadata);
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await;
        let answer = written.as_ref().ok().cloned();
        match taken_in(written, &api, &self.context.jobs, &key.name).await {
            Err(error) if code(&error) == Some(404) => Ok(None),
            other => {
                other.doing("updating the status of job", &key)?;
                Ok(answer)
            }
        }
    }
}
