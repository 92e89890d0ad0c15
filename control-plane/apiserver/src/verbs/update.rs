//! PUT and PATCH.

use gantry_api::decode::{check, decode};
use gantry_api::field::{ErrorList, Path};
use gantry_api::kind::WriteScope;
use gantry_api::patch::{self, PatchType};
use gantry_api::status::StatusError;

use super::create::{check_namespace, create_decoded};
use super::write::{Write, swap};
use crate::context::{Context, meta};
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
    let write = Write::update(scope, context.dry_run()?);
    let written = swap(context, write, Some(turn), |_| Ok(object.clone())).await;
    let answer = written.map(|written| written.answer(info));
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
    let write = Write::update(scope, context.dry_run()?);
    let written = swap(context, write, None, |current| {
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
    let answer = written.map(|written| written.answer(context.resource.info()));
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
