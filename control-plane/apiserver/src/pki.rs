//! The cluster's certificates: its own authority, made at first start, and what it signs.
//!
//! ```text
//! DIR/ca.crt, ca.key            the authority
//! DIR/apiserver.crt, .key       the server's, renewed whenever the addresses it must cover change
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// `reading` or `writing`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or key is not usable.
    #[error("{what}: {cause}")]
    Certificate {
        /// Which.
        what: String,
        /// Why.
        cause: String,
    },
}

fn broken(what: impl Into<String>, cause: impl ToString) -> PkiError {
    PkiError::Certificate {
        what: what.into(),
        cause: cause.to_string(),
    }
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// The cluster's authority.
pub struct Pki {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    ca_pem: String,
}

/// Days before now from which certificates are valid, for clocks that differ.
const BACKDATED_DAYS: i64 = 1;
const CA_YEARS: i64 = 10;
const LEAF_YEARS: i64 = 1;

impl Pki {
    /// Reads the authority, or makes it at the first start.
    pub fn load_or_create(directory: &Path) -> Result<Self, PkiError> {
        fs::create_dir_all(directory).map_err(|source| PkiError::File {
            doing: "creating",
            path: directory.to_owned(),
            source,
        })?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let key = match read(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem)
                .map_err(|error| broken(key_path.display().to_string(), error))?,
            None => {
                let key = KeyPair::generate()
                    .map_err(|error| broken("making the authority's key", error))?;
                write(&key_path, &key.serialize_pem(), 0o600)?;
                key
            }
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = name("gantry-ca", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        validity(&mut params, CA_YEARS);
        let issuer = CertifiedIssuer::self_signed(params, key)
            .map_err(|error| broken("making the authority", error))?;
        // The stored certificate is what clients trust; the key and name are what signatures are checked by.
        let ca_pem = match read(&certificate_path)? {
            Some(pem) => pem,
            None => {
                write(&certificate_path, &issuer.pem(), 0o644)?;
                issuer.pem()
            }
        };
        Ok(Self {
            directory: directory.to_owned(),
            issuer,
            ca_pem,
        })
    }

    /// Puts the authority of a cluster that this server joins into its directory.
    pub fn install(directory: &Path, certificate: &str, key: &str) -> Result<(), PkiError> {
        fs::create_dir_all(directory).map_err(|source| PkiError::File {
            doing: "creating",
            path: directory.to_owned(),
            source,
        })?;
        write(&directory.join("ca.key"), key, 0o600)?;
        write(&directory.join("ca.crt"), certificate, 0o644)
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's key, PEM: for a server that joins.
    pub fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A client certificate: `user` as CN, each group as O.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Credential, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, user)
    }

    /// A server certificate for names and addresses.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Credential, PkiError> {
        let mut params = CertificateParams::new(names.to_vec())
            .map_err(|error| broken("the server's names", error))?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name = name("gantry-apiserver", &[]);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, "apiserver")
    }

    fn issue(&self, mut params: CertificateParams, what: &str) -> Result<Credential, PkiError> {
        validity(&mut params, LEAF_YEARS);
        let failed =
            |error: rcgen::Error| broken(format!("issuing the certificate of {what}"), error);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Credential {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// The server's TLS: its certificate, client certificates of this authority, HTTP/2 and HTTP/1.1.
    pub fn server_config(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let credential = self.issue_server(names, addresses)?;
        write(
            &self.directory.join("apiserver.crt"),
            &credential.certificate,
            0o644,
        )?;
        write(
            &self.directory.join("apiserver.key"),
            &credential.key,
            0o600,
        )?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca_pem)? {
            roots
                .add(certificate)
                .map_err(|error| broken("the authority's certificate", error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|error| broken("verifying clients", error))?;
        let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes())
            .map_err(|error| broken("the server's key", error))?;
        // The authority's own certificate goes along: who joins recognises the cluster by it.
        let mut chain = certificates(&credential.certificate)?;
        chain.extend(certificates(&self.ca_pem)?);
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| broken("the server's TLS", error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| broken("the server's certificate", error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A kubeconfig for a server and a client certificate.
    pub fn kubeconfig(&self, server: &str, user: &str, credential: &Credential) -> String {
        let encode = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: gantry\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
             client-key-data: {}\ncontexts:\n- name: gantry\n  context:\n    cluster: gantry\n    user: {user}\n\
             current-context: gantry\n",
            encode(&self.ca_pem),
            encode(&credential.certificate),
            encode(&credential.key),
        )
    }

    /// The administrator's kubeconfig in a file that only its owner can read.
    pub fn write_admin_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        self.write_kubeconfig(path, server, "kubernetes-admin", &["system:masters"])
    }

    /// A kubeconfig with a new certificate, in a file that only its owner can read.
    pub fn write_kubeconfig(
        &self,
        path: &Path,
        server: &str,
        user: &str,
        groups: &[&str],
    ) -> Result<(), PkiError> {
        let credential = self.issue_client(user, groups)?;
        write(path, &self.kubeconfig(server, user, &credential), 0o600)
    }
}

fn name(common: &str, organisations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    for organisation in organisations {
        name.push(DnType::OrganizationName, *organisation);
    }
    name
}

fn validity(params: &mut CertificateParams, years: i64) {
    let date = |days: i64| {
        let zoned = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days))
            .to_zoned(jiff::tz::TimeZone::UTC);
        // Month and day are in range by construction.
        rcgen::date_time_ymd(
            i32::from(zoned.year()),
            u8::try_from(zoned.month()).unwrap_or(1),
            u8::try_from(zoned.day()).unwrap_or(1),
        )
    };
    params.not_before = date(-BACKDATED_DAYS);
    params.not_after = date(365 * years);
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| broken("reading a certificate", error))
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            doing: "reading",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Replaces a file as a whole, readable by whom `mode` says from the first byte on.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let attempt = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|source| PkiError::File {
        doing: "writing",
        path: path.to_owned(),
        source,
    })
}
