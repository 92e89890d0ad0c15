//! Who may do what. Administrators may do everything; a node what its pods need ([`node`]); everybody what roles allow
//! ([`rbac`]). What nobody allows is refused, in Kubernetes' words.
//!
//! Authorizers read the store's memory and are never waited for. A role or binding that this server has acknowledged is in
//! force at its next request.

pub(crate) mod attributes;
pub(crate) mod escalation;
pub(crate) mod impersonation;
pub(crate) mod node;
pub(crate) mod rbac;

use gantry_api::status::StatusError;
use gantry_store::Store;

use crate::identity::{Identity, MASTERS};
use crate::request::RequestInfo;

use self::attributes::forbidden;
use self::node::NodeAuthorizer;
use self::rbac::Rbac;

pub use self::attributes::{Attributes, Authorizer, Decision, Target, check};

/// Refuses a request that its user may not make.
pub(crate) fn check_request(
    authorisation: &Authorisation,
    info: &RequestInfo,
    user: &Identity,
) -> Result<(), StatusError> {
    let attributes = info.attributes(user);
    if !node::selects_own_pods(&attributes, info.selected("spec.nodeName")) {
        check(authorisation, &attributes)?;
    }
    match attributes.target {
        Target::Resource {
            group: "",
            resource: "pods",
            subresource,
            ..
        } if attributes.verb == "get" && COMMANDS.contains(&subresource) => {
            check_create(authorisation, &attributes)
        }
        _ => Ok(()),
    }
}

/// What of pods does more than to read, also where it is asked for by GET, which WebSockets begin with.
const COMMANDS: [&str; 3] = ["attach", "exec", "portforward"];

/// Refuses a request that comes to creating something, whatever its own verb is, to who may not create that. Kubernetes says
/// no more here than why.
pub(crate) fn check_create(
    authorizer: &dyn Authorizer,
    attributes: &Attributes<'_>,
) -> Result<(), StatusError> {
    let creation = Attributes {
        verb: "create",
        ..*attributes
    };
    let reason = match authorizer.authorize(&creation) {
        Decision::Allow => return Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
    };
    Err(match attributes.target {
        Target::Path(_) => forbidden(&creation, &reason),
        Target::Resource {
            group,
            resource,
            name,
            ..
        } => StatusError::forbidden_resource(group, resource, name, &reason),
    })
}

/// The authorizers of a server, in their order.
pub(crate) struct Authorisation {
    nodes: NodeAuthorizer,
    pub(crate) rbac: Rbac,
}

impl Authorisation {
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            nodes: NodeAuthorizer::new(store.clone()),
            rbac: Rbac::new(store.clone()),
        }
    }
}

impl Authorizer for Authorisation {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.is_in(MASTERS) {
            return Decision::Allow;
        }
        let mut reasons = Vec::new();
        let authorizers: [&dyn Authorizer; 2] = [&self.nodes, &self.rbac];
        for authorizer in authorizers {
            match authorizer.authorize(attributes) {
                Decision::NoOpinion(reason) => {
                    reasons.extend((!reason.is_empty()).then_some(reason));
                }
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    fn reason(&self, attributes: &Attributes<'_>) -> String {
        let trusted =
            attributes.user.is_in(MASTERS) || self.nodes.authorize(attributes) == Decision::Allow;
        match trusted {
            true => String::new(),
            false => self.rbac.reason(attributes),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
