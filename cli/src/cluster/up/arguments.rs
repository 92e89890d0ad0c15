//! What `gantry up` is told.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::cluster::memory::Memory;
use crate::cluster::place::Place;
use crate::cluster::{agent, server};

/// Start a cluster on this machine and wait until it is ready
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(in crate::cluster) place: Place,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Address and port the API listens on
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub(in crate::cluster) listen: SocketAddr,
    /// The node's name; this machine's host name when not given
    #[arg(long)]
    pub(in crate::cluster) node_name: Option<String>,
    /// The address other machines reach this one at; that of the default route when not given
    #[arg(long)]
    pub(in crate::cluster) address: Option<Ipv4Addr>,
    /// Its IPv6 address, in a dual-stack cluster
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cluster) address_v6: Option<Ipv6Addr>,
    /// Where clients on this machine reach the API, through whichever server lives; on loopback
    #[arg(long, value_name = "ADDRESS:PORT", default_value = agent::LOCAL_API)]
    pub(in crate::cluster) local_api: SocketAddr,
    /// Where Prometheus reads the node's metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = agent::METRICS)]
    pub(in crate::cluster) metrics: SocketAddr,
    /// Which nodes pods' packets are wrapped into VXLAN for
    #[arg(long, value_enum, default_value = "auto")]
    pub(in crate::cluster) overlay: agent::Overlay,
    /// Make this many hosts on this machine, each a node of the cluster
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::cluster) nodes: Option<u8>,
    /// On how many of the hosts a server runs: 1, 3 or 5
    #[arg(long, value_name = "NUMBER", requires = "nodes")]
    pub(in crate::cluster) servers: Option<u8>,
    /// Addresses of the hosts, a /24; one that is free when not given
    #[arg(long, value_name = "CIDR", requires = "nodes")]
    pub(in crate::cluster) host_cidr: Option<ipnet::Ipv4Net>,
    /// The network namespace to run in, as '--nodes' makes them
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) netns: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cluster) marks: agent::Marks,
    #[command(flatten)]
    pub(in crate::cluster) memory: Memory,
    #[command(flatten)]
    pub(crate) join: server::Join,
    #[command(flatten)]
    pub(in crate::cluster) options: server::Options,
}

impl Up {
    pub(in crate::cluster) fn admin_kubeconfig(&self) -> PathBuf {
        self.place.data_dir.join("admin.kubeconfig")
    }

    pub(in crate::cluster) fn data_dir(&self) -> &Path {
        &self.place.data_dir
    }
}
