//! What a node may write: itself, its lease, and what it says of the pods bound to it. The rules are Kubernetes'
//! NodeRestriction's; beyond them, what Gantry's nodes say over their links, where it is checked, is not written past them.

use std::collections::BTreeSet;

use gantry_api::kind::Draft;
use gantry_api::node_labels::may_set;
use gantry_api::status::{Details, StatusError};
use http::Method;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
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

/// Subresources that lead to a pod, node or service and change nothing here: admission does not judge them.
const CONNECT: [&str; 4] = ["attach", "exec", "portforward", "proxy"];

/// Refuses what a node must not change, whatever it changes it to: before the body is read.
pub(crate) fn admit_request(context: &Context<'_>, method: &Method) -> Result<(), StatusError> {
    let Some(node) = node_name(context.identity) else {
        return Ok(());
    };
    let subresource = context.path.subresource.as_deref().unwrap_or_default();
    // What is behind a proxy has a path of its own.
    let subresource = subresource.split('/').next().unwrap_or_default();
    if [Method::GET, Method::HEAD].contains(method) || CONNECT.contains(&subresource) {
        return Ok(());
    }
    // A collection that is deleted has no name, which is no node's.
    let name = context.path.name.as_deref().unwrap_or_default();
    let refuse = |why: &str| Err(refused(context, name, why));
    if node.is_empty() {
        let user = &context.identity.user;
        return refuse(&format!("could not determine node from user {user:?}"));
    }
    let resource = resource(context);
    if resource == ("coordination.k8s.io", "leases") && context.namespace() != Some(LEASES) {
        return refuse(&format!(
            "can only access leases in the {LEASES:?} system namespace"
        ));
    }
    // What is created has its name in the body ([`wrong`]).
    if name.is_empty() && *method != Method::DELETE {
        return Ok(());
    }
    match resource {
        ("", "nodes") if name != node => refuse(&format!(
            "node {node:?} is not allowed to modify node {name:?}"
        )),
        ("", "pods") => admit_pod(context, node, subresource, method),
        ("", "persistentvolumeclaims") if subresource != "status" => refuse(NO_CLAIM),
        ("coordination.k8s.io", "leases") if name != node => refuse(&only_own("node lease")),
        ("storage.k8s.io", "csinodes") if name != node => refuse(&only_own("CSINode")),
        _ => Ok(()),
    }
}

const NO_CLAIM: &str = "may only update PVC status";

fn only_own(what: &str) -> String {
    format!("can only access {what} with the same name as the requesting node")
}

/// What a node does to a pod: it deletes and evicts those that are bound to it, and says what becomes of them.
fn admit_pod(
    context: &Context<'_>,
    node: &str,
    subresource: &str,
    method: &Method,
) -> Result<(), StatusError> {
    let name = context.path.name.as_deref().unwrap_or_default();
    let why = match (subresource, method.as_str()) {
        ("", "DELETE") => {
            format!("node {node:?} can only delete pods with spec.nodeName set to itself")
        }
        ("status", _) => only_own_status(node),
        ("eviction", _) => {
            format!("node {node} can only evict pods with spec.nodeName set to itself")
        }
        ("", _) => {
            let why = format!(
                "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
            );
            return Err(refused(context, name, &why));
        }
        (other, _) => {
            let why = format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            );
            return Err(refused(context, name, &why));
        }
    };
    match !name.is_empty() && is_bound(context, node)? {
        true => Ok(()),
        false => Err(refused(context, name, &why)),
    }
}

