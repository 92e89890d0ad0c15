//! How a server starts: phases, each of which needs what the one before it has made.
//!
//! [`listen`], [`identify`], [`open`], [`assemble`]; then it serves and follows what the store says ([`Running`]), takes its
//! place among the servers, and leads when it is its turn.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use gantry_apiserver::{ApiServer, ApiServerConfig, Clock, Identity, Ranges, Tokens};
use gantry_authority::keys::{self, Keyring, KeysApi};
use gantry_authority::token_keys::{self, TokenKeysApi};
use gantry_authority::{Certificates, CertificatesApi, Files, Naming, Setup};
use gantry_base::status::StatusError;
use gantry_external::External;
use gantry_members::{
    Exchange, LeaderMetrics, LeaderStreams, LeaderUsage, PeerService, Peers, Roster, ServerRecord,
    follow_addresses,
};
use gantry_nodes::{ClusterFacts, DualCidr, Hub, LinkService, follow_keys};
use gantry_store::{Store, StoreConfig};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::backup::{BackupApi, ScheduledBackups};
use crate::config::ServerConfig;
use crate::external::{RegisteredSources, Served};
use crate::leader::{Lead, until};
use crate::measured::Measured;
use crate::membership::{MemberIdentity, MembersApi, join};
use crate::recover;
use crate::tasks::Tasks;

/// A server that cannot take its place for this long gives up.
const SETTLE: Duration = Duration::from_secs(60);
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// The port is this server's; nothing else has been touched.
pub(crate) struct Listening {
    listener: TcpListener,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
}

/// Takes the port.
pub(crate) async fn listen(config: &ServerConfig) -> Result<Listening> {
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
    Ok(Listening {
        listener,
        address: SocketAddr::new(config.address.into(), port),
    })
}

/// It is known which member of which cluster the server is, and the cluster's keys are there.
pub(crate) struct Identified {
    identity: MemberIdentity,
    keyring: Keyring,
}

/// Finds out who the server is; it joins a cluster or founds one at its first start.
pub(crate) async fn identify(config: &ServerConfig, address: SocketAddr) -> Result<Identified> {
    let identity = find_identity(config, address).await?;
    let keyring = if identity.founder && !identity.begun {
        Keyring::load_or_create(&config.data_dir)?
    } else {
        Keyring::load(&config.data_dir)?
    };
    Ok(Identified { identity, keyring })
}

/// The server's identity: the one it has, one in the cluster it joins, or the first of a new cluster.
async fn find_identity(config: &ServerConfig, own_address: SocketAddr) -> Result<MemberIdentity> {
    if let Some(identity) = MemberIdentity::load(&config.data_dir)? {
        return Ok(identity);
    }
    MemberIdentity::check_vacant(&config.data_dir, config.join.is_some())?;
    if let Some(cluster) = &config.join {
        let (server, token) = (cluster.server, &cluster.token);
        return join(&config.data_dir, server, token, &config.name, own_address).await;
    }
    let identity = MemberIdentity::founding(&config.name);
    identity.save(&config.data_dir)?;
    Ok(identity)
}

/// A member whose store is open, and which has certificates to show.
pub(crate) struct Member {
    identity: MemberIdentity,
    keyring: Keyring,
    peers: Peers,
    pub(crate) store: Store,
    pub(crate) roster: Roster,
    pub(crate) certificates: Certificates,
}

/// Opens the store, and the certificates on top of it.
pub(crate) async fn open(
    config: &ServerConfig,
    address: SocketAddr,
    identified: Identified,
) -> Result<Member> {
    let Identified {
        mut identity,
        keyring,
    } = identified;
    let files = Files::of(&config.data_dir);
    let client = watch::Sender::new(Arc::new(files.first_client()?));
    let peers = Peers::new(identity.id, address, client.subscribe());
    for (id, address) in identity.known_addresses() {
        peers.learn(id, address);
    }
    let store = Store::open(
        StoreConfig {
            data_dir: config.data_dir.join("store"),
            member_id: identity.id,
            voters: identity.voters(),
            begun: identity.begun,
            transformer: Some(Arc::new(keyring.clone())),
            ..StoreConfig::default()
        },
        Arc::new(peers.clone()),
    )
    .await
    .context("opening the store")?;
    if !identity.begun {
        identity.begun = true;
        identity.save(&config.data_dir)?;
    }
    peers.attach(store.clone());
    let setup = Setup {
        files,
        server: identity.name.clone(),
        id: identity.id,
        address: config.address.into(),
        naming: Naming {
            cluster_domain: config.cluster_domain.clone(),
            service_cidr: config.service_cidr.v4,
        },
        life: config.certificate_life,
        founds: identity.founder || identity.alone,
    };
    let certificates = Certificates::open(store.clone(), setup, client).await?;
    Ok(Member {
        identity,
        keyring,
        peers,
        roster: Roster::new(store.clone()),
        store,
        certificates,
    })
}

