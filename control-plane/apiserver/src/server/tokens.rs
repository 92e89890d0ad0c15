//! What the rest of the process asks of the tokens of service accounts, and their reviews.

use gantry_api::status::StatusError;

use super::ApiServer;
use crate::service_accounts::{IssuedToken, PodTokenRequest, keys};

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
        api.service_accounts
            .pod_token(&api.registry.load(), asked)
            .await
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
}
