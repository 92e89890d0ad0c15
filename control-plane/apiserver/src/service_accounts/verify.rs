//! Whom a token stands for, and whether what it is about still exists.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::claims::{About, Claims, ObjectId, Payload, SecretClaims};
use super::keys::LEEWAY;
use super::{GROUP, NANOS, ServiceAccounts, StoredObject, user};
use crate::bootstrap_tokens::same;
use crate::identity::Identity;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The label of a Secret whose token counts no longer.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Of a token that is bound to something that is gone.
pub(super) const INVALIDATED: &str = "service account token has been invalidated";
/// Of one whose Secret is gone.
const SECRET_GONE: &str = "Token has been invalidated";
/// Asking the other servers takes a round among them.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Tokens of which that is remembered, at most.
const LOOKED: usize = 1024;

/// Whom a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) identity: Identity,
    /// The audiences of the token that were asked about.
    pub(crate) audiences: Vec<String>,
}

/// Why a token stands for nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// None that this cluster has signed.
    Foreign,
    /// It was signed here and does not count.
    Invalid(String),
    /// It is about something that this server does not know, or knows another of: it may have been made this moment through
    /// another server.
    Unknown(String),
}

type Result<T> = std::result::Result<T, Refused>;

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Refused::Invalid(why.into()))
}

impl ServiceAccounts {
    /// Whom a token stands for, if it is for any of these audiences.
    pub(crate) fn verify(&self, token: &str, audiences: &[String]) -> Result<Verified> {
        let keys = self.keys().ok_or(Refused::Foreign)?;
        let payload = keys.verified(token).ok_or(Refused::Foreign)?;
        match &*payload {
            Payload::Timed(claims) => self.timed(claims, audiences),
            Payload::OfSecret(claims) => self.of_secret(claims, token, audiences),
        }
    }

    fn timed(&self, claims: &Claims, audiences: &[String]) -> Result<Verified> {
        if claims.iss != self.issuer {
            return Err(Refused::Foreign);
        }
        let audiences = intersection(&claims.aud, audiences)?;
        let now = self.now();
        if now > claims.exp.saturating_add(LEEWAY) {
            return invalid("service account token has expired");
        }
        if now.saturating_add(LEEWAY) < claims.nbf.max(claims.iat) {
            return invalid("service account token is not valid yet");
        }
        let about = &claims.kubernetes;
        let (namespace, account) = (about.namespace.as_str(), &about.serviceaccount);
        self.account_exists(namespace, account)?;
        if let Some(secret) = &about.secret {
            self.bound_exists("secrets", "secret", namespace, secret)?;
        }
        match (&about.pod, &about.node) {
            // The pod's end is that of the token, whatever becomes of its node.
            (Some(pod), _) => self.bound_exists("pods", "pod", namespace, pod)?,
            (None, Some(node)) => self.bound_exists("nodes", "node", "", node)?,
            (None, None) => {}
        }
        if about.warnafter.is_some_and(|from| now > from) {
            tracing::debug!(
                subject = claims.sub,
                "a token is shown that its holder should have replaced: the program does not read its file again"
            );
        }
        let mut identity = identity(namespace, &account.name, &account.uid);
        identity.extra = extra(about, &claims.jti);
        Ok(Verified {
            identity,
            audiences,
        })
    }

    /// The account of a token, by whatever uid.
    fn account(&self, namespace: &str, name: &str) -> Result<StoredObject> {
        let known = self.known("serviceaccounts", namespace, name);
        let missing = || Refused::Unknown(format!("serviceaccounts \"{name}\" not found"));
        known.ok_or_else(missing)
    }

    /// Whether a token's very account is there, and has not been deleted for more than a minute.
    fn account_exists(&self, namespace: &str, account: &ObjectId) -> Result<()> {
        let name = &account.name;
        let known = self.account(namespace, name)?;
        let uid = &known.metadata.uid;
        if *uid != account.uid {
            return Err(Refused::Unknown(format!(
                "service account UID ({uid}) does not match claim ({})",
                account.uid
            )));
        }
        match self.is_over(&known) {
            true => invalid(format!(
                "service account {namespace}/{name} has been deleted"
            )),
            false => Ok(()),
        }
    }

    /// The same of the object that a token is bound to. Of one that is gone it is not told which it was.
    fn bound_exists(
        &self,
        plural: &str,
        what: &str,
        namespace: &str,
        object: &ObjectId,
    ) -> Result<()> {
        let Some(known) = self.known(plural, namespace, &object.name) else {
            return Err(Refused::Unknown(INVALIDATED.to_owned()));
        };
        let uid = &known.metadata.uid;
        if *uid != object.uid {
            return Err(Refused::Unknown(format!(
                "{what} UID ({uid}) does not match service account {what} ref claim ({})",
                object.uid
            )));
        }
        match self.is_over(&known) {
            true => invalid(INVALIDATED),
            false => Ok(()),
        }
    }

