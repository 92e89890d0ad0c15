//! [`Server`]: one member of the control plane.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use gantry_apiserver::pki::{Credential, Pki};
use gantry_apiserver::{
    ApiServer, ApiServerConfig, Clock, Identity, NodeStream, NodeStreams, Ranges, Tokens,
};
use gantry_controllers::ControllersConfig;
use gantry_rpc::node::OpenStream;
use gantry_rpc::node::node_link_server::NodeLinkServer;
use gantry_scheduler::SchedulerConfig;
use gantry_store::{Leadership, NoPeers, Store, StoreConfig};
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::node_link::{ClusterFacts, Hub, LinkService, Reports};
use crate::node_monitor;
use crate::pod_cidr::PodCidrs;

/// A node's block of the pod CIDR: 254 pods.
const NODE_PREFIX: u8 = 24;
/// The largest message on a node link: an object may be 3 MiB.
const LINK_MESSAGE: usize = 8 * 1024 * 1024;

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
    pub pod_cidr: Ipv4Net,
    /// ClusterIPs.
    pub service_cidr: Ipv4Net,
    /// The zone of services, `cluster.local`.
    pub cluster_domain: String,
    /// Bearer tokens of administrators, beside client certificates.
    pub admin_tokens: Vec<String>,
}

/// A running member.
pub struct Server {
    pki: Pki,
    store: Store,
    api: ApiServer,
    hub: Arc<Hub>,
    client: kube::Client,
    tasks: tokio_util::task::TaskTracker,
    stop: CancellationToken,
}

/// Streams to nodes go through their links.
struct LinkStreams(Arc<Hub>);

#[async_trait]
impl NodeStreams for LinkStreams {
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String> {
        let ends = self
            .0
            .open(node, request)
            .await
            .map_err(|error| error.to_string())?;
        Ok(NodeStream {
            to_node: ends.to_node,
            from_node: ends.from_node,
        })
    }
}

