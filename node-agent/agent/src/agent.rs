//! The composition root: the one place that names implementations of the runtime, images, network and DNS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_dns::DnsServer;
use gantry_image::{ImageStore, ImageStoreConfig};
use gantry_network::{
    BridgeNetwork, GatewayEcho, HostListeners, Ipv6Network, LinkWatch, NftPolicyRules,
    NftServiceRules, NodeNetwork, OverlaySettings, PodNetwork as _, TableWatch, VxlanOverlay,
};
use gantry_pods::eviction::{self, Evictor};
use gantry_pods::image_gc::{ImageCollector, Squeeze};
use gantry_pods::pull_records::PullRecords;
use gantry_pods::resolv::HostResolver;
use gantry_pods::tokens::Tokens;
use gantry_pods::{Manager, Node, image_gc};
use gantry_rpc::node::Welcome;
use gantry_runtime::{ShimRuntime, ShimRuntimeConfig};
use gantry_tasks::Panicked;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoint;
use crate::clock::{CLOCK_SYNCHRONIZED, Clock};
use crate::config::AgentConfig;
use crate::desired::Desired;
use crate::directories;
use crate::drain::Drain;
use crate::identity::Credentials;
use crate::image_service;
use crate::link::Link;
use crate::local_api;
use crate::metrics;
use crate::network_watch::NetworkWatch;
use crate::node::Machine;
use crate::peers;
use crate::policies::Policies;
use crate::presence::{self, Presence};
use crate::program::Program;
use crate::reachability::{PEERS_REACHABLE, Reachability};
use crate::reports::{Reports, Severity};
use crate::servers::Servers;
use crate::streams::Streams;
use crate::token_issuer::LinkIssuer;

/// Between looks at the firewall rules, which other programs may have changed.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// Changes that come together are one checkpoint.
const CHECKPOINT_DELAY: Duration = Duration::from_secs(1);
const DNS_PORT: u16 = 53;

