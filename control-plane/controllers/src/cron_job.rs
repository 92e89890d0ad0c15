//! CronJob: makes a job at each time of a schedule, and keeps the last of those that are over.
//!
//! The name of a job tells its time, so that there is one for each, whatever was lost of an earlier pass.

mod plan;
#[cfg(test)]
mod tests;
mod times;

use std::sync::Arc;

use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Informers, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::plan::{Told, due, excess, forget, job_of, normal, observed, remember, warning};
use crate::context::Context;
use crate::error::{Doing, Error, Result, code, namespace_terminating, taken_in, words};

pub(crate) const COMPONENT: &str = "cronjob-controller";
const AT_ONCE: usize = 5;

struct Controller {
    context: Arc<Context>,
    cron_jobs: Informer<CronJob>,
    recorder: Recorder,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let controller = Arc::new(Controller {
        context: context.clone(),
        cron_jobs: informers.of(),
        recorder,
    });
    let stop = context.stop.clone();
    let filled = controller.cron_jobs.synced();
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    let queue = Arc::new(Queue::<Key>::default());
    controller.cron_jobs.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(cron) = change.new {
                queue.add(Key::of(&cron.metadata));
            }
        }
    }));
    context.jobs.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            let owner = change.last().and_then(|job| {
                let owner = controller_of(&job.metadata)?;
                let namespace = job.metadata.namespace.as_deref()?;
                (owner.kind == "CronJob").then(|| Key::new(namespace, &owner.name))
            });
            if let Some(key) = owner {
                queue.add(key);
            }
        }
    }));
    runner::run("cronjob", queue, AT_ONCE, stop, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

fn is_of(cron: &CronJob, job: &Job) -> bool {
    controller_of(&job.metadata).is_some_and(|owner| Some(&owner.uid) == cron.metadata.uid.as_ref())
}

impl Controller {
    fn tell(&self, cron: &CronJob, told: Told) {
        let about = Reference::to(cron);
        match told.is_warning {
            true => self.recorder.warning(about, told.reason, told.message),
            false => self.recorder.normal(about, told.reason, told.message),
        }
    }

    fn jobs(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let Some(cron) = self.cron_jobs.get(key) else {
            return Ok(Next::Changed);
        };
        let uid = cron.metadata.uid.as_deref().unwrap_or_default();
        let mut jobs = self.context.jobs.owned_by(uid);
        jobs.retain(|job| is_of(&cron, job));
        let (mut status, told) = observed(&cron, &jobs);
        let due = due(&cron, &status, self.context.clock.now());
        for reference in &due.replaced {
            let name = reference.name.as_deref().unwrap_or_default();
            self.delete(&cron, name, reference.uid.as_ref()).await?;
        }
        let replaced = due.replaced.iter().map(|known| known.uid.as_ref());
        forget(&mut status, &replaced.collect());
        let made = match due.time {
            Some(time) => self.make(&cron, &mut status, time).await,
            None => Ok(()),
        };
        self.write(&cron, status).await?;
        for told in told.into_iter().chain(due.told) {
            self.tell(&cron, told);
        }
        made?;
        for job in excess(&cron, &jobs) {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            self.delete(&cron, name, job.metadata.uid.as_ref()).await?;
        }
        Ok(due.wake.map_or(Next::Changed, Next::After))
    }

    /// Makes the job for a time, unless it is there.
    async fn make(
        &self,
        cron: &CronJob,
        status: &mut CronJobStatus,
        time: Timestamp,
    ) -> Result<()> {
        let key = Key::of(&cron.metadata);
        let wanted = job_of(cron, time);
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let api = self.jobs(&key.namespace);
        let error = match api.create(&PostParams::default(), &wanted).await {
            Ok(job) => {
                self.tell(
                    cron,
                    normal("SuccessfulCreate", format!("Created job {name}")),
                );
                remember(status, &job, time);
                self.context.jobs.observe(job);
                return Ok(());
            }
            Err(error) => error,
        };
        if namespace_terminating(&error) {
            return Ok(());
        }
        if code(&error) == Some(409) {
            let there = api
                .get_opt(&name)
                .await
                .doing("looking at a job of", &key)?;
            if let Some(job) = there.filter(|job| is_of(cron, job)) {
                // It was made before, by an answer that never arrived.
                remember(status, &job, time);
                self.context.jobs.observe(job);
                return Ok(());
            }
        }
        let why = words(&error);
        self.tell(
            cron,
            warning("FailedCreate", format!("Error creating job: {why}")),
        );
        Err(Error::Refused {
            object: key.to_string(),
            why,
        })
    }

    async fn delete(&self, cron: &CronJob, name: &str, uid: Option<&String>) -> Result<()> {
        let key = Key::of(&cron.metadata);
        let parameters = DeleteParams::background().preconditions(Preconditions {
            uid: uid.cloned(),
            resource_version: None,
        });
        match self.jobs(&key.namespace).delete(name, &parameters).await {
            Ok(answer) => {
                self.tell(
                    cron,
                    normal("SuccessfulDelete", format!("Deleted job {name}")),
                );
                if let Some(job) = answer.left() {
                    self.context.jobs.observe_deleting(job);
                }
                Ok(())
            }
            // Gone, or another under its name.
            Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {}", words(&error));
                self.tell(cron, warning("FailedDelete", message));
                Err(error).doing("deleting a job of", &key)
            }
        }
    }

    async fn write(&self, cron: &CronJob, status: CronJobStatus) -> Result<()> {
        if cron.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = Key::of(&cron.metadata);
        let mut changed = cron.clone();
        changed.status = Some(status);
        let api: Api<CronJob> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await;
        match taken_in(written, &api, &self.cron_jobs, &key.name).await {
            Err(error) if code(&error) == Some(404) => Ok(()),
            other => other.doing("updating the status of cron job", &key),
        }
    }
}
