//! `gantry image import|pull|ls|rm`: the images of this machine's nodes.

mod spool;

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

use crate::failures::Failures;
use crate::output;
use spool::Spool;

/// What stands for standard input.
const STDIN: &str = "-";

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
    /// Import the images of OCI-layout or docker-archive tarballs
    Import {
        /// The tarballs, or - for standard input; gzip and zstd are fine
        #[arg(required = true)]
        archives: Vec<PathBuf>,
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
    /// Remove images
    Rm {
        /// Tags, digests or ids
        #[arg(required = true)]
        references: Vec<String>,
    },
}

impl ImageCommand {
    /// On every node of the cluster that is on this machine.
    pub(crate) async fn run(&self) -> Result<()> {
        let mut failures = Failures::default();
        let spool = self.spool().await?;
        for (node, directory) in crate::cluster::nodes(&self.data_dir)? {
            let before = |error: anyhow::Error| match &node {
                Some(node) => error.context(format!("on {node}")),
                None => error,
            };
            let Some(client) = failures.keep(self.connect(&directory).await.map_err(before)) else {
                continue;
            };
            let mut failed = Failures::default();
            let done = self.run_on(client, node.as_deref(), spool.as_ref(), &mut failed);
            let done = done.await;
            failed.keep(done);
            failures.keep(failed.finish().map_err(before));
        }
        failures.finish()
    }

    /// What comes by standard input, which several nodes cannot read: kept until they have.
    async fn spool(&self) -> Result<Option<Spool>> {
        let Action::Import { archives } = &self.action else {
            return Ok(None);
        };
        match archives
            .iter()
            .filter(|path| **path == Path::new(STDIN))
            .count()
        {
            0 => Ok(None),
            1 => {
                let directory = self.data_dir.clone();
                let read = tokio::task::spawn_blocking(move || Spool::read_stdin(&directory));
                read.await?.map(Some)
            }
            _ => bail!("- is standard input, which can be read once"),
        }
    }

    async fn run_on(
        &self,
        mut client: ImageServiceClient<Channel>,
        node: Option<&str>,
        spool: Option<&Spool>,
        failures: &mut Failures,
    ) -> Result<()> {
        let on = node.map(|node| format!("{node}: ")).unwrap_or_default();
        match &self.action {
            Action::Import { archives } => {
                for archive in archives {
                    let imported = import(&mut client, archive, spool).await;
                    if let Some(images) = failures.keep(imported) {
                        report(images, &format!("{on}imported"))?;
                    }
                }
                Ok(())
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
                follow(stream).await?;
                // Whatever else the image is called here.
                let name = gantry_image::normalise(reference).unwrap_or_else(|_| reference.clone());
                output::print(&format!("{on}pulled {name}\n"))
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
            Action::Rm { references } => {
                for reference in references {
                    let request = RemoveRequest {
                        reference: reference.clone(),
                    };
                    let removed = client.remove(request).await.map_err(refused);
                    if failures.keep(removed).is_some() {
                        output::print(&format!("{on}{reference} removed\n"))?;
                    }
                }
                Ok(())
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

async fn follow(stream: Streaming<Progress>) -> Result<Vec<Image>> {
    follow_with(stream, refused).await
}

/// Shows a bar per layer until the images are there.
async fn follow_with(
    mut stream: Streaming<Progress>,
    refused: impl Fn(Status) -> anyhow::Error,
) -> Result<Vec<Image>> {
    let bars = MultiProgress::new();
    let style = ProgressStyle::with_template("{prefix:.dim} {bar:30} {bytes}/{total_bytes} {msg}")?;
    let mut layers: BTreeMap<String, ProgressBar> = BTreeMap::new();
    while let Some(progress) = stream.message().await.map_err(&refused)? {
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

/// Imports an archive; answers its images, with the tags that it gives them.
async fn import(
    client: &mut ImageServiceClient<Channel>,
    archive: &Path,
    spool: Option<&Spool>,
) -> Result<Vec<Image>> {
    let spool = spool.filter(|_| archive == Path::new(STDIN));
    let path = match spool {
        Some(spool) => spool.path(),
        None => archive
            .canonicalize()
            .with_context(|| format!("finding {}", archive.display()))?,
    };
    let path = path
        .to_str()
        .with_context(|| format!("{} is not plain text", path.display()))?;
    // What the agent calls it means nothing to whoever has piped it in.
    let refused = |status: Status| match spool {
        Some(_) => anyhow::anyhow!("{}", status.message().replace(path, "standard input")),
        None => refused(status),
    };
    let request = ImportRequest {
        path: path.to_owned(),
    };
    let stream = client.import(request).await.map_err(refused)?.into_inner();
    follow_with(stream, refused).await
}

/// A line for each name.
fn report(images: Vec<Image>, what: &str) -> Result<()> {
    for image in images {
        let nameless = [format!("{} (the archive gives it no name)", image.id)];
        let names = match (image.tags.as_slice(), image.digests.as_slice()) {
            ([], []) => nameless.as_slice(),
            ([], digests) => digests,
            (tags, _) => tags,
        };
        for name in names {
            output::print(&format!("{what} {name}\n"))?;
        }
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
