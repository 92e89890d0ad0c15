//! Authorities: they sign the certificates of servers, nodes and people, and servers ask for those.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_tls::{
    BACKDATED, Credential, Lifetime, TlsError, certificates, fingerprints, private_key, roots,
};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::server::WebPkiClientVerifier;

/// How long an authority lasts.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Whom or what a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its common name: the user.
    pub user: String,
    /// Its organisations: the user's groups.
    pub groups: Vec<String>,
    /// The names that clients reach it by, if it is a server.
    pub names: Vec<String>,
    /// The addresses that clients reach it by, if it is a server.
    pub addresses: Vec<IpAddr>,
}

impl Subject {
    /// A client.
    pub fn client(user: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            user: user.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// What the certificate may be used for and by whom; the rest is the issuer's.
    fn params(&self) -> Result<CertificateParams, TlsError> {
        let mut params = CertificateParams::new(self.names.clone())
            .map_err(|error| TlsError::unusable("a server's name", error))?;
        let addresses = self.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.distinguished_name = name(&self.user, &self.groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !params.subject_alt_names.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        Ok(params)
    }
}

/// An authority: its certificate and its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    lifetime: Lifetime,
}

impl Authority {
    /// A new one, that signs itself.
    pub fn create(life: Duration) -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::unusable("a new authority", error);
        let lifetime = Lifetime::from_now(life);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        // Names differ, so that verifiers tell authorities apart without trying their keys.
        params.distinguished_name = name(&format!("gantry-ca-{:08x}", rand::random::<u32>()), &[]);
        as_authority(&mut params, lifetime);
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
            lifetime,
        })
    }

    /// From its certificate and key, PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TlsError> {
        let what = "the authority's certificate";
        let unusable = |error: rcgen::Error| TlsError::unusable("the authority's key", error);
        let key = KeyPair::from_pem(key).map_err(unusable)?;
        let der = certificates(certificate, what)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der[0])
            .map_err(|error| TlsError::unusable(what, error))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(TlsError::unusable(
                "the authority's key",
                "its certificate is of another key",
            ));
        }
        if !parsed.is_ca() {
            return Err(TlsError::unusable(what, "it is not an authority's"));
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der[0], key)
                .map_err(|error| TlsError::unusable(what, error))?,
            certificate: certificate.to_owned(),
            lifetime: Lifetime::of(certificate, what)?,
        })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// How long it lasts.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// The fingerprint of its certificate.
    pub fn fingerprint(&self) -> Result<String, TlsError> {
        let mut all = fingerprints(&self.certificate, "the authority's certificate")?;
        Ok(all.remove(0))
    }

    /// A certificate for a new key. None outlasts its authority.
    pub fn issue(&self, subject: &Subject, life: Duration) -> Result<Credential, TlsError> {
        let failed = |error: rcgen::Error| {
            TlsError::unusable(format!("a certificate for {}", subject.user), error)
        };
        let lifetime = self.within(life);
        let mut params = subject.params()?;
        valid(&mut params, lifetime);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Credential {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            lifetime,
        })
    }

    /// A certificate, PEM, for the key of a request, PEM, whose owner has shown with it that the key is theirs. What else
    /// the request says counts for nothing.
    pub fn sign(
        &self,
        request: &str,
        subject: &Subject,
        life: Duration,
    ) -> Result<(String, Lifetime), TlsError> {
        let failed =
            |error: rcgen::Error| TlsError::unusable("the request for a certificate", error);
        let mut request = CertificateSigningRequestParams::from_pem(request).map_err(failed)?;
        let lifetime = self.within(life);
        request.params = subject.params()?;
        valid(&mut request.params, lifetime);
        let certificate = request.signed_by(&self.issuer).map_err(failed)?;
        Ok((certificate.pem(), lifetime))
    }

    /// A certificate, PEM, by which whoever trusts this authority trusts another too.
    pub fn vouch_for(&self, other: &Self) -> Result<String, TlsError> {
        let failed =
            |error: rcgen::Error| TlsError::unusable("a certificate for an authority", error);
        let der = certificates(&other.certificate, "the other authority's certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der[0])
            .map_err(|error| TlsError::unusable("the other authority's certificate", error))?;
        let common = parsed.subject().iter_common_name().next();
        let common = common
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default();
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common, &[]);
        let lifetime = Lifetime {
            expires: self.lifetime.expires.min(other.lifetime.expires),
            ..other.lifetime
        };
        as_authority(&mut params, lifetime);
        let certificate = params
            .signed_by(other.issuer.key(), &self.issuer)
            .map_err(failed)?;
        Ok(certificate.pem())
    }

    fn within(&self, life: Duration) -> Lifetime {
        let lifetime = Lifetime::from_now(life);
        Lifetime {
            expires: lifetime.expires.min(self.lifetime.expires),
            ..lifetime
        }
    }
}

fn name(common: &str, organisations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    for organisation in organisations {
        name.push(DnType::OrganizationName, organisation.as_str());
    }
    name
}

fn as_authority(params: &mut CertificateParams, lifetime: Lifetime) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    valid(params, lifetime);
}

fn valid(params: &mut CertificateParams, lifetime: Lifetime) {
    params.use_authority_key_identifier_extension = true;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // Times before 1970 are of clocks that are wrong by more than is worth an error.
    let at =
        |time: Timestamp| epoch + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0));
    params.not_before = at(lifetime.issued) - BACKDATED;
    params.not_after = at(lifetime.expires);
}

