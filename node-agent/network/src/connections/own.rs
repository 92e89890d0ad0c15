//! Which connections somebody in a network namespace has opened, by the kernel's list of sockets (sock_diag).

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage, TCP_LISTEN};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use crate::conversation::Conversation;

/// Sockets that are looked at; of a pod with more, what the others are stays unknown.
const MOST: usize = 65_536;

/// How many connections there are in the thread's namespace that come from a port on which nobody in it listens: somebody in it
/// has opened them. A connection of its own to itself counts once, by the end that has opened it.
pub(super) fn opened_here() -> io::Result<u64> {
    let mut sockets = Sockets::default();
    for (family, id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN | StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT,
            socket_id: id,
        };
        let request = SockDiagMessage::InetRequest(request);
        let mut kernel = Conversation::open(NETLINK_SOCK_DIAG)?;
        kernel.ask(request, NLM_F_REQUEST | NLM_F_DUMP, |message| {
            if let SockDiagMessage::InetResponse(socket) = message {
                let of = &socket.header;
                sockets.take(of.socket_id.source_port, of.state == TCP_LISTEN);
            }
            match sockets.seen < MOST {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
    }
    Ok(sockets.opened())
}

/// Sockets by their own ports.
#[derive(Default)]
struct Sockets {
    seen: usize,
    listening: HashSet<u16>,
    connected: HashMap<u16, u64>,
}

impl Sockets {
    fn take(&mut self, port: u16, listens: bool) {
        self.seen += 1;
        match listens {
            true => {
                self.listening.insert(port);
            }
            false => *self.connected.entry(port).or_default() += 1,
        }
    }

    fn opened(&self) -> u64 {
        let from_here = self
            .connected
            .iter()
            .filter(|(port, _)| !self.listening.contains(port));
        from_here.map(|(_, count)| *count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_a_port_that_nobody_listens_on_was_opened_here() {
        let mut sockets = Sockets::default();
        for (port, listens) in [(40_001, false), (80, false), (80, false), (40_002, false)] {
            sockets.take(port, listens);
        }
        assert_eq!(sockets.opened(), 4);
        sockets.take(80, true);
        sockets.take(443, true);
        assert_eq!(sockets.opened(), 2);
    }
}