/// What the port will answer: the API, and beside it what servers, nodes and administrators ask of Gantry itself.
pub(crate) struct Assembled {
    api: ApiServer,
    hub: Arc<Hub>,
    measured: Measured,
    /// Where external metrics are registered.
    sources: Arc<RegisteredSources>,
    /// All that is no Kubernetes API.
    others: Router,
}

/// Puts the parts together, each with what it needs of the others.
pub(crate) fn assemble(
    config: &ServerConfig,
    address: SocketAddr,
    member: &Member,
) -> Result<Assembled> {
    let hub = Arc::new(Hub::default());
    let (store, roster) = (member.store.clone(), member.roster.clone());
    let sources = Arc::new(RegisteredSources::new(store, roster));
    let measured = Measured::new(Arc::default(), hub.clone(), External::new(sources.clone()));
    let api = api(config, address, member, hub.clone(), &measured);
    let dns = Ipv4Addr::from(u32::from(config.service_cidr.v4.network()) + 10);
    let link = LinkService::new(
        api.clone(),
        member.store.clone(),
        member.roster.clone(),
        hub.clone(),
        ClusterFacts {
            pod_cidr: config.pod_cidr,
            service_cidr: config.service_cidr,
            dns_service_ip: dns.to_string(),
            cluster_domain: config.cluster_domain.clone(),
        },
        measured.figures.clone(),
    )?;
    let servers = PeerService {
        store: member.store.clone(),
        peers: member.peers.clone(),
        streams: hub.clone(),
        figures: measured.figures.clone(),
        custom_metrics: measured.custom.clone(),
    };
    let others = servers
        .router()
        .merge(link.router())
        .merge(administration(member));
    Ok(Assembled {
        api,
        hub,
        measured,
        sources,
        others,
    })
}

/// The Kubernetes API over the member's store.
fn api(
    config: &ServerConfig,
    address: SocketAddr,
    member: &Member,
    hub: Arc<Hub>,
    measured: &Measured,
) -> ApiServer {
    let usage = LeaderUsage {
        own: measured.figures.clone(),
        store: member.store.clone(),
        peers: member.peers.clone(),
    };
    let custom_metrics = LeaderMetrics {
        own: measured.custom.clone(),
        store: member.store.clone(),
        peers: member.peers.clone(),
    };
    ApiServer::new(
        ApiServerConfig {
            ranges: Ranges {
                service_cidr: config.service_cidr.v4,
                service_cidr_v6: config.service_cidr.v6,
                ..Ranges::default()
            },
            tokens: administrators(&config.admin_tokens),
            advertise: address.to_string(),
            issuer: format!("https://kubernetes.default.svc.{}", config.cluster_domain),
            clock: Clock::system(),
            external_metrics: Some(Arc::new(Served(measured.external.clone()))),
            connections: config.connections,
            client_memory: config.client_memory,
            usage: Some(Arc::new(usage)),
            custom_metrics: Some(Arc::new(custom_metrics)),
        },
        member.store.clone(),
        Arc::new(LeaderStreams {
            own: hub,
            store: member.store.clone(),
            peers: member.peers.clone(),
        }),
    )
}

fn administrators(tokens: &[String]) -> Tokens {
    let groups = ["system:masters", "system:authenticated"];
    let administrator = Identity::new("kubernetes-admin", &groups);
    let tokens = tokens
        .iter()
        .map(|token| (token.clone(), administrator.clone()));
    Tokens::new(tokens.collect())
}

/// Gantry's own REST, below `/gantry/`.
fn administration(member: &Member) -> Router {
    let exchange = Exchange {
        store: member.store.clone(),
        peers: member.peers.clone(),
    };
    let members = MembersApi {
        store: member.store.clone(),
        exchange: exchange.clone(),
        roster: member.roster.clone(),
        certificates: member.certificates.clone(),
        keyring: member.keyring.clone(),
    };
    let certificates = CertificatesApi {
        certificates: member.certificates.clone(),
        exchange: exchange.clone(),
    };
    let keys = KeysApi {
        exchange: exchange.clone(),
        roster: member.roster.clone(),
        keyring: member.keyring.clone(),
    };
    let backups = BackupApi {
        store: member.store.clone(),
        server: member.identity.name.clone(),
    };
    members
        .router()
        .merge(certificates.router())
        .merge(keys.router())
        .merge(TokenKeysApi { exchange }.router())
        .merge(backups.router())
}