fn only_own_status(node: &str) -> String {
    format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
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
    if let Some(new) = draft.typed::<PersistentVolumeClaim>() {
        return match draft.typed_old::<PersistentVolumeClaim>() {
            None => Some(NO_CLAIM.to_owned()),
            Some(old) => of_claim(node, new, old),
        };
    }
    let is_new_of_another = draft.old().is_none() && draft.metadata().name.as_deref() != Some(node);
    let what = match resource(context) {
        ("coordination.k8s.io", "leases") => "node lease",
        ("storage.k8s.io", "csinodes") => "CSINode",
        _ => return None,
    };
    is_new_of_another.then(|| only_own(what))
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
    if let Some(why) = of_configuration(node, object, current) {
        return Some(why);
    }
    if let Some(current) = current {
        for (part, field) in [("spec", "taints"), ("metadata", "ownerReferences")] {
            if list(&object[part], field) != list(&current[part], field) {
                return Some(format!("node {node:?} is not allowed to modify {field}"));
            }
        }
    }
    let labels = changed_labels(object, current);
    let forbidden: Vec<&str> = labels.into_iter().filter(|key| !may_set(key)).collect();
    if !forbidden.is_empty() {
        let forbidden = forbidden.join(", ");
        return Some(match current {
            None => {
                format!("node {node:?} is not allowed to set the following labels: {forbidden}")
            }
            Some(_) => format!("is not allowed to modify labels: {forbidden}"),
        });
    }
    of_own_fields(node, object, current.unwrap_or(&Value::Null))
}

/// Where a kubelet once found how to run: whoever may choose it may read it.
fn of_configuration(node: &str, object: &Value, current: Option<&Value>) -> Option<String> {
    let source = |object: &Value| object["spec"]["configSource"].clone();
    let new = source(object);
    if new.is_null() || current.is_some_and(|current| source(current) == new) {
        return None;
    }
    let what = match current {
        None => "create pods with a non-nil configSource",
        Some(_) => "update configSource to a new non-nil configSource",
    };
    Some(format!("node {node:?} is not allowed to {what}"))
}

/// What is not written past a node's link.
fn of_own_fields(node: &str, object: &Value, current: &Value) -> Option<String> {
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

/// A list of an object: one that is not there is as good as empty.
fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    let list = object[field].as_array();
    list.map(Vec::as_slice).unwrap_or_default()
}

