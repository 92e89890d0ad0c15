//! `/gantry/v1/users`: certificates for people. Only administrators ask for them; the key stays where it was made.

use anyhow::Result;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use gantry_apiserver::Identity;
use gantry_base::status::StatusError;
use gantry_members::{only_administrators, refuse};
use serde::Deserialize;

use super::holders::PERSON;
use super::ledger::Issued;
use super::{Certificates, CertificatesApi, Granted};
use crate::pki::Subject;

const PATH: &str = "/gantry/v1/users";
/// Characters of a name: those that certificates have room for.
const MAX_NAME: usize = 64;
/// Groups of one user.
const MAX_GROUPS: usize = 32;
/// Names that begin so are the system's own.
const RESERVED: [&str; 3] = ["system:", "gantry:", "kubernetes-admin"];

/// Who is to be given a certificate.
#[derive(Debug, Deserialize)]
struct UserRequest {
    user: String,
    #[serde(default)]
    groups: Vec<String>,
    /// PKCS #10, PEM.
    request: String,
}

/// Why a user or group may not be called so.
fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Some(format!(
            "it must be 1 to {MAX_NAME} bytes of visible characters"
        ));
    }
    let reserved = RESERVED.iter().find(|start| name.starts_with(**start));
    reserved.map(|start| format!("names that begin with \"{start}\" are the system's own"))
}

impl UserRequest {
    fn read(body: &[u8]) -> Result<Self, StatusError> {
        let asked: Self = serde_json::from_slice(body)
            .map_err(|error| StatusError::bad_request(error.to_string()))?;
        if asked.groups.len() > MAX_GROUPS {
            return Err(StatusError::bad_request(format!(
                "a user may be in {MAX_GROUPS} groups at most"
            )));
        }
        for name in std::iter::once(&asked.user).chain(&asked.groups) {
            if let Some(why) = wrong_name(name) {
                let shown: String = name.chars().take(80).collect();
                return Err(StatusError::bad_request(format!("{shown:?}: {why}")));
            }
        }
        Ok(asked)
    }
}

/// Decodes a request, for the fuzzer.
pub(crate) fn fuzz(body: &[u8]) {
    drop(UserRequest::read(body));
}

/// The routes, beside those of other certificates.
pub(super) fn router() -> Router<CertificatesApi> {
    Router::new().route(PATH, post(grant))
}

async fn grant(
    State(api): State<CertificatesApi>,
    Extension(who): Extension<Identity>,
    body: bytes::Bytes,
) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    let asked = match UserRequest::read(&body) {
        Ok(asked) => asked,
        Err(refusal) => return refuse(&refusal),
    };
    match api.certificates.grant_user(&asked).await {
        Ok(granted) => Json(granted).into_response(),
        Err(error) if error.is::<gantry_tls::TlsError>() => {
            refuse(&StatusError::bad_request(format!("{error:#}")))
        }
        Err(error) => refuse(&StatusError::service_unavailable(format!("{error:#}"))),
    }
}

impl Certificates {
    /// The certificate for a person's request. It is noted before it is given away.
    async fn grant_user(&self, asked: &UserRequest) -> Result<Granted> {
        let authorities = self.authorities()?;
        let groups: Vec<&str> = asked.groups.iter().map(String::as_str).collect();
        let subject = Subject::client(&asked.user, &groups);
        let life = self.inner.setup.life;
        let (certificate, lifetime) = authorities.sign(&asked.request, &subject, life)?;
        let issued = Issued {
            authority: authorities.signing()?,
            lifetime,
        };
        self.inner.ledger.enter(&asked.user, PERSON, issued).await?;
        tracing::info!(user = asked.user, "a person was given a certificate");
        Ok(Granted {
            certificate,
            trusted: authorities.trusted(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nobody_is_given_a_name_of_the_system_s() {
        let read = |user: &str, groups: &[&str]| {
            let body = json!({"user": user, "groups": groups, "request": ""});
            UserRequest::read(body.to_string().as_bytes())
        };
        assert!(read("jane@example.com", &["devs"]).is_ok());
        for user in [
            "",
            "system:masters",
            "gantry:server:1",
            "kubernetes-admin",
            "a\nb",
        ] {
            assert!(read(user, &[]).is_err(), "{user:?}");
        }
        assert!(read("jane", &["system:masters"]).is_err());
        assert!(read(&"x".repeat(65), &[]).is_err());
        assert!(read("jane", &["g"; 33]).is_err());
    }
}
