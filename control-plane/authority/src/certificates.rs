//! Certificates: who signs them, the server's own, those it gives away, and all of them renewed while everything runs.
//!
//! The authority is a row of the store, sealed as Secrets are: its key leaves memory only encrypted, and every server can
//! sign. A server shows one certificate to clients and to other servers, issued by itself; only one that joins asks
//! for its first. What is shown and trusted changes for connections made from then on; those that exist stay.

mod api;
mod authorities;
mod holders;
mod ledger;
mod rotation;
mod users;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gantry_apiserver::node_keys::{self, KeyId, NODES_GROUP, Voucher};
use gantry_members::{MEMBERS_GROUP, Roster};
use gantry_store::{Leadership, Revision, Store};
use gantry_tls::{Credential, Kubeconfig, TlsError};
use ipnet::Ipv4Net;
use parking_lot::{Mutex, RwLock};
use prometheus::{IntGaugeVec, Opts};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pki::{Subject, server_config};
use authorities::Authorities;
pub(crate) use authorities::TABLE as AUTHORITIES;
use holders::{ADMINISTRATOR, node_key};
use ledger::{Issued, Ledger};

pub(crate) use api::fuzz;
pub use api::{CertificatesApi, Granted};

/// How long certificates last unless told otherwise.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How often a server looks whether something is due, or was changed by another.
const LOOK: Duration = Duration::from_secs(1);
/// After this many looks the leader forgets certificates that nobody uses any more.
const TIDY: u64 = 60;

static EXPIRY: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = Opts::new(
        "gantry_certificate_expiry_seconds",
        "When a certificate that this server keeps current expires, in seconds since 1970.",
    );
    let gauge = IntGaugeVec::new(options, &["certificate"]).expect("the name is well-formed");
    if let Err(error) = prometheus::register(Box::new(gauge.clone())) {
        tracing::warn!(%error, "the expiry of certificates is not exposed");
    }
    gauge
});

/// The files in `pki/` of a data directory: what a server shows and trusts before it has the cluster's state.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Those of a data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            directory: data_dir.join("pki"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes down what a server shows and trusts.
    pub fn keep(&self, trusted: &str, own: &Credential) -> Result<(), TlsError> {
        gantry_tls::write(&self.path("ca.crt"), trusted, 0o644)?;
        gantry_tls::write(&self.path("server.key"), &own.key, 0o600)?;
        gantry_tls::write(&self.path("server.crt"), &own.certificate, 0o644)
    }

    /// What was kept: what is trusted, PEM, and what is shown. Files that hold nothing of use count as missing, since all
    /// that is in them is made again from the cluster's state; it is said which.
    fn kept(&self) -> Result<Option<(String, Credential)>, TlsError> {
        let read = |name: &str| gantry_tls::read(&self.path(name));
        let (trusted, certificate, key) =
            (read("ca.crt")?, read("server.crt")?, read("server.key")?);
        let (Some(trusted), Some(certificate), Some(key)) = (trusted, certificate, key) else {
            return Ok(None);
        };
        let named = |name: &str| self.path(name).display().to_string();
        let usable = gantry_tls::certificates(&trusted, &named("ca.crt"))
            .and_then(|_| gantry_tls::certificates(&certificate, &named("server.crt")))
            .and_then(|_| gantry_tls::private_key(&key, &named("server.key")))
            .and_then(|_| Credential::from_pem(certificate, key))
            .and_then(|own| gantry_tls::mutual(&trusted, &own).map(|_| (trusted, own)));
        match usable {
            Ok(kept) => Ok(Some(kept)),
            Err(error) => {
                tracing::warn!(%error, directory = %self.directory.display(), "what the server showed before is damaged: it is made anew from the cluster's state");
                Ok(None)
            }
        }
    }

    /// How this server meets the others until it has read the cluster's state.
    pub fn first_client(&self) -> Result<ClientConfig, TlsError> {
        match self.kept()? {
            Some((trusted, own)) => gantry_tls::mutual(&trusted, &own),
            None => gantry_tls::strangers(),
        }
    }
}

/// How servers are named in their certificates.
#[derive(Clone, Debug)]
pub struct Naming {
    /// The zone of services.
    pub cluster_domain: String,
    /// ClusterIPs; the first is that of the API.
    pub service_cidr: Ipv4Net,
}

impl Naming {
    /// What the certificate of a server at an address says.
    pub(crate) fn server(&self, id: u64, address: IpAddr) -> Subject {
        let full = format!("kubernetes.default.svc.{}", self.cluster_domain);
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            full.as_str(),
        ];
        let api = Ipv4Addr::from(u32::from(self.service_cidr.network()) + 1);
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), address, IpAddr::V4(api)];
        addresses.dedup();
        Subject {
            names: names.map(str::to_owned).into(),
            addresses,
            ..Subject::client(format!("gantry:server:{id}"), &[MEMBERS_GROUP])
        }
    }
}

