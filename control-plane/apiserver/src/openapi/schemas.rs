//! The schemas that documents hold: those of the kinds that are served, of their lists, and of what every kind uses.
//! References and defaults are in the form of [`gantry_api::schema::published`].

use std::collections::HashMap;

use gantry_api::kind::ResourceInfo;
use gantry_api::schema::published::{self, KINDS, REFERENCE, definitions};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, Patch, Status,
    WatchEvent,
};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::version::Info;
use serde_json::{Map, Value, json};

use crate::registry::{Registry, Resource};

/// The name of a schema of metadata: `io.k8s.apimachinery.pkg.apis.meta.v1.Status`.
pub(super) fn meta(kind: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
}

/// Of documents that tell the version of the server.
pub(super) const VERSION: &str = "io.k8s.apimachinery.pkg.version.Info";

/// Schemas, by name.
pub(super) struct Schemas {
    all: Map<String, Value>,
    /// The schemas of kinds that subresources have, by kind.
    subresources: HashMap<&'static str, String>,
    /// The schemas of resources, by group, version and plural name.
    kinds: HashMap<(String, String, String), String>,
}

fn key(info: &ResourceInfo) -> (String, String, String) {
    (
        info.group.to_string(),
        info.version.to_string(),
        info.plural.to_string(),
    )
}

impl Schemas {
    /// Those of the kinds of documents that tell what there is.
    pub(super) fn of_overviews() -> Self {
        let mut all = Map::new();
        all.extend(definitions::<APIVersions>().1);
        all.extend(definitions::<APIGroupList>().1);
        all.extend(definitions::<APIGroup>().1);
        all.extend(definitions::<Info>().1);
        Self {
            all,
            subresources: HashMap::new(),
            kinds: HashMap::new(),
        }
    }

    /// Those of some resources, and of what is read and written with them.
    pub(super) fn of<'a>(
        registry: &Registry,
        resources: impl Iterator<Item = &'a Resource>,
    ) -> Self {
        let mut all = Map::new();
        all.extend(definitions::<APIResourceList>().1);
        all.extend(definitions::<ListMeta>().1);
        all.extend(definitions::<Patch>().1);
        all.extend(definitions::<Status>().1);
        let mut subresources = HashMap::new();
        for (kind, (name, definitions)) in [
            ("Binding", definitions::<Binding>()),
            ("Eviction", definitions::<Eviction>()),
            ("Scale", definitions::<Scale>()),
            ("TokenRequest", definitions::<TokenRequest>()),
        ] {
            all.extend(definitions);
            subresources.insert(kind, name);
        }
        let mut kinds = HashMap::new();
        for resource in resources {
            let info = resource.info();
            let (name, definitions) = resource.kind.openapi();
            all.extend(definitions);
            let list = list(info, &name, all.get(&name));
            all.insert(format!("{name}List"), list);
            kinds.insert(key(info), name);
        }
        // Every group and version has its own of these; last, since others bring plain ones.
        for (name, mut definitions) in [
            definitions::<DeleteOptions>(),
            definitions::<WatchEvent<RawExtension>>(),
        ] {
            if let Some(Value::Object(schema)) = definitions.get_mut(&name) {
                schema.insert(KINDS.to_owned(), everywhere(registry, &name));
            }
            all.extend(definitions);
        }
        Self {
            all,
            subresources,
            kinds,
        }
    }

    /// The name of a resource's schema.
    pub(super) fn of_kind(&self, resource: &Resource) -> String {
        let known = self.kinds.get(&key(resource.info()));
        known.cloned().unwrap_or_default()
    }

    /// The name of the schema of a subresource's kind: its parent's, or one of its own; none where it is a stream.
    pub(super) fn of_subresource(&self, kind: &str, parent: &str, schema: &str) -> Option<String> {
        match kind == parent {
            true => Some(schema.to_owned()),
            false => self.subresources.get(kind).cloned(),
        }
    }

    /// Those of others, too.
    pub(super) fn add(&mut self, other: Self) {
        self.all.extend(other.all);
    }

    /// Those that `used` leads to.
    pub(super) fn reachable(mut self, used: &Value) -> Map<String, Value> {
        let mut kept = Map::new();
        let mut open = Vec::new();
        referred(used, &mut open);
        // Clients know these by their kinds, whether or not a path leads to them.
        open.extend(self.kinds.into_values());
        while let Some(name) = open.pop() {
            if let Some(schema) = self.all.remove(&name) {
                referred(&schema, &mut open);
                kept.insert(name, schema);
            }
        }
        kept
    }
}

/// The names that a value refers to.
fn referred(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            let target = object.get("$ref").and_then(Value::as_str);
            if let Some(name) = target.and_then(|target| target.strip_prefix(REFERENCE)) {
                found.push(name.to_owned());
            }
            object.values().for_each(|value| referred(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| referred(value, found)),
        _ => {}
    }
}

/// The kinds of a type that every group and version has.
fn everywhere(registry: &Registry, schema: &str) -> Value {
    let kind = schema.rsplit('.').next().unwrap_or_default();
    let mut versions: Vec<(&str, &str)> = registry
        .all()
        .iter()
        .map(|resource| (&*resource.info().group, &*resource.info().version))
        .chain([("", "v1")])
        .collect();
    versions.sort_unstable();
    versions.dedup();
    versions
        .into_iter()
        .map(|(group, version)| json!({"group": group, "version": version, "kind": kind}))
        .collect()
}

/// The schema of a kind's list. What its type is called is told in the words of the kind's own schema.
fn list(info: &ResourceInfo, name: &str, kind: Option<&Value>) -> Value {
    let described = |field: &str| {
        let told = kind.and_then(|schema| schema.get("properties")?.get(field));
        told.cloned().unwrap_or_else(|| json!({"type": "string"}))
    };
    let group = published::group_of(name).unwrap_or(&info.group);
    json!({
        "description": format!("A list of objects of the kind {}.", info.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": described("apiVersion"),
            "items": {
                "description": "The objects.",
                "type": "array",
                "items": {"$ref": format!("{REFERENCE}{name}"), "default": {}},
            },
            "kind": described("kind"),
            "metadata": {
                "description": "What is true of the list as a whole.",
                "$ref": format!("{REFERENCE}{}", meta("ListMeta")),
                "default": {},
            },
        },
        KINDS: [{"group": group, "version": info.version, "kind": format!("{}List", info.kind)}],
    })
}
