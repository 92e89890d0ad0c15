//! OpenAPI v3: a document for every group and version, and for what tells which there are.

use gantry_api::json::Members;
use gantry_api::schema::published::REFERENCE;
use serde_json::{Map, Value, json};

use super::operations::{self, Operation, Path};
use super::parameters::Parameter;
use super::schemas::{Schemas, VERSION, meta};
use super::{RELEASE, each_schema, group_versions, item, root};
use crate::registry::{Registry, Resource};

/// What a reference starts with.
const COMPONENTS: &str = "#/components/schemas/";
/// What tells who issues tokens, and by which keys.
const ISSUER: &str = ".well-known/openid-configuration";
const KEYS: &str = "openid/v1/jwks";

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("{COMPONENTS}{schema}")})
}

fn parameter(parameter: &Parameter) -> Value {
    let mut written = json!({
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "schema": {"type": parameter.kind, "uniqueItems": true},
    });
    if parameter.place == "path" {
        *written.member(&["required"]) = json!(true);
    }
    written
}

fn content(media_types: &[&str], schema: &Value) -> Value {
    let content: Map<String, Value> = media_types
        .iter()
        .map(|media_type| ((*media_type).to_owned(), json!({"schema": schema})))
        .collect();
    Value::Object(content)
}

fn operation(operation: &Operation) -> Value {
    let schema = match &operation.answer {
        Some(schema) => reference(schema),
        None => json!({"type": "string"}),
    };
    let mut responses: Map<String, Value> = operation
        .codes
        .iter()
        .map(|code| {
            let content = content(operation.produces, &schema);
            let answer = json!({"description": super::reason(*code), "content": content});
            (code.to_string(), answer)
        })
        .collect();
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    let mut written = json!({
        "description": operation.description,
        "operationId": operation.id,
        "responses": responses,
        "tags": [operation.tag],
    });
    if !operation.parameters.is_empty() {
        let parameters = operation.parameters.iter().map(parameter).collect();
        *written.member(&["parameters"]) = parameters;
    }
    if let Some(body) = &operation.body {
        let mut request = json!({"content": content(operation.consumes, &reference(&body.schema))});
        if body.required {
            *request.member(&["required"]) = json!(true);
        }
        *written.member(&["requestBody"]) = request;
    }
    super::extend(&mut written, operation);
    written
}

/// A schema in the form of this version.
fn convert(schema: &mut Map<String, Value>) {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let name = target.strip_prefix(REFERENCE).unwrap_or(target).to_owned();
        // Nothing may stand beside a reference.
        if schema.len() == 1 {
            schema.insert("$ref".to_owned(), json!(format!("{COMPONENTS}{name}")));
        } else {
            schema.remove("$ref");
            schema.insert("allOf".to_owned(), json!([reference(&name)]));
        }
    }
}

/// The scalars that have forms of their own.
fn convert_scalar(name: &str, schema: &mut Value) {
    let forms = match name.rsplit('.').next() {
        Some("IntOrString") => json!([{"type": "integer"}, {"type": "string"}]),
        Some("Quantity") => json!([{"type": "string"}, {"type": "number"}]),
        _ => return,
    };
    if let Value::Object(schema) = schema {
        schema.remove("type");
        schema.insert("oneOf".to_owned(), forms);
    }
}

/// Where documents are, below `/openapi/v3/`.
pub(super) fn roots(registry: &Registry) -> Vec<String> {
    let mut roots: Vec<String> = ["api", "apis", "version", ISSUER, KEYS]
        .map(str::to_owned)
        .into();
    for (group, version) in group_versions(registry) {
        if !group.is_empty() {
            roots.push(["apis/", group].concat());
        }
        roots.push(root(group, version));
    }
    roots.sort_unstable();
    roots.dedup();
    roots
}

/// The document at a root; none where nothing is served.
pub(super) fn document(registry: &Registry, at: &str) -> Option<Value> {
    let overview = operations::overview;
    let (paths, schemas) = match at {
        "api" => {
            let path = overview("/api/", "getCoreAPIVersions", "core", &meta("APIVersions"));
            (vec![path], Schemas::of_overviews())
        }
        "apis" => {
            let path = overview("/apis/", "getAPIVersions", "apis", &meta("APIGroupList"));
            (vec![path], Schemas::of_overviews())
        }
        "version" => {
            let path = overview("/version/", "getCodeVersion", "version", VERSION);
            (vec![path], Schemas::of_overviews())
        }
        ISSUER => (
            vec![of_tokens(at, "Configuration", &["application/json"])],
            Schemas::of_overviews(),
        ),
        KEYS => (
            vec![of_tokens(at, "Keyset", &["application/jwk-set+json"])],
            Schemas::of_overviews(),
        ),
        _ => {
            let versions = group_versions(registry);
            let known = versions
                .iter()
                .find(|(group, version)| root(group, version) == at);
            match known {
                Some((group, version)) => of_version(registry, at, group, version),
                None => {
                    let group = at.strip_prefix("apis/")?;
                    versions
                        .iter()
                        .find(|(known, _)| !known.is_empty() && *known == group)?;
                    (vec![operations::group(group)], Schemas::of_overviews())
                }
            }
        }
    };
    let mut written: Map<String, Value> = Map::new();
    let used: Vec<String> = paths.iter().flat_map(schemas_of).collect();
    for path in &paths {
        written.insert(path.path.clone(), item(path, operation, parameter));
    }
    let used: Value = used
        .iter()
        .map(|name| json!({"$ref": format!("{REFERENCE}{name}")}))
        .collect();
    let mut components = schemas.reachable(&used);
    for (name, schema) in components.iter_mut() {
        each_schema(schema, &convert);
        convert_scalar(name, schema);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": RELEASE},
        "paths": written,
        "components": {
            "schemas": components,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey",
                "in": "header",
                "name": "authorization",
                "description": "Bearer Token authentication",
            }},
        },
    }))
}

