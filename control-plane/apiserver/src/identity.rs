//! Who is asking, and how that is found out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_api::names;
use gantry_api::status::StatusError;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::bootstrap_tokens;
use crate::context::Api;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The servers' side of nodes, which writes what they report once it has been checked.
pub const NODE_LINK: &str = "system:node-link";
/// Whoever is in it may do everything.
pub const MASTERS: &str = "system:masters";
/// Everybody with a credential.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Everybody without one.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// See [`UNAUTHENTICATED`].
pub(crate) const ANONYMOUS: &str = "system:anonymous";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// A user and the groups it belongs to, as certificates and tokens carry them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User name, e.g. `kubernetes-admin` or `system:node:one`.
    pub user: String,
    /// Groups, e.g. `system:masters`.
    pub groups: Vec<String>,
    /// What tells the user from an earlier one of the same name; empty when nothing does.
    pub uid: String,
    /// What else its credential says, e.g. `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user of some groups.
    pub fn new(user: &str, groups: &[&str]) -> Self {
        Self {
            user: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// A part of the system that runs in the API's own process and may do everything.
    pub fn of_system(user: &str) -> Self {
        Self::new(user, &[MASTERS, AUTHENTICATED])
    }

    /// Whoever shows no credential.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// Whether it belongs to a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// From a verified client certificate: CN is the user, each O a group.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|group| group.as_str().ok().map(str::to_owned))
            .collect();
        groups.push(AUTHENTICATED.to_owned());
        Some(Self {
            user,
            groups,
            ..Self::default()
        })
    }
}

/// The user name of a service account.
pub(crate) fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT}{namespace}:{name}")
}

/// The groups of a service account.
pub(crate) fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

/// Namespace and name of the service account that a user name is of.
pub(crate) fn service_account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    let valid =
        names::is_dns1123_label(namespace).is_none() && names::is_dns1123_subdomain(name).is_none();
    valid.then_some((namespace, name))
}

/// The name of the node that a user name is of.
pub(crate) fn node_of(user: &str) -> Option<&str> {
    let name = user.strip_prefix("system:node:")?;
    names::is_dns1123_subdomain(name).is_none().then_some(name)
}

/// Bearer tokens and whom they stand for.
pub type Tokens = Arc<HashMap<String, Identity>>;

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
