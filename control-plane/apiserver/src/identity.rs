//! Who is asking.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_api::names;
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
