//! PUT and PATCH.

use std::sync::Arc;

use gantry_api::decode::{Decoded, FieldValidation, check, decode};
use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::kind::{ResourceInfo, ResourceKind, WriteScope};
use gantry_api::meta::IMMUTABLE;
use gantry_api::patch::{self, PatchType, Patched};
use gantry_api::status::StatusError;
use serde_json::Value;

use super::create::{check_namespace, create_decoded};
use super::owners;
use super::write::{Write, check_version, must_be, swap};
use crate::authorisation::{Attributes, Target, check_create};
use crate::context::{Context, meta};
use crate::heavy::Turn;
use crate::registry::Resource;
use crate::response::Answer;

/// Replaces an object or its status.
pub(crate) async fn update(
    context: &Context<'_>,
    scope: WriteScope,
) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    let options = context.write_options("UpdateOptions")?;
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
    let mut object = decoded.object;
    check_namespace(context, &mut object)?;
    check_name(context, meta(&object, "name"))?;
    let mut warnings = decoded.warnings;
    warnings.extend(owners::once(&mut object, owners::SENT));
    if info.create_on_update
        && scope == WriteScope::Main
        && context.api.store.get(&context.key()).is_none()
    {
        // Who says a uid means an object that was there.
        must_be(context, &Value::Null, "uid", meta(&object, "uid"))?;
        may_create(context)?;
        return create_decoded(context, options, turn, object, warnings).await;
    }
    let write = Write::update(scope, options.dry_run);
    let written = swap(context, write, Some(turn), |_| Ok(object.clone())).await;
    let answer = written.map(|written| written.answer());
    Ok(Answer::of(answer).with_warnings(warnings))
}

/// Refuses a PUT that would create an object to who may update objects and not create them.
fn may_create(context: &Context<'_>) -> Result<(), StatusError> {
    let info = context.resource.info();
    let attributes = Attributes {
        user: context.identity,
        verb: "update",
        target: Target::Resource {
            group: &info.group,
            version: &info.version,
            resource: &info.plural,
            subresource: "",
            namespace: context.namespace().unwrap_or_default(),
            name: context.name(),
        },
    };
    check_create(&*context.api.authorisation, &attributes)
}

/// Refuses an object of another name than the path has.
pub(super) fn check_name(context: &Context<'_>, name: &str) -> Result<(), StatusError> {
    let asked = context.name();
    match name {
        "" => Err(StatusError::bad_request(format!(
            "the name of the object ({asked} based on URL) was undeterminable: name must be provided"
        ))),
        name if name != asked => Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({asked})"
        ))),
        _ => Ok(()),
    }
}

/// What sort of patch the body is.
pub(super) fn patch_type(context: &Context<'_>) -> Result<PatchType, StatusError> {
    let content_type = context.content_type();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    PatchType::from_content_type(media_type).ok_or_else(StatusError::unsupported_patch)
}

/// Patches an object or its status.
pub(crate) async fn patch(context: &Context<'_>, scope: WriteScope) -> Result<Answer, StatusError> {
    let kind = context.resource.kind.as_ref();
    let patch_type = patch_type(context)?;
    let options = context.write_options("PatchOptions")?;
    let validation = options.validation;
    let mut warnings = Vec::new();
    let write = Write::update(scope, options.dry_run);
    let written = swap(context, write, None, |current| {
        let decoded = patched(context, kind, patch_type, current, validation)?;
        // Another attempt says the same again.
        warnings = decoded.warnings;
        let mut object = decoded.object;
        check_version(context, write, &object, current)?;
        keeps_its_uid(context, &object, current)?;
        warnings.extend(owners::once(&mut object, owners::ADMITTED));
        Ok(object)
    })
    .await;
    let answer = written.map(|written| written.answer());
    Ok(Answer::of(answer).with_warnings(warnings))
}

/// Refuses a patch that would make another object of what it changes. A PUT names an object by its uid; a patch sets it.
fn keeps_its_uid(
    context: &Context<'_>,
    object: &Value,
    current: &Value,
) -> Result<(), StatusError> {
    let uid = meta(object, "uid");
    if uid.is_empty() || uid == meta(current, "uid") {
        return Ok(());
    }
    let mut errors = ErrorList::default();
    errors.invalid(&Path::new("metadata").child("uid"), uid, IMMUTABLE);
    let info = context.resource.info();
    Err(StatusError::invalid(info, context.name(), errors))
}

