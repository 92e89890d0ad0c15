//! The protocol of registries, as far as pulling needs it (OCI distribution specification, and Docker's "Token Authentication
//! Specification"). All that a registry sends is bounded but for blobs, which are passed on as they come.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use gantry_cri::image::Credentials;
use oci_spec::distribution::Reference;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use crate::challenge::{Challenge, challenges};
use crate::loopback::is_loopback;

/// To connect.
const CONNECT: Duration = Duration::from_secs(20);
/// Between one piece of an answer and the next.
const IDLE: Duration = Duration::from_secs(60);
/// From a request to the head of its answer, redirections included.
const HEAD: Duration = Duration::from_secs(120);
/// In so much time of waiting for a body, so many bytes have to come: slower than any line that images come by, and no more
/// can a registry hold what waits for it.
const PACE: Duration = Duration::from_secs(60);
const PACE_BYTES: u64 = 64 << 10;
/// The largest answer that is an error.
const ERROR_BYTES: u64 = 64 << 10;
/// The largest answer of a token server.
const TOKEN_BYTES: u64 = 1 << 20;
/// Words of a registry that are shown.
const WORDS: usize = 512;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody is let in without credentials, or with these.
    #[error("unauthorized: authentication required ({0}); give credentials in an imagePullSecret")]
    Unauthorized(Url),
    /// In the registry's words.
    #[error("{0}")]
    Refused(String),
    /// An answer that is no registry's.
    #[error("the registry answered {0}: {1}")]
    Unexpected(u16, String),
    /// Larger than anything of its kind.
    #[error("the registry's answer is larger than {0} bytes")]
    TooLarge(u64),
    /// Next to nothing comes.
    #[error("the registry is too slow: less than {} bytes came within {} seconds", PACE_BYTES, PACE.as_secs())]
    TooSlow,
    /// No answer at all.
    #[error("the registry did not answer within {} seconds", HEAD.as_secs())]
    Silent,
    /// The credentials would be seen by others.
    #[error("the registry wants the credentials sent to {0} without encryption")]
    Unencrypted(Url),
    /// No connection, or a broken one.
    #[error("{0}")]
    Transport(String),
}

impl From<reqwest::Error> for Failure {
    /// The cause at the bottom, and of which host it is.
    fn from(error: reqwest::Error) -> Self {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let host = error.url().and_then(Url::host_str);
        Self::Transport(match host {
            Some(host) => format!("{host}: {cause}"),
            None => cause.to_string(),
        })
    }
}

/// A repository of a registry.
pub(crate) struct Repository {
    client: Client,
    base: Url,
    name: String,
    credentials: Option<Credentials>,
    /// What the registry has asked for.
    authorization: Mutex<Option<HeaderValue>>,
}

/// An answer whose body is yet to come.
pub(crate) struct Answer(Response);

impl Repository {
    pub(crate) fn new(
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Self, Failure> {
        // A provider may already be installed by the process; either serves.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let registry = reference.resolve_registry();
        let is_local = is_loopback(registry);
        let scheme = if is_local { "http" } else { "https" };
        let base = format!("{scheme}://{registry}/v2/");
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(IDLE)
            .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
            .https_only(!is_local)
            .build()?;
        Ok(Self {
            client,
            base: Url::parse(&base)
                .map_err(|error| Failure::Refused(format!("{base} is no address: {error}")))?,
            name: reference.repository().to_owned(),
            credentials,
            authorization: Mutex::default(),
        })
    }

    /// Reads what is at a path below the repository. Who has to say who they are is told so by the registry, for this very
    /// request: others may need nothing.
    pub(crate) async fn get(&self, path: &[&str], accepted: &[&str]) -> Result<Answer, Failure> {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts
                .pop_if_empty()
                .extend(self.name.split('/'))
                .extend(path);
        }
        let known = self.authorization.lock().clone();
        let answer = self.send(&url, accepted, known).await?;
        let answer = match answer.status() {
            StatusCode::UNAUTHORIZED => {
                let asked = self.answer_to(&url, answer.headers()).await?;
                *self.authorization.lock() = Some(asked.clone());
                self.send(&url, accepted, Some(asked)).await?
            }
            _ => answer,
        };
        match answer.status() {
            status if status.is_success() => Ok(Answer(answer)),
            StatusCode::UNAUTHORIZED => Err(Failure::Unauthorized(url)),
            status => {
                let body = Answer(answer).whole(ERROR_BYTES).await.unwrap_or_default();
                Err(refusal(status, &body))
            }
        }
    }

