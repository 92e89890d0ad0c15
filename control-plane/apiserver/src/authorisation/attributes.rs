//! What an authorizer is asked, what it says, and how what it does not allow is refused.

use gantry_api::status::StatusError;

use crate::identity::Identity;

/// What an authorizer decides on.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: &'a Identity,
    /// e.g. `get` or `deletecollection`; of a path that is no resource's, the method in small letters.
    pub verb: &'a str,
    /// What it is about.
    pub target: Target<'a>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A path that is no resource's.
    Path(&'a str),
    /// A resource; what it has not is empty.
    Resource {
        /// API group; empty for core.
        group: &'a str,
        /// `*` where any will do.
        version: &'a str,
        /// Plural.
        resource: &'a str,
        /// e.g. `log`.
        subresource: &'a str,
        /// Empty for what is not in one, and for all of them.
        namespace: &'a str,
        /// Empty for a collection.
        name: &'a str,
    },
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The request may be done, whatever others say.
    Allow,
    /// It must not be done, whatever others say, and why.
    Deny(String),
    /// Others decide; why this one does not allow it, or nothing.
    NoOpinion(String),
}

/// Decides who may do what.
pub trait Authorizer: Send + Sync {
    /// Whether a request may be done.
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// Why a request is allowed, for those who ask; empty where there is nothing to say.
    fn reason(&self, _attributes: &Attributes<'_>) -> String {
        String::new()
    }
}

/// Refuses what an authorizer does not allow.
pub fn check(authorizer: &dyn Authorizer, attributes: &Attributes<'_>) -> Result<(), StatusError> {
    match authorizer.authorize(attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(attributes, &reason)),
    }
}

/// 403 for a request, with a reason or an empty one.
pub(crate) fn forbidden(attributes: &Attributes<'_>, reason: &str) -> StatusError {
    let (user, verb) = (&attributes.user.user, attributes.verb);
    let told = |refused: String| match reason {
        "" => refused,
        reason => format!("{refused}: {reason}"),
    };
    match attributes.target {
        Target::Path(path) => {
            let refused = format!("User {user:?} cannot {verb} path {path:?}");
            StatusError::forbidden_resource("", "", "", &told(refused))
        }
        Target::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
            ..
        } => {
            let whole = match subresource {
                "" => resource.to_owned(),
                subresource => format!("{resource}/{subresource}"),
            };
            let scope = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            let refused = format!(
                "User {user:?} cannot {verb} resource {whole:?} in API group {group:?} {scope}"
            );
            StatusError::forbidden_resource(group, resource, name, &told(refused))
        }
    }
}
