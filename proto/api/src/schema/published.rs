//! What clients are told of types: their JSON schemas with all that Kubernetes adds for clients that patch, validate and
//! explain, in the form of OpenAPI v2. References lead to [`REFERENCE`]; a reference may have a description and a default
//! beside it.

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::facts::{FACTS, Facts};
use super::{Absent, short};

/// What a reference to a schema starts with; its name follows.
pub const REFERENCE: &str = "#/definitions/";
/// The extension that says which kinds a schema is of.
pub const KINDS: &str = "x-kubernetes-group-version-kind";

/// Types that JSON writes as scalars, or as anything.
const UNSTRUCTURED: &[&str] = &[
    "FieldsV1",
    "IntOrString",
    "JSON",
    "JSONSchemaPropsOrArray",
    "JSONSchemaPropsOrBool",
    "JSONSchemaPropsOrStringArray",
    "MicroTime",
    "Quantity",
    "RawExtension",
    "Time",
];

/// The name of a type's schema, and that schema with all it refers to, by name.
pub fn definitions<T: JsonSchema>() -> (String, Map<String, Value>) {
    let (name, mut definitions) = super::definitions::<T>();
    for (name, definition) in definitions.iter_mut() {
        publish(name, definition);
    }
    (name, definitions)
}

/// The API group of a type, by its schema's name: `apps` for `io.k8s.api.apps.v1.Deployment`.
pub fn group_of(schema: &str) -> Option<&'static str> {
    let package = schema.rsplit('.').nth(2)?;
    let facts: &Facts = &FACTS;
    facts.groups.get(package).copied()
}

/// The last part of a schema's name: `Deployment`.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

fn publish(name: &str, definition: &mut Value) {
    let Value::Object(schema) = definition else {
        return;
    };
    match last(name) {
        "Quantity" => {
            schema.remove("x-kubernetes-int-or-string");
            schema.insert("type".to_owned(), json!("string"));
        }
        "IntOrString" => {
            schema.remove("x-kubernetes-int-or-string");
            schema.insert("type".to_owned(), json!("string"));
            schema.insert("format".to_owned(), json!("int-or-string"));
        }
        "JSON"
        | "JSONSchemaPropsOrArray"
        | "JSONSchemaPropsOrBool"
        | "JSONSchemaPropsOrStringArray" => schema.retain(|key, _| key == "description"),
        _ => publish_struct(name, schema),
    }
}

fn publish_struct(name: &str, schema: &mut Map<String, Value>) {
    let facts: &Facts = &FACTS;
    let owner = short(name);
    let required = required(owner, schema);
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (field, property) in properties.iter_mut() {
            let is_required = required.iter().any(|name| name == field);
            publish_field(owner, field, is_required, property);
        }
        let is_kind = ["apiVersion", "kind", "metadata"]
            .iter()
            .all(|field| properties.contains_key(*field));
        let version = name.rsplit('.').nth(1);
        if let (true, Some(group), Some(version)) = (is_kind, group_of(name), version) {
            let kind = json!([{"group": group, "version": version, "kind": last(name)}]);
            schema.insert(KINDS.to_owned(), kind);
        }
    }
    match required.is_empty() {
        true => schema.remove("required"),
        false => schema.insert("required".to_owned(), json!(required)),
    };
    if let Some(map_type) = facts.map_types.get(owner) {
        schema.insert("x-kubernetes-map-type".to_owned(), json!(map_type));
    }
    let unions = facts.unions.get(owner);
    if let Some(unions) = unions.and_then(|text| serde_json::from_str(text).ok()) {
        schema.insert("x-kubernetes-unions".to_owned(), unions);
    }
}

/// The fields that Kubernetes requires. The generated types require metadata, which may be left out, and names that are ""
/// by default.
fn required(owner: &str, schema: &Map<String, Value>) -> Vec<String> {
    let facts: &Facts = &FACTS;
    if schema
        .get("properties")
        .is_some_and(|properties| properties.get("metadata").is_some())
    {
        let fields = facts.required.get(owner).into_iter().flatten();
        return fields.map(|field| (*field).to_owned()).collect();
    }
    let listed = schema.get("required").and_then(Value::as_array);
    listed
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|field| facts.defaults.get(&(owner, *field)) != Some(&"\"\""))
        .map(str::to_owned)
        .collect()
}

