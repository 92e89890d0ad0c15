//! DELETE of one object: grace periods, finalizers, propagation, preconditions.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Revision};
use serde_json::{Value, json};

use super::update::{is_released, store_leaving};
use crate::codec;
use crate::context::{ATTEMPTS, Context, dry_run, meta};
use crate::response::Answer;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// DeleteOptions, from the body and the query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) grace_period: Option<i64>,
    pub(crate) propagation: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
}

impl Options {
    /// Reads both places; the body counts where it says something.
    pub(crate) fn read(context: &Context<'_>) -> Result<Self, StatusError> {
        let body: Value = match context.body.is_empty() {
            true => json!({}),
            false => match context.content_type().contains("yaml") {
                true => return Err(StatusError::unsupported_media_type(&["application/json"])),
                false => serde_json::from_slice(&context.body).map_err(|error| {
                    StatusError::bad_request(format!("the body is not DeleteOptions: {error}"))
                })?,
            },
        };
        let query = context.query;
        let number = |name: &str| -> Result<Option<i64>, StatusError> {
            query
                .get(name)
                .map(|text| {
                    text.parse().map_err(|_| {
                        StatusError::bad_request(format!(
                            "strconv.ParseInt: parsing {text:?}: invalid syntax"
                        ))
                    })
                })
                .transpose()
        };
        let grace_period = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => number("gracePeriodSeconds")?,
        };
        let mut propagation = body["propagationPolicy"]
            .as_str()
            .or_else(|| query.get("propagationPolicy"))
            .map(str::to_owned);
        let orphan_dependents = body["orphanDependents"].as_bool().or_else(|| {
            query
                .get("orphanDependents")
                .map(|_| query.flag("orphanDependents"))
        });
        if let Some(orphan) = orphan_dependents {
            propagation
                .get_or_insert_with(|| if orphan { "Orphan" } else { "Background" }.to_owned());
        }
        if let Some(policy) = &propagation
            && !["Foreground", "Background", "Orphan"].contains(&policy.as_str())
        {
            let mut errors = ErrorList::default();
            errors.not_supported(
                &Path::new("propagationPolicy"),
                policy,
                &["Background", "Foreground", "Orphan"],
            );
            return Err(StatusError::invalid_kind(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                errors,
            ));
        }
        let mut dry_runs: Vec<String> = body["dryRun"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect();
        dry_runs.extend(query.all("dryRun").iter().cloned());
        let precondition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self {
            grace_period,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run: dry_run(&dry_runs, "DeleteOptions")?,
        })
    }

    fn check(
        &self,
        context: &Context<'_>,
        current: &Value,
        entry: &Entry,
    ) -> Result<(), StatusError> {
        let info = context.resource.info();
        if let Some(uid) = self
            .uid
            .as_deref()
            .filter(|uid| *uid != meta(current, "uid"))
        {
            return Err(StatusError::precondition(
                info,
                context.name(),
                &format!(
                    "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                    meta(current, "uid")
                ),
            ));
        }
        let revision = entry.modify_revision.to_string();
        if let Some(asked) = self
            .resource_version
            .as_deref()
            .filter(|asked| *asked != revision)
        {
            return Err(StatusError::precondition(
                info,
                context.name(),
                &format!(
                    "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
                ),
            ));
        }
        Ok(())
    }
}

/// What became of an object.
pub(crate) enum Deleted {
    /// It is gone; its last state.
    Gone(Value),
    /// It is marked, and goes when its finalizers or its grace period allow it.
    Marked(bytes::Bytes, Revision),
}

/// Deletes the object that the path names.
pub(crate) async fn delete(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let options = Options::read(context)?;
    context.api.admission.delete(context)?;
    match delete_one(context, &options).await? {
        Deleted::Marked(value, revision) => Ok(Answer::object(info, &value, revision)),
        Deleted::Gone(object) if returns_object(info.kind) => Ok(Answer::value(&object)),
        Deleted::Gone(object) => {
            let mut details =
                json!({"name": context.name(), "kind": info.plural, "uid": meta(&object, "uid")});
            if !info.group.is_empty() {
                *details.member(&["group"]) = json!(info.group);
            }
            Ok(Answer::value(&json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            })))
        }
    }
}

/// Kinds whose deletion answers with the object.
fn returns_object(kind: &str) -> bool {
    [
        "Pod",
        "Service",
        "ServiceAccount",
        "PodTemplate",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "ResourceQuota",
    ]
    .contains(&kind)
}