/// The node agent.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Runs until stopped; containers go on running after that, and a later agent takes them over.
    pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<()> {
        ensure!(
            !config.servers.is_empty(),
            "no server to report to: name at least one"
        );
        let local_api = match config.local_api {
            Some(address) => Some(local_api::bind(address).await?),
            None => None,
        };
        let metrics = match config.metrics {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        directories::prepare(&config)?;
        let credentials = Credentials::new(&config.node_name, config.identity.clone())?;
        let machine = Machine::here(&config.data_dir);
        let runtime = Arc::new(
            ShimRuntime::new(runtime_config(&config)).context("starting the container runtime")?,
        );
        let images: Arc<ImageStore> = Arc::new(open_images(&config).await?);
        let pulls = Arc::new(open_pulls(&config, &images).await?);
        let desired = Arc::new(Desired::default());
        let checkpoint = Checkpoint::new(&config.data_dir, &config.run_dir);
        let policies = Arc::new(Policies::default());
        checkpoint.load(&desired, &policies);
        let reports = Arc::new(Reports::new(&config.node_name));
        let (news, news_receiver) = mpsc::unbounded_channel();
        let evictions = news.clone();
        let (welcome, mut welcomed) = watch::channel(checkpoint.welcome());
        let (services_changed, changed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let nodes_changed = Arc::new(Notify::new());
        if desired.has_services() {
            services_changed.notify_one();
        }
        let mut tasks = JoinSet::new();
        let servers = Servers::new(config.servers.clone());
        if let Some(facts) = &*welcomed.borrow() {
            servers.learn(&facts.servers);
        }
        if let Some(listener) = local_api {
            tasks.spawn(local_api::serve(listener, servers.clone(), stop.clone()));
        }
        if let Some(listener) = metrics {
            tasks.spawn(metrics::serve(listener, stop.clone()));
        }

        // What a node knows of its cluster it sets up before it says anything: it is Ready at once then, and `gantry up`
        // takes the image socket for a sign that it is.
        let known = welcomed.borrow().clone();
        let early = match &known {
            Some(facts) => Some(Wiring::new(&config, facts).await?),
            None => None,
        };
        let socket = config.image_socket();
        let listener = image_service::bind(&socket)
            .with_context(|| format!("binding the image socket {}", socket.display()))?;
        let (served, who, stopped) = (images.clone(), pulls.clone(), stop.clone());
        tasks.spawn(async move {
            if let Err(error) = image_service::serve(listener, served, who, stopped).await {
                tracing::error!(%error, "serving the image socket");
            }
        });

        let presence = Arc::new(Presence::new(
            config.clone(),
            machine,
            images.clone(),
            reports.clone(),
        ));
        if early.is_some() {
            presence.network_is_ready();
        }
        presence.refresh().await;
        let token_issuer = Arc::new(LinkIssuer::default());
        let link = Link {
            tokens: token_issuer.clone(),
            node_name: config.node_name.clone(),
            servers: servers.clone(),
            tls: credentials.tls(),
            desired: desired.clone(),
            policies: policies.clone(),
            reports: reports.clone(),
            streams: Arc::new(Streams::new(
                runtime.clone(),
                desired.clone(),
                policies.clone(),
                config.addresses(),
                config.logs_dir(),
            )),
            node: {
                let presence = presence.clone();
                Box::new(move || presence.json())
            },
            news,
            services: services_changed.clone(),
            nodes: nodes_changed.clone(),
            changed: changed.clone(),
            welcome,
            clock: {
                let presence = presence.clone();
                Clock::system(move |condition| presence.find(CLOCK_SYNCHRONIZED, Some(condition)))
            },
        };
        tasks.spawn(link.run(stop.clone()));
        tasks.spawn(credentials.keep_current(servers, stop.clone()));

        let facts = tokio::select! {
            panicked = first_panic(&mut tasks) => return Err(panicked.into()),
            facts = welcomed.wait_for(Option::is_some) => facts.context("waiting for a server")?.clone().unwrap_or_default(),
            () = stop.cancelled() => return Ok(()),
        };
        checkpoint
            .save_welcome(&facts)
            .context("writing the checkpoint of the cluster's facts")?;
        tasks.spawn(keep_facts(checkpoint.clone(), welcomed));
        let wiring = match early {
            Some(wiring) => wiring,
            None => Wiring::new(&config, &facts).await?,
        };
        presence.network_is_ready();

        let attached = wiring.network.attached().await;
        let attached = attached.context("listing the pods attached to the network")?;
        let attached = attached.into_iter().map(|(uid, at)| (uid, at.addresses()));
        let run = policies.clone();
        tasks.spawn(run.run(wiring.policies.clone(), attached.collect()));

        let node = Arc::new(Node {
            runtime,
            images: images.clone(),
            pulls: pulls.clone(),
            network: wiring.network.clone(),
            dns: wiring.dns.clone(),
            objects: desired.clone(),
            isolation: policies.clone(),
            reports: reports.clone(),
            drain: Arc::new(Drain {
                routed: desired.routed().clone(),
                reports: reports.clone(),
            }),
            tokens: Arc::new(Tokens::new(token_issuer, config.token_refresh)),
            addresses: config.addresses(),
            pods_dir: config.pods_dir(),
            logs_dir: config.logs_dir(),
            seccomp_dir: config.data_dir.join("seccomp"),
            allocatable: presence.allocatable(),
            memory: i64::try_from(machine.memory_bytes).unwrap_or(i64::MAX),
            pids_limit: Some(config.pod_pids_limit),
            memory_policy: config.memory,
            sysctls: config.allowed_unsafe_sysctls.clone(),
            cluster_dns: wiring.dns_address,
            cluster_domain: facts.cluster_domain.clone(),
        });
        tasks.spawn(Manager::new(node).run(news_receiver, stop.clone()));
        let program = Program::new(
            &config.node_name,
            &facts.cluster_domain,
            desired.clone(),
            reports.clone(),
            Arc::new(wiring.rules),
            wiring.dns,
            Arc::new(HostListeners),
        );
        let flushed = watch::Sender::new(());
        tasks.spawn(program.run(services_changed, flushed.subscribe()));
        if let Some(overlay) = wiring.overlay.clone() {
            tasks.spawn(metrics::follow_overlay(overlay.clone()));
            let name = config.node_name.clone();
            let (desired, reports) = (desired.clone(), reports.clone());
            let found = presence.clone();
            let reachability = Reachability::new(
                &name,
                desired.clone(),
                overlay.clone(),
                overlay.port(),
                wiring.echo,
                move |condition| found.find(PEERS_REACHABLE, condition),
            );
            let flushed = flushed.subscribe();
            tasks.spawn(peers::keep(
                name,
                desired,
                reports,
                overlay,
                nodes_changed,
                flushed,
            ));
            tasks.spawn(reachability.watch());
        }
        tasks.spawn(keep_checkpoint(
            checkpoint.clone(),
            desired.clone(),
            policies.clone(),
            changed,
        ));
        tasks.spawn(reassert(
            wiring.network.clone(),
            wiring.policies,
            flushed.subscribe(),
        ));
        let watch = NetworkWatch {
            tables: wiring.tables,
            links: wiring.links,
            network: wiring.network,
            overlay: wiring.overlay,
            flushed,
            presence: presence.clone(),
            reports: reports.clone(),
        };
        tasks.spawn(watch.run());
        tasks.spawn(watch_node(presence.clone(), reports.clone()));
        let (squeeze, asked) = Squeeze::new();
        let collector =
            ImageCollector::new(images.clone(), desired.clone(), config.data_dir.clone());
        tasks.spawn(collect_images(collector, asked, reports));
        tasks.spawn(forget_pulls(pulls, images.clone()));
        let directories = eviction::Directories {
            data: config.data_dir.clone(),
            pods: config.pods_dir(),
            logs: config.logs_dir(),
        };
        let evictor = Evictor::new(
            directories,
            desired.clone(),
            images,
            evictions,
            squeeze,
            Box::new(move || presence.look_again()),
        );
        tasks.spawn(evictor.run());
        tracing::info!(node = config.node_name, "the agent runs");

        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            panicked = first_panic(&mut tasks) => Err(panicked.into()),
        };
        tasks.shutdown().await;
        checkpoint
            .save(&desired, &policies)
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

fn runtime_config(config: &AgentConfig) -> ShimRuntimeConfig {
    ShimRuntimeConfig {
        data_dir: config.data_dir.join("runtime"),
        run_dir: config.run_dir.join("pods"),
        cgroup_root: config.cgroup_root.clone(),
        shim_command: config.shim_command.clone(),
    }
}

fn images_dir(config: &AgentConfig) -> PathBuf {
    config.data_dir.join("images")
}

async fn open_images(config: &AgentConfig) -> Result<ImageStore> {
    let data_dir = images_dir(config);
    ImageStore::open(ImageStoreConfig { data_dir })
        .await
        .context("opening the image store")
}

async fn open_pulls(config: &AgentConfig, images: &ImageStore) -> Result<PullRecords> {
    let directory = config.data_dir.join("image-pulls");
    let records = PullRecords::open(&directory, config.pull_verification.clone());
    let records = records.context("opening the records of who may use which image")?;
    let settled = records.settle(images).await;
    settled.context("settling pulls that an earlier agent began")?;
    Ok(records)
}

/// Forgets who may use images that are gone.
async fn forget_pulls(pulls: Arc<PullRecords>, images: Arc<ImageStore>) {
    let mut ticks = every(image_gc::PERIOD);
    loop {
        ticks.tick().await;
        if let Err(error) = pulls.prune(&*images).await {
            tracing::warn!(
                error = gantry_cri::words(&error),
                "forgetting who may use images that are gone"
            );
        }
    }
}

/// The node's network, made from the cluster's facts.
struct Wiring {
    network: Arc<BridgeNetwork>,
    rules: NftServiceRules,
    /// None on a node that no other node can reach.
    overlay: Option<Arc<VxlanOverlay>>,
    echo: Arc<GatewayEcho>,
    policies: Arc<NftPolicyRules>,
    tables: TableWatch,
    links: LinkWatch,
    dns: Arc<DnsServer>,
    dns_address: Ipv4Addr,
}

/// A range that the server has told.
fn range<T>(what: &str, text: &str) -> Result<T>
where
    T: std::str::FromStr<Err = ipnet::AddrParseError>,
{
    text.parse()
        .with_context(|| format!("the server's {what} \"{text}\" is not an address range"))
}

fn node_network(config: &AgentConfig, facts: &Welcome) -> Result<NodeNetwork> {
    // A node of before the cluster got IPv6 has no block of it; one of a cluster that went back has nobody to talk to.
    let ranges = [&facts.pod_cidr_v6, &facts.cluster_pod_cidr_v6];
    let ipv6 = match ranges.iter().any(|range| range.is_empty()) {
        true => None,
        false => Some(Ipv6Network {
            pod_cidr: range("IPv6 pod CIDR of this node", &facts.pod_cidr_v6)?,
            cluster_pod_cidr: range("IPv6 pod CIDR of the cluster", &facts.cluster_pod_cidr_v6)?,
            service_cidr: Some(range("IPv6 service CIDR", &facts.service_cidr_v6)?),
        }),
    };
    Ok(NodeNetwork {
        prefix: config.network_prefix.clone(),
        pod_cidr: range("pod CIDR of this node", &facts.pod_cidr)?,
        cluster_pod_cidr: range("pod CIDR of the cluster", &facts.cluster_pod_cidr)?,
        service_cidr: range("service CIDR", &facts.service_cidr)?,
        data_dir: config.data_dir.join("network"),
        ipv6,
        overlay: (!config.node_address.is_loopback()).then(|| OverlaySettings {
            mode: config.overlay_mode,
            ..OverlaySettings::new(config.node_address.into())
        }),
    })
}

impl Wiring {
    async fn new(config: &AgentConfig, facts: &Welcome) -> Result<Self> {
        let node = node_network(config, facts)?;
        let dns_address: Ipv4Addr = facts.dns_service_ip.parse().with_context(|| {
            format!(
                "the server's DNS address \"{}\" is not IPv4",
                facts.dns_service_ip
            )
        })?;
        let network = {
            let node = node.clone();
            tokio::task::spawn_blocking(move || BridgeNetwork::new(node)).await?
        };
        let network = Arc::new(network.context("setting up the pod network")?);
        let rules = NftServiceRules::new(&node).context("setting up service rules")?;
        let policies =
            NftPolicyRules::with_dns(&node, dns_address).context("setting up network policies")?;
        let echo = Arc::new(GatewayEcho::new(&node));
        let tables = TableWatch::new(&node).context("looking at nftables tables")?;
        let links = LinkWatch::new().context("listening to changes of links")?;
        let overlay = match node.overlay {
            None => None,
            Some(_) => Some(VxlanOverlay::new(node).context("setting up the overlay")?),
        };
        network
            .bind_dns_address(dns_address)
            .await
            .context("giving the node the address of the cluster's DNS")?;
        let upstreams = HostResolver::read()
            .context("reading the node's resolver configuration")?
            .upstreams();
        let listen = [SocketAddr::from((dns_address, DNS_PORT))];
        let dns = DnsServer::start(&listen, &facts.cluster_domain, upstreams)
            .await
            .context("starting DNS")?;
        Ok(Self {
            network,
            rules,
            overlay: overlay.map(Arc::new),
            echo,
            policies: Arc::new(policies),
            tables,
            links,
            dns: Arc::new(dns),
            dns_address,
        })
    }
}

/// Puts back the rules that others flushed: at once when whole tables are gone, now and then for the rest.
async fn reassert(
    network: Arc<BridgeNetwork>,
    policies: Arc<NftPolicyRules>,
    mut flushed: watch::Receiver<()>,
) {
    let mut ticks = every(LOOK_AROUND);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = flushed.changed() => {}
        }
        if let Err(error) = network.reassert().await {
            tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after the pod network"
            );
        }
        if let Err(error) = policies.reassert().await {
            tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after network policies"
            );
        }
    }
}

