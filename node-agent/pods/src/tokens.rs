//! Tokens of pods' accounts: asked for, kept in memory, and asked for again long before they end.
//!
//! Without a server a pod that is new waits for its token, and one that runs keeps what it has: another is asked for again and
//! again. What an earlier agent has written is used until there is a newer one, so that the agent's restart needs no server.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use rand::Rng as _;
use serde::Deserialize;
use tokio::time::Instant;

use crate::volumes::{PodTokens, TokenSource, shown_token, token_sources};

/// A token is replaced when so much of its life is over, as by a kubelet, or after [`Tokens::longest`].
const SHARE: f64 = 0.8;
/// Pods that start together do not ask together for ever: each time so much of the wait is left out, at most.
const JITTER: f64 = 0.05;
/// Between attempts that fail.
const AGAIN: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Different tokens of one pod. So many of each pod that a node can have are replaced more slowly than a node is given tokens,
/// even if each counts for ten minutes: no pod keeps others from theirs.
const MOST_TOKENS: usize = 64;

/// Why there is no token, worded for a pod's Events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody can be asked.
    #[error("no server is connected")]
    NotConnected,
    /// Who was asked says nothing for so long.
    #[error("the server did not answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// Who was asked says no, in these words.
    #[error("{0}")]
    Refused(String),
    /// The pod names more than a node keeps of one.
    #[error("the pod's volumes name {0} different tokens, and a pod has at most {most}", most = MOST_TOKENS)]
    TooMany(usize),
}

impl TokenError {
    /// Whether whoever asks for another token would only wait as long again.
    fn is_silence(&self) -> bool {
        matches!(self, Self::NotConnected | Self::NoAnswer(_))
    }
}

/// What a token is asked for: Kubernetes' TokenRequest, bound to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// Whom it is for, and how long it is to count.
    pub source: TokenSource,
}

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What is shown.
    pub token: String,
    /// How long it counts from when it was asked for.
    pub valid: Duration,
}

/// Where tokens come from.
#[async_trait]
pub trait TokenIssuer: Send + Sync + 'static {
    /// A new token; it may count for less than was asked.
    async fn token(&self, asked: TokenRequest) -> Result<Token, TokenError>;
}

#[derive(Clone)]
struct Held {
    token: String,
    refresh_at: Instant,
    expires_at: Instant,
    /// Attempts to replace it that failed, in a row.
    failures: u32,
}

/// The tokens of this node's pods.
pub struct Tokens {
    issuer: Arc<dyn TokenIssuer>,
    /// A token is replaced after this time however long it counts.
    longest: Duration,
    /// By the uid of the pod.
    held: Mutex<BTreeMap<String, BTreeMap<TokenSource, Held>>>,
}

impl Tokens {
    /// None yet. A token is replaced after `longest` however long it counts.
    pub fn new(issuer: Arc<dyn TokenIssuer>, longest: Duration) -> Self {
        Self {
            issuer,
            longest,
            held: Mutex::default(),
        }
    }

    /// The tokens of a pod as they are to be now: those that are due are asked for. Beside them a volume that lacks one, and
    /// why: the others have theirs all the same.
    pub(crate) async fn of_pod(
        &self,
        pod: &Pod,
        uid: &str,
        pod_dir: &Path,
    ) -> (PodTokens, Option<(String, TokenError)>) {
        let sources = token_sources(pod);
        if sources.len() > MOST_TOKENS
            && let Some(place) = sources.values().next()
        {
            let too_many = TokenError::TooMany(sources.len());
            return (PodTokens::new(), Some((place.volume.to_owned(), too_many)));
        }
        let mut tokens = PodTokens::new();
        // All are looked at: what is due is asked for, or put off, whatever becomes of the others.
        let mut missing = None;
        let mut silence: Option<TokenError> = None;
        for (source, place) in sources {
            let known = self.known(uid, &source);
            if let Some(known) = &known
                && Instant::now() < known.refresh_at
                && !known.is_over()
            {
                tokens.insert(source, known.token.clone());
                continue;
            }
            // What an earlier agent has written does for a moment: it is due at once, and nobody waits for that.
            let adopted = match &known {
                Some(_) => None,
                None => shown_token(pod_dir, &place).and_then(adopted),
            };
            if let Some(adopted) = adopted {
                tokens.insert(source.clone(), adopted.token.clone());
                self.hold(uid, source, adopted);
                continue;
            }
            let asked = match &silence {
                Some(silence) => Err(silence.clone()),
                None => self.ask(pod, uid, &source).await,
            };
            let held = match asked {
                Ok(held) => held,
                Err(error) => {
                    if error.is_silence() {
                        silence.get_or_insert_with(|| error.clone());
                    }
                    let Some(before) = known else {
                        missing.get_or_insert((place.volume.to_owned(), error));
                        continue;
                    };
                    let held = before.again();
                    tracing::info!(
                        pod = pod.metadata.name, uid, %error, again = ?held.refresh_at - Instant::now(),
                        "the pod's token is not replaced"
                    );
                    if held.is_over() {
                        self.hold(uid, source, held);
                        missing.get_or_insert((place.volume.to_owned(), error));
                        continue;
                    }
                    held
                }
            };
            tokens.insert(source.clone(), held.token.clone());
            self.hold(uid, source, held);
        }
        (tokens, missing)
    }

