//! `gantry image import|pull|ls|rm`: the images of this machine's nodes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gantry_rpc::image::image_service_client::ImageServiceClient;
use gantry_rpc::image::{
    Image, ImportRequest, ListRequest, Progress, PullRequest, RemoveRequest, progress,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::output;

/// Import, pull, list or remove images of this machine's nodes
#[derive(Debug, clap::Args)]
pub(crate) struct ImageCommand {
    /// The cluster's data directory
    #[arg(long, default_value = crate::cluster::DATA_DIR, env = "GANTRY_DATA_DIR", global = true, value_parser = crate::cluster::data_dir())]
    data_dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Import the images of an OCI-layout or docker-archive tarball
    Import {
        /// The tarball; gzip and zstd are fine
        archive: PathBuf,
    },
    /// Fetch an image from its registry
    Pull {
        /// e.g. nginx:1.29 or registry.example/team/app:v1
        reference: String,
        /// User name for the registry
        #[arg(long, default_value = "")]
        username: String,
        /// Password for the registry
        #[arg(
            long,
            default_value = "",
            env = "GANTRY_REGISTRY_PASSWORD",
            hide_env_values = true
        )]
        password: String,
    },
    /// List images
    Ls,
    /// Remove an image
    Rm {
        /// Tag, digest or id
        reference: String,
    },
}

impl ImageCommand {
    /// On every node of the cluster that is on this machine.
    pub(crate) async fn run(&self) -> Result<()> {
        for (node, directory) in crate::cluster::nodes(&self.data_dir)? {
            let client = self.connect(&directory).await?;
            let done = self.run_on(client, node.as_deref()).await;
            match &node {
                Some(node) => done.with_context(|| format!("on {node}"))?,
                None => done?,
            }
        }
        Ok(())
    }

    async fn run_on(
        &self,
        mut client: ImageServiceClient<Channel>,
        node: Option<&str>,
    ) -> Result<()> {
        let on = node.map(|node| format!("{node}: ")).unwrap_or_default();
        match &self.action {
            Action::Import { archive } => {
                let path = archive
                    .canonicalize()
                    .with_context(|| format!("finding {}", archive.display()))?;
                let request = ImportRequest {
                    path: path.display().to_string(),
                };
                let stream = client.import(request).await.map_err(refused)?.into_inner();
                report(follow(stream).await?, &format!("{on}imported"))
            }
            Action::Pull {
                reference,
                username,
                password,
            } => {
                let request = PullRequest {
                    reference: reference.clone(),
                    username: username.clone(),
                    password: password.clone(),
                };
                let stream = client.pull(request).await.map_err(refused)?.into_inner();
                report(follow(stream).await?, &format!("{on}pulled"))
            }
            Action::Ls => {
                let images = client
                    .list(ListRequest {})
                    .await
                    .map_err(refused)?
                    .into_inner()
                    .images;
                if let Some(node) = node {
                    output::print(&format!("{node}\n"))?;
                }
                output::print(&table(&images))
            }
            Action::Rm { reference } => {
                let request = RemoveRequest {
                    reference: reference.clone(),
                };
                client.remove(request).await.map_err(refused)?;
                output::print(&format!("{on}{reference} removed\n"))
            }
        }
    }

    async fn connect(&self, directory: &Path) -> Result<ImageServiceClient<Channel>> {
        let socket = crate::cluster::agent_config(directory).image_socket();
        connect(&socket).await.with_context(|| {
            format!(
                "no agent answers on {}: is a cluster running from {}? ('gantry up'; root is needed)",
                socket.display(),
                self.data_dir.display()
            )
        })
    }
}

async fn connect(socket: &Path) -> Result<ImageServiceClient<Channel>> {
    let channel = Endpoint::try_from(format!("unix:{}", socket.display()))?
        .connect()
        .await?;
    Ok(ImageServiceClient::new(channel))
}

fn refused(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Shows a bar per layer until the images are there.
async fn follow(mut stream: Streaming<Progress>) -> Result<Vec<Image>> {
    let bars = MultiProgress::new();
    let style = ProgressStyle::with_template("{prefix:.dim} {bar:30} {bytes}/{total_bytes} {msg}")?;
    let mut layers: BTreeMap<String, ProgressBar> = BTreeMap::new();
    while let Some(progress) = stream.message().await.map_err(refused)? {
        match progress.event {
            Some(progress::Event::Layer(layer)) => {
                let bar = bars
                    .add(ProgressBar::new(layer.total))
                    .with_style(style.clone());
                bar.set_prefix(
                    layer
                        .digest
                        .trim_start_matches("sha256:")
                        .chars()
                        .take(12)
                        .collect::<String>(),
                );
                layers.insert(layer.digest, bar);
            }
            Some(progress::Event::Bytes(bytes)) => {
                if let Some(bar) = layers.get(&bytes.digest) {
                    bar.set_position(bytes.done);
                }
            }
            Some(progress::Event::Unpacked(unpacked)) => {
                if let Some(bar) = layers.get(&unpacked.digest) {
                    bar.finish_with_message("unpacked");
                }
            }
            Some(progress::Event::Done(done)) => {
                bars.clear()?;
                return Ok(done.images);
            }
            None => {}
        }
    }
    bail!("the agent ended before the image was complete")
}

fn report(images: Vec<Image>, what: &str) -> Result<()> {
    for image in images {
        let name = image
            .tags
            .first()
            .or(image.digests.first())
            .unwrap_or(&image.id);
        output::print(&format!("{what} {name}\n"))?;
    }
    Ok(())
}

fn table(images: &[Image]) -> String {
    let mut lines = vec![["IMAGE", "ID", "SIZE"].map(str::to_owned).to_vec()];
    for image in images {
        let id: String = image
            .id
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        let names = if image.tags.is_empty() {
            &image.digests
        } else {
            &image.tags
        };
        for name in names {
            let size = format!("{:.1} MB", image.size as f64 / 1e6);
            lines.push(vec![name.clone(), id.clone(), size]);
        }
    }
    output::align(&lines)
}
