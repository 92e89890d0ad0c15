//! What comes back is what was saved; what was damaged, cut or made for others is refused and leaves nothing.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::config::StoreConfig;
use crate::disk::Volume;
use crate::disk::fjall::FjallEngine;
use crate::encryption::Transformer;
use crate::encryption::toy::ToyTransformer;
use crate::store::Store;
use crate::transport::NoPeers;
use crate::types::{Entry, Guard, Index, Key, Operation, Transaction, WatchError};

const CREATION: &[u8] = b"cluster, version, time";

fn table(name: &str) -> Table {
    Table(name.into())
}

fn key(table_name: &str, name: &str) -> Key {
    Key {
        table: table(table_name),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn put(key: Key) -> Transaction {
    let value = format!("value of {}", key.name);
    Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Put {
            key,
            value: Bytes::from(value),
            index: Index {
                labels: vec![("app".into(), "web".into())],
                fields: Vec::new(),
            },
        }],
    }
}

fn config(dir: &Path) -> StoreConfig {
    let transformer = ToyTransformer::covering(&["secrets"]);
    StoreConfig {
        data_dir: dir.to_owned(),
        transformer: Some(Arc::new(transformer) as Arc<dyn Transformer>),
        ..StoreConfig::default()
    }
}

async fn open(config: StoreConfig) -> Result<Store, OpenError> {
    Store::open(config, Arc::new(NoPeers)).await
}

fn rows(store: &Store, table_name: &str) -> Vec<(String, Entry)> {
    let snapshot = store.snapshot(&table(table_name));
    let row = |(key, entry): (&(Arc<str>, Arc<str>), &Arc<Entry>)| {
        (format!("{}/{}", key.0, key.1), Entry::clone(entry))
    };
    snapshot.iter().map(row).collect()
}

/// A store with a few objects in two tables.
async fn filled() -> Store {
    let store = Store::in_memory(config(Path::new("/nowhere")), Arc::new(NoPeers)).unwrap();
    for name in ["a", "b", "c"] {
        store.propose(put(key("pods", name))).await.unwrap();
    }
    store.propose(put(key("secrets", "s"))).await.unwrap();
    let delete = Operation::Delete {
        key: key("pods", "b"),
        last: None,
    };
    let transaction = Transaction {
        guards: Vec::new(),
        operations: vec![delete],
    };
    store.propose(transaction).await.unwrap();
    store
}

fn saved(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    let summary = store.backup(CREATION.to_vec()).write(&mut bytes).unwrap();
    assert_eq!(inspect(&bytes[..]).unwrap(), summary);
    bytes
}

fn is_bare(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut items| items.next().is_none())
}

#[tokio::test]
async fn a_restored_cluster_has_what_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled().await;
    let (pods, secrets) = (rows(&store, "pods"), rows(&store, "secrets"));
    let backup = store.backup(CREATION.to_vec());
    // What happens later is not in it.
    for number in 0..20 {
        let later = put(key("pods", &format!("later{number}")));
        store.propose(later).await.unwrap();
    }
    let mut bytes = Vec::new();
    let summary = backup.write(&mut bytes).unwrap();
    let expected = BackupSummary {
        creation: CREATION.to_vec(),
        level: 1,
        revision: Revision(5),
        tables: BTreeMap::from([(table("pods"), 2), (table("secrets"), 1)]),
        rows: 3,
        sealed: 1,
        bytes: bytes.len() as u64,
    };
    assert_eq!(summary, expected);
    assert_eq!(inspect(&bytes[..]).unwrap(), expected);
    let home = StoreConfig {
        member_id: 7,
        voters: vec![7],
        ..config(&dir.path().join("new"))
    };
    assert_eq!(restore(&bytes[..], &home).unwrap(), expected);
    let restored = open(home.clone()).await.unwrap();
    assert_eq!(rows(&restored, "pods"), pods);
    assert_eq!(rows(&restored, "secrets"), secrets);
    assert_eq!(restored.revision(), Revision(5 + REVISION_GAP));
    let voters: Vec<u64> = restored
        .members()
        .await
        .iter()
        .map(|member| member.id)
        .collect();
    assert_eq!(voters, [7]);
    // What clients saw after the backup is in the past now.
    let lost = store.revision();
    assert_eq!(
        restored.watch(&[table("pods")], lost).unwrap_err(),
        WatchError::Compacted(restored.revision())
    );
    let mut guarded = put(key("pods", "a"));
    guarded
        .guards
        .push(Guard::ModifiedAt(key("pods", "a"), Revision(1)));
    let revision = restored.propose(guarded).await.unwrap();
    assert_eq!(revision, Revision(6 + REVISION_GAP));
    restored.shutdown().await;
    let again = open(home).await.unwrap();
    assert_eq!(again.revision(), revision);
}

