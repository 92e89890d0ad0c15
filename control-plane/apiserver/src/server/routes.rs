//! Which verb or document answers a request that may be answered.

use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use gantry_api::kind::WriteScope;
use gantry_api::kinds::{custom_metrics, external_metrics};
use gantry_api::status::StatusError;
use gantry_store::Revision;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use super::{ApiServer, takes_a_body};
use crate::admission::node_restriction;
use crate::context::{Context, ForClient};
use crate::identity::Identity;
use crate::media::{self, Format, Media, PLAIN, TEXTS};
use crate::metrics::METRICS;
use crate::registry::{Resource, Source};
use crate::request::{RequestInfo, ResourcePath, Route, parse_version};
use crate::response::Answer;
use crate::streams::asks_for_websocket;
use crate::subresources::{self, Handler};
use crate::{bodies, discovery, encoder, health, openapi, verbs};

/// The answer to a request that is refused before it is looked at.
pub(super) fn refused(
    info: &RequestInfo,
    headers: &HeaderMap,
    error: &StatusError,
    started: Instant,
) -> Response<Body> {
    let response = encoder::refusal(Answer::error(error), headers, &info.query);
    observe(info, response.status(), started);
    response
}

fn observe(info: &RequestInfo, status: StatusCode, started: Instant) {
    let (verb, resource) = (info.verb_label(), info.resource_label());
    METRICS.observe(verb, resource, status, started.elapsed());
}

/// What answers a request for a resource.
enum Verb {
    Watch,
    List,
    Get,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// Of a virtual resource, or of a subresource, which may be text.
    Own {
        handler: Handler,
        is_text: bool,
    },
}

/// What answers a request: 404 for what there is not, 405 for what cannot be done with it. `websocket`: it asks for one.
fn find(
    info: &RequestInfo,
    resource: &Resource,
    path: &ResourcePath,
    websocket: bool,
) -> Result<Verb, StatusError> {
    let namespaced = resource.info().namespaced;
    let scoped = path.namespace.is_some();
    if let Some(subresource) = &path.subresource {
        let subresource = resource
            .subresource(subresource)
            .filter(|_| namespaced == scoped && !path.watches)
            .ok_or_else(StatusError::unknown_resource)?;
        let is_text = subresource.is_text;
        let reads = websocket && info.method == Method::GET;
        let kind = resource.info();
        let over_websocket = subresources::over_websocket(kind, subresource).filter(|_| reads);
        let handler = subresources::handler(kind, subresource, info.verb);
        return handler
            .map(|handler| over_websocket.unwrap_or(handler))
            .map(|handler| Verb::Own { handler, is_text })
            .ok_or_else(StatusError::method_not_allowed);
    }
    let named = path.name.is_some();
    // All namespaces together can be read.
    let everywhere = namespaced && !scoped && !named;
    if namespaced != scoped && !everywhere {
        return Err(StatusError::unknown_resource());
    }
    if resource.source() == Source::Measured {
        let handler = subresources::measured_handler(info.verb);
        return match (handler, path.watches) {
            (_, true) => Err(StatusError::unknown_resource()),
            (Some(handler), _) => Ok(Verb::Own {
                handler,
                is_text: false,
            }),
            (None, _) => Err(StatusError::method_not_allowed()),
        };
    }
    if resource.is_virtual() {
        let create = subresources::virtual_handler(resource.info());
        return match (&info.method, named, path.watches, create) {
            (_, true, ..) | (_, _, true, _) => Err(StatusError::unknown_resource()),
            (&Method::POST, _, _, Some(handler)) if !everywhere => Ok(Verb::Own {
                handler,
                is_text: false,
            }),
            _ => Err(StatusError::method_not_allowed()),
        };
    }
    let reads = matches!(info.method, Method::GET | Method::HEAD);
    let verb = match (info.verb, named) {
        ("watch", _) if reads => Some(Verb::Watch),
        ("list", _) => Some(Verb::List),
        ("get", _) => Some(Verb::Get),
        ("create", false) if !everywhere => Some(Verb::Create),
        ("update", true) => Some(Verb::Update),
        ("patch", true) => Some(Verb::Patch),
        ("delete", _) => Some(Verb::Delete),
        ("deletecollection", _) if !everywhere && resource.verbs().contains(&info.verb) => {
            Some(Verb::DeleteCollection)
        }
        _ => None,
    };
    verb.ok_or_else(StatusError::method_not_allowed)
}

impl ApiServer {
    /// Answers a REST request of somebody who may ask for it.
    pub(super) async fn handle(
        &self,
        request: Request,
        info: &RequestInfo,
        user: &Identity,
    ) -> Response<Body> {
        let started = Instant::now();
        let response = match &info.route {
            Route::Other(path) if path.starts_with("/openapi/") => {
                let (headers, now) = (request.headers(), self.inner.api.clock.now());
                let hash = info.query.get("hash");
                let answer = openapi::answer(&info.registry, path, hash, headers, now);
                answer.await.unwrap_or_else(|| not_found().into_response())
            }
            Route::Other(path) => self.other(info, path, request.headers()).await,
            Route::Resource(path) => {
                let headers = request.headers().clone();
                match self.resource(info, path, &headers, request, user).await {
                    Ok(response) => response,
                    Err(error) => encoder::refusal(Answer::error(&error), &headers, &info.query),
                }
            }
        };
        observe(info, response.status(), started);
        response
    }

