//! The keys that sign the tokens of service accounts, as time goes on: another one signs once every server has it, and those
//! before are forgotten when the last of their tokens has ended, or when an administrator says so.
//!
//! The keys themselves are a sealed row of the store (`gantry_apiserver::service_accounts::keys`). Here is what each server does
//! about them, and `/gantry/v1/token-keys`.

use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use gantry_apiserver::Identity;
use gantry_apiserver::service_accounts::keys;
use gantry_base::status::StatusError;
use gantry_members::{Exchange, only_administrators, refuse};
use gantry_store::{Index, Key, Operation, Store, Table, Transaction};
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATH: &str = "/gantry/v1/token-keys";
/// Which key each server has heard of last, by its id.
const TABLE: &str = "-/serviceaccountkeyservers";
const LOOK: Duration = Duration::from_secs(1);

fn row(server: u64) -> Key {
    Key {
        table: Table(TABLE.into()),
        namespace: "".into(),
        name: format!("{server:016x}").as_str().into(),
    }
}

/// Whether a server has said that it has a key.
fn has(store: &Store, server: u64, key: &str) -> bool {
    let said = store.get(&row(server));
    said.is_some_and(|said| said.value[..] == *key.as_bytes())
}

/// Does on this server what is to be done about keys, until told to stop.
pub async fn follow(store: Store, server: u64, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            done = step(&store, server) => if let Err(error) = done {
                tracing::info!(error = format!("{error:#}"), "changing the keys of tokens; it is tried again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn step(store: &Store, server: u64) -> Result<()> {
    let now = Timestamp::now().as_second();
    let leads = store.leadership().borrow().is_leader;
    if let Some(waiting) = keys::waiting(store) {
        if !has(store, server, &waiting) {
            let put = Operation::Put {
                key: row(server),
                value: waiting.clone().into_bytes().into(),
                index: Index::default(),
            };
            let transaction = Transaction {
                guards: Vec::new(),
                operations: vec![put],
            };
            let written = store.propose(transaction).await;
            written.context("writing that this server has a key")?;
        }
        if leads {
            let members = store.members().await;
            let all = members.iter().all(|member| has(store, member.id, &waiting));
            if all && !members.is_empty() {
                keys::sign_with(store, &waiting, now).await?;
                tracing::info!(key = waiting, "tokens are signed with a new key");
            }
        }
    }
    if leads && keys::forget(store, now, false).await? {
        tracing::info!("a key is forgotten: no token that it signed counts any more");
    }
    Ok(())
}

/// `/gantry/v1/token-keys`: which keys there are; below it `rotate`: another one; `drop`: only the one that signs.
#[derive(Clone)]
pub struct TokenKeysApi {
    /// How the leader is asked.
    pub exchange: Exchange,
}

impl TokenKeysApi {
    /// All of its routes.
    pub fn router(self) -> Router {
        Router::new()
            .route(PATH, get(show))
            .route(&format!("{PATH}/{{change}}"), post(change))
            .with_state(self)
    }

    fn shown(&self) -> Value {
        json!({"keys": keys::list(&self.exchange.store)})
    }
}

async fn show(State(api): State<TokenKeysApi>, Extension(who): Extension<Identity>) -> Response {
    match only_administrators(&who) {
        Some(refused) => refused,
        None => Json(api.shown()).into_response(),
    }
}

async fn change(
    State(api): State<TokenKeysApi>,
    Extension(who): Extension<Identity>,
    Path(change): Path<String>,
) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    if !["rotate", "drop"].contains(&change.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if let Some(leader) = api.exchange.elsewhere() {
        let path = format!("{PATH}/{change}");
        return api
            .exchange
            .ask(leader, Method::POST, &path, Vec::new())
            .await;
    }
    let (store, now) = (&api.exchange.store, Timestamp::now().as_second());
    let done = match change.as_str() {
        "rotate" => keys::add(store, now).await.map(drop),
        _ => keys::forget(store, now, true).await.map(drop),
    };
    match done {
        Ok(()) => Json(api.shown()).into_response(),
        // Not "unavailable": clients repeat that by themselves, and every attempt makes a key.
        Err(error) => refuse(&StatusError::new(409, "Conflict", error.to_string(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_signs_once_every_server_has_it() {
        let store = Store::ephemeral();
        keys::found(&store, 0).await.expect("a key");
        let first = keys::list(&store);
        let added = keys::add(&store, 1).await.expect("another");
        let members = store.members().await;
        let own = members.first().map_or(1, |member| member.id);
        // What another server says is not what this one has.
        step(&store, own + 1).await.expect("it is written");
        assert!(!keys::list(&store)[0].signs && has(&store, own + 1, &added));
        step(&store, own).await.expect("it is written");
        let listed = keys::list(&store);
        assert!(listed[0].signs && listed[0].id == added, "{listed:?}");
        assert!(listed[1].id == first[0].id && listed[1].until.is_some());
        keys::forget(&store, 0, true).await.expect("dropped");
        step(&store, own).await.expect("nothing to do");
        assert_eq!(keys::list(&store).len(), 1);
    }
}