    /// Whether an object was to be gone by now. What a pod does while it is being ended it does with its token.
    fn is_over(&self, known: &StoredObject) -> bool {
        let deleted = known.metadata.deletion_timestamp.as_deref();
        // A time that cannot be read is none that is still to come.
        deleted.is_some_and(|at| {
            let at = gantry_api::time::parse(at).unwrap_or(i64::MIN);
            at < self.clock.now().saturating_sub(LEEWAY * NANOS)
        })
    }

    fn of_secret(
        &self,
        claims: &SecretClaims,
        token: &str,
        audiences: &[String],
    ) -> Result<Verified> {
        // They are for this API, and say so by saying nothing.
        let audiences = intersection(&self.audiences(), audiences)?;
        let (namespace, account) = (claims.namespace.as_str(), claims.account.as_str());
        if claims.sub != user(namespace, account) {
            return invalid("sub claim is invalid");
        }
        let Some(entry) = self.entry("secrets", namespace, &claims.secret) else {
            return Err(Refused::Unknown(SECRET_GONE.to_owned()));
        };
        let secret: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        if !secret["metadata"]["deletionTimestamp"].is_null() {
            return invalid(SECRET_GONE);
        }
        let kept = secret["data"]["token"].as_str();
        let kept = kept.and_then(|kept| STANDARD.decode(kept).ok());
        let kept = kept.and_then(|kept| String::from_utf8(kept).ok());
        if !kept.is_some_and(|kept| same(&kept, token)) {
            let why = "Token does not match server's copy";
            return Err(Refused::Unknown(why.to_owned()));
        }
        let known = self.account(namespace, account)?.metadata;
        if known.deletion_timestamp.is_some() {
            return invalid(format!(
                "ServiceAccount {namespace}/{account} has been deleted"
            ));
        }
        if known.uid != claims.account_uid {
            return Err(Refused::Unknown(format!(
                "ServiceAccount UID ({}) does not match claim ({})",
                known.uid, claims.account_uid
            )));
        }
        let invalid_since = &secret["metadata"]["labels"][INVALID_SINCE];
        if invalid_since
            .as_str()
            .is_some_and(|since| !since.is_empty())
        {
            let name = &claims.secret;
            return invalid(format!(
                "the token in secret {namespace}/{name} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        Ok(Verified {
            identity: identity(namespace, account, &claims.account_uid),
            audiences,
        })
    }

    /// Whom a token stands for at this API, if anybody.
    pub(crate) fn identity(&self, token: &str) -> Option<Identity> {
        let verified = self.verify(token, &self.audiences());
        verified.ok().map(|verified| verified.identity)
    }

    /// Whether a token is known to be signed here, whether or not it counts: nobody has guessed it.
    pub(crate) fn remember(&self, token: &str) -> bool {
        self.keys().is_some_and(|keys| keys.remember(token))
    }

    /// Whether a token that is refused may count once this server knows what the others know. Only what was signed here is
    /// worth the look, and not again and again.
    pub(crate) fn may_be_behind(&self, token: &str) -> bool {
        let refused = self.verify(token, &self.audiences());
        matches!(refused, Err(Refused::Unknown(_))) && self.may_look(token, Instant::now())
    }

    /// One look for a token in a while.
    fn may_look(&self, token: &str, now: Instant) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut looked = self.looked.lock();
        let before = looked.get(&digest);
        if before.is_some_and(|before| now.saturating_duration_since(*before) < LOOK_AGAIN) {
            return false;
        }
        if looked.len() >= LOOKED {
            looked.clear();
        }
        looked.insert(digest, now);
        true
    }
}

/// Those audiences of a token that are asked about.
fn intersection(of_token: &[String], asked: &[String]) -> Result<Vec<String>> {
    let both: Vec<String> = asked
        .iter()
        .filter(|audience| of_token.contains(audience))
        .cloned()
        .collect();
    match both.is_empty() {
        false => Ok(both),
        true => invalid(format!(
            "token audiences {} is invalid for the target audiences {}",
            quoted(of_token),
            quoted(asked)
        )),
    }
}

/// Texts as Go writes a list of them.
fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}

fn identity(namespace: &str, name: &str, uid: &str) -> Identity {
    let of_namespace = format!("{GROUP}:{namespace}");
    Identity {
        uid: uid.to_owned(),
        ..Identity::new(
            &user(namespace, name),
            &[GROUP, of_namespace.as_str(), "system:authenticated"],
        )
    }
}

fn extra(about: &About, id: &str) -> BTreeMap<String, Vec<String>> {
    let mut extra = BTreeMap::new();
    let mut say = |name: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(name.to_owned(), vec![value.to_owned()]);
        }
    };
    if let Some(pod) = &about.pod {
        say(POD_NAME, &pod.name);
        say(POD_UID, &pod.uid);
    }
    if let Some(node) = &about.node {
        say(NODE_NAME, &node.name);
        say(NODE_UID, &node.uid);
    }
    say(CREDENTIAL_ID, &format!("JTI={id}"));
    extra
}
