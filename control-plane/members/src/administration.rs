//! Gantry's own REST, below `/gantry/`: whom its verbs are for, and how they refuse.

use axum::Json;
use axum::response::{IntoResponse, Response};
use gantry_apiserver::Identity;
use gantry_base::status::StatusError;
use http::StatusCode;

use crate::MEMBERS_GROUP;

/// Kubernetes' answer to what is refused.
pub fn refuse(error: &StatusError) -> Response {
    let status = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(error.to_value())).into_response()
}

/// The refusal of who is neither an administrator nor a server, which asks for one.
pub fn only_administrators(who: &Identity) -> Option<Response> {
    let may = who.is_in("system:masters") || who.is_in(MEMBERS_GROUP);
    (!may).then(|| {
        refuse(&StatusError::new(
            403,
            "Forbidden",
            format!(
                "\"{}\" may not change the servers: use an administrator's kubeconfig",
                who.user
            ),
            None,
        ))
    })
}
