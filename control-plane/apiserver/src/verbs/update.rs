//! PUT and PATCH: the one compare-and-swap loop through which every object changes.

use gantry_api::decode::{check, decode};
use gantry_api::field::{ErrorList, Path};
use gantry_api::kind::WriteScope;
use gantry_api::patch::{self, PatchType};
use gantry_api::status::StatusError;
use gantry_store::{Demand, Entry, Guard, Operation, Transaction};
use http::StatusCode;
use serde_json::{Value, json};

use super::create::{check_namespace, create_decoded};
use crate::codec;
use crate::context::{ATTEMPTS, Committed, Context, meta};
use crate::heavy::Turn;
use crate::response::Answer;

/// Media types of patches, as a refusal lists them.
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Replaces an object or its status.
pub(crate) async fn update(
    context: &Context<'_>,
    scope: WriteScope,
) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let validation = context.field_validation()?;
    let turn = Turn::wait(context.body.len()).await;
    let decoded = turn.work(|| {
        let kind = context.resource.kind.as_ref();
        decode(&context.body, context.content_type(), kind, validation)
    })?;
    let mut object = decoded.object;
    let name = meta(&object, "name").to_owned();
    if name.is_empty() {
        return Err(StatusError::bad_request("name must be provided"));
    }
    if name != context.name() {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            context.name()
        )));
    }
    check_namespace(context, &mut object)?;
    if info.create_on_update
        && scope == WriteScope::Main
        && context.api.store.get(&context.key()).is_none()
    {
        return create_decoded(context, turn, object, decoded.warnings).await;
    }
    let answer = swap(context, scope, Some(turn), |_| Ok(object.clone())).await;
    Ok(Answer::of(answer).with_warnings(decoded.warnings))
}

/// Patches an object or its status.
pub(crate) async fn patch(context: &Context<'_>, scope: WriteScope) -> Result<Answer, StatusError> {
    let kind = context.resource.kind.as_ref();
    let content_type = context.content_type();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let patch_type = PatchType::from_content_type(media_type)
        .ok_or_else(|| StatusError::unsupported_media_type(PATCH_TYPES))?;
    let validation = context.field_validation()?;
    let mut warnings = Vec::new();
    let answer = swap(context, scope, None, |current| {
        let patched = patch::apply(kind, patch_type, current, &context.body)?;
        let decoded = match patch_type {
            PatchType::Json => {
                let text = patched.to_string();
                check(patched, kind, validation)
                    .map_err(|error| not_an_object(context, &text, &error))?
            }
            _ => check(patched, kind, validation)?,
        };
        // Another attempt says the same again.
        warnings = decoded.warnings;
        Ok(decoded.object)
    })
    .await;
    Ok(Answer::of(answer).with_warnings(warnings))
}

/// The result of a JSON patch does not fit the type: the patch is what is wrong.
fn not_an_object(context: &Context<'_>, patched: &str, error: &StatusError) -> StatusError {
    let info = context.resource.info();
    let prefix = format!(
        "{} in version \"{}\" cannot be handled as a {}: ",
        info.kind, info.version, info.kind
    );
    let why = error.message();
    let mut errors = ErrorList::default();
    errors.invalid(
        &Path::new("patch"),
        patched,
        why.strip_prefix(&prefix).unwrap_or(why),
    );
    StatusError::invalid_kind("", "", "", errors)
}

/// Makes a new object of the current one, until nobody else has changed it in between. The turn is that in which the body
/// was read, if it was.
pub(crate) async fn swap(
    context: &Context<'_>,
    scope: WriteScope,
    mut turn: Option<Turn>,
    mut change: impl FnMut(&Value) -> Result<Value, StatusError>,
) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let dry_run = context.dry_run()?;
    for _ in 0..ATTEMPTS {
        let entry = context.current()?;
        let turn = match turn.take().filter(Turn::is_heavy) {
            Some(turn) => turn,
            None => Turn::wait(context.body.len() + entry.value.len()).await,
        };
        let (current, mut prepared) = turn.work(|| {
            let current = codec::decode_for_client(info, &entry)?;
            let object = change(&current)?;
            check_identity(context, &object, &current)?;
            let asked = meta(&object, "resourceVersion");
            let insists =
                !asked.is_empty() && asked != "0" && meta(&current, "resourceVersion") != asked;
            if insists {
                return Err(StatusError::stale(info, context.name()));
            }
            let prepared = context.resource.kind.update(object, &current, scope)?;
            Ok((current, prepared))
        })?;
        let mut transaction = Transaction::default();
        let value = turn.work(|| {
            if scope == WriteScope::Main {
                let admission = &context.api.admission;
                let told = admission.validate(context, &prepared.object, Some(&current))?;
                prepared.warnings.extend(told);
                let object = &mut prepared.object;
                admission.allocate(context, object, Some(&current), &mut transaction)?;
            }
            codec::encode_bounded(&prepared.object, entry.value.len())
        })?;
        let warnings = prepared.warnings;
        if value == entry.value || dry_run {
            return Ok(Answer::object(info, &value, entry.modify_revision).with_warnings(warnings));
        }
        let key = context.key();
        transaction
            .guards
            .insert(0, Guard::ModifiedAt(key.clone(), entry.modify_revision));
        if is_released(&prepared.object) {
            context
                .api
                .admission
                .release(context, &prepared.object, &mut transaction);
            transaction.operations.push(Operation::Delete {
                key,
                last: Some(value.clone()),
            });
        } else {
            let index = codec::index(context.resource.kind.as_ref(), &prepared.object);
            transaction.operations.push(Operation::Put {
                key,
                value: value.clone(),
                index,
            });
        }
        let demand = demand(scope, &prepared.object, &entry, &value);
        drop(turn);
        match context.api.commit(transaction, demand).await? {
            Committed::At(revision) => {
                return Ok(Answer::object(info, &value, revision).with_warnings(warnings));
            }
            // Someone was faster. What the client asked for may still apply to the new state.
            Committed::Conflict(_) => {}
        }
    }
    Err(StatusError::conflict(
        info,
        context.name(),
        "the object keeps being modified; please apply your changes to the latest version and try again",
    ))
}

