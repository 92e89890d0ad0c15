//! `gantry attach`: to what a container runs already.

use std::process::ExitCode;

use anyhow::Result;

use super::session::Place;
use crate::client::{Cluster, Process};

/// Attach to the process that a container runs; -i and -t where the container has them
#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    place: Place,
}

impl Attach {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<ExitCode> {
        let pod = self.place.pod(cluster).await?;
        let place = (cluster.namespace.as_str(), pod.as_str());
        let wanted = self.place.wanted(cluster, &pod).await;
        let process = Process::attach(cluster, place, &wanted).await?;
        self.place.join(process).await
    }
}
