//! `gantry exec`, with a terminal when asked for.

use std::process::ExitCode;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::session::Place;
use crate::client::{ApiError, Cluster};

/// Run a command in a container
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    place: Place,
    /// The command and its arguments, after --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<ExitCode> {
        let pod = self.place.pod(cluster).await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let parameters = self.place.parameters();
        let process = pods.exec(&pod, self.command.clone(), &parameters).await;
        self.place.join(process.map_err(ApiError::from)?).await
    }
}
