//! OpenAPI v3, as far as clients use it: which paths there are, that writes take `fieldValidation`, and every type's
//! schema from the same source that decoding uses.

use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use serde_json::{Map, Value, json};

use crate::registry::Registry;

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

/// `/openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/VERSION`
pub(crate) fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
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
