//! [`ApiServer`]: who asks, whose turn it is, and which verb answers.

mod listener;
mod tokens;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use gantry_api::kind::{ResourceInfo, WriteScope};
use gantry_api::status::StatusError;
use gantry_api::yaml;
use gantry_store::{Budget, Charge, Store, Term};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use crate::admission::{Admission, Ranges};
use crate::bodies::{self, Bodies};
use crate::clock::Clock;
use crate::connections::{
    Answering, Connection, ConnectionLimits, Connections, Standing, metered, trusted,
};
use crate::context::{Api, Context, ForClient};
use crate::identity::{Identity, TokenAuthentication, Tokens, authenticate, described};
use crate::limits::{Class, Limits, is_own};
use crate::media::Format;
use crate::metrics::{METRICS, UNKNOWN};
use crate::peer::Peer;
use crate::refusals::Refusals;
use crate::registry::Registry;
use crate::request::{Query, ResourcePath, Route, is_watch, route, verb};
use crate::response::{Answer, shortened};
use crate::service_accounts::{self, ServiceAccounts};
use crate::streams::{NodeStreams, logs, port_forward, protocol_asked_for, proxy, remote_command};
use crate::verbs;
use crate::{authorisation, discovery, health, openapi};

/// Gantry's own requests, beside Kubernetes'.
pub const OWN_PATHS: &str = "/gantry/";

/// How an API server is set up.
#[derive(Clone)]
pub struct ApiServerConfig {
    /// Address ranges of services.
    pub ranges: Ranges,
    /// Bearer tokens.
    pub tokens: Tokens,
    /// `host:port` that clients reach this server by.
    pub advertise: String,
    /// Whom the tokens of service accounts are from, a URL: `https://kubernetes.default.svc.cluster.local`.
    pub issuer: String,
    /// The time.
    pub clock: Clock,
    /// How many connections clients may have.
    pub connections: ConnectionLimits,
    /// Bytes that may wait for clients: answers and watches that are not read, and bodies that arrive.
    pub client_memory: usize,
}

/// What waits for clients takes no more than this where nothing else is said.
const CLIENT_MEMORY: usize = 192 << 20;

impl Default for ApiServerConfig {
    fn default() -> Self {
        Self {
            ranges: Ranges::default(),
            tokens: Tokens::default(),
            advertise: "127.0.0.1:6443".to_owned(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            clock: Clock::system(),
            connections: ConnectionLimits::default(),
            client_memory: CLIENT_MEMORY,
        }
    }
}

/// The Kubernetes API over a store. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

struct Inner {
    api: Arc<Api>,
    tokens: Tokens,
    advertise: String,
    streams: Arc<dyn NodeStreams>,
    limits: Arc<Limits>,
    refusals: Arc<Refusals>,
    connections: Arc<Connections>,
    bodies: Arc<Bodies>,
    documents: Arc<openapi::Documents>,
}

/// Whose request it is.
#[derive(Clone)]
struct Caller {
    peer: Arc<Peer>,
    connection: Arc<Connection>,
}

impl ApiServer {
    /// An API over a store; creates what every cluster has ([`crate::bootstrap`]) with [`Self::bootstrap`].
    pub fn new(config: ApiServerConfig, store: Store, streams: Arc<dyn NodeStreams>) -> Self {
        let admission = Admission::new(config.ranges.clone());
        Self::with_admission(config, store, streams, admission)
    }

