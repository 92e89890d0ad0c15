//! GET of one object.

use gantry_api::status::StatusError;

use super::list::{as_table, wants_table};
use crate::codec;
use crate::context::Context;
use crate::response::Answer;

pub(crate) async fn get(context: &Context<'_>) -> Result<Answer, StatusError> {
    context.query.resource_version()?;
    let entry = context.current()?;
    let info = context.resource.info();
    if let Some(shape) = wants_table(context.headers)? {
        let revision = entry.modify_revision;
        return as_table(context, shape, &[entry], revision, None);
    }
    Ok(Answer::object(info, &entry.value, entry.modify_revision))
}

/// Reads the `status` subresource: the whole object, as Kubernetes answers.
pub(crate) async fn get_status(context: &Context<'_>) -> Result<Answer, StatusError> {
    let entry = context.current()?;
    let bytes = codec::object_bytes(context.resource.info(), &entry.value, entry.modify_revision);
    Ok(Answer::bytes(bytes))
}
