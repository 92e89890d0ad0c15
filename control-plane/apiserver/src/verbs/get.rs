//! GET of one object.

use gantry_api::status::StatusError;

use super::list::{check_object_policy, shaped};
use crate::codec;
use crate::context::Context;
use crate::media::Media;
use crate::response::Answer;

pub(crate) async fn get(context: &Context<'_>) -> Result<Answer, StatusError> {
    context.query.resource_version()?;
    let entry = context.current()?;
    let info = context.resource.info();
    let media = Media::of_answer(context.headers)?;
    if let Some(shape) = media.shape {
        check_object_policy(context, media)?;
        return shaped(context, shape, &entry);
    }
    Ok(Answer::object(info, &entry.value, entry.modify_revision))
}

/// Reads the `status` subresource: the whole object, as Kubernetes answers.
pub(crate) async fn get_status(context: &Context<'_>) -> Result<Answer, StatusError> {
    let entry = context.current()?;
    let bytes = codec::object_bytes(context.resource.info(), &entry.value, entry.modify_revision);
    Ok(Answer::bytes(bytes))
}