/// Identity in the body must be that of the object.
fn check_identity(
    context: &Context<'_>,
    object: &Value,
    current: &Value,
) -> Result<(), StatusError> {
    let info = context.resource.info();
    let uid = meta(object, "uid");
    if !uid.is_empty() && uid != meta(current, "uid") {
        let place = match context.namespace() {
            Some(namespace) => format!("{}/{namespace}", info.plural),
            None => info.plural.to_owned(),
        };
        // Clients know the words of Kubernetes' storage.
        return Err(StatusError::conflict(
            info,
            context.name(),
            &format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{place}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                context.name(),
                meta(current, "uid")
            ),
        ));
    }
    Ok(())
}

/// Whether the last finalizer of a deleted object is gone, and nothing else holds it.
pub(crate) fn is_released(object: &Value) -> bool {
    let deleted = !object["metadata"]["deletionTimestamp"].is_null();
    let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
        // A namespace is held by its spec, a pod by its grace period.
        || object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
        || object["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0);
    deleted && !held
}

/// By how many bytes an object may grow, and how large it may be then, for its change not to count as something new: a
/// taint, another number of replicas.
const LITTLE_MORE: usize = 1024;
const LARGEST_LITTLE: usize = 64 << 10;
/// How large the status of an object may make it for the same.
const LARGEST_STATUS: usize = 256 << 10;

/// What the change of an object asks of the servers' disks. It frees something when the object goes, is told to, or loses
/// what holds it; statuses, and what makes an object little larger, are how others learn that they must make room.
fn demand(scope: WriteScope, object: &Value, before: &Entry, value: &bytes::Bytes) -> Demand {
    const MARK: &[u8] = b"\"deletionTimestamp\"";
    let goes = !object["metadata"]["deletionTimestamp"].is_null();
    let was_told = || before.value.windows(MARK.len()).any(|part| part == MARK);
    let little = value.len() <= before.value.len() + LITTLE_MORE && value.len() <= LARGEST_LITTLE;
    if goes && (is_released(object) || value.len() < before.value.len() || !was_told()) {
        Demand::Frees
    } else if little || scope == WriteScope::Status && value.len() <= LARGEST_STATUS {
        Demand::Changes
    } else {
        Demand::Adds
    }
}

/// Writes an object that a client changed outside of its kind's update rules: bindings, finalizers. The caller has made
/// `object` of `entry`.
pub(crate) async fn store(
    context: &Context<'_>,
    entry: &Entry,
    object: &Value,
) -> Result<Option<(bytes::Bytes, gantry_store::Revision)>, StatusError> {
    let value = codec::encode_bounded(object, entry.value.len())?;
    put(context, entry, object, value, None).await
}

/// Writes an object with the marks of its deletion, which it gets however large it is; `last` is what watchers see last
/// when the object goes with this write, where that is not `object`.
pub(crate) async fn store_leaving(
    context: &Context<'_>,
    entry: &Entry,
    object: &Value,
    last: Option<bytes::Bytes>,
) -> Result<Option<(bytes::Bytes, gantry_store::Revision)>, StatusError> {
    put(context, entry, object, codec::encode(object)?, last).await
}

async fn put(
    context: &Context<'_>,
    entry: &Entry,
    object: &Value,
    value: bytes::Bytes,
    last: Option<bytes::Bytes>,
) -> Result<Option<(bytes::Bytes, gantry_store::Revision)>, StatusError> {
    let key = context.key();
    let mut transaction = Transaction {
        guards: vec![Guard::ModifiedAt(key.clone(), entry.modify_revision)],
        operations: Vec::new(),
    };
    if is_released(object) {
        context
            .api
            .admission
            .release(context, object, &mut transaction);
        transaction.operations.push(Operation::Delete {
            key,
            last: Some(last.unwrap_or_else(|| value.clone())),
        });
    } else {
        let index = codec::index(context.resource.kind.as_ref(), object);
        transaction.operations.push(Operation::Put {
            key,
            value: value.clone(),
            index,
        });
    }
    let demand = demand(WriteScope::Main, object, entry, &value);
    match context.api.commit(transaction, demand).await? {
        Committed::At(revision) => Ok(Some((value, revision))),
        Committed::Conflict(_) => Ok(None),
    }
}

/// A success without an object.
pub(crate) fn success(status: StatusCode) -> Answer {
    Answer::value_with(
        status,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": status.as_u16()}),
    )
}
