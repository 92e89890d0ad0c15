//! What a node may write: itself, its lease, and what it says of the pods bound to it. The rules are Kubernetes'
//! NodeRestriction's; beyond them, what Gantry's nodes say over their links, where it is checked, is not written past them.

use std::collections::BTreeSet;

use gantry_api::kind::Draft;
use gantry_api::node_labels::may_set;
use gantry_api::status::StatusError;
use http::Method;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use super::plugin::{Attributes, Operation, Plugin, stored};
use crate::authorisation::node::{MIRROR, node_name};
use crate::authorisation::{Attributes as Asked, Authorizer, Decision, Target};
use crate::context::{Context, meta};

const LEASES: &str = "kube-node-lease";
/// Annotations that the servers write.
const OWN_DOMAIN: &str = "gantry.io/";
/// What a pod's status says of addresses.
const POD_ADDRESSES: [&str; 4] = ["hostIP", "hostIPs", "podIP", "podIPs"];

fn refused(context: &Context<'_>, name: &str, why: &str) -> StatusError {
    StatusError::forbidden(context.resource.info(), name, why)
}

fn resource<'a>(context: &'a Context<'_>) -> (&'a str, &'a str) {
    let info = context.resource.info();
    (&info.group, &info.plural)
}

/// Refuses what a node must not change, whatever it changes it to: before the body is read.
pub(crate) fn admit_request(context: &Context<'_>, method: &Method) -> Result<(), StatusError> {
    let Some(node) = node_name(context.identity) else {
        return Ok(());
    };
    if [Method::GET, Method::HEAD].contains(method) || context.path.name.is_none() {
        return Ok(());
    }
    let refuse = |why: &str| Err(refused(context, context.name(), why));
    let subresource = context.path.subresource.as_deref().unwrap_or_default();
    match resource(context) {
        ("", "nodes") if context.name() != node => refuse(&format!(
            "node {node:?} is not allowed to modify node {:?}",
            context.name()
        )),
        ("", "pods") => {
            let own = "pods with spec.nodeName set to itself";
            let why = match (subresource, method.as_str()) {
                ("", "DELETE") => format!("node {node:?} can only delete {own}"),
                ("status", _) => format!("node {node:?} can only update pod status for {own}"),
                ("eviction", _) => format!("node {node} can only evict {own}"),
                ("", _) => format!(
                    "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
                ),
                (other, _) => format!(
                    "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
                ),
            };
            let may_be = match subresource {
                "" => *method == Method::DELETE,
                "status" | "eviction" => true,
                _ => false,
            };
            match may_be && is_bound(context, node)? {
                true => Ok(()),
                false => refuse(&why),
            }
        }
        ("coordination.k8s.io", "leases") if context.namespace() != Some(LEASES) => refuse(
            &format!("can only access leases in the {LEASES:?} system namespace"),
        ),
        _ => Ok(()),
    }
}

/// Whether the pod of the request is bound to a node; 404 when there is none.
fn is_bound(context: &Context<'_>, node: &str) -> Result<bool, StatusError> {
    let pod = context.current()?;
    let mut fields = pod.index.fields.iter();
    Ok(fields.any(|(field, value)| field == "spec.nodeName" && value == node))
}

pub(super) struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        let context = attributes.context;
        attributes.operation != Operation::Delete && node_name(context.identity).is_some()
    }

    /// Refuses what a node must not make an object.
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let context = attributes.context;
        let node = node_name(context.identity).unwrap_or_default();
        match wrong(context, node, draft) {
            None => Ok(Vec::new()),
            Some(why) => {
                let named = draft.metadata().name.as_deref();
                let name = context.path.name.as_deref().or(named);
                Err(refused(context, name.unwrap_or_default(), &why))
            }
        }
    }
}

/// What a node must not make an object, if that is what it does.
fn wrong(context: &Context<'_>, node: &str, draft: &dyn Draft) -> Option<String> {
    // Compared in the form in which clients write them.
    let written = |object: Result<Value, serde_json::Error>| object.unwrap_or_default();
    if let Some(new) = draft.typed::<Node>() {
        let old = draft.typed_old::<Node>().map(serde_json::to_value);
        let old = old.map(written);
        return of_node(node, &written(serde_json::to_value(new)), old.as_ref());
    }
    if let Some(new) = draft.typed::<Pod>() {
        let new = written(serde_json::to_value(new));
        return match draft.typed_old::<Pod>() {
            None => of_new_pod(context, node, &new),
            Some(old) => of_pod(node, &new, &written(serde_json::to_value(old))),
        };
    }
    let is_new_of_another = draft.old().is_none() && draft.metadata().name.as_deref() != Some(node);
    let what = match resource(context) {
        ("coordination.k8s.io", "leases") => "node lease",
        ("storage.k8s.io", "csinodes") => "CSINode",
        _ => return None,
    };
    is_new_of_another
        .then(|| format!("can only access {what} with the same name as the requesting node"))
}

