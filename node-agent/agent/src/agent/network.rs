//! The node's network: made from the cluster's facts as soon as they are known, and looked after from then on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_cri::network::NetworkError;
use gantry_dns::DnsServer;
use gantry_network::{
    BridgeNetwork, GatewayEcho, HoldingLimits, Ipv6Network, LinkWatch, LoggedHolding,
    NftPolicyRules, NftServiceRules, NodeNetwork, OverlaySettings, TableWatch, VxlanOverlay,
};
use gantry_pods::resolv::HostResolver;
use gantry_rpc::node::Welcome;
use tokio::sync::watch;

use super::upkeep::every;
use crate::config::AgentConfig;

/// Between looks at the firewall rules, which other programs may have changed.
const LOOK_AROUND: Duration = Duration::from_secs(60);
const DNS_PORT: u16 = 53;

/// The node's network: pods are connected, services and policies can be programmed, and DNS answers.
pub(super) struct Network {
    pub(super) bridge: Arc<BridgeNetwork>,
    pub(super) rules: NftServiceRules,
    /// None where the kernel does not tell what it logs: connections to what sleeps are refused there.
    pub(super) holding: Option<Arc<LoggedHolding>>,
    /// None on a node that no other node can reach.
    pub(super) overlay: Option<Arc<VxlanOverlay>>,
    pub(super) echo: Arc<GatewayEcho>,
    pub(super) policies: Arc<NftPolicyRules>,
    pub(super) tables: TableWatch,
    pub(super) links: LinkWatch,
    pub(super) dns: Arc<DnsServer>,
    pub(super) dns_address: Ipv4Addr,
}

/// A range that the server has told.
fn range<T>(what: &str, text: &str) -> Result<T>
where
    T: std::str::FromStr<Err = ipnet::AddrParseError>,
{
    text.parse()
        .with_context(|| format!("the server's {what} \"{text}\" is not an address range"))
}

fn node_network(config: &AgentConfig, facts: &Welcome) -> Result<NodeNetwork> {
    // A node of before the cluster got IPv6 has no block of it; one of a cluster that went back has nobody to talk to.
    let ranges = [&facts.pod_cidr_v6, &facts.cluster_pod_cidr_v6];
    let ipv6 = match ranges.iter().any(|range| range.is_empty()) {
        true => None,
        false => Some(Ipv6Network {
            pod_cidr: range("IPv6 pod CIDR of this node", &facts.pod_cidr_v6)?,
            cluster_pod_cidr: range("IPv6 pod CIDR of the cluster", &facts.cluster_pod_cidr_v6)?,
            service_cidr: Some(range("IPv6 service CIDR", &facts.service_cidr_v6)?),
        }),
    };
    Ok(NodeNetwork {
        prefix: config.network_prefix.clone(),
        pod_cidr: range("pod CIDR of this node", &facts.pod_cidr)?,
        cluster_pod_cidr: range("pod CIDR of the cluster", &facts.cluster_pod_cidr)?,
        service_cidr: range("service CIDR", &facts.service_cidr)?,
        data_dir: config.data_dir.join("network"),
        ipv6,
        overlay: (!config.node_address.is_loopback()).then(|| OverlaySettings {
            mode: config.overlay_mode,
            ..OverlaySettings::new(config.node_address.into())
        }),
    })
}

impl Network {
    /// Makes it, or finds again what an earlier agent has made.
    pub(super) async fn set_up(config: &AgentConfig, facts: &Welcome) -> Result<Self> {
        let node = node_network(config, facts)?;
        let dns_address: Ipv4Addr = facts.dns_service_ip.parse().with_context(|| {
            format!(
                "the server's DNS address \"{}\" is not IPv4",
                facts.dns_service_ip
            )
        })?;
        let bridge = {
            let node = node.clone();
            tokio::task::spawn_blocking(move || BridgeNetwork::new(node)).await?
        };
        let bridge = Arc::new(bridge.context("setting up the pod network")?);
        let (rules, holding) =
            service_rules(&node, bridge.clone()).context("setting up service rules")?;
        let policies =
            NftPolicyRules::with_dns(&node, dns_address).context("setting up network policies")?;
        let echo = Arc::new(GatewayEcho::new(&node));
        let tables = TableWatch::new(&node).context("looking at nftables tables")?;
        let links = LinkWatch::new().context("listening to changes of links")?;
        let overlay = match node.overlay {
            None => None,
            Some(_) => Some(VxlanOverlay::new(node).context("setting up the overlay")?),
        };
        bridge
            .bind_dns_address(dns_address)
            .await
            .context("giving the node the address of the cluster's DNS")?;
        let upstreams = HostResolver::read()
            .context("reading the node's resolver configuration")?
            .upstreams();
        let listen = [SocketAddr::from((dns_address, DNS_PORT))];
        let dns = DnsServer::start(&listen, &facts.cluster_domain, upstreams)
            .await
            .context("starting DNS")?;
        Ok(Self {
            bridge,
            rules,
            holding,
            overlay: overlay.map(Arc::new),
            echo,
            policies: Arc::new(policies),
            tables,
            links,
            dns: Arc::new(dns),
            dns_address,
        })
    }
}

/// Connections wait where the kernel takes the rules for it and tells of them; nothing else of the node depends on it.
fn service_rules(
    node: &NodeNetwork,
    bridge: Arc<BridgeNetwork>,
) -> Result<(NftServiceRules, Option<Arc<LoggedHolding>>), NetworkError> {
    let with_holding = || {
        let holding = LoggedHolding::listen(bridge, HoldingLimits::default())?;
        let holding = Arc::new(holding);
        let rules = NftServiceRules::with_holding(node, holding.clone())?;
        Ok((rules, Some(holding)))
    };
    with_holding().or_else(|error: NetworkError| {
        tracing::warn!(
            error = gantry_cri::words(&error),
            "connections to services that sleep are refused on this node, and wake nothing: load nfnetlink_log and nft_log, or \
             use a kernel that has them"
        );
        Ok((NftServiceRules::new(node)?, None))
    })
}

/// Puts back the rules that others flushed: at once when whole tables are gone, now and then for the rest.
pub(super) async fn reassert(
    network: Arc<BridgeNetwork>,
    policies: Arc<NftPolicyRules>,
    mut flushed: watch::Receiver<()>,
) {
    let mut ticks = every(LOOK_AROUND);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = flushed.changed() => {}
        }
        if let Err(error) = network.reassert().await {
            tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after the pod network"
            );
        }
        if let Err(error) = policies.reassert().await {
            tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after network policies"
            );
        }
    }
}

/// Removes what [`Network::set_up`] makes in the kernel.
pub(super) async fn remove(config: &AgentConfig, facts: &Welcome) -> Result<()> {
    let node = node_network(config, facts)?;
    tokio::task::spawn_blocking(move || BridgeNetwork::teardown(&node))
        .await?
        .context("removing the pod network")
}
