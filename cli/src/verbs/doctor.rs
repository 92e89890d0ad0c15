//! `gantry doctor`: what is wrong with this machine and with the cluster, and what to do about it.
//!
//! Checks answer [`Finding`]s; only this file prints. `machine` looks at the machine it runs on, `ports` at who listens
//! there, `cluster` asks the API, `nodes` and `certificates` read what it answers.

mod certificates;
mod cluster;
mod finding;
mod machine;
mod nodes;
mod ports;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::client::Credentials;
use crate::cluster::{DATA_DIR, data_dir};
use crate::output;

use finding::Report;

/// Check this machine and the cluster, and say what is wrong and how to fix it
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Directory of this machine's state; the disk it is on, or will be on, is looked at
    #[arg(long, default_value = DATA_DIR, env = "GANTRY_DATA_DIR", value_parser = data_dir())]
    data_dir: PathBuf,
    /// The address other machines reach this one at; that of the default route when not given
    #[arg(long)]
    address: Option<std::net::Ipv4Addr>,
    /// Addresses of pods, of all nodes
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: ipnet::Ipv4Net,
    /// Addresses of services; those of the cluster when it answers
    #[arg(long)]
    service_cidr: Option<ipnet::Ipv4Net>,
    /// Output format: json
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

impl Doctor {
    /// Answers with failure when a check has failed; warnings are none.
    pub(crate) async fn run(&self, credentials: &Credentials) -> Result<ExitCode> {
        let told = cluster::check(credentials).await;
        let machine = machine::Machine {
            data_dir: &self.data_dir,
            cluster_dir: credentials.directory(),
            node_pods: told.pods,
            address: self.address,
            pod_cidr: self.pod_cidr,
            service_cidr: self
                .service_cidr
                .or(told.services)
                .unwrap_or(machine::SERVICES),
        };
        let report = Report {
            machine: machine.check().await,
            cluster: told.findings,
        };
        match self.output.as_deref() {
            Some(_) => output::print(&report.json()?)?,
            None => output::print(&report.text())?,
        }
        Ok(match report.has_failed() {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }
}
