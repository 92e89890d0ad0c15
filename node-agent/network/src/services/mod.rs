//! Services in nftables: a pure [`plan`] per service, a [`table`] of all of them that says what a change makes
//! different, a [`script`] of the difference, one transaction.
//!
//! ```text
//! prerouting / output
//!   guarded and not allowed? -> drop                   loadBalancerSourceRanges
//!   held?          -> log, drop                        until somebody answers: see holding
//!   from outside?  -> outside_address / outside_port   externalTrafficPolicy: Local: local endpoints, source kept
//!   (daddr, proto, dport) -> service_address ----+
//!   (proto, dport) to a local address            |     verdict maps: which chain balances this frontend
//!                  -> service_port --------------+
//!                                                v
//!   chain <kind>_K    one per protocol, kind of frontend and *number of endpoints*:
//!       dnat to (frontend, random mod K) map @<kind>_K
//!   chain <kind>_sticky_T_S_K   with affinity: timeout T, S slots (see elements::Affinity)
//!       for each slot: client @clients_N -> slot N
//!       (frontend, hash of client mod K) -> slot N
//!   chain <kind>_slot_N_T       remember the client in clients_N; dnat to frontend map @<kind>_slot_N
//! postrouting
//!   to another node's endpoint, not from a pod of this node -> masquerade
//!   from a pod to itself -> masquerade
//! ```
//!
//! The number of rules and chains depends on how many different endpoint counts there are, never on the number of
//! services: a changed endpoint is a handful of map elements. IPv4 and IPv6 have a table each, made by the same code:
//! a packet sees no rule of the other family, and a cluster without IPv6 needs none of it in the kernel. One
//! transaction changes both.
//!
//! A transaction is whole for each look into a map, but not for a packet that makes two: it may find its chain before and
//! its endpoint, in that chain's map, after, which is nowhere. So each hook has its chain twice: a packet that was not
//! translated by the first looks again, and all of it after the change.

mod conntrack;
mod elements;
mod parts;
mod plan;
mod script;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::blocking::blocking;
use crate::holding::{LoggedHolding, Reception};
use crate::names::Names;
use crate::nft::Nft;
use crate::nft_programmer::Programmer;
use crate::{NetworkError, NodeNetwork, ServiceChanges, ServiceRules};

pub(crate) use elements::{Family, Frontend};
use parts::Skeleton;
use table::{Answerers, Difference, Table};

/// Between looks for connections that nobody has answered.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Programs the node's services into the tables `<prefix>-services` of IPv4 and, in a dual-stack cluster, of IPv6.
///
/// The tables are made anew by the first [`ServiceRules::apply`], in one transaction, so that services keep working
/// while the agent restarts. Clients with session affinity are then chosen an endpoint for by their address again,
/// which is the same one for those who came while the endpoints were the same.
pub struct NftServiceRules {
    kernel: Arc<Mutex<Kernel>>,
}

/// The kernel's tables, as far as we know them.
struct Kernel {
    programmer: Programmer,
    skeletons: Vec<Skeleton>,
    table: Table,
    state: State,
    attempts: Arc<Attempts>,
    /// None where nothing is held.
    holding: Option<Arc<LoggedHolding>>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Nothing was asked for yet: what an earlier agent made stays.
    Untouched,
    /// The kernel's tables are ours to make from scratch.
    Unknown,
    /// They are what [`Kernel::table`] says.
    Known,
}

impl NftServiceRules {
    /// Finds `nft`. The kernel is not touched yet. Connections to what nobody answers are refused, whatever services say.
    pub fn new(node: &NodeNetwork) -> Result<Self, NetworkError> {
        let skeletons = Skeleton::of(node, &Names::new(node)?.service_table(), None);
        Ok(Self::made(Nft::find()?, skeletons, None))
    }

    /// The same, but connections wait where services say so. Refused where the kernel does not take the rules for it. Blocks.
    pub fn with_holding(
        node: &NodeNetwork,
        holding: Arc<LoggedHolding>,
    ) -> Result<Self, NetworkError> {
        let (nft, group) = (Nft::find()?, Some(holding.group()));
        let skeletons = Skeleton::of(node, &Names::new(node)?.service_table(), group);
        nft.check(&script::from_scratch(&skeletons, &Difference::default()))?;
        Ok(Self::made(nft, skeletons, Some(holding)))
    }