    /// As [`Self::new`], with the plugins that writes pass.
    pub(crate) fn with_admission(
        config: ApiServerConfig,
        store: Store,
        streams: Arc<dyn NodeStreams>,
        admission: Admission,
    ) -> Self {
        let budget = Budget::new(config.client_memory);
        let (clock, issuer) = (config.clock.clone(), config.issuer);
        let service_accounts = ServiceAccounts::new(store.clone(), clock, issuer);
        Self {
            inner: Arc::new(Inner {
                api: Arc::new(Api {
                    store,
                    registry: Arc::new(Registry::new(gantry_api::kinds::all())),
                    admission,
                    clock: config.clock,
                    service_accounts: Arc::new(service_accounts),
                    tokens: config.tokens.clone(),
                    fence: None,
                }),
                tokens: config.tokens,
                advertise: config.advertise,
                streams,
                limits: Arc::default(),
                refusals: Arc::default(),
                connections: Connections::new(config.connections, budget.clone()),
                bodies: Arc::new(Bodies::new(budget)),
                documents: Arc::default(),
            }),
        }
    }

    /// Creates the objects every cluster has, where they are missing. Servers listen on `port`.
    pub async fn bootstrap(&self, port: u16) -> Result<(), StatusError> {
        crate::bootstrap::run(self, port).await
    }

    /// Says where pods reach the API: the endpoints of the Service `kubernetes`.
    pub async fn publish(&self, servers: &[SocketAddr]) -> Result<(), StatusError> {
        crate::bootstrap::publish(self, servers).await
    }

    /// The same API for the parts that run on the leader alone: their writes are refused once another term has begun.
    pub fn fenced(&self, term: Term) -> Self {
        let (inner, api) = (&self.inner, &self.inner.api);
        Self {
            inner: Arc::new(Inner {
                api: Arc::new(Api {
                    store: api.store.clone(),
                    registry: api.registry.clone(),
                    admission: api.admission.clone(),
                    clock: api.clock.clone(),
                    service_accounts: api.service_accounts.clone(),
                    tokens: api.tokens.clone(),
                    fence: Some(term),
                }),
                tokens: inner.tokens.clone(),
                advertise: inner.advertise.clone(),
                streams: inner.streams.clone(),
                limits: inner.limits.clone(),
                refusals: inner.refusals.clone(),
                connections: inner.connections.clone(),
                bodies: inner.bodies.clone(),
                documents: inner.documents.clone(),
            }),
        }
    }

    /// The first address of the service range: `kubernetes.default.svc`.
    pub fn first_service_address(&self) -> std::net::Ipv4Addr {
        let range = self.inner.api.admission.ranges.service_cidr;
        std::net::Ipv4Addr::from(u32::from(range.network()) + 1)
    }

    /// The ranges that services get their addresses from.
    pub(crate) fn service_cidrs(&self) -> Vec<String> {
        self.inner.api.admission.ranges.service_cidrs()
    }

    /// A client's transport within this process, with the rights of `identity`.
    pub fn local_service(&self, identity: Identity) -> LocalService {
        LocalService {
            server: self.clone(),
            identity,
        }
    }

    /// Serves HTTPS until told to stop; then answers what is under way and returns. `others` takes what is not
    /// Kubernetes' API: gRPC, and paths below [`OWN_PATHS`], with the client's [`Identity`] in the extensions.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: watch::Receiver<Arc<rustls::ServerConfig>>,
        others: Option<axum::Router>,
        stop: CancellationToken,
    ) {
        listener::serve(self, listener, tls, others, stop).await;
    }

    /// Learns who a connection is of, as soon as it shows a certificate. One that does not count any more makes nobody more
    /// than a stranger: its requests are told why.
    fn greet(&self, connection: &Arc<Connection>, peer: &Arc<Peer>) {
        connection.showed(peer);
        if let Some(identity) = &peer.identity
            && peer.check(&self.inner.api.store).is_ok()
        {
            connection.introduce(identity);
        }
    }

