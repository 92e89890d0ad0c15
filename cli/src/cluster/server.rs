//! `gantry server`: the control plane alone; and what `up` needs of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_server::backup::BackupSchedule;
use gantry_server::{ConnectionLimits, DualCidr, JoinConfig, Server, ServerConfig};
use tokio_util::sync::CancellationToken;

use super::daemon;
use super::join_token::JoinToken;
use super::machine::{default_address, default_node_name, terminated};
use super::place::Place;
use crate::{duration, output, process};

/// Address ranges; they cannot change once a cluster exists.
#[derive(Clone, Debug, clap::Args)]
struct Networks {
    /// Addresses of pods, of all nodes; with a range of IPv6 beside it (10.244.0.0/16,fd10:244::/48), dual-stack
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "10.244.0.0/16")]
    pod_cidr: DualCidr,
    /// Addresses of services; with a range of IPv6 beside it (10.96.0.0/12,fd10:96::/112), dual-stack
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "10.96.0.0/12")]
    service_cidr: DualCidr,
    /// The zone of services
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
}

/// The backups that a server makes by itself.
#[derive(Clone, Debug, clap::Args)]
struct Backups {
    /// Time between the backups that the server writes into its data directory; 0 for none
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = duration::parse)]
    backup_every: Duration,
    /// How many of them are kept
    #[arg(long, value_name = "NUMBER", default_value = "8")]
    backups: NonZeroUsize,
}

/// The certificates that a server issues.
#[derive(Clone, Debug, clap::Args)]
struct CertificateArguments {
    /// How long the certificates last that the server issues; they are renewed when two thirds of that are over
    #[arg(long, value_name = "DURATION", default_value = "365d", value_parser = certificate_life)]
    certificate_life: Duration,
}

/// What the leading server expects of nodes.
#[derive(Clone, Debug, clap::Args)]
struct Nodes {
    /// For how long a node may be silent before it is given up as lost
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = node_grace)]
    node_monitor_grace_period: Duration,
}

/// What clients of a server may take of it.
#[derive(Clone, Debug, clap::Args)]
struct Clients {
    /// Memory for what waits for clients: answers and watches that are not read, bodies that arrive. A quarter of the
    /// machine's, and 192 MiB at most, when not given
    #[arg(long, value_name = "MIB", value_parser = client_memory)]
    client_memory: Option<usize>,
}

/// With less a large object could not be read by a few at once.
const LEAST_CLIENT_MEMORY: usize = 16;
const MIB: usize = 1 << 20;

fn client_memory(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(mib) if (LEAST_CLIENT_MEMORY..=usize::MAX / MIB).contains(&mib) => Ok(mib),
        _ => Err(format!(
            "{text} is not a number of MiB, which is {LEAST_CLIENT_MEMORY} at least"
        )),
    }
}

impl Clients {
    fn bytes(&self) -> usize {
        match self.client_memory {
            Some(mib) => mib * MIB,
            None => (process::machine_memory() / 4).clamp(LEAST_CLIENT_MEMORY * MIB, 192 * MIB),
        }
    }
}

/// Agents say every other second that they are there.
const SHORTEST_GRACE: Duration = Duration::from_secs(5);

fn node_grace(text: &str) -> Result<Duration, String> {
    let grace = duration::parse(text)?;
    match grace >= SHORTEST_GRACE {
        true => Ok(grace),
        false => Err(format!(
            "{text} is too short: nodes are given 5s at least, since they are heard every 2s"
        )),
    }
}

/// Renewal takes up to a minute or two where nodes are away for a moment, and clocks differ.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);

fn certificate_life(text: &str) -> Result<Duration, String> {
    let life = duration::parse(text)?;
    match life >= SHORTEST_LIFE {
        true => Ok(life),
        false => Err(format!(
            "{text} is too short: a certificate lasts 10s at least"
        )),
    }
}

/// What `gantry server` and `gantry up` say of the server alike.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    backups: Backups,
    #[command(flatten)]
    certificates: CertificateArguments,
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    clients: Clients,
}

impl Options {
    /// The IPv4 addresses of pods and services.
    pub(super) fn ranges(&self) -> [ipnet::Ipv4Net; 2] {
        [self.networks.pod_cidr.v4, self.networks.service_cidr.v4]
    }

    /// As another process of this program is told them.
    pub(super) fn arguments(&self) -> Vec<String> {
        let Self {
            networks,
            backups,
            certificates,
            nodes,
            clients,
        } = self;
        let memory = clients
            .client_memory
            .map(|mib| ("--client-memory", mib.to_string()));
        let seconds = |duration: Duration| format!("{}s", duration.as_secs());
        [
            ("--pod-cidr", networks.pod_cidr.to_string()),
            ("--service-cidr", networks.service_cidr.to_string()),
            ("--cluster-domain", networks.cluster_domain.clone()),
            ("--backup-every", seconds(backups.backup_every)),
            ("--backups", backups.backups.to_string()),
            ("--certificate-life", seconds(certificates.certificate_life)),
            (
                "--node-monitor-grace-period",
                seconds(nodes.node_monitor_grace_period),
            ),
        ]
        .into_iter()
        .chain(memory)
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }
}

