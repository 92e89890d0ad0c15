//! `/gantry/v1/certificates`: lists what was issued, and gives nodes theirs. `/gantry/v1/authorities`: whom to trust, and
//! another authority. Any server answers; changes of the authority go to the leader.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use gantry_apiserver::node_keys::{KeyError, NODES_GROUP, Voucher};
use gantry_apiserver::{Identity, Peer};
use gantry_base::status::StatusError;
use gantry_members::{Exchange, only_administrators, refuse};
use gantry_tls::Lifetime;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Certificates;
use super::holders::node_key;

const CERTIFICATES: &str = "/gantry/v1/certificates";
const AUTHORITIES: &str = "/gantry/v1/authorities";
/// The group of tokens that admit nodes.
const JOINING_NODES: &str = "system:bootstrappers:gantry:nodes";
/// Before a node's name: the group of tokens that admit that node alone, also in another's place.
const JOINING_NODE: &str = "system:bootstrappers:gantry:node:";

/// A certificate as it is given to who asked for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Granted {
    /// The certificate and what is shown behind it, PEM.
    pub certificate: String,
    /// The authorities to trust, PEM.
    pub trusted: String,
}

/// A node's request.
#[derive(Debug, Deserialize)]
struct NodeRequest {
    /// The node's name.
    node: String,
    /// PKCS #10, PEM.
    request: String,
}

impl NodeRequest {
    /// Reads what a stranger with a token sent.
    fn read(body: &[u8]) -> Result<Self, StatusError> {
        let asked: Self = serde_json::from_slice(body)
            .map_err(|error| StatusError::bad_request(error.to_string()))?;
        match gantry_base::names::is_dns1123_subdomain(&asked.node) {
            None => Ok(asked),
            Some(found) => Err(StatusError::bad_request(format!(
                "the node's name {:?}: {found}",
                asked.node.chars().take(80).collect::<String>()
            ))),
        }
    }
}

/// Decodes a request, for the fuzzer.
pub(crate) fn fuzz(body: &[u8]) {
    drop(NodeRequest::read(body));
    super::users::fuzz(body);
}

/// The routes, over what they need.
#[derive(Clone)]
pub struct CertificatesApi {
    /// What gives them.
    pub certificates: Certificates,
    /// How the leader is asked.
    pub exchange: Exchange,
}

/// What an administrator is shown of a certificate.
#[derive(Serialize)]
struct Shown {
    user: String,
    holder: String,
    authority: String,
    issued: Timestamp,
    renews: Timestamp,
    expires: Timestamp,
}

impl CertificatesApi {
    /// All of them.
    pub fn router(self) -> Router {
        Router::new()
            .route(CERTIFICATES, get(list).post(grant))
            .route(AUTHORITIES, get(trusted))
            .route(&format!("{AUTHORITIES}/{{change}}"), post(change))
            .merge(super::users::router())
            .with_state(self)
    }

    /// Whose word somebody's is that a node has a key, or why it does not count.
    fn voucher(&self, who: &Identity, peer: &Peer, node: &str) -> Result<Voucher, StatusError> {
        let forbidden = |message: String| Err(StatusError::new(403, "Forbidden", message, None));
        if who.is_in("system:masters") {
            return Ok(Voucher::Administrator);
        }
        if who.is_in(NODES_GROUP) {
            return match &peer.key {
                Some(key) if peer.node() == Some(node) => Ok(Voucher::Node(key.clone())),
                _ => forbidden(format!(
                    "\"{}\" gets certificates of its own only",
                    who.user
                )),
            };
        }
        let bound = who.groups.iter();
        let mut bound = bound.filter_map(|group| group.strip_prefix(JOINING_NODE));
        if bound.clone().any(|name| name == node) {
            return Ok(Voucher::TokenForNode);
        }
        if who.is_in(JOINING_NODES) {
            return Ok(Voucher::Token);
        }
        match bound.next() {
            Some(name) => forbidden(format!(
                "this token admits the node \"{name}\" only: name it with --node-name"
            )),
            None => forbidden(
                "this token does not admit nodes: make one with 'gantry token create --for nodes'"
                    .to_owned(),
            ),
        }
    }

