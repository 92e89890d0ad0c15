//! `gantry exec`, with a terminal when asked for.

use std::process::ExitCode;

use anyhow::Result;

use super::session::Place;
use crate::client::{Cluster, Process};

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
        let command: Vec<&str> = self.command.iter().map(String::as_str).collect();
        let wanted = self.place.wanted(cluster, &pod).await;
        let place = (cluster.namespace.as_str(), pod.as_str());
        let process = Process::run(cluster, place, &command, &wanted).await?;
        self.place.join(process).await
    }
}
