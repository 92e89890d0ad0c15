//! `/gantry/v1/members`: lists, admits, promotes and removes servers. Any server answers; changes go to the leader.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use gantry_apiserver::Identity;
use gantry_authority::keys::Keyring;
use gantry_authority::{Certificates, Granted};
use gantry_base::status::StatusError;
use gantry_members::{Exchange, MEMBERS_GROUP, Roster, ServerRecord, only_administrators, refuse};
use gantry_store::{MemberRole, MembershipError, Store};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::identity::draw_id;

const PATH: &str = "/gantry/v1/members";
/// The group of tokens that admit servers.
const JOINING_GROUP: &str = "system:bootstrappers:gantry:servers";
/// How long the leader tries to reach a server that wants to join.
const REACH: Duration = Duration::from_secs(3);

/// A server that wants to take part.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// The highest feature level it knows.
    pub(crate) level: u32,
    /// For its first certificate: PKCS #10, PEM.
    pub(crate) request: String,
}

impl JoinRequest {
    /// Reads what a stranger with a token sent. The name is shown to people, and names the server in files and messages.
    pub(crate) fn read(body: &[u8]) -> Result<Self, StatusError> {
        let request: Self = serde_json::from_slice(body)
            .map_err(|error| StatusError::bad_request(error.to_string()))?;
        match gantry_base::names::is_dns1123_subdomain(&request.name) {
            None => Ok(request),
            Some(found) => Err(StatusError::bad_request(format!(
                "the server's name {:?}: {found}: choose another with --name",
                request.name.chars().take(80).collect::<String>()
            ))),
        }
    }
}

/// Decodes a server's request to join, for the fuzzer.
pub(crate) fn fuzz(body: &[u8]) {
    drop(JoinRequest::read(body));
}

/// What it needs for that.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinReply {
    pub(crate) id: u64,
    pub(crate) granted: Granted,
    /// The cluster's keys, as in their file.
    pub(crate) keys: serde_json::Value,
    pub(crate) servers: Vec<ServerRecord>,
}

/// A server as it is listed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    name: String,
    address: Option<SocketAddr>,
    version: String,
    role: &'static str,
    leader: bool,
    lag: Option<u64>,
    active: Option<bool>,
    short_of_room: bool,
    differs: bool,
}

/// The routes, over what they need.
#[derive(Clone)]
pub(crate) struct MembersApi {
    pub(crate) store: Store,
    pub(crate) exchange: Exchange,
    pub(crate) roster: Roster,
    pub(crate) certificates: Certificates,
    pub(crate) keyring: Keyring,
}

/// What is asked of a member.
#[derive(Clone, Copy)]
enum Change {
    Promote,
    Lead,
    Remove,
}

impl MembersApi {
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route(PATH, get(list).post(admit))
            .route(&format!("{PATH}/{{name}}"), delete(remove))
            .route(&format!("{PATH}/{{name}}/{{change}}"), post(change))
            .with_state(self)
    }

    async fn change(&self, who: &Identity, name: &str, change: Change) -> Response {
        if let Some(refused) = only_administrators(who) {
            return refused;
        }
        if let Err(error) = self.store.read_barrier().await {
            return refuse(&StatusError::service_unavailable(error.to_string()));
        }
        let servers = self.roster.all();
        let Some(server) = servers
            .iter()
            .find(|server| server.name == name || server.id.to_string() == name)
        else {
            let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
            return refuse(&StatusError::new(
                404,
                "NotFound",
                format!(
                    "there is no server \"{name}\": the servers are {}",
                    names.join(", ")
                ),
                None,
            ));
        };
        let id = server.id;
        if let Some(leader) = self.exchange.elsewhere() {
            let (method, path) = match change {
                Change::Remove => (Method::DELETE, format!("{PATH}/{id}")),
                Change::Promote => (Method::POST, format!("{PATH}/{id}/promote")),
                Change::Lead => (Method::POST, format!("{PATH}/{id}/lead")),
            };
            return self.exchange.ask(leader, method, &path, Vec::new()).await;
        }
        let done = match change {
            Change::Promote => self.store.promote(id).await,
            Change::Lead => self.store.transfer_leadership(id).await,
            // An earlier attempt to remove or to admit it may have stopped half way: its record goes all the same.
            Change::Remove => match self.store.remove(id).await {
                Err(MembershipError::NotFound(_)) => Ok(()),
                done => done,
            },
        };
        if let Err(error) = done {
            return refuse_change(&error);
        }
        if matches!(change, Change::Remove)
            && let Err(error) = self.roster.remove(id).await
        {
            return refuse(&StatusError::service_unavailable(format!("{error:#}")));
        }
        Json(serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            .into_response()
    }
}

fn refuse_change(error: &MembershipError) -> Response {
    refuse(&StatusError::new(409, "Conflict", error.to_string(), None))
}

