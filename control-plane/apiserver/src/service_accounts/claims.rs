//! What tokens say, as Kubernetes 1.36 words it.

use serde::{Deserialize, Serialize};

/// Whom tokens in Secrets say they are from.
pub(super) const SECRET_ISSUER: &str = "kubernetes/serviceaccount";

/// A token that ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) aud: Vec<String>,
    /// Seconds since 1970, as all times here.
    pub(super) exp: i64,
    pub(super) iat: i64,
    pub(super) iss: String,
    pub(super) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(super) kubernetes: About,
    pub(super) nbf: i64,
    pub(super) sub: String,
}

/// Whom it is about, and what must exist for it to count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<ObjectId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<ObjectId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<ObjectId>,
    pub(super) serviceaccount: ObjectId,
    /// From when on its holder should have read a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) warnafter: Option<i64>,
}

/// An object, and which one of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectId {
    pub(super) name: String,
    /// Empty for a Node that was not there when its pod's token was made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) uid: String,
}

/// A token that is kept in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SecretClaims {
    pub(super) iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub(super) namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub(super) secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub(super) account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub(super) account_uid: String,
    pub(super) sub: String,
}

/// What a token with a valid signature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// It ends.
    Timed(Box<Claims>),
    /// It is kept in a Secret.
    OfSecret(SecretClaims),
}

impl Payload {
    /// Reads what was signed.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Issued {
            iss: String,
        }
        let issued: Issued = serde_json::from_slice(json).ok()?;
        match issued.iss.as_str() {
            SECRET_ISSUER => serde_json::from_slice(json).ok().map(Self::OfSecret),
            _ => serde_json::from_slice(json).ok().map(Self::Timed),
        }
    }
}