    /// Answers for a path that is no resource's.
    async fn other(&self, info: &RequestInfo, path: &str, headers: &HeaderMap) -> Response<Body> {
        let registry = &info.registry;
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let describes = matches!(
            parts.first(),
            Some(&("api" | "apis" | "openapi" | "version"))
        );
        let refuse =
            |error: StatusError| encoder::refusal(Answer::error(&error), headers, &info.query);
        if let ["api" | "apis"] = parts.as_slice()
            && let Some(format) = aggregated(info, headers)
        {
            let core = parts.contains(&"api");
            let aggregated = registry.derived::<discovery::Aggregated>();
            return aggregated.answer(registry, core, headers, format);
        }
        let document = match parts.as_slice() {
            [which @ ("healthz" | "livez" | "readyz")] => {
                let store = &self.inner.api.store;
                return health::answer(which, &info.query, store).into_response();
            }
            [which @ ("healthz" | "livez" | "readyz"), check] => {
                let answer = health::check(which, check, &self.inner.api.store);
                return answer.unwrap_or_else(not_found).into_response();
            }
            ["metrics"] => return METRICS.render().into_response(),
            [".well-known", "openid-configuration"] => {
                let accounts = &self.inner.api.service_accounts;
                let document = accounts.configuration(&self.inner.advertise);
                return Answer::value(&document).kept_for_an_hour().into_response();
            }
            ["openid", "v1", "jwks"] => {
                let keys = self.inner.api.service_accounts.key_set();
                let answer = Answer::written(
                    HeaderValue::from_static("application/jwk-set+json"),
                    keys.to_string(),
                );
                return answer.kept_for_an_hour().into_response();
            }
            [
                "apis",
                group @ external_metrics::GROUP,
                version @ external_metrics::VERSION,
            ] if registry.serves(group, version) => Some(verbs::external_metrics::resource_list()),
            ["api"] => Some(discovery::core_versions(&self.inner.advertise)),
            ["apis"] => Some(discovery::group_list(registry)),
            ["api", version] => discovery::resource_list(registry, "", version),
            ["apis", group] => discovery::group(registry, group),
            ["apis", custom_metrics::GROUP, version] => match self.metric_list(version).await {
                Ok(document) => document,
                Err(error) => return refuse(error),
            },
            ["apis", group, version] => discovery::resource_list(registry, group, version),
            ["version"] => Some(version()),
            [""] => Some(json!({"paths": [
                "/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2",
                "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version",
            ]})),
            _ => None,
        };
        let Some(document) = document else {
            // What a group does not have is told apart from what nobody knows.
            let group = match parts.as_slice() {
                ["api", _] => Some(""),
                ["apis", group, _] => Some(*group),
                _ => None,
            };
            return match group.is_some_and(|group| registry.has_group(group)) {
                true => refuse(StatusError::unknown_resource()),
                false => not_found().into_response(),
            };
        };
        if describes && !matches!(info.method, Method::GET | Method::HEAD) {
            return refuse(StatusError::method_not_allowed());
        }
        match Media::of_document(headers, TEXTS) {
            Some(media) => {
                let media = media.prettier(headers, &info.query);
                encoder::document(Answer::value(&document), media)
            }
            None => refuse(media::not_acceptable()),
        }
    }

    /// The metrics of a version that is served.
    async fn metric_list(&self, version: &str) -> Result<Option<Value>, StatusError> {
        let source = self.inner.api.custom_metrics.as_deref();
        match source.filter(|_| custom_metrics::VERSIONS.contains(&version)) {
            Some(source) => verbs::custom_metrics::resource_list(source, version)
                .await
                .map(Some),
            None => Ok(None),
        }
    }