/// A server's TLS: what it shows, and whose clients' certificates it takes. Offers HTTP/2 and HTTP/1.1.
pub fn server_config(
    shown: &Credential,
    trusted: &str,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = gantry_tls::provider();
    let roots = Arc::new(roots(trusted)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::unusable("the authority's certificate", error))?;
    let chain = certificates(&shown.certificate, "the server's certificate")?;
    let key = private_key(&shown.key, "the server's key")?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::unusable("the cryptography of this build", error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::unusable("the server's certificate", error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use gantry_apiserver::Identity;
    use gantry_tls::KeyRequest;
    use tokio::net::TcpListener;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn server() -> Subject {
        Subject {
            names: vec!["localhost".to_owned()],
            addresses: vec![IpAddr::from([127, 0, 0, 1])],
            ..Subject::client("gantry:server:1", &["gantry:members"])
        }
    }

    /// Whether both sides accept each other; what each trusts and shows.
    async fn meet(
        (server_trusts, server_shows): (&str, &Credential),
        (client_trusts, client_shows): (&str, &Credential),
    ) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tls = server_config(server_shows, server_trusts).expect("a configuration");
        let accepting = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            let accepted = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await;
            accepted.is_ok_and(|stream| stream.get_ref().1.peer_certificates().is_some())
        });
        let tls = gantry_tls::mutual(client_trusts, client_shows).expect("a configuration");
        let connected = gantry_tls::connect(address, Arc::new(tls)).await.is_ok();
        accepting.await.expect("it does not panic") && connected
    }

    #[test]
    fn a_certificate_says_what_the_authority_says_and_no_more() {
        let authority = Authority::create(DAY).expect("an authority");
        let request = KeyRequest::new("system:masters").expect("a request");
        let subject = Subject::client("system:node:a", &["system:nodes"]);
        let life = Duration::from_secs(12);
        let (certificate, lifetime) = authority
            .sign(&request.request, &subject, life)
            .expect("a certificate");
        let der = certificates(&certificate, "it").expect("PEM").remove(0);
        let who = Identity::from_certificate(&der).expect("a user");
        assert_eq!(who.user, "system:node:a");
        assert_eq!(who.groups, ["system:nodes", "system:authenticated"]);
        let credential = request.granted(certificate).expect("a credential");
        assert_eq!(credential.lifetime, lifetime);
        assert_eq!(
            lifetime.expires.as_second() - lifetime.issued.as_second(),
            12
        );
        // None outlasts its authority.
        let long = authority.issue(&subject, 3 * DAY).expect("a certificate");
        assert_eq!(long.lifetime.expires, authority.lifetime().expires);
        assert!(authority.sign("nonsense", &subject, life).is_err());
    }

    #[test]
    fn an_authority_is_the_same_from_what_was_kept() {
        let authority = Authority::create(DAY).expect("an authority");
        let again = Authority::from_pem(authority.certificate(), &authority.key()).expect("it");
        assert_eq!(again.lifetime(), authority.lifetime());
        assert_eq!(
            again.fingerprint().expect("one"),
            authority.fingerprint().expect("one")
        );
        let other = Authority::create(DAY).expect("an authority");
        let mixed = Authority::from_pem(authority.certificate(), &other.key());
        assert!(
            mixed
                .err()
                .expect("refused")
                .to_string()
                .contains("another key")
        );
        let leaf = authority.issue(&server(), DAY).expect("a certificate");
        let refused = Authority::from_pem(&leaf.certificate, &leaf.key);
        assert!(
            refused
                .err()
                .expect("refused")
                .to_string()
                .contains("not an authority's")
        );
    }

    #[tokio::test]
    async fn whoever_trusts_one_authority_trusts_the_one_it_vouches_for() {
        let old = Authority::create(DAY).expect("an authority");
        let new = Authority::create(DAY).expect("an authority");
        let vouched = old.vouch_for(&new).expect("a certificate");
        let shown = |authority: &Authority, subject: &Subject, behind: &str| {
            let mut credential = authority.issue(subject, DAY).expect("a certificate");
            credential.certificate += behind;
            credential
        };
        let client = Subject::client("gantry:server:2", &["gantry:members"]);
        let (old_server, old_client) = (shown(&old, &server(), ""), shown(&old, &client, ""));
        let (new_server, new_client) = (
            shown(&new, &server(), &vouched),
            shown(&new, &client, &vouched),
        );
        let both = format!("{}{}", new.certificate(), old.certificate());
        let (old_only, new_only) = (old.certificate(), new.certificate());
        // A side that has not heard of the new authority, and one that has; either way round.
        assert!(meet((old_only, &old_server), (&both, &new_client)).await);
        assert!(meet((&both, &new_server), (old_only, &old_client)).await);
        assert!(meet((&both, &new_server), (new_only, &new_client)).await);
        // Where the old one is not trusted any more.
        assert!(!meet((new_only, &new_server), (&both, &old_client)).await);
        assert!(!meet((&both, &old_server), (new_only, &new_client)).await);
        // Nobody vouched.
        let bare = shown(&new, &server(), "");
        assert!(!meet((&both, &bare), (old_only, &old_client)).await);
    }
}
