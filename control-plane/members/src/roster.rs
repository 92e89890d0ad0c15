//! Names and addresses of the servers, as a table of the store.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use gantry_apiserver::Peer;
use gantry_store::{FEATURE_LEVEL, Index, Key, Operation, Store, Table, Transaction};
use serde::{Deserialize, Serialize};

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its member id.
    pub id: u64,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where the others and agents reach it.
    pub address: SocketAddr,
    /// The version of Gantry it runs; empty until it has started.
    #[serde(default)]
    pub version: String,
    /// The highest feature level it knows.
    #[serde(default)]
    pub level: u32,
}

impl ServerRecord {
    /// This server, as it runs now.
    pub fn running(id: u64, name: String, address: SocketAddr) -> Self {
        Self {
            id,
            name,
            address,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            level: FEATURE_LEVEL,
        }
    }

    /// A member that no record tells of.
    pub fn nowhere(id: u64) -> Self {
        Self {
            id,
            name: id.to_string(),
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            version: String::new(),
            level: 0,
        }
    }
}

/// The member list, as etcd calls it, with what consensus does not know of a member: its name, its address, its version.
#[derive(Clone)]
pub struct Roster {
    store: Store,
}

impl Roster {
    /// As a store has it.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Where it is kept.
    pub fn table() -> Table {
        Table("-/servers".into())
    }

    fn key(id: u64) -> Key {
        Key {
            table: Self::table(),
            namespace: "".into(),
            name: format!("{id:016x}").into(),
        }
    }

    /// Every server, by id.
    pub fn all(&self) -> Vec<ServerRecord> {
        let table = self.store.snapshot(&Self::table());
        let records = table
            .iter()
            .map(|(_, entry)| serde_json::from_slice(&entry.value));
        // Only this module writes the table.
        records.filter_map(Result::ok).collect()
    }

    /// A server by its id.
    pub fn get(&self, id: u64) -> Option<ServerRecord> {
        let entry = self.store.get(&Self::key(id))?;
        serde_json::from_slice(&entry.value).ok()
    }

    /// Writes a server's record, unless it is there already.
    pub async fn put(&self, record: &ServerRecord) -> Result<()> {
        if self.get(record.id).as_ref() == Some(record) {
            return Ok(());
        }
        let put = Operation::Put {
            key: Self::key(record.id),
            value: serde_json::to_vec(record)?.into(),
            index: Index::default(),
        };
        self.change(vec![put]).await
    }

    /// Forgets a server, and that its certificate counted: what is left of it on some disk is nobody's from now on.
    pub async fn remove(&self, id: u64) -> Result<()> {
        let forget = Operation::Delete {
            key: Self::key(id),
            last: None,
        };
        let refuse = Operation::Put {
            key: Peer::former_server(id),
            value: "{}".into(),
            index: Index::default(),
        };
        self.change(vec![forget, refuse]).await
    }

    async fn change(&self, operations: Vec<Operation>) -> Result<()> {
        let transaction = Transaction {
            guards: Vec::new(),
            operations,
        };
        let written = self.store.propose(transaction).await;
        written.map(drop).context("writing the list of servers")
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use gantry_apiserver::Identity;

    use super::*;
    use crate::MEMBERS_GROUP;

    #[tokio::test]
    async fn a_removed_servers_certificate_does_not_count() {
        let store = Store::ephemeral();
        let roster = Roster::new(store.clone());
        let peer = |id: u64| Peer {
            address: IpAddr::from([192, 0, 2, 9]),
            identity: Some(Identity::new(
                &format!("gantry:server:{id}"),
                &[MEMBERS_GROUP],
            )),
            key: None,
        };
        for id in [1, 2] {
            let record = ServerRecord::nowhere(id);
            roster.put(&record).await.expect("written");
            peer(id).check(&store).expect("a server");
        }
        roster.remove(2).await.expect("written");
        assert!(roster.get(2).is_none());
        peer(2).check(&store).expect_err("removed");
        peer(1).check(&store).expect("a server still");
    }
}