/// The paths of a group and version that is served at a root, and the schemas they may use.
fn of_version(registry: &Registry, at: &str, group: &str, version: &str) -> (Vec<Path>, Schemas) {
    let all = registry.all().iter().map(|resource| &**resource);
    let resources: Vec<&Resource> = all
        .filter(|resource| (&*resource.info().group, &*resource.info().version) == (group, version))
        .collect();
    let schemas = Schemas::of(registry, resources.iter().copied());
    let mut paths = vec![operations::version(at, group, version)];
    for resource in resources {
        paths.extend(operations::of(resource, at, &schemas));
    }
    (paths, schemas)
}

/// What tells who issues tokens.
fn of_tokens(at: &str, what: &str, produces: &'static [&'static str]) -> Path {
    let id = format!("getServiceAccountIssuerOpenID{what}");
    let mut path = operations::overview(&["/", at, "/"].concat(), &id, "openid", "");
    for operation in &mut path.operations {
        operation.answer = None;
        operation.produces = produces;
    }
    path
}

/// The schemas that a path names.
fn schemas_of(path: &Path) -> Vec<String> {
    let operations = path.operations.iter();
    operations
        .flat_map(|operation| {
            let body = operation.body.as_ref().map(|body| body.schema.clone());
            [body, operation.answer.clone()]
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::gnostic;
    use super::*;

    fn served() -> Registry {
        Registry::built_in()
    }

    #[test]
    fn schemas_have_the_form_of_this_version() {
        let apps = document(&served(), "apis/apps/v1").expect("is served");
        let schemas = &apps["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"];
        assert_eq!(
            deployment["spec"]["allOf"],
            json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}])
        );
        assert_eq!(deployment["spec"]["default"], json!({}));
        let pod = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(
            pod["volumes"]["x-kubernetes-patch-strategy"],
            "merge,retainKeys"
        );
        assert_eq!(
            schemas["io.k8s.api.core.v1.ResourceRequirements"]["properties"]["limits"]["additionalProperties"],
            json!({"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.api.resource.Quantity"})
        );
        let either = &schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(either["format"], "int-or-string");
        assert_eq!(
            either["oneOf"],
            json!([{"type": "integer"}, {"type": "string"}])
        );
        let names = "io.k8s.apimachinery.pkg.apis.meta.v1";
        for kind in ["Status", "DeleteOptions", "WatchEvent", "Patch", "ListMeta"] {
            assert!(schemas.get(format!("{names}.{kind}")).is_some(), "{kind}");
        }
        let options = &schemas[format!("{names}.DeleteOptions")]["x-kubernetes-group-version-kind"];
        let options = options.as_array().expect("a list");
        assert!(
            options.contains(&json!({"group": "apps", "version": "v1", "kind": "DeleteOptions"}))
        );
        assert!(options.contains(&json!({"group": "", "version": "v1", "kind": "DeleteOptions"})));
    }

    #[test]
    fn every_reference_of_every_document_leads_somewhere() {
        let registry = served();
        for root in roots(&registry) {
            let document = document(&registry, &root).expect(&root);
            assert!(!document["paths"].as_object().expect("paths").is_empty());
            let text = document.to_string();
            for reference in text.split(r##""$ref":"##).skip(1) {
                let target = reference.split('"').nth(1).expect("a text");
                let name = target.strip_prefix(COMPONENTS).expect(target);
                assert!(
                    document["components"]["schemas"].get(name).is_some(),
                    "{root}: {name}"
                );
            }
            let bytes = gnostic::V3.document(&document);
            let schemas = document["components"]["schemas"].as_object().map(Map::len);
            assert_eq!(
                Some(gnostic::tests::at(&bytes, &[5, 1, 1]).len()),
                schemas,
                "{root}"
            );
        }
        for none in [
            "apis/made.up",
            "apis/apps/v9",
            "apis/",
            "",
            "api/v2",
            "apis/apps/v1/x",
        ] {
            assert_eq!(document(&registry, none), None, "{none}");
        }
    }

    #[test]
    fn writes_take_what_kubectl_looks_for() {
        let core = document(&served(), "api/v1").expect("is served");
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
        assert_eq!(patch["x-kubernetes-group-version-kind"], kind);
        let parameters = patch["parameters"].as_array().expect("a list");
        for wanted in ["fieldValidation", "dryRun"] {
            assert!(
                parameters.iter().any(|one| one["name"] == wanted),
                "{wanted}"
            );
        }
        let merge = "application/strategic-merge-patch+json";
        assert!(patch["requestBody"]["content"].get(merge).is_some());
    }
}
