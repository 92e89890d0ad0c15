//! Implementations of the seams without a kernel, for tests of what is built on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    Holding, HoldingNews, Listeners, LocalPort, NetworkError, NodePolicies, Overlay, PeerEcho,
    PeerNode, PeerPath, PodRoute, PolicyRules, Protocol, ServiceChanges, ServiceName, ServicePort,
    ServiceRules, listeners, overlay, policy,
};

/// Keeps what would be programmed; every peer is reached through VXLAN. Clones are later agent processes of the same
/// node: they find what the earlier ones left.
#[derive(Clone, Debug)]
pub struct FakeOverlay {
    address: IpAddr,
    pod_cidr: Ipv4Net,
    programmed: Arc<Mutex<Vec<PodRoute>>>,
}

impl FakeOverlay {
    /// On a node with this address and these pods.
    pub fn new(address: IpAddr, pod_cidr: Ipv4Net) -> Self {
        Self {
            address,
            pod_cidr,
            programmed: Arc::default(),
        }
    }
}

#[async_trait]
impl Overlay for FakeOverlay {
    async fn sync(&self, peers: Vec<PeerNode>) -> Result<(), NetworkError> {
        let (usable, problems) = overlay::usable(self.address, &[self.pod_cidr.into()], &peers);
        let routes = usable.iter().flat_map(|peer| {
            peer.pod_cidrs.iter().map(|pod_cidr| PodRoute {
                pod_cidr: pod_cidr.trunc(),
                address: peer.address,
                path: PeerPath::Vxlan,
            })
        });
        let mut routes: Vec<PodRoute> = routes.collect();
        routes.sort_by_key(|route| route.pod_cidr);
        *self.programmed.lock() = routes;
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    async fn reassert(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn routes(&self) -> Result<Vec<PodRoute>, NetworkError> {
        Ok(self.programmed.lock().clone())
    }
}

/// Nodes that answer at once, but for those that were told to be silent.
#[derive(Debug, Default)]
pub struct FakeEcho {
    silent: Mutex<BTreeSet<Ipv4Net>>,
    asked: Mutex<BTreeMap<Ipv4Net, u32>>,
    refusal: Mutex<Option<String>>,
}

impl FakeEcho {
    /// Whether the node with these pods answers from now on.
    pub fn answer(&self, pod_cidr: Ipv4Net, answers: bool) {
        let mut silent = self.silent.lock();
        match answers {
            true => silent.remove(&pod_cidr),
            false => silent.insert(pod_cidr),
        };
    }

    /// Whether this node cannot ask, and why.
    pub fn refuse(&self, words: Option<&str>) {
        *self.refusal.lock() = words.map(str::to_owned);
    }

    /// How often the node with these pods was asked.
    pub fn asked(&self, pod_cidr: Ipv4Net) -> u32 {
        self.asked.lock().get(&pod_cidr).copied().unwrap_or(0)
    }
}

#[async_trait]
impl PeerEcho for FakeEcho {
    async fn answers(&self, pod_cidr: Ipv4Net, within: Duration) -> Result<bool, NetworkError> {
        *self.asked.lock().entry(pod_cidr).or_default() += 1;
        if let Some(words) = &*self.refusal.lock() {
            return Err(NetworkError::Unsupported(words.clone()));
        }
        if self.silent.lock().contains(&pod_cidr) {
            tokio::time::sleep(within).await;
            return Ok(false);
        }
        Ok(true)
    }
}

/// A host with processes that listen.
#[derive(Debug, Default)]
pub struct FakeListeners {
    own: BTreeSet<IpAddr>,
    state: Mutex<FakeSockets>,
}

#[derive(Debug, Default)]
struct FakeSockets {
    listening: BTreeMap<Protocol, listeners::Sockets>,
    asked: Vec<BTreeSet<LocalPort>>,
}

impl FakeListeners {
    /// The host has these addresses.
    pub fn new(own: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            own: own.into_iter().collect(),
            state: Mutex::default(),
        }
    }

    /// A process listens on an address, or on all with the unspecified one.
    pub fn listen(&self, protocol: Protocol, address: IpAddr, port: u16) {
        let mut state = self.state.lock();
        let sockets = state.listening.entry(protocol).or_default();
        sockets.insert((port, address), 0);
    }

    /// It does so no longer.
    pub fn close(&self, protocol: Protocol, address: IpAddr, port: u16) {
        let mut state = self.state.lock();
        let sockets = state.listening.entry(protocol).or_default();
        sockets.remove(&(port, address));
    }

    /// What was asked for since the last call of this, in order.
    pub fn take_asked(&self) -> Vec<BTreeSet<LocalPort>> {
        std::mem::take(&mut self.state.lock().asked)
    }
}

#[async_trait]
impl Listeners for FakeListeners {
    async fn held(
        &self,
        mut ports: BTreeSet<LocalPort>,
    ) -> Result<BTreeSet<LocalPort>, NetworkError> {
        let mut state = self.state.lock();
        state.asked.push(ports.clone());
        ports.retain(|port| {
            let sockets = state.listening.get(&port.protocol);
            let is_own = |address| listeners::is_own(address, &self.own);
            port.address.is_none_or(is_own)
                && sockets.is_some_and(|sockets| listeners::is_held(port, sockets))
        });
        Ok(ports)
    }
}

/// Remembers the services it was told of.
#[derive(Debug, Default)]
pub struct FakeServiceRules {
    state: Mutex<FakeKernel>,
}

#[derive(Debug, Default)]
struct FakeKernel {
    services: BTreeMap<ServiceName, Vec<ServicePort>>,
    changes: Vec<ServiceChanges>,
    refuse: bool,
}

impl FakeServiceRules {
    /// The services and their ports.
    pub fn programmed(&self) -> BTreeMap<ServiceName, Vec<ServicePort>> {
        self.state.lock().services.clone()
    }

