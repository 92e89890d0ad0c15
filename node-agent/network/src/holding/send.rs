//! Sends packets for clients, there where their own retransmissions would begin, and refusals to them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

use super::syn::{Origin, Syn};
use super::waiting::Orders;
use crate::{NetworkError, netns};

/// Where the pods of this node are, by address.
pub(super) type Pods = HashMap<IpAddr, PathBuf>;

/// Does what is asked for: a pod's packets are sent in its namespace, the node's own in the node's, where the calling thread
/// is. A client from elsewhere sends its packets again itself. Refusals reach any client from the node. Blocks.
///
/// What is not sent is not an error worth stopping for: clients send again. The first is told.
pub(super) fn send(orders: &Orders, pods: &Pods) -> Result<(), NetworkError> {
    let mut of_pods: HashMap<&Path, Vec<&Syn>> = HashMap::new();
    let mut of_node = Vec::new();
    for syn in &orders.again {
        match (syn.origin(), pods.get(&syn.client())) {
            (Origin::Node, _) => of_node.push(syn),
            (Origin::Link, Some(netns)) => of_pods.entry(netns).or_default().push(syn),
            (Origin::Link, None) => {}
        }
    }
    let node = Sender::default();
    let mut outcome = Ok(());
    for syn in of_node {
        outcome = outcome.and(node.send(&syn.again(), syn.ends().1));
    }
    for syn in &orders.refuse {
        outcome = outcome.and(node.send(&syn.refusal(), syn.ends().0));
    }
    for (netns, syns) in of_pods {
        let sent = netns::inside(netns, || {
            let pod = Sender::default();
            let sent = syns.iter().map(|syn| pod.send(&syn.again(), syn.ends().1));
            sent.fold(Ok(()), Result::and)
        });
        outcome = outcome.and(sent);
    }
    outcome
}

/// Sockets for packets with headers of their own, in the network namespace of the thread that first sends.
#[derive(Debug, Default)]
struct Sender {
    ipv4: std::cell::OnceCell<OwnedFd>,
    ipv6: std::cell::OnceCell<OwnedFd>,
}

impl Sender {
    fn send(&self, packet: &[u8], to: SocketAddr) -> Result<(), NetworkError> {
        let sent = self.try_send(packet, to);
        sent.map_err(|source| NetworkError::Io {
            doing: format!("sending a packet to {to}"),
            source,
        })
    }

    /// Never waits: who has sent too much goes on when the client does.
    fn try_send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let (cell, family) = match to {
            SocketAddr::V4(_) => (&self.ipv4, AddressFamily::INET),
            SocketAddr::V6(_) => (&self.ipv6, AddressFamily::INET6),
        };
        let socket = match cell.get() {
            Some(socket) => socket,
            None => {
                // The protocol that says that packets come with IP's header (raw(7), RFC 3542).
                let (raw, protocol) = (SocketType::RAW, Some(ipproto::RAW));
                let opened = socket_with(family, raw, SocketFlags::CLOEXEC, protocol)?;
                cell.get_or_init(|| opened)
            }
        };
        // The port means something else here.
        let to = SocketAddr::new(to.ip(), 0);
        sendto(socket, packet, SendFlags::DONTWAIT, &to)?;
        Ok(())
    }
}
