//! Pod Security: pods beyond what their namespace allows are refused, and whoever writes them is warned, as its labels say.
//! The rules themselves are in `gantry_api::pod_security`.

use std::time::{Duration, Instant};

use gantry_api::pod_security::{
    Existing, LABEL_PREFIX, Level, Policy, Standard, evaluate, is_significant,
};
use gantry_api::status::StatusError;
use gantry_store::Index;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::{Context, meta};
use crate::registry::table;
use crate::verbs::create::namespace_key;

/// Pods of a namespace that are looked at when it becomes stricter, and for how long.
const EXISTING: usize = 3000;
const LOOK: Duration = Duration::from_secs(1);

/// Where a workload has the template of its pods; `None` for what is no workload.
fn template_path(group: &str, kind: &str) -> Option<&'static str> {
    match (group, kind) {
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        ("", "PodTemplate") => Some("/template"),
        _ => None,
    }
}

/// Judges a valid object that is about to be written, and returns the warnings about it.
pub(super) fn validate(
    context: &Context<'_>,
    object: &Value,
    current: Option<&Value>,
) -> Result<Vec<String>, StatusError> {
    let info = context.resource.info();
    let subresource = context.path.subresource.as_deref();
    match (info.group, info.kind) {
        ("", "Namespace") if subresource.is_none() => namespace(context, object, current),
        // What the other subresources change is not what the rules are about.
        ("", "Pod") if matches!(subresource, None | Some("ephemeralcontainers" | "resize")) => {
            pod(context, object, current)
        }
        (group, kind) if subresource.is_none() => match template_path(group, kind) {
            Some(path) => workload(context, object.pointer(path)),
            None => Ok(Vec::new()),
        },
        _ => Ok(Vec::new()),
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

/// What the kind's own code has just written, as its type.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, StatusError> {
    T::deserialize(value).map_err(|error| {
        StatusError::internal(format!(
            "reading what is to be judged by Pod Security: {error}"
        ))
    })
}

fn pod(
    context: &Context<'_>,
    object: &Value,
    current: Option<&Value>,
) -> Result<Vec<String>, StatusError> {
    let Some(policy) = policy(context) else {
        return Ok(Vec::new());
    };
    let pod: Pod = typed(object)?;
    if let Some(current) = current
        && !is_significant(&pod, &typed(current)?)
    {
        return Ok(Vec::new());
    }
    let spec = pod.spec.unwrap_or_default();
    let violations = evaluate(policy.enforce, &pod.metadata, &spec);
    if !violations.is_empty() {
        let detail = format!(
            "violates PodSecurity \"{}\": {}",
            policy.enforce,
            violations.details()
        );
        let name = meta(object, "name");
        return Err(StatusError::forbidden(
            context.resource.info(),
            name,
            &detail,
        ));
    }
    Ok(told(context, &policy, &pod.metadata, &spec))
}

fn workload(context: &Context<'_>, template: Option<&Value>) -> Result<Vec<String>, StatusError> {
    let (Some(policy), Some(template)) = (policy(context), template) else {
        return Ok(Vec::new());
    };
    let template: PodTemplateSpec = typed(template)?;
    let metadata = template.metadata.unwrap_or_default();
    let spec = template.spec.unwrap_or_default();
    Ok(told(context, &policy, &metadata, &spec))
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
            resource = context.resource.info().plural,
            name = context.path.name.as_deref().or(metadata.name.as_deref()),
            user = context.identity.user,
            violations,
            "audited"
        );
    }
    would(policy.warn).into_iter().collect()
}

/// Labels must be readable when they change; of pods that are there already is told what a stricter level would refuse.
fn namespace(
    context: &Context<'_>,
    object: &Value,
    current: Option<&Value>,
) -> Result<Vec<String>, StatusError> {
    fn of(namespace: &Value) -> (Policy, gantry_api::field::ErrorList) {
        let labels = &namespace["metadata"]["labels"];
        Policy::of(|key| labels[key].as_str())
    }
    let (policy, errors) = of(object);
    let before = current.map(of);
    let is_known = before.as_ref().is_some_and(|(_, known)| *known == errors);
    if !errors.is_empty() && !is_known {
        let name = meta(object, "name");
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
    Ok(existing(context, meta(object, "name"), new))
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
