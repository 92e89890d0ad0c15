//! What the server serves, in the three forms clients ask for it: group lists, resource lists, and aggregated.

use std::sync::Arc;

use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{Registry, Resource};

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

/// A subresource as discovery reports it.
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    /// Group and version, where they are not the parent's; empty strings otherwise.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

/// The subresources of a kind, sorted by name.
pub(crate) fn subresources(info: &ResourceInfo) -> Vec<Subresource> {
    let sub = |name, kind, verbs| Subresource {
        name,
        group: "",
        version: "",
        kind,
        verbs,
    };
    let mut list = match (info.group, info.kind) {
        ("", "Pod") => vec![
            sub("attach", "PodAttachOptions", &["create", "get"]),
            sub("binding", "Binding", &["create"]),
            Subresource {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            },
            sub("exec", "PodExecOptions", &["create", "get"]),
            sub("log", "Pod", &["get"]),
            sub("portforward", "PodPortForwardOptions", &["create", "get"]),
            sub("proxy", "PodProxyOptions", PROXY_VERBS),
        ],
        ("", "Node") => vec![sub("proxy", "NodeProxyOptions", PROXY_VERBS)],
        ("", "Service") => vec![sub("proxy", "ServiceProxyOptions", PROXY_VERBS)],
        ("", "Namespace") => vec![sub("finalize", "Namespace", &["update"])],
        ("", "ServiceAccount") => vec![Subresource {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        _ => Vec::new(),
    };
    if info.has_scale {
        list.push(Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: STATUS_VERBS,
        });
    }
    if info.has_status {
        list.push(sub("status", info.kind, STATUS_VERBS));
    }
    list.sort_by_key(|subresource| subresource.name);
    list
}

pub(crate) fn verbs(info: &ResourceInfo) -> Vec<&'static str> {
    VERBS
        .iter()
        .copied()
        .filter(|verb| info.kind != "Namespace" || *verb != "deletecollection")
        .collect()
}

/// Kubernetes' storageVersionHash: eight bytes of SHA-256 over `group/version/kind`, base64.
fn storage_version_hash(info: &ResourceInfo) -> String {
    use base64::Engine;
    let name = format!("{}/{}/{}", info.group, info.version, info.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(name.as_bytes())[..8])
}

fn group_version(info: &ResourceInfo) -> String {
    crate::codec::api_version(info)
}

/// Resources of one group and version, sorted by name.
fn of<'a>(registry: &'a Registry, group: &str, version: &str) -> Vec<&'a Arc<Resource>> {
    let mut found: Vec<_> = registry
        .all()
        .iter()
        .filter(|resource| resource.info().group == group && resource.info().version == version)
        .collect();
    found.sort_by_key(|resource| resource.info().plural);
    found
}

/// Group names other than core, each with its versions, in the order they are preferred.
fn groups(registry: &Registry) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for resource in registry.all() {
        let info = resource.info();
        if info.group.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(group, _)| *group == info.group) {
            Some((_, versions)) if versions.contains(&info.version) => {}
            Some((_, versions)) => versions.push(info.version),
            None => groups.push((info.group, vec![info.version])),
        }
    }
    groups.sort_by_key(|(group, _)| *group);
    groups
}

/// `/api`
pub(crate) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let version =
        |version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(|name| version(name)).collect::<Vec<_>>(),
        "preferredVersion": version(versions.first().copied().unwrap_or_default()),
    })
}

/// `/apis`
pub(crate) fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> = groups(registry)
        .iter()
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub(crate) fn group(registry: &Registry, name: &str) -> Option<Value> {
    let groups = groups(registry);
    let (group, versions) = groups.iter().find(|(group, _)| *group == name)?;
    let mut value = group_value(group, versions);
    *value.member(&["kind"]) = json!("APIGroup");
    *value.member(&["apiVersion"]) = json!("v1");
    Some(value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub(crate) fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let resources = of(registry, group, version);
    let first = resources.first()?;
    let mut list = Vec::new();
    if group.is_empty() {
        list.push(json!({
            "name": "bindings", "singularName": "binding", "namespaced": true, "kind": "Binding", "verbs": ["create"],
        }));
    }
    for resource in &resources {
        let info = resource.info();
        let mut value = json!({
            "name": info.plural,
            "singularName": info.singular,
            "namespaced": info.namespaced,
            "kind": info.kind,
            "verbs": verbs(info),
            "storageVersionHash": storage_version_hash(info),
        });
        for (field, names) in [
            ("shortNames", info.short_names),
            ("categories", info.categories),
        ] {
            if !names.is_empty() {
                value[field] = json!(names);
            }
        }
        list.push(value);
        for sub in subresources(info) {
            let mut value = json!({
                "name": format!("{}/{}", info.plural, sub.name),
                "singularName": "",
                "namespaced": info.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if !sub.version.is_empty() {
                *value.member(&["group"]) = json!(sub.group);
                *value.member(&["version"]) = json!(sub.version);
            }
            list.push(value);
        }
    }
    let mut document = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version(first.info()),
        "resources": list,
    });
    if !group.is_empty() {
        *document.member(&["apiVersion"]) = json!("v1");
    }
    Some(document)
}

/// The aggregated form of `/api` (`core`) or `/apis`.
pub(crate) fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups = match core {
        true => vec![("", vec!["v1"])],
        false => groups(registry),
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let metadata = match group.is_empty() {
                true => json!({}),
                false => json!({"name": group}),
            };
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let mut resources: Vec<Value> = of(registry, group, version)
                        .iter()
                        .map(|resource| aggregated_resource(resource.info()))
                        .collect();
                    if group.is_empty() {
                        resources.insert(
                            0,
                            json!({
                                "resource": "bindings",
                                "responseKind": {"group": "", "version": "", "kind": "Binding"},
                                "scope": "Namespaced",
                                "singularResource": "binding",
                                "verbs": ["create"],
                            }),
                        );
                    }
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(info: &ResourceInfo) -> Value {
    let mut value = json!({
        "resource": info.plural,
        "responseKind": {"group": "", "version": "", "kind": info.kind},
        "scope": if info.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": info.singular,
        "verbs": verbs(info),
    });
    for (field, names) in [
        ("shortNames", info.short_names),
        ("categories", info.categories),
    ] {
        if !names.is_empty() {
            value[field] = json!(names);
        }
    }
    let subresources: Vec<Value> = subresources(info)
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        *value.member(&["subresources"]) = Value::Array(subresources);
    }
    value
}