/// Keeps what the server knows of the node's images and conditions up to date, and their heartbeat times recent.
async fn watch_node(presence: Arc<Presence>, reports: Arc<Reports>) {
    let mut ticks = every(presence::PERIOD);
    let mut told = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = presence.found() => {}
        }
        if presence.refresh().await || told.elapsed() >= presence::REPORT {
            reports.node_status(presence.status());
            told = Instant::now();
        }
    }
}

async fn collect_images(
    mut collector: ImageCollector,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    reports: Arc<Reports>,
) {
    let mut ticks = every(image_gc::PERIOD);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(done) = asked.recv() => {
                match collector.remove_unused().await {
                    Ok(collected) => tracing::info!(
                        freed = collected.freed,
                        images = ?collected.removed,
                        "unused images were removed from a disk that is nearly full"
                    ),
                    Err(error) => tracing::warn!(
                        error = gantry_cri::words(&error),
                        "removing unused images"
                    ),
                }
                // The one who asked may have gone.
                done.send(()).ok();
                continue;
            }
        }
        match collector.look().await {
            Ok(collected) if collected.wanted == 0 => {}
            Ok(collected) if collected.freed < collected.wanted => {
                let message = format!(
                    "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {} bytes eligible to free.",
                    collected.wanted, collected.freed
                );
                tracing::warn!(removed = ?collected.removed, "{message}");
                reports.node_event(Severity::Warning, "FreeDiskSpaceFailed", &message);
            }
            Ok(collected) => tracing::info!(
                freed = collected.freed,
                images = ?collected.removed,
                "unused images were removed"
            ),
            Err(error) => tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after the images"
            ),
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

