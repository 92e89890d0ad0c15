//! Clusters to measure: etcd's or Gantry's, of one member or several, in processes and directories of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tonic::transport::{Channel, Endpoint};

use crate::load::{Latencies, Shape};
use crate::member::{self, MemberConfig};
use crate::rpc::bench::member_client::MemberClient;
use crate::rpc::bench::{Newcomer, Nothing, Orders};
use crate::rpc::kv::PutRequest;
use crate::rpc::kv::kv_client::KvClient;
use crate::transport::MESSAGE;

const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(2);

/// Whose cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Gantry,
    Etcd,
}

/// A command whose process ends with this one, however this one ends.
fn mortal(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

impl fmt::Display for System {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            System::Gantry => "gantry",
            System::Etcd => "etcd",
        })
    }
}

/// Running members; they are killed and their data is removed with the value.
pub(crate) struct Cluster {
    system: System,
    directory: tempfile::TempDir,
    members: BTreeMap<u64, Node>,
    /// The founders' addresses among each other.
    peers: BTreeMap<u64, SocketAddr>,
}

struct Node {
    clients: SocketAddr,
    process: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.members.values_mut() {
            end(&mut node.process);
        }
    }
}

fn end(process: &mut Child) {
    // It may have ended by itself.
    process.kill().ok();
    process.wait().ok();
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr()?)
}

impl Cluster {
    /// Starts that many members below `parent`; returns when every one takes writes.
    pub(crate) async fn start(system: System, count: u64, parent: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("bench-store-")
            .tempdir_in(parent)?;
        let mut peers = BTreeMap::new();
        for id in 1..=count {
            peers.insert(id, free_address()?);
        }
        let mut cluster = Self {
            system,
            directory,
            members: BTreeMap::new(),
            peers,
        };
        for id in 1..=count {
            cluster.launch(id)?;
        }
        for id in 1..=count {
            cluster.serving(id).await?;
        }
        Ok(cluster)
    }

    fn data_dir(&self, id: u64) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    /// Starts a founder, or starts it again.
    pub(crate) fn launch(&mut self, id: u64) -> Result<()> {
        let peer = *self.peers.get(&id).context("no such member")?;
        let known = self.members.get(&id).map(|node| node.clients);
        let (clients, command) = match self.system {
            System::Gantry => (peer, self.gantry(id, self.peers.clone(), false)?),
            System::Etcd => {
                let clients = known.map_or_else(free_address, Ok)?;
                (clients, self.etcd(id, clients))
            }
        };
        self.spawn(id, clients, command)
    }