/// Marks or removes one object; shared with deletecollection and eviction.
pub(crate) async fn delete_one(
    context: &Context<'_>,
    options: &Options,
) -> Result<Deleted, StatusError> {
    let info = context.resource.info();
    for _ in 0..ATTEMPTS {
        let entry = context.current()?;
        let mut object = codec::decode(info, &entry.value)?;
        options.check(context, &object, &entry)?;
        let before = object.clone();
        mark(context, &mut object, options);
        if options.dry_run {
            return Ok(Deleted::Marked(
                codec::encode(&object)?,
                entry.modify_revision,
            ));
        }
        if object == before && !is_released(&object) {
            return Ok(Deleted::Marked(entry.value.clone(), entry.modify_revision));
        }
        // Only pods are marked before they go; anything else that goes at once is last seen as it was.
        let at_once = info.kind != "Pod" && before["metadata"]["deletionTimestamp"].is_null();
        let last = at_once.then(|| entry.value.clone());
        if let Some((value, revision)) = store_leaving(context, &entry, &object, last).await? {
            return match is_released(&object) {
                false => Ok(Deleted::Marked(value, revision)),
                true => {
                    // What a reader saw last carries the revision of its deletion for pods, and of its last change
                    // for everything else.
                    *object.member(&["metadata", "resourceVersion"]) = json!(
                        match info.kind {
                            "Pod" => revision,
                            _ => entry.modify_revision,
                        }
                        .to_string()
                    );
                    if info.kind != "Pod" {
                        if let Some(metadata) =
                            object.get_mut("metadata").and_then(Value::as_object_mut)
                            && at_once
                        {
                            metadata.remove("deletionTimestamp");
                            metadata.remove("deletionGracePeriodSeconds");
                        }
                        *object.member(&["metadata", "generation"]) =
                            before["metadata"]["generation"].clone();
                        if object["metadata"]["generation"].is_null()
                            && let Some(metadata) =
                                object.get_mut("metadata").and_then(Value::as_object_mut)
                        {
                            metadata.remove("generation");
                        }
                    }
                    Ok(Deleted::Gone(object))
                }
            };
        }
    }
    Err(StatusError::conflict(
        info,
        context.name(),
        "the object keeps being modified; try again",
    ))
}

/// Sets the marks of deletion.
fn mark(context: &Context<'_>, object: &mut Value, options: &Options) {
    let info = context.resource.info();
    let grace = grace_period(info.kind, object, options);
    let already = !object["metadata"]["deletionTimestamp"].is_null();
    if already {
        let pending = object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        // A second deletion may only shorten the wait.
        if grace < pending {
            let deadline = gantry_api::time::parse(meta(object, "deletionTimestamp")).unwrap_or(0);
            let start = deadline - pending * 1_000_000_000;
            *object.member(&["metadata", "deletionTimestamp"]) =
                json!(gantry_api::time::seconds(start + grace * 1_000_000_000));
            *object.member(&["metadata", "deletionGracePeriodSeconds"]) = json!(grace);
        }
    } else {
        let deadline = context.api.clock.now() + grace * 1_000_000_000;
        *object.member(&["metadata", "deletionTimestamp"]) =
            json!(gantry_api::time::seconds(deadline));
        *object.member(&["metadata", "deletionGracePeriodSeconds"]) = json!(grace);
        if let Some(generation) = object["metadata"]["generation"]
            .as_i64()
            .filter(|generation| *generation > 0)
        {
            *object.member(&["metadata", "generation"]) = json!(generation + 1);
        }
    }
    match options.propagation.as_deref() {
        Some("Foreground") => set_finalizers(object, &[FOREGROUND], &[ORPHAN]),
        Some("Orphan") => set_finalizers(object, &[ORPHAN], &[FOREGROUND]),
        Some("Background") => set_finalizers(object, &[], &[ORPHAN, FOREGROUND]),
        _ => {}
    }
    if info.kind == "Namespace" {
        *object.member(&["status", "phase"]) = json!("Terminating");
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("deletionGracePeriodSeconds");
        }
    }
}

/// Seconds until the object goes; only pods have any.
fn grace_period(kind: &str, object: &Value, options: &Options) -> i64 {
    if kind != "Pod" {
        return 0;
    }
    let wanted = options
        .grace_period
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    // Nothing runs that could end gracefully.
    if object["spec"]["nodeName"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
        || phase == "Succeeded"
        || phase == "Failed"
    {
        return 0;
    }
    if wanted < 0 { 1 } else { wanted }
}

fn set_finalizers(object: &mut Value, add: &[&str], remove: &[&str]) {
    let mut finalizers: Vec<Value> = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    finalizers.retain(|finalizer| !remove.iter().any(|name| finalizer == name));
    for name in add {
        if !finalizers.iter().any(|finalizer| finalizer == name) {
            finalizers.push(json!(name));
        }
    }
    match finalizers.is_empty() {
        false => *object.member(&["metadata", "finalizers"]) = Value::Array(finalizers),
        true => {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("finalizers");
            }
        }
    }
}
