//! Certificates with their keys, how long they last, and how a new one is asked for.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use sha2::{Digest, Sha256};

use crate::{TlsError, certificates};

/// How long before their issue certificates are valid already, for clocks that differ.
pub const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);

/// When a certificate was issued, and until when it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// When it was issued; it is valid [`BACKDATED`] longer into the past.
    pub issued: Timestamp,
    /// From when on nobody accepts it.
    pub expires: Timestamp,
}

impl Lifetime {
    /// From now on, in whole seconds: certificates know no shorter ones.
    pub fn from_now(life: Duration) -> Self {
        let now = Timestamp::now().as_second();
        let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let at = |second| Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
        Self {
            issued: at(now),
            expires: at(now.saturating_add(life)),
        }
    }

    /// That of the first certificate of a PEM text. `what` it is, for messages.
    pub fn of(pem: &str, what: &str) -> Result<Self, TlsError> {
        let unusable = |cause: String| TlsError::unusable(what, cause);
        let certificates = certificates(pem, what)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificates[0])
            .map_err(|error| unusable(error.to_string()))?;
        let at =
            |second| Timestamp::from_second(second).map_err(|error| unusable(error.to_string()));
        let validity = parsed.validity();
        Ok(Self {
            issued: at(validity.not_before.timestamp())? + BACKDATED,
            expires: at(validity.not_after.timestamp())?,
        })
    }

    /// From when on it is accepted.
    pub fn valid_from(&self) -> Timestamp {
        self.issued.checked_sub(BACKDATED).unwrap_or(Timestamp::MIN)
    }

    /// When two thirds of it are over: a new one should replace it.
    pub fn renews(&self) -> Timestamp {
        let (issued, expires) = (self.issued.as_millisecond(), self.expires.as_millisecond());
        let renews = issued.saturating_add((expires - issued) / 3 * 2);
        Timestamp::from_millisecond(renews).unwrap_or(self.expires)
    }

    /// Whether it should be replaced by now.
    pub fn is_due(&self) -> bool {
        Timestamp::now() >= self.renews()
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Credential {
    /// The certificate, PEM, and those that are shown behind it.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// How long it lasts.
    pub lifetime: Lifetime,
}

impl Credential {
    /// From what was kept.
    pub fn from_pem(certificate: String, key: String) -> Result<Self, TlsError> {
        let lifetime = Lifetime::of(&certificate, "the certificate")?;
        Ok(Self {
            certificate,
            key,
            lifetime,
        })
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Credential({:?})", self.lifetime)
    }
}

/// A new key, and the request for a certificate of it.
pub struct KeyRequest {
    /// The private key, PEM; it stays where it was made.
    pub key: String,
    /// The request (PKCS #10), PEM. Who signs decides what the certificate says.
    pub request: String,
}

impl KeyRequest {
    /// For a user of this name.
    pub fn new(user: &str) -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::unusable("a new key", error);
        Self::of(&KeyPair::generate().map_err(failed)?, user)
    }

    /// For a user of this name, of a key that was made before, PEM: whoever asks again with the same key is the same.
    pub fn with_key(key: &str, user: &str) -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::unusable("the key", error);
        Self::of(&KeyPair::from_pem(key).map_err(failed)?, user)
    }

    fn of(key: &KeyPair, user: &str) -> Result<Self, TlsError> {
        let failed =
            |error: rcgen::Error| TlsError::unusable("the request for a certificate", error);
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, user);
        params.distinguished_name = name;
        let request = params.serialize_request(key).map_err(failed)?;
        Ok(Self {
            key: key.serialize_pem(),
            request: request.pem().map_err(failed)?,
        })
    }

    /// With the certificate that was issued for it.
    pub fn granted(self, certificate: String) -> Result<Credential, TlsError> {
        Credential::from_pem(certificate, self.key)
    }
}

/// How a certificate is recognised: the SHA-256 of its DER, in hexadecimal.
pub fn fingerprint(certificate: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(certificate) {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
    }
    text
}

/// The fingerprints of the certificates of a PEM text.
pub fn fingerprints(pem: &str, what: &str) -> Result<Vec<String>, TlsError> {
    let certificates = certificates(pem, what)?;
    Ok(certificates
        .iter()
        .map(|certificate| fingerprint(certificate))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thirds_of_a_life_are_enough() {
        let lifetime = Lifetime::from_now(Duration::from_secs(12));
        let seconds = |from: Timestamp, to: Timestamp| to.as_second() - from.as_second();
        assert_eq!(seconds(lifetime.issued, lifetime.expires), 12);
        assert_eq!(seconds(lifetime.issued, lifetime.renews()), 8);
        assert!(!lifetime.is_due());
        let forever = Lifetime::from_now(Duration::MAX);
        assert_eq!(forever.expires, Timestamp::MAX);
        assert!(forever.renews() < Timestamp::MAX);
        assert!(Lifetime::from_now(Duration::ZERO).is_due());
    }

    #[test]
    fn fingerprints_are_hexadecimal() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint(b"abc"), abc);
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        for wrong in ["", "nonsense"] {
            let error = Lifetime::of(wrong, "the node's certificate").expect_err("none");
            assert!(
                error
                    .to_string()
                    .starts_with("the node's certificate cannot be used"),
                "{error}"
            );
        }
    }
}
