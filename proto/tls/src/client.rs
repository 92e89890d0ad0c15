//! Clients' configurations: whom they trust, and what they show.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, WantsVerifier,
};

use crate::{Credential, TlsError, certificates, fingerprint, private_key, provider, roots};

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::unusable("the cryptography of this build", error))
}

/// Trusts servers of these authorities, PEM, and shows a certificate. Offers HTTP/2, and HTTP/1.1 after it.
pub fn mutual(trusted: &str, own: &Credential) -> Result<ClientConfig, TlsError> {
    let chain = certificates(&own.certificate, "the client's certificate")?;
    let key = private_key(&own.key, "the client's key")?;
    let mut config = builder()?
        .with_root_certificates(roots(trusted)?)
        .with_client_auth_cert(chain, key)
        .map_err(|error| TlsError::unusable("the client's certificate", error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts servers of these authorities, PEM. Shows nothing.
pub fn trusting(trusted: &str) -> Result<ClientConfig, TlsError> {
    Ok(builder()?
        .with_root_certificates(roots(trusted)?)
        .with_no_client_auth())
}

/// Trusts servers of the public authorities that this machine trusts. Shows nothing.
pub fn public() -> Result<ClientConfig, TlsError> {
    let mut trusted = RootCertStore::empty();
    let known = rustls_native_certs::load_native_certs();
    let (usable, _) = trusted.add_parsable_certificates(known.certs);
    if usable == 0 {
        let causes = known.errors.iter().map(ToString::to_string);
        let causes: Vec<String> = causes.collect();
        return Err(TlsError::unusable(
            "what this machine trusts (the package ca-certificates)",
            match causes.is_empty() {
                true => "it holds no certificate".to_owned(),
                false => causes.join("; "),
            },
        ));
    }
    Ok(builder()?
        .with_root_certificates(trusted)
        .with_no_client_auth())
}

/// Trusts nobody and shows nothing: for who has no certificate yet.
pub fn strangers() -> Result<ClientConfig, TlsError> {
    Ok(builder()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// Trusts the authority with a fingerprint, whose certificate the server must send along. Shows nothing.
pub fn recognising(fingerprint: &str) -> Result<ClientConfig, TlsError> {
    Ok(verified_by(Verifier {
        expected: Some(fingerprint.to_owned()),
        provider: provider(),
    })?
    .with_no_client_auth())
}

/// Trusts whoever answers, whatever certificate they show: for those that nobody can vouch for. Shows nothing.
pub fn anyone() -> Result<ClientConfig, TlsError> {
    Ok(verified_by(Verifier {
        expected: None,
        provider: provider(),
    })?
    .with_no_client_auth())
}

fn verified_by(
    verifier: Verifier,
) -> Result<ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    Ok(builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

/// What else servers may sign with where the signature is not looked at: whoever shows a certificate that nobody vouches for
/// may as well have made it this moment. Old certificates, and keys that are weak or of rare curves, must not stand in the way.
const UNVERIFIED: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED448,
    SignatureScheme::RSA_PKCS1_SHA1,
    SignatureScheme::ECDSA_SHA1_Legacy,
];

struct Verifier {
    /// The fingerprint of the authority that the server must be of; of any when there is none.
    expected: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Verifier({:?})", self.expected)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(expected) = &self.expected else {
            return Ok(ServerCertVerified::assertion());
        };
        let authority = chain
            .iter()
            .find(|certificate| fingerprint(certificate) == *expected)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.expected.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.expected.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        let mut schemes = known.supported_schemes();
        if self.expected.is_none() {
            schemes.extend(UNVERIFIED);
        }
        schemes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_will_do_where_nobody_vouches_for_it() {
        let schemes = |expected: Option<String>| {
            let provider = provider();
            Verifier { expected, provider }.supported_verify_schemes()
        };
        let (anyone, vouched) = (schemes(None), schemes(Some(String::new())));
        for scheme in UNVERIFIED {
            assert!(anyone.contains(&scheme), "{scheme:?}");
            assert!(!vouched.contains(&scheme), "{scheme:?}");
        }
    }
}
