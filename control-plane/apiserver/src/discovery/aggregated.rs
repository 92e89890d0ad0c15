//! Everything that is served, in one document, which clients read again only when it has changed.

use std::fmt::Write as _;
use std::sync::OnceLock;

use bytes::Bytes;
use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::{add_names, groups, of};
use crate::media::Format;
use crate::registry::{Registry, Resource};
use gantry_api::yaml;

/// A document and the tag by which a client knows it again.
struct Document {
    bytes: Bytes,
    /// SHA-512 in hexadecimal, quoted.
    tag: HeaderValue,
}

/// The documents of one registry: of `/api` and of `/apis`, each made once, when somebody first asks.
#[derive(Default)]
pub(crate) struct Aggregated {
    core: OnceLock<Document>,
    groups: OnceLock<Document>,
}

impl Document {
    fn new(text: String) -> Self {
        let mut tag = String::from("\"");
        for byte in Sha512::digest(text.as_bytes()) {
            // Writing to a String does not fail.
            write!(tag, "{byte:02X}").unwrap_or_default();
        }
        tag.push('"');
        Self {
            bytes: Bytes::from(text),
            tag: HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\"")),
        }
    }

    /// The document, or 304 for a client that has it.
    fn answer(&self, asked: &HeaderMap, content_type: HeaderValue) -> Response<axum::body::Body> {
        let mut known = asked.get_all(header::IF_NONE_MATCH).iter();
        let has_it = known.any(|tag| *tag == self.tag);
        let mut response = match has_it {
            true => {
                let mut unchanged = Response::new(axum::body::Body::empty());
                *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
                unchanged
            }
            false => {
                let mut whole = Response::new(axum::body::Body::from(self.bytes.clone()));
                whole
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, content_type);
                whole
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.tag.clone());
        // What another Accept header gets is something else.
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }
}

impl Aggregated {
    /// Of `/api` or `/apis`.
    fn get(&self, registry: &Registry, core: bool) -> &Document {
        let place = if core { &self.core } else { &self.groups };
        place.get_or_init(|| Document::new(aggregated(registry, core).to_string()))
    }

    /// As [`Self::get`], answered in a format.
    pub(crate) fn answer(
        &self,
        registry: &Registry,
        core: bool,
        asked: &HeaderMap,
        format: Format,
    ) -> Response<axum::body::Body> {
        let document = self.get(registry, core);
        let parameters = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let content_type = format!("{};{parameters}", format.media_type());
        let content_type = HeaderValue::from_str(&content_type);
        let content_type = content_type.unwrap_or_else(|_| format.content_type());
        match format {
            Format::Yaml => {
                let text = yaml::to_string(&aggregated(registry, core));
                Document::new(text).answer(asked, content_type)
            }
            _ => document.answer(asked, content_type),
        }
    }
}

fn aggregated(registry: &Registry, core: bool) -> Value {
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
            let versions = versions.iter().map(|version| {
                let resources: Vec<Value> = of(registry, group, version)
                    .into_iter()
                    .map(|one| resource(one))
                    .collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            });
            json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn scope(info: &ResourceInfo) -> &'static str {
    match info.namespaced {
        true => "Namespaced",
        false => "Cluster",
    }
}

fn resource(resource: &Resource) -> Value {
    let info = resource.info();
    let mut value = json!({
        "resource": info.plural,
        "responseKind": {"group": "", "version": "", "kind": info.kind},
        "scope": scope(info),
        "singularResource": info.singular,
        "verbs": resource.verbs(),
    });
    add_names(info, &mut value);
    let subresources: Vec<Value> = resource
        .subresources()
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": sub.verbs().collect::<Vec<_>>(),
            })
        })
        .collect();
    if !subresources.is_empty() {
        *value.member(&["subresources"]) = Value::Array(subresources);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_has_the_document_is_told_so() {
        let registry = Registry::built_in();
        let ask = |tag: Option<HeaderValue>| {
            let tags = tag.map(|tag| (header::IF_NONE_MATCH, tag));
            let asked = HeaderMap::from_iter(tags);
            let aggregated = registry.derived::<Aggregated>();
            aggregated.answer(&registry, false, &asked, Format::Json)
        };
        let first = ask(None);
        assert_eq!(
            first.headers()[header::CONTENT_TYPE],
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        );
        let tag = first.headers()[header::ETAG].clone();
        assert_eq!(tag.len(), 130);
        let again = ask(Some(tag.clone()));
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(again.headers()[header::ETAG], tag);
        let other = ask(Some(HeaderValue::from_static("\"x\"")));
        assert_eq!(other.status(), StatusCode::OK);
    }

    #[test]
    fn another_registry_has_another_document() {
        let registry = Registry::built_in();
        let tag = |registry: &Registry| {
            let aggregated = registry.derived::<Aggregated>();
            aggregated.get(registry, false).tag.clone()
        };
        let fewer = registry.without("apps", "v1", "deployments");
        assert_ne!(tag(&registry), tag(&fewer));
        assert_eq!(tag(&registry), tag(&Registry::built_in()));
    }
}
