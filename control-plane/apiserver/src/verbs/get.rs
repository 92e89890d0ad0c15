//! GET of one object, or of its status: the whole object, as Kubernetes answers.

use gantry_api::status::StatusError;

use crate::context::Context;
use crate::response::Answer;

pub(crate) async fn get(context: &Context<'_>) -> Result<Answer, StatusError> {
    context.query.resource_version()?;
    let entry = context.current()?;
    Ok(Answer::object(&entry.value, entry.modify_revision))
}