/// A member that answers and follows what the store says.
pub(crate) struct Running {
    pub(crate) member: Member,
    pub(crate) tasks: Tasks,
    api: ApiServer,
    hub: Arc<Hub>,
    measured: Measured,
    sources: Arc<RegisteredSources>,
}

impl Running {
    /// From now on the port is answered.
    pub(crate) fn begin(listening: Listening, member: Member, assembled: Assembled) -> Self {
        let Assembled {
            api,
            hub,
            measured,
            sources,
            others,
        } = assembled;
        let tasks = Tasks::default();
        tasks.run(|stop| {
            let (api, tls) = (api.clone(), member.certificates.tls());
            async move { api.serve(listening.listener, tls, Some(others), stop).await }
        });
        let running = Self {
            member,
            tasks,
            api,
            hub,
            measured,
            sources,
        };
        running.follow();
        running
    }

    /// What every server does about what the store says, whether it leads or not.
    fn follow(&self) {
        let (member, tasks) = (&self.member, &self.tasks);
        let id = member.identity.id;
        let (peers, roster) = (member.peers.clone(), member.roster.clone());
        let store = member.store.clone();
        tasks.keep_running("members", move |stop| {
            follow_addresses(peers.clone(), roster.clone(), store.clone(), stop)
        });
        let (store, hub) = (member.store.clone(), self.hub.clone());
        tasks.keep_running("node keys", move |stop| {
            follow_keys(store.clone(), hub.clone(), stop)
        });
        let sources = self.sources.clone();
        tasks.keep_running("external metrics", move |stop| {
            let sources = sources.clone();
            async move { sources.follow(stop).await }
        });
        let certificates = member.certificates.clone();
        tasks.keep_running("certificates", move |stop| certificates.clone().run(stop));
        let (store, keyring) = (member.store.clone(), member.keyring.clone());
        tasks.keep_running("keys", move |stop| {
            keys::follow(store.clone(), keyring.clone(), id, stop)
        });
        let store = member.store.clone();
        tasks.keep_running("token keys", move |stop| {
            token_keys::follow(store.clone(), id, stop)
        });
    }

    /// Takes its place among the servers: waits until there is a leader, says where this one is, and sees to it that what
    /// every cluster has is there.
    pub(crate) async fn settle(&self, config: &ServerConfig, address: SocketAddr) -> Result<()> {
        let member = &self.member;
        let identity = &member.identity;
        tracing::info!(
            id = identity.id,
            name = identity.name,
            "waiting for the servers to agree on a leader"
        );
        let mut leadership = member.store.leadership();
        let agreed = until(&mut leadership, |state| {
            state.leader.is_some() && (state.is_leader || state.leader != Some(identity.id))
        });
        if !agreed.await {
            bail!("the store stopped before it had a leader");
        }
        let record = ServerRecord::running(identity.id, identity.name.clone(), address);
        self.announce(&record, config.service_cidr).await?;
        recover::forget_others(&config.data_dir, identity.clone(), &member.roster).await
    }

    /// The servers may be electing a leader meanwhile: then it is tried again.
    async fn announce(&self, record: &ServerRecord, services: DualCidr) -> Result<()> {
        let deadline = tokio::time::Instant::now() + SETTLE;
        loop {
            let attempt = async {
                self.member.roster.put(record).await?;
                self.member.certificates.catch_up().await?;
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

    /// From now on the server leads when it is its turn, and makes backups by their schedule.
    pub(crate) fn take_part(&self, config: &ServerConfig) {
        let member = &self.member;
        let lead = Arc::new(Lead {
            store: member.store.clone(),
            api: self.api.clone(),
            hub: self.hub.clone(),
            measured: self.measured.clone(),
            roster: member.roster.clone(),
            trusted: member.certificates.trusted(),
            node_grace: config.node_grace,
        });
        self.tasks.keep_running("leader", move |stop| {
            let lead = lead.clone();
            async move { lead.run(stop).await }
        });
        let scheduled = Arc::new(ScheduledBackups {
            store: member.store.clone(),
            server: member.identity.name.clone(),
            directory: config.data_dir.join("backups"),
            schedule: config.backups,
        });
        self.tasks.keep_running("backups", move |stop| {
            let scheduled = scheduled.clone();
            async move { scheduled.run(&stop).await }
        });
    }
}

/// Whether the cluster was made with other addresses of services.
fn is_another_range(error: &anyhow::Error) -> bool {
    let refused: Option<&StatusError> = error.downcast_ref();
    refused.is_some_and(|refused| refused.code() == StatusCode::UNPROCESSABLE_ENTITY)
}
