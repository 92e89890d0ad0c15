//! [`Server`]: one member of the control plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gantry_api::status::StatusError;
use gantry_apiserver::{
    ApiServer, ApiServerConfig, Clock, ConnectionLimits, Identity, NODE_LINK, Ranges, Tokens,
};
use gantry_authority::keys::{self, Keyring, KeysApi};
use gantry_authority::token_keys::{self, TokenKeysApi};
use gantry_authority::{Certificates, CertificatesApi, Files, Naming, Setup};
use gantry_controllers::{ControllersConfig, Informers, TokenIssuer, TokenSecret};
use gantry_informer::{EventStyle, Recorder};
use gantry_members::{
    Exchange, LeaderStreams, PeerService, Peers, Roster, ServerRecord, follow_addresses,
    keep_endpoints,
};
use gantry_nodes::{ClusterFacts, DualCidr, Hub, LinkService, event_expiry, follow_keys, monitor};
use gantry_scheduler::SchedulerConfig;
use gantry_store::{Leadership, Store, StoreConfig, Term};
use gantry_tasks::supervised;
use gantry_tls::{Credential, Kubeconfig};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backup::{BackupApi, BackupSchedule, ScheduledBackups};
use crate::membership::{MembersApi, Seat, join};
use crate::{level, recover, room};

/// A server that cannot take its place for this long gives up.
const SETTLE: Duration = Duration::from_secs(60);
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// How a member of the control plane is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Everything it keeps.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The address other machines and pods reach it at.
    pub address: Ipv4Addr,
    /// Pods of all nodes.
    pub pod_cidr: DualCidr,
    /// ClusterIPs.
    pub service_cidr: DualCidr,
    /// The zone of services, `cluster.local`.
    pub cluster_domain: String,
    /// Bearer tokens of administrators, beside client certificates.
    pub admin_tokens: Vec<String>,
    /// The server's name among the servers.
    pub name: String,
    /// The cluster to join at the first start; a new one is founded otherwise.
    pub join: Option<JoinConfig>,
    /// The backups it makes by itself.
    pub backups: BackupSchedule,
    /// How long the certificates last that it issues.
    pub certificate_life: Duration,
    /// For how long a node may be silent before it is given up.
    pub node_grace: Duration,
    /// How many connections clients may have.
    pub connections: ConnectionLimits,
    /// Bytes that may wait for clients.
    pub client_memory: usize,
}

/// A cluster to join.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// Any of its servers.
    pub server: SocketAddr,
    /// From `gantry token create --for servers`.
    pub token: String,
}

/// A running member.
pub struct Server {
    certificates: Certificates,
    store: Store,
    api: ApiServer,
    hub: Arc<Hub>,
    roster: Roster,
    tasks: tokio_util::task::TaskTracker,
    stop: CancellationToken,
}

/// Whether the cluster was made with other addresses of services.
fn is_another_range(error: &anyhow::Error) -> bool {
    let refused: Option<&StatusError> = error.downcast_ref();
    refused.is_some_and(|refused| refused.code() == StatusCode::UNPROCESSABLE_ENTITY)
}

/// Refuses ranges that cannot be those of one cluster.
fn check_ranges(pods: DualCidr, services: DualCidr) -> Result<()> {
    if pods.overlaps(&services) {
        bail!(
            "the pod CIDR {pods} and the service CIDR {services} overlap: choose others with --pod-cidr and --service-cidr"
        );
    }
    match (pods.v6, services.v6) {
        (Some(pods), None) => bail!(
            "the pod CIDR has a range of IPv6 ({pods}) and the service CIDR none: give --service-cidr one, or --pod-cidr none"
        ),
        (None, Some(services)) => bail!(
            "the service CIDR has a range of IPv6 ({services}) and the pod CIDR none: give --pod-cidr one, or --service-cidr none"
        ),
        _ => Ok(()),
    }
}

