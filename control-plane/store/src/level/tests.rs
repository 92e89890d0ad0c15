//! The level rises, stays, and keeps older builds away from whatever is newer than they are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raft::eraftpb::{ConfState, Entry as LogEntry, HardState};

use crate::backup::{self, BackupError};
use crate::config::{OpenError, StoreConfig};
use crate::disk::Volume;
use crate::disk::fjall::FjallEngine;
use crate::encryption::Encryption;
use crate::packet::Tags;
use crate::store::{LevelError, Store};
use crate::transport::{NoPeers, Outgoing, Transport};
use crate::types::{Index, Key, Operation, ProposeError, Table, Transaction};

const DEADLINE: Duration = Duration::from_secs(30);

fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        tick: Duration::from_millis(10),
        ..StoreConfig::default()
    }
}

fn open(config: StoreConfig, known: u32) -> Result<Store, OpenError> {
    let engine = Arc::new(FjallEngine::open(&config.data_dir, false)?);
    let volume = Volume::new(&config.data_dir, engine, Encryption::default());
    Store::start(config, Arc::new(NoPeers), Some(volume), known)
}

fn newer(refused: Result<Store, OpenError>, dir: &Path) {
    let error = refused.unwrap_err();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
    let message = error.to_string();
    for part in [
        dir.to_str().unwrap(),
        "was written by a newer gantry (feature level 2, this one knows 1): upgrade this server",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

fn put(name: &str) -> Transaction {
    let put = Operation::Put {
        key: Key {
            table: Table("pods".into()),
            namespace: "default".into(),
            name: name.into(),
        },
        value: bytes::Bytes::from_static(b"{}"),
        index: Index::default(),
    };
    Transaction {
        guards: Vec::new(),
        operations: vec![put],
    }
}

#[tokio::test]
async fn it_rises_survives_and_never_falls() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path()), 3).unwrap();
    assert_eq!(store.level(), 1);
    let revision = store.propose(put("a")).await.unwrap();
    let (_, before) = store.fingerprint();
    store.raise_level(2).await.unwrap();
    assert_eq!((store.level(), store.revision()), (2, revision));
    assert_ne!(store.fingerprint().1, before);
    store.raise_level(1).await.unwrap();
    assert_eq!(store.level(), 2);
    let refused = store.raise_level(4).await.unwrap_err();
    assert!(
        matches!(refused, LevelError::Unknown { level: 4, known: 3 }),
        "{refused}"
    );
    store.shutdown().await;
    let again = open(config(dir.path()), 2).unwrap();
    assert_eq!(again.level(), 2);
    again.shutdown().await;
    newer(open(config(dir.path()), 1), dir.path());
}

#[test]
fn an_entry_that_raises_it_is_refused_before_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(FjallEngine::open(dir.path(), false).unwrap());
    let volume = Volume::new(dir.path(), engine, Encryption::default());
    let members = ConfState::from((vec![1], Vec::new()));
    let hard_state = HardState::default();
    volume.bootstrap((1, 1), &hard_state, &members).unwrap();
    let raise = Tags {
        tags: Vec::new(),
        level: 2,
        skipped: 0,
        ..Tags::default()
    };
    let entry = LogEntry {
        index: 2,
        term: 1,
        context: prost::Message::encode_to_vec(&raise),
        ..LogEntry::default()
    };
    volume.append(&[entry], 1, &hard_state, true).unwrap();
    drop(volume);
    newer(open(config(dir.path()), 1), dir.path());
    assert_eq!(open(config(dir.path()), 2).unwrap().level(), 2);
}

#[tokio::test]
async fn a_backup_carries_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::start(config(dir.path()), Arc::new(NoPeers), None, 2).unwrap();
    store.raise_level(2).await.unwrap();
    let mut bytes = Vec::new();
    let summary = store.backup(Vec::new()).write(&mut bytes).unwrap();
    assert_eq!(summary.level, 2);
    for refused in [
        backup::inspect(&bytes[..]),
        backup::restore(&bytes[..], &config(dir.path())),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, BackupError::Newer(_)), "{error}");
    }
    backup::restore_knowing(&bytes[..], &config(dir.path()), 2).unwrap();
    newer(open(config(dir.path()), 1), dir.path());
    assert_eq!(open(config(dir.path()), 2).unwrap().level(), 2);
}

/// Two members in one process.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<HashMap<u64, Store>>>);

impl Transport for Wire {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        let target = self.0.lock().get(&to).cloned();
        for (message, target) in messages.iter().zip(target.iter().cycle()) {
            target.deliver(&message.bytes).unwrap();
        }
    }
}

impl Wire {
    fn start(&self, member_id: u64, voters: &[u64], known: u32) -> Store {
        let config = StoreConfig {
            member_id,
            voters: voters.to_vec(),
            log_entries: 2,
            promote_learners: false,
            ..config(Path::new("/nowhere"))
        };
        let store = Store::start(config, Arc::new(self.clone()), None, known).unwrap();
        self.0.lock().insert(member_id, store.clone());
        store
    }
}

/// The reason for which a member stops, once it has.
async fn why_stopped(store: &Store) -> String {
    let mut leadership = store.leadership();
    let stopped = async { while leadership.changed().await.is_ok() {} };
    tokio::time::timeout(DEADLINE, stopped)
        .await
        .expect("it stops in time");
    match store.propose(put("late")).await.unwrap_err() {
        ProposeError::Stopped(reason) => reason,
        other => panic!("another error: {other}"),
    }
}

#[tokio::test]
async fn an_older_member_stops_at_the_entry_that_raises_it() {
    let wire = Wire::default();
    let leader = wire.start(1, &[1], 2);
    leader.add_learner(2).await.unwrap();
    let older = wire.start(2, &[], 1);
    leader.propose(put("a")).await.unwrap();
    tokio::time::timeout(DEADLINE, older.read_barrier())
        .await
        .expect("it catches up in time")
        .unwrap();
    leader.raise_level(2).await.unwrap();
    let reason = why_stopped(&older).await;
    assert!(
        reason.contains("log entry") && reason.contains("upgrade this server"),
        "{reason}"
    );
    leader.propose(put("b")).await.unwrap();
    wire.0.lock().clear();
}

#[tokio::test]
async fn a_members_state_carries_it_and_an_older_member_stops_at_that() {
    let wire = Wire::default();
    let leader = wire.start(1, &[1], 2);
    leader.raise_level(2).await.unwrap();
    for number in 0..20 {
        leader.propose(put(&format!("p{number}"))).await.unwrap();
    }
    for (id, known) in [(2, 2), (3, 1)] {
        leader.add_learner(id).await.unwrap();
        let joined = wire.start(id, &[], known);
        if known == 2 {
            let caught_up = tokio::time::timeout(DEADLINE, joined.read_barrier()).await;
            caught_up.expect("it catches up in time").unwrap();
            assert_eq!(joined.level(), 2);
        } else {
            let reason = why_stopped(&joined).await;
            assert!(
                reason.contains("the leader's state") && reason.contains("upgrade this server"),
                "{reason}"
            );
        }
    }
    wire.0.lock().clear();
}
