//! `tokenreviews`: whom a token stands for, asked by a program that was shown it.

use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::TokenReview;
use serde_json::{Map, Value, json};

use super::verify::{Refused, Verified};
use crate::authentication::TokenAuthentication;
use crate::context::Context;
use crate::identity::Identity;
use crate::response::Answer;
use crate::verbs::body;

const KIND: &str = "TokenReview";
const UNKNOWN: &str = "invalid bearer token";

/// Answers a TokenReview. Nothing is stored.
pub(crate) async fn create(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("CreateOptions")?;
    let kind = context.resource.kind.as_ref();
    let (asked, warnings): (TokenReview, _) =
        body::typed(context, kind, options.validation).await?;
    Ok(Answer::of(reviewed(context, asked)).with_warnings(warnings))
}

fn reviewed(context: &Context<'_>, asked: TokenReview) -> Result<Answer, StatusError> {
    let token = asked.spec.token.as_str();
    if token.is_empty() {
        return Err(StatusError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let accounts = &context.api.service_accounts;
    let audiences = asked.spec.audiences.as_ref();
    let audiences = audiences.filter(|audiences| !audiences.is_empty());
    let audiences = audiences.cloned().unwrap_or_else(|| accounts.audiences());
    let status = match verify(context, token.trim(), &audiences) {
        Ok(verified) => json!({
            "authenticated": true,
            "user": shown(&verified.identity),
            "audiences": verified.audiences,
        }),
        Err(why) => json!({"user": {}, "error": why}),
    };
    Ok(Answer::value_with(
        StatusCode::CREATED,
        &json!({
            "kind": KIND,
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": asked.metadata,
            "spec": asked.spec,
            "status": status,
        }),
    ))
}

/// Whom a token stands for, or Kubernetes' words for why it stands for nobody.
fn verify(context: &Context<'_>, token: &str, audiences: &[String]) -> Result<Verified, String> {
    let api = context.api;
    let tokens = TokenAuthentication {
        fixed: &api.tokens,
        api,
    };
    if let Some(identity) = tokens.of_the_api(token) {
        // What says nothing of audiences is for this API.
        let own = api.service_accounts.audiences();
        let both: Vec<String> = audiences
            .iter()
            .filter(|audience| own.contains(audience))
            .cloned()
            .collect();
        return match both.is_empty() {
            false => Ok(Verified {
                identity,
                audiences: both,
            }),
            true => Err(UNKNOWN.to_owned()),
        };
    }
    api.service_accounts
        .verify(token, audiences)
        .map_err(|refused| match refused {
            Refused::Foreign => UNKNOWN.to_owned(),
            Refused::Invalid(why) | Refused::Unknown(why) => format!("[{UNKNOWN}, {why}]"),
        })
}

/// A UserInfo, without what is empty.
fn shown(identity: &Identity) -> Value {
    let mut user = Map::new();
    user.insert("username".to_owned(), json!(identity.user));
    if !identity.uid.is_empty() {
        user.insert("uid".to_owned(), json!(identity.uid));
    }
    user.insert("groups".to_owned(), json!(identity.groups));
    if !identity.extra.is_empty() {
        user.insert("extra".to_owned(), json!(identity.extra));
    }
    Value::Object(user)
}