impl Server {
    /// Opens the store, listens, and creates what every cluster has. Returns when requests are answered.
    pub async fn start(config: ServerConfig) -> Result<Self> {
        check_ranges(config.pod_cidr, config.service_cidr)?;
        // The port first: a second cluster on it must not touch anything.
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!(
                "listening on {}: choose another address with --listen",
                config.listen
            )
        })?;
        let port = listener
            .local_addr()
            .context("the listener's address")?
            .port();
        let own_address = SocketAddr::new(config.address.into(), port);
        let mut seat = take_seat(&config, own_address).await?;
        let keyring = if seat.founder && !seat.begun {
            Keyring::load_or_create(&config.data_dir)?
        } else {
            Keyring::load(&config.data_dir)?
        };
        let files = Files::of(&config.data_dir);
        let client = watch::Sender::new(Arc::new(files.first_client()?));
        let peers = Peers::new(seat.id, own_address, client.subscribe());
        for (id, address) in seat.known_addresses() {
            peers.learn(id, address);
        }
        let store = Store::open(
            StoreConfig {
                data_dir: config.data_dir.join("store"),
                member_id: seat.id,
                voters: seat.voters(),
                begun: seat.begun,
                veil: Some(Arc::new(keyring.clone())),
                ..StoreConfig::default()
            },
            Arc::new(peers.clone()),
        )
        .await
        .context("opening the store")?;
        if !seat.begun {
            seat.begun = true;
            seat.save(&config.data_dir)?;
        }
        peers.attach(store.clone());
        let setup = Setup {
            files,
            server: seat.name.clone(),
            id: seat.id,
            address: config.address.into(),
            naming: Naming {
                cluster_domain: config.cluster_domain.clone(),
                service_cidr: config.service_cidr.v4,
            },
            life: config.certificate_life,
            founds: seat.founder || seat.alone,
        };
        let certificates = Certificates::open(store.clone(), setup, client).await?;
        let roster = Roster::new(store.clone());

        let hub = Arc::new(Hub::default());
        let ranges = Ranges {
            service_cidr: config.service_cidr.v4,
            service_cidr_v6: config.service_cidr.v6,
            ..Ranges::default()
        };
        let api = ApiServer::new(
            ApiServerConfig {
                ranges,
                tokens: administrators(&config.admin_tokens),
                advertise: format!("{}:{port}", config.address),
                issuer: format!("https://kubernetes.default.svc.{}", config.cluster_domain),
                clock: Clock::system(),
                connections: config.connections,
                client_memory: config.client_memory,
            },
            store.clone(),
            Arc::new(LeaderStreams {
                own: hub.clone(),
                store: store.clone(),
                peers: peers.clone(),
            }),
        );

        let dns = Ipv4Addr::from(u32::from(config.service_cidr.v4.network()) + 10);
        let facts = ClusterFacts {
            pod_cidr: config.pod_cidr,
            service_cidr: config.service_cidr,
            dns_service_ip: dns.to_string(),
            cluster_domain: config.cluster_domain.clone(),
        };
        let link = LinkService::new(
            api.clone(),
            store.clone(),
            roster.clone(),
            hub.clone(),
            facts,
        )?;
        let service = PeerService {
            store: store.clone(),
            peers: peers.clone(),
            streams: hub.clone(),
        };
        let exchange = Exchange {
            store: store.clone(),
            peers: peers.clone(),
        };
        let keys_api = KeysApi {
            exchange: exchange.clone(),
            roster: roster.clone(),
            keyring: keyring.clone(),
        };
        let members = MembersApi {
            store: store.clone(),
            exchange: exchange.clone(),
            roster: roster.clone(),
            certificates: certificates.clone(),
            keyring: keyring.clone(),
        };
        let certificates_api = CertificatesApi {
            certificates: certificates.clone(),
            exchange: exchange.clone(),
        };
        let token_keys_api = TokenKeysApi {
            exchange: exchange.clone(),
        };
        let backups = BackupApi {
            store: store.clone(),
            server: seat.name.clone(),
        };
        let others = service
            .router()
            .merge(link.router())
            .merge(members.router())
            .merge(certificates_api.router())
            .merge(keys_api.router())
            .merge(token_keys_api.router())
            .merge(backups.router());
        let tls = certificates.tls();
        let (tasks, stop) = (
            tokio_util::task::TaskTracker::new(),
            CancellationToken::new(),
        );
        tasks.spawn({
            let (api, stop) = (api.clone(), stop.clone());
            async move { api.serve(listener, tls, Some(others), stop).await }
        });
        let server = Self {
            hub,
            tasks,
            stop,
            store,
            certificates,
            api,
            roster,
        };
        let (roster, store) = (server.roster.clone(), server.store.clone());
        server.keep_running("members", move |stop| {
            follow_addresses(peers.clone(), roster.clone(), store.clone(), stop)
        });
        let (store, hub) = (server.store.clone(), server.hub.clone());
        server.keep_running("node keys", move |stop| {
            follow_keys(store.clone(), hub.clone(), stop)
        });
        let certificates = server.certificates.clone();
        server.keep_running("certificates", move |stop| certificates.clone().run(stop));
        let (store, id) = (server.store.clone(), seat.id);
        server.keep_running("keys", move |stop| {
            keys::follow(store.clone(), keyring.clone(), id, stop)
        });
        let store = server.store.clone();
        server.keep_running("token keys", move |stop| {
            token_keys::follow(store.clone(), id, stop)
        });
        let mut leadership = server.store.leadership();
        tracing::info!(
            id = seat.id,
            name = seat.name,
            "waiting for the servers to agree on a leader"
        );
        if !until(&mut leadership, |state| {
            state.leader.is_some() && (state.is_leader || state.leader != Some(seat.id))
        })
        .await
        {
            bail!("the store stopped before it had a leader");
        }
        let announced = ServerRecord::running(seat.id, seat.name.clone(), own_address);
        server.settle(&announced, config.service_cidr).await?;
        recover::forget_others(&config.data_dir, seat, &server.roster).await?;
        let lead = Lead {
            store: server.store.clone(),
            api: server.api.clone(),
            hub: server.hub.clone(),
            roster: server.roster.clone(),
            trusted: server.certificates.trusted(),
            node_grace: config.node_grace,
        };
        let lead = Arc::new(lead);
        server.keep_running("leader", move |stop| {
            let lead = lead.clone();
            async move { lead.run(stop).await }
        });
        let scheduled = ScheduledBackups {
            store: server.store.clone(),
            server: announced.name,
            directory: config.data_dir.join("backups"),
            schedule: config.backups,
        };
        let scheduled = Arc::new(scheduled);
        server.keep_running("backups", move |stop| {
            let scheduled = scheduled.clone();
            async move { scheduled.run(&stop).await }
        });
        Ok(server)
    }

    /// Runs a task for as long as the server does, whatever happens to it.
    fn keep_running<F>(
        &self,
        name: &'static str,
        mut begin: impl FnMut(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            supervised(name, &stop, || begin(stop.clone())).await;
        });
    }

    /// Says where this server is, and sees to it that what every cluster has is there. The servers may be electing a
    /// leader meanwhile: then it is tried again.
    async fn settle(&self, record: &ServerRecord, services: DualCidr) -> Result<()> {
        let deadline = tokio::time::Instant::now() + SETTLE;
        loop {
            let attempt = async {
                self.roster.put(record).await?;
                self.certificates.catch_up().await?;
                let bootstrapped = self.api.bootstrap(record.address.port()).await;
                bootstrapped.context("creating the cluster's own objects")
            };
            match attempt.await {
                Ok(()) => return Ok(()),
                Err(error) if is_another_range(&error) => {
                    bail!(
                        "the cluster's services do not have their addresses from {services}: start this server with the \
                         --service-cidr of the others; all that may change is that a range of IPv6 is added"
                    )
                }
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(error) => tracing::info!(error = format!("{error:#}"), "settling in"),
            }
            tokio::time::sleep(SETTLE_AGAIN).await;
        }
    }

    /// Writes the administrator's kubeconfig into a file that only root can read, and keeps it current.
    pub fn keep_admin_kubeconfig(&self, path: &Path, server: SocketAddr) -> Result<()> {
        self.certificates
            .keep_kubeconfig(path, &format!("https://{server}"))
    }

    /// The certificates of the authorities, PEM.
    pub fn trusted(&self) -> String {
        self.certificates.trusted().borrow().clone()
    }

    /// A node's certificate: its name, and membership in `system:nodes`.
    pub async fn node_credential(&self, node: &str) -> Result<Credential> {
        self.certificates.node_credential(node).await
    }

    /// A node's kubeconfig, in a file that only root can read; the node keeps it current.
    pub async fn write_node_kubeconfig(
        &self,
        path: &Path,
        node: &str,
        server: SocketAddr,
    ) -> Result<()> {
        let credential = self.node_credential(node).await?;
        let (server, user) = (format!("https://{server}"), format!("system:node:{node}"));
        let kubeconfig = Kubeconfig {
            server: &server,
            others: &[],
            trusted: &self.trusted(),
            user: &user,
            credential: &credential,
        };
        Ok(gantry_tls::write(path, &kubeconfig.render(), 0o600)?)
    }

    /// Runs until told to stop, or until the store fails.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut leadership = self.store.leadership();
        let failed = async { while leadership.changed().await.is_ok() {} };
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = failed => Err(anyhow::anyhow!("the store stopped")),
        };
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.store.shutdown().await;
        result
    }
}