    async fn dispatch(
        &self,
        mut request: Request,
        caller: Caller,
        others: Option<axum::Router>,
    ) -> Response<Body> {
        let switches = protocol_asked_for(&request).is_some();
        let answering = Answering::begin(&caller.connection).switching(switches);
        if request.version() == http::Version::HTTP_2 {
            caller.connection.is_multiplexed();
        }
        let known = match self.known(request.headers(), &caller.peer).await {
            Ok(known) => known,
            Err(error) => {
                caller.connection.introduce(&Identity::anonymous());
                return answered(Answer::error(&error).into_response(), answering);
            }
        };
        caller.connection.introduce(&known);
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let Some(router) =
            others.filter(|_| is_grpc || request.uri().path().starts_with(OWN_PATHS))
        else {
            return self.limited(request, known, answering).await;
        };
        let is_own = is_own(&known);
        if is_grpc && !is_own {
            // Before a byte of its message is read.
            let refused = tonic::Status::permission_denied(
                "a client certificate of a node or a server of the cluster is needed",
            );
            return answered(refused.into_http(), answering);
        }
        let mut _held = None;
        if !is_grpc && takes_a_body(request.method()) {
            let standing = Standing::of(&known);
            let allowed = match standing < Standing::User {
                true => allowed(&request, &known),
                false => Ok(()),
            };
            // What nobody vouches for changes nothing here: its body is not read.
            if let Err(refused) = allowed {
                return answered(Answer::error(&refused).into_response(), answering);
            }
            match self.received(request, standing).await {
                Ok((received, charge)) => (request, _held) = (received, Some(charge)),
                Err(error) => return answered(Answer::error(&error).into_response(), answering),
            }
        }
        request.extensions_mut().insert(known);
        request.extensions_mut().insert(Peer::clone(&caller.peer));
        let response = match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        match is_own {
            // Links last, and their readers are trusted to read.
            true => response.map(|body| trusted(body, answering)),
            false => answered(response, answering.patiently(true)),
        }
    }

    /// Who sent a request. A credential that is not accepted is noted, and too many of them are not even looked at.
    async fn known(&self, headers: &HeaderMap, peer: &Peer) -> Result<Identity, StatusError> {
        let (refusals, now) = (&self.inner.refusals, Instant::now());
        if let Err(refused) = peer.check(&self.inner.api.store) {
            let what = format!(
                "the certificate of node {}",
                peer.node().unwrap_or_default()
            );
            refusals.signed(peer.address, &what, now);
            return Err(refused);
        }
        let tokens = TokenAuthentication {
            fixed: &self.inner.tokens,
            api: &self.inner.api,
        };
        // Pods may share an address: what one of them shows after its end does not hold up the others.
        if peer.identity.is_none()
            && headers.contains_key(header::AUTHORIZATION)
            && !tokens.remember(headers)
        {
            refusals.check(peer.address, now)?;
        }
        let mut known = authenticate(headers, peer.identity.as_ref(), &tokens);
        // The pod or the account of a token may have been made this moment, through another server.
        if known.is_err() && tokens.may_be_behind(headers) && tokens.api.catch_up().await.is_ok() {
            known = authenticate(headers, peer.identity.as_ref(), &tokens);
        }
        if known.is_err() {
            match tokens.remember(headers) {
                true => refusals.signed(peer.address, "a token of a service account", now),
                false => refusals.token(peer.address, &described(headers), now),
            }
        }
        known
    }

    /// A request whose body is here, and what that counts for as long as it is needed.
    async fn received(
        &self,
        request: Request,
        standing: Standing,
    ) -> Result<(Request, Charge), StatusError> {
        let (parts, body) = request.into_parts();
        let bodies = &self.inner.bodies;
        let (bytes, charge) = bodies.receive(body, &parts.headers, standing).await?;
        Ok((Request::from_parts(parts, Body::from(bytes)), charge))
    }

