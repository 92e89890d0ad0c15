//! What is covered is on no disk, opens nowhere else, and follows the key.

use std::io::ErrorKind;
use std::path::Path;

use raft::eraftpb::{ConfState, Entry as LogEntry, HardState};

use super::toy::ToyTransformer;
use super::*;
use crate::config::{OpenError, StoreConfig};
use crate::disk::Volume;
use crate::disk::fjall::FjallEngine;
use crate::level::FEATURE_LEVEL;
use crate::record::{Decoder, RecordError, encode_row, encode_transaction};
use crate::simulation::SimDisk;
use crate::store::Store;
use crate::transport::NoPeers;
use crate::types::{Entry, Index, Operation, Revision, Transaction};

const MARKER: &[u8] = b"correct horse battery staple";

fn key(table: &str, name: &str) -> Key {
    Key {
        table: Table(table.into()),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn put(key: Key) -> Transaction {
    Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Put {
            key,
            value: Bytes::from_static(MARKER),
            index: Index::default(),
        }],
    }
}

fn delete(key: Key) -> Transaction {
    Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key,
            last: Some(Bytes::from_static(MARKER)),
        }],
    }
}

fn config(dir: &Path, transformer: Option<Arc<ToyTransformer>>) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        transformer: transformer.map(|transformer| transformer as Arc<dyn Transformer>),
        ..StoreConfig::default()
    }
}

fn secrets() -> Arc<ToyTransformer> {
    Arc::new(ToyTransformer::covering(&["secrets"]))
}

async fn open(config: StoreConfig) -> Result<Store, OpenError> {
    Store::open(config, Arc::new(NoPeers)).await
}

/// Whether any file below the directory holds the marker. An engine that runs replaces files by others, which may stand
/// where the search has been already: then it begins anew.
fn is_on_disk(dir: &Path) -> bool {
    for _ in 0..100 {
        match search(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return found.unwrap(),
        }
    }
    panic!("the files in {} never stay", dir.display());
}

