//! Forgets tracked flows that lead where nobody answers.
//!
//! A flow is translated as its first packet was, for as long as packets come: a client of UDP that keeps its port goes
//! on to an endpoint that is gone, or to nobody when it began before the service had rules. So after the rules have
//! changed, flows to the changed frontends that are answered by none of their endpoints are deleted, and the next packet
//! is translated anew.
//!
//! A connection of TCP that is established ends by itself, and may finish. One that nobody has answered yet is deleted as
//! well: the client's next attempt then reaches an endpoint that lives, and no later connection from the same port is
//! sent where this one went (a minute and more after a node has died).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as ProtocolNumber, Status,
    Tuple,
};
use netlink_packet_netfilter::{NetfilterMessageInner, NetfilterProtoFamily};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::elements::{Family, Frontend};
use super::table::Answerers;
use crate::netfilter::Netfilter;
use crate::netlink::Netlink;
use crate::{NetworkError, Protocol};

/// Deletes the flows to these frontends that are answered by none of their endpoints. Answers how many there were.
pub(super) fn forget(frontends: &[Answerers]) -> Result<usize, NetworkError> {
    if frontends.is_empty() {
        return Ok(0);
    }
    let wanted = Wanted::new(frontends);
    let local = if wanted.has_node_ports() {
        local_addresses()?
    } else {
        HashSet::new()
    };
    let refused = |source| NetworkError::Io {
        doing: "looking for tracked flows (does the kernel have nf_conntrack_netlink?)".to_owned(),
        source,
    };
    let mut netfilter = Netfilter::open().map_err(refused)?;
    let mut forgotten = 0;
    for (family, protocol) in wanted.tables() {
        for flow in flows(&mut netfilter, family, protocol).map_err(refused)? {
            if wanted.is_stale(family, &flow, &local)
                && delete(&mut netfilter, family, flow).map_err(refused)?
            {
                forgotten += 1;
            }
        }
    }
    Ok(forgotten)
}

/// Addresses that the node holds.
fn local_addresses() -> Result<HashSet<IpAddr>, NetworkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = Netlink::open()?.dump("listing the node's addresses", request)?;
    let addresses = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => Some(message.attributes),
        _ => None,
    });
    let addresses = addresses.flatten().filter_map(|attribute| match attribute {
        AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(address),
        _ => None,
    });
    Ok(addresses.collect())
}

/// The frontends, by what packets to them look like.
struct Wanted<'a> {
    frontends: HashMap<Frontend, &'a Option<BTreeSet<(IpAddr, u16)>>>,
}

impl<'a> Wanted<'a> {
    fn new(frontends: &'a [Answerers]) -> Self {
        let frontends = frontends.iter();
        Self {
            frontends: frontends
                .map(|answerers| (answerers.frontend, &answerers.endpoints))
                .collect(),
        }
    }

    fn has_node_ports(&self) -> bool {
        let mut frontends = self.frontends.keys();
        frontends.any(|frontend| matches!(frontend, Frontend::NodePort(..)))
    }

    fn tables(&self) -> BTreeSet<(Family, Protocol)> {
        let frontends = self.frontends.keys();
        frontends
            .map(|frontend| (frontend.family(), frontend.protocol()))
            .collect()
    }

    fn is_stale(&self, family: Family, flow: &Flow, local: &HashSet<IpAddr>) -> bool {
        if flow.protocol == Protocol::Tcp && flow.is_answered {
            return false;
        }
        let (address, port) = flow.to;
        let by_port = || {
            let frontend = Frontend::NodePort(family, flow.protocol, port);
            self.frontends
                .get(&frontend)
                .filter(|_| local.contains(&address))
        };
        let by_address = Frontend::Address(flow.protocol, address, port);
        match self.frontends.get(&by_address).or_else(by_port) {
            None => false,
            Some(Some(endpoints)) => !endpoints.contains(&flow.answered_by),
            // Nothing translates it any more, which is as it should be for those that nothing ever did.
            Some(None) => flow.answered_by != flow.to,
        }
    }
}

/// A tracked flow.
#[derive(Debug)]
struct Flow {
    protocol: Protocol,
    /// Where the client sends.
    to: (IpAddr, u16),
    /// Where the answers come from, before they are translated back.
    answered_by: (IpAddr, u16),
    /// Somebody has answered.
    is_answered: bool,
    /// What the kernel knows it by.
    original: Vec<Tuple>,
}

