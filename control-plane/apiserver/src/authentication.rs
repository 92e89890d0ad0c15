//! How it is found out who is asking: by a verified certificate, or by a bearer token.

use gantry_api::status::StatusError;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::bootstrap_tokens;
use crate::context::Api;
use crate::identity::{Identity, Tokens};

/// What bearer tokens are looked up in.
pub(crate) struct TokenAuthentication<'a> {
    /// Those that were given at the start.
    pub(crate) fixed: &'a Tokens,
    /// Holds the bootstrap tokens, and verifies those of service accounts.
    pub(crate) api: &'a Api,
}

impl TokenAuthentication<'_> {
    /// Whom a token stands for that is for this API whatever its audience: one that was given at the start, or a bootstrap
    /// token.
    pub(crate) fn of_the_api(&self, token: &str) -> Option<Identity> {
        // All of them are compared, in a time that does not tell which comes close.
        let fixed =
            self.fixed.iter().fold(
                None,
                |found, (known, identity)| match bootstrap_tokens::same(known, token) {
                    true => Some(identity.clone()),
                    false => found,
                },
            );
        fixed.or_else(|| bootstrap_tokens::identity(&self.api.store, &self.api.clock, token))
    }

    fn identity(&self, token: &str) -> Option<Identity> {
        let own = self.of_the_api(token);
        own.or_else(|| self.api.service_accounts.identity(token))
    }

    /// Whether the token of a request is known to be signed by the cluster, whether or not it counts.
    pub(crate) fn remember(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|token| self.api.service_accounts.remember(token))
    }

    /// Whether the token of a refused request may count once this server knows what the others know.
    pub(crate) fn may_be_behind(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|token| self.api.service_accounts.may_be_behind(token))
    }
}

/// The bearer token of a request. Other schemes say nothing that anybody here understands: they are no credential.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// What was shown with a request, for the log: never what is secret of it.
pub(crate) fn described(headers: &HeaderMap) -> String {
    let shown = headers
        .get(AUTHORIZATION)
        .and_then(|header| header.to_str().ok());
    let token = shown.and_then(|text| text.trim().split_once(' '));
    let id = token.and_then(|(_, token)| bootstrap_tokens::id_of(token.trim()));
    id.map_or_else(
        || "a token".to_owned(),
        |id| format!("the bootstrap token {id}"),
    )
}

/// Finds out who sent a request. `certificate` is the identity of a verified client certificate. A credential that
/// is not valid is refused; none at all is anonymous.
pub(crate) fn authenticate(
    headers: &HeaderMap,
    certificate: Option<&Identity>,
    tokens: &TokenAuthentication<'_>,
) -> Result<Identity, StatusError> {
    if let Some(identity) = certificate {
        return Ok(identity.clone());
    }
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Ok(Identity::anonymous());
    };
    header.to_str().map_err(|_| StatusError::unauthorized())?;
    match bearer(headers) {
        None => Ok(Identity::anonymous()),
        Some(token) => tokens.identity(token).ok_or_else(StatusError::unauthorized),
    }
}
