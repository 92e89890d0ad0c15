//! The form of tokens: JSON Web Signatures in their compact form (RFC 7515), signed by ECDSA over P-256 (ES256, RFC 7518).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The only algorithm that there is: it goes with the key, whatever a token says.
pub(super) const ALGORITHM: &str = "ES256";
/// A token in bytes. Names are short: those that are made here have about a thousand, and a few dozen more an audience.
pub(super) const LONGEST: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// A token taken apart: nothing of it is believed yet.
pub(super) struct Parts<'t> {
    /// What the signature is over.
    pub(super) signed: &'t str,
    pub(super) key: String,
    pub(super) signature: Vec<u8>,
    payload: &'t str,
}

impl<'t> Parts<'t> {
    /// `None` for what is no token of this form and algorithm.
    pub(super) fn of(token: &'t str) -> Option<Self> {
        if token.len() > LONGEST {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&decoded(header)?).ok()?;
        if header.alg != ALGORITHM {
            return None;
        }
        Some(Self {
            signed,
            key: header.kid,
            signature: decoded(signature)?,
            payload,
        })
    }

    /// What it says, as JSON.
    pub(super) fn payload(&self) -> Option<Vec<u8>> {
        decoded(self.payload)
    }
}

/// What is to be signed for a token: its header and what it says.
pub(super) fn unsigned(key: &str, claims: &impl Serialize) -> serde_json::Result<String> {
    let header = Header {
        alg: ALGORITHM.to_owned(),
        kid: key.to_owned(),
    };
    let header = serde_json::to_vec(&header)?;
    let payload = serde_json::to_vec(claims)?;
    Ok(format!("{}.{}", encoded(&header), encoded(&payload)))
}

pub(super) fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_of_the_one_algorithm_are_taken_apart() {
        let token = |header: &str, rest: &str| format!("{}.{rest}", encoded(header.as_bytes()));
        let good = token(r#"{"alg":"ES256","kid":"k"}"#, "e30.AAAA");
        let parts = Parts::of(&good).expect("a token");
        assert_eq!(
            (parts.key.as_str(), parts.payload()),
            ("k", Some(b"{}".to_vec()))
        );
        assert_eq!(format!("{}.AAAA", parts.signed), good);
        for wrong in [
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "not-a-token".to_owned(),
            token(r#"{"alg":"none","kid":"k"}"#, "e30."),
            token(r#"{"alg":"HS256","kid":"k"}"#, "e30.AAAA"),
            token(r#"{"alg":"ES256"}"#, "e30.AAAA"),
            token(r#"{"alg":"ES256","kid":"k"}"#, "e30.=="),
            token(r#"{"alg":"ES256","kid":"k"}"#, "e30"),
            token(&"[".repeat(9000), "e30.AAAA"),
            token(r#"{"alg":"ES256","kid":"k"}"#, &"A".repeat(LONGEST)),
        ] {
            assert!(
                Parts::of(&wrong).is_none(),
                "{}",
                wrong.get(..80).unwrap_or(&wrong)
            );
        }
    }
}
