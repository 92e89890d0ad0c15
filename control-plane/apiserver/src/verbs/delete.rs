//! DELETE of one object: grace periods, finalizers, propagation, preconditions.

use gantry_api::decode::options_request;
use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use gantry_api::kinds::priority_class;
use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use serde_json::{Value, json};

use super::options::{dry_run, refuse};
use super::write::{Write, Written, failed_precondition, is_graceful, is_marked, swap};
use crate::codec;
use crate::context::{Attributes, Context, Operation, meta};
use crate::registry::Resource;
use crate::response::Answer;

const KIND: &str = "DeleteOptions";
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What is told of a deletion that keeps what belongs to the object, because it says nothing of it.
const PRESERVED: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";

/// DeleteOptions, from the body and the query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) grace_period: Option<i64>,
    pub(crate) propagation: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
    /// Whether a client of old asks for what depends on the object to go with it.
    asks_for_dependents: bool,
}

impl Options {
    /// Reads the body, or the query of a request without one.
    pub(crate) fn read(context: &Context<'_>) -> Result<Self, StatusError> {
        let query = context.query;
        let options = match context.body.is_empty() {
            false => options_request(&context.body, context.content_type(), KIND)?,
            true => DeleteOptions {
                grace_period_seconds: query.number("gracePeriodSeconds")?,
                propagation_policy: query.first("propagationPolicy").map(str::to_owned),
                orphan_dependents: query
                    .first("orphanDependents")
                    .map(|_| query.flag("orphanDependents")),
                preconditions: Some(Preconditions {
                    uid: query.get("uid").map(str::to_owned),
                    resource_version: query.get("resourceVersion").map(str::to_owned),
                }),
                dry_run: Some(query.all("dryRun").to_vec()),
                ..DeleteOptions::default()
            },
        };
        Self::of(options)
    }

    /// Refuses options that contradict each other or say what does not exist.
    pub(crate) fn of(options: DeleteOptions) -> Result<Self, StatusError> {
        let mut errors = ErrorList::default();
        let path = Path::new("propagationPolicy");
        if let Some(policy) = &options.propagation_policy {
            if options.orphan_dependents.is_some() {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                errors.invalid(&path, policy, detail);
            }
            if !["Foreground", "Background", "Orphan"].contains(&policy.as_str()) {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                errors.not_supported(&path, policy, &supported);
            }
        }
        let dry_run = dry_run(&options.dry_run.unwrap_or_default(), &mut errors);
        refuse(KIND, errors)?;
        let orphaned = options.orphan_dependents;
        let asks_for_dependents = orphaned == Some(false);
        let orphaned = orphaned.map(|orphan| if orphan { "Orphan" } else { "Background" });
        let preconditions = options.preconditions.unwrap_or_default();
        Ok(Self {
            grace_period: options.grace_period_seconds,
            propagation: options.propagation_policy.or(orphaned.map(str::to_owned)),
            uid: preconditions.uid,
            resource_version: preconditions.resource_version,
            dry_run,
            asks_for_dependents,
        })
    }

    /// Warnings about a deletion of objects of a resource.
    pub(crate) fn warnings(&self, info: &ResourceInfo) -> Vec<String> {
        let preserves = self.propagation.is_none() && is_job(info);
        preserves
            .then(|| PRESERVED.to_owned())
            .into_iter()
            .collect()
    }

    /// Refuses to delete another object, or another version of it, than is meant.
    fn check(&self, context: &Context<'_>, current: &Value) -> Result<(), StatusError> {
        let (info, name) = (context.resource.stored_info(), context.name());
        for (what, meant, found, why) in [
            (
                "UID",
                &self.uid,
                meta(current, "uid"),
                "deleted and then recreated",
            ),
            (
                "ResourceVersion",
                &self.resource_version,
                meta(current, "resourceVersion"),
                "modified",
            ),
        ] {
            let Some(meant) = meant.as_deref().filter(|meant| *meant != found) else {
                continue;
            };
            // Namespaces are looked at before others are.
            if (&*info.group, &*info.kind) == ("", "Namespace") {
                let why = failed_precondition(what, meant, found);
                return Err(StatusError::conflict(info, name, &why));
            }
            let why = format!(
                "the {what} in the precondition ({meant}) does not match the {what} in record ({found}). The object might have been {why}"
            );
            return Err(StatusError::precondition(info, name, &why));
        }
        Ok(())
    }
}