    async fn send(
        &self,
        url: &Url,
        accepted: &[&str],
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut request = self.client.get(url.clone());
        if !accepted.is_empty() {
            request = request.header(ACCEPT, accepted.join(", "));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answered = tokio::time::timeout(HEAD, request.send()).await;
        Ok(answered.map_err(|_| Failure::Silent)??)
    }

    /// What satisfies a registry that wants to know who asks for `url`.
    async fn answer_to(&self, url: &Url, headers: &HeaderMap) -> Result<HeaderValue, Failure> {
        let asked = headers.get_all(WWW_AUTHENTICATE).iter();
        let asked = asked.filter_map(|value| value.to_str().ok());
        let asked: Vec<Challenge> = asked.flat_map(challenges).collect();
        let of = |scheme: &str| {
            let mut asked = asked.iter();
            asked.find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme))
        };
        if let Some(challenge) = of("bearer") {
            return self.token(url, challenge).await;
        }
        match (of("basic"), &self.credentials) {
            (Some(_), Some(credentials)) => Ok(basic(credentials)),
            _ => Err(Failure::Unauthorized(url.clone())),
        }
    }

    /// Asks a token server for leave to pull.
    async fn token(&self, url: &Url, challenge: &Challenge) -> Result<HeaderValue, Failure> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let refused = || Failure::Unauthorized(url.clone());
        let realm = challenge.parameter("realm").ok_or_else(refused)?;
        let mut realm = Url::parse(realm).map_err(|_| refused())?;
        if realm.scheme() != "https" && self.base.scheme() == "https" {
            return Err(Failure::Unencrypted(realm));
        }
        let pull = format!("repository:{}:pull", self.name);
        let scope = challenge.parameter("scope").unwrap_or(&pull);
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = challenge.parameter("service") {
                query.append_pair("service", service);
            }
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                query.append_pair("scope", scope);
            }
        }
        let authorization = self.credentials.as_ref().map(basic);
        let answer = self.send(&realm, &[], authorization).await?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(refused()),
            status => {
                let body = Answer(answer).whole(ERROR_BYTES).await.unwrap_or_default();
                return Err(refusal(status, &body));
            }
        }
        let body = Answer(answer).whole(TOKEN_BYTES).await?;
        let given: Token = serde_json::from_slice(&body).map_err(|_| refused())?;
        let token = match given.token.is_empty() {
            true => given.access_token,
            false => given.token,
        };
        secret(&format!("Bearer {token}")).ok_or_else(refused)
    }
}

impl Answer {
    /// The body, when it has no more than `most` bytes.
    pub(crate) async fn whole(self, most: u64) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        let mut pieces = self.pieces();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece?);
            if body.len() as u64 > most {
                return Err(Failure::TooLarge(most));
            }
        }
        Ok(body)
    }

    /// The body as it comes; an error when it comes too slowly.
    pub(crate) fn pieces(self) -> impl Stream<Item = Result<Bytes, Failure>> + Send + Unpin {
        let body = Box::pin(self.0.bytes_stream());
        let paced = stream::unfold((body, Pace::default()), |(mut body, mut pace)| async move {
            let asked = Instant::now();
            let piece = body.next().await?.map_err(Failure::from);
            let piece =
                piece.and_then(
                    |piece| match pace.keeps(asked.elapsed(), piece.len() as u64) {
                        true => Ok(piece),
                        false => Err(Failure::TooSlow),
                    },
                );
            Some((piece, (body, pace)))
        });
        Box::pin(paced)
    }
}

/// How fast a body comes. Only waiting counts: what is done with it in between is not the registry's fault.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    came: u64,
}

impl Pace {
    /// Takes in what came and how long that took; whether it is worth to wait for more.
    fn keeps(&mut self, waited: Duration, came: u64) -> bool {
        self.waited += waited;
        self.came += came;
        if self.waited < PACE {
            return true;
        }
        let enough = self.came >= PACE_BYTES;
        *self = Self::default();
        enough
    }
}

fn basic(credentials: &Credentials) -> HeaderValue {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    // Base64 is always a header's value.
    secret(&format!("Basic {}", STANDARD.encode(pair)))
        .unwrap_or_else(|| HeaderValue::from_static(""))
}

/// A header that is in no debug output.
fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The registry's words, where it has any.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let short = |words: String| -> String { words.chars().take(WORDS).collect() };
    match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) if !envelope.errors.is_empty() => {
            let words = envelope.errors.iter().take(8).map(|said| {
                let code = said.code.to_lowercase().replace('_', " ");
                match said.message.is_empty() || said.message == code {
                    true => code,
                    false => format!("{code}: {}", said.message),
                }
            });
            Failure::Refused(short(words.collect::<Vec<_>>().join(", ")))
        }
        _ => {
            let text = String::from_utf8_lossy(body);
            Failure::Unexpected(status.as_u16(), short(text.trim().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_no_answer() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::default();
        assert!(pace.keeps(50 * second, 1));
        assert!(!pace.keeps(50 * second, 1), "a byte each time");
        let mut pace = Pace::default();
        assert!((0..1_000).all(|_| pace.keeps(second, 2 << 10)), "slow");
        assert!(pace.keeps(59 * second, PACE_BYTES));
        assert!(pace.keeps(59 * second, 0), "what came before counts once");
        assert!(!pace.keeps(60 * second, 0));
    }
}