/// What the body, a patch, makes of an object of a kind, which stays in the path's namespace and keeps the path's name.
pub(super) fn patched(
    context: &Context<'_>,
    kind: &dyn ResourceKind,
    patch_type: PatchType,
    current: &Value,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let patched = patch::apply(kind, patch_type, current, &context.body)?;
    let mut decoded = match patch_type {
        PatchType::Json | PatchType::Merge => typeless(context, kind, patched, validation)?,
        PatchType::Strategic => strategic(kind, patched, current, validation)?,
    };
    check_namespace(context, &mut decoded.object)?;
    check_name(context, meta(&decoded.object, "name"))?;
    Ok(decoded)
}

/// The result of a patch that knows no types, as an object of a kind.
fn typeless(
    context: &Context<'_>,
    kind: &dyn ResourceKind,
    patched: Patched,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let copy = patched.object.clone();
    let decoded = check(patched.object, kind, FieldValidation::Warn)
        .map_err(|error| not_an_object(context, kind.info(), &copy, &error))?;
    let wrong = |why: &str| wrong_patch(&copy.to_string(), why);
    strictly(decoded, patched.findings, validation, wrong)
}

/// The result of a strategic merge, as an object of a kind: whatever the patch says of kind and version.
fn strategic(
    kind: &dyn ResourceKind,
    patched: Patched,
    current: &Value,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let Patched {
        mut object,
        findings,
        patch: shown,
    } = patched;
    for field in ["apiVersion", "kind"] {
        *object.member(&[field]) = current[field].clone();
    }
    let wrong = |why: &str| wrong_patch(&patch::printed(&shown), why);
    let misfit = patch::misfit(kind.schema(), &object);
    let mut decoded =
        check(object, kind, FieldValidation::Warn).map_err(|error| match &misfit {
            Some(why) => wrong(why),
            None => wrong(&plain(&error, kind.info())),
        })?;
    decoded.warnings.sort();
    strictly(decoded, findings, validation, wrong)
}

/// What comes of unknown and duplicate fields: those of the patch come first.
fn strictly(
    decoded: Decoded,
    mut findings: Vec<String>,
    validation: FieldValidation,
    wrong: impl Fn(&str) -> StatusError,
) -> Result<Decoded, StatusError> {
    findings.extend(decoded.warnings);
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Strict if !findings.is_empty() => {
            let why = format!("strict decoding error: {}", findings.join(", "));
            return Err(wrong(&why));
        }
        FieldValidation::Strict | FieldValidation::Warn => findings,
    };
    Ok(Decoded {
        object: decoded.object,
        warnings,
    })
}

/// 422: it is the patch that is wrong, whatever of the object is.
fn wrong_patch(shown: &str, why: &str) -> StatusError {
    let mut errors = ErrorList::default();
    errors.invalid(&Path::new("patch"), shown, why);
    StatusError::invalid_kind("", "", "", errors)
}

/// The result of a patch that knows no types does not fit the type: the patch is what is wrong.
fn not_an_object(
    context: &Context<'_>,
    info: &ResourceInfo,
    patched: &Value,
    error: &StatusError,
) -> StatusError {
    let why = match kind_of(context, info, patched) {
        // It is read as what it says it is, before that turns out to be something else.
        Some(other) => {
            let read = check(
                patched.clone(),
                other.kind.as_ref(),
                FieldValidation::Ignore,
            );
            read.err().as_ref().map(|error| plain(error, other.info()))
        }
        None => None,
    };
    let why = why.unwrap_or_else(|| plain(error, info));
    wrong_patch(&patched.to_string(), &why)
}

/// The kind that an object says it is, where it is another than the one that it should be.
fn kind_of<'a>(
    context: &'a Context<'_>,
    info: &ResourceInfo,
    object: &Value,
) -> Option<&'a Arc<Resource>> {
    let (kind, version) = (object["kind"].as_str()?, object["apiVersion"].as_str()?);
    let all = context.registry.all().iter();
    let mut others = all.filter(|other| other.info() != info);
    others.find(|other| other.info().kind == kind && other.info().api_version() == version)
}

/// What is wrong with an object, without the words around it, whatever it said it was.
fn plain(error: &StatusError, info: &ResourceInfo) -> String {
    let why = error.message();
    let words = format!("\" cannot be handled as a {}: ", info.kind);
    let why = why.split_once(&words).map_or(why, |(_, why)| why);
    why.to_owned()
}

#[cfg(test)]
mod tests;