    /// Answers a REST request that came over the network, in its turn.
    async fn limited(
        &self,
        mut request: Request,
        identity: Identity,
        answering: Answering,
    ) -> Response<Body> {
        // What must not be done takes nobody's place, and its body is not read.
        if allowed(&request, &identity).is_err() {
            return answered(self.handle(request, identity).await, answering);
        }
        let class = Class::of(&request, &identity);
        let mut _held = None;
        if self.is_collected(&request) {
            match self.received(request, Standing::of(&identity)).await {
                Ok((received, charge)) => (request, _held) = (received, Some(charge)),
                Err(error) => return answered(Answer::error(&error).into_response(), answering),
            }
        }
        let Some(class) = class else {
            return answered(self.handle(request, identity).await, answering);
        };
        let (limits, connections) = (&self.inner.limits, &self.inner.connections);
        let budget = ForClient(connections.budget().clone());
        request.extensions_mut().insert(budget);
        match limits.enter(class, &identity, connections).await {
            Ok(place) => {
                // A person may have paused what follows a log; who follows objects must keep up.
                let answering = answering.holding(place).patiently(class == Class::Streams);
                answered(self.handle(request, identity).await, answering)
            }
            Err(error) => answered(Answer::error(&error).into_response(), answering),
        }
    }

    /// Whether a request's body is here before anything is done; what is passed on is read as it is passed, and what is no
    /// resource takes none.
    fn is_collected(&self, request: &Request) -> bool {
        let Route::Resource(path) = route(request.uri().path()) else {
            return false;
        };
        let resource = self.inner.api.registry.find(&path);
        let passed =
            resource.and_then(|resource| passed_on(resource.info(), path.subresource.as_deref()?));
        takes_a_body(request.method()) && passed.is_none()
    }

    /// Answers one REST request of a known user.
    async fn handle(&self, request: Request, identity: Identity) -> Response<Body> {
        let started = Instant::now();
        let identity = match impersonated(request.headers(), &identity) {
            Ok(identity) => identity,
            Err(error) => return Answer::error(&shortened(&error)).into_response(),
        };
        let method = request.method().clone();
        let format = Format::preferred(request.headers());
        let route = route(request.uri().path());
        let (mut labels, mut proxied) = (("", ""), false);
        let result = match &route {
            Route::Other(path) if path.starts_with("/openapi/") => {
                // They have forms of their own.
                proxied = true;
                let (headers, query) = (request.headers().clone(), request.uri().query());
                let query = Query::parse(query);
                self.openapi(&method, path, &query, &headers, &identity)
                    .await
            }
            Route::Other(path) => self.other(&method, path, &request, &identity),
            Route::Resource(path) => {
                let query = Query::parse(request.uri().query());
                let served = self.inner.api.registry.find(path);
                let resource = served.map_or(UNKNOWN, |resource| resource.info().plural);
                labels = (verb(&method, path, &query), resource);
                proxied = path.subresource.as_deref().is_some_and(is_proxy);
                self.resource(&method, path, &query, request, &identity)
                    .await
            }
        };
        let response = match result {
            Ok(response) => response,
            Err(error) => Answer::error(&error).into_response(),
        };
        METRICS.observe(labels.0, labels.1, response.status(), started.elapsed());
        match format {
            // Not what a pod says, nor what is streamed.
            Some(Format::Yaml) if !proxied => as_yaml(response).await,
            _ => response,
        }
    }

