//! TLS as both sides of the cluster need it: what a client trusts and shows, credentials and requests for them, and
//! single requests to servers.
//!
//! Knows no policy: who is given a certificate, and for what, is the control plane's business.

mod client;
mod clock;
mod credential;
mod files;
mod kubeconfig;
mod request;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use client::{anyone, mutual, public, recognising, strangers, trusting};
pub use clock::about_clocks;
pub use credential::{BACKDATED, Credential, KeyRequest, Lifetime, fingerprint, fingerprints};
pub use files::{read, write};
pub use kubeconfig::{Kubeconfig, SERVERS_EXTENSION};
pub use request::{RequestError, connect, request, secure};

/// What can go wrong with certificates and keys.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of theirs cannot be read or written.
    #[error("{doing} {path}: {source}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not PEM, empty, or nothing that can be used.
    #[error("{what} cannot be used: {cause}")]
    Unusable {
        /// Which of them.
        what: String,
        /// Why not.
        cause: String,
    },
}

impl TlsError {
    /// That something cannot be used.
    pub fn unusable(what: impl Into<String>, cause: impl ToString) -> Self {
        Self::Unusable {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

/// The cryptography that Gantry uses everywhere.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM text; an error when there are none. `what` they are, for messages.
pub fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(TlsError::unusable(what, "it holds no certificate")),
        Err(error) => Err(TlsError::unusable(what, error)),
    }
}

/// The private key of a PEM text.
pub fn private_key(pem: &str, what: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::unusable(what, error))
}

/// What is trusted, from the authorities' certificates, PEM.
pub fn roots(trusted: &str) -> Result<RootCertStore, TlsError> {
    let what = "the authority's certificate";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(trusted, what)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::unusable(what, error))?;
    }
    Ok(roots)
}