#[tokio::test]
async fn damage_anywhere_is_noticed() {
    let bytes = saved(&filled().await);
    for end in 0..bytes.len() {
        let cut = inspect(&bytes[..end]);
        assert!(cut.is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(inspect(&flipped[..]).is_err(), "flipped at {at}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(inspect(&longer[..]).is_err());
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let bytes = saved(&filled().await);
    let dir = tempfile::tempdir().unwrap();
    let (there, missing) = (dir.path().join("there"), dir.path().join("missing"));
    std::fs::create_dir(&there).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [
        &bytes[..bytes.len() / 2],
        &bytes[..bytes.len() - 1],
        &flipped,
    ] {
        for home in [&there, &missing] {
            let refused = restore(damaged, &config(home)).unwrap_err();
            assert!(matches!(refused, BackupError::Damaged { .. }), "{refused}");
            assert!(refused.to_string().contains("another"), "{refused}");
            assert!(is_bare(home));
        }
        assert!(there.exists() && !missing.exists());
    }
    restore(&bytes[..], &config(&there)).unwrap();
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the medium is broken"))
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_to_its_end_is_refused() {
    let bytes = saved(&filled().await);
    let dir = tempfile::tempdir().unwrap();
    let broken = bytes[..bytes.len() / 2].chain(Failing);
    let refused = restore(broken, &config(dir.path())).unwrap_err();
    assert!(matches!(refused, BackupError::Read(_)), "{refused}");
    assert!(
        refused.to_string().contains("the medium is broken"),
        "{refused}"
    );
    assert!(is_bare(dir.path()));
}

#[tokio::test]
async fn what_is_no_backup_for_this_server_is_refused() {
    let store = filled().await;
    let bytes = saved(&store);
    let dir = tempfile::tempdir().unwrap();
    let home = config(dir.path());
    let refusal = |bytes: &[u8], home: &StoreConfig| restore(bytes, home).unwrap_err().to_string();
    assert!(refusal(b"{\"kind\":\"List\"}", &home).contains("no backup"));
    assert!(refusal(b"", &home).contains("no backup"));
    let mut future = bytes.clone();
    future[8] = 9;
    assert!(refusal(&future, &home).contains("format 9, this server knows 1: upgrade"));
    let refused = restore_knowing(&bytes[..], &home, 0).unwrap_err();
    assert!(matches!(refused, BackupError::Newer(_)), "{refused}");
    assert!(
        refused.to_string().contains("upgrade this server"),
        "{refused}"
    );
    let keyless = StoreConfig {
        transformer: None,
        ..home.clone()
    };
    let message = refusal(&bytes, &keyless);
    assert!(message.contains("secrets default/s") && message.contains("encryption key"));
    assert!(is_bare(dir.path()));
}

#[tokio::test]
async fn nothing_is_restored_over_a_member() {
    let bytes = saved(&filled().await);
    let dir = tempfile::tempdir().unwrap();
    let home = config(dir.path());
    let store = open(home.clone()).await.unwrap();
    store.propose(put(key("pods", "living"))).await.unwrap();
    let refused = restore(&bytes[..], &home).unwrap_err();
    assert!(matches!(refused, BackupError::Occupied { .. }), "{refused}");
    assert!(refused.to_string().contains(dir.path().to_str().unwrap()));
    store.shutdown().await;
    assert!(restore(&bytes[..], &home).is_err());
    let again = open(home).await.unwrap();
    assert!(again.get(&key("pods", "living")).is_some());
}

#[tokio::test]
async fn a_restore_that_was_killed_opens_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let home = config(dir.path());
    let entry = Entry {
        value: Bytes::from_static(b"half"),
        index: Index::default(),
        create_revision: Revision(1),
        modify_revision: Revision(1),
    };
    let engine = Arc::new(FjallEngine::open(dir.path(), false).unwrap());
    let volume = Volume::new(dir.path(), engine, Encryption::default());
    volume.begin_restore().unwrap();
    volume
        .restore_rows(&[(key("pods", "half"), entry)])
        .unwrap();
    drop(volume);
    let refused = open(home).await.unwrap_err();
    assert!(matches!(refused, OpenError::Unfinished { .. }), "{refused}");
    assert!(refused.to_string().contains("restore the backup again"));
}
