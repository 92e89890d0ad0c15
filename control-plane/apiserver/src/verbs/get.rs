//! GET of one object, or of its status: the whole object, as Kubernetes answers.

use gantry_api::status::StatusError;

use crate::context::Context;
use crate::response::Answer;

pub(crate) async fn get(context: &Context<'_>) -> Result<Answer, StatusError> {
    check_options(context)?;
    let entry = context.current()?;
    Ok(Answer::object(&entry.value, entry.modify_revision))
}

/// Refuses options that a GET of one object does not have any more, or that say nothing.
pub(super) fn check_options(context: &Context<'_>) -> Result<(), StatusError> {
    if context.query.flag("export") {
        return Err(StatusError::bad_request(
            "the export parameter, deprecated since v1.14, is no longer supported",
        ));
    }
    context.query.resource_version().map(drop)
}
