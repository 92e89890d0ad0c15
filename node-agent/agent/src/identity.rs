//! The node's certificate: how it gets the first with a token, and keeps it current while the agent runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_tls::{Credential, KeyRequest, Kubeconfig, RequestError, TlsError};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, StatusCode};
use http_body_util::Full;
use rand::Rng as _;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::servers::Servers;

const CERTIFICATES: &str = "/gantry/v1/certificates";
const AUTHORITIES: &str = "/gantry/v1/authorities";
/// How often the agent asks whom to trust, at most; sooner when its certificate is due before that.
const LOOK: Duration = Duration::from_secs(60);
/// Between attempts that fail, and at least between looks.
const AGAIN: Duration = Duration::from_secs(1);

/// How a node and its cluster recognise each other.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity {
    /// The authorities that sign servers' certificates, PEM.
    pub trusted: String,
    /// The node's certificate (`system:node:NAME` in `system:nodes`), PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
    /// The kubeconfig that it is kept in; `None` when the next start brings another.
    pub kubeconfig: Option<PathBuf>,
}

/// Why there is no (new) certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What there is cannot be used.
    #[error(transparent)]
    Unusable(#[from] TlsError),
    /// The server could not be asked.
    #[error(transparent)]
    Unanswered(#[from] RequestError),
    /// The token is not one.
    #[error("the token is not whole: copy it again from 'gantry token create --for nodes'")]
    NoToken,
    /// The server is not of the cluster that the token is of.
    #[error(
        "the server at {0} is of another cluster than the token: check the address, or make a token there with 'gantry token \
         create --for nodes'"
    )]
    Foreign(SocketAddr),
    /// The token is not accepted.
    #[error(
        "the server at {0} does not accept the token: it is wrong, revoked or expired; make a new one with 'gantry token create \
         --for nodes'"
    )]
    Unauthorized(SocketAddr),
    /// The node's certificate is not accepted any more.
    #[error("the server at {server} refuses: {message}")]
    Revoked {
        /// Who.
        server: SocketAddr,
        /// Why.
        message: String,
    },
    /// The server says no.
    #[error("the server at {server} refuses: {message}")]
    Refused {
        /// Who.
        server: SocketAddr,
        /// Why.
        message: String,
    },
    /// The request cannot be made of what was given.
    #[error("asking the server: {0}")]
    Malformed(#[from] http::Error),
}

#[derive(Deserialize)]
struct Granted {
    certificate: String,
    trusted: String,
}

/// The body of an answer.
fn answered<T: serde::de::DeserializeOwned>(
    server: SocketAddr,
    (status, body): (StatusCode, Bytes),
) -> Result<T, IdentityError> {
    let refused = |message: String| IdentityError::Refused { server, message };
    if !status.is_success() {
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = said["message"].as_str().unwrap_or(status.as_str());
        return Err(match status {
            // Of certificates servers say more.
            StatusCode::UNAUTHORIZED if message == "Unauthorized" => {
                IdentityError::Unauthorized(server)
            }
            StatusCode::UNAUTHORIZED => IdentityError::Revoked {
                server,
                message: message.to_owned(),
            },
            _ => refused(message.to_owned()),
        });
    }
    serde_json::from_slice(&body).map_err(|error| refused(error.to_string()))
}

/// Asks for a certificate of a node. `token` is shown where there is no certificate yet.
async fn ask(
    server: SocketAddr,
    tls: ClientConfig,
    node: &str,
    key: KeyRequest,
    token: Option<&str>,
) -> Result<(String, Credential), IdentityError> {
    let body = json!({"node": node, "request": key.request}).to_string();
    let mut request = Request::post(CERTIFICATES).header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(body.into()))?;
    let answer = gantry_tls::request(server, tls, request).await?;
    let granted: Granted = answered(server, answer)?;
    Ok((granted.trusted, key.granted(granted.certificate)?))
}

/// The first certificate of a node, for a token from `gantry token create --for nodes`. `key` is the node's, PEM, kept since
/// before it was first asked for: the name is the node's from then on, although the answer may be lost.
pub async fn join(
    server: SocketAddr,
    token: &str,
    node: &str,
    key: &str,
) -> Result<NodeIdentity, IdentityError> {
    let key = KeyRequest::with_key(key, &user(node))?;
    let (token, fingerprint) = token
        .trim()
        .rsplit_once('.')
        .filter(|(_, fingerprint)| fingerprint.len() == 64)
        .ok_or(IdentityError::NoToken)?;
    let tls = gantry_tls::recognising(fingerprint)?;
    let asked = ask(server, tls, node, key, Some(token)).await;
    let (trusted, own) = asked.map_err(|error| match error {
        IdentityError::Unanswered(error) if error.is_foreign() => IdentityError::Foreign(server),
        error => error,
    })?;
    Ok(NodeIdentity {
        trusted,
        certificate: own.certificate,
        key: own.key,
        kubeconfig: None,
    })
}

fn user(node: &str) -> String {
    format!("system:node:{node}")
}

/// Agents are told of further servers by the one that they are linked to.
fn kubeconfig(node: &str, server: SocketAddr, trusted: &str, own: &Credential) -> String {
    Kubeconfig {
        server: &format!("https://{server}"),
        others: &[],
        trusted,
        user: &user(node),
        credential: own,
    }
    .render()
}

impl NodeIdentity {
    /// A kubeconfig of it, for the server at an address.
    pub fn to_kubeconfig(&self, node: &str, server: SocketAddr) -> Result<String, TlsError> {
        let own = self.credential()?;
        Ok(kubeconfig(node, server, &self.trusted, &own))
    }

