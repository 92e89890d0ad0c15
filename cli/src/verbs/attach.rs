//! `gantry attach`: to what a container runs already.

use std::process::ExitCode;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::session::Place;
use crate::client::{ApiError, Cluster};

/// Attach to the process that a container runs; -i and -t where the container has them
#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    place: Place,
}

impl Attach {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<ExitCode> {
        let pod = self.place.pod(cluster).await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let process = pods.attach(&pod, &self.place.parameters()).await;
        self.place.join(process.map_err(ApiError::from)?).await
    }
}
