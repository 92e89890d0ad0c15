//! What the tables of services are made of: elements of maps and sets, and the parts (chains, maps, sets) that exist
//! while elements need them. Pure data.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::Protocol;

/// Address family: each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// nft's word for the table's family and for the protocol's header.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}

/// What a packet is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Frontend {
    /// An address of the service: ClusterIP, external or load balancer address.
    Address(Protocol, IpAddr, u16),
    /// A port on all addresses of the node.
    NodePort(Family, Protocol, u16),
}

impl Frontend {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Address(protocol, ..) | Self::NodePort(_, protocol, _) => protocol,
        }
    }

    pub(super) fn family(self) -> Family {
        match self {
            Self::Address(_, address, _) => Family::of(address),
            Self::NodePort(family, ..) => family,
        }
    }
}

/// Which packets a frontend's verdict is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scope {
    /// Only those from outside the node and its pods, looked up first: they keep their source address, so only
    /// endpoints of this node may answer (`externalTrafficPolicy: Local`).
    Outside,
    /// All of them.
    Anywhere,
}

/// Frontends whose keys look alike: they share maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) node_port: bool,
    pub(super) scope: Scope,
}

impl Kind {
    pub(super) fn new(scope: Scope, frontend: Frontend) -> Self {
        Self {
            family: frontend.family(),
            protocol: frontend.protocol(),
            node_port: matches!(frontend, Frontend::NodePort(..)),
            scope,
        }
    }
}

/// Names of a kind's parts begin so.
impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frontend = if self.node_port { "port" } else { "address" };
        let outside = match self.scope {
            Scope::Outside => "_outside",
            Scope::Anywhere => "",
        };
        write!(f, "{}_{frontend}{outside}", self.protocol.word())
    }
}

/// How clients are kept with their endpoint.
///
/// Each endpoint of a service port has a *slot*, which it keeps as long as it is there; a set per slot, shared by all
/// services, holds the clients that were sent to it, each until its time is up. A client is looked up slot by slot.
/// One whose slot has become empty is forgotten and chooses anew; one whose slot was filled again has a new endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Affinity {
    /// Seconds since the client's last connection.
    pub(super) timeout: u32,
    /// One more than the highest slot that has an endpoint.
    pub(super) slots: u32,
}

/// A chain and its map: everything that balancing depends on except the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Balancer {
    pub(super) kind: Kind,
    pub(super) affinity: Option<Affinity>,
    pub(super) endpoints: u32,
}

/// The name of the chain and of the map.
impl Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            affinity,
            endpoints,
        } = self;
        match affinity {
            None => write!(f, "{kind}_{endpoints}"),
            Some(Affinity { timeout, slots }) => {
                write!(f, "{kind}_sticky_{timeout}_{slots}_{endpoints}")
            }
        }
    }
}

/// The chain that sends to the endpoint of a slot and remembers the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) kind: Kind,
    pub(super) timeout: u32,
    pub(super) number: u32,
}

/// The name of the chain.
impl Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_slot_{}_{}", self.kind, self.number, self.timeout)
    }
}

/// Chains, maps and sets whose contents follow from their names alone. In this order, each needs only earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    /// The clients that were sent to a slot.
    Clients(Family, u32),
    /// The endpoint that is in a slot, by frontend.
    Targets(Kind, u32),
    /// See [`Slot`].
    Slot(Slot),
    /// See [`Balancer`].
    Balancer(Balancer),
}

impl Part {
    pub(super) fn family(self) -> Family {
        match self {
            Self::Clients(family, _) => family,
            Self::Targets(kind, _) => kind.family,
            Self::Slot(slot) => slot.kind.family,
            Self::Balancer(balancer) => balancer.kind.family,
        }
    }

    /// What it refers to.
    pub(super) fn needs(self) -> Vec<Self> {
        match self {
            Self::Clients(..) | Self::Targets(..) => Vec::new(),
            Self::Slot(Slot { kind, number, .. }) => vec![
                Self::Clients(kind.family, number),
                Self::Targets(kind, number),
            ],
            Self::Balancer(Balancer { kind, affinity, .. }) => affinity
                .into_iter()
                .flat_map(|Affinity { timeout, slots }| {
                    (0..slots).map(move |number| {
                        Self::Slot(Slot {
                            kind,
                            timeout,
                            number,
                        })
                    })
                })
                .collect(),
        }
    }
}

/// Which element, in order of the maps that hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The frontend's verdict.
    Verdict(Scope, Frontend),
    /// The frontend's n-th endpoint.
    Backend(Balancer, Frontend, u32),
    /// The frontend's endpoint in a slot.
    Target(Kind, u32, Frontend),
    /// A frontend without any endpoint.
    Refused(Frontend),
    /// A frontend whose connections wait for an endpoint.
    Held(Frontend),
    /// Who does not wait there.
    Ignored(Frontend, IpNet),
    /// A frontend that is not for everybody.
    Guarded(Frontend),
    /// Who may use a guarded frontend.
    Allowed(Frontend, IpNet),
    /// An endpoint on this node, which must not get a packet from its own address.
    Hairpin(IpAddr),
}

impl Key {
    pub(super) fn family(self) -> Family {
        match self {
            Self::Verdict(_, frontend)
            | Self::Backend(_, frontend, _)
            | Self::Target(_, _, frontend)
            | Self::Refused(frontend)
            | Self::Held(frontend)
            | Self::Ignored(frontend, _)
            | Self::Guarded(frontend)
            | Self::Allowed(frontend, _) => frontend.family(),
            Self::Hairpin(address) => Family::of(address),
        }
    }
}

/// What the element holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Balance in this chain.
    Balance(Balancer),
    /// Go on in the chain of this slot.
    Slot(Slot),
    /// No endpoint may answer here though others could elsewhere.
    Drop,
    /// Translate to.
    To(IpAddr, u16),
    /// Member of a set.
    Member,
}

/// An element of a map or set.
pub(super) type Element = (Key, Value);

/// Elements, sorted by key and unique.
pub(super) type Elements = Arc<[Element]>;