    /// Whether the certificate's time is over.
    pub fn is_over(&self) -> Result<bool, TlsError> {
        Ok(jiff::Timestamp::now() >= self.credential()?.lifetime.expires)
    }

    /// Whether a server says that this does not count any more: the node was removed or replaced. A server that does not
    /// answer has not said so.
    pub async fn is_revoked(&self, server: SocketAddr) -> Result<bool, IdentityError> {
        let tls = gantry_tls::mutual(&self.trusted, &self.credential()?)?;
        let request = Request::get(AUTHORITIES).body(Full::default())?;
        let Ok(answer) = gantry_tls::request(server, tls, request).await else {
            return Ok(false);
        };
        let said = answered::<serde_json::Value>(server, answer);
        Ok(matches!(said, Err(IdentityError::Revoked { .. })))
    }

    fn credential(&self) -> Result<Credential, TlsError> {
        Credential::from_pem(self.certificate.clone(), self.key.clone())
    }
}

/// The node's credentials, in use.
pub(crate) struct Credentials {
    node: String,
    trusted: String,
    own: Credential,
    /// By a clock that is far ahead a certificate is due as soon as it is there, and another one would be too: there is
    /// no hurry.
    is_due_already: bool,
    kubeconfig: Option<PathBuf>,
    tls: watch::Sender<Arc<ClientConfig>>,
}

fn client(trusted: &str, own: &Credential) -> Result<Arc<ClientConfig>, TlsError> {
    let mut tls = gantry_tls::mutual(trusted, own)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(tls))
}

impl Credentials {
    pub(crate) fn new(node: &str, identity: NodeIdentity) -> Result<Self, TlsError> {
        let own = identity.credential()?;
        let tls = watch::Sender::new(client(&identity.trusted, &own)?);
        Ok(Self {
            node: node.to_owned(),
            trusted: identity.trusted,
            own,
            is_due_already: false,
            kubeconfig: identity.kubeconfig,
            tls,
        })
    }

    /// What connections are made with.
    pub(crate) fn tls(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.tls.subscribe()
    }

    /// Gets another certificate when two thirds of this one's life are over, and when the cluster changes its authority.
    pub(crate) async fn keep_current(mut self, servers: Servers, stop: CancellationToken) {
        let mut trouble = String::new();
        // At once at first: much may have changed while no agent ran.
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(&servers) => looked,
            };
            let said = looked.err().map_or_else(String::new, |error| {
                gantry_tls::about_clocks(&error, Some(self.own.lifetime))
                    .unwrap_or_else(|| error.to_string())
            });
            // The same trouble is told once; the link tells of servers that are away.
            if !said.is_empty() && said != trouble {
                tracing::info!(
                    error = said,
                    "renewing the node's certificate; it is tried again"
                );
            }
            trouble = said;
            pause = self.pause(trouble.is_empty());
        }
    }

    fn pause(&self, is_well: bool) -> Duration {
        if !is_well {
            return AGAIN;
        }
        let due = self
            .own
            .lifetime
            .renews()
            .duration_since(jiff::Timestamp::now());
        let due = Duration::try_from(due).unwrap_or_default();
        // Nodes that start together do not ask together for ever.
        let look = LOOK.mul_f64(rand::rng().random_range(0.75..1.0));
        if self.is_due_already {
            return look;
        }
        due.clamp(AGAIN, look)
    }

    async fn look(&mut self, servers: &Servers) -> Result<(), IdentityError> {
        let tls = ClientConfig::clone(&self.tls.borrow());
        let mut last = None;
        for server in servers.by_preference() {
            match self.look_at(server, tls.clone()).await {
                Ok(()) => return Ok(()),
                // Another server may answer.
                Err(error @ IdentityError::Unanswered(_)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(()), Err)
    }

    async fn look_at(
        &mut self,
        server: SocketAddr,
        tls: ClientConfig,
    ) -> Result<(), IdentityError> {
        #[derive(Deserialize)]
        struct Trusted {
            trusted: String,
        }
        let request = Request::get(AUTHORITIES).body(Full::default())?;
        let answer = gantry_tls::request(server, tls.clone(), request).await?;
        let said: Trusted = answered(server, answer)?;
        if said.trusted == self.trusted && !self.own.lifetime.is_due() {
            return Ok(());
        }
        let key = KeyRequest::new(&user(&self.node))?;
        let (trusted, own) = ask(server, tls, &self.node, key, None).await?;
        let tls = client(&trusted, &own)?;
        if let Some(path) = &self.kubeconfig {
            let text = kubeconfig(&self.node, server, &trusted, &own);
            gantry_tls::write(path, &text, 0o600)?;
        }
        let expires = own.lifetime.expires;
        (self.trusted, self.own) = (trusted, own);
        self.tls.send_replace(tls);
        tracing::info!(%expires, "the node's certificate was renewed");
        self.is_due_already = self.own.lifetime.is_due();
        if self.is_due_already {
            tracing::warn!(
                %expires,
                "by this machine's clock the new certificate is nearly over or over: is the clock right?"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_credentials_are_named() {
        let error = Credentials::new("n", NodeIdentity::default());
        let error = error.err().expect("refused").to_string();
        assert!(
            error.starts_with("the certificate cannot be used"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn half_a_token_is_refused_before_anybody_is_asked() {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        for token in ["", "abcdef.0123456789abcdef", "abcdef.0123456789abcdef.12"] {
            let key = KeyRequest::new("n").expect("a key").key;
            let refused = join(nowhere, token, "n", &key).await;
            assert!(matches!(refused, Err(IdentityError::NoToken)), "{token}");
        }
    }
}
