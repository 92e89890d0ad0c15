//! Blocking requests to the kernel's netfilter: tracked connections, which nftables tables there are, what rules log.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

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
        self.ask_of(family, 0, request, flags)
    }

    /// The same of a part of netfilter that has a number (`res_id`), such as a group of what is logged.
    pub(crate) fn ask_of(
        &mut self,
        family: NetfilterProtoFamily,
        number: u16,
        request: impl Into<NetfilterMessageInner>,
        flags: u16,
    ) -> io::Result<Vec<NetfilterMessage>> {
        let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, number), request);
        let mut found = Vec::new();
        self.0.ask(request, flags, |message| {
            found.push(message);
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The socket itself, to hear what netfilter says without having been asked.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        self.0.into_socket()
    }
}