/// Deletes the object that the path names.
pub(crate) async fn delete(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = Options::read(context)?;
    let warnings = options.warnings(context.resource.stored_info());
    let answer = delete_named(context, &options).await;
    Ok(Answer::of(answer).with_warnings(warnings))
}

async fn delete_named(context: &Context<'_>, options: &Options) -> Result<Answer, StatusError> {
    let info = context.resource.stored_info();
    may_go(info, context.name())?;
    let deleted = delete_one(context, options).await?;
    if !deleted.gone {
        let mut answer = deleted.answer();
        // It is not done yet.
        if options.asks_for_dependents {
            answer.status = StatusCode::ACCEPTED;
        }
        return Ok(answer);
    }
    if returns_object(&info.kind) {
        return Ok(Answer::value(&last_state(context.resource, deleted)?));
    }
    let uid = meta(&deleted.object, "uid");
    let mut details = json!({"name": context.name(), "kind": info.plural, "uid": uid});
    if !info.group.is_empty() {
        *details.member(&["group"]) = json!(info.group);
    }
    Ok(Answer::value(&json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })))
}

/// Refuses to delete a class of the system by its name. As in Kubernetes, who deletes all classes deletes these too.
fn may_go(info: &ResourceInfo, name: &str) -> Result<(), StatusError> {
    let is_class = (&*info.group, &*info.plural) == (priority_class::GROUP, priority_class::PLURAL);
    match is_class
        && priority_class::SYSTEM
            .iter()
            .any(|class| class.name == name)
    {
        true => {
            let why = "this is a system priority class and cannot be deleted";
            Err(StatusError::forbidden(info, name, why))
        }
        false => Ok(()),
    }
}

/// What a reader is told of an object that is gone: one that was told to end first carries the revision of its deletion, any
/// other that of its last change, and is what it was before it was marked.
fn last_state(resource: &Resource, deleted: Written) -> Result<Value, StatusError> {
    let (mut object, before) = (deleted.object, &deleted.before);
    if is_graceful(resource.info()) {
        *object.member(&["metadata", "resourceVersion"]) = json!(deleted.revision.to_string());
        return Ok(object);
    }
    match is_marked(&before.value) {
        true => Ok(object),
        false => codec::decode_for_client(resource, before),
    }
}

fn is_job(info: &ResourceInfo) -> bool {
    (&*info.group, &*info.kind) == ("batch", "Job")
}

