//! Notices that nftables tables of the node have vanished: another firewall was loaded and has flushed everything, as
//! Debian's `nftables.service` does.
//!
//! The kernel is asked by hand, a question of some microseconds, so that it can be asked every second. Being told by it
//! would mean a message for every element that the node itself adds to a map.

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use crate::names::Names;
use crate::netfilter::Netfilter;
use crate::{NetworkError, NodeNetwork};

/// Watches the tables of one node.
pub struct TableWatch {
    netfilter: Netfilter,
    /// What the node's tables begin with.
    prefix: String,
    /// Those of the last look: the family's number, and the name.
    known: BTreeSet<(u8, String)>,
}

impl TableWatch {
    /// Looks at the calling thread's network namespace, now and later.
    pub fn new(node: &NodeNetwork) -> Result<Self, NetworkError> {
        let names = Names::new(node)?;
        let netfilter = Netfilter::open().map_err(refused)?;
        let mut watch = Self {
            netfilter,
            prefix: format!("{}-", names.prefix()),
            known: BTreeSet::new(),
        };
        watch.vanished()?;
        Ok(watch)
    }

    /// The names of tables that were there at the last look and are not now. Blocks for some microseconds.
    pub fn vanished(&mut self) -> Result<BTreeSet<String>, NetworkError> {
        let request = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let all = NetfilterProtoFamily::Unspec;
        let answers = self.netfilter.ask(all, request, flags).map_err(refused)?;
        let own = answers.into_iter().filter_map(table);
        let now: BTreeSet<(u8, String)> = own
            .filter(|(_, name)| name.starts_with(&self.prefix))
            .collect();
        let before = std::mem::replace(&mut self.known, now);
        let gone = before.difference(&self.known);
        Ok(gone.map(|(_, name)| name.clone()).collect())
    }
}

fn table(answer: NetfilterMessage) -> Option<(u8, String)> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = answer.inner else {
        return None;
    };
    let name = table
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            TableAttribute::Name(name) => Some(name),
            _ => None,
        });
    Some((answer.header.family.into(), name?))
}

fn refused(source: std::io::Error) -> NetworkError {
    NetworkError::Io {
        doing: "listing nftables tables".to_owned(),
        source,
    }
}
