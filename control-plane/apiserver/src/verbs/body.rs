//! Bodies that are of a type of their own: a scale, a binding, a question. They are read as objects are, so that unknown
//! fields, other kinds and other namespaces are told in the same words.

use std::sync::LazyLock;

use gantry_api::decode::{Decoded, FieldValidation, decode};
use gantry_api::kind::{ResourceKind, StaticInfo};
use gantry_api::status::StatusError;
use gantry_api::unstored::Unstored;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::api::policy::v1::Eviction;
use serde::de::DeserializeOwned;

use super::create::check_namespace;
use crate::context::Context;
use crate::heavy::Turn;

type Type = LazyLock<Box<dyn ResourceKind>>;

pub(crate) static BINDING: Type =
    LazyLock::new(|| Unstored::<Binding>::boxed(info("", "v1", "Binding")));
pub(crate) static EVICTION: Type =
    LazyLock::new(|| Unstored::<Eviction>::boxed(info("policy", "v1", "Eviction")));
/// The same fields, as clients of old call them.
pub(crate) static EVICTION_BETA: Type =
    LazyLock::new(|| Unstored::<Eviction>::boxed(info("policy", "v1beta1", "Eviction")));
pub(crate) static SCALE: Type =
    LazyLock::new(|| Unstored::<Scale>::boxed(info("autoscaling", "v1", "Scale")));
pub(crate) static TOKEN_REQUEST: Type = LazyLock::new(|| {
    Unstored::<TokenRequest>::boxed(info("authentication.k8s.io", "v1", "TokenRequest"))
});

/// What is a body alone has no path.
const fn info(group: &'static str, version: &'static str, kind: &'static str) -> StaticInfo {
    StaticInfo {
        group,
        version,
        kind,
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    }
}

/// The body as an object of a type, in the request's namespace.
pub(crate) async fn object(
    context: &Context<'_>,
    kind: &dyn ResourceKind,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let turn = Turn::wait(context.body.len()).await;
    turn.work(|| {
        let mut decoded = decode(&context.body, context.content_type(), kind, validation)?;
        check_namespace(context, &mut decoded.object)?;
        Ok(decoded)
    })
}

/// As [`object`], in the type itself; with the warnings about it.
pub(crate) async fn typed<T: DeserializeOwned>(
    context: &Context<'_>,
    kind: &dyn ResourceKind,
    validation: FieldValidation,
) -> Result<(T, Vec<String>), StatusError> {
    let decoded = object(context, kind, validation).await?;
    let typed = serde_json::from_value(decoded.object).map_err(|error| {
        let kind = &kind.info().kind;
        StatusError::bad_request(format!("the body is not a {kind}: {error}"))
    })?;
    Ok((typed, decoded.warnings))
}