fn publish_field(owner: &str, field: &str, is_required: bool, property: &mut Value) {
    let facts: &Facts = &FACTS;
    let key = (owner, field);
    refer(property);
    let Value::Object(schema) = property else {
        return;
    };
    let merge = facts.merges.get(&key).cloned().unwrap_or_default();
    let mut strategies = Vec::new();
    for (has, strategy) in [
        (merge.merge, "merge"),
        (merge.replace, "replace"),
        (merge.retain_keys, "retainKeys"),
    ] {
        if has {
            strategies.push(strategy);
        }
    }
    if !strategies.is_empty() {
        let strategies = strategies.join(",");
        schema.insert("x-kubernetes-patch-strategy".to_owned(), json!(strategies));
    }
    if let Some(key) = merge.key {
        schema.insert("x-kubernetes-patch-merge-key".to_owned(), json!(key));
    }
    if let Some(list_type) = merge.list_type {
        let extension = match schema.get("type").and_then(Value::as_str) {
            Some("array") => "x-kubernetes-list-type",
            _ => "x-kubernetes-map-type",
        };
        schema.insert(extension.to_owned(), json!(list_type));
    }
    if !merge.map_keys.is_empty() {
        let keys = json!(merge.map_keys);
        schema.insert("x-kubernetes-list-map-keys".to_owned(), keys);
    }
    if let Some(default) = default_of(key, is_required, schema) {
        schema.insert("default".to_owned(), default);
    }
}

/// What a field is when nobody sets it: what Kubernetes declares, else what Go writes.
fn default_of(key: (&str, &str), is_required: bool, schema: &Map<String, Value>) -> Option<Value> {
    let facts: &Facts = &FACTS;
    if let Some(declared) = facts.defaults.get(&key) {
        return serde_json::from_str(declared).ok();
    }
    match facts.absent.get(&key) {
        Some(Absent::Struct) => return Some(json!({})),
        Some(Absent::Null) => return None,
        Some(Absent::Zero) => {}
        _ if !is_required
            || facts.pointers.contains_key(&key)
            || facts.omitted.contains_key(&key) =>
        {
            return None;
        }
        _ => {}
    }
    zero(schema)
}

/// The zero of a scalar, and of a struct that is held by value.
fn zero(schema: &Map<String, Value>) -> Option<Value> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let is_struct = !UNSTRUCTURED.contains(&last(reference));
        return is_struct.then(|| json!({}));
    }
    match schema.get("type")?.as_str()? {
        "string" if schema.get("format").and_then(Value::as_str) != Some("byte") => Some(json!("")),
        "integer" | "number" => Some(json!(0)),
        "boolean" => Some(json!(false)),
        _ => None,
    }
}

