//! Going back to an earlier revision because somebody asked for it, by the annotation that stands for a field of API versions
//! that are gone; Kubernetes still heeds it.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::plan::Told;
use super::revision::{NOT_COPIED, TEMPLATE_HASH, revision_of, same_template, text};

const ASKED: &str = "deprecated.deployment.rollback.to";

/// The revision that is asked for; zero for the one before the latest.
pub(crate) fn asked(deployment: &Deployment) -> Option<i64> {
    text(&deployment.metadata, ASKED)?.parse().ok()
}

/// The deployment as it is to be written, and what is to be told: with that revision's template, when there is such a
/// revision, and with the question taken out in any case.
pub(crate) fn undo(deployment: &Deployment, sets: &[&ReplicaSet], to: i64) -> (Deployment, Told) {
    let mut changed = deployment.clone();
    if let Some(annotations) = &mut changed.metadata.annotations {
        annotations.remove(ASKED);
    }
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let to = if to == 0 { before_the_latest(sets) } else { to };
    if to == 0 {
        let told = Told::warning(NOT_FOUND, "Unable to find last revision.".to_owned());
        return (changed, told);
    }
    let set = sets.iter().find(|set| revision_of(&set.metadata) == to);
    let Some((set, template)) = set.and_then(|set| Some((set, template_of(set)?))) else {
        let message = "Unable to find the revision to rollback to.".to_owned();
        return (changed, Told::warning(NOT_FOUND, message));
    };
    let spec = changed.spec.get_or_insert_default();
    if same_template(&spec.template, &template) {
        let message = format!(
            "The rollback revision contains the same template as current deployment {name:?}"
        );
        return (changed, Told::warning(UNCHANGED, message));
    }
    spec.template = template;
    // The user's annotations are the revision's own again.
    let annotations = changed.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| NOT_COPIED.contains(&key.as_str()));
    for (key, value) in set.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let message = format!("Rolled back deployment {name:?} to revision {to}");
    (changed, Told::normal("DeploymentRollback", message))
}

const NOT_FOUND: &str = "DeploymentRollbackRevisionNotFound";
const UNCHANGED: &str = "DeploymentRollbackTemplateUnchanged";

/// The template of a set as a deployment has it: without the hash.
pub(crate) fn template_of(set: &ReplicaSet) -> Option<PodTemplateSpec> {
    let mut template = set.spec.as_ref()?.template.clone()?;
    if let Some(labels) = template
        .metadata
        .as_mut()
        .and_then(|metadata| metadata.labels.as_mut())
    {
        labels.remove(TEMPLATE_HASH);
    }
    Some(template)
}

/// The second highest revision; zero when there is none.
fn before_the_latest(sets: &[&ReplicaSet]) -> i64 {
    let mut revisions: Vec<i64> = sets.iter().map(|set| revision_of(&set.metadata)).collect();
    revisions.sort_unstable();
    revisions.iter().rev().nth(1).copied().unwrap_or(0)
}