    fn other(
        &self,
        method: &Method,
        path: &str,
        request: &Request,
        identity: &Identity,
    ) -> Result<Response<Body>, StatusError> {
        authorisation::path(identity, path_verb(method), path)
            .map_err(|refused| shortened(&refused))?;
        let registry = &self.inner.api.registry;
        let query = Query::parse(request.uri().query());
        let aggregated = request
            .headers()
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| {
                accept.split(',').next().is_some_and(|first| {
                    first.contains("as=APIGroupDiscoveryList")
                        && first.contains("v=v2")
                        && !first.contains("v2beta1")
                })
            });
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let answer = match parts.as_slice() {
            ["api" | "apis"] if aggregated => {
                Answer::value(&discovery::aggregated(registry, parts[0] == "api"))
                    .with_content_type(
                        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                    )
            }
            ["api"] => Answer::value(&discovery::core_versions(&self.inner.advertise)),
            ["apis"] => Answer::value(&discovery::group_list(registry)),
            ["api", version] => match discovery::resource_list(registry, "", version) {
                Some(list) => Answer::value(&list),
                None => not_found(),
            },
            ["apis", group] => match discovery::group(registry, group) {
                Some(group) => Answer::value(&group),
                None => not_found(),
            },
            ["apis", group, version] => match discovery::resource_list(registry, group, version) {
                Some(list) => Answer::value(&list),
                None => not_found(),
            },
            ["healthz" | "livez" | "readyz"] => {
                health::answer(parts[0], &query, &self.inner.api.store)
            }
            ["version"] => Answer::value(&version()),
            [".well-known", "openid-configuration"] => {
                let accounts = &self.inner.api.service_accounts;
                Answer::value(&accounts.configuration(&self.inner.advertise)).kept_for_an_hour()
            }
            ["openid", "v1", "jwks"] => {
                let keys = self.inner.api.service_accounts.key_set();
                let answer = Answer::value(&keys).with_content_type("application/jwk-set+json");
                answer.kept_for_an_hour()
            }
            ["metrics"] => METRICS.render(),
            [""] => Answer::value(&json!({"paths": [
                "/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3",
                "/openid/v1/jwks", "/readyz", "/version",
            ]})),
            _ => not_found(),
        };
        Ok(answer.into_response())
    }

    /// What describes the API.
    async fn openapi(
        &self,
        method: &Method,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
        identity: &Identity,
    ) -> Result<Response<Body>, StatusError> {
        authorisation::path(identity, path_verb(method), path)
            .map_err(|refused| shortened(&refused))?;
        let (documents, api) = (&self.inner.documents, &self.inner.api);
        let (hash, now) = (query.get("hash"), api.clock.now());
        let answer = openapi::answer(documents, &api.registry, path, hash, headers, now).await;
        Ok(answer.unwrap_or_else(|| not_found().into_response()))
    }

    async fn resource(
        &self,
        method: &Method,
        path: &ResourcePath,
        query: &Query,
        request: Request,
        identity: &Identity,
    ) -> Result<Response<Body>, StatusError> {
        let watching = is_watch(method, path, query);
        authorisation::resource(identity, verb(method, path, query), path)
            .map_err(|refused| shortened(&refused))?;
        let api = &self.inner.api;
        // Virtual resources; to be rows of the registry.
        if let ("authentication.k8s.io", "v1", "tokenreviews") = (
            path.group.as_str(),
            path.version.as_str(),
            path.resource.as_str(),
        ) {
            return self
                .token_review(method, path, query, request, identity)
                .await;
        }
        if !api.registry.serves(&path.group, &path.version) {
            return Ok(not_found().into_response());
        }
        let resource = api
            .registry
            .find(path)
            .ok_or_else(StatusError::unknown_resource)?;
        if resource.info().namespaced != path.namespace.is_some()
            && (path.name.is_some() || !resource.info().namespaced || *method == Method::POST)
        {
            return Err(
                match resource.info().namespaced && *method == Method::POST && path.name.is_none() {
                    true => StatusError::method_not_allowed(),
                    false => StatusError::unknown_resource(),
                },
            );
        }
        let headers = request.headers().clone();
        let mut context = Context {
            api,
            resource,
            path,
            query,
            headers: &headers,
            identity,
            body: bytes::Bytes::new(),
            transcoded: false,
            budget: request
                .extensions()
                .get()
                .map(|ForClient(budget)| budget.clone()),
        };
        let streams = &self.inner.streams;
        let subresource = path.subresource.as_deref().unwrap_or_default();
        match passed_on(resource.info(), subresource) {
            Some(Passed::PortForward) => {
                return port_forward(&context, streams.clone(), request).await;
            }
            Some(Passed::RemoteCommand) => {
                return remote_command(&context, streams.as_ref(), subresource, request).await;
            }
            Some(Passed::Proxy) => return proxy(&context, streams.clone(), request).await,
            None => {}
        }
        query.check()?;
        if takes_a_body(method) {
            context.body = Limited::new(request.into_body(), bodies::LIMIT)
                .collect()
                .await
                .map_err(|_| StatusError::too_large(bodies::LIMIT))?
                .to_bytes();
            context.transcode().await?;
        }
        // What was written through another server is seen here, unless the client is content with less.
        let content = query.get("resourceVersion").is_some() || query.get("continue").is_some();
        if !watching && !content {
            api.catch_up().await?;
        }
        let answer = match (&path.subresource, path.name.is_some()) {
            (None, false) => match *method {
                Method::GET | Method::HEAD if watching => verbs::watch::watch(&context).await,
                Method::GET | Method::HEAD => verbs::list::list(&context).await,
                Method::POST => verbs::create::create(&context).await,
                Method::DELETE => verbs::delete_collection::delete_collection(&context).await,
                _ => Err(StatusError::method_not_allowed()),
            },
            (None, true) => match *method {
                Method::GET | Method::HEAD if watching => verbs::watch::watch(&context).await,
                Method::GET | Method::HEAD => verbs::get::get(&context).await,
                Method::PUT => verbs::update::update(&context, WriteScope::Main).await,
                Method::PATCH => verbs::update::patch(&context, WriteScope::Main).await,
                Method::DELETE => verbs::delete::delete(&context).await,
                _ => Err(StatusError::method_not_allowed()),
            },
            (Some(subresource), _) => self.subresource(&context, method, subresource).await,
        };
        let deprecation = resource.kind.deprecation().map(str::to_owned);
        Ok(Answer::of(answer)
            .with_warnings(deprecation.into_iter().collect())
            .into_response())
    }

    async fn subresource(
        &self,
        context: &Context<'_>,
        method: &Method,
        subresource: &str,
    ) -> Result<Answer, StatusError> {
        let info = context.resource.info();
        let is_pod = (info.group, info.kind) == ("", "Pod");
        let is_account = (info.group, info.kind) == ("", "ServiceAccount");
        match (subresource, method.as_str()) {
            ("status", "GET" | "HEAD") if info.has_status => verbs::get::get_status(context).await,
            ("status", "PUT") if info.has_status => {
                verbs::update::update(context, WriteScope::Status).await
            }
            ("status", "PATCH") if info.has_status => {
                verbs::update::patch(context, WriteScope::Status).await
            }
            ("scale", "GET" | "PUT" | "PATCH") if info.has_scale => {
                verbs::scale::scale(context, method).await
            }
            ("finalize", "PUT") if info.kind == "Namespace" => {
                verbs::finalize::finalize(context).await
            }
            ("token", "POST") if is_account => service_accounts::token_request(context).await,
            ("token", _) if is_account => Err(StatusError::method_not_allowed()),
            ("binding", "POST") if is_pod => verbs::binding::bind(context).await,
            ("eviction", "POST") if is_pod => verbs::eviction::evict(context).await,
            ("log", "GET" | "HEAD") if is_pod => logs(context, self.inner.streams.as_ref()).await,
            ("status", _) if info.has_status => Err(StatusError::method_not_allowed()),
            ("scale", _) if info.has_scale => Err(StatusError::method_not_allowed()),
            ("finalize", _) if info.kind == "Namespace" => Err(StatusError::method_not_allowed()),
            ("binding" | "eviction" | "log", _) if is_pod => Err(StatusError::method_not_allowed()),
            _ => Err(StatusError::unknown_resource()),
        }
    }
}