/// Who a server is, and how it issues.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it keeps what it shows.
    pub files: Files,
    /// Its name among the servers.
    pub server: String,
    /// Its member id.
    pub id: u64,
    /// Where others reach it.
    pub address: IpAddr,
    /// How its certificates name it.
    pub naming: Naming,
    /// How long the certificates last that it issues.
    pub life: Duration,
    /// Whether it is a cluster of its own, which it may make an authority for.
    pub founds: bool,
}

/// A kubeconfig that is kept current.
struct KeptKubeconfig {
    path: PathBuf,
    url: String,
    written: Option<Written>,
}

/// What a kubeconfig was written with last.
struct Written {
    issued: Issued,
    trusted: String,
    servers: Vec<SocketAddr>,
}

struct Current {
    /// None on a server that joined and has not received the cluster's state yet.
    authorities: Option<Arc<Authorities>>,
    own: Credential,
}

struct Inner {
    store: Store,
    setup: Setup,
    ledger: Ledger,
    /// Names of nodes that nobody expected when that was looked at last, with the revisions of their keys.
    unexpected: Mutex<BTreeSet<(String, Revision)>>,
    current: RwLock<Current>,
    kubeconfigs: Mutex<Vec<KeptKubeconfig>>,
    client: watch::Sender<Arc<ClientConfig>>,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
    trusted: watch::Sender<String>,
}

/// The certificates of a server. Cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    inner: Arc<Inner>,
}

