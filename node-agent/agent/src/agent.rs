//! The composition root: the one place that chooses implementations of the runtime, images, network and DNS.
//!
//! An agent starts in phases; what one has made is what the next ones are given:
//!
//! ```text
//! open      sockets, directories, the node's identity, stores, and what an earlier agent knew   Composition, Credentials
//! network   as soon as the cluster's facts are known: from the checkpoint, or from a server     Network
//! link      the node is described, and servers are dialled                                      Linked
//! pods      policies are enforced, and pods have their workers
//! programs  services, the ways to other nodes, and the watch over all of it
//! upkeep    the node's status, checkpoints, images, the disk
//! ```

mod network;
mod stores;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gantry_image::ImageStore;
use gantry_network::{GatewayEcho, Holding, HostListeners, PodNetwork as _, VxlanOverlay};
use gantry_pods::eviction::{self, Evictor};
use gantry_pods::image_gc::{ImageCollector, UnusedImages};
use gantry_pods::tokens::Tokens;
use gantry_pods::{Node, PodUpdate, PodWorkers};
use gantry_rpc::node::Welcome;
use gantry_runtime::ShimRuntime;
use gantry_tasks::Panicked;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoint;
use crate::clock::{CLOCK_SYNCHRONIZED, Clock};
use crate::config::AgentConfig;
use crate::directories;
use crate::drain::Drain;
use crate::identity::Credentials;
use crate::image_service;
use crate::link::Link;
use crate::local_api;
use crate::metrics;
use crate::network_watch::NetworkWatch;
use crate::node::Machine;
use crate::node_status::NodeStatus;
use crate::pages::Pages;
use crate::peers;
use crate::proxier::Proxier;
use crate::reachability::{PEERS_REACHABLE, Reachability};
use crate::scraping;
use crate::streams::Streams;
use crate::token_issuer::LinkIssuer;
use crate::usage;
use crate::wakes;
use network::Network;
use stores::{State, Stores};

/// The node agent.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Runs until stopped; containers go on running after that, and a later agent takes them over.
    pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<()> {
        let (mut agent, credentials) = Composition::open(config, stop).await?;
        // What a node knows of its cluster it sets up before it says anything: it is Ready at once then, and `gantry up`
        // takes the image socket for a sign that it is.
        let early = match &agent.state.facts {
            Some(facts) => Some(Network::set_up(&agent.config, facts).await?),
            None => None,
        };
        agent.serve_images()?;
        if early.is_some() {
            agent.node_status.network_is_ready();
        }
        let mut linked = agent.link(credentials).await;
        let Some(facts) = agent.facts(&mut linked).await? else {
            return Ok(());
        };
        let network = match early {
            Some(network) => network,
            None => Network::set_up(&agent.config, &facts).await?,
        };
        agent.node_status.network_is_ready();
        let Linked {
            token_issuer,
            news,
            evictions,
            ..
        } = linked;
        let node = agent.node(&network, &facts, token_issuer);
        agent.run_pods(&network, node, news).await?;
        agent.run_programs(network, &facts);
        agent.run_upkeep(evictions);
        tracing::info!(node = agent.config.node_name, "the agent runs");
        agent.until_stopped().await
    }
}

/// An agent under way: what all phases work with.
struct Composition {
    config: AgentConfig,
    stop: CancellationToken,
    machine: Machine,
    stores: Stores,
    state: State,
    node_status: Arc<NodeStatus>,
    pages: Arc<Pages>,
    /// Everything that runs; it ends with this.
    tasks: JoinSet<()>,
}

/// Servers are dialled, and what they say is taken in.
struct Linked {
    /// The cluster's facts, once they are known.
    welcomed: watch::Receiver<Option<Welcome>>,
    token_issuer: Arc<LinkIssuer>,
    /// What pods' workers are to be told.
    news: mpsc::UnboundedReceiver<PodUpdate>,
    /// Leads there too.
    evictions: mpsc::UnboundedSender<PodUpdate>,
}

