//! One resource request on its way through the server, and what all verbs share.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::kind::{Draft, ResourceInfo};
use gantry_api::protobuf;
use gantry_api::schema::TypeSchema;
use gantry_api::status::StatusError;
use gantry_store::{
    Budget, Demand, Entry, Guard, Key, ProposeError, Revision, Store, Term, Transaction,
};
use http::{HeaderMap, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::Value;

use crate::authorisation::Authorisation;
use crate::budgets::Budgets;
use crate::clock::Clock;
use crate::custom_metrics::CustomMetrics;
use crate::external_metrics::ExternalMetrics;
use crate::heavy::Turn;
use crate::identity::{Identity, Tokens};
use crate::lines::Place;
use crate::media::Media;
use crate::ranges::Ranges;
use crate::registry::{Registry, Resource};
use crate::request::{Query, ResourcePath};
use crate::service_accounts::ServiceAccounts;
use crate::streams::nodes::NodeStreams;
use crate::usage::UsageSource;
use crate::verbs::options::WriteOptions;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What the verbs work with; one per server.
pub(crate) struct Api {
    pub(crate) store: Store,
    /// What is served now; a request keeps what was when it came.
    pub(crate) registry: Arc<ArcSwap<Registry>>,
    pub(crate) authorisation: Arc<Authorisation>,
    pub(crate) admission: Arc<dyn Admission>,
    /// Budgets by the pods that they select.
    pub(crate) budgets: Arc<Budgets>,
    /// What services are given addresses and ports from.
    pub(crate) ranges: Ranges,
    pub(crate) clock: Clock,
    pub(crate) service_accounts: Arc<ServiceAccounts>,
    /// Bearer tokens that were given at the start.
    pub(crate) tokens: Tokens,
    /// Leads to the pods.
    pub(crate) streams: Arc<dyn NodeStreams>,
    /// Tells metrics from outside of the cluster.
    pub(crate) external_metrics: Option<Arc<dyn ExternalMetrics>>,
    /// Tells what nodes and pods use.
    pub(crate) usage: Option<Arc<dyn UsageSource>>,
    /// Tells metrics of objects.
    pub(crate) custom_metrics: Option<Arc<dyn CustomMetrics>>,
    /// The term that writes belong to: those of a leader that has been deposed since are refused.
    pub(crate) fence: Option<Term>,
}

/// One request for a resource.
pub(crate) struct Context<'a> {
    pub(crate) api: &'a Arc<Api>,
    /// What was served when the request came.
    pub(crate) registry: &'a Arc<Registry>,
    pub(crate) resource: &'a Arc<Resource>,
    pub(crate) path: &'a ResourcePath,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) identity: &'a Identity,
    /// How the client wants its answer.
    pub(crate) media: Media,
    /// JSON or YAML.
    pub(crate) body: Bytes,
    /// Whether the body came as protobuf and is JSON now.
    pub(crate) transcoded: bool,
    /// What waits for the client is counted here; none within the process.
    pub(crate) budget: Option<Arc<Budget>>,
}

/// Where what waits for a client of the network is counted: in the extensions of its requests.
#[derive(Clone)]
pub(crate) struct ForClient(pub(crate) Arc<Budget>);

/// Parameters that say how objects are shown.
const OF_SHAPES: &[&str] = &["includeObject"];

/// What of a request without a body is needed for as long as its answer is read: of its query and headers, which clients
/// make as large as they like, no more than shows how its objects are to look.
pub(crate) struct Asked {
    api: Arc<Api>,
    registry: Arc<Registry>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) path: ResourcePath,
    query: Query,
    headers: HeaderMap,
    identity: Identity,
    media: Media,
}

impl Asked {
    pub(crate) fn of(context: &Context<'_>) -> Self {
        Self {
            api: context.api.clone(),
            registry: context.registry.clone(),
            resource: context.resource.clone(),
            path: context.path.clone(),
            query: context.query.only(OF_SHAPES),
            headers: HeaderMap::new(),
            identity: Identity::new(&context.identity.user, &[]),
            media: context.media,
        }
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            api: &self.api,
            registry: &self.registry,
            resource: &self.resource,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            identity: &self.identity,
            media: self.media,
            body: Bytes::new(),
            transcoded: false,
            budget: None,
        }
    }
}

/// Attempts of a compare-and-swap loop before the client is told to try again.
pub(crate) const ATTEMPTS: usize = 16;

/// How often a write is attempted that is first in its line, if it is in one: those of the other servers' lines win as often.
pub(crate) fn attempts(place: Option<&Place>) -> usize {
    match place {
        Some(_) => 4 * ATTEMPTS,
        None => ATTEMPTS,
    }
}