impl Certificates {
    /// Finds the authority in the store, or makes the first one; from then on `client` shows a certificate of it. The
    /// store must be open.
    pub async fn open(
        store: Store,
        setup: Setup,
        client: watch::Sender<Arc<ClientConfig>>,
    ) -> Result<Self> {
        let kept = setup.files.kept();
        let authorities = match Authorities::read(&store)? {
            Some(found) => Some(found),
            None if setup.founds => Some(found_authority(&store, &setup.files).await?),
            None => None,
        };
        let (trusted, own) = match &authorities {
            Some(authorities) => (authorities.trusted(), own_certificate(&setup, authorities)?),
            None => kept?.with_context(|| {
                format!(
                    "{} lacks the server's certificate, or it is damaged: take this server out with 'gantry member remove', and add it anew with an \
                     empty data directory",
                    setup.files.directory.display()
                )
            })?,
        };
        let tls = server_config(&own, &trusted)?;
        client.send_replace(Arc::new(gantry_tls::mutual(&trusted, &own)?));
        setup.files.keep(&trusted, &own)?;
        let ledger = Ledger::new(store.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                setup,
                ledger,
                unexpected: Mutex::default(),
                current: RwLock::new(Current {
                    authorities: authorities.map(Arc::new),
                    own,
                }),
                kubeconfigs: Mutex::default(),
                client,
                tls: watch::Sender::new(tls),
                trusted: watch::Sender::new(trusted),
            }),
        })
    }

    /// What the API is served with.
    pub fn tls(&self) -> watch::Receiver<Arc<rustls::ServerConfig>> {
        self.inner.tls.subscribe()
    }

    /// The authorities that are trusted, PEM, the one that signs first.
    pub fn trusted(&self) -> watch::Receiver<String> {
        self.inner.trusted.subscribe()
    }

    fn authorities(&self) -> Result<Arc<Authorities>> {
        let current = self.inner.current.read();
        current.authorities.clone().context(
            "this server has not received the cluster's authority yet: try again in a moment",
        )
    }

    fn issue(&self, subject: &Subject) -> Result<(Credential, Issued)> {
        let authorities = self.authorities()?;
        let credential = authorities.issue(subject, self.inner.setup.life)?;
        let issued = Issued {
            authority: authorities.signing()?,
            lifetime: credential.lifetime,
        };
        Ok((credential, issued))
    }

    /// The certificate for a request of a node, if somebody's word for its key suffices. The key and the certificate are noted
    /// before it is given away.
    pub(crate) async fn grant_node(
        &self,
        node: &str,
        request: &str,
        by: &Voucher,
    ) -> Result<Granted> {
        let authorities = self.authorities()?;
        let life = self.inner.setup.life;
        let (certificate, lifetime) = authorities.sign(request, &node_subject(node), life)?;
        self.add_key(node, &certificate, by).await?;
        let issued = Issued {
            authority: authorities.signing()?,
            lifetime,
        };
        self.inner
            .ledger
            .enter(&node_user(node), "", issued)
            .await?;
        Ok(Granted {
            certificate,
            trusted: authorities.trusted(),
        })
    }

    /// The first certificate of a server that joins; from then on it issues its own.
    pub fn grant_server(&self, id: u64, address: IpAddr, request: &str) -> Result<Granted> {
        let authorities = self.authorities()?;
        let subject = self.inner.setup.naming.server(id, address);
        let (certificate, _) = authorities.sign(request, &subject, self.inner.setup.life)?;
        Ok(Granted {
            certificate,
            trusted: authorities.trusted(),
        })
    }

    /// A node's credential, made here.
    pub async fn node_credential(&self, node: &str) -> Result<Credential> {
        let (credential, issued) = self.issue(&node_subject(node))?;
        self.add_key(node, &credential.certificate, &Voucher::Administrator)
            .await?;
        self.inner
            .ledger
            .enter(&node_user(node), "", issued)
            .await?;
        Ok(credential)
    }

    async fn add_key(&self, node: &str, certificate: &str, by: &Voucher) -> Result<()> {
        let what = "the node's certificate";
        let der = gantry_tls::certificates(certificate, what)?;
        let key = der.first().and_then(|der| KeyId::of_certificate(der));
        let key = key.with_context(|| format!("{what} has no key that can be read"))?;
        Ok(node_keys::add(&self.inner.store, node, &key, by).await?)
    }

    /// Gives nodes that an earlier version certified the row that says which keys they may show.
    async fn adopt_nodes(&self) -> Result<()> {
        let store = &self.inner.store;
        for line in self.inner.ledger.lines() {
            let Some(node) = line.user.strip_prefix("system:node:") else {
                continue;
            };
            let exists = store.get(&node_key(node)).is_some();
            if exists && !node_keys::is_taken(store, node) {
                node_keys::adopt(store, node).await?;
            }
        }
        Ok(())
    }

    /// Writes an administrator's kubeconfig for the server at a URL, and keeps it current.
    pub fn keep_kubeconfig(&self, path: &Path, url: &str) -> Result<()> {
        let kubeconfig = KeptKubeconfig {
            path: path.to_owned(),
            url: url.to_owned(),
            written: None,
        };
        self.inner.kubeconfigs.lock().push(kubeconfig);
        self.renew_kubeconfigs()
    }

    /// Keeps everything current until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = String::new();
        let mut adopted = false;
        for look in 1_u64.. {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let work = async {
                self.look().await?;
                if !adopted && self.inner.store.leadership().borrow().is_leader {
                    self.adopt_nodes().await?;
                    adopted = true;
                }
                match look % TIDY {
                    0 => self.tidy().await,
                    _ => Ok(()),
                }
            };
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = work => done,
            };
            let said = done
                .err()
                .map_or_else(String::new, |error| format!("{error:#}"));
            // The same trouble is told once, not every second.
            if !said.is_empty() && said != trouble {
                tracing::warn!(error = said, "renewing certificates; it is tried again");
            }
            trouble = said;
        }
    }

    async fn look(&self) -> Result<()> {
        self.renew_own()?;
        self.renew_kubeconfigs()?;
        self.enter_all().await
    }

    /// Returns when this server has what was written before, and shows certificates accordingly.
    pub async fn catch_up(&self) -> Result<()> {
        self.inner.store.read_barrier().await?;
        self.renew_own()
    }

    /// Takes over authorities that another server changed, and issues the own certificate anew when it is due.
    fn renew_own(&self) -> Result<()> {
        let inner = &*self.inner;
        let is_current = {
            let current = inner.current.read();
            let known = current.authorities.as_deref();
            known.is_some_and(|known| known.is_current(&inner.store))
                && !current.own.lifetime.is_due()
        };
        if is_current {
            return Ok(());
        }
        let Some(authorities) = Authorities::read(&inner.store)?.map(Arc::new) else {
            return Ok(());
        };
        let own = own_certificate(&inner.setup, &authorities)?;
        let trusted = authorities.trusted();
        inner.setup.files.keep(&trusted, &own)?;
        let tls = server_config(&own, &trusted)?;
        let client = Arc::new(gantry_tls::mutual(&trusted, &own)?);
        let expires = own.lifetime.expires;
        *inner.current.write() = Current {
            authorities: Some(authorities),
            own,
        };
        inner.tls.send_replace(tls);
        inner.client.send_replace(client);
        inner.trusted.send_if_modified(|known| {
            let differs = *known != trusted;
            *known = trusted;
            differs
        });
        tracing::info!(%expires, "the server's certificate was renewed");
        Ok(())
    }

    fn renew_kubeconfigs(&self) -> Result<()> {
        let Ok(authorities) = self.authorities() else {
            // Not yet.
            return Ok(());
        };
        let (signing, trusted) = (authorities.signing()?, authorities.trusted());
        let (user, group) = ADMINISTRATOR;
        let servers = Roster::new(self.inner.store.clone()).all();
        let mut servers: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        if servers.len() == 1 {
            // It is the one that is named anyway.
            servers.clear();
        }
        for kubeconfig in self.inner.kubeconfigs.lock().iter_mut() {
            let is_current = kubeconfig.written.as_ref().is_some_and(|written| {
                written.issued.authority == signing
                    && written.trusted == trusted
                    && written.servers == servers
                    && !written.issued.lifetime.is_due()
            });
            if is_current {
                continue;
            }
            let (credential, issued) = self.issue(&Subject::client(user, &[group]))?;
            let text = Kubeconfig {
                server: &kubeconfig.url,
                others: &servers,
                trusted: &trusted,
                user,
                credential: &credential,
            };
            gantry_tls::write(&kubeconfig.path, &text.render(), 0o600)?;
            kubeconfig.written = Some(Written {
                issued,
                trusted: trusted.clone(),
                servers: servers.clone(),
            });
        }
        Ok(())
    }

    /// Notes in the ledger what this server keeps current, where that is not noted yet.
    async fn enter_all(&self) -> Result<()> {
        let inner = &*self.inner;
        let (own, signing) = {
            let current = inner.current.read();
            let Some(authorities) = &current.authorities else {
                return Ok(());
            };
            EXPIRY
                .with_label_values(&["authority"])
                .set(authorities.expires().as_second());
            (current.own.lifetime, authorities.signing()?)
        };
        let server = &inner.setup.server;
        let subject = inner
            .setup
            .naming
            .server(inner.setup.id, inner.setup.address);
        let mut held = vec![(
            subject.user,
            server.clone(),
            Issued {
                authority: signing,
                lifetime: own,
            },
        )];
        for kubeconfig in inner.kubeconfigs.lock().iter() {
            let holder = format!("{server}:{}", kubeconfig.path.display());
            if let Some(written) = &kubeconfig.written {
                held.push((ADMINISTRATOR.0.to_owned(), holder, written.issued.clone()));
            }
        }
        for (user, holder, issued) in held {
            let label = match user == ADMINISTRATOR.0 {
                true => "administrator",
                false => "server",
            };
            let expires = issued.lifetime.expires.as_second();
            EXPIRY.with_label_values(&[label]).set(expires);
            inner.ledger.enter(&user, &holder, issued).await?;
        }
        Ok(())
    }
}