/// The server's seat: the one it has, one in the cluster it joins, or the first of a new cluster.
async fn take_seat(config: &ServerConfig, own_address: SocketAddr) -> Result<Seat> {
    if let Some(seat) = Seat::load(&config.data_dir)? {
        return Ok(seat);
    }
    Seat::check_vacant(&config.data_dir, config.join.is_some())?;
    if let Some(cluster) = &config.join {
        let (server, token) = (cluster.server, &cluster.token);
        return join(&config.data_dir, server, token, &config.name, own_address).await;
    }
    let seat = Seat::founding(&config.name);
    seat.save(&config.data_dir)?;
    Ok(seat)
}

fn administrators(tokens: &[String]) -> Tokens {
    let groups = ["system:masters", "system:authenticated"];
    let administrator = Identity::new("kubernetes-admin", &groups);
    let tokens = tokens
        .iter()
        .map(|token| (token.clone(), administrator.clone()));
    Tokens::new(tokens.collect())
}

/// The tokens that are kept in Secrets.
struct SecretTokens(ApiServer);

impl TokenIssuer for SecretTokens {
    fn issue(&self, secret: &TokenSecret<'_>) -> Option<String> {
        self.0.secret_token(
            secret.namespace,
            secret.name,
            secret.account,
            secret.account_uid,
        )
    }

