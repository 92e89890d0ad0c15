//! What survives: restarts, kill -9, a torn tail; and what is refused: a locked or unwritable directory.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{alone, copy, create, delete, dump, eventually, key, open, put, table};
use gantry_store::{NoPeers, OpenError, ProposeError, Revision, Store, StoreConfig, WatchError};

async fn fill(store: &Store, from: usize, to: usize) {
    for number in from..to {
        let transaction = put(
            key("pods", &format!("p{number}")),
            &"v".repeat(number % 700),
        );
        store.propose(transaction).await.unwrap();
    }
}

/// The newest journal of the storage engine.
fn journal(dir: &Path) -> PathBuf {
    let paths = fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    let journals = paths.filter(|path| path.extension().is_some_and(|kind| kind == "jnl"));
    journals.max().expect("there is a journal")
}

#[tokio::test]
async fn everything_is_there_after_a_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(alone(dir.path())).await;
    fill(&store, 0, 50).await;
    store.propose(delete(key("pods", "p7"))).await.unwrap();
    let before = dump(&store, "pods");
    let term = store.leadership().borrow().term;
    store.shutdown().await;
    assert!(matches!(
        store.propose(delete(key("pods", "p8"))).await,
        Err(ProposeError::Stopped(_))
    ));
    let again = open(alone(dir.path())).await;
    assert_eq!(again.revision(), Revision(51));
    assert_eq!(dump(&again, "pods"), before);
    let leadership = *again.leadership().borrow();
    assert!(
        leadership.is_leader && leadership.term > term,
        "{leadership:?}"
    );
    assert_eq!(
        again.watch(&[table("pods")], Revision(3)).unwrap_err(),
        WatchError::Compacted(again.compacted())
    );
    assert_eq!(
        again.propose(create(key("pods", "new"), "")).await.unwrap(),
        Revision(52)
    );
}

#[tokio::test]
async fn acknowledged_writes_survive_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let store = open(alone(&live)).await;
    fill(&store, 0, 120).await;
    let before = dump(&store, "pods");
    copy(&live, &crashed);
    let recovered = open(alone(&crashed)).await;
    assert_eq!(recovered.revision(), store.revision());
    assert_eq!(dump(&recovered, "pods"), before);
}

#[tokio::test]
async fn a_torn_tail_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (live, torn) = (dir.path().join("live"), dir.path().join("torn"));
    let store = open(alone(&live)).await;
    fill(&store, 0, 40).await;
    let before = dump(&store, "pods");
    copy(&live, &torn);
    // A write that the crash cut short: the beginning of a batch, then nothing that makes sense.
    let journal = journal(&torn);
    let bytes = fs::read(&journal).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut file = fs::OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(used as u64).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    file.write_all(&bytes[..used.min(37)]).unwrap();
    drop(file);
    let recovered = open(alone(&torn)).await;
    assert_eq!(dump(&recovered, "pods"), before);
    recovered
        .propose(create(key("pods", "after"), "x"))
        .await
        .unwrap();
    recovered.shutdown().await;
    let again = open(alone(&torn)).await;
    assert_eq!(dump(&again, "pods").len(), before.len() + 1);
}

#[tokio::test]
async fn a_bit_that_flipped_amid_acknowledged_writes_is_refused_by_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(alone(dir.path())).await;
    for number in 0..40 {
        let transaction = put(key("pods", &format!("p{number}")), &"v".repeat(500));
        store.propose(transaction).await.unwrap();
    }
    store.shutdown().await;
    let journal = journal(dir.path());
    let mut bytes = fs::read(&journal).unwrap();
    let value = bytes.windows(100).position(|window| window == [b'v'; 100]);
    bytes[value.expect("the journal holds the values") + 50] ^= 1;
    fs::write(&journal, bytes).unwrap();
    let refused = Store::open(alone(dir.path()), Arc::new(NoPeers))
        .await
        .unwrap_err();
    assert!(matches!(refused, OpenError::Engine { .. }), "{refused:?}");
    assert!(refused.to_string().contains(dir.path().to_str().unwrap()));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_any_file_is_refused_by_name_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let (live, damaged) = (dir.path().join("live"), dir.path().join("damaged"));
    let config = StoreConfig {
        log_entries: 16,
        ..alone(&live)
    };
    let store = open(config).await;
    // Enough for tables beside the journal.
    for number in 0..150 {
        let value: String = (0..70_000)
            .map(|at| char::from(b'a' + ((at * 7_919 + number * 31 + at / 13) % 26) as u8))
            .collect();
        let transaction = put(key("pods", &format!("p{number}")), &value);
        store.propose(transaction).await.unwrap();
    }
    let before = dump(&store, "pods");
    store.shutdown().await;
    let mut refused = Vec::new();
    for file in files(&live) {
        let length = fs::metadata(&file).unwrap().len() as usize;
        let name = file.strip_prefix(&live).unwrap();
        for at in [length / 20, length / 2] {
            if length == 0 {
                continue;
            }
            fs::remove_dir_all(&damaged).ok();
            copy(&live, &damaged);
            let mut bytes = fs::read(damaged.join(name)).unwrap();
            bytes[at] ^= 0x10;
            fs::write(damaged.join(name), bytes).unwrap();
            match Store::open(alone(&damaged), Arc::new(NoPeers)).await {
                Ok(store) => {
                    assert_eq!(dump(&store, "pods"), before, "{name:?} at {at}");
                    store.shutdown().await;
                }
                Err(error @ (OpenError::Engine { .. } | OpenError::Corrupt { .. })) => {
                    let message = error.to_string();
                    assert!(message.contains(damaged.to_str().unwrap()), "{message}");
                    assert!(message.contains("keep a copy"), "{message}");
                    if name.extension().is_some_and(|kind| kind == "jnl") {
                        assert!(message.contains(name.to_str().unwrap()), "{message}");
                    }
                    refused.push(name.to_owned());
                }
                Err(other) => panic!("{name:?} at {at}: another error: {other}"),
            }
        }
    }
    for part in ["jnl", "tables"] {
        let named = |name: &PathBuf| name.to_str().unwrap().contains(part);
        assert!(refused.iter().any(named), "{part} among {refused:?}");
    }
}

#[tokio::test]
async fn a_log_that_was_shortened_recovers_from_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        log_entries: 8,
        event_history: 10,
        ..alone(dir.path())
    };
    let store = open(config.clone()).await;
    fill(&store, 0, 200).await;
    fill(&store, 0, 100).await;
    let before = dump(&store, "pods");
    assert_eq!(store.compacted(), Revision(290));
    store.shutdown().await;
    let again = open(config).await;
    assert_eq!(again.revision(), Revision(300));
    assert_eq!(dump(&again, "pods"), before);
}

#[tokio::test]
async fn a_directory_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(alone(dir.path())).await;
    let refused = Store::open(alone(dir.path()), Arc::new(NoPeers))
        .await
        .unwrap_err();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused:?}");
    assert!(refused.to_string().contains(dir.path().to_str().unwrap()));
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = Store::open(alone(&file.join("data")), Arc::new(NoPeers))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, OpenError::Directory { .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_last_handle_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(alone(dir.path())).await;
    let mut leadership = store.leadership();
    let mut watch = store.watch(&[table("pods")], Revision(0)).unwrap();
    drop(store);
    while leadership.changed().await.is_ok() {}
    assert!(watch.next().await.is_none());
    eventually("the directory is free", || {
        let lock = fs::File::open(dir.path().join("lock")).unwrap();
        lock.try_lock().is_ok()
    })
    .await;
}
