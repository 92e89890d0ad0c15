//! What the agent has on this machine, and what it knows before it has heard anything.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use gantry_cri::network::NodeConnections;
use gantry_image::{ImageStore, ImageStoreConfig};
use gantry_pods::pull_records::PullRecords;
use gantry_rpc::node::Welcome;
use gantry_runtime::{ShimRuntime, ShimRuntimeConfig};
use tokio::sync::Notify;

use crate::checkpoint::Checkpoint;
use crate::config::AgentConfig;
use crate::desired::Desired;
use crate::policies::Policies;
use crate::reports::Reports;
use crate::scraping::Scrapes;
use crate::servers::Servers;
use crate::usage::Figures;

/// What is kept on disks, opened.
pub(super) struct Stores {
    pub(super) runtime: Arc<ShimRuntime>,
    pub(super) images: Arc<ImageStore>,
    pub(super) pulls: Arc<PullRecords>,
    pub(super) checkpoint: Checkpoint,
}

impl Stores {
    /// Opens them; what an earlier agent has begun is settled.
    pub(super) async fn open(config: &AgentConfig) -> Result<Self> {
        let runtime =
            ShimRuntime::new(runtime_config(config)).context("starting the container runtime")?;
        let images = Arc::new(open_images(config).await?);
        let pulls = Arc::new(open_pulls(config, &images).await?);
        Ok(Self {
            runtime: Arc::new(runtime),
            images,
            pulls,
            checkpoint: Checkpoint::new(&config.data_dir, &config.run_dir),
        })
    }
}

/// What the agent knows and has to say, and who is woken by what changes.
pub(super) struct State {
    pub(super) desired: Arc<Desired>,
    pub(super) policies: Arc<Policies>,
    pub(super) reports: Arc<Reports>,
    /// What the node uses, as it was read last.
    pub(super) figures: Arc<Figures>,
    pub(super) scrapes: Arc<Scrapes>,
    /// The connections that the node makes to its pods of its own accord.
    pub(super) connections: Arc<NodeConnections>,
    pub(super) servers: Servers,
    /// The cluster's facts, where an earlier agent has heard them.
    pub(super) facts: Option<Welcome>,
    /// Services or EndpointSlices have changed.
    pub(super) services_changed: Arc<Notify>,
    pub(super) nodes_changed: Arc<Notify>,
    /// Anything worth a checkpoint has changed.
    pub(super) changed: Arc<Notify>,
}

impl State {
    /// As an earlier agent has left it; empty on a new node.
    pub(super) fn restore(config: &AgentConfig, checkpoint: &Checkpoint) -> Self {
        let state = Self {
            desired: Arc::default(),
            policies: Arc::default(),
            reports: Arc::new(Reports::new(&config.node_name)),
            figures: Arc::default(),
            scrapes: Arc::default(),
            connections: Arc::default(),
            servers: Servers::new(config.servers.clone()),
            facts: checkpoint.welcome(),
            services_changed: Arc::default(),
            nodes_changed: Arc::default(),
            changed: Arc::default(),
        };
        checkpoint.load(&state.desired, &state.policies);
        if state.desired.has_services() {
            state.services_changed.notify_one();
        }
        if let Some(facts) = &state.facts {
            state.servers.learn(&facts.servers);
        }
        state
    }
}

pub(super) fn runtime_config(config: &AgentConfig) -> ShimRuntimeConfig {
    ShimRuntimeConfig {
        data_dir: config.data_dir.join("runtime"),
        run_dir: config.run_dir.join("pods"),
        cgroup_root: config.cgroup_root.clone(),
        shim_command: config.shim_command.clone(),
    }
}

pub(super) fn images_dir(config: &AgentConfig) -> PathBuf {
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