    fn made(nft: Nft, skeletons: Vec<Skeleton>, holding: Option<Arc<LoggedHolding>>) -> Self {
        let kernel = Kernel {
            programmer: Programmer::new(nft),
            skeletons,
            table: Table::default(),
            state: State::Untouched,
            attempts: Arc::default(),
            holding,
        };
        Self {
            kernel: Arc::new(Mutex::new(kernel)),
        }
    }

    async fn on_kernel(
        &self,
        work: impl FnOnce(&mut Kernel) -> Result<(), NetworkError> + Send + 'static,
    ) -> Result<(), NetworkError> {
        let mut kernel = Arc::clone(&self.kernel).lock_owned().await;
        let kernel = blocking(move || {
            work(&mut kernel)?;
            Ok(kernel)
        })
        .await?;
        kernel.programmer.retire_when_idle();
        Ok(())
    }
}

#[async_trait]
impl ServiceRules for NftServiceRules {
    async fn apply(&self, changes: ServiceChanges) -> Result<(), NetworkError> {
        self.on_kernel(|kernel| kernel.change(changes)).await
    }

    async fn reassert(&self) -> Result<(), NetworkError> {
        self.on_kernel(Kernel::reassert).await
    }
}

impl Kernel {
    /// Takes the changes over and makes the tables equal to what is wanted: by the difference when what is there is
    /// known, from scratch otherwise.
    fn change(&mut self, changes: ServiceChanges) -> Result<(), NetworkError> {
        let difference = self.table.change(self.programmable(changes));
        if self.state == State::Known {
            let script = script::difference(&self.skeletons, &difference);
            if script.is_empty() {
                // Another service may wait where one did.
                self.after(&difference.receptions);
                return Ok(());
            }
            self.state = State::Unknown;
            self.before(&difference.receptions);
            match self.programmer.apply(&script) {
                Ok(()) => {
                    self.state = State::Known;
                    self.after(&difference.receptions);
                    forget_flows(&difference.flows);
                    self.attempts.forget(difference.attempts);
                    return Ok(());
                }
                // Somebody else flushed or changed our table (a firewall that was restarted, for instance).
                Err(NetworkError::Nft(words)) => {
                    tracing::warn!(words, "the tables of services are not as they were left");
                }
                Err(other) => return Err(other),
            }
        }
        self.start_over()
    }

    /// What is to be held is known before the kernel tells of it.
    fn before(&self, receptions: &BTreeMap<Frontend, Reception>) {
        if let Some(holding) = &self.holding {
            let held = receptions.iter();
            holding.receive(held.filter(|(_, how)| matches!(how, Reception::Held(_))));
        }
    }

    /// What is held no more goes on when the kernel sends it on.
    fn after(&self, receptions: &BTreeMap<Frontend, Reception>) {
        if let Some(holding) = &self.holding {
            holding.receive(receptions);
        }
    }

    /// Without the ports that no table is for, and what nobody would hold.
    fn programmable(&self, mut changes: ServiceChanges) -> ServiceChanges {
        let ipv6 = self.skeletons.iter().any(|own| own.family == Family::Ipv6);
        for (name, ports) in &mut changes.services {
            if self.holding.is_none() {
                ports.iter_mut().for_each(|port| port.held = None);
            }
            if !ipv6 && ports.iter().any(|port| port.cluster_ip.is_ipv6()) {
                ports.retain(|port| port.cluster_ip.is_ipv4());
                tracing::warn!(
                    namespace = name.namespace,
                    service = name.name,
                    "the service has an IPv6 address, but this node was given no IPv6 network: it is not served there"
                );
            }
        }
        changes
    }

    fn start_over(&mut self) -> Result<(), NetworkError> {
        self.state = State::Unknown;
        let whole = self.table.whole();
        let mut receptions = whole.receptions.clone();
        for frontend in self.holding.iter().flat_map(|holding| holding.frontends()) {
            let reception = || self.table.reception(frontend);
            receptions.entry(frontend).or_insert_with(reception);
        }
        self.before(&receptions);
        self.programmer
            .set_up(&script::from_scratch(&self.skeletons, &whole))?;
        tracing::info!(
            elements = whole.added.len(),
            "services programmed from scratch"
        );
        self.state = State::Known;
        self.after(&receptions);
        forget_flows(&whole.flows);
        self.attempts.forget(whole.attempts);
        Ok(())
    }