fn search(dir: &Path) -> std::io::Result<bool> {
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        let found = match path.is_dir() {
            true => search(&path)?,
            false => std::fs::read(&path)?
                .windows(MARKER.len())
                .any(|window| window == MARKER),
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The entries in the log of a member that does not run.
fn log_of(config: StoreConfig) -> Vec<LogEntry> {
    let engine = Arc::new(FjallEngine::open(&config.data_dir, false).unwrap());
    let volume = Volume::new(
        &config.data_dir,
        engine,
        Encryption::new(config.transformer),
    );
    volume.recover(FEATURE_LEVEL).unwrap().unwrap().entries
}

#[test]
fn a_sealed_value_opens_for_its_own_object_alone() {
    let encryption = Encryption::new(Some(secrets()));
    let (mine, other) = (key("secrets", "mine"), key("secrets", "other"));
    let value = Bytes::from_static(MARKER);
    let (sealed, is_sealed) = encryption.seal(&mine, &value);
    assert!(is_sealed && sealed != value);
    assert_eq!(
        encryption.open(&mine, sealed.clone(), true),
        Ok(value.clone())
    );
    let refused = encryption.open(&other, sealed.clone(), true).unwrap_err();
    assert!(refused.0.contains("secrets default/other"), "{refused}");
    let refused = Encryption::default().open(&mine, sealed, true).unwrap_err();
    assert!(refused.0.contains("encryption key"), "{refused}");
    let plain = encryption.seal(&key("pods", "mine"), &value);
    assert_eq!(plain, (value, false));
}

#[test]
fn records_say_whether_they_are_sealed() {
    let encryption = Encryption::new(Some(secrets()));
    let object = key("secrets", "mine");
    let entry = Entry {
        value: Bytes::from_static(MARKER),
        index: Index::default(),
        create_revision: Revision(1),
        modify_revision: Revision(2),
    };
    let transactions = [put(object.clone()), delete(object.clone())];
    for writer in [Encryption::default(), encryption.clone()] {
        let mut decoder = Decoder::new(encryption.clone());
        let row = encode_row(&object, &entry, &writer);
        assert_eq!(decoder.row(&row).unwrap(), (object.clone(), entry.clone()));
        for transaction in &transactions {
            let bytes = encode_transaction(transaction, &writer);
            let decoded = decoder.transactions(&bytes).unwrap();
            assert_eq!(decoded, std::slice::from_ref(transaction));
            let blind = Decoder::default().transactions(&bytes);
            match writer.covers(&object.table) {
                true => assert!(matches!(blind, Err(RecordError::Sealed(_)))),
                false => assert!(blind.is_ok()),
            }
        }
    }
}

#[tokio::test]
async fn what_is_covered_is_in_no_file() {
    // Without the transformer, and in a table that is not covered, the same search finds it.
    for (transformer, table, found) in [
        (Some(secrets()), "secrets", false),
        (Some(secrets()), "pods", true),
        (None, "secrets", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(config(dir.path(), transformer)).await.unwrap();
        for name in ["kept", "gone"] {
            store.propose(put(key(table, name))).await.unwrap();
        }
        store.propose(delete(key(table, "gone"))).await.unwrap();
        // Enough for tables beside the journal.
        for number in 0..150_u32 {
            let mut filler = put(key(table, &format!("filler{number}")));
            if let Some(Operation::Put { value, .. }) = filler.operations.first_mut() {
                *value = [MARKER, &vec![number as u8; 70_000]].concat().into();
            }
            store.propose(filler).await.unwrap();
        }
        assert_eq!(*store.get(&key(table, "kept")).unwrap().value, *MARKER);
        assert_eq!(is_on_disk(dir.path()), found, "{table} while open");
        store.shutdown().await;
        assert_eq!(is_on_disk(dir.path()), found, "{table} once closed");
    }
}

#[tokio::test]
async fn a_server_without_the_key_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path(), Some(secrets()))).await.unwrap();
    store.propose(put(key("secrets", "mine"))).await.unwrap();
    store.shutdown().await;
    let refused = open(config(dir.path(), None)).await.unwrap_err();
    assert!(matches!(refused, OpenError::Sealed { .. }), "{refused:?}");
    let message = refused.to_string();
    for part in [
        dir.path().to_str().unwrap(),
        "secrets default/mine",
        "encryption key",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_entry_that_cannot_be_opened_is_refused_before_it_is_due() {
    let disk = Arc::new(SimDisk::default());
    let volume =
        |encryption| Volume::new(Path::new("/data"), Arc::clone(&disk) as Arc<_>, encryption);
    let encryption = Encryption::new(Some(secrets()));
    let sealing = volume(encryption.clone());
    let members = ConfState::from((vec![1], Vec::new()));
    let hard_state = HardState::default();
    sealing.bootstrap((1, 1), &hard_state, &members).unwrap();
    let mut entry = LogEntry::default();
    (entry.index, entry.term) = (2, 1);
    entry.data = encode_transaction(&put(key("secrets", "mine")), &encryption);
    sealing.append(&[entry], 1, &hard_state, true).unwrap();
    assert!(sealing.recover(FEATURE_LEVEL).is_ok());
    match volume(Encryption::default()).recover(FEATURE_LEVEL) {
        Err(OpenError::Sealed { .. }) => {}
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it was not noticed"),
    }
}

#[tokio::test]
async fn what_was_written_before_stays_readable_and_is_sealed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path(), None)).await.unwrap();
    store.propose(put(key("secrets", "plain"))).await.unwrap();
    store.shutdown().await;
    let transformer = secrets();
    let store = open(config(dir.path(), Some(Arc::clone(&transformer))))
        .await
        .unwrap();
    // More than a slice, so that some are written while the first are rewritten.
    for number in 0..700 {
        let transaction = put(key("secrets", &format!("s{number}")));
        store.propose(transaction).await.unwrap();
    }
    let (_, fingerprint) = store.fingerprint();
    transformer.rotate();
    let writes = async {
        for number in 0..50 {
            let transaction = put(key("secrets", &format!("new{number}")));
            store.propose(transaction).await.unwrap();
        }
    };
    let (resealed, again, ()) = tokio::join!(store.reseal(), store.reseal(), writes);
    resealed.and(again).unwrap();
    transformer.forget();
    assert_ne!(store.fingerprint().1, fingerprint);
    let expected = store.fingerprint().1;
    store.shutdown().await;
    let mut decoder = Decoder::new(Encryption::new(Some(
        Arc::clone(&transformer) as Arc<dyn Transformer>
    )));
    let log = log_of(config(dir.path(), Some(Arc::clone(&transformer))));
    assert!(log.iter().any(|entry| !entry.data.is_empty()));
    for entry in log {
        decoder.transactions(&entry.data).unwrap();
    }
    let store = open(config(dir.path(), Some(Arc::clone(&transformer))))
        .await
        .unwrap();
    assert_eq!(store.fingerprint().1, expected);
    assert_eq!(*store.get(&key("secrets", "plain")).unwrap().value, *MARKER);
    // Without being sealed anew, everything needs the key that it was sealed with.
    store.shutdown().await;
    transformer.rotate();
    transformer.forget();
    let refused = open(config(dir.path(), Some(transformer)))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("bring it back"), "{refused}");
}

#[tokio::test]
async fn a_stopped_store_seals_nothing_anew() {
    let store = Store::ephemeral();
    store.propose(put(key("secrets", "mine"))).await.unwrap();
    store.reseal().await.unwrap();
    store.shutdown().await;
    let refused = store.reseal().await.unwrap_err();
    assert!(
        refused.to_string().contains("start this member"),
        "{refused}"
    );
}
