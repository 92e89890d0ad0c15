//! POST to a collection.

use gantry_api::decode::decode;
use gantry_api::json::Members;
use gantry_api::kind::{Draft, Kind};
use gantry_api::kinds::namespace::NamespaceKind;
use gantry_api::meta::generated_prefix;
use gantry_api::status::StatusError;
use gantry_store::{Demand, Guard, Operation as Change, Revision, Transaction};
use serde_json::{Value, json};

use super::options::WriteOptions;
use super::owners;
use super::write::{Staged, check, complete, in_line, reserve};
use crate::codec;
use crate::context::{Attributes, Committed, Context, Operation, attempts, meta};
use crate::generated_names::random_suffix;
use crate::heavy::Turn;
use crate::response::Answer;
use crate::tables::namespace_key;

/// Decodes, admits, validates and stores a new object.
pub(crate) async fn create(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("CreateOptions")?;
    let turn = Turn::wait(context.body.len()).await;
    let decoded = turn.work(|| {
        let kind = context.resource.kind.as_ref();
        decode(
            &context.body,
            context.content_type(),
            kind,
            options.validation,
        )
    })?;
    let (mut object, mut warnings) = (decoded.object, decoded.warnings);
    warnings.extend(owners::once(&mut object, owners::SENT));
    create_decoded(context, options, turn, object, warnings).await
}

/// Stores a new object that has been decoded; what decoding warned of is said of a refusal as well.
pub(crate) async fn create_decoded(
    context: &Context<'_>,
    options: WriteOptions,
    turn: Turn,
    object: Value,
    warnings: Vec<String>,
) -> Result<Answer, StatusError> {
    let answer = create_object(context, options.dry_run, turn, object).await;
    Ok(Answer::of(answer).with_warnings(warnings))
}

async fn create_object(
    context: &Context<'_>,
    dry_run: bool,
    turn: Turn,
    object: Value,
) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let mut object = object;
    check_namespace(context, &mut object)?;
    if !object["metadata"].is_object() {
        *object.member(&["metadata"]) = json!({});
    }
    // Only what comes by POST must not say so: PUT of an object that is gone makes it anew.
    let posted = context.path.name.is_none();
    let version = meta(&object, "resourceVersion").parse::<u64>();
    let is_versioned = posted && version.is_ok_and(|version| version != 0);
    *object.member(&["metadata", "uid"]) = json!(uuid::Uuid::new_v4().to_string());
    *object.member(&["metadata", "creationTimestamp"]) = json!(context.api.clock.stamp());
    if info.has_generation {
        *object.member(&["metadata", "generation"]) = json!(1);
    }
    let attributes = Attributes {
        context,
        operation: Operation::Create,
    };
    let mut draft = turn.work(|| context.resource.kind.draft(object))?;
    let mut turn = Some(turn);
    complete(&attributes, &mut turn, draft.as_mut()).await?;
    let prefix = draft.metadata().generate_name.as_deref();
    let prefix = generated_prefix(prefix.unwrap_or_default()).to_owned();
    let generated = !prefix.is_empty() && is_unnamed(draft.as_ref());
    let place = match dry_run {
        true => None,
        false => in_line(&attributes, &mut turn).await,
    };
    let mut is_prepared = false;
    for _ in 0..attempts(place.as_ref()) {
        if generated {
            draft.metadata_mut().name = Some(format!("{prefix}{}", random_suffix()));
        }
        let turn = match turn.take() {
            Some(turn) => turn,
            None => Turn::wait(context.body.len()).await,
        };
        let staged = turn.work(|| {
            if !std::mem::replace(&mut is_prepared, true) {
                draft.prepare();
            }
            let warnings = check(&attributes, draft.as_ref())?;
            reserve(&attributes, draft.as_ref(), None, warnings)
        })?;
        let Staged {
            object,
            value,
            index,
            transaction: reserved,
            warnings,
        } = staged;
        let name = meta(&object, "name").to_owned();
        drop(object);
        let key = context.resource.key(context.namespace(), &name);
        let mut transaction = Transaction {
            guards: vec![Guard::Absent(key.clone())],
            operations: reserved.operations,
        };
        if let Some(namespace) = context.namespace() {
            let exists = Guard::Exists(namespace_key(namespace));
            transaction.guards.push(exists);
        }
        transaction.guards.extend(reserved.guards);
        transaction.operations.push(Change::Put {
            key: key.clone(),
            value: value.clone(),
            index,
        });
        if dry_run {
            if let Some(existing) = context.api.store.get(&key) {
                return Err(already_exists(context, &name, &existing.value));
            }
            return Ok(Answer::created(&value, Revision(0)).with_warnings(warnings));
        }
        drop(turn);
        if is_versioned {
            return Err(StatusError::unclassified(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        match context.api.commit(transaction, Demand::Adds).await? {
            Committed::At(revision) => {
                return Ok(Answer::created(&value, revision).with_warnings(warnings));
            }
            Committed::Conflict(0) if generated => {}
            Committed::Conflict(0) => {
                let existing = context.api.store.get(&key);
                let existing = existing
                    .as_ref()
                    .map(|entry| &entry.value[..])
                    .unwrap_or_default();
                return Err(already_exists(context, &name, existing));
            }
            Committed::Conflict(1) if context.namespace().is_some() => {
                let namespace = context.namespace().unwrap_or_default();
                return Err(StatusError::not_found(
                    &NamespaceKind::INFO.into(),
                    namespace,
                ));
            }
            // An address or port was taken this moment, and another is chosen; or a quota was charged by another server.
            Committed::Conflict(_) => {}
        }
    }
    Err(StatusError::timeout(
        "the object could not be created: names, addresses or quotas keep being taken",
        1,
    ))
}

fn is_unnamed(draft: &dyn Draft) -> bool {
    draft
        .metadata()
        .name
        .as_deref()
        .unwrap_or_default()
        .is_empty()
}

fn already_exists(context: &Context<'_>, name: &str, existing: &[u8]) -> StatusError {
    let info = context.resource.stored_info();
    let leaving = codec::decode(context.resource, existing)
        .is_ok_and(|object| !meta(&object, "deletionTimestamp").is_empty());
    let error = StatusError::already_exists(info, name);
    match leaving {
        false => error,
        true => StatusError::new(
            409,
            "AlreadyExists",
            format!("object is being deleted: {}", error.message()),
            error.details().cloned(),
        ),
    }
}

/// The body's namespace must be the path's, when it names one; what is in none loses it.
pub(crate) fn check_namespace(
    context: &Context<'_>,
    object: &mut Value,
) -> Result<(), StatusError> {
    let Some(namespace) = context.namespace() else {
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        if let Some(metadata) = metadata {
            metadata.remove("namespace");
        }
        return Ok(());
    };
    match meta(object, "namespace") {
        "" => {
            if object["metadata"].is_null() {
                *object.member(&["metadata"]) = json!({});
            }
            *object.member(&["metadata", "namespace"]) = json!(namespace);
            Ok(())
        }
        own if own == namespace => Ok(()),
        _ => Err(StatusError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}
