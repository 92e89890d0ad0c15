//! Requests with objects as JSON, and what their refusals say.

use http::{Method, Request};
use serde_json::Value;

/// One request with a JSON body.
pub(crate) async fn call(
    client: &kube::Client,
    method: Method,
    path: &str,
    body: &Value,
) -> kube::Result<Value> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// An object, or `None` when there is none of that name.
pub(crate) async fn get(client: &kube::Client, path: &str) -> kube::Result<Option<Value>> {
    let request = Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    match client.request(request).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The HTTP status of a refusal.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether somebody else has changed an object first.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}