    /// What was asked for since the last call of this, in order.
    pub fn take_changes(&self) -> Vec<ServiceChanges> {
        std::mem::take(&mut self.state.lock().changes)
    }

    /// Whether the kernel refuses.
    pub fn refuse(&self, refuse: bool) {
        self.state.lock().refuse = refuse;
    }
}

#[async_trait]
impl ServiceRules for FakeServiceRules {
    async fn apply(&self, changes: ServiceChanges) -> Result<(), NetworkError> {
        let mut state = self.state.lock();
        state.changes.push(changes.clone());
        if changes.complete {
            state.services.clear();
        }
        for (name, ports) in changes.services {
            if ports.is_empty() {
                state.services.remove(&name);
            } else {
                state.services.insert(name, ports);
            }
        }
        if state.refuse {
            return Err(NetworkError::Nft("refused on purpose".to_owned()));
        }
        Ok(())
    }

    async fn reassert(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// Connections wait as a test says.
#[derive(Debug, Default)]
pub struct FakeHolding {
    news: Mutex<BTreeMap<ServiceName, HoldingNews>>,
    held: Mutex<BTreeMap<ServiceName, u64>>,
    happened: Notify,
}

impl FakeHolding {
    /// So many connections of a service wait now, and this has happened to them.
    pub fn happen(&self, service: ServiceName, held: u64, news: HoldingNews) {
        match held {
            0 => self.held.lock().remove(&service),
            _ => self.held.lock().insert(service.clone(), held),
        };
        self.news.lock().insert(service, news);
        self.happened.notify_one();
    }
}

#[async_trait]
impl Holding for FakeHolding {
    async fn news(&self) -> BTreeMap<ServiceName, HoldingNews> {
        loop {
            let news = std::mem::take(&mut *self.news.lock());
            if !news.is_empty() {
                return news;
            }
            self.happened.notified().await;
        }
    }

    fn held(&self) -> BTreeMap<ServiceName, u64> {
        self.held.lock().clone()
    }
}

/// Remembers what it was last asked to program.
#[derive(Debug, Default)]
pub struct FakePolicyRules {
    programmed: Mutex<NodePolicies>,
    refusal: Mutex<Option<String>>,
}

impl FakePolicyRules {
    /// The policies of the last sync.
    pub fn programmed(&self) -> NodePolicies {
        self.programmed.lock().clone()
    }

    /// Refuses every sync with these words, or none any more.
    pub fn refuse(&self, words: Option<&str>) {
        *self.refusal.lock() = words.map(str::to_owned);
    }
}

#[async_trait]
impl PolicyRules for FakePolicyRules {
    async fn sync(&self, desired: NodePolicies) -> Result<(), NetworkError> {
        policy::check(&desired)?;
        if let Some(words) = &*self.refusal.lock() {
            return Err(NetworkError::Nft(words.clone()));
        }
        *self.programmed.lock() = desired;
        Ok(())
    }
}