/// An administrator may act as somebody else.
fn impersonated(headers: &HeaderMap, identity: &Identity) -> Result<Identity, StatusError> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let Some(user) = headers.get("impersonate-user").map(text) else {
        return Ok(identity.clone());
    };
    if !identity.is_in("system:masters") {
        return Err(StatusError::forbidden_resource(
            "",
            "users",
            &user,
            &format!(
                "User \"{}\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
                identity.user
            ),
        ));
    }
    let mut groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .map(text)
        .collect();
    if user != "system:anonymous" {
        groups.push("system:authenticated".to_owned());
    }
    Ok(Identity {
        user,
        groups,
        uid: String::new(),
        extra: BTreeMap::new(),
    })
}

/// What passes on the body of a request as it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    PortForward,
    RemoteCommand,
    /// Whatever path is behind it.
    Proxy,
}

fn passed_on(info: &ResourceInfo, subresource: &str) -> Option<Passed> {
    let of_pod = info.group.is_empty() && info.kind == "Pod";
    match subresource {
        "portforward" if of_pod => Some(Passed::PortForward),
        "exec" | "attach" if of_pod => Some(Passed::RemoteCommand),
        other if is_proxy(other) => {
            let has = info.group.is_empty() && ["Node", "Pod", "Service"].contains(&info.kind);
            has.then_some(Passed::Proxy)
        }
        _ => None,
    }
}

