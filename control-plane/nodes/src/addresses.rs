//! Which nodes have which addresses, by what the store has of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use gantry_store::{Store, Table, TableSnapshot};
use k8s_openapi::api::core::v1::NodeStatus;
use parking_lot::Mutex;
use serde_json::Value;

/// An address of a Node, the same for every way to write it: `::ffff:192.0.2.7` is 192.0.2.7.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    Ip(IpAddr),
    /// A host's name.
    Name(String),
}

impl Address {
    pub(crate) fn new(text: &str) -> Self {
        match text.parse::<IpAddr>() {
            Ok(address) => Self::Ip(address.to_canonical()),
            Err(_) => Self::Name(text.to_ascii_lowercase()),
        }
    }

    /// Every machine has it.
    pub(crate) fn is_loopback(&self) -> bool {
        matches!(self, Self::Ip(address) if address.is_loopback())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Name(name) => name.escape_debug().fmt(formatter),
        }
    }
}

/// The addresses of a status, of every type.
pub(crate) fn addresses(status: Option<&NodeStatus>) -> BTreeSet<Address> {
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let addresses = addresses.into_iter().flatten();
    addresses
        .map(|address| Address::new(&address.address))
        .collect()
}

/// The addresses of a Node's JSON.
pub(crate) fn listed_addresses(node: &Value) -> BTreeSet<Address> {
    let addresses = node["status"]["addresses"].as_array();
    let addresses = addresses.into_iter().flatten();
    let addresses = addresses.filter_map(|address| address["address"].as_str());
    addresses.map(Address::new).collect()
}

/// The nodes by their addresses.
pub(crate) struct AddressBook {
    store: Store,
    read: Mutex<Read>,
}

/// What has been read of the store.
#[derive(Default)]
struct Read {
    as_of: Option<TableSnapshot>,
    of_node: BTreeMap<Arc<str>, BTreeSet<Address>>,
    nodes: BTreeMap<Address, BTreeSet<Arc<str>>>,
}

impl AddressBook {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            read: Mutex::default(),
        }
    }

    /// The nodes that have an address which only one may have. Reads the Nodes that were changed since it was last asked:
    /// O(log nodes) for each.
    pub(crate) fn holders(&self, address: &Address) -> BTreeSet<Arc<str>> {
        let mut read = self.read.lock();
        read.follow(self.store.snapshot(&Table("core/nodes".into())));
        read.nodes.get(address).cloned().unwrap_or_default()
    }
}

impl Read {
    fn follow(&mut self, now: TableSnapshot) {
        let before = self.as_of.take().unwrap_or_default();
        for ((_, name), entry) in now.changes_since(&before) {
            // The store holds only what the API server wrote: JSON.
            let node: Option<Value> =
                entry.and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let mut addresses = node.as_ref().map(listed_addresses).unwrap_or_default();
            addresses.retain(|address| !address.is_loopback());
            self.set(name, addresses);
        }
        self.as_of = Some(now);
    }

    fn set(&mut self, node: &Arc<str>, addresses: BTreeSet<Address>) {
        let before = match addresses.is_empty() {
            true => self.of_node.remove(node),
            false => self.of_node.insert(node.clone(), addresses.clone()),
        };
        let before = before.unwrap_or_default();
        for lost in before.difference(&addresses) {
            if let Some(nodes) = self.nodes.get_mut(lost) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.nodes.remove(lost);
                }
            }
        }
        for gained in addresses.difference(&before) {
            let nodes = self.nodes.entry(gained.clone()).or_default();
            nodes.insert(node.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_store::{Index, Key, Operation, Transaction};
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key {
            table: Table("core/nodes".into()),
            namespace: "".into(),
            name: name.into(),
        }
    }

    async fn write(store: &Store, operation: Operation) {
        let transaction = Transaction {
            guards: Vec::new(),
            operations: vec![operation],
        };
        store.propose(transaction).await.expect("written");
    }

    async fn put(store: &Store, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| json!({"address": address}));
        let addresses: Vec<Value> = addresses.collect();
        let node = json!({"status": {"addresses": addresses}});
        let put = Operation::Put {
            key: key(name),
            value: node.to_string().into(),
            index: Index::default(),
        };
        write(store, put).await;
    }

    #[tokio::test]
    async fn a_book_follows_the_nodes() {
        let store = Store::ephemeral();
        let book = AddressBook::new(store.clone());
        let holders = |address: &str| -> Vec<String> {
            let nodes = book.holders(&Address::new(address));
            nodes.iter().map(ToString::to_string).collect()
        };
        assert!(holders("192.0.2.7").is_empty());
        put(&store, "a", &["192.0.2.7", "2001:db8::7", "127.0.0.1", "a"]).await;
        put(&store, "b", &["192.0.2.8", "127.0.0.1", "b"]).await;
        assert_eq!(holders("192.0.2.7"), ["a"]);
        assert_eq!(holders("::ffff:192.0.2.7"), ["a"]);
        assert_eq!(holders("2001:0db8:0::0007"), ["a"]);
        assert_eq!(holders("B"), ["b"]);
        assert!(holders("127.0.0.1").is_empty(), "every machine has it");
        put(&store, "a", &["192.0.2.8"]).await;
        assert_eq!(holders("192.0.2.8"), ["a", "b"]);
        assert!(holders("192.0.2.7").is_empty());
        let delete = Operation::Delete {
            key: key("a"),
            last: None,
        };
        write(&store, delete).await;
        assert_eq!(holders("192.0.2.8"), ["b"]);
        put(&store, "b", &[]).await;
        assert!(holders("192.0.2.8").is_empty());
        let read = book.read.lock();
        assert!(read.of_node.is_empty() && read.nodes.is_empty());
    }
}