async fn remove(
    State(api): State<MembersApi>,
    Extension(who): Extension<Identity>,
    Path(name): Path<String>,
) -> Response {
    api.change(&who, &name, Change::Remove).await
}

async fn change(
    State(api): State<MembersApi>,
    Extension(who): Extension<Identity>,
    Path((name, change)): Path<(String, String)>,
) -> Response {
    match change.as_str() {
        "promote" => api.change(&who, &name, Change::Promote).await,
        "lead" => api.change(&who, &name, Change::Lead).await,
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn list(State(api): State<MembersApi>, Extension(who): Extension<Identity>) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    if let Some(leader) = api.exchange.elsewhere() {
        return api
            .exchange
            .ask(leader, Method::GET, PATH, Vec::new())
            .await;
    }
    let servers = api.roster.all();
    let members = api.store.members().await;
    let listed = members.into_iter().map(|member| {
        let server = servers.iter().find(|server| server.id == member.id);
        Listed {
            id: member.id.to_string(),
            name: server.map_or_else(String::new, |server| server.name.clone()),
            address: server.map(|server| server.address),
            version: server.map_or_else(String::new, |server| server.version.clone()),
            role: match member.role {
                MemberRole::Voter => "voter",
                MemberRole::Learner => "learner",
                MemberRole::Leaving => "leaving",
            },
            leader: member.is_leader,
            lag: member.lag,
            active: member.active,
            short_of_room: member.short_of_room,
            differs: member.differs,
        }
    });
    Json(listed.collect::<Vec<_>>()).into_response()
}

async fn admit(
    State(api): State<MembersApi>,
    Extension(who): Extension<Identity>,
    body: bytes::Bytes,
) -> Response {
    if !who.is_in(JOINING_GROUP) && !who.is_in(MEMBERS_GROUP) {
        return refuse(&StatusError::new(
            403,
            "Forbidden",
            "this token does not admit servers: make one with 'gantry token create --for servers'"
                .to_owned(),
            None,
        ));
    }
    let request = match JoinRequest::read(&body) {
        Ok(request) => request,
        Err(refusal) => return refuse(&refusal),
    };
    if let Some(leader) = api.exchange.elsewhere() {
        return api
            .exchange
            .ask(leader, Method::POST, PATH, body.to_vec())
            .await;
    }
    let servers = api.roster.all();
    if let Some(taken) = servers.iter().find(|server| server.name == request.name) {
        let message = format!(
            "the name \"{}\" is taken by the server at {}: choose another with --name, or remove that one with 'gantry member remove {}'",
            request.name, taken.address, request.name
        );
        return refuse(&StatusError::new(409, "AlreadyExists", message, None));
    }
    if request.level < api.store.level() {
        let message = format!(
            "the cluster is at feature level {}, and \"{}\" knows {} only: upgrade gantry there first",
            api.store.level(),
            request.name,
            request.level
        );
        return refuse(&StatusError::new(409, "Conflict", message, None));
    }
    if !reachable(request.address).await {
        let message = format!(
            "the leader cannot reach \"{}\" at {}: name an address that the other servers reach with --address, and let \
             them through the firewall",
            request.name, request.address
        );
        return refuse(&StatusError::new(409, "Conflict", message, None));
    }
    let record = ServerRecord {
        name: request.name,
        address: request.address,
        ..ServerRecord::nowhere(draw_id())
    };
    let granted = api
        .certificates
        .grant_server(record.id, record.address.ip(), &request.request);
    let granted = match granted {
        Ok(granted) => granted,
        Err(error) => return refuse(&StatusError::bad_request(format!("{error:#}"))),
    };
    if let Err(refused) = api.enrol(&record).await {
        return refused;
    }
    // After it is a member: a key that comes up later is sent to every member.
    match api.keyring.contents() {
        Ok(keys) => Json(JoinReply {
            id: record.id,
            granted,
            keys,
            servers,
        })
        .into_response(),
        Err(error) => refuse(&StatusError::service_unavailable(format!("{error:#}"))),
    }
}

/// Whether the server that asks listens where it says; it does, before it asks.
async fn reachable(address: SocketAddr) -> bool {
    let attempt = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(REACH, attempt).await, Ok(Ok(_)))
}

impl MembersApi {
    /// The record first: whatever happens then, the server can be listed and removed.
    async fn enrol(&self, record: &ServerRecord) -> Result<(), Response> {
        self.roster
            .put(record)
            .await
            .map_err(|error| refuse(&StatusError::service_unavailable(format!("{error:#}"))))?;
        self.exchange.peers.learn(record.id, record.address);
        if let Err(error) = self.store.add_learner(record.id).await {
            if let Err(left) = self.roster.remove(record.id).await {
                tracing::warn!(
                    server = record.name,
                    error = format!("{left:#}"),
                    "a record is left"
                );
            }
            return Err(refuse_change(&error));
        }
        Ok(())
    }
}