/// Takes the port of an address, where there is one.
async fn bind<F: Future<Output = Result<TcpListener>>>(
    address: Option<SocketAddr>,
    bind: impl FnOnce(SocketAddr) -> F,
) -> Result<Option<TcpListener>> {
    match address {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

impl Composition {
    /// Takes the ports first: who cannot have them begins nothing.
    async fn open(config: AgentConfig, stop: CancellationToken) -> Result<(Self, Credentials)> {
        ensure!(
            !config.servers.is_empty(),
            "no server to report to: name at least one"
        );
        let local_api = bind(config.local_api, local_api::bind).await?;
        let metrics = bind(config.metrics, metrics::bind).await?;
        directories::prepare(&config)?;
        let credentials = Credentials::new(&config.node_name, config.identity.clone())?;
        let machine = Machine::here(&config.data_dir);
        let stores = Stores::open(&config).await?;
        let state = State::restore(&config, &stores.checkpoint);
        let pages = Arc::new(Pages::new(
            &config.node_name,
            state.figures.clone(),
            state.desired.clone(),
        ));
        let mut tasks = JoinSet::new();
        if let Some(listener) = local_api {
            let servers = state.servers.clone();
            tasks.spawn(local_api::serve(listener, servers, stop.clone()));
        }
        if let Some(listener) = metrics {
            tasks.spawn(metrics::serve(listener, pages.clone(), stop.clone()));
        }
        let node_status = NodeStatus::new(
            config.clone(),
            machine,
            stores.images.clone(),
            state.reports.clone(),
        );
        let agent = Self {
            config,
            stop,
            machine,
            stores,
            state,
            node_status: Arc::new(node_status),
            pages,
            tasks,
        };
        Ok((agent, credentials))
    }

    fn serve_images(&mut self) -> Result<()> {
        let socket = self.config.image_socket();
        let listener = image_service::bind(&socket)
            .with_context(|| format!("binding the image socket {}", socket.display()))?;
        let (images, pulls) = (self.stores.images.clone(), self.stores.pulls.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            if let Err(error) = image_service::serve(listener, images, pulls, stop).await {
                tracing::error!(%error, "serving the image socket");
            }
        });
        Ok(())
    }

    /// Describes the node, and dials servers from here on.
    async fn link(&mut self, credentials: Credentials) -> Linked {
        self.node_status.refresh().await;
        let state = &self.state;
        let (news, news_receiver) = mpsc::unbounded_channel();
        let evictions = news.clone();
        let (welcome, welcomed) = watch::channel(state.facts.clone());
        let token_issuer = Arc::new(LinkIssuer::default());
        let link = Link {
            tokens: token_issuer.clone(),
            node_name: self.config.node_name.clone(),
            servers: state.servers.clone(),
            tls: credentials.tls(),
            desired: state.desired.clone(),
            policies: state.policies.clone(),
            reports: state.reports.clone(),
            figures: state.figures.subscribe(),
            scrapes: state.scrapes.clone(),
            streams: Arc::new(Streams::new(
                self.stores.runtime.clone(),
                state.desired.clone(),
                state.policies.clone(),
                self.config.addresses(),
                self.config.logs_dir(),
                self.pages.clone(),
            )),
            node: {
                let node_status = self.node_status.clone();
                Box::new(move || node_status.json())
            },
            news,
            services: state.services_changed.clone(),
            nodes: state.nodes_changed.clone(),
            changed: state.changed.clone(),
            welcome,
            clock: {
                let node_status = self.node_status.clone();
                Clock::system(move |condition| {
                    node_status.find(CLOCK_SYNCHRONIZED, Some(condition))
                })
            },
        };
        self.tasks.spawn(link.run(self.stop.clone()));
        let renewal = credentials.keep_current(state.servers.clone(), self.stop.clone());
        self.tasks.spawn(renewal);
        Linked {
            welcomed,
            token_issuer,
            news: news_receiver,
            evictions,
        }
    }

    /// Waits for the cluster's facts, and keeps them for the next start. None when the agent is stopped before.
    async fn facts(&mut self, linked: &mut Linked) -> Result<Option<Welcome>> {
        let facts = tokio::select! {
            panicked = first_panic(&mut self.tasks) => return Err(panicked.into()),
            facts = linked.welcomed.wait_for(Option::is_some) => facts.context("waiting for a server")?.clone().unwrap_or_default(),
            () = self.stop.cancelled() => return Ok(None),
        };
        let checkpoint = self.stores.checkpoint.clone();
        checkpoint
            .save_welcome(&facts)
            .context("writing the checkpoint of the cluster's facts")?;
        let later = linked.welcomed.clone();
        self.tasks.spawn(upkeep::keep_facts(checkpoint, later));
        Ok(Some(facts))
    }

    /// The node as its pods' workers see it.
    fn node(&self, network: &Network, facts: &Welcome, token_issuer: Arc<LinkIssuer>) -> Node {
        let (config, state) = (&self.config, &self.state);
        Node {
            runtime: self.stores.runtime.clone(),
            images: self.stores.images.clone(),
            pulls: self.stores.pulls.clone(),
            network: network.bridge.clone(),
            connections: state.connections.clone(),
            dns: network.dns.clone(),
            objects: state.desired.clone(),
            isolation: state.policies.clone(),
            reports: state.reports.clone(),
            drain: Arc::new(Drain {
                ready: state.desired.ready_endpoints().clone(),
                reports: state.reports.clone(),
            }),
            tokens: Arc::new(Tokens::new(token_issuer, config.token_refresh)),
            addresses: config.addresses(),
            pods_dir: config.pods_dir(),
            logs_dir: config.logs_dir(),
            seccomp_dir: config.data_dir.join("seccomp"),
            allocatable: self.node_status.allocatable(),
            allocations: Arc::default(),
            memory: i64::try_from(self.machine.memory_bytes).unwrap_or(i64::MAX),
            pids_limit: Some(config.pod_pids_limit),
            memory_policy: config.memory,
            sysctls: config.allowed_unsafe_sysctls.clone(),
            cluster_dns: network.dns_address,
            cluster_domain: facts.cluster_domain.clone(),
        }
    }

    /// Policies before pods: those that an earlier agent has attached are isolated from the first moment on.
    async fn run_pods(
        &mut self,
        network: &Network,
        node: Node,
        news: mpsc::UnboundedReceiver<PodUpdate>,
    ) -> Result<()> {
        let attached = network.bridge.attached().await;
        let attached = attached.context("listing the pods attached to the network")?;
        let attached = attached.into_iter().map(|(uid, at)| (uid, at.addresses()));
        let policies = self.state.policies.clone();
        let isolating = policies.run(network.policies.clone(), attached.collect());
        self.tasks.spawn(isolating);
        let manager = PodWorkers::new(Arc::new(node));
        self.tasks.spawn(manager.run(news, self.stop.clone()));
        let state = &self.state;
        let asked = scraping::Sources {
            desired: state.desired.clone(),
            network: network.bridge.clone(),
            addresses: self.config.addresses(),
            connections: state.connections.clone(),
        };
        self.tasks
            .spawn(scraping::follow(asked, state.scrapes.clone()));
        let holding = network.holding.clone();
        let read = usage::Sources {
            runtime: self.stores.runtime.clone(),
            network: network.bridge.clone(),
            connections: state.connections.clone(),
            holding: holding.map(|holding| holding as Arc<dyn Holding>),
        };
        self.tasks.spawn(usage::follow(read, state.figures.clone()));
        Ok(())
    }

    fn run_programs(&mut self, network: Network, facts: &Welcome) {
        let state = &self.state;
        let proxier = Proxier::new(
            &self.config.node_name,
            &facts.cluster_domain,
            state.desired.clone(),
            state.reports.clone(),
            Arc::new(network.rules),
            network.dns,
            Arc::new(HostListeners),
        );
        let flushed = watch::Sender::new(());
        let services = state.services_changed.clone();
        self.tasks.spawn(proxier.run(services, flushed.subscribe()));
        if let Some(holding) = network.holding {
            let reports = state.reports.clone();
            self.tasks.spawn(wakes::follow(holding, reports));
        }
        if let Some(overlay) = network.overlay.clone() {
            self.reach_peers(overlay, network.echo, flushed.subscribe());
        }
        self.tasks.spawn(network::reassert(
            network.bridge.clone(),
            network.policies,
            flushed.subscribe(),
        ));
        let watch = NetworkWatch {
            tables: network.tables,
            links: network.links,
            network: network.bridge,
            overlay: network.overlay,
            flushed,
            node_status: self.node_status.clone(),
            reports: self.state.reports.clone(),
        };
        self.tasks.spawn(watch.run());
    }

    /// Leads to the pods of other nodes, and finds out whether those answer.
    fn reach_peers(
        &mut self,
        overlay: Arc<VxlanOverlay>,
        echo: Arc<GatewayEcho>,
        flushed: watch::Receiver<()>,
    ) {
        self.tasks.spawn(metrics::follow_overlay(overlay.clone()));
        let (name, state) = (self.config.node_name.clone(), &self.state);
        let found = self.node_status.clone();
        let reachability = Reachability::new(
            &name,
            state.desired.clone(),
            overlay.clone(),
            overlay.port(),
            echo,
            move |condition| found.find(PEERS_REACHABLE, condition),
        );
        self.tasks.spawn(peers::keep(
            name,
            state.desired.clone(),
            state.reports.clone(),
            overlay,
            state.nodes_changed.clone(),
            flushed,
        ));
        self.tasks.spawn(reachability.watch());
    }

    fn run_upkeep(&mut self, evictions: mpsc::UnboundedSender<PodUpdate>) {
        let (config, stores, state) = (&self.config, &self.stores, &self.state);
        let (images, node_status) = (stores.images.clone(), self.node_status.clone());
        self.tasks.spawn(upkeep::keep_checkpoint(
            stores.checkpoint.clone(),
            state.desired.clone(),
            state.policies.clone(),
            state.changed.clone(),
        ));
        let reports = state.reports.clone();
        self.tasks
            .spawn(upkeep::watch_node(node_status.clone(), reports.clone()));
        let (unused, asked) = UnusedImages::new();
        let data_dir = config.data_dir.clone();
        let collector = ImageCollector::new(images.clone(), state.desired.clone(), data_dir);
        self.tasks
            .spawn(upkeep::collect_images(collector, asked, reports));
        self.tasks
            .spawn(upkeep::forget_pulls(stores.pulls.clone(), images.clone()));
        let directories = eviction::Directories {
            data: config.data_dir.clone(),
            pods: config.pods_dir(),
            logs: config.logs_dir(),
        };
        let evictor = Evictor::new(
            directories,
            state.desired.clone(),
            images,
            evictions,
            unused,
            Box::new(move || node_status.look_again()),
        );
        self.tasks.spawn(evictor.run());
    }

    async fn until_stopped(mut self) -> Result<()> {
        let ended = tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            panicked = first_panic(&mut self.tasks) => Err(panicked.into()),
        };
        self.tasks.shutdown().await;
        self.stores
            .checkpoint
            .save(&self.state.desired, &self.state.policies)
            .context("writing the checkpoint")?;
        ended
    }
}

