//! What the server serves, as clients ask for it: group lists, resource lists, and all at once (`aggregated`). All of it
//! follows from the registry and the table of subresources.

mod aggregated;

pub(crate) use aggregated::Aggregated;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{Registry, Resource};

/// Kubernetes' groups, the first ones first; groups that are not its own follow, by name.
const GROUPS: &[&str] = &[
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// Kubernetes' storageVersionHash: eight bytes of SHA-256 over `group/version/kind` of what is stored, base64; nothing of what
/// is not.
fn storage_version_hash(resource: &Resource) -> Option<String> {
    if resource.is_virtual() {
        return None;
    }
    let info = resource.storage_kind().info();
    let name = format!("{}/{}/{}", info.group, info.version, info.kind);
    let digest = Sha256::digest(name.as_bytes());
    Some(STANDARD.encode(digest.get(..8).unwrap_or_default()))
}

/// Resources of one group and version, sorted by name.
fn of<'a>(registry: &'a Registry, group: &str, version: &str) -> Vec<&'a Arc<Resource>> {
    let mut found: Vec<_> = registry
        .all()
        .iter()
        .filter(|resource| resource.info().group == group && resource.info().version == version)
        .collect();
    found.sort_by(|one, other| one.info().plural.cmp(&other.info().plural));
    found
}

/// Group names other than core, each with its versions, in the order they are preferred.
fn groups(registry: &Registry) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in registry.all() {
        let info = resource.info();
        let (group, version): (&str, &str) = (&info.group, &info.version);
        if group.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    let others = registry.groups().iter();
    groups.extend(others.map(|group| (group.name, group.versions.to_vec())));
    let rank = |group: &str| {
        let known = GROUPS.iter().position(|known| *known == group);
        known.unwrap_or(GROUPS.len())
    };
    groups.sort_by(|&(one, _), &(other, _)| (rank(one), one).cmp(&(rank(other), other)));
    groups
}

/// Short names and categories, of a resource that has any.
fn add_names(info: &ResourceInfo, to: &mut Value) {
    for (field, names) in [
        ("shortNames", &info.short_names),
        ("categories", &info.categories),
    ] {
        if !names.is_empty() {
            *to.member(&[field]) = json!(names);
        }
    }
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
    for resource in &resources {
        let info = resource.info();
        let mut value = json!({
            "name": info.plural,
            "singularName": info.singular,
            "namespaced": info.namespaced,
            "kind": info.kind,
            "verbs": resource.verbs(),
        });
        if let Some(hash) = storage_version_hash(resource) {
            *value.member(&["storageVersionHash"]) = json!(hash);
        }
        add_names(info, &mut value);
        list.push(value);
        for sub in resource.subresources() {
            let mut value = json!({
                "name": format!("{}/{}", info.plural, sub.name),
                "singularName": "",
                "namespaced": info.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs().collect::<Vec<_>>(),
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
        "groupVersion": first.info().api_version(),
        "resources": list,
    });
    if !group.is_empty() {
        *document.member(&["apiVersion"]) = json!("v1");
    }
    Some(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_in_their_order_and_each_once() {
        let registry = Registry::built_in();
        let names: Vec<&str> = groups(&registry).iter().map(|(group, _)| *group).collect();
        let mut expected: Vec<&str> = GROUPS.to_vec();
        expected.retain(|group| names.contains(group));
        assert_eq!(names, expected);
    }

    #[test]
    fn a_resource_list_follows_from_the_registry() {
        let registry = Registry::built_in();
        let list = resource_list(&registry, "", "v1").expect("is served");
        let find = |name: &str| {
            let resources = list["resources"].as_array().expect("a list");
            resources.iter().find(|one| one["name"] == name).cloned()
        };
        let bindings = find("bindings").expect("is listed");
        assert_eq!(
            bindings,
            json!({"name": "bindings", "singularName": "binding", "namespaced": true, "kind": "Binding", "verbs": ["create"]})
        );
        let eviction = find("pods/eviction").expect("is listed");
        assert_eq!(
            eviction,
            json!({
                "name": "pods/eviction", "singularName": "", "namespaced": true,
                "group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"],
            })
        );
        let namespaces = find("namespaces").expect("is listed");
        assert!(!namespaces["verbs"].to_string().contains("deletecollection"));
        assert_eq!(
            find("nodes/proxy").expect("is listed")["verbs"],
            json!(["create", "delete", "get", "patch", "update"])
        );
        assert_eq!(resource_list(&registry, "", "v2"), None);
    }
}
