//! Pod Security: pods beyond what their namespace allows are refused, and whoever writes them is warned, as its labels say.
//! The rules themselves are in `gantry_api::pod_security`.

use std::time::{Duration, Instant};

use gantry_api::kind::Draft;
use gantry_api::pod_security::{
    Existing, LABEL_PREFIX, Level, Policy, Standard, evaluate, is_significant,
};
use gantry_api::status::StatusError;
use gantry_store::Index;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Pod, PodSpec, PodTemplate, PodTemplateSpec, ReplicationController,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plugin::{Attributes, Operation, Plugin};
use crate::context::Context;
use crate::tables::{namespace_key, table};

/// Pods of a namespace that are looked at when it becomes stricter, and for how long.
const EXISTING: usize = 3000;
const LOOK: Duration = Duration::from_secs(1);

/// The template of a workload's pods; `None` of what is no workload.
fn template(draft: &dyn Draft) -> Option<&PodTemplateSpec> {
    if let Some(deployment) = draft.typed::<Deployment>() {
        Some(&deployment.spec.as_ref()?.template)
    } else if let Some(set) = draft.typed::<ReplicaSet>() {
        set.spec.as_ref()?.template.as_ref()
    } else if let Some(set) = draft.typed::<StatefulSet>() {
        Some(&set.spec.as_ref()?.template)
    } else if let Some(set) = draft.typed::<DaemonSet>() {
        Some(&set.spec.as_ref()?.template)
    } else if let Some(controller) = draft.typed::<ReplicationController>() {
        controller.spec.as_ref()?.template.as_ref()
    } else if let Some(job) = draft.typed::<Job>() {
        Some(&job.spec.as_ref()?.template)
    } else if let Some(job) = draft.typed::<CronJob>() {
        let job = job.spec.job_template.spec.as_ref()?;
        Some(&job.template)
    } else {
        draft.typed::<PodTemplate>()?.template.as_ref()
    }
}

pub(super) struct PodSecurity;

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation != Operation::Delete
    }

    /// Judges a valid object that is about to be written, and returns the warnings about it.
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let context = attributes.context;
        let subresource = attributes.subresource();
        if attributes.writes("", "Namespace") {
            return namespace(context, draft);
        }
        if let Some(new) = draft.typed::<Pod>() {
            // What the other subresources change is not what the rules are about.
            return match ["", "ephemeralcontainers", "resize"].contains(&subresource) {
                true => pod(context, new, draft.typed_old()),
                false => Ok(Vec::new()),
            };
        }
        match subresource.is_empty() {
            true => Ok(workload(context, template(draft))),
            false => Ok(Vec::new()),
        }
    }
}

/// The policy of the namespace that is written into; `None` when it asks for nothing.
fn policy(context: &Context<'_>) -> Option<Policy> {
    let namespace = context
        .api
        .store
        .get(&namespace_key(context.namespace()?))?;
    of_index(&namespace.index)
}

fn of_index(index: &Index) -> Option<Policy> {
    let mut labels = index.labels.iter();
    if !labels.any(|(key, _)| key.starts_with(LABEL_PREFIX)) {
        return None;
    }
    let (policy, _) = Policy::of(|key| {
        let mut labels = index.labels.iter();
        let found = labels.find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    });
    Some(policy)
}

fn pod(
    context: &Context<'_>,
    pod: &Pod,
    current: Option<&Pod>,
) -> Result<Vec<String>, StatusError> {
    let Some(policy) = policy(context) else {
        return Ok(Vec::new());
    };
    if current.is_some_and(|current| !is_significant(pod, current)) {
        return Ok(Vec::new());
    }
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let violations = evaluate(policy.enforce, &pod.metadata, spec);
    if !violations.is_empty() {
        let detail = format!(
            "violates PodSecurity \"{}\": {}",
            policy.enforce,
            violations.details()
        );
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return Err(StatusError::forbidden(
            context.resource.info(),
            name,
            &detail,
        ));
    }
    Ok(told(context, &policy, &pod.metadata, spec))
}

fn workload(context: &Context<'_>, template: Option<&PodTemplateSpec>) -> Vec<String> {
    let Some(template) = template else {
        return Vec::new();
    };
    let Some(policy) = policy(context) else {
        return Vec::new();
    };
    let (no_metadata, no_spec) = (ObjectMeta::default(), PodSpec::default());
    let metadata = template.metadata.as_ref().unwrap_or(&no_metadata);
    let spec = template.spec.as_ref().unwrap_or(&no_spec);
    told(context, &policy, metadata, spec)
}

/// Tells the log what is audited; returns what the client is warned of.
fn told(
    context: &Context<'_>,
    policy: &Policy,
    metadata: &ObjectMeta,
    spec: &PodSpec,
) -> Vec<String> {
    let would = |standard: Standard| {
        let violations = evaluate(standard, metadata, spec);
        let words = || {
            format!(
                "would violate PodSecurity \"{standard}\": {}",
                violations.details()
            )
        };
        (!violations.is_empty()).then(words)
    };
    if let Some(violations) = would(policy.audit) {
        tracing::info!(
            namespace = context.namespace(),
            resource = &*context.resource.info().plural,
            name = context.path.name.as_deref().or(metadata.name.as_deref()),
            user = context.identity.user,
            violations,
            "audited"
        );
    }
    would(policy.warn).into_iter().collect()
}

/// Labels must be readable when they change; of pods that are there already is told what a stricter level would refuse.
fn namespace(context: &Context<'_>, draft: &dyn Draft) -> Result<Vec<String>, StatusError> {
    let of = |metadata: &ObjectMeta| Policy::of_labels(metadata.labels.as_ref());
    let name = draft.metadata().name.as_deref().unwrap_or_default();
    let (policy, errors) = of(draft.metadata());
    let before = draft.old_metadata().map(of);
    let is_known = before.as_ref().is_some_and(|(_, known)| *known == errors);
    if !errors.is_empty() && !is_known {
        return Err(StatusError::invalid(context.resource.info(), name, errors));
    }
    let Some((before, _)) = before else {
        return Ok(Vec::new());
    };
    let (new, old) = (policy.enforce, before.enforce);
    let is_relaxed = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || is_relaxed {
        return Ok(Vec::new());
    }
    Ok(existing(context, name, new))
}

fn existing(context: &Context<'_>, namespace: &str, standard: Standard) -> Vec<String> {
    let pods = context.api.store.snapshot(&table("", "pods"));
    let (mut found, mut checked, mut total) = (Existing::default(), 0, 0);
    let begun = Instant::now();
    for (_, entry) in pods.range_after(Some(namespace), None) {
        total += 1;
        if checked == EXISTING || begun.elapsed() > LOOK {
            continue;
        }
        checked += 1;
        // The store holds only what the API server wrote.
        let Ok(pod) = serde_json::from_slice::<Pod>(&entry.value) else {
            continue;
        };
        let spec = pod.spec.unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        found.add(name, &evaluate(standard, &pod.metadata, &spec));
    }
    found.warnings(namespace, standard, checked, total)
}