    fn is_ready(&self, node: &str) -> bool {
        let Some(entry) = self.exchange.store.get(&node_key(node)) else {
            return false;
        };
        let object: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    /// What a request is answered whose key is not accepted.
    fn refusal(&self, node: &str, error: &KeyError) -> StatusError {
        match error {
            KeyError::Taken(_) => {
                let exists = self.exchange.store.get(&node_key(node)).is_some();
                let message = match (exists, self.is_ready(node)) {
                    (_, true) => format!(
                        "the node \"{node}\" is there and Ready: choose another name with --node-name, or stop that one first"
                    ),
                    (true, false) => error.to_string(),
                    (false, false) => unseen(node),
                };
                StatusError::new(409, "AlreadyExists", message, None)
            }
            KeyError::Revoked(_) => StatusError::new(403, "Forbidden", error.to_string(), None),
            KeyError::Store(_) => StatusError::service_unavailable(error.to_string()),
        }
    }
}

/// What is to be done about a name that is taken and has no Node.
fn unseen(node: &str) -> String {
    format!(
        "a machine has a certificate as node \"{node}\" and has not appeared yet: if this one is to be it, make a token for it with \
         'gantry token create --for nodes --node {node}'; else choose another name with --node-name, or wait: the name is free \
         an hour after that certificate was made"
    )
}

async fn list(State(api): State<CertificatesApi>, Extension(who): Extension<Identity>) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    // As the store has it, which may be newer than what this server signs with.
    let listed = api.certificates.latest().await;
    let listed = listed.and_then(|known| known.listed());
    let authorities = match listed {
        Ok(authorities) => authorities,
        Err(error) => return refuse(&StatusError::service_unavailable(format!("{error:#}"))),
    };
    let authorities: Vec<Value> = authorities
        .into_iter()
        .enumerate()
        .map(|(at, (fingerprint, lifetime))| {
            json!({
                "fingerprint": fingerprint,
                "signs": at == 0,
                "issued": lifetime.issued,
                "expires": lifetime.expires,
            })
        })
        .collect();
    let certificates = api.certificates.lines().into_iter().map(|line| {
        let lifetime = Lifetime {
            issued: line.issued,
            expires: line.expires,
        };
        Shown {
            user: line.user,
            holder: line.holder,
            authority: line.authority,
            issued: line.issued,
            renews: lifetime.renews(),
            expires: line.expires,
        }
    });
    let certificates: Vec<Shown> = certificates.collect();
    Json(json!({"authorities": authorities, "certificates": certificates})).into_response()
}

async fn grant(
    State(api): State<CertificatesApi>,
    Extension(who): Extension<Identity>,
    Extension(peer): Extension<Peer>,
    body: bytes::Bytes,
) -> Response {
    let asked = match NodeRequest::read(&body) {
        Ok(asked) => asked,
        Err(refusal) => return refuse(&refusal),
    };
    let by = match api.voucher(&who, &peer, &asked.node) {
        Ok(by) => by,
        Err(refusal) => return refuse(&refusal),
    };
    if by == Voucher::TokenForNode && api.is_ready(&asked.node) {
        return refuse(&api.refusal(&asked.node, &KeyError::Taken(asked.node.clone())));
    }
    match api
        .certificates
        .grant_node(&asked.node, &asked.request, &by)
        .await
    {
        Ok(granted) => Json(granted).into_response(),
        Err(error) if error.is::<KeyError>() => match error.downcast::<KeyError>() {
            Ok(error) => refuse(&api.refusal(&asked.node, &error)),
            Err(error) => refuse(&StatusError::service_unavailable(format!("{error:#}"))),
        },
        Err(error) if error.is::<gantry_tls::TlsError>() => {
            refuse(&StatusError::bad_request(format!("{error:#}")))
        }
        Err(error) => refuse(&StatusError::service_unavailable(format!("{error:#}"))),
    }
}

async fn trusted(State(api): State<CertificatesApi>) -> Response {
    let trusted = api.certificates.trusted().borrow().clone();
    Json(json!({"trusted": trusted})).into_response()
}

async fn change(
    State(api): State<CertificatesApi>,
    Extension(who): Extension<Identity>,
    Path(change): Path<String>,
) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    if !["rotate", "finish", "finish-by-force"].contains(&change.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if let Some(leader) = api.exchange.elsewhere() {
        let path = format!("{AUTHORITIES}/{change}");
        return api
            .exchange
            .ask(leader, Method::POST, &path, Vec::new())
            .await;
    }
    let done = match change.as_str() {
        "rotate" => api.certificates.rotate().await,
        "finish" => api.certificates.finish(false).await,
        _ => api.certificates.finish(true).await,
    };
    match done {
        Ok(()) => {
            Json(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})).into_response()
        }
        Err(error) => refuse(&StatusError::new(
            409,
            "Conflict",
            format!("{error:#}"),
            None,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_delete_a_node_that_there_is_not() {
        let said = unseen("web");
        assert!(
            said.contains("--node web") && said.contains("--node-name"),
            "{said}"
        );
        assert!(!said.contains("gantry delete"), "{said}");
    }
}