    fn key(&self) -> Option<String> {
        self.0.token_key()
    }

    fn is_current(&self, token: &str) -> bool {
        self.0.is_current_token(token)
    }
}

/// The parts that run on the leader alone.
struct Lead {
    store: Store,
    api: ApiServer,
    hub: Arc<Hub>,
    roster: Roster,
    trusted: watch::Receiver<String>,
    node_grace: Duration,
}

impl Lead {
    /// Runs them for as long as this server leads, again and again.
    async fn run(&self, stop: CancellationToken) {
        let mut leadership = self.store.leadership();
        loop {
            let leading = tokio::select! {
                () = stop.cancelled() => return,
                leads = until(&mut leadership, |state| state.is_leader) => match leads {
                    true => stop.child_token(),
                    false => return,
                },
            };
            let term = leadership.borrow().term;
            tracing::info!(term = term.0, "leading: scheduler and controllers start");
            let parts = self.parts(term, leading.clone());
            tokio::pin!(parts);
            tokio::select! {
                () = &mut parts => {}
                _ = until(&mut leadership, |state| !state.is_leader || state.term != term) => {
                    tracing::info!(term = term.0, "no longer leading: scheduler and controllers stop");
                    leading.cancel();
                    parts.await;
                }
            }
            // Nodes look for the new leader.
            self.hub.disconnect_all();
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn parts(&self, term: Term, stop: CancellationToken) {
        // Whatever they still have under way when another server leads is refused.
        let api = self.api.fenced(term);
        let client = |identity| kube::Client::new(api.local_service(identity), "default");
        // What the scheduler does is what its role in every cluster allows; the others are many parts under one name.
        let scheduler = Identity::new("system:kube-scheduler", &["system:authenticated"]);
        let client_of = |user: &str| client(Identity::of_system(user));
        // What the scheduler and the controllers know of the cluster is one copy, which ends with them.
        let caches = stop.child_token();
        let _end_with_the_parts = caches.clone().drop_guard();
        let informers = Informers::new(client_of("system:kube-controller-manager"), &caches);
        // Each part begins anew by itself: none falls with another.
        tokio::join!(
            part("scheduler", &stop, |stop| gantry_scheduler::run(
                client(scheduler.clone()),
                informers.clone(),
                SchedulerConfig::default(),
                stop
            )),
            part("controllers", &stop, |stop| gantry_controllers::run(
                client_of("system:kube-controller-manager"),
                informers.clone(),
                ControllersConfig {
                    tokens: Some(Arc::new(SecretTokens(self.api.clone()))),
                    ..ControllersConfig::following(self.trusted.clone())
                },
                stop
            )),
            part("node monitor", &stop, |stop| monitor::run(
                client_of(NODE_LINK),
                self.hub.clone(),
                self.node_grace,
                stop
            )),
            part("feature level", &stop, |stop| level::run(
                self.store.clone(),
                self.roster.clone(),
                stop
            )),
            part("room", &stop, |stop| room::run(
                client_of(NODE_LINK),
                self.store.clone(),
                self.roster.clone(),
                stop
            )),
            part("events", &stop, |stop| event_expiry::run(
                client_of(NODE_LINK),
                self.store.clone(),
                stop
            )),
            part("endpoints", &stop, |stop| keep_endpoints(
                api.clone(),
                self.store.clone(),
                self.roster.clone(),
                stop
            )),
        );
    }
}

/// Runs a part of the leader until stopped. What it began besides ends with it, also when it begins anew.
async fn part<F: Future<Output = ()>>(
    name: &'static str,
    stop: &CancellationToken,
    begin: impl Fn(CancellationToken) -> F,
) {
    supervised(name, stop, || async {
        let own = stop.child_token();
        let _ends_with_it = own.clone().drop_guard();
        begin(own).await;
    })
    .await;
}

/// Waits for a state of leadership; false when the store has stopped.
async fn until(
    leadership: &mut watch::Receiver<Leadership>,
    wanted: impl FnMut(&Leadership) -> bool,
) -> bool {
    leadership.wait_for(wanted).await.is_ok()
}