    fn spawn(&mut self, id: u64, clients: SocketAddr, mut command: Command) -> Result<()> {
        let log = self.directory.path().join(format!("{id}.log"));
        let log = std::fs::File::create(log)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| {
                format!("starting {command:?}: install Debian's package etcd-server, or run make bench-store")
            })?;
        self.members.insert(id, Node { clients, process });
        Ok(())
    }

    fn gantry(&self, id: u64, members: BTreeMap<u64, SocketAddr>, joins: bool) -> Result<Command> {
        let own = MemberConfig {
            id,
            directory: self.data_dir(id),
            members,
            joins,
        };
        let mut command = mortal(&std::env::current_exe()?);
        command
            .arg(member::COMMAND)
            .arg(serde_json::to_string(&own)?);
        Ok(command)
    }

    fn etcd(&self, id: u64, clients: SocketAddr) -> Command {
        let everybody: Vec<String> = self
            .peers
            .iter()
            .map(|(id, peer)| format!("m{id}=http://{peer}"))
            .collect();
        let mut command = mortal(Path::new("etcd"));
        command
            .args(["--name", &format!("m{id}")])
            .arg("--data-dir")
            .arg(self.data_dir(id))
            .args(["--listen-client-urls", &format!("http://{clients}")])
            .args(["--advertise-client-urls", &format!("http://{clients}")])
            .args(["--listen-peer-urls", &format!("http://{}", self.peers[&id])])
            .args([
                "--initial-advertise-peer-urls",
                &format!("http://{}", self.peers[&id]),
            ])
            .args(["--initial-cluster", &everybody.join(",")])
            .args(["--logger", "zap", "--log-level", "error"])
            // Its default of 2 GiB would end the run, not slow it.
            .args(["--quota-backend-bytes", &(8_u64 << 30).to_string()]);
        command
    }

    /// Returns when a write through this member succeeds.
    pub(crate) async fn serving(&mut self, id: u64) -> Result<()> {
        let begun = Instant::now();
        let put = PutRequest {
            key: "ready".into(),
            value: "".into(),
        };
        loop {
            let written = match self.connect(id).await {
                Ok(channel) => KvClient::new(channel).put(put.clone()).await.is_ok(),
                Err(_) => false,
            };
            if written {
                return Ok(());
            }
            let node = self.members.get_mut(&id).context("no such member")?;
            if let Some(status) = node.process.try_wait()? {
                let log = self.directory.path().join(format!("{id}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{} {id} has ended with {status}: {log}", self.system);
            }
            if begun.elapsed() > DEADLINE {
                bail!("{} {id} did not serve within {DEADLINE:?}", self.system);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(&self, id: u64) -> Result<Channel> {
        let node = self.members.get(&id).context("no such member")?;
        let endpoint = Endpoint::from_shared(format!("http://{}", node.clients))?.tcp_nodelay(true);
        Ok(endpoint.connect().await?)
    }

    /// That many connections to every member.
    pub(crate) async fn connections(&self, each: usize) -> Result<Vec<Channel>> {
        let mut channels = Vec::new();
        for _ in 0..each {
            for id in self.members.keys() {
                channels.push(self.connect(*id).await?);
            }
        }
        Ok(channels)
    }

    /// Writes through the store's own API in the members' processes, as servers do, with clients spread evenly over the
    /// members; a single one is where nobody leads. Gantry's only.
    pub(crate) async fn driven(&self, clients: usize, shape: Shape) -> Result<Latencies> {
        let leader = self.leader().await?;
        let mut members: Vec<u64> = self.members.keys().copied().collect();
        // Followers first.
        members.sort_by_key(|id| *id == leader);
        let count = members.len();
        let mut driving = tokio::task::JoinSet::new();
        for (at, id) in members.into_iter().enumerate().take(clients) {
            let mut member =
                MemberClient::new(self.connect(id).await?).max_decoding_message_size(MESSAGE);
            let orders = Orders {
                first: at as u64,
                clients: (clients - at).div_ceil(count) as u64,
                step: count as u64,
                keys: shape.keys as u64,
                value_bytes: shape.bytes as u64,
                warm_up_millis: shape.warm_up.as_millis() as u64,
                measured_millis: shape.measured.as_millis() as u64,
            };
            driving.spawn(async move { member.drive(orders).await });
        }
        let mut all = Vec::new();
        while let Some(answered) = driving.join_next().await {
            let latencies = answered??.into_inner().latencies;
            let micros = latencies.into_iter().map(u64::from);
            all.extend(micros.map(Duration::from_micros));
        }
        Ok(Latencies::new(all, shape.measured))
    }

    /// Ends a member as a power cut would.
    pub(crate) fn kill(&mut self, id: u64) -> Result<()> {
        let node = self.members.get_mut(&id).context("no such member")?;
        end(&mut node.process);
        Ok(())
    }

    /// The most memory a member has had resident, in bytes.
    pub(crate) fn peak_memory(&self, id: u64) -> Result<u64> {
        let node = self.members.get(&id).context("no such member")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes =
            peak.and_then(|peak| peak.trim().trim_end_matches("kB").trim().parse().ok());
        let kibibytes: u64 = kibibytes.context("the member has no peak memory")?;
        Ok(kibibytes * 1024)
    }

    /// The member that leads; Gantry's only.
    pub(crate) async fn leader(&self) -> Result<u64> {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            for id in self.members.keys() {
                if let Ok(channel) = self.connect(*id).await
                    && let Ok(standing) = MemberClient::new(channel).report(Nothing {}).await
                    && standing.into_inner().leads
                {
                    return Ok(*id);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("no member leads")
    }

    /// Starts an empty member and has it admitted by the leader; Gantry's only.
    pub(crate) async fn admit(&mut self, id: u64) -> Result<()> {
        let address = free_address()?;
        let mut members = self.peers.clone();
        members.insert(id, address);
        let command = self.gantry(id, members, true)?;
        let founders: Vec<u64> = self.peers.keys().copied().collect();
        let leader = self.leader().await?;
        self.spawn(id, address, command)?;
        // The others must find it should leadership move; they already take part, so this answers at once.
        for member in founders {
            let mut client = MemberClient::new(self.connect(member).await?);
            let newcomer = Newcomer {
                id,
                address: address.to_string(),
            };
            let admitted = client.admit(newcomer).await;
            if member == leader {
                admitted.context("admitting a member")?;
            }
        }
        Ok(())
    }

    /// Returns when the leader has made this member a voter: it has everything.
    pub(crate) async fn voting(&self, id: u64) -> Result<()> {
        let leader = self.leader().await?;
        let mut client = MemberClient::new(self.connect(leader).await?);
        let begun = Instant::now();
        loop {
            let standing = client.report(Nothing {}).await?.into_inner();
            if standing.voters.contains(&id) {
                return Ok(());
            }
            if begun.elapsed() > DEADLINE {
                bail!("member {id} did not catch up within {DEADLINE:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