/// Lets references lead to [`REFERENCE`], and gives items and values their zeros.
fn refer(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    let target = schema.get("$ref").and_then(Value::as_str);
    if let Some(name) = target.and_then(|target| target.rsplit('/').next()) {
        let reference = format!("{REFERENCE}{name}");
        schema.insert("$ref".to_owned(), json!(reference));
    }
    for part in ["items", "additionalProperties"] {
        let Some(inner) = schema.get_mut(part) else {
            continue;
        };
        refer(inner);
        if let Value::Object(inner) = inner
            && let Some(zero) = zero(inner)
        {
            inner.insert("default".to_owned(), zero);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Service};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use k8s_openapi::api::rbac::v1::RoleBinding;

    use super::*;

    fn property<T: JsonSchema>(definition: &str, field: &str) -> Value {
        let (_, definitions) = definitions::<T>();
        let mut property = definitions[definition]["properties"][field].clone();
        if let Value::Object(schema) = &mut property {
            schema.remove("description").expect("is described");
        }
        property
    }

    #[test]
    fn lists_tell_how_they_merge() {
        let pod = "io.k8s.api.core.v1.PodSpec";
        assert_eq!(
            property::<Deployment>(pod, "volumes"),
            json!({
                "type": "array",
                "items": {"$ref": "#/definitions/io.k8s.api.core.v1.Volume", "default": {}},
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-patch-strategy": "merge,retainKeys",
            })
        );
        assert_eq!(
            property::<Service>("io.k8s.api.core.v1.ServiceSpec", "ports")["x-kubernetes-list-map-keys"],
            json!(["port", "protocol"])
        );
        assert_eq!(
            property::<Service>("io.k8s.api.core.v1.ServiceSpec", "selector"),
            json!({
                "type": "object",
                "additionalProperties": {"type": "string", "default": ""},
                "x-kubernetes-map-type": "atomic",
            })
        );
        assert_eq!(
            property::<Deployment>("io.k8s.api.apps.v1.DeploymentSpec", "strategy"),
            json!({
                "$ref": "#/definitions/io.k8s.api.apps.v1.DeploymentStrategy",
                "default": {},
                "x-kubernetes-patch-strategy": "retainKeys",
            })
        );
        let selector = property::<PodDisruptionBudget>(
            "io.k8s.api.policy.v1.PodDisruptionBudgetSpec",
            "selector",
        );
        assert_eq!(selector["x-kubernetes-patch-strategy"], "replace");
    }

    #[test]
    fn types_tell_their_kinds_and_what_they_require() {
        let (name, definitions) = definitions::<RoleBinding>();
        assert_eq!(
            definitions[&name][KINDS],
            json!([{"group": "rbac.authorization.k8s.io", "version": "v1", "kind": "RoleBinding"}])
        );
        assert_eq!(definitions[&name]["required"], json!(["roleRef"]));
        let role = &definitions["io.k8s.api.rbac.v1.RoleRef"];
        assert_eq!(role["x-kubernetes-map-type"], "atomic");
        assert!(role.get(KINDS).is_none());
        let meta = &definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
        assert!(meta.get(KINDS).is_none());
        let (name, definitions) = super::definitions::<Event>();
        assert_eq!(
            definitions[&name]["required"],
            json!(["metadata", "involvedObject"])
        );
        let (name, definitions) = super::definitions::<Deployment>();
        assert!(definitions[&name].get("required").is_none());
        let local = &definitions["io.k8s.api.core.v1.LocalObjectReference"];
        assert!(local.get("required").is_none());
        assert_eq!(local["properties"]["name"]["default"], "");
    }

    #[test]
    fn scalars_with_forms_of_their_own_are_told_apart() {
        let (_, claims) = definitions::<PersistentVolumeClaim>();
        let quantity = &claims["io.k8s.apimachinery.pkg.api.resource.Quantity"];
        assert_eq!(quantity["type"], "string");
        assert!(quantity.get("format").is_none());
        let (_, deployments) = definitions::<Deployment>();
        let either = &deployments["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(
            (&either["type"], &either["format"]),
            (&json!("string"), &json!("int-or-string"))
        );
        let container = "io.k8s.api.core.v1.ContainerPort";
        let port = property::<Deployment>(container, "protocol");
        assert_eq!(port["default"], "TCP");
        let unions = &deployments["io.k8s.api.core.v1.SeccompProfile"]["x-kubernetes-unions"];
        assert_eq!(unions[0]["discriminator"], "type");
    }

    #[test]
    fn nothing_refers_to_what_is_not_there() {
        fn check(value: &Value, definitions: &Map<String, Value>) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        let name = target.strip_prefix(REFERENCE).expect(target);
                        assert!(definitions.contains_key(name), "{name}");
                    }
                    object.values().for_each(|value| check(value, definitions));
                }
                Value::Array(list) => list.iter().for_each(|value| check(value, definitions)),
                _ => {}
            }
        }
        let (_, definitions) = definitions::<Deployment>();
        check(&Value::Object(definitions.clone()), &definitions);
    }
}