async fn keep_checkpoint(
    checkpoint: Checkpoint,
    desired: Arc<Desired>,
    policies: Arc<Policies>,
    changed: Arc<Notify>,
) {
    loop {
        changed.notified().await;
        tokio::time::sleep(CHECKPOINT_DELAY).await;
        let (checkpoint, desired, policies) =
            (checkpoint.clone(), desired.clone(), policies.clone());
        let saved = tokio::task::spawn_blocking(move || checkpoint.save(&desired, &policies)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, "writing the checkpoint");
        }
    }
}

/// Remembers the cluster's facts, above all where its servers are, for the next start.
async fn keep_facts(checkpoint: Checkpoint, mut welcomed: watch::Receiver<Option<Welcome>>) {
    while welcomed.changed().await.is_ok() {
        let Some(facts) = welcomed.borrow_and_update().clone() else {
            continue;
        };
        let checkpoint = checkpoint.clone();
        let saved = tokio::task::spawn_blocking(move || checkpoint.save_welcome(&facts)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, "writing the checkpoint of the cluster's facts");
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
    match ShimRuntime::new(runtime_config(config)).context("looking for the agent's pods") {
        Ok(runtime) => {
            let (images, pods) = (images_dir(config), config.pods_dir());
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
        keep(remove_network(config, &facts).await);
    }
    keep(directories::remove_run_dir(&config.run_dir));
    first
}

async fn remove_network(config: &AgentConfig, facts: &Welcome) -> Result<()> {
    let node = node_network(config, facts)?;
    tokio::task::spawn_blocking(move || BridgeNetwork::teardown(&node))
        .await?
        .context("removing the pod network")
}