/// Kinds whose objects leave behind what belongs to them where nothing else is said, as they did before anything was
/// collected.
fn orphans_by_default(info: &ResourceInfo) -> bool {
    is_job(info) || (&*info.group, &*info.kind) == ("", "ReplicationController")
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

/// Marks or removes one object; shared with deletecollection.
pub(crate) async fn delete_one(
    context: &Context<'_>,
    options: &Options,
) -> Result<Written, StatusError> {
    delete_telling(context, options, |_| {}).await
}

/// As [`delete_one`], of an object that is told something on its way, in the same write.
pub(super) async fn delete_telling(
    context: &Context<'_>,
    options: &Options,
    tell: impl Fn(&mut Value) + Send + Sync,
) -> Result<Written, StatusError> {
    let attributes = Attributes {
        context,
        operation: Operation::Delete,
    };
    let write = Write::own(Operation::Delete, options.dry_run);
    swap(context, write, None, |current| {
        options.check(context, current)?;
        context.api.admission.delete(&attributes)?;
        let mut object = current.clone();
        tell(&mut object);
        mark(context, &mut object, options);
        Ok(object)
    })
    .await
}

/// Sets the marks of deletion.
fn mark(context: &Context<'_>, object: &mut Value, options: &Options) {
    let info = context.resource.info();
    let already = !object["metadata"]["deletionTimestamp"].is_null();
    if already {
        // Of what waits, a second deletion may only shorten that, and says nothing else. A namespace waits for what is in it.
        let waits = object["metadata"]["deletionGracePeriodSeconds"].as_i64() > Some(0);
        if is_filled(info, object) || waits && !shorten(object, options, context.api.clock.now()) {
            return;
        }
    } else {
        let grace = grace_period(&info.kind, object, options);
        let deadline = context.api.clock.now().saturating_add(nanos(grace));
        *object.member(&["metadata", "deletionTimestamp"]) =
            json!(gantry_api::time::seconds(deadline));
        *object.member(&["metadata", "deletionGracePeriodSeconds"]) = json!(grace);
        if let Some(generation) = object["metadata"]["generation"]
            .as_i64()
            .filter(|generation| *generation > 0)
        {
            *object.member(&["metadata", "generation"]) = json!(generation.saturating_add(1));
        }
    }
    match propagation(info, object, options) {
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

/// Whether it is a namespace that is not known to be empty.
fn is_filled(info: &ResourceInfo, object: &Value) -> bool {
    let finalizers = object["spec"]["finalizers"].as_array();
    info.kind == "Namespace" && finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

/// What becomes of the objects that it owns; nothing waits for what an event owns.
fn propagation<'a>(info: &ResourceInfo, object: &Value, options: &'a Options) -> Option<&'a str> {
    if info.kind == "Event" {
        return Some("Background");
    }
    let orphans = orphans_by_default(info) && !says_what_follows(object);
    let unsaid = orphans.then_some("Orphan");
    options.propagation.as_deref().or(unsaid)
}

/// Whether an object's finalizers say what becomes of what belongs to it.
fn says_what_follows(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    let mut finalizers = finalizers.into_iter().flatten();
    finalizers.any(|finalizer| finalizer == ORPHAN || finalizer == FOREGROUND)
}

/// Lets what has been told to end do so sooner, where a client says when; whether that is so. `now` in nanoseconds.
fn shorten(object: &mut Value, options: &Options, now: i64) -> bool {
    let pending = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let wanted = options.grace_period.map(at_least_a_second);
    let (Some(pending), Some(mut grace)) = (pending, wanted) else {
        return false;
    };
    if grace >= pending {
        return false;
    }
    let deadline = gantry_api::time::parse(meta(object, "deletionTimestamp")).unwrap_or(0);
    let start = deadline.saturating_sub(nanos(pending));
    let mut deadline = start.saturating_add(nanos(grace));
    if deadline < now {
        deadline = now;
        // That long has passed. Its node ends it all the same, unless nobody is to wait for that.
        grace = grace.min(1);
    }
    *object.member(&["metadata", "deletionTimestamp"]) = json!(gantry_api::time::seconds(deadline));
    *object.member(&["metadata", "deletionGracePeriodSeconds"]) = json!(grace);
    true
}

/// A grace period; one below zero is a second.
fn at_least_a_second(seconds: i64) -> i64 {
    if seconds < 0 { 1 } else { seconds }
}

/// Seconds in nanoseconds; those too far off are the last there are.
fn nanos(seconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000)
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
    at_least_a_second(wanted)
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

#[cfg(test)]
mod tests {
    use gantry_api::kind::Kind;
    use gantry_api::kinds::replication_controller::ReplicationControllerKind;
    use http::Method;

    use super::*;
    use crate::ApiServer;
    use crate::testing::{ask, server, told};

    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    const PODS: &str = "/api/v1/namespaces/default/pods";

    async fn send(server: &ApiServer, method: Method, uri: &str, body: &str) -> (u16, Value) {
        let media_type = match body.starts_with('{') {
            true => "application/json",
            false => "application/yaml",
        };
        let response = ask(server, method, uri, media_type, body.to_owned()).await;
        let status = response.status().as_u16();
        (status, told(response).await)
    }

    #[tokio::test]
    async fn options_are_of_the_query_or_of_a_body_in_any_format() {
        let server = server().await;
        let held = json!({"metadata": {"name": "m", "finalizers": ["example.com/a"]}});
        let made = send(&server, Method::POST, MAPS, &held.to_string()).await;
        assert_eq!(made.0, 201);
        let delete = async |query: &str, body: &str| {
            send(&server, Method::DELETE, &format!("{MAPS}/m?{query}"), body).await
        };
        for query in ["uid=other", "resourceVersion=1"] {
            assert_eq!(delete(query, "").await.0, 409, "{query}");
        }
        assert_eq!(delete("", "preconditions:\n  uid: other\n").await.0, 409);
        assert_eq!(delete("", "kind: Pod\napiVersion: v1\n").await.0, 400);
        assert_eq!(delete("propagationPolicy=", "").await.0, 422);
        let (status, map) = delete("orphanDependents=false", "").await;
        assert_eq!(status, 202, "it is not done yet: {map}");
        // Nothing waits for it to end: what becomes of what it owns may be said anew.
        for (policy, finalizers) in [
            ("Orphan", json!(["example.com/a", "orphan"])),
            ("Background", json!(["example.com/a"])),
        ] {
            let (status, map) = delete(&format!("propagationPolicy={policy}"), "").await;
            assert_eq!(status, 200);
            assert_eq!(map["metadata"]["finalizers"], finalizers);
        }
    }

    #[tokio::test]
    async fn a_second_deletion_only_shortens_the_wait() {
        let server = server().await;
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}
        });
        let made = send(&server, Method::POST, PODS, &pod.to_string()).await;
        assert_eq!(made.0, 201);
        for (query, left) in [
            ("gracePeriodSeconds=60", 60),
            ("", 60),
            ("gracePeriodSeconds=90", 60),
            ("gracePeriodSeconds=40", 40),
            ("gracePeriodSeconds=-5", 1),
        ] {
            let uri = format!("{PODS}/p?{query}");
            let (status, pod) = send(&server, Method::DELETE, &uri, "").await;
            assert_eq!(status, 200, "{pod}");
            let seconds = &pod["metadata"]["deletionGracePeriodSeconds"];
            assert_eq!(seconds, &json!(left), "{query}");
        }
    }

    #[test]
    fn nothing_is_to_have_gone_before_it_is_told_to() {
        let start = gantry_api::time::parse("2026-01-02T03:00:00Z").expect("a time");
        let told = json!({"metadata": {
            "deletionTimestamp": "2026-01-02T03:01:00Z", "deletionGracePeriodSeconds": 60
        }});
        for (grace, deadline, left) in [
            (55, "2026-01-02T03:00:55Z", 55),
            (40, "2026-01-02T03:00:50Z", 1),
            (0, "2026-01-02T03:00:50Z", 0),
        ] {
            let mut pod = told.clone();
            let options = Options {
                grace_period: Some(grace),
                ..Options::default()
            };
            assert!(shorten(&mut pod, &options, start + nanos(50)));
            let expected = json!({"metadata": {
                "deletionTimestamp": deadline, "deletionGracePeriodSeconds": left
            }});
            assert_eq!(pod, expected);
        }
    }

    #[tokio::test]
    async fn another_namespace_than_is_meant_stays() {
        let server = server().await;
        let (status, answer) = send(
            &server,
            Method::DELETE,
            "/api/v1/namespaces/default?uid=other",
            "",
        )
        .await;
        let message = answer["message"].as_str().unwrap_or_default();
        let expected = "Operation cannot be fulfilled on namespaces \"default\": Precondition failed: UID in precondition: other, UID in object meta: ";
        // Before it is said that nobody may delete it.
        assert!(status == 409 && message.starts_with(expected), "{message}");
        let none = "/api/v1/namespaces/none?uid=other";
        assert_eq!(send(&server, Method::DELETE, none, "").await.0, 404);
        // One that goes already waits for what is in it, whatever else is said.
        let namespaces = "/api/v1/namespaces";
        let made = send(
            &server,
            Method::POST,
            namespaces,
            r#"{"metadata":{"name":"n"}}"#,
        )
        .await;
        assert_eq!(made.0, 201);
        for query in ["", "propagationPolicy=Orphan"] {
            let uri = format!("{namespaces}/n?{query}");
            let (status, namespace) = send(&server, Method::DELETE, &uri, "").await;
            assert_eq!(status, 200);
            assert_eq!(namespace["metadata"]["finalizers"], Value::Null);
        }
    }

    #[test]
    fn pods_of_a_replication_controller_stay_unless_it_is_said_that_they_go() {
        let info: ResourceInfo = ReplicationControllerKind::INFO.into();
        let asked = |policy: Option<&str>| Options {
            propagation: policy.map(str::to_owned),
            ..Options::default()
        };
        let plain = json!({"metadata": {}});
        assert_eq!(propagation(&info, &plain, &asked(None)), Some("Orphan"));
        let background = asked(Some("Background"));
        assert_eq!(propagation(&info, &plain, &background), Some("Background"));
        let waits = json!({"metadata": {"finalizers": [FOREGROUND]}});
        assert_eq!(propagation(&info, &waits, &asked(None)), None);
    }
}
