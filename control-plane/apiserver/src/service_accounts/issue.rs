//! What a token is to say, and who may have one.

use gantry_api::status::StatusError;
use gantry_store::Entry;
use serde::Deserialize;

use super::claims::{About, Claims, ObjectId, SECRET_ISSUER, SecretClaims};
use super::keys::{self, KeysError};
use super::{ServiceAccounts, jwt, user};
use crate::registry::Registry;

/// Seconds that a token counts when nobody says otherwise, and the least and the most that may be asked for.
pub(super) const LIFE: i64 = 3600;
pub(super) const SHORTEST: i64 = 600;
pub(super) const LONGEST: i64 = 1 << 32;
/// The life that admission asks for. Programs that read their file but once would be refused after it: their tokens count for
/// [`LONGEST_GRANTED`] seconds, and say from when on another should have been read.
const EXTENDABLE: i64 = 3607;
/// The most that is given, whatever is asked for, as with Kubernetes' `--service-account-max-token-expiration`: a key that signs
/// no more is kept until the last of its tokens has ended.
pub(super) const LONGEST_GRANTED: i64 = 365 * 24 * 60 * 60;

/// A token, and when whoever has it is to have the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token.
    pub token: String,
    /// Seconds since 1970.
    pub expires: i64,
    /// Seconds from when it was made until then.
    pub life: i64,
}

/// A token of a pod's own account, as one of its projected volumes names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTokenRequest {
    /// The node that asks.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The source's audience; empty for the API's.
    pub audience: String,
    /// The source's expirationSeconds.
    pub expiration_seconds: i64,
}

/// A token that somebody may have.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) account: ObjectId,
    pub(super) pod: Option<ObjectId>,
    pub(super) node: Option<ObjectId>,
    pub(super) secret: Option<ObjectId>,
    pub(super) audiences: Vec<String>,
    pub(super) seconds: i64,
}

/// What of a pod says which tokens it has.
#[derive(Debug, Deserialize)]
pub(super) struct TokenPod {
    pub(super) metadata: Uid,
    #[serde(default)]
    pub(super) spec: TokenPodSpec,
}

/// `metadata`, of which only the uid counts here.
#[derive(Debug, Deserialize)]
pub(super) struct Uid {
    #[serde(default)]
    pub(super) uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TokenPodSpec {
    pub(super) node_name: String,
    pub(super) service_account_name: String,
    volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Deserialize)]
struct Volume {
    projected: Option<Projected>,
}

#[derive(Debug, Deserialize)]
struct Projected {
    sources: Option<Vec<Source>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    service_account_token: Option<TokenSource>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenSource {
    audience: Option<String>,
    expiration_seconds: Option<i64>,
}

impl TokenPod {
    pub(super) fn read(entry: &Entry) -> Option<Self> {
        serde_json::from_slice(&entry.value).ok()
    }

    /// Whether a projected volume of the pod has such a token in it.
    fn names(&self, audience: &str, seconds: i64) -> bool {
        let volumes = self.spec.volumes.iter().flatten();
        let sources = volumes.flat_map(|volume| {
            let projected = volume.projected.iter();
            projected.flat_map(|projected| projected.sources.iter().flatten())
        });
        let mut tokens = sources.filter_map(|source| source.service_account_token.as_ref());
        tokens.any(|token| {
            token.audience.as_deref().unwrap_or_default() == audience
                && token.expiration_seconds.unwrap_or(LIFE) == seconds
        })
    }
}

fn unavailable(error: &KeysError) -> StatusError {
    StatusError::service_unavailable(error.to_string())
}

impl ServiceAccounts {
    /// Makes a token. The caller has seen to it that it may be had, and that what it names exists.
    pub(super) async fn issue(&self, wanted: Wanted) -> Result<IssuedToken, StatusError> {
        let now = self.now();
        let for_api = wanted
            .audiences
            .iter()
            .all(|audience| *audience == self.issuer);
        let extended = wanted.pod.is_some() && wanted.seconds == EXTENDABLE && for_api;
        let life = match extended {
            true => LONGEST_GRANTED,
            false => wanted.seconds,
        };
        let mut keys = self.keys();
        if keys.as_ref().is_some_and(|keys| !keys.outlive(life)) {
            let noted = keys::note_life(&self.store, life).await;
            noted.map_err(|error| unavailable(&error))?;
            keys = self.keys();
        }
        let keys = keys.ok_or_else(|| unavailable(&KeysError::Missing))?;
        let claims = Claims {
            aud: wanted.audiences,
            exp: now.saturating_add(life),
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: user(&wanted.namespace, &wanted.account.name),
            kubernetes: About {
                namespace: wanted.namespace,
                node: wanted.node,
                pod: wanted.pod,
                secret: wanted.secret,
                serviceaccount: wanted.account,
                warnafter: extended.then(|| now.saturating_add(wanted.seconds)),
            },
            nbf: now,
        };
        let token = keys
            .sign(&claims)
            .ok_or_else(|| StatusError::internal("the token could not be signed"))?;
        if token.len() > jwt::LONGEST {
            return Err(StatusError::bad_request(format!(
                "the token would have more than {} bytes, and be read by nobody: its audiences are too long",
                jwt::LONGEST
            )));
        }
        Ok(IssuedToken {
            token,
            expires: now.saturating_add(wanted.seconds),
            life: wanted.seconds,
        })
    }