fn is_proxy(subresource: &str) -> bool {
    subresource.split('/').next() == Some("proxy")
}

/// Whether what a method does can need a body: that of any other is never read.
fn takes_a_body(method: &Method) -> bool {
    matches!(
        *method,
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE
    )
}

/// The verb for a path that is no resource's.
fn path_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" | "HEAD" => "get",
        "POST" => "post",
        "PUT" => "put",
        "DELETE" => "delete",
        _ => "patch",
    }
}

/// Refuses what a user may not ask for, before anything of it is done.
fn allowed(request: &Request, identity: &Identity) -> Result<(), StatusError> {
    let identity = impersonated(request.headers(), identity);
    let allowed = identity.and_then(|identity| match route(request.uri().path()) {
        Route::Other(path) => authorisation::path(&identity, path_verb(request.method()), &path),
        Route::Resource(path) => {
            let query = Query::parse(request.uri().query());
            let verb = verb(request.method(), &path, &query);
            authorisation::resource(&identity, verb, &path)
        }
    });
    allowed.map_err(|refused| shortened(&refused))
}

/// An answer that counts for as long as it is not read.
fn answered(mut response: Response<Body>, answering: Answering) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if answering.may_switch() {
            answering.upgraded();
            return response;
        }
        // The connection stays HTTP's, and goes on with other requests.
        let error = StatusError::new(502, "", "the answer switches protocols unasked", None);
        response = Answer::error(&error).into_response();
    }
    let succeeded = response.status().is_success();
    response.map(|body| metered(body, answering, succeeded))
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

/// The same document as YAML; what is no JSON stays what it is.
async fn as_yaml(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let is_json = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return Response::from_parts(parts, body);
    }
    let Ok(collected) = body.collect().await else {
        return Answer::error(&StatusError::internal("the answer broke off")).into_response();
    };
    let bytes = collected.to_bytes();
    let value: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    match value.map(|value| yaml::to_string(&value)) {
        Some(text) => {
            parts
                .headers
                .insert(header::CONTENT_TYPE, Format::Yaml.content_type());
            Response::from_parts(parts, Body::from(text))
        }
        None => Response::from_parts(parts, Body::from(bytes)),
    }
}

/// The API as a tower service within the process, for `kube::Client::new`.
#[derive(Clone)]
pub struct LocalService {
    server: ApiServer,
    identity: Identity,
}

impl<B> Service<http::Request<B>> for LocalService
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (server, identity) = (self.server.clone(), self.identity.clone());
        Box::pin(async move { Ok(server.handle(request.map(Body::new), identity).await) })
    }
}

#[cfg(test)]
mod tests;