impl Context<'_> {
    /// Asks admission about something that is created below the path's object and is none itself.
    pub(crate) fn admit_below(&self) -> Result<(), StatusError> {
        self.api.admission.below(&Attributes {
            context: self,
            operation: Operation::Create,
        })
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.path.namespace.as_deref()
    }

    /// The object's name; routing makes sure that there is one.
    pub(crate) fn name(&self) -> &str {
        self.path.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn key(&self) -> Key {
        self.resource.key(self.namespace(), self.name())
    }

    pub(crate) fn current(&self) -> Result<Arc<Entry>, StatusError> {
        self.api
            .store
            .get(&self.key())
            .ok_or_else(|| StatusError::not_found(self.resource.stored_info(), self.name()))
    }

    /// The options of a write, by what Kubernetes calls them for the verb: `CreateOptions`, `UpdateOptions`, `PatchOptions`.
    pub(crate) fn write_options(&self, kind: &str) -> Result<WriteOptions, StatusError> {
        WriteOptions::read(self.query, kind)
    }

    /// The body's media type; JSON when the client says nothing.
    pub(crate) fn content_type(&self) -> &str {
        if self.transcoded {
            return JSON;
        }
        self.headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or(JSON)
    }

    /// Rewrites a protobuf body as JSON, so that nothing after this knows of it.
    pub(crate) async fn transcode(&mut self) -> Result<(), StatusError> {
        let media_type = self.content_type().split(';').next().unwrap_or_default();
        if media_type.trim() != PROTOBUF || self.body.is_empty() {
            return Ok(());
        }
        let subresource = self.path.subresource.as_deref();
        let subresource = subresource.and_then(|path| self.resource.subresource(path));
        let own =
            subresource.and_then(|subresource| Some((&subresource.kind, subresource.schema()?)));
        let schema = |kind: &str| match own {
            Some((own, schema)) if kind == own => Some(schema),
            _ if kind == self.resource.info().kind => Some(self.resource.kind.schema()),
            _ if kind == "DeleteOptions" => Some(TypeSchema::of::<DeleteOptions>()),
            _ => None,
        };
        let turn = Turn::wait(self.body.len()).await;
        let text =
            turn.work(|| protobuf::to_json(&self.body, schema).map(|object| object.to_string()));
        let text = text.map_err(|error| StatusError::bad_request(error.to_string()))?;
        self.body = Bytes::from(text);
        self.transcoded = true;
        Ok(())
    }
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// A write, as plugins are told of it: the user, the path and the options are the request's.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) operation: Operation,
}

impl Attributes<'_> {
    pub(crate) fn info(&self) -> &ResourceInfo {
        self.context.resource.info()
    }

    /// The subresource that is written; empty for the object itself.
    pub(crate) fn subresource(&self) -> &str {
        self.context.path.subresource.as_deref().unwrap_or_default()
    }

    /// Whether an object itself of a kind is written.
    pub(crate) fn writes(&self, group: &str, kind: &str) -> bool {
        self.is(group, kind) && self.subresource().is_empty()
    }

    /// Whether a new object of a kind is written.
    pub(crate) fn creates(&self, group: &str, kind: &str) -> bool {
        self.operation == Operation::Create && self.writes(group, kind)
    }

    /// Whether it is a pod's resources that are written.
    pub(crate) fn resizes_pod(&self) -> bool {
        self.operation == Operation::Update && self.is("", "Pod") && self.subresource() == "resize"
    }

    /// Whether something of an object of a kind is written.
    pub(crate) fn is(&self, group: &str, kind: &str) -> bool {
        let info = self.info();
        info.group == group && info.kind == kind
    }
}

/// What every write passes, at each of its stages: Kubernetes' admission interface.
#[async_trait]
pub(crate) trait Admission: Send + Sync {
    /// Completes or refuses an object that has its defaults. Returns whether that may have changed it.
    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<bool, StatusError>;

    /// Refuses an object that is valid by itself, or warns of it. The last word before it is written.
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError>;

    /// Refuses what is created below an object and is none itself, such as the binding of a pod.
    fn below(&self, attributes: &Attributes<'_>) -> Result<(), StatusError>;

    /// Refuses a deletion.
    fn delete(&self, attributes: &Attributes<'_>) -> Result<(), StatusError>;

    /// The line in which a write waits, and stays until it is done, where it changes what many others do.
    fn line(&self, attributes: &Attributes<'_>) -> Option<Place>;

    /// Gives a valid object the cluster-wide unique things it needs, guarded in its own transaction. Returns whether the
    /// object is changed by that.
    fn reserve(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        current: Option<&Value>,
        transaction: &mut Transaction,
    ) -> Result<bool, StatusError>;

    /// Returns what [`Self::reserve`] gave, with the object's removal.
    fn release(&self, attributes: &Attributes<'_>, object: &Value, transaction: &mut Transaction);
}

fn unavailable(error: &ProposeError) -> StatusError {
    match error {
        ProposeError::Unknown => {
            StatusError::timeout("request did not complete: leadership was lost", 1)
        }
        ProposeError::ReadOnly(_) => {
            StatusError::new(507, "InsufficientStorage", error.to_string(), None)
        }
        error => StatusError::service_unavailable(error.to_string()),
    }
}

/// How one attempt at a transaction went.
pub(crate) enum Committed {
    At(Revision),
    /// A guard did not hold: the position of the guard.
    Conflict(usize),
}

impl Api {
    /// Proposes a transaction; only conflicts are the caller's business.
    pub(crate) async fn commit(
        &self,
        mut transaction: Transaction,
        demand: Demand,
    ) -> Result<Committed, StatusError> {
        // Last, so that the positions of the others are the caller's.
        let fence = transaction.guards.len();
        transaction.guards.extend(self.fence.map(Guard::Term));
        match self.store.propose_for(transaction, demand).await {
            Ok(revision) => Ok(Committed::At(revision)),
            Err(ProposeError::Conflict { guard, .. }) if guard == fence => {
                Err(StatusError::service_unavailable(
                    "this server no longer leads: another one has taken over".to_owned(),
                ))
            }
            Err(ProposeError::Conflict { guard, .. }) => {
                // The caller looks again, and must see at least what it conflicted with.
                self.catch_up().await?;
                Ok(Committed::Conflict(guard))
            }
            Err(ProposeError::Overloaded { waiting }) => Err(StatusError::too_many_requests(
                format!(
                    "the store is overloaded: {waiting} writes are waiting; try again in a second"
                ),
                1,
            )),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Waits until this server's memory holds everything acknowledged before, by any server.
    pub(crate) async fn catch_up(&self) -> Result<(), StatusError> {
        let barrier = self.store.read_barrier().await;
        barrier.map(drop).map_err(|error| unavailable(&error))
    }
}

/// A value of `metadata`, as text.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}
