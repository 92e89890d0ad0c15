//! How far a rollout is, in kubectl's words, and why it ended where it did not succeed.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};

use super::seen::{condition, revision_of};
use crate::output;

/// How far a rollout is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done(String),
    Waiting(String),
    Failed(String),
}

/// The state of a rollout as its Deployment shows it; of a certain revision, or of whichever there is.
pub(super) fn progress(deployment: &Deployment, revision: Option<i64>) -> Progress {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let running = revision_of(&deployment.metadata);
    if let Some(wanted) = revision.filter(|wanted| *wanted > 0 && *wanted != running) {
        return Progress::Failed(format!(
            "desired revision ({wanted}) is different from the running revision ({running})"
        ));
    }
    let status = deployment.status.clone().unwrap_or_default();
    if deployment.metadata.generation > status.observed_generation {
        return Progress::Waiting(
            "Waiting for deployment spec update to be observed...".to_owned(),
        );
    }
    if let Some(rolled_back) = condition(deployment, "RolledBack")
        && rolled_back.status == "True"
    {
        return Progress::Failed(format!(
            "deployment \"{name}\" was rolled back: {}",
            message(rolled_back)
        ));
    }
    let exceeded = condition(deployment, "Progressing")
        .is_some_and(|known| known.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    if exceeded {
        let why = condition(deployment, "ReplicaFailure")
            .map(|failure| format!(": {}", message(failure)));
        return Progress::Failed(format!(
            "deployment \"{name}\" exceeded its progress deadline{}",
            why.unwrap_or_default()
        ));
    }
    let spec = deployment.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or(0);
    let total = status.replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let waiting = |what: String| {
        Progress::Waiting(format!(
            "Waiting for deployment \"{name}\" rollout to finish: {what}..."
        ))
    };
    if updated < wanted {
        return waiting(format!(
            "{updated} out of {wanted} new replicas have been updated"
        ));
    }
    if total > updated {
        return waiting(format!(
            "{} old replicas are pending termination",
            total.saturating_sub(updated)
        ));
    }
    if available < updated {
        return waiting(format!(
            "{available} of {updated} updated replicas are available"
        ));
    }
    Progress::Done(format!("deployment \"{name}\" successfully rolled out"))
}

/// What a condition says, without what would command the terminal.
fn message(condition: &DeploymentCondition) -> String {
    output::harmless(condition.message.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::REVISION;
    use super::*;

    fn of(deployment: Value) -> Progress {
        progress(&read(deployment), None)
    }

    fn read(deployment: Value) -> Deployment {
        serde_json::from_value(deployment).expect("a Deployment")
    }

    #[test]
    fn a_rollout_that_failed_ends_with_the_reason() {
        let with = |generation: i64, conditions: Value| {
            of(json!({
                "metadata": {"name": "web", "generation": generation},
                "spec": {"replicas": 1},
                "status": {"observedGeneration": 2, "updatedReplicas": 1, "replicas": 1, "availableReplicas": 1,
                    "conditions": conditions},
            }))
        };
        let exceeded =
            json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
        let rolled_back = json!({"type": "RolledBack", "status": "True", "reason": "CrashLoopBackOff",
            "message": "pod web-1, container c: \u{1b}[31mCrashLoopBackOff"});
        let failed = |words: &str| Progress::Failed(format!("deployment \"web\" {words}"));
        assert_eq!(
            with(2, json!([exceeded, rolled_back])),
            failed("was rolled back: pod web-1, container c: ^[[31mCrashLoopBackOff")
        );
        assert_eq!(
            with(2, json!([exceeded])),
            failed("exceeded its progress deadline")
        );
        let refused =
            json!({"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"});
        assert_eq!(
            with(2, json!([exceeded, refused])),
            failed("exceeded its progress deadline: exceeded quota")
        );
        // What a later change comes to is not known yet.
        assert!(matches!(
            with(3, json!([exceeded, rolled_back])),
            Progress::Waiting(_)
        ));
    }

    #[test]
    fn another_revision_than_the_one_asked_for_is_a_failure() {
        let deployment = read(json!({
            "metadata": {"name": "web", "annotations": {REVISION: "4"}}, "spec": {"replicas": 0}}));
        assert!(matches!(progress(&deployment, Some(4)), Progress::Done(_)));
        assert!(matches!(progress(&deployment, Some(0)), Progress::Done(_)));
        assert_eq!(
            progress(&deployment, Some(3)),
            Progress::Failed(
                "desired revision (3) is different from the running revision (4)".to_owned()
            )
        );
    }

    #[test]
    fn a_rollout_is_told_step_by_step() {
        let state = |updated: i64, total: i64, available: i64| {
            of(json!({
                "metadata": {"name": "web", "generation": 2},
                "spec": {"replicas": 3},
                "status": {"observedGeneration": 2, "updatedReplicas": updated, "replicas": total, "availableReplicas": available},
            }))
        };
        let waiting = |what: &str| {
            Progress::Waiting(format!(
                "Waiting for deployment \"web\" rollout to finish: {what}..."
            ))
        };
        assert_eq!(
            state(1, 4, 3),
            waiting("1 out of 3 new replicas have been updated")
        );
        assert_eq!(
            state(3, 4, 3),
            waiting("1 old replicas are pending termination")
        );
        assert_eq!(
            state(3, 3, 2),
            waiting("2 of 3 updated replicas are available")
        );
        assert_eq!(
            state(3, 3, 3),
            Progress::Done("deployment \"web\" successfully rolled out".to_owned())
        );
        let unseen = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}});
        assert!(matches!(of(unseen), Progress::Waiting(line) if line.contains("to be observed")));
    }
}
