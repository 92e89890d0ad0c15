//! Blocking requests to the kernel's netfilter: tracked connections, and which nftables tables there are.

use std::io;
use std::ops::ControlFlow;

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::conversation::Conversation;

/// A connection to the netfilter of the network namespace that it was opened in.
pub(crate) struct Netfilter(Conversation);

impl Netfilter {
    pub(crate) fn open() -> io::Result<Self> {
        Conversation::open(NETLINK_NETFILTER).map(Self)
    }

    /// Everything that one request is answered with.
    pub(crate) fn ask(
        &mut self,
        family: NetfilterProtoFamily,
        request: impl Into<NetfilterMessageInner>,
        flags: u16,
    ) -> io::Result<Vec<NetfilterMessage>> {
        let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
        let mut found = Vec::new();
        self.0.ask(request, flags, |message| {
            found.push(message);
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }
}
