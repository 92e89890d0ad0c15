//! The cluster's DNS: a server on every node, answering the cluster's names from memory and forwarding the others. It
//! never asks the control plane, and goes on without it.
//!
//! - [`published`] holds the names of the services, [`zone`] answers from them. Pure.
//! - [`clients`] knows the search lists of the node's pods.
//! - [`upstream`] asks other resolvers ([`exchange`], [`health`], [`loops`]), [`cache`] remembers what they said.
//! - [`lookup`] is the way a query takes through those.
//! - [`listen`] has the sockets ([`batch`]), [`message`] what goes over them, [`metrics`] the counters.
//!
//! It is told of services and pods by [`ClusterDns`] alone and must never know the API's objects, the node's network (which
//! holds the address that is listened on) or the server.

mod batch;
mod cache;
mod clients;
mod error;
mod exchange;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod listen;
mod lookup;
mod loops;
mod message;
mod metrics;
mod published;
mod room;
mod upstream;
mod zone;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gantry_cri::ServiceName;
use gantry_cri::dns::{ClusterDns, DnsTable};
use tokio::task::JoinSet;

pub use error::DnsError;
use listen::Listener;
use lookup::Lookup;
use metrics::Meter;
use published::Published;
use upstream::Upstreams;

/// What fits into a packet everywhere (DNS flag day 2020), for those who say they can take more than 512 octets.
const LARGEST_UDP: u16 = 1232;

/// Answers DNS on the node until it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    lookup: Arc<Lookup>,
    addresses: Vec<SocketAddr>,
    _serving: JoinSet<()>,
}

impl DnsServer {
    /// Listens on UDP and TCP of each address and answers `cluster_domain` (such as `cluster.local`) from what it is
    /// [told](ClusterDns), and everything else through `upstreams`, in that order of preference.
    ///
    /// Give concrete addresses: the answer to a query must come from the address it was sent to. An address of a
    /// service has to be held by the node first (`BridgeNetwork::bind_dns_address`). Upstreams
    /// that are among the addresses listened on are left out, and so are those found to ask this server in turn.
    pub async fn start(
        listen: &[SocketAddr],
        cluster_domain: &str,
        upstreams: Vec<SocketAddr>,
    ) -> Result<Self, DnsError> {
        let published = Published::new(cluster_domain)?;
        let origin = published.zone().origin().to_ascii();
        let mut listeners = Vec::new();
        for &address in listen {
            let opened = Listener::open(address).await;
            listeners.push(opened.map_err(|source| DnsError::Listen { address, source })?);
        }
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
        let upstreams = upstreams
            .into_iter()
            .filter(|upstream| !addresses.contains(upstream))
            .collect();
        let lookup = Arc::new(Lookup::new(published, Upstreams::new(upstreams)));
        let mut serving = JoinSet::new();
        for listener in listeners {
            let meter = Meter::new(listener.address, &origin);
            listener.serve(&lookup, meter, &mut serving);
        }
        for resolver in lookup.upstreams.resolvers() {
            serving.spawn(Arc::clone(&lookup.probes).look_at(Arc::clone(resolver)));
        }
        tracing::info!(?addresses, domain = cluster_domain, upstreams = %lookup.upstreams, "DNS is served");
        Ok(Self {
            lookup,
            addresses,
            _serving: serving,
        })
    }

    /// Where it listens, in the order given to [`DnsServer::start`]; a port 0 has become a real one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl ClusterDns for DnsServer {
    fn change(&self, service: ServiceName, names: Option<DnsTable>) {
        self.lookup.published.change(service, names);
    }

    fn replace(&self, all: BTreeMap<ServiceName, DnsTable>) {
        self.lookup.published.replace(all);
    }

    fn client(&self, address: IpAddr, searches: Option<Vec<String>>) {
        let zone = self.lookup.published.zone();
        self.lookup.clients.tell(address, searches, zone.origin());
    }
}

#[cfg(test)]
mod tests;
