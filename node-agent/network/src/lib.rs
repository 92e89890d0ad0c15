//! The node's network: links, addresses, the ways to other nodes, service rules.
//!
//! - [`BridgeNetwork`] connects the pods of one node: a bridge, a veth pair per pod, addresses from the node's pod
//!   CIDR, host ports, masquerade of what leaves the cluster.
//! - [`VxlanOverlay`] leads to the pods of other nodes, directly or through VXLAN.
//! - [`GatewayEcho`] tells whether other nodes answer on that way.
//! - [`NftServiceRules`] programs services into nftables, at a cost that is that of the change.
//! - [`LoggedHolding`] keeps connections waiting to services that nobody answers yet.
//! - [`HostListeners`] says which ports services must leave to processes of the host.
//! - [`PodNetwork::traffic`] tells what passes links, and what pods' connections come to (`connections.rs`).
//! - [`NftPolicyRules`] isolates pods, on one node as well as between nodes.
//! - [`TableWatch`] notices when somebody else has flushed the rules, [`LinkWatch`] when links have changed.
//! - [`connect_inside`] reaches what listens on a pod's loopback.
//! - [`LocalHosts`] makes several hosts on one machine, to run agents on.
//! - [`try_out`] tells whether a machine has what all of this needs.
//!
//! It depends on the kernel (rtnetlink, namespaces) and on the `nft` program, and must never know Kubernetes objects,
//! the API server, the runtime or DNS (whose address it holds, [`BridgeNetwork::bind_dns_address`]): the agent translates those into the types of [`traits`] and of [`gantry_cri::network`].
//!
//! Invariants:
//! - Every name in the kernel (bridge, links, tables, mounts) comes from the node's prefix and data directory
//!   (`names.rs`), so several agents share a machine, and `teardown` removes all of it.
//! - An address is leased on disk before it is used and freed after its link is gone: two pods never share one.
//! - The rules of a table change in one nft transaction or not at all.

mod blocking;
mod bridge;
mod commands;
mod connections;
mod conversation;
mod dial;
mod dns_rules;
mod echo;
mod fake;
mod forwarding;
pub mod fuzzing;
mod guard;
mod holding;
mod ipam;
mod leases;
mod link_watch;
mod links;
mod listeners;
mod local_hosts;
mod loopback;
mod names;
mod neighbours;
mod netfilter;
mod netlink;
mod netns;
mod nft;
mod nft_programmer;
mod nft_session;
mod overlay;
mod pod_link;
mod pod_rules;
mod policy;
mod ports;
mod services;
mod table_watch;
mod traffic;
pub mod traits;
mod trial;
mod underlay;

pub use bridge::{BridgeNetwork, Looked};
pub use dial::connect_inside;
pub use echo::GatewayEcho;
pub use fake::{
    FakeEcho, FakeHolding, FakeListeners, FakeOverlay, FakePolicyRules, FakeServiceRules,
};
pub use gantry_cri::ServiceName;
pub use gantry_cri::network::{
    Connections, FakePodNetwork, HostPort, MakeNamespace, NetworkError, NodeTraffic, PodAttachment,
    PodNetwork, Protocol, Traffic,
};
pub use holding::{HoldingLimits, LoggedHolding};
pub use link_watch::LinkWatch;
pub use listeners::{HostListeners, listening};
pub use local_hosts::{LocalHost, LocalHosts};
pub use overlay::VxlanOverlay;
pub use policy::NftPolicyRules;
pub use services::NftServiceRules;
pub use table_watch::TableWatch;
pub use traits::*;
pub use trial::{Trial, nft_version, pod_mtu, routes_into, try_out, vxlan_devices};
