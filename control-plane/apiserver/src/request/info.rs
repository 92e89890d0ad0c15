//! A request, parsed once: all that is decided by its method, path and query before a byte of its body is read.

use std::sync::Arc;

use gantry_api::names;
use gantry_api::selector::FieldSelector;
use http::{Method, Request};

use super::{Query, Route, path_verb, route, verb};
use crate::authorisation::attributes::{Attributes, Target};
use crate::identity::Identity;
use crate::metrics::UNKNOWN;
use crate::registry::subresource::Subresource;
use crate::registry::{Registry, Resource};

/// What a request asks for, and of which resource of which registry: those are kept until it is answered.
pub(crate) struct RequestInfo {
    pub(crate) method: Method,
    pub(crate) route: Route,
    pub(crate) query: Query,
    /// As authorisation and metrics name it.
    pub(crate) verb: &'static str,
    pub(crate) registry: Arc<Registry>,
    /// None where nothing is served under the path.
    pub(crate) resource: Option<Arc<Resource>>,
    /// Of a list or watch; one that cannot be read selects nothing here, and is refused later.
    selector: Option<FieldSelector>,
}

impl RequestInfo {
    pub(crate) fn of<B>(request: &Request<B>, registry: Arc<Registry>) -> Self {
        let method = request.method().clone();
        let route = route(request.uri().path());
        let query = Query::parse(request.uri().query());
        let (verb, resource) = match &route {
            Route::Other(_) => (path_verb(&method), None),
            Route::Resource(path) => {
                let found = registry.get(&path.group, &path.version, &path.resource);
                (verb(&method, path, &query), found.cloned())
            }
        };
        let selector = match verb {
            "list" | "watch" => query.get("fieldSelector"),
            _ => None,
        };
        let selector = selector.and_then(|text| FieldSelector::parse(text).ok());
        Self {
            method,
            route,
            query,
            verb,
            registry,
            resource,
            selector,
        }
    }

    /// The subresource that is served under the path, if any.
    pub(crate) fn subresource(&self) -> Option<&Subresource> {
        let Route::Resource(path) = &self.route else {
            return None;
        };
        self.resource
            .as_ref()?
            .subresource(path.subresource.as_deref()?)
    }

    /// Whether it is for events as they happen.
    pub(crate) fn is_watch(&self) -> bool {
        match &self.route {
            Route::Resource(path) => self.verb == "watch" && path.subresource.is_none(),
            Route::Other(_) => false,
        }
    }

    /// Whether its answer lasts as the client likes, and may pause for as long.
    pub(crate) fn is_stream(&self) -> bool {
        self.subresource()
            .is_some_and(|subresource| (subresource.lasts)(&self.query))
    }

    /// Whether its body is read as it is passed on, by what is behind the request.
    pub(crate) fn passes_its_body(&self) -> bool {
        self.subresource()
            .is_some_and(|subresource| subresource.passes)
    }

    /// What it is of, for metrics: what the server serves, never what a client made up; empty for what is no resource.
    pub(crate) fn resource_label(&self) -> &str {
        match (&self.route, &self.resource) {
            (Route::Other(_), _) => "",
            (Route::Resource(_), None) => UNKNOWN,
            (Route::Resource(_), Some(resource)) => &resource.info().plural,
        }
    }