/// A pod's status, which its node writes.
fn of_pod(node: &str, object: &Value, current: &Value) -> Option<String> {
    if current["spec"]["nodeName"] != node {
        return Some(only_own_status(node));
    }
    if !changed_labels(object, Some(current)).is_empty() {
        return Some(format!(
            "node {node:?} cannot update labels through pod status"
        ));
    }
    let status = |object: &Value, field: &str| object["status"][field].clone();
    let differs = |field: &str| status(object, field) != status(current, field);
    let claims = "resourceClaimStatuses";
    if list(&object["status"], claims) != list(&current["status"], claims) {
        // As Kubernetes spells it.
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

/// A claim's status, of which its nodes say how far a change of its size is.
fn of_claim(
    node: &str,
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
) -> Option<String> {
    let rest = |claim: &PersistentVolumeClaim| {
        let mut claim = claim.clone();
        claim.metadata.resource_version = None;
        claim.metadata.managed_fields = None;
        let status = claim.status.get_or_insert_default();
        status.capacity = None;
        status.conditions = None;
        status.allocated_resource_statuses = None;
        status.allocated_resources = None;
        claim
    };
    (rest(new) != rest(old)).then(|| {
        format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        )
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
    let what = refers_to(&pod["spec"])?;
    Some(format!(
        "node {node:?} can not create pods that reference {what}"
    ))
}

fn node_uid(context: &Context<'_>, node: &str) -> Option<String> {
    stored::<Node>(context, "", "nodes", "", node)?.metadata.uid
}

/// See [`REFERENCES`].
pub(super) const SECRETS: &str = "secrets";
/// See [`REFERENCES`].
const CONFIG_MAPS: &str = "configmaps";
/// Fields by which a pod reads something, wherever they are, and what.
const REFERENCES: &[(&str, &str)] = &[
    ("secret", SECRETS),
    ("secretName", SECRETS),
    ("secretRef", SECRETS),
    ("secretKeyRef", SECRETS),
    ("nodePublishSecretRef", SECRETS),
    ("imagePullSecrets", SECRETS),
    ("configMap", CONFIG_MAPS),
    ("configMapRef", CONFIG_MAPS),
    ("configMapKeyRef", CONFIG_MAPS),
];
/// What else volumes refer to.
const OF_VOLUMES: &[(&str, &str)] = &[
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    (
        "ephemeral",
        "persistentvolumeclaims (via ephemeral volumes)",
    ),
];
/// What else the sources of projected volumes refer to.
const OF_SOURCES: &[(&str, &str)] = &[
    (
        "serviceAccountToken",
        "serviceaccounts (via projected volumes)",
    ),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

/// What else a pod refers to, as Kubernetes names it; the first of several.
fn refers_to(spec: &Value) -> Option<&'static str> {
    let mut accounts = ["serviceAccountName", "serviceAccount"].into_iter();
    if accounts.any(|field| !spec[field].as_str().unwrap_or_default().is_empty()) {
        return Some("serviceaccounts");
    }
    let found = references(spec);
    let mut read = [SECRETS, CONFIG_MAPS].into_iter();
    if let Some(what) = read.find(|what| found.contains(what)) {
        return Some(what);
    }
    if !list(spec, "resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    list(spec, "volumes").iter().find_map(|volume| {
        let sources = list(&volume["projected"], "sources");
        let mut of_sources = sources
            .iter()
            .filter_map(|source| names(source, OF_SOURCES));
        names(volume, OF_VOLUMES).or_else(|| of_sources.next())
    })
}

/// What the fields of an object say that it refers to.
fn names(object: &Value, fields: &[(&str, &'static str)]) -> Option<&'static str> {
    let mut fields = fields.iter();
    let found = fields.find(|(field, _)| object[*field].is_object());
    found.map(|(_, what)| *what)
}

/// What a pod reads, wherever in its spec it says so.
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
/// account is the path's; whether it is the pod's is asked of everybody.
pub(crate) fn admit_token(context: &Context<'_>, asked: &TokenRequest) -> Result<(), StatusError> {
    let Some(node) = node_name(context.identity) else {
        return Ok(());
    };
    let refuse = |why: &str| Err(refused(context, context.name(), why));
    let text = |field: Option<&String>| field.cloned().unwrap_or_default();
    let spec = asked.spec.as_ref();
    let bound = spec.and_then(|spec| spec.bound_object_ref.as_ref());
    let pod = bound.filter(|bound| {
        text(bound.api_version.as_ref()) == "v1" && text(bound.kind.as_ref()) == "Pod"
    });
    let name = pod.map(|pod| text(pod.name.as_ref())).unwrap_or_default();
    let uid = pod.map(|pod| text(pod.uid.as_ref())).unwrap_or_default();
    if name.is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let namespace = context.namespace().unwrap_or_default();
    let pod = stored::<Pod>(context, "", "pods", namespace, &name);
    let pod = pod.ok_or_else(|| pod_not_found(&name))?;
    if pod.metadata.uid.as_deref() != Some(uid.as_str()) {
        return refuse(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    let pod = pod.spec.unwrap_or_default();
    if pod.node_name.as_deref() != Some(node) {
        return refuse("node requested token bound to a pod scheduled on a different node");
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
        _ => return refuse("node may only request 0 or 1 audiences"),
    };
    if named.contains(audience) || may_ask_for(context, audience) {
        return Ok(());
    }
    let user = &context.identity.user;
    refuse(&format!(
        "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this audience"
    ))
}

/// 404 as Kubernetes says it where it looks into a cache.
fn pod_not_found(name: &str) -> StatusError {
    let details = Details {
        name: name.to_owned(),
        kind: "pod".to_owned(),
        ..Details::default()
    };
    let message = format!("pod {name:?} not found");
    StatusError::new(404, "NotFound", message, Some(details))
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