impl Server {
    /// Opens the store, listens, and creates what every cluster has. Returns when requests are answered.
    pub async fn start(config: ServerConfig) -> Result<Self> {
        let overlap = config.pod_cidr.contains(&config.service_cidr.network())
            || config.service_cidr.contains(&config.pod_cidr.network());
        if overlap {
            bail!(
                "the pod CIDR {} and the service CIDR {} overlap: choose others with --pod-cidr and --service-cidr",
                config.pod_cidr,
                config.service_cidr
            );
        }
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
        let pki = Pki::load_or_create(&config.data_dir.join("pki"))?;
        let store = Store::open(
            StoreConfig {
                data_dir: config.data_dir.join("store"),
                ..StoreConfig::default()
            },
            Arc::new(NoPeers),
        )
        .await
        .context("opening the store")?;
        let mut leadership = store.leadership();
        leadership
            .wait_for(|state| state.is_leader)
            .await
            .context("the store stopped before it had a leader")?;

        let hub = Arc::new(Hub::default());
        let ranges = Ranges {
            service_cidr: config.service_cidr,
            ..Ranges::default()
        };
        let tokens = config
            .admin_tokens
            .iter()
            .map(|token| {
                (
                    token.clone(),
                    Identity::new(
                        "kubernetes-admin",
                        &["system:masters", "system:authenticated"],
                    ),
                )
            })
            .collect();
        let api = ApiServer::new(
            ApiServerConfig {
                ranges,
                tokens: Tokens::new(tokens),
                advertise: format!("{}:{port}", config.address),
                clock: Clock::system(),
            },
            store.clone(),
            Arc::new(LinkStreams(hub.clone())),
        );
        api.bootstrap(IpAddr::V4(config.address), port)
            .await
            .context("creating the cluster's own objects")?;

        let client_of = |user: &str| {
            let service = api.local_service(Identity::new(user, &["system:authenticated"]));
            kube::Client::new(service, "default")
        };
        let client = client_of("system:node-link");
        let reports = Arc::new(Reports::new(
            client.clone(),
            PodCidrs::new(config.pod_cidr, NODE_PREFIX)?,
        ));
        let dns = Ipv4Addr::from(u32::from(config.service_cidr.network()) + 10);
        let link = LinkService {
            store: store.clone(),
            hub: hub.clone(),
            reports,
            facts: ClusterFacts {
                cluster_pod_cidr: config.pod_cidr.to_string(),
                service_cidr: config.service_cidr.to_string(),
                dns_service_ip: dns.to_string(),
                cluster_domain: config.cluster_domain.clone(),
            },
        };
        let link = NodeLinkServer::new(link)
            .max_decoding_message_size(LINK_MESSAGE)
            .max_encoding_message_size(LINK_MESSAGE);
        let grpc = tonic::service::Routes::new(link).into_axum_router();
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ]
        .iter()
        .map(|name| (*name).to_owned())
        .chain([format!("kubernetes.default.svc.{}", config.cluster_domain)])
        .collect::<Vec<_>>();
        let addresses = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(config.address),
            IpAddr::V4(api.first_service_address()),
        ];
        let tls = pki.server_config(&names, &addresses)?;
        let (tasks, stop) = (
            tokio_util::task::TaskTracker::new(),
            CancellationToken::new(),
        );
        tasks.spawn({
            let (api, stop) = (api.clone(), stop.clone());
            async move { api.serve(listener, tls, Some(grpc), stop).await }
        });
        let server = Self {
            hub,
            client,
            tasks,
            stop,
            store,
            pki,
            api,
        };
        let clients = [
            server.client_of("system:kube-scheduler"),
            server.client_of("system:kube-controller-manager"),
        ];
        server.tasks.spawn(lead(
            server.store.clone(),
            clients,
            server.hub.clone(),
            server.client.clone(),
            server.pki.ca_pem().to_owned(),
            server.stop.clone(),
        ));
        Ok(server)
    }

    fn client_of(&self, user: &str) -> kube::Client {
        let service = self
            .api
            .local_service(Identity::new(user, &["system:authenticated"]));
        kube::Client::new(service, "default")
    }

    /// The administrator's kubeconfig, in a file that only root can read.
    pub fn write_admin_kubeconfig(&self, path: &Path, server: SocketAddr) -> Result<()> {
        Ok(self
            .pki
            .write_admin_kubeconfig(path, &format!("https://{server}"))?)
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.pki.ca_pem()
    }

    /// A node's certificate: its name, and membership in `system:nodes`.
    pub fn node_credential(&self, node: &str) -> Result<Credential> {
        Ok(self
            .pki
            .issue_client(&format!("system:node:{node}"), &["system:nodes"])?)
    }

    /// A node's kubeconfig, in a file that only root can read.
    pub fn write_node_kubeconfig(&self, path: &Path, node: &str, server: SocketAddr) -> Result<()> {
        let user = format!("system:node:{node}");
        Ok(self.pki.write_kubeconfig(
            path,
            &format!("https://{server}"),
            &user,
            &["system:nodes"],
        )?)
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

/// Runs the leader's parts for as long as this member leads, again and again.
async fn lead(
    store: Store,
    [scheduler, controllers]: [kube::Client; 2],
    hub: Arc<Hub>,
    monitor: kube::Client,
    ca_pem: String,
    stop: CancellationToken,
) {
    let mut leadership = store.leadership();
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
        let parts = async {
            tokio::join!(
                gantry_scheduler::run(
                    scheduler.clone(),
                    SchedulerConfig::default(),
                    leading.clone()
                ),
                gantry_controllers::run(
                    controllers.clone(),
                    ControllersConfig::new(ca_pem.clone()),
                    leading.clone()
                ),
                node_monitor::run(monitor.clone(), hub.clone(), leading.clone()),
            )
        };
        tokio::pin!(parts);
        tokio::select! {
            _ = &mut parts => {}
            _ = until(&mut leadership, |state| !state.is_leader || state.term != term) => {
                leading.cancel();
                parts.await;
            }
        }
        if stop.is_cancelled() {
            return;
        }
    }
}

/// Waits for a state of leadership; false when the store has stopped.
async fn until(
    leadership: &mut watch::Receiver<Leadership>,
    wanted: impl FnMut(&Leadership) -> bool,
) -> bool {
    leadership.wait_for(wanted).await.is_ok()
}