    /// The verb, for metrics.
    pub(crate) fn verb_label(&self) -> &'static str {
        match &self.route {
            Route::Other(_) => "",
            Route::Resource(_) => self.verb,
        }
    }

    /// What authorisation is told of it as a user's.
    pub(crate) fn attributes<'a>(&'a self, user: &'a Identity) -> Attributes<'a> {
        Attributes {
            user,
            verb: self.verb,
            target: self.target(),
        }
    }

    /// The value that the field selector of a list or watch wants of a field.
    pub(crate) fn selected(&self, field: &str) -> Option<&str> {
        self.selector.as_ref()?.exact(field)
    }

    /// Who lists or watches by name needs to be allowed that name only.
    fn selected_name(&self) -> Option<&str> {
        let name = self.selected("metadata.name")?;
        let is_segment = !name.is_empty() && names::path_segment(name).is_empty();
        is_segment.then_some(name)
    }

    /// What it is about, as authorisation judges it. A Namespace is in itself.
    fn target(&self) -> Target<'_> {
        let path = match &self.route {
            Route::Other(path) if path.is_empty() => return Target::Path("/"),
            Route::Other(path) => return Target::Path(path),
            Route::Resource(path) => path,
        };
        let is_namespace = path.group.is_empty() && path.resource == "namespaces";
        let own = path.name.as_deref().filter(|_| is_namespace);
        let name = path.name.as_deref().or_else(|| self.selected_name());
        let subresource = path.subresource.as_deref().unwrap_or_default();
        Target::Resource {
            group: &path.group,
            version: &path.version,
            resource: &path.resource,
            subresource: subresource.split('/').next().unwrap_or_default(),
            namespace: path.namespace.as_deref().or(own).unwrap_or_default(),
            name: name.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        let request = Request::builder().method(method).uri(uri).body(());
        let registry = Arc::new(Registry::built_in());
        RequestInfo::of(&request.expect("a request"), registry)
    }

    #[test]
    fn verbs_are_those_of_kubernetes() {
        let pods = "/api/v1/namespaces/a/pods";
        for (method, uri, verb) in [
            (Method::GET, pods.to_owned(), "list"),
            (Method::HEAD, pods.to_owned(), "list"),
            (Method::GET, format!("{pods}?watch=1"), "watch"),
            (Method::GET, format!("{pods}?watch=false"), "list"),
            (Method::GET, format!("{pods}/p"), "get"),
            (Method::HEAD, format!("{pods}/p"), "get"),
            (Method::GET, format!("{pods}/p?watch=1"), "get"),
            (Method::GET, "/api/v1/watch/pods".to_owned(), "watch"),
            (Method::DELETE, "/api/v1/watch/pods".to_owned(), "watch"),
            (Method::DELETE, pods.to_owned(), "deletecollection"),
            (Method::DELETE, format!("{pods}/p"), "delete"),
            (Method::POST, format!("{pods}/p/exec"), "create"),
            (Method::GET, format!("{pods}/p/proxy/x"), "get"),
            (Method::DELETE, format!("{pods}/p/proxy/x"), "delete"),
            (Method::PATCH, format!("{pods}/p/status"), "patch"),
            (Method::PUT, format!("{pods}/p"), "update"),
            (Method::POST, "/version".to_owned(), "post"),
            (Method::HEAD, "/version".to_owned(), "get"),
        ] {
            assert_eq!(info(method, &uri).verb, verb, "{uri}");
        }
    }

    /// Subresource, namespace and name.
    fn told(info: &RequestInfo) -> (&str, &str, &str) {
        match info.target() {
            Target::Resource {
                subresource,
                namespace,
                name,
                ..
            } => (subresource, namespace, name),
            Target::Path(path) => panic!("{path} is no resource"),
        }
    }

    #[test]
    fn authorisation_is_told_what_a_request_is_about() {
        for (uri, subresource, namespace, name) in [
            ("/api/v1/namespaces/a", "", "a", "a"),
            ("/api/v1/namespaces/a/finalize", "finalize", "a", "a"),
            ("/api/v1/namespaces/a/pods/p/proxy/x/y", "proxy", "a", "p"),
            ("/api/v1/nodes/n/status", "status", "", "n"),
            (
                "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Ds",
                "",
                "a",
                "s",
            ),
            (
                "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Da%2Fb",
                "",
                "a",
                "",
            ),
            (
                "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name!%3Ds",
                "",
                "a",
                "",
            ),
        ] {
            let info = info(Method::GET, uri);
            assert_eq!(told(&info), (subresource, namespace, name), "{uri}");
        }
        let deleted = "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Ds";
        let deleted = info(Method::DELETE, deleted);
        assert_eq!(told(&deleted), ("", "a", ""));
        let version = info(Method::GET, "/version");
        assert_eq!(version.target(), Target::Path("/version"));
    }

    #[test]
    fn what_lasts_is_what_the_resource_has() {
        let pod = "/api/v1/namespaces/a/pods/p";
        for (uri, watch, stream, passes) in [
            (format!("{pod}/log"), false, false, false),
            (format!("{pod}/log?follow=true"), false, true, false),
            (format!("{pod}/exec"), false, true, true),
            (format!("{pod}/proxy/a/b"), false, true, true),
            (format!("{pod}/exec/x"), false, false, false),
            ("/api/v1/services/s/exec".to_owned(), false, false, false),
            ("/api/v1/pods?watch=1".to_owned(), true, false, false),
            ("/api/v1/watch/pods".to_owned(), true, false, false),
            (format!("{pod}/status?watch=1"), false, false, false),
        ] {
            let info = info(Method::GET, &uri);
            assert_eq!(
                (info.is_watch(), info.is_stream(), info.passes_its_body()),
                (watch, stream, passes),
                "{uri}"
            );
        }
    }
}
