//! Tokens of pods' accounts, asked for over the node link.

use std::time::Duration;

use async_trait::async_trait;
use gantry_pods::tokens::{Token, TokenError, TokenIssuer, TokenRequest};
use gantry_rpc::node::PodTokenRequest;
use gantry_rpc::node::node_link_client::NodeLinkClient;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tonic::transport::Channel;

/// How long a pod waits for a link, and then for an answer.
const LINK_PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Tokens that are asked for at once.
const AT_ONCE: usize = 16;

/// Whoever the node is linked to.
pub(crate) struct LinkIssuer {
    client: Mutex<Option<NodeLinkClient<Channel>>>,
    linked: watch::Sender<bool>,
    turns: Semaphore,
}

impl Default for LinkIssuer {
    fn default() -> Self {
        Self {
            client: Mutex::default(),
            linked: watch::Sender::new(false),
            turns: Semaphore::new(AT_ONCE),
        }
    }
}

impl LinkIssuer {
    /// The link is up, or, with none, down.
    pub(crate) fn link(&self, client: Option<NodeLinkClient<Channel>>) {
        let linked = client.is_some();
        *self.client.lock() = client;
        self.linked.send_replace(linked);
    }
}

#[async_trait]
impl TokenIssuer for LinkIssuer {
    async fn token(&self, asked: TokenRequest) -> Result<Token, TokenError> {
        let mut linked = self.linked.subscribe();
        let is_linked = tokio::time::timeout(LINK_PATIENCE, linked.wait_for(|linked| *linked))
            .await
            .is_ok();
        // Never closed.
        let _turn = self.turns.acquire().await.ok();
        let client = self.client.lock().clone();
        let Some(mut client) = client.filter(|_| is_linked) else {
            return Err(TokenError::NotConnected);
        };
        let asked = PodTokenRequest {
            namespace: asked.namespace,
            pod: asked.name,
            pod_uid: asked.uid,
            audience: asked.source.audience,
            expiration_seconds: asked.source.seconds,
        };
        let answer = tokio::time::timeout(ANSWER_PATIENCE, client.pod_token(asked)).await;
        let answer = answer.map_err(|_| TokenError::NoAnswer(ANSWER_PATIENCE))?;
        let answer = answer.map_err(|status| TokenError::Refused(status.message().to_owned()))?;
        let answer = answer.into_inner();
        Ok(Token {
            token: answer.token,
            valid: Duration::from_secs(u64::try_from(answer.valid_seconds).unwrap_or(0)),
        })
    }
}