    async fn ask(&self, pod: &Pod, uid: &str, source: &TokenSource) -> Result<Held, TokenError> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        // It counts at least from here on.
        let now = Instant::now();
        let answer = self
            .issuer
            .token(TokenRequest {
                namespace: text(&pod.metadata.namespace),
                name: text(&pod.metadata.name),
                uid: uid.to_owned(),
                source: source.clone(),
            })
            .await?;
        let life = answer.valid;
        let wait = life.mul_f64(SHARE).min(self.longest);
        let wait = wait.mul_f64(1.0 - rand::rng().random_range(0.0..JITTER));
        Ok(Held {
            token: answer.token,
            // A server that gives tokens which are over already is not asked without a pause.
            refresh_at: later(now, wait.max(AGAIN)),
            expires_at: later(now, life),
            failures: 0,
        })
    }

    fn known(&self, uid: &str, source: &TokenSource) -> Option<Held> {
        self.held.lock().get(uid)?.get(source).cloned()
    }

    fn hold(&self, uid: &str, source: TokenSource, held: Held) {
        let mut all = self.held.lock();
        let of_pod = all.entry(uid.to_owned()).or_default();
        of_pod.insert(source, held);
    }

    /// When the first of a pod's tokens is to be replaced; none while it has none.
    pub(crate) fn refresh_at(&self, uid: &str) -> Option<Instant> {
        let all = self.held.lock();
        let of_pod = all.get(uid)?.values();
        of_pod.map(|held| held.refresh_at).min()
    }

    /// The pod is gone from this node, or what it had is removed.
    pub(crate) fn forget(&self, uid: &str) {
        self.held.lock().remove(uid);
    }
}

impl Held {
    fn is_over(&self) -> bool {
        self.expires_at <= Instant::now()
    }

    /// The same, to be replaced a little later.
    fn again(mut self) -> Self {
        let pause = AGAIN * 2_u32.saturating_pow(self.failures.min(6));
        self.refresh_at = Instant::now() + pause.min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self
    }
}

/// A moment that a clock can tell.
fn later(now: Instant, wait: Duration) -> Instant {
    /// Longer than any agent runs.
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    now + wait.min(FAR)
}

/// A token of an earlier agent, if it still counts by this machine's clock. Its signature is the business of those it is shown to.
fn adopted(token: String) -> Option<Held> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let payload = token.split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let left = claims
        .exp
        .saturating_sub(jiff::Timestamp::now().as_second());
    let left = Duration::from_secs(u64::try_from(left).ok()?);
    let now = Instant::now();
    Some(Held {
        token,
        refresh_at: now,
        expires_at: later(now, left),
        failures: 0,
    })
}

