//! Stores for the tests: keys, transactions, and members on a network of channels that can be cut.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "every test binary uses its own part of it, and a failed step fails the test"
)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use gantry_store::{
    Guard, Index, Key, NoPeers, Operation, Outgoing, Revision, Store, StoreConfig, Table,
    Transaction, Transport,
};

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub fn table(name: &str) -> Table {
    Table(name.into())
}

pub fn key(table_name: &str, name: &str) -> Key {
    Key {
        table: table(table_name),
        namespace: "default".into(),
        name: name.into(),
    }
}

pub fn put(key: Key, value: &str) -> Transaction {
    Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Put {
            key,
            value: Bytes::copy_from_slice(value.as_bytes()),
            index: Index {
                labels: vec![("app".into(), "web".into())],
                fields: vec![("spec.nodeName".into(), "n1".into())],
            },
        }],
    }
}

pub fn create(key: Key, value: &str) -> Transaction {
    Transaction {
        guards: vec![Guard::Absent(key.clone())],
        ..put(key, value)
    }
}

pub fn delete(key: Key) -> Transaction {
    Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Delete { key, last: None }],
    }
}

pub fn alone(dir: &Path) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        ..StoreConfig::default()
    }
}

pub async fn open(config: StoreConfig) -> Store {
    Store::open(config, Arc::new(NoPeers)).await.unwrap()
}

/// Everything of a table, with revisions.
pub fn dump(store: &Store, table_name: &str) -> Vec<(String, Bytes, Index, Revision, Revision)> {
    let row = |(key, entry): (&(Arc<str>, Arc<str>), &Arc<gantry_store::Entry>)| {
        (
            format!("{}/{}", key.0, key.1),
            entry.value.clone(),
            entry.index.clone(),
            entry.create_revision,
            entry.modify_revision,
        )
    };
    store.snapshot(&table(table_name)).iter().map(row).collect()
}

/// What a crash of the process leaves behind: the files as they are, without the lock.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

/// Waits for a condition that follows from the store's own progress.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polling = async {
        let mut clock = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            clock.tick().await;
        }
    };
    if tokio::time::timeout(DEADLINE, polling).await.is_err() {
        panic!("{what}: not within {DEADLINE:?}");
    }
}

/// Lets members get on before something is tried again: their threads need the processors that a loop of attempts would take
/// from them.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Members in one process.
#[derive(Clone, Default)]
pub struct Network {
    state: Arc<Mutex<Links>>,
}

#[derive(Default)]
struct Links {
    members: HashMap<u64, Store>,
    cut: HashSet<u64>,
    /// Every so many parts of states are lost.
    lossy: Option<usize>,
    parts: usize,
}

struct Port {
    network: Network,
    from: u64,
}

impl Transport for Port {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        let mut links = self.network.state.lock().unwrap();
        let severed = links.cut.contains(&self.from) || links.cut.contains(&to);
        let target = links.members.get(&to).filter(|_| !severed).cloned();
        for message in messages {
            links.parts += usize::from(message.snapshot);
            let lost = links
                .lossy
                .is_some_and(|every| links.parts.is_multiple_of(every));
            if let Some(target) = &target
                && !(message.snapshot && lost)
            {
                target.deliver(&message.bytes).unwrap();
            }
        }
    }
}

impl Network {
    pub fn port(&self, from: u64) -> Arc<dyn Transport> {
        Arc::new(Port {
            network: self.clone(),
            from,
        })
    }

    pub fn plug(&self, member: u64, store: &Store) {
        self.state
            .lock()
            .unwrap()
            .members
            .insert(member, store.clone());
    }

    pub fn unplug(&self, member: u64) {
        self.state.lock().unwrap().members.remove(&member);
    }

    pub fn cut(&self, member: u64) {
        self.state.lock().unwrap().cut.insert(member);
    }

    /// Loses one of `every` parts of states from now on.
    pub fn lose_parts(&self, every: usize) {
        self.state.lock().unwrap().lossy = Some(every);
    }

    /// How many parts of states were sent so far.
    pub fn parts(&self) -> usize {
        self.state.lock().unwrap().parts
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().cut.clear();
    }
}
