//! A new key, without a moment in which a server lacks one that it needs.
//!
//! Every server is sent the key. Then the store says that it seals from now on, and each server switches, seals anew what
//! it has, and writes down that it did. When all have, and nothing sealed before can be under way any more, each seals
//! anew once more and forgets the older keys. The keys themselves never enter the store.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use gantry_apiserver::Identity;
use gantry_base::status::StatusError;
use gantry_members::{Exchange, MEMBERS_GROUP, Roster, only_administrators, refuse};
use gantry_store::{Index, Key, Operation, Store, Table, Transaction};
use http::{Method, StatusCode};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Keyring;

const PATH: &str = "/gantry/v1/keys";
const TABLE: &str = "-/keys";
/// The row that tells which key seals; the others are servers', by id, and tell which key all they have is sealed with.
const ACTIVE: &str = "active";
const LOOK: Duration = Duration::from_secs(1);
/// A proposal sealed before its server switched is in the log or refused after this long.
const UNDER_WAY: Duration = Duration::from_secs(10);

fn key(name: &str) -> Key {
    Key {
        table: Table(TABLE.into()),
        namespace: "".into(),
        name: name.into(),
    }
}

fn row_of(server: u64) -> String {
    format!("{server:016x}")
}

fn read(store: &Store, name: &str) -> Option<String> {
    let entry = store.get(&key(name))?;
    Some(String::from_utf8_lossy(&entry.value).into_owned())
}

async fn write(store: &Store, name: &str, id: &str) -> Result<()> {
    let put = Operation::Put {
        key: key(name),
        value: id.as_bytes().to_vec().into(),
        index: Index::default(),
    };
    let transaction = Transaction {
        guards: Vec::new(),
        operations: vec![put],
    };
    let written = store.propose(transaction).await;
    written.map(drop).context("writing which key seals")
}

/// Does on this server what the store says of keys, until told to stop.
pub async fn follow(store: Store, keyring: Keyring, server: u64, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            done = step(&store, &keyring, server) => if let Err(error) = done {
                tracing::info!(error = format!("{error:#}"), "changing keys; it is tried again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn step(store: &Store, keyring: &Keyring, server: u64) -> Result<()> {
    let Some(active) = read(store, ACTIVE) else {
        return Ok(());
    };
    if keyring.active() != active {
        keyring.activate(&active)?;
        tracing::info!(key = active, "Secrets are sealed with a new key");
    }
    if read(store, &row_of(server)).as_ref() != Some(&active) {
        store.reseal().await?;
        write(store, &row_of(server), &active).await?;
    }
    let sealed = |id: u64| read(store, &row_of(id)).as_ref() == Some(&active);
    if keyring.ids().len() > 1 {
        let members = store.members().await;
        if !members.is_empty() && members.iter().all(|member| sealed(member.id)) {
            tokio::time::sleep(UNDER_WAY).await;
            store.reseal().await?;
            // Another key may have come meanwhile; then this begins anew.
            if read(store, ACTIVE).as_ref() == Some(&active) && keyring.active() == active {
                keyring.keep_active_only()?;
                tracing::info!(key = active, "the older keys are forgotten");
            }
        }
    }
    Ok(())
}

/// `/gantry/v1/keys`: which keys there are; `/gantry/v1/keys/rotate`: another one.
#[derive(Clone)]
pub struct KeysApi {
    /// How the other servers are asked.
    pub exchange: Exchange,
    /// Who they are.
    pub roster: Roster,
    /// This server's.
    pub keyring: Keyring,
}

/// What an administrator is shown: ids, never keys.
#[derive(Serialize)]
struct Shown {
    active: String,
    /// Those that the answering server has.
    keys: Vec<String>,
    servers: Vec<ShownServer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownServer {
    name: String,
    /// The key that everything this server has is sealed with; nothing before the first change.
    sealed_with: Option<String>,
}

impl KeysApi {
    /// All of its routes.
    pub fn router(self) -> Router {
        Router::new()
            .route(PATH, get(show).post(take))
            .route(&format!("{PATH}/rotate"), post(rotate))
            .with_state(self)
    }

    async fn rotate(&self) -> Result<String> {
        let id = self.keyring.add_new()?;
        let store = &self.exchange.store;
        let contents = self.keyring.contents()?.to_string();
        let own = store.leadership().borrow().leader;
        let mut sent = vec![own.unwrap_or_default()];
        // A server that is admitted meanwhile either gets the new key with its admission, or is found here.
        loop {
            let members = store.members().await;
            let Some(next) = members.iter().find(|member| !sent.contains(&member.id)) else {
                break;
            };
            let server = self.roster.get(next.id);
            let server = server.with_context(|| format!("server {} is unknown", next.id))?;
            let body = contents.clone().into_bytes();
            let answer = self
                .exchange
                .send(server.address, Method::POST, PATH, body)
                .await;
            let taken = answer.and_then(|(status, body)| match status.is_success() {
                true => Ok(()),
                false => Err(anyhow!("{}", String::from_utf8_lossy(&body))),
            });
            taken.with_context(|| {
                format!(
                    "server \"{}\" cannot be given the new key, so the old one stays: bring that server back or remove it, \
                     then try again",
                    server.name
                )
            })?;
            sent.push(next.id);
        }
        write(store, ACTIVE, &id).await?;
        Ok(id)
    }
}

async fn show(State(api): State<KeysApi>, Extension(who): Extension<Identity>) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    let servers = api.roster.all().into_iter().map(|server| ShownServer {
        sealed_with: read(&api.exchange.store, &row_of(server.id)),
        name: server.name,
    });
    Json(Shown {
        active: api.keyring.active(),
        keys: api.keyring.ids(),
        servers: servers.collect(),
    })
    .into_response()
}

/// From the leader: keys to have.
async fn take(
    State(api): State<KeysApi>,
    Extension(who): Extension<Identity>,
    body: bytes::Bytes,
) -> Response {
    if !who.is_in(MEMBERS_GROUP) {
        let message = "only servers of this cluster give each other keys".to_owned();
        return refuse(&StatusError::new(403, "Forbidden", message, None));
    }
    match api.keyring.add_all(&body) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refuse(&StatusError::service_unavailable(format!("{error:#}"))),
    }
}

async fn rotate(State(api): State<KeysApi>, Extension(who): Extension<Identity>) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    if let Some(leader) = api.exchange.elsewhere() {
        let path = format!("{PATH}/rotate");
        return api
            .exchange
            .ask(leader, Method::POST, &path, Vec::new())
            .await;
    }
    match api.rotate().await {
        Ok(id) => Json(serde_json::json!({"active": id})).into_response(),
        // Not "unavailable": clients repeat that by themselves, and every attempt makes a key.
        Err(error) => refuse(&StatusError::new(
            409,
            "Conflict",
            format!("{error:#}"),
            None,
        )),
    }
}