/// Tokens without a server.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;

    /// Numbers its tokens, which count as long as was asked; refuses where it is told to.
    #[derive(Default)]
    pub(crate) struct FakeIssuer {
        pub(crate) given: Mutex<u32>,
        pub(crate) asked: Mutex<u32>,
        pub(crate) refuses: Mutex<bool>,
        /// The audience for which there are no tokens.
        pub(crate) foreign: Mutex<Option<String>>,
    }

    #[async_trait]
    impl TokenIssuer for FakeIssuer {
        async fn token(&self, asked: TokenRequest) -> Result<Token, TokenError> {
            *self.asked.lock() += 1;
            if *self.refuses.lock() {
                return Err(TokenError::NotConnected);
            }
            if self.foreign.lock().as_deref() == Some(asked.source.audience.as_str()) {
                return Err(TokenError::Refused("not for you".to_owned()));
            }
            let mut given = self.given.lock();
            *given += 1;
            let seconds = u64::try_from(asked.source.seconds).expect("a positive number");
            Ok(Token {
                token: format!("{}-{}-{given}", asked.name, asked.source.audience),
                valid: Duration::from_secs(seconds),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::fake::FakeIssuer;
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn pod() -> Pod {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {
            "containers": [],
            "volumes": [
                {"name": "v", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
                ]}},
                {"name": "w", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "same", "expirationSeconds": 3607}},
                ]}},
            ],
        }});
        serde_json::from_value(pod).unwrap()
    }

    struct Bed {
        issuer: Arc<FakeIssuer>,
        tokens: Tokens,
        directory: tempfile::TempDir,
    }

    impl Bed {
        fn new(longest: Duration) -> Self {
            let issuer = Arc::new(FakeIssuer::default());
            Self {
                tokens: Tokens::new(issuer.clone(), longest),
                issuer,
                directory: tempfile::tempdir().unwrap(),
            }
        }

        async fn get(&self) -> Result<Vec<String>, String> {
            match self.all().await {
                (tokens, None) => Ok(tokens.into_values().collect()),
                (_, Some((volume, error))) => Err(format!("{volume}: {error}")),
            }
        }

        async fn all(&self) -> (PodTokens, Option<(String, TokenError)>) {
            self.tokens.of_pod(&pod(), "u", self.directory.path()).await
        }

        fn left(&self) -> Duration {
            self.tokens.refresh_at("u").unwrap() - Instant::now()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_replaced_when_most_of_its_life_is_over() {
        let bed = Bed::new(DAY);
        let first = bed.get().await.unwrap();
        assert_eq!(
            first,
            ["p--1", "p-vault-2"],
            "the same one in two volumes is one"
        );
        let left = bed.left();
        assert!(
            left <= Duration::from_secs(480) && left > Duration::from_secs(450),
            "{left:?}"
        );
        tokio::time::advance(Duration::from_secs(450)).await;
        assert_eq!(bed.get().await.unwrap(), first);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(bed.get().await.unwrap(), ["p--1", "p-vault-3"]);
        bed.tokens.forget("u");
        assert_eq!(bed.tokens.refresh_at("u"), None);
        let hasty = Bed::new(Duration::from_secs(10));
        hasty.get().await.unwrap();
        assert!(hasty.left() <= Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_server_old_tokens_are_kept_and_new_pods_wait() {
        let bed = Bed::new(DAY);
        *bed.issuer.refuses.lock() = true;
        assert_eq!(bed.get().await.unwrap_err(), "v: no server is connected");
        assert_eq!(*bed.issuer.asked.lock(), 1, "one wait is enough");
        *bed.issuer.refuses.lock() = false;
        let first = bed.get().await.unwrap();
        *bed.issuer.refuses.lock() = true;
        tokio::time::advance(Duration::from_secs(481)).await;
        let mut pauses = Vec::new();
        for _ in 0..4 {
            assert_eq!(bed.get().await.unwrap(), first);
            pauses.push(bed.left().as_secs());
            tokio::time::advance(bed.left()).await;
        }
        assert_eq!(pauses, [2, 4, 8, 16]);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(bed.get().await.unwrap_err(), "v: no server is connected");
        assert!(bed.left() > Duration::ZERO, "it does not spin");
        *bed.issuer.refuses.lock() = false;
        tokio::time::advance(DAY).await;
        assert_eq!(bed.get().await.unwrap(), ["p--3", "p-vault-4"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_refused_keeps_no_other_from_being_replaced() {
        let bed = Bed::new(DAY);
        *bed.issuer.foreign.lock() = Some("vault".to_owned());
        let shown = async || {
            let (tokens, missing) = bed.all().await;
            let why = missing.map(|(volume, error)| format!("{volume}: {error}"));
            assert_eq!(why.as_deref(), Some("v: not for you"));
            tokens.into_values().collect::<Vec<_>>()
        };
        assert_eq!(shown().await, ["p--1"]);
        tokio::time::advance(Duration::from_secs(3000)).await;
        assert_eq!(shown().await, ["p--2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_pod_takes_the_tokens_of_others() {
        let asks = async |count: usize| {
            let bed = Bed::new(DAY);
            let source = |number: usize| {
                let name = number.to_string();
                json!({"serviceAccountToken": {"path": name, "audience": name}})
            };
            let sources: Vec<_> = (0..count).map(source).collect();
            let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {
                "containers": [], "volumes": [{"name": "v", "projected": {"sources": sources}}]}});
            let pod = serde_json::from_value(pod).unwrap();
            let (_, missing) = bed.tokens.of_pod(&pod, "u", bed.directory.path()).await;
            let asked = *bed.issuer.asked.lock();
            (missing.is_none(), asked)
        };
        assert_eq!(asks(MOST_TOKENS).await, (true, 64));
        assert_eq!(asks(MOST_TOKENS + 1).await, (false, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_agent_wrote_serves_until_there_is_another() {
        let token = |left: i64| {
            let exp = jiff::Timestamp::now().as_second() + left;
            let payload = json!({"exp": exp}).to_string();
            format!("h.{}.s", URL_SAFE_NO_PAD.encode(payload))
        };
        let held = adopted(token(500)).unwrap();
        assert!(!held.is_over() && held.refresh_at <= Instant::now());
        tokio::time::advance(Duration::from_secs(501)).await;
        assert!(held.is_over());
        // As the volume shows it.
        let bed = Bed::new(DAY);
        let volume = bed
            .directory
            .path()
            .join("volumes/kubernetes.io~projected/v");
        std::fs::create_dir_all(volume.join("..1")).unwrap();
        let written = token(500);
        std::fs::write(volume.join("..1/token"), &written).unwrap();
        std::os::unix::fs::symlink("..1", volume.join("..data")).unwrap();
        assert_eq!(bed.get().await.unwrap(), [written.as_str(), "p-vault-1"]);
        assert!(bed.left().is_zero(), "it is due at once");
        assert_eq!(bed.get().await.unwrap(), ["p--2", "p-vault-1"]);
        for useless in [
            token(-1),
            String::new(),
            "a.b.c".to_owned(),
            "..".to_owned(),
        ] {
            assert!(adopted(useless).is_none());
        }
    }
}