/// Labels that one object has and the other has not, or has otherwise.
fn changed_labels<'a>(object: &'a Value, current: Option<&'a Value>) -> BTreeSet<&'a str> {
    let labels = |object: &'a Value| object["metadata"]["labels"].as_object();
    let (new, old) = (labels(object), current.and_then(labels));
    let of = |labels: Option<&'a serde_json::Map<String, Value>>, key: &str| {
        labels.and_then(|labels| labels.get(key))
    };
    let keys = new.into_iter().chain(old).flat_map(|labels| labels.keys());
    keys.map(String::as_str)
        .filter(|key| of(new, key) != of(old, key))
        .collect()
}

/// Annotations of the servers' own.
fn own_annotations(object: &Value) -> Vec<(&String, &Value)> {
    let annotations = object["metadata"]["annotations"].as_object();
    let annotations = annotations.into_iter().flatten();
    annotations
        .filter(|(key, _)| key.starts_with(OWN_DOMAIN))
        .collect()
}

fn of_node(node: &str, object: &Value, current: Option<&Value>) -> Option<String> {
    let name = meta(object, "name");
    if name != node {
        return Some(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    let empty = Value::Null;
    let is_new = current.is_none();
    let known = current.unwrap_or(&empty);
    let configuration = &object["spec"]["configSource"];
    if !configuration.is_null() && *configuration != known["spec"]["configSource"] {
        return Some(match is_new {
            true => {
                format!("node {node:?} is not allowed to create pods with a non-nil configSource")
            }
            false => format!(
                "node {node:?} is not allowed to update configSource to a new non-nil configSource"
            ),
        });
    }
    if !is_new && object["spec"]["taints"] != known["spec"]["taints"] {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    let owners = |object: &Value| object["metadata"]["ownerReferences"].clone();
    if !is_new && owners(object) != owners(known) {
        return Some(format!(
            "node {node:?} is not allowed to modify ownerReferences"
        ));
    }
    let labels = changed_labels(object, current);
    let forbidden: Vec<&str> = labels.into_iter().filter(|key| !may_set(key)).collect();
    if !forbidden.is_empty() {
        let list = forbidden.join(", ");
        return Some(match is_new {
            true => format!("node {node:?} is not allowed to set the following labels: {list}"),
            false => format!("is not allowed to modify labels: {list}"),
        });
    }
    let current = known;
    let fields = [
        (
            "podCIDRs",
            &object["spec"]["podCIDRs"],
            &current["spec"]["podCIDRs"],
        ),
        (
            "podCIDR",
            &object["spec"]["podCIDR"],
            &current["spec"]["podCIDR"],
        ),
        (
            "addresses: it tells of them over its link",
            &object["status"]["addresses"],
            &current["status"]["addresses"],
        ),
    ];
    let mut changed = fields.into_iter().filter(|(_, new, old)| new != old);
    if let Some((field, _, _)) = changed.next() {
        return Some(format!("node {node:?} is not allowed to modify {field}"));
    }
    (own_annotations(object) != own_annotations(current))
        .then(|| format!("node {node:?} is not allowed to modify annotations of {OWN_DOMAIN}"))
}

/// A pod's status, which its node writes.
fn of_pod(node: &str, object: &Value, current: &Value) -> Option<String> {
    if current["spec"]["nodeName"] != node {
        return Some(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if object["metadata"]["labels"] != current["metadata"]["labels"] {
        return Some(format!(
            "node {node:?} cannot update labels through pod status"
        ));
    }
    let status = |object: &Value, field: &str| object["status"][field].clone();
    let differs = |field: &str| status(object, field) != status(current, field);
    if differs("resourceClaimStatuses") {
        // In Kubernetes' words.
        return Some(format!(
            "node {node:?} cannot update resource claim statues"
        ));
    }
    if differs("extendedResourceClaimStatus") {
        return Some(format!(
            "node {node:?} cannot update extended resource claim status"
        ));
    }
    POD_ADDRESSES.into_iter().find(|field| differs(field)).map(|field| {
        format!("node {node:?} is not allowed to modify {field}: it tells of addresses over its link")
    })
}

/// A pod that shows what a node runs by itself, and refers to nothing.
fn of_new_pod(context: &Context<'_>, node: &str, pod: &Value) -> Option<String> {
    if !pod["metadata"]["annotations"][MIRROR].is_string() {
        return Some(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    let only = |what: &str| Some(format!("node {node:?} can only create pods with {what}"));
    if pod["spec"]["nodeName"] != node {
        return only("spec.nodeName set to itself");
    }
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let owner = match owners.map(Vec::as_slice).unwrap_or_default() {
        [] => return only("an owner reference set to itself"),
        [owner] => owner,
        _ => return only("a single owner reference set to itself"),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return only("an owner reference set to itself");
    }
    if owner["controller"] != true {
        return only("a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return Some(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let uid = node_uid(context, node).unwrap_or_default();
    let named = owner["uid"].as_str().unwrap_or_default();
    if named != uid {
        return Some(format!(
            "node {node} UID mismatch: expected {uid} got {named}"
        ));
    }
    let found = references(&pod["spec"]);
    let mut kinds = REFERENCES.iter().map(|(_, what)| *what);
    let what = kinds.find(|what| found.contains(what))?;
    Some(format!(
        "node {node:?} can not create pods that reference {what}"
    ))
}

fn node_uid(context: &Context<'_>, node: &str) -> Option<String> {
    stored::<Node>(context, "", "nodes", "", node)?.metadata.uid
}

/// See [`REFERENCES`].
pub(super) const SECRETS: &str = "secrets";
const ACCOUNT: &str = "a service account";
/// Fields that refer to something else, wherever they are, and to what; those are told of in this order.
const REFERENCES: &[(&str, &str)] = &[
    ("serviceAccountName", ACCOUNT),
    ("serviceAccountToken", ACCOUNT),
    ("secret", SECRETS),
    ("secretName", SECRETS),
    ("secretRef", SECRETS),
    ("secretKeyRef", SECRETS),
    ("nodePublishSecretRef", SECRETS),
    ("imagePullSecrets", SECRETS),
    ("configMap", "configmaps"),
    ("configMapRef", "configmaps"),
    ("configMapKeyRef", "configmaps"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims"),
    ("resourceClaims", "resourceclaims"),
    ("clusterTrustBundle", "clustertrustbundles"),
];

/// What else a pod refers to.
pub(super) fn references(spec: &Value) -> BTreeSet<&'static str> {
    let (mut found, mut rest) = (BTreeSet::new(), vec![spec]);
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(members) => {
                let says = |field: &str| match members.get(field) {
                    None | Some(Value::Null) => false,
                    Some(Value::Array(items)) => !items.is_empty(),
                    Some(_) => true,
                };
                let named = REFERENCES.iter().filter(|(field, _)| says(field));
                found.extend(named.map(|(_, what)| *what));
                rest.extend(members.values());
            }
            Value::Array(items) => rest.extend(items),
            _ => {}
        }
    }
    found
}

/// Refuses a token that a node asks for, unless it is bound to a pod of the node and for an audience that the pod names. The
/// account is the path's.
pub(crate) fn admit_token(context: &Context<'_>, asked: &TokenRequest) -> Result<(), StatusError> {
    let Some(node) = node_name(context.identity) else {
        return Ok(());
    };
    let why = wrong_token(context, node, asked);
    why.map_or(Ok(()), |why| Err(refused(context, context.name(), &why)))
}

fn wrong_token(context: &Context<'_>, node: &str, asked: &TokenRequest) -> Option<String> {
    let text = |field: Option<&String>| field.cloned().unwrap_or_default();
    let spec = asked.spec.as_ref();
    let bound = spec.and_then(|spec| spec.bound_object_ref.as_ref());
    let pod = bound.filter(|bound| {
        text(bound.api_version.as_ref()) == "v1" && text(bound.kind.as_ref()) == "Pod"
    });
    let name = pod.map(|pod| text(pod.name.as_ref())).unwrap_or_default();
    let uid = pod.map(|pod| text(pod.uid.as_ref())).unwrap_or_default();
    if name.is_empty() {
        return Some("node requested token not bound to a pod".to_owned());
    }
    if uid.is_empty() {
        return Some("node requested token with a pod binding without a uid".to_owned());
    }
    let namespace = context.namespace().unwrap_or_default();
    let Some(pod) = stored::<Pod>(context, "", "pods", namespace, &name) else {
        return Some(format!("pod {name:?} not found"));
    };
    if pod.metadata.uid.as_deref() != Some(uid.as_str()) {
        return Some(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    let pod = pod.spec.unwrap_or_default();
    if pod.node_name.as_deref() != Some(node) {
        return Some(
            "node requested token bound to a pod scheduled on a different node".to_owned(),
        );
    }
    if pod.service_account_name.as_deref() != Some(context.name()) {
        return Some("node requested token of an account that the pod does not have".to_owned());
    }
    let volumes = pod.volumes.iter().flatten();
    let sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
    let tokens = sources
        .flatten()
        .filter_map(|source| source.service_account_token.as_ref());
    // The API's own audience is the empty one.
    let named: BTreeSet<&str> = tokens
        .map(|token| token.audience.as_deref().unwrap_or_default())
        .collect();
    let audiences = spec.and_then(|spec| spec.audiences.as_deref());
    let audience = match audiences.unwrap_or_default() {
        [] => "",
        [one] => one.as_str(),
        _ => return Some("node may only request 0 or 1 audiences".to_owned()),
    };
    (!named.contains(audience) && !may_ask_for(context, audience)).then(|| {
        let user = &context.identity.user;
        format!(
            "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this audience"
        )
    })
}

/// Whether a role lets a node ask for tokens of this audience of the path's account, though no pod names it: registries are
/// shown such tokens.
fn may_ask_for(context: &Context<'_>, audience: &str) -> bool {
    let asked = Asked {
        user: context.identity,
        verb: "request-serviceaccounts-token-audience",
        target: Target::Resource {
            group: "",
            version: "v1",
            resource: audience,
            subresource: "",
            namespace: context.namespace().unwrap_or_default(),
            name: context.name(),
        },
    };
    context.api.authorisation.authorize(&asked) == Decision::Allow
}

#[cfg(test)]
mod tests;
