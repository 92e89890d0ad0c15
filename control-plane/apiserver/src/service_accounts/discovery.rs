//! What others need to verify tokens by themselves: OpenID Connect's discovery document, and the keys (RFC 7517).

use serde_json::{Value, json};

use super::ServiceAccounts;
use super::jwt::{self, ALGORITHM};

/// Where the keys are.
const KEYS_PATH: &str = "/openid/v1/jwks";

impl ServiceAccounts {
    /// `/.well-known/openid-configuration`. `advertise` is the `host:port` that clients reach this server by.
    pub(crate) fn configuration(&self, advertise: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{advertise}{KEYS_PATH}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }

    /// `/openid/v1/jwks`: the public halves of all keys, also of one that does not sign yet.
    pub(crate) fn key_set(&self) -> Value {
        let keys = self.keys();
        let keys = keys.iter().flat_map(|keys| keys.all());
        let shown = keys.filter_map(|key| {
            let (x, y) = key.coordinates()?;
            Some(json!({
                "use": "sig",
                "kty": "EC",
                "kid": key.id,
                "crv": "P-256",
                "alg": ALGORITHM,
                "x": jwt::encoded(x),
                "y": jwt::encoded(y),
            }))
        });
        json!({"keys": shown.collect::<Vec<_>>()})
    }
}
