//! What the rest of the process asks of the tokens of service accounts, and their reviews.

use axum::body::Body;
use axum::extract::Request;
use gantry_api::status::StatusError;
use http::{Method, Response};
use http_body_util::{BodyExt, Limited};

use super::ApiServer;
use crate::bodies;
use crate::context::Context;
use crate::identity::Identity;
use crate::request::{Query, ResourcePath};
use crate::response::Answer;
use crate::service_accounts::{IssuedToken, PodTokenRequest, keys, token_review};

impl ApiServer {
    /// Makes the keys that sign the tokens of service accounts, in a cluster that has none.
    pub(crate) async fn found_token_keys(&self) -> Result<(), StatusError> {
        let api = &self.inner.api;
        let now = api.clock.now() / 1_000_000_000;
        let founded = keys::found(&api.store, now).await;
        founded.map_err(|error| StatusError::service_unavailable(error.to_string()))
    }

    /// A token of a pod for its node: only of a pod that is bound to it, and only one that a projected volume of the pod names.
    pub async fn pod_token(&self, asked: &PodTokenRequest) -> Result<IssuedToken, StatusError> {
        let api = &self.inner.api;
        api.catch_up().await?;
        api.service_accounts.pod_token(&api.registry, asked).await
    }

    /// The token that a Secret of type `kubernetes.io/service-account-token` is to hold; none before there are keys.
    pub fn secret_token(
        &self,
        namespace: &str,
        secret: &str,
        account: &str,
        account_uid: &str,
    ) -> Option<String> {
        let accounts = &self.inner.api.service_accounts;
        accounts.secret_token(namespace, secret, account, account_uid)
    }

    /// The id of the key that signs tokens now; none before there are keys.
    pub fn token_key(&self) -> Option<String> {
        self.inner.api.service_accounts.signing()
    }

    /// Whether a token is signed with the key that signs now.
    pub fn is_current_token(&self, token: &str) -> bool {
        self.inner.api.service_accounts.is_current(token)
    }

    /// A review has no place in the store: what is said of resources does not apply to it.
    pub(super) async fn token_review(
        &self,
        method: &Method,
        path: &ResourcePath,
        query: &Query,
        request: Request,
        identity: &Identity,
    ) -> Result<Response<Body>, StatusError> {
        if path.name.is_some() || path.namespace.is_some() {
            return Err(StatusError::unknown_resource());
        }
        if *method != Method::POST {
            return Err(StatusError::method_not_allowed());
        }
        let api = &self.inner.api;
        let accounts = api.registry.get("", "v1", "serviceaccounts");
        let headers = request.headers().clone();
        let mut context = Context {
            api,
            resource: accounts.ok_or_else(StatusError::unknown_resource)?,
            path,
            query,
            headers: &headers,
            identity,
            body: bytes::Bytes::new(),
            transcoded: false,
            budget: None,
        };
        query.check()?;
        context.body = Limited::new(request.into_body(), bodies::LIMIT)
            .collect()
            .await
            .map_err(|_| StatusError::too_large(bodies::LIMIT))?
            .to_bytes();
        context.transcode().await?;
        api.catch_up().await?;
        let answer = token_review(&context).await;
        Ok(Answer::of(answer).into_response())
    }
}
