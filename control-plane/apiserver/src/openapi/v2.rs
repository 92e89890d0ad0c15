//! OpenAPI v2 of all that is served, in one document.

use gantry_api::json::Members;
use gantry_api::schema::published::REFERENCE;
use serde_json::{Map, Value, json};

use super::operations::{self, Operation, Path};
use super::parameters::Parameter;
use super::schemas::{Schemas, VERSION, meta};
use super::{RELEASE, each_schema, group_versions, item, root};
use crate::registry::Registry;

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("{REFERENCE}{schema}")})
}

fn parameter(parameter: &Parameter) -> Value {
    let mut written = json!({
        "name": parameter.name,
        "in": parameter.place,
        "type": parameter.kind,
        "description": parameter.description,
        "uniqueItems": true,
    });
    if parameter.place == "path" {
        *written.member(&["required"]) = json!(true);
    }
    written
}

fn operation(operation: &Operation) -> Value {
    let mut parameters: Vec<Value> = operation.parameters.iter().map(parameter).collect();
    if let Some(body) = &operation.body {
        let mut written = json!({"name": "body", "in": "body", "schema": reference(&body.schema)});
        if body.required {
            *written.member(&["required"]) = json!(true);
        }
        parameters.push(written);
    }
    let schema = match &operation.answer {
        Some(schema) => reference(schema),
        None => json!({"type": "string"}),
    };
    let mut responses: Map<String, Value> = operation
        .codes
        .iter()
        .map(|code| {
            let answer = json!({"description": super::reason(*code), "schema": schema});
            (code.to_string(), answer)
        })
        .collect();
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    let mut written = json!({
        "consumes": operation.consumes,
        "description": operation.description,
        "operationId": operation.id,
        "produces": operation.produces,
        "responses": responses,
        "schemes": ["https"],
        "tags": [operation.tag],
    });
    if !parameters.is_empty() {
        *written.member(&["parameters"]) = Value::Array(parameters);
    }
    super::extend(&mut written, operation);
    written
}

/// All paths that are served.
fn paths(registry: &Registry, schemas: &Schemas) -> Vec<Path> {
    let overview = operations::overview;
    let mut paths = vec![
        overview("/api/", "getCoreAPIVersions", "core", &meta("APIVersions")),
        overview("/apis/", "getAPIVersions", "apis", &meta("APIGroupList")),
        overview("/version/", "getCodeVersion", "version", VERSION),
    ];
    let mut last = "";
    for (group, version) in group_versions(registry) {
        if group != last {
            paths.push(operations::group(group));
            last = group;
        }
        let root = root(group, version);
        paths.push(operations::version(&root, group, version));
    }
    for resource in registry.all() {
        let info = resource.info();
        let root = root(&info.group, &info.version);
        paths.extend(operations::of(resource, &root, schemas));
    }
    paths
}

/// The document.
pub(super) fn document(registry: &Registry) -> Value {
    let resources = registry.all().iter().map(|resource| &**resource);
    let mut schemas = Schemas::of(registry, resources);
    schemas.add(Schemas::of_overviews());
    let paths: Map<String, Value> = paths(registry, &schemas)
        .iter()
        .map(|path| (path.path.clone(), item(path, operation, parameter)))
        .collect();
    let paths = Value::Object(paths);
    let mut definitions = schemas.reachable(&paths);
    // Clients of this version take a default for a value that is wanted.
    for schema in definitions.values_mut() {
        each_schema(schema, &|schema| {
            schema.remove("default");
        });
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": RELEASE},
        "paths": paths,
        "definitions": definitions,
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey",
            "in": "header",
            "name": "authorization",
            "description": "Bearer Token authentication",
        }},
    })
}

#[cfg(test)]
mod tests {
    use super::super::gnostic;
    use super::*;