    fn reassert(&mut self) -> Result<(), NetworkError> {
        if self.state == State::Untouched {
            return Ok(());
        }
        let there = self.skeletons.iter().all(|skeleton| {
            let family = skeleton.family.word();
            self.programmer
                .has_chain(family, &skeleton.table, "prerouting")
        });
        if there && self.state == State::Known {
            return Ok(());
        }
        tracing::warn!("the tables of services are not as they were left; setting them up again");
        self.start_over()
    }
}

/// The rules choose for new flows only. That old ones go on where nobody answers is no reason to doubt the rules.
fn forget_flows(flows: &[Answerers]) {
    match conntrack::forget(flows) {
        Ok(0) => {}
        Ok(forgotten) => tracing::debug!(forgotten, "flows that led nowhere were forgotten"),
        Err(error) => tracing::warn!(
            %error,
            "flows to endpoints that are gone could not be forgotten: their clients are answered again once the flows \
             have timed out"
        ),
    }
}

/// Connections of TCP that nobody has answered, to be forgotten beside the programming of rules: looking through what the
/// kernel tracks takes longer than a change of the rules, and is wanted about once a second at most.
#[derive(Default)]
struct Attempts {
    waiting: parking_lot::Mutex<Vec<Answerers>>,
    /// A task looks after them.
    looking: AtomicBool,
}

impl Attempts {
    fn forget(self: &Arc<Self>, attempts: Vec<Answerers>) {
        if attempts.is_empty() {
            return;
        }
        self.waiting.lock().extend(attempts);
        if !self.looking.swap(true, Ordering::SeqCst) {
            tokio::spawn(Arc::clone(self).run());
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            let mut latest = BTreeMap::new();
            for attempts in std::mem::take(&mut *self.waiting.lock()) {
                latest.insert(attempts.frontend, attempts);
            }
            let attempts: Vec<Answerers> = latest.into_values().collect();
            // Its thread is in the same network namespace as those that program the rules.
            if let Err(error) = tokio::task::spawn_blocking(move || forget_flows(&attempts)).await {
                tracing::warn!(%error, "forgetting connections that nobody has answered");
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
            if self.waiting.lock().is_empty() {
                self.looking.store(false, Ordering::SeqCst);
                // What came between the look and the word is for the next task, or for this one.
                if self.waiting.lock().is_empty() || self.looking.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use crate::{Endpoint, Protocol, ServiceChanges, ServiceName, ServicePort};

    pub(super) fn name(name: &str) -> ServiceName {
        ServiceName {
            namespace: "default".into(),
            name: name.into(),
        }
    }

    pub(super) fn changes<const N: usize>(
        services: [(&str, Option<ServicePort>); N],
    ) -> ServiceChanges {
        let services = services.map(|(service, port)| (name(service), port.into_iter().collect()));
        ServiceChanges {
            complete: false,
            services: services.into(),
        }
    }

    pub(super) fn endpoint(number: u16) -> Endpoint {
        let [high, low] = number.to_be_bytes();
        Endpoint {
            ip: [10, 244, high, low].into(),
            port: 8080,
            local: true,
        }
    }

    pub(super) fn service(address: u16, endpoints: &[u16]) -> ServicePort {
        let [high, low] = address.to_be_bytes();
        ServicePort {
            port_name: String::new(),
            protocol: Protocol::Tcp,
            cluster_ip: [10, 96, high, low].into(),
            port: 80,
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            node_port: None,
            client_ip_affinity: None,
            external_local: false,
            internal_local: false,
            endpoints: endpoints.iter().map(|&number| endpoint(number)).collect(),
            local_endpoints: vec![],
            held: None,
        }
    }

    /// The same with IPv6 addresses.
    pub(super) fn service6(address: u16, endpoints: &[u16]) -> ServicePort {
        let ip = |net: u16, number| IpAddr::from(Ipv6Addr::new(0xfd10, net, 0, 0, 0, 0, 0, number));
        let mut service = service(address, endpoints);
        service.cluster_ip = ip(0x96, address);
        for (endpoint, &number) in service.endpoints.iter_mut().zip(endpoints) {
            endpoint.ip = ip(0x244, number);
        }
        service
    }
}
