//! Who may do what. Until roles exist there are three sorts of users: administrators, the system's own parts, and
//! everybody else, who may look at nothing but health and version.

use gantry_api::status::StatusError;

use crate::identity::{Identity, NODE_LINK};
use crate::request::ResourceAttributes;

/// Users of the system's own parts, which run in the same process as the API.
const SYSTEM_USERS: &[&str] = &[
    "system:kube-scheduler",
    "system:kube-controller-manager",
    NODE_LINK,
];

/// Paths that anybody may read.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

fn may_do_everything(identity: &Identity) -> bool {
    identity.is_in("system:masters") || SYSTEM_USERS.contains(&identity.user.as_str())
}

/// Refuses a path that names no resource.
pub(crate) fn path(identity: &Identity, verb: &str, path: &str) -> Result<(), StatusError> {
    let public = PUBLIC_PATHS.iter().any(|known| {
        path == *known
            || path
                .strip_prefix(known)
                .is_some_and(|rest| rest.starts_with('/'))
    });
    // Everybody with a credential may find out what the API serves.
    let discovery = identity.is_in("system:authenticated")
        && ["/api", "/apis", "/openapi"].iter().any(|root| {
            path == *root
                || path
                    .strip_prefix(root)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
    if may_do_everything(identity) || (verb == "get" && (public || discovery)) {
        return Ok(());
    }
    let path = if path.is_empty() { "/" } else { path };
    Err(StatusError::forbidden_resource(
        "",
        "",
        "",
        &format!("User \"{}\" cannot {verb} path \"{path}\"", identity.user),
    ))
}

/// Refuses a request for a resource.
pub(crate) fn resource(
    identity: &Identity,
    verb: &str,
    asked: &ResourceAttributes<'_>,
) -> Result<(), StatusError> {
    if may_do_everything(identity) {
        return Ok(());
    }
    let resource = match asked.subresource {
        "" => asked.resource.to_owned(),
        subresource => format!("{}/{subresource}", asked.resource),
    };
    let scope = match asked.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    Err(StatusError::forbidden_resource(
        asked.group,
        asked.resource,
        asked.name,
        &format!(
            "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {scope}",
            identity.user, asked.group
        ),
    ))
}