    /// The answer to a request for a metric of objects.
    async fn custom_metric(
        &self,
        info: &RequestInfo,
        path: &ResourcePath,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, StatusError> {
        let api = &self.inner.api;
        let media = Media::of_document(headers, TEXTS).ok_or_else(media::not_acceptable)?;
        let media = media.prettier(headers, &info.query);
        // What was made through another server is selected here.
        api.catch_up().await?;
        let document = verbs::custom_metrics::get(api, &info.registry, info, path).await?;
        Ok(encoder::document(Answer::value(&document), media))
    }

    async fn resource(
        &self,
        info: &RequestInfo,
        path: &ResourcePath,
        headers: &HeaderMap,
        request: Request,
        user: &Identity,
    ) -> Result<Response<Body>, StatusError> {
        if (path.group.as_str(), path.version.as_str())
            == (external_metrics::GROUP, external_metrics::VERSION)
            && let Some(source) = self.inner.api.external_metrics.as_deref()
        {
            let media = Media::of_document(headers, TEXTS).ok_or_else(media::not_acceptable)?;
            let media = media.prettier(headers, &info.query);
            let document = verbs::external_metrics::get(source, info, path).await?;
            return Ok(encoder::document(Answer::value(&document), media));
        }
        let (api, registry) = (&self.inner.api, &info.registry);
        if !registry.serves(&path.group, &path.version) {
            return match registry.has_group(&path.group) {
                true => Err(StatusError::unknown_resource()),
                false => Ok(not_found().into_response()),
            };
        }
        if path.group == custom_metrics::GROUP {
            return self.custom_metric(info, path, headers).await;
        }
        let resource = info.resource.as_ref();
        let resource = resource.ok_or_else(StatusError::unknown_resource)?;
        let verb = find(info, resource, path, asks_for_websocket(&request))?;
        let mut context = Context {
            api,
            registry,
            resource,
            path,
            query: &info.query,
            headers,
            identity: user,
            media: PLAIN,
            body: bytes::Bytes::new(),
            transcoded: false,
            budget: request
                .extensions()
                .get()
                .map(|ForClient(budget)| budget.clone()),
        };
        node_restriction::admit_request(&context, &info.method)?;
        if let Verb::Own {
            handler: Handler::Passes(pass),
            is_text,
        } = verb
        {
            // Nobody can say what would come of a connection. What is read as text is none.
            if !is_text && info.query.first("dryRun").is_some() {
                return Err(StatusError::bad_request("dryRun is not supported"));
            }
            return pass(&context, request).await;
        }
        media::check_route(headers, &info.method, produced(&verb))?;
        let is_text = matches!(verb, Verb::Own { is_text: true, .. });
        if !is_text {
            let media = Media::of_answer(headers)?;
            // What has no objects has no table of them.
            let is_table = media
                .shape
                .is_some_and(|shape| shape.form == media::Form::Table);
            if is_table && resource.source() == Source::Answered {
                return Err(media::not_acceptable());
            }
            context.media = media.prettier(headers, &info.query);
        }
        info.query.check()?;
        if takes_a_body(&info.method) {
            context.body = Limited::new(request.into_body(), bodies::LIMIT)
                .collect()
                .await
                .map_err(|_| StatusError::too_large(bodies::LIMIT))?
                .to_bytes();
            context.transcode().await?;
        }
        // What was written through another server is seen here, unless the client is content with less.
        if !is_content(info, api.store.revision()) {
            api.catch_up().await?;
        }
        let answer = match verb {
            Verb::Watch => verbs::watch::watch(&context).await,
            Verb::List => verbs::list::list(&context).await,
            Verb::Get => verbs::get::get(&context).await,
            Verb::Create => verbs::create::create(&context).await,
            Verb::Update => verbs::update::update(&context, WriteScope::Main).await,
            Verb::Patch => verbs::update::patch(&context, WriteScope::Main).await,
            Verb::Delete => verbs::delete::delete(&context).await,
            Verb::DeleteCollection => verbs::delete_collection::delete_collection(&context).await,
            Verb::Own { handler, .. } => match handler {
                Handler::Answers(answer) => answer(&context).await,
                Handler::Passes(_) => Err(StatusError::unknown_resource()),
            },
        };
        let deprecation = resource.kind.deprecation().map(str::to_owned);
        let answer = Answer::of(answer).with_warnings(deprecation.into_iter().collect());
        Ok(encoder::encode(&context, answer))
    }
}

/// Whether what this server has is enough for a reader, who says so with a revision. A later one than is here, be it of a page
/// of a list, was read from another server; one that is none is refused by the verb.
fn is_content(info: &RequestInfo, here: Revision) -> bool {
    let query = &info.query;
    let version = query.get("resourceVersion").map(parse_version);
    let page = query.get("continue").map(verbs::list::parse_token);
    let says = version.is_some() || page.is_some();
    let version = version.and_then(Result::ok);
    let page = page.and_then(Result::ok).map(|page| page.revision);
    let reads = ["get", "list", "watch"].contains(&info.verb);
    reads && says && version.max(page).is_none_or(|newest| newest <= here.0)
}

/// What a verb produces beside what all objects are offered in.
fn produced(verb: &Verb) -> &'static [&'static str] {
    match verb {
        Verb::List | Verb::Watch => media::OF_LISTS,
        Verb::Own { is_text: true, .. } => &["text/plain"],
        _ => &[],
    }
}

/// The format of a document of all that is served, for who asks for one.
fn aggregated(info: &RequestInfo, headers: &HeaderMap) -> Option<Format> {
    let reads = matches!(info.method, Method::GET | Method::HEAD);
    Media::of_aggregated(headers).filter(|_| reads)
}

fn not_found() -> Answer {
    Answer::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": format!("v1.36.0+gantry.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

#[cfg(test)]
mod tests;