/// Waits until a task of the agent panics; those that end by themselves are not missed.
async fn first_panic(tasks: &mut JoinSet<()>) -> Panicked {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                return Panicked::of(error.into_panic().as_ref());
            }
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Ends every pod of an agent that no longer runs, and removes its network, mounts and cgroups. Images stay.
pub async fn teardown(config: &AgentConfig) -> Result<()> {
    let mut first = Ok(());
    let mut keep = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    if !config.run_dir.is_dir() {
        // Nothing has run by it, and the runtime would stumble over what is there.
        keep(directories::remove_run_dir(&config.run_dir));
    }
    match ShimRuntime::new(stores::runtime_config(config)).context("looking for the agent's pods") {
        Ok(runtime) => {
            let (images, pods) = (stores::images_dir(config), config.pods_dir());
            let unmount = || ImageStore::remove_root_filesystems(&images);
            let ended = gantry_pods::remove_all(&runtime, unmount, &pods).await;
            let ended = ended.map_err(anyhow::Error::msg);
            keep(ended.context("ending the agent's pods"));
            let groups = runtime.teardown().await;
            keep(groups.context("removing the agent's cgroups"));
        }
        Err(error) => keep(Err(error)),
    }
    if let Some(facts) = Checkpoint::new(&config.data_dir, &config.run_dir).welcome() {
        keep(network::remove(config, &facts).await);
    }
    keep(directories::remove_run_dir(&config.run_dir));
    first
}
