//! What rollouts tell Prometheus, through the default registry.

use std::collections::HashMap;
use std::sync::LazyLock;

use gantry_informer::Key;
use gantry_informer::metrics::registered;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, exponential_buckets};
use tokio::time::Instant;

use super::status::{
    NEW_SET_AVAILABLE, PROGRESSING, ROLLED_BACK, TIMED_OUT, condition, is_complete, is_rolled_back,
};

struct Metrics {
    rollouts: IntCounterVec,
    rollbacks: IntCounterVec,
    restoring: Histogram,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let counter = |name, help, label| {
        let counter = IntCounterVec::new(Opts::new(name, help), &[label]);
        registered(counter.expect("the name and the label are well-formed"))
    };
    let buckets = exponential_buckets(0.05, 2.0, 14).expect("the bounds are positive");
    let restoring = HistogramOpts::new(
        "gantry_rollback_duration_seconds",
        "From giving up a revision until all wanted pods are of the one before, and available.",
    );
    Metrics {
        rollouts: counter(
            "gantry_rollouts_total",
            "Rollouts that ended, by how: complete, rolled_back, or deadline_exceeded, which may still be complete later.",
            "result",
        ),
        rollbacks: counter(
            "gantry_rollbacks_total",
            "Revisions that took themselves back, by the reason of the condition RolledBack.",
            "reason",
        ),
        restoring: registered(
            Histogram::with_opts(restoring.buckets(buckets)).expect("the name is well-formed"),
        ),
    }
});

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Complete,
    DeadlineExceeded,
    /// For this reason, which is one of those that `evidence.rs` and `rollback.rs` know.
    RolledBack(String),
}

/// Whether a rollout ends with this change of a Deployment's status.
fn end(before: &Deployment, after: &Deployment) -> Option<End> {
    let turned = |type_: &str, reason: Option<&str>| {
        let was = known(before, type_);
        let is = known(after, type_)?;
        let is_so = |known: &DeploymentCondition| {
            reason.is_none_or(|reason| known.reason.as_deref() == Some(reason))
        };
        let is_new = was.is_none_or(|was| was.status != is.status || !is_so(was));
        (is_new && is_so(is)).then_some(is)
    };
    if let Some(rolled_back) = turned(ROLLED_BACK, None).filter(|known| known.status == "True") {
        return Some(End::RolledBack(
            rolled_back.reason.clone().unwrap_or_default(),
        ));
    }
    if turned(PROGRESSING, Some(NEW_SET_AVAILABLE)).is_some() {
        return Some(End::Complete);
    }
    turned(PROGRESSING, Some(TIMED_OUT)).map(|_| End::DeadlineExceeded)
}

fn known<'a>(deployment: &'a Deployment, type_: &str) -> Option<&'a DeploymentCondition> {
    condition(deployment.status.as_ref()?, type_)
}

/// A rollback under way.
struct Restoring {
    since: Instant,
    /// The template that failed was wanted by this generation.
    generation: Option<i64>,
}

/// Follows rollouts by what is written of them. What a leader before has begun to restore is not timed.
#[derive(Default)]
pub(super) struct Monitor {
    restoring: Mutex<HashMap<Key, Restoring>>,
}

impl Monitor {
    /// Notes what was written.
    pub(super) fn wrote(&self, before: &Deployment, after: &Deployment) {
        let end = end(before, after);
        let count = |result: &str| METRICS.rollouts.with_label_values(&[result]).inc();
        let key = Key::of(&after.metadata);
        let mut restoring = self.restoring.lock();
        match end {
            Some(End::Complete) => count("complete"),
            Some(End::DeadlineExceeded) => count("deadline_exceeded"),
            Some(End::RolledBack(reason)) => {
                count("rolled_back");
                METRICS.rollbacks.with_label_values(&[&reason]).inc();
                let begun = Restoring {
                    since: Instant::now(),
                    generation: after.metadata.generation,
                };
                restoring.insert(key, begun);
                return;
            }
            None => {}
        }
        let Some(begun) = restoring.get(&key) else {
            return;
        };
        let status = after.status.clone().unwrap_or_default();
        let is_back = after.metadata.generation > begun.generation && is_complete(after, &status);
        if is_back {
            let took = begun.since.elapsed().as_secs_f64();
            METRICS.restoring.observe(took);
        }
        if is_back || !is_rolled_back(&status) {
            restoring.remove(&key);
        }
    }

    /// Forgets a Deployment that is gone.
    pub(super) fn gone(&self, key: &Key) {
        self.restoring.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    /// A Deployment of one pod, which is complete unless a generation was not observed.
    fn web(generation: i64, observed: i64, conditions: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "generation": generation},
            "spec": {"replicas": 1, "selector": {}, "template": {}},
            "status": {"observedGeneration": observed, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1,
                "conditions": conditions},
        }))
        .expect("a Deployment")
    }

    fn progressing(status: &str, reason: &str) -> Value {
        json!({"type": PROGRESSING, "status": status, "reason": reason})
    }

    fn rolled_back(reason: &str) -> Value {
        json!([
            {"type": ROLLED_BACK, "status": "True", "reason": reason},
            progressing("False", TIMED_OUT),
        ])
    }

    #[test]
    fn a_rollout_ends_when_its_conditions_turn() {
        let none = json!([]);
        let goes_on = json!([progressing("True", "ReplicaSetUpdated")]);
        let complete = json!([progressing("True", NEW_SET_AVAILABLE)]);
        let late = json!([progressing("False", TIMED_OUT)]);
        let back = rolled_back("CrashLoopBackOff");
        let crashed = Some(End::RolledBack("CrashLoopBackOff".to_owned()));
        for (before, after, expected) in [
            (&none, &goes_on, None),
            (&goes_on, &complete, Some(End::Complete)),
            (&none, &complete, Some(End::Complete)),
            (&complete, &complete, None),
            (&goes_on, &late, Some(End::DeadlineExceeded)),
            (&late, &late, None),
            (&goes_on, &back, crashed.clone()),
            (&late, &back, crashed.clone()),
            (&complete, &back, crashed),
            (&back, &back, None),
            (&back, &complete, Some(End::Complete)),
        ] {
            let (before, after) = (web(2, 2, before.clone()), web(2, 2, after.clone()));
            assert_eq!(end(&before, &after), expected, "{before:?} {after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rollback_is_timed_until_the_template_before_is_complete() {
        let reason = "Reason of a test";
        let monitor = Monitor::default();
        let counted = || METRICS.rollbacks.with_label_values(&[reason]).get();
        let goes_on = web(2, 2, json!([progressing("True", "ReplicaSetUpdated")]));
        let failed = web(2, 2, rolled_back(reason));
        let begun = METRICS.restoring.get_sample_sum();
        let took = || METRICS.restoring.get_sample_sum() - begun;
        monitor.wrote(&goes_on, &failed);
        monitor.wrote(&failed, &failed);
        assert_eq!(
            (counted(), took()),
            (1, 0.0),
            "the template is still the one that failed"
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        let back = web(3, 3, rolled_back(reason));
        monitor.wrote(&failed, &web(3, 2, rolled_back(reason)));
        assert_eq!(took(), 0.0, "it has not been looked at");
        monitor.wrote(&failed, &back);
        monitor.wrote(&back, &back);
        assert_eq!((counted(), took()), (1, 3.0));
        assert!(monitor.restoring.lock().is_empty());
        for _ in 0..2 {
            monitor.wrote(&goes_on, &failed);
            monitor.gone(&Key::new("ns", "web"));
            assert!(monitor.restoring.lock().is_empty());
        }
    }
}
