//! [`ApiServer`]: who asks, whose turn it is, and which verb answers.

mod listener;
mod routes;
mod tokens;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::Request;
use gantry_api::kind::ResourceKind;
use gantry_api::kinds::custom_metrics;
use gantry_api::kinds::external_metrics;
use gantry_api::status::StatusError;
use gantry_store::{Budget, Charge, Key, Store, Term};
use http::{HeaderMap, Method, Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use crate::admission::Chain;
use crate::authentication::{TokenAuthentication, authenticate, described};
use crate::authorisation::impersonation::{impersonated, is_asked};
use crate::authorisation::{self, Authorisation, Authorizer};
use crate::bodies::Bodies;
use crate::budgets::Budgets;
use crate::clock::Clock;
use crate::connections::{
    Answering, Connection, ConnectionLimits, Connections, Standing, metered, trusted,
};
use crate::context::{Admission, Api, ForClient};
use crate::custom_metrics::CustomMetrics;
use crate::external_metrics::ExternalMetrics;
use crate::identity::{Identity, Tokens};
use crate::limits::{Class, Limits, is_own};
use crate::peer::Peer;
use crate::ranges::Ranges;
use crate::refusals::Refusals;
use crate::registry::{Group, Registry};
use crate::request::{RequestInfo, Route};
use crate::response::{Answer, shortened};
use crate::service_accounts::ServiceAccounts;
use crate::streams::{NodeStreams, protocol_asked_for};
use crate::usage::UsageSource;

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
    /// Tells metrics from outside of the cluster; without, there is no group `external.metrics.k8s.io`.
    pub external_metrics: Option<Arc<dyn ExternalMetrics>>,
    /// How many connections clients may have.
    pub connections: ConnectionLimits,
    /// Bytes that may wait for clients: answers and watches that are not read, and bodies that arrive.
    pub client_memory: usize,
    /// Tells what nodes and pods use; without, there is no group `metrics.k8s.io`.
    pub usage: Option<Arc<dyn UsageSource>>,
    /// Tells metrics of objects; without, there is no group `custom.metrics.k8s.io`.
    pub custom_metrics: Option<Arc<dyn CustomMetrics>>,
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
            external_metrics: None,
            connections: ConnectionLimits::default(),
            client_memory: CLIENT_MEMORY,
            usage: None,
            custom_metrics: None,
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
    limits: Arc<Limits>,
    refusals: Arc<Refusals>,
    connections: Arc<Connections>,
    bodies: Arc<Bodies>,
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
        let admission = Arc::new(Chain::new(&config.ranges));
        Self::with_admission(config, store, streams, admission)
    }

    /// As [`Self::new`], with the plugins that writes pass.
    pub(crate) fn with_admission(
        config: ApiServerConfig,
        store: Store,
        streams: Arc<dyn NodeStreams>,
        admission: Arc<dyn Admission>,
    ) -> Self {
        let budget = Budget::new(config.client_memory);
        let (clock, issuer) = (config.clock.clone(), config.issuer);
        let service_accounts = ServiceAccounts::new(store.clone(), clock, issuer);
        let registry = match &config.external_metrics {
            Some(_) => Registry::built_in().with_group(Group {
                name: external_metrics::GROUP,
                versions: &[external_metrics::VERSION],
            }),
            None => Registry::built_in(),
        };
        let registry = match &config.usage {
            Some(_) => registry.with_measured(gantry_api::kinds::metrics::all()),
            None => registry,
        };
        let registry = match &config.custom_metrics {
            Some(_) => registry.with_group(Group {
                name: custom_metrics::GROUP,
                versions: &custom_metrics::VERSIONS,
            }),
            None => registry,
        };
        Self {
            inner: Arc::new(Inner {
                api: Arc::new(Api {
                    authorisation: Arc::new(Authorisation::new(&store)),
                    store,
                    registry: Arc::new(ArcSwap::from_pointee(registry)),
                    admission,
                    budgets: Arc::new(Budgets::default()),
                    ranges: config.ranges,
                    clock: config.clock,
                    service_accounts: Arc::new(service_accounts),
                    external_metrics: config.external_metrics,
                    tokens: config.tokens.clone(),
                    streams,
                    usage: config.usage,
                    custom_metrics: config.custom_metrics,
                    fence: None,
                }),
                tokens: config.tokens,
                advertise: config.advertise,
                limits: Arc::default(),
                refusals: Arc::default(),
                connections: Connections::new(config.connections, budget.clone()),
                bodies: Arc::new(Bodies::new(budget)),
            }),
        }
    }

    /// Who may do what here.
    pub fn authorizer(&self) -> Arc<dyn Authorizer> {
        self.inner.api.authorisation.clone()
    }

    /// Whether there is such an object.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.inner.api.store.get(key).is_some()
    }

    /// The same API for the parts that run on the leader alone: their writes are refused once another term has begun.
    pub fn fenced(&self, term: Term) -> Self {
        let (inner, api) = (&self.inner, &self.inner.api);
        Self {
            inner: Arc::new(Inner {
                api: Arc::new(Api {
                    store: api.store.clone(),
                    registry: api.registry.clone(),
                    authorisation: api.authorisation.clone(),
                    admission: api.admission.clone(),
                    budgets: api.budgets.clone(),
                    ranges: api.ranges.clone(),
                    clock: api.clock.clone(),
                    service_accounts: api.service_accounts.clone(),
                    external_metrics: api.external_metrics.clone(),
                    tokens: api.tokens.clone(),
                    streams: api.streams.clone(),
                    usage: api.usage.clone(),
                    custom_metrics: api.custom_metrics.clone(),
                    fence: Some(term),
                }),
                tokens: inner.tokens.clone(),
                advertise: inner.advertise.clone(),
                limits: inner.limits.clone(),
                refusals: inner.refusals.clone(),
                connections: inner.connections.clone(),
                bodies: inner.bodies.clone(),
            }),
        }
    }

    /// Serves one more kind from the next request on, or another one in the place of that with the same names. The objects of
    /// a kind that was served before are those of then.
    pub fn serve_kind(&self, kind: &Arc<dyn ResourceKind>) {
        let registry = &self.inner.api.registry;
        registry.rcu(|served| served.with(kind));
    }

    /// Serves a kind no longer, from the next request on; those under way are answered as if nothing had happened.
    pub fn withdraw_kind(&self, group: &str, version: &str, plural: &str) {
        let registry = &self.inner.api.registry;
        registry.rcu(|served| served.without(group, version, plural));
    }

    /// The first address of the service range: `kubernetes.default.svc`.
    pub fn first_service_address(&self) -> std::net::Ipv4Addr {
        let range = self.inner.api.ranges.service_cidr;
        std::net::Ipv4Addr::from(u32::from(range.network()) + 1)
    }

    /// What its verbs work with.
    pub(crate) fn api(&self) -> &Arc<Api> {
        &self.inner.api
    }

    /// The ranges that services get their addresses from.
    pub(crate) fn service_cidrs(&self) -> Vec<String> {
        self.inner.api.ranges.service_cidrs()
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
            // Proxied requests say whom they come from.
            request.extensions_mut().insert(caller.peer.clone());
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
        if is_asked(request.headers()) {
            // Neither as whom it is asked for, who might be a server, nor as who asks and did not mean to.
            let why = "requests below /gantry/ are not made as somebody else: leave out --as";
            let refused = StatusError::new(403, "Forbidden", why, None);
            return answered(Answer::error(&refused).into_response(), answering);
        }
        let mut _held = None;
        if !is_grpc && takes_a_body(request.method()) {
            let standing = Standing::of(&known);
            // What nobody vouches for changes nothing here: its body is not read.
            if standing < Standing::User
                && let Err(refused) = self.admitted(&self.parsed(&request), &request, &known)
            {
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

    /// What a request asks for, of what is served now.
    fn parsed<B>(&self, request: &http::Request<B>) -> RequestInfo {
        RequestInfo::of(request, self.inner.api.registry.load_full())
    }

    /// Whom a request is answered as; refuses what they may not ask for, before anything of it is done.
    fn admitted<B>(
        &self,
        info: &RequestInfo,
        request: &http::Request<B>,
        identity: &Identity,
    ) -> Result<Identity, StatusError> {
        let authorisation = &self.inner.api.authorisation;
        let asked = info.attributes(identity);
        impersonated(&**authorisation, request.headers(), &asked)
            .map(|other| other.unwrap_or_else(|| identity.clone()))
            .and_then(|user| {
                authorisation::check_request(authorisation, info, &user).map(|()| user)
            })
            .map_err(|refused| shortened(&refused))
    }

    /// Answers a REST request that came over the network, in its turn.
    async fn limited(
        &self,
        mut request: Request,
        identity: Identity,
        answering: Answering,
    ) -> Response<Body> {
        let started = Instant::now();
        let info = self.parsed(&request);
        // What must not be done takes nobody's place, and its body is not read.
        let user = match self.admitted(&info, &request, &identity) {
            Ok(user) => user,
            Err(refused) => {
                let refused = routes::refused(&info, request.headers(), &refused, started);
                return answered(refused, answering);
            }
        };
        let class = Class::of(&info, &identity);
        let mut _held = None;
        if is_collected(&info) {
            let headers = request.headers().clone();
            match self.received(request, Standing::of(&identity)).await {
                Ok((received, charge)) => (request, _held) = (received, Some(charge)),
                Err(error) => {
                    let refused = routes::refused(&info, &headers, &error, started);
                    return answered(refused, answering);
                }
            }
        }
        let Some(class) = class else {
            return answered(self.handle(request, &info, &user).await, answering);
        };
        let (limits, connections) = (&self.inner.limits, &self.inner.connections);
        let budget = ForClient(connections.budget().clone());
        request.extensions_mut().insert(budget);
        match limits.enter(class, &identity, connections).await {
            Ok(place) => {
                // A person may have paused what follows a log; who follows objects must keep up.
                let answering = answering.holding(place).patiently(class == Class::Streams);
                answered(self.handle(request, &info, &user).await, answering)
            }
            Err(error) => answered(Answer::error(&error).into_response(), answering),
        }
    }
}

/// Whether a request's body is here before anything is done; what is passed on is read as it is passed, and what is no
/// resource takes none.
fn is_collected(info: &RequestInfo) -> bool {
    let is_resource = matches!(info.route, Route::Resource(_));
    is_resource && takes_a_body(&info.method) && !info.passes_its_body()
}

/// Whether what a method does can need a body: that of any other is never read.
fn takes_a_body(method: &Method) -> bool {
    matches!(
        *method,
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE
    )
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
        Box::pin(async move {
            let started = Instant::now();
            let info = server.parsed(&request);
            let admitted = server.admitted(&info, &request, &identity);
            let answer = match admitted {
                Ok(user) => server.handle(request.map(Body::new), &info, &user).await,
                Err(refused) => routes::refused(&info, request.headers(), &refused, started),
            };
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests;
