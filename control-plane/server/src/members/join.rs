//! The joining side: finds out whom it talks to by the token, and asks to take part.
//!
//! A token is `ID.SECRET.HASH`: the first two are shown to the cluster, the third is how the cluster is recognised,
//! the SHA-256 of its authority's certificate.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use gantry_apiserver::pki::Pki;
use gantry_store::FEATURE_LEVEL;
use http_body_util::Full;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};

use crate::keys::Keyring;

use super::api::{JoinReply, JoinRequest};
use super::{Seat, dial};

/// Trusts the authority whose certificate has a known hash; the server sends that certificate along.
#[derive(Debug)]
struct Recognised {
    hash: String,
    provider: Arc<CryptoProvider>,
}

pub(crate) fn hash_of(certificate: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(certificate) {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
    }
    text
}

impl ServerCertVerifier for Recognised {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = chain
            .iter()
            .find(|certificate| hash_of(certificate) == self.hash)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Asks the server at `address` for a seat; writes the cluster's authority and the seat into the data directory.
pub(crate) async fn join(
    data_dir: &Path,
    address: SocketAddr,
    token: &str,
    name: &str,
    listen: SocketAddr,
) -> Result<Seat> {
    let (credential, hash) = token
        .rsplit_once('.')
        .filter(|(_, hash)| hash.len() == 64)
        .context("the token is not whole: copy it again from 'gantry token create'")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let recognised = Recognised {
        hash: hash.to_owned(),
        provider: provider.clone(),
    };
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(recognised))
        .with_no_client_auth();
    let body = serde_json::to_vec(&JoinRequest {
        name: name.to_owned(),
        address: listen,
        level: FEATURE_LEVEL,
    })?;
    let request = http::Request::post("/gantry/v1/members")
        .header(http::header::AUTHORIZATION, format!("Bearer {credential}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))?;
    let (status, body) = dial::request(address, tls, request).await.map_err(|error| {
        match format!("{error:#}").contains("UnknownIssuer") {
            true => anyhow::anyhow!(
                "the server at {address} is of another cluster than the token: check the address, or make a token there with 'gantry token create --for servers'"
            ),
            false => error,
        }
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
    Pki::install(&data_dir.join("pki"), &reply.ca_certificate, &reply.ca_key)?;
    Keyring::install(data_dir, reply.keys.to_string().as_bytes())?;
    let seat = Seat {
        id: reply.id,
        name: name.to_owned(),
        founder: false,
        servers: reply.servers,
        alone: false,
    };
    seat.save(data_dir)?;
    Ok(seat)
}