impl Flow {
    fn new(attributes: Vec<ConntrackAttribute>) -> Option<Self> {
        let (mut original, mut reply, mut is_answered) = (None, None, false);
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple),
                ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(tuple),
                ConntrackAttribute::CtaStatus(status) => {
                    is_answered = status.contains(Status::SeenReply);
                }
                _ => {}
            }
        }
        let (original, reply) = (original?, Ends::new(&reply?)?);
        let ends = Ends::new(&original)?;
        Some(Self {
            protocol: ends.protocol,
            to: ends.destination?,
            answered_by: reply.source?,
            is_answered,
            original,
        })
    }
}

/// The ends of one direction.
struct Ends {
    protocol: Protocol,
    source: Option<(IpAddr, u16)>,
    destination: Option<(IpAddr, u16)>,
}

impl Ends {
    fn new(tuple: &[Tuple]) -> Option<Self> {
        let (mut protocol, mut addresses, mut ports) = (None, (None, None), (None, None));
        for part in tuple {
            match part {
                Tuple::Ip(parts) => {
                    for part in parts {
                        match part {
                            IPTuple::SourceAddress(address) => addresses.0 = Some(*address),
                            IPTuple::DestinationAddress(address) => addresses.1 = Some(*address),
                            _ => {}
                        }
                    }
                }
                Tuple::Proto(parts) => {
                    for part in parts {
                        match part {
                            ProtoTuple::Protocol(ProtocolNumber::Udp) => {
                                protocol = Some(Protocol::Udp);
                            }
                            ProtoTuple::Protocol(ProtocolNumber::Tcp) => {
                                protocol = Some(Protocol::Tcp);
                            }
                            ProtoTuple::Protocol(ProtocolNumber::Sctp) => {
                                protocol = Some(Protocol::Sctp);
                            }
                            ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
                            ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(Self {
            protocol: protocol?,
            source: addresses.0.zip(ports.0),
            destination: addresses.1.zip(ports.1),
        })
    }
}

/// The flows of one protocol. Kernels before 5.8 know no filter and tell of all.
fn flows(netfilter: &mut Netfilter, family: Family, protocol: Protocol) -> io::Result<Vec<Flow>> {
    let answers = netfilter.ask(of(family), list(protocol), NLM_F_REQUEST | NLM_F_DUMP)?;
    let flows = answers.into_iter().filter_map(|answer| match answer.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
            Flow::new(attributes)
        }
        _ => None,
    });
    Ok(flows.filter(|flow| flow.protocol == protocol).collect())
}

/// Whether it was still there.
fn delete(netfilter: &mut Netfilter, family: Family, flow: Flow) -> io::Result<bool> {
    let which = vec![ConntrackAttribute::CtaTupleOrig(flow.original)];
    let request = ConntrackMessage::Delete(which);
    match netfilter.ask(of(family), request, NLM_F_REQUEST | NLM_F_ACK) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn of(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::Ipv4 => NetfilterProtoFamily::IPv4,
        Family::Ipv6 => NetfilterProtoFamily::IPv6,
    }
}

/// Asks for flows of which, of the original direction, the protocol alone has to match. The library has no words for
/// the filter (`enum ctattr_filter` of the kernel).
fn list(protocol: Protocol) -> ConntrackMessage {
    const IPCTNL_MSG_CT_GET: u8 = 1;
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_FILTER: u16 = 25;
    const CTA_FILTER_ORIG_FLAGS: u16 = 1;
    const PROTO_NUM: u32 = 1 << 3;
    let number = ProtoTuple::Protocol(match protocol {
        Protocol::Tcp => ProtocolNumber::Tcp,
        Protocol::Udp => ProtocolNumber::Udp,
        Protocol::Sctp => ProtocolNumber::Sctp,
    });
    let flags = DefaultNla::new(CTA_FILTER_ORIG_FLAGS, PROTO_NUM.to_ne_bytes().to_vec());
    ConntrackMessage::Other {
        message_type: IPCTNL_MSG_CT_GET,
        attributes: vec![
            nested(CTA_TUPLE_ORIG, &Tuple::Proto(vec![number])),
            nested(CTA_FILTER, &flags),
        ],
    }
}

fn nested(kind: u16, content: &impl Emitable) -> DefaultNla {
    let mut bytes = vec![0; content.buffer_len()];
    content.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}