    #[test]
    fn kinds_are_found_by_their_definitions_and_operations() {
        let document = document(&Registry::built_in());
        let definitions = &document["definitions"];
        let deployment = &definitions["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            deployment["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
        );
        let container = &definitions["io.k8s.api.core.v1.Container"]["properties"];
        assert_eq!(container["env"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(container["name"].get("default"), None);
        assert_eq!(
            definitions["io.k8s.api.apps.v1.DeploymentList"]["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "version": "v1", "kind": "DeploymentList"}])
        );
        // A property may have the name of a word of schemas.
        let schema = json!({"properties": {"default": {"default": 1, "type": "integer"}}});
        let mut changed = schema.clone();
        each_schema(&mut changed, &|schema| {
            schema.remove("default");
        });
        assert_eq!(
            changed,
            json!({"properties": {"default": {"type": "integer"}}})
        );
        let object = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
        let patch = &document["paths"][object]["patch"];
        assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
        assert_eq!(patch["x-kubernetes-action"], "patch");
        let parameters = patch["parameters"].as_array().expect("a list");
        let names: Vec<&str> = parameters
            .iter()
            .filter_map(|one| one["name"].as_str())
            .collect();
        assert_eq!(
            names,
            ["dryRun", "fieldManager", "fieldValidation", "force", "body"]
        );
        for (path, method, id) in [
            ("/api/v1/pods", "get", "listCoreV1PodForAllNamespaces"),
            ("/api/v1/namespaces", "post", "createCoreV1Namespace"),
            (
                "/api/v1/namespaces/{namespace}/pods",
                "delete",
                "deleteCoreV1CollectionNamespacedPod",
            ),
            (
                "/api/v1/namespaces/{namespace}/pods/{name}/log",
                "get",
                "readCoreV1NamespacedPodLog",
            ),
            (
                "/api/v1/namespaces/{namespace}/pods/{name}/exec",
                "post",
                "connectCoreV1PostNamespacedPodExec",
            ),
            (
                "/api/v1/namespaces/{namespace}/pods/{name}/eviction",
                "post",
                "createCoreV1NamespacedPodEviction",
            ),
            (
                "/api/v1/nodes/{name}/proxy/{path}",
                "put",
                "connectCoreV1PutNodeProxyWithPath",
            ),
            (
                "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
                "patch",
                "patchAppsV1NamespacedDeploymentScale",
            ),
            (
                "/apis/apps/v1/watch/deployments",
                "get",
                "watchAppsV1DeploymentListForAllNamespaces",
            ),
            (
                "/apis/networking.k8s.io/v1/ingressclasses",
                "get",
                "listNetworkingV1IngressClass",
            ),
            ("/apis/apps/", "get", "getAppsAPIGroup"),
            ("/api/v1/", "get", "getCoreV1APIResources"),
        ] {
            assert_eq!(document["paths"][path][method]["operationId"], id, "{path}");
        }
        let scale =
            &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"];
        assert_eq!(
            scale["get"]["x-kubernetes-group-version-kind"],
            json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
        );
        assert_eq!(document["paths"]["/api/v1/namespaces"].get("delete"), None);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_every_reference_leads_somewhere() {
        let document = document(&Registry::built_in());
        let mut ids = std::collections::HashSet::new();
        let paths = document["paths"].as_object().expect("paths");
        let operations = paths.values().filter_map(Value::as_object).flatten();
        for (_, operation) in operations.filter(|(method, _)| *method != "parameters") {
            let id = operation["operationId"].as_str().expect("a name");
            assert!(ids.insert(id), "{id}");
        }
        assert!(ids.len() > 200);
        let text = document.to_string();
        for reference in text.split(r##""$ref":"##).skip(1) {
            let target = reference.split('"').nth(1).expect("a text");
            let name = target.strip_prefix(REFERENCE).expect(target);
            assert!(document["definitions"].get(name).is_some(), "{name}");
        }
        // What is read by gnostic is all of it.
        let bytes = gnostic::V2.document(&document);
        let count = |path: &[u32]| gnostic::tests::at(&bytes, path).len();
        assert_eq!(count(&[8, 2]), paths.len());
        let definitions = document["definitions"].as_object().map(Map::len);
        assert_eq!(Some(count(&[9, 1])), definitions);
    }
}
