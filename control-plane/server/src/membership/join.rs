//! The joining side: finds out whom it talks to by the token, and asks to take part.
//!
//! A token is `ID.SECRET.HASH`: the first two are shown to the cluster, the third is how the cluster is recognised,
//! the SHA-256 of its authority's certificate.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gantry_authority::Files;
use gantry_authority::keys::Keyring;
use gantry_store::FEATURE_LEVEL;
use gantry_tls::KeyRequest;
use http_body_util::Full;

use super::MemberIdentity;
use super::api::{JoinReply, JoinRequest};

/// Asks the server at `address` to admit this one; writes its certificate, the cluster's keys and who it is now into the
/// data directory.
pub(crate) async fn join(
    data_dir: &Path,
    address: SocketAddr,
    token: &str,
    name: &str,
    listen: SocketAddr,
) -> Result<MemberIdentity> {
    let (credential, hash) = token
        .rsplit_once('.')
        .filter(|(_, hash)| hash.len() == 64)
        .context("the token is not whole: copy it again from 'gantry token create'")?;
    let key = KeyRequest::new(name)?;
    let body = serde_json::to_vec(&JoinRequest {
        name: name.to_owned(),
        address: listen,
        level: FEATURE_LEVEL,
        request: key.request.clone(),
    })?;
    let request = http::Request::post("/gantry/v1/members")
        .header(http::header::AUTHORIZATION, format!("Bearer {credential}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))?;
    let tls = gantry_tls::recognising(hash)?;
    let answer = gantry_tls::request(address, tls, request).await;
    let (status, body) = answer.map_err(|error| match error.is_foreign() {
        true => anyhow::anyhow!(
            "the server at {address} is of another cluster than the token: check the address, or make a token there with 'gantry token create --for servers'"
        ),
        false => error.into(),
    })?;
    if status == http::StatusCode::UNAUTHORIZED {
        bail!(
            "the server at {address} does not accept the token: it is wrong, revoked or expired; make a new one with 'gantry token create --for servers'"
        );
    }
    if !status.is_success() {
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        bail!(
            "the server at {address} refuses: {}",
            said["message"].as_str().unwrap_or(status.as_str())
        );
    }
    let reply: JoinReply = serde_json::from_slice(&body).context("reading the server's answer")?;
    let granted = reply.granted;
    Files::of(data_dir).keep(&granted.trusted, &key.granted(granted.certificate)?)?;
    Keyring::install(data_dir, reply.keys.to_string().as_bytes())?;
    let identity = MemberIdentity {
        id: reply.id,
        name: name.to_owned(),
        founder: false,
        servers: reply.servers,
        alone: false,
        begun: false,
    };
    identity.save(data_dir)?;
    Ok(identity)
}