    /// The node that a pod's token names: also one that is not there, so that people can see which it was.
    pub(super) fn node_of(&self, pod: &TokenPod) -> Option<ObjectId> {
        let name = pod.spec.node_name.as_str();
        if name.is_empty() {
            return None;
        }
        let known = self.known("nodes", "", name);
        Some(ObjectId {
            name: name.to_owned(),
            uid: known.map(|node| node.metadata.uid).unwrap_or_default(),
        })
    }

    /// The token of a pod, for its node: what else the node asks for is refused. The store is up to date.
    pub(crate) async fn pod_token(
        &self,
        registry: &Registry,
        asked: &PodTokenRequest,
    ) -> Result<IssuedToken, StatusError> {
        let namespace = asked.namespace.as_str();
        let not_found = |plural: &str, name: &str| match registry.get("", "v1", plural) {
            Some(resource) => StatusError::not_found(resource.info(), name),
            None => StatusError::unknown_resource(),
        };
        let entry = self.entry("pods", namespace, &asked.pod);
        let pod = entry.and_then(|entry| TokenPod::read(&entry));
        // Of pods of other nodes it is not even said whether they exist.
        let pod = pod
            .filter(|pod| pod.metadata.uid == asked.uid && pod.spec.node_name == asked.node)
            .ok_or_else(|| not_found("pods", &asked.pod))?;
        if !pod.names(&asked.audience, asked.expiration_seconds) {
            return Err(StatusError::new(
                403,
                "Forbidden",
                format!(
                    "no projected volume of pod \"{}\" names a token of this audience and life",
                    asked.pod
                ),
                None,
            ));
        }
        let name = &pod.spec.service_account_name;
        let account = self
            .known("serviceaccounts", namespace, name)
            .ok_or_else(|| not_found("serviceaccounts", name))?;
        self.issue(Wanted {
            namespace: namespace.to_owned(),
            account: ObjectId {
                name: name.clone(),
                uid: account.metadata.uid,
            },
            node: self.node_of(&pod),
            pod: Some(ObjectId {
                name: asked.pod.clone(),
                uid: pod.metadata.uid,
            }),
            audiences: match asked.audience.as_str() {
                "" => self.audiences(),
                audience => vec![audience.to_owned()],
            },
            // As validation bounds it; what was stored before there was any is bounded here.
            seconds: asked.expiration_seconds.clamp(SHORTEST, LONGEST_GRANTED),
            secret: None,
        })
        .await
    }

    /// The token that is to be kept in a Secret; none before the cluster has keys.
    pub(crate) fn secret_token(
        &self,
        namespace: &str,
        secret: &str,
        account: &str,
        account_uid: &str,
    ) -> Option<String> {
        self.keys()?.sign(&SecretClaims {
            iss: SECRET_ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            account_uid: account_uid.to_owned(),
            sub: user(namespace, account),
        })
    }

    /// The id of the key that signs; none before the cluster has any.
    pub(crate) fn signing(&self) -> Option<String> {
        self.keys().map(|keys| keys.signing().to_owned())
    }

    /// Whether a token names the key that signs now.
    pub(crate) fn is_current(&self, token: &str) -> bool {
        self.keys().is_some_and(|keys| keys.is_current(token))
    }
}
