//! OpenAPI v3, as far as clients use it: which paths there are, that writes take `fieldValidation`, and every type's
//! schema from the same source that decoding uses.

use std::collections::HashMap;

use bytes::Bytes;
use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use gantry_api::yaml;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::media::Format;
use crate::registry::Registry;

/// The documents of all groups and versions. Making one takes milliseconds and half a megabyte, and none ever changes: each
/// is made once, when somebody first asks for it.
#[derive(Default)]
pub(crate) struct Documents {
    json: Mutex<HashMap<String, Bytes>>,
    yaml: Mutex<HashMap<String, Bytes>>,
}

impl Documents {
    /// `/openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/VERSION`; none of what is not served, so that there are few.
    pub(crate) fn get(
        &self,
        registry: &Registry,
        group: &str,
        version: &str,
        format: Format,
    ) -> Option<Bytes> {
        let mut made = match format {
            Format::Json => self.json.lock(),
            Format::Yaml => self.yaml.lock(),
        };
        let root = root(group, version);
        if let Some(bytes) = made.get(&root) {
            return Some(bytes.clone());
        }
        let document = document(registry, group, version)?;
        let text = match format {
            Format::Json => document.to_string(),
            Format::Yaml => yaml::to_string(&document),
        };
        let bytes = Bytes::from(text);
        made.insert(root, bytes.clone());
        Some(bytes)
    }
}

/// Where a group and version is served, as the index names it.
fn root(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

/// `/openapi/v3`
pub(crate) fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for resource in registry.all() {
        let info = resource.info();
        let root = root(info.group, info.version);
        // The hash tells caches when to read again: the version of this binary is what changes documents.
        let url = format!("/openapi/v3/{root}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(root, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn parameter(name: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "query", "description": description, "schema": {"type": "string", "uniqueItems": true},
    })
}

fn operation(info: &ResourceInfo, action: &str, schema: &str) -> Value {
    let mut parameters = Vec::new();
    if ["post", "put", "patch"].contains(&action) {
        parameters.push(parameter(
            "dryRun",
            "`All` checks everything and changes nothing.",
        ));
        parameters.push(parameter("fieldManager", "Who makes the change."));
        parameters.push(parameter(
            "fieldValidation",
            "What happens to unknown and duplicate fields: Ignore, Warn or Strict.",
        ));
    }
    let reference = json!({"$ref": format!("#/components/schemas/{schema}")});
    let mut operation = json!({
        "operationId": format!("{action}{}{}", info.version, info.kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": info.group, "version": info.version, "kind": info.kind},
    });
    match action {
        "post" | "put" => {
            *operation.member(&["requestBody"]) = json!({"content": {"*/*": {"schema": reference}}})
        }
        "patch" => {
            let any = json!({"schema": {"type": "object"}});
            *operation.member(&["requestBody"]) = json!({"content": {
                "application/json-patch+json": any,
                "application/merge-patch+json": any,
                "application/strategic-merge-patch+json": any,
            }});
        }
        _ => {}
    }
    operation
}

fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in registry.all() {
        let info = resource.info();
        if info.group != group || info.version != version {
            continue;
        }
        let (name, definitions) = resource.kind.openapi();
        schemas.extend(definitions);
        if let Some(schema) = schemas.get_mut(&name) {
            *schema.member(&["x-kubernetes-group-version-kind"]) =
                json!([{"group": group, "version": version, "kind": info.kind}]);
        }
        let scope = if info.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let collection = format!("/{}{scope}/{}", root(group, version), info.plural);
        let operations = |actions: &[&str]| -> Value {
            actions
                .iter()
                .map(|action| ((*action).to_owned(), operation(info, action, &name)))
                .collect::<Map<_, _>>()
                .into()
        };
        paths.insert(collection.clone(), operations(&["get", "post", "delete"]));
        paths.insert(
            format!("{collection}/{{name}}"),
            operations(&["get", "put", "patch", "delete"]),
        );
        if info.has_status {
            paths.insert(
                format!("{collection}/{{name}}/status"),
                operations(&["get", "put", "patch"]),
            );
        }
    }
    if paths.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_made_once() {
        let (documents, registry) = (
            Documents::default(),
            Registry::new(gantry_api::kinds::all()),
        );
        for format in [Format::Json, Format::Yaml] {
            let get = |group: &str| documents.get(&registry, group, "v1", format);
            let first = get("apps").expect("is served");
            let second = get("apps").expect("is served");
            assert_eq!(first.as_ptr(), second.as_ptr());
            assert_ne!(get("").expect("is served"), first);
            assert_eq!(get("made.up"), None);
        }
        assert_eq!(
            (documents.json.lock().len(), documents.yaml.lock().len()),
            (2, 2)
        );
        let json = documents.get(&registry, "apps", "v1", Format::Json);
        let yaml = documents.get(&registry, "apps", "v1", Format::Yaml);
        let json: Value = serde_json::from_slice(&json.expect("is served")).expect("JSON");
        let yaml = yaml::document(&yaml.expect("is served")).expect("YAML");
        assert_eq!(yaml.to_value(), Ok(json));
    }
}