/// Run a server of the control plane, in the foreground
#[derive(Debug, clap::Args)]
pub(crate) struct ServerCommand {
    #[command(flatten)]
    place: Place,
    /// Address and port to listen on
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// The address other machines reach this one at; that of the default route when not given
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Write a kubeconfig for this node here, for 'gantry agent'
    #[arg(long, value_name = "NAME=FILE", value_parser = name_and_file)]
    node_kubeconfig: Vec<(String, std::path::PathBuf)>,
    #[command(flatten)]
    options: Options,
    /// The server's name among the servers; this machine's host name when not given
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    pub(crate) join: Join,
}

/// The cluster that a server joins.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Join {
    /// Join the cluster of this server, at the first start
    #[arg(long, value_name = "HOST[:PORT]")]
    join: Option<String>,
    #[command(flatten)]
    pub(crate) token: JoinToken,
}

impl Join {
    /// The cluster to join; none for a server that has a place in one already.
    pub(super) async fn config(&self, data_dir: &Path) -> Result<Option<JoinConfig>> {
        let Some(server) = self
            .join
            .as_ref()
            .filter(|_| !data_dir.join("member.json").exists())
        else {
            return Ok(None);
        };
        let token = self.token.read()?.with_context(|| {
            format!(
                "--join {server} needs a token from 'gantry token create --for servers': name its file with --token-file"
            )
        })?;
        Ok(Some(JoinConfig {
            server: server_to_join(server).await?,
            token,
        }))
    }
}

/// The address of a server that a command line names; its port is the usual one when not given.
pub(super) async fn server_to_join(server: &str) -> Result<SocketAddr> {
    let with_port = match server.contains(':') {
        true => server.to_owned(),
        false => format!("{server}:6443"),
    };
    tokio::net::lookup_host(&with_port)
        .await
        .with_context(|| format!("finding {with_port}: --join takes HOST or HOST:PORT"))?
        .next()
        .with_context(|| format!("{with_port} has no address"))
}

fn name_and_file(text: &str) -> Result<(String, std::path::PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), file.into()))
        }
        _ => Err(format!("\"{text}\" is not of the form NAME=FILE")),
    }
}

/// Opens the store and listens.
pub(super) async fn start(
    data_dir: &Path,
    listen: SocketAddr,
    address: Ipv4Addr,
    options: &Options,
    name: String,
    join: Option<JoinConfig>,
) -> Result<Server> {
    Server::start(ServerConfig {
        data_dir: data_dir.to_owned(),
        listen,
        address,
        pod_cidr: options.networks.pod_cidr,
        service_cidr: options.networks.service_cidr,
        cluster_domain: options.networks.cluster_domain.clone(),
        admin_tokens: Vec::new(),
        name,
        join,
        backups: BackupSchedule {
            every: options.backups.backup_every,
            keep: options.backups.backups.get(),
        },
        certificate_life: options.certificates.certificate_life,
        node_grace: options.nodes.node_monitor_grace_period,
        connections: ConnectionLimits::of_descriptors(process::descriptors()),
        client_memory: options.clients.bytes(),
    })
    .await
}

impl ServerCommand {
    pub(crate) async fn run(&self) -> Result<()> {
        let _lock = daemon::Lock::acquire(&self.place.data_dir)?;
        let address = self.address.unwrap_or_else(default_address);
        let name = self.name.clone().unwrap_or_else(default_node_name);
        let join = self.join.config(&self.place.data_dir).await?;
        let server = start(
            &self.place.data_dir,
            self.listen,
            address,
            &self.options,
            name,
            join,
        )
        .await?;
        let kubeconfig = self.place.data_dir.join("admin.kubeconfig");
        let local = match self.listen.ip().is_unspecified() {
            true => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.listen.port()),
            false => self.listen,
        };
        server.keep_admin_kubeconfig(&kubeconfig, local)?;
        for (node, file) in &self.node_kubeconfig {
            let url = SocketAddr::new(address.into(), self.listen.port());
            server
                .write_node_kubeconfig(file, node, url)
                .await
                .with_context(|| format!("writing the kubeconfig of node {node}"))?;
        }
        output::print(&format!(
            "serving the Kubernetes API on {}\nexport KUBECONFIG={}\n",
            local,
            kubeconfig.display()
        ))?;
        let stop = CancellationToken::new();
        let (running, cancel) = (server.run(stop.clone()), stop);
        tokio::pin!(running);
        tokio::select! {
            result = &mut running => result,
            result = terminated() => {
                result?;
                cancel.cancel();
                running.await
            }
        }
    }
}