fn node_user(node: &str) -> String {
    format!("system:node:{node}")
}

fn node_subject(node: &str) -> Subject {
    Subject::client(node_user(node), &[NODES_GROUP])
}

fn own_certificate(setup: &Setup, authorities: &Authorities) -> Result<Credential> {
    let subject = setup.naming.server(setup.id, setup.address);
    authorities.issue(&subject, setup.life)
}

/// The first authority of a cluster: the one that was laid into `pki/` beforehand, or a new one.
async fn found_authority(store: &Store, files: &Files) -> Result<Authorities> {
    let mut leadership = store.leadership();
    let leads = |state: &Leadership| state.is_leader;
    if leadership.wait_for(leads).await.is_err() {
        bail!("the store stopped before it had a leader");
    }
    store.read_barrier().await?;
    if let Some(found) = Authorities::read(store)? {
        return Ok(found);
    }
    let (certificate, key) = (files.path("ca.crt"), files.path("ca.key"));
    let given = match (gantry_tls::read(&certificate)?, gantry_tls::read(&key)?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, Some(_)) => bail!(
            "{} is there and {} is not: put the authority's certificate beside its key, or remove the key",
            key.display(),
            certificate.display()
        ),
        _ => None,
    };
    let authorities = match &given {
        Some((given, given_key)) => Authorities::given(given, given_key).with_context(|| {
            format!(
                "using the authority of {} and {}: put a certificate and its key there, PEM, or remove both files for an \
                 authority of the cluster's own",
                certificate.display(),
                key.display()
            )
        })?,
        None => Authorities::found()?,
    };
    authorities.write(store, None).await?;
    if given.is_some() {
        // It is in the store now, encrypted.
        std::fs::remove_file(&key).with_context(|| format!("removing {}", key.display()))?;
    }
    Authorities::read(store)?.context("the authority is missing from the store")
}
