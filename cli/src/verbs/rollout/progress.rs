//! How far a rollout is, in kubectl's words, and why it ended where it did not succeed.

use serde_json::Value;

use super::REVISION;
use crate::output;

/// How far a rollout is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done(String),
    Waiting(String),
    Failed(String),
}

/// The state of a rollout as its Deployment shows it; of a certain revision, or of whichever there is.
pub(super) fn progress(deployment: &Value, revision: Option<i64>) -> Progress {
    let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
    let number = |pointer: &str| {
        deployment
            .pointer(pointer)
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    let running = deployment["metadata"]["annotations"][REVISION]
        .as_str()
        .and_then(|revision| revision.parse::<i64>().ok())
        .unwrap_or(0);
    if let Some(wanted) = revision.filter(|wanted| *wanted > 0 && *wanted != running) {
        return Progress::Failed(format!(
            "desired revision ({wanted}) is different from the running revision ({running})"
        ));
    }
    if number("/metadata/generation") > number("/status/observedGeneration") {
        return Progress::Waiting(
            "Waiting for deployment spec update to be observed...".to_owned(),
        );
    }
    if let Some(rolled_back) = condition(deployment, "RolledBack")
        && rolled_back["status"] == "True"
    {
        return Progress::Failed(format!(
            "deployment \"{name}\" was rolled back: {}",
            message(rolled_back)
        ));
    }
    let exceeded = condition(deployment, "Progressing")
        .is_some_and(|condition| condition["reason"] == "ProgressDeadlineExceeded");
    if exceeded {
        let why = condition(deployment, "ReplicaFailure")
            .map(|failure| format!(": {}", message(failure)));
        return Progress::Failed(format!(
            "deployment \"{name}\" exceeded its progress deadline{}",
            why.unwrap_or_default()
        ));
    }
    let wanted = deployment
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(1);
    let updated = number("/status/updatedReplicas");
    let total = number("/status/replicas");
    let available = number("/status/availableReplicas");
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
            total - updated
        ));
    }
    if available < updated {
        return waiting(format!(
            "{available} of {updated} updated replicas are available"
        ));
    }
    Progress::Done(format!("deployment \"{name}\" successfully rolled out"))
}

fn condition<'a>(deployment: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = deployment["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == type_)
}

/// What a condition says, without what would command the terminal.
fn message(condition: &Value) -> String {
    output::harmless(condition["message"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(deployment: Value) -> Progress {
        progress(&deployment, None)
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
        let deployment = json!({"metadata": {"name": "web", "annotations": {REVISION: "4"}}, "spec": {"replicas": 0}});
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
