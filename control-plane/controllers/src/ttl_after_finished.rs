//! Jobs that are over go after as long as they say themselves.

use std::sync::Arc;
use std::time::Duration;

use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::context::Context;
use crate::error::{Doing, Result, code};

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.jobs.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(job) = change.new.filter(|job| expiry(job).is_some()) {
                queue.add(Key::of(&job.metadata));
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("ttl-after-finished", queue, 4, stop, move |key| {
        let context = context.clone();
        async move { reconcile(&context, &key).await }
    })
    .await;
}

/// When the job is to go. None for one that is not over, that says nothing of it, or that goes already.
fn expiry(job: &Job) -> Option<Timestamp> {
    let lifetime = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    let end = conditions.find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = end.last_transition_time.as_ref()?.0;
    let lifetime = Duration::from_secs(u64::try_from(lifetime).unwrap_or(0));
    Some(end.checked_add(lifetime).unwrap_or(Timestamp::MAX))
}

fn left(expiry: Timestamp, now: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(expiry.duration_since(now)).ok();
    left.filter(|left| !left.is_zero())
}

async fn reconcile(context: &Context, key: &Key) -> Result<Next> {
    let Some(job) = context.jobs.get(key) else {
        return Ok(Next::Changed);
    };
    let Some(expiry) = expiry(&job) else {
        return Ok(Next::Changed);
    };
    if let Some(left) = left(expiry, context.clock.now()) {
        return Ok(Next::After(left));
    }
    // As it was seen: it may have been given more time.
    let parameters = DeleteParams::foreground().preconditions(Preconditions {
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
    });
    tracing::info!(job = %key, "deleting a job that was over for as long as it says");
    let api: Api<Job> = Api::namespaced(context.client.clone(), &key.namespace);
    match api.delete(&key.name, &parameters).await {
        Ok(answer) => {
            if let Some(job) = answer.left() {
                context.jobs.observe_deleting(job);
            }
            Ok(Next::Changed)
        }
        Err(error) if code(&error) == Some(404) => Ok(Next::Changed),
        Err(error) => Err(error).doing("deleting job", key),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_job_goes_when_it_was_over_for_long_enough() {
        let job = |metadata: Value, lifetime: Value, conditions: Value| -> Job {
            let job = json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
                "spec": {"template": {}, "ttlSecondsAfterFinished": lifetime},
                "status": {"conditions": conditions},
            });
            serde_json::from_value(job).expect("a job")
        };
        let is = |type_: &str, status: &str| json!([{"type": type_, "status": status, "lastTransitionTime": "1970-01-01T00:01:00Z"}]);
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let here = json!({"name": "j"});
        let leaving = json!({"name": "j", "deletionTimestamp": "1970-01-01T00:01:00Z"});
        for (job, expected) in [
            (
                job(here.clone(), json!(5), is("Complete", "True")),
                Some(65),
            ),
            (job(here.clone(), json!(0), is("Failed", "True")), Some(60)),
            (job(here.clone(), json!(5), is("Complete", "False")), None),
            (
                job(here.clone(), json!(5), is("FailureTarget", "True")),
                None,
            ),
            (job(here, Value::Null, is("Complete", "True")), None),
            (job(leaving, json!(5), is("Complete", "True")), None),
        ] {
            assert_eq!(expiry(&job), expected.map(at), "{job:?}");
        }
        assert_eq!(left(at(65), at(60)), Some(Duration::from_secs(5)));
        assert_eq!(left(at(65), at(65)), None);
        assert_eq!(left(at(65), at(99)), None);
    }
}
