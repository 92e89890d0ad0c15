//! Guards, watches, paging.

use bytes::Bytes;

use super::*;
use crate::encryption::Encryption;
use crate::packet::Body;
use crate::simulation::{Random, SimDisk};
use crate::state::HistoryLimits;
use crate::types::{Guard, Index, Operation};

fn table() -> Table {
    Table("core/pods".into())
}

fn key(namespace: &str, name: &str) -> Key {
    Key {
        table: table(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn put(key: Key) -> Operation {
    Operation::Put {
        key,
        value: Bytes::from_static(b"{}"),
        index: Index::default(),
    }
}

fn create(key: Key) -> Transaction {
    Transaction {
        guards: vec![Guard::Absent(key.clone())],
        operations: vec![put(key)],
    }
}

#[tokio::test]
async fn a_failed_guard_changes_nothing() {
    let store = Store::ephemeral();
    assert_eq!(
        store.propose(create(key("a", "x"))).await.unwrap(),
        Revision(1)
    );
    let both = Transaction {
        guards: vec![
            Guard::Absent(key("a", "y")),
            Guard::ModifiedAt(key("a", "x"), Revision(9)),
        ],
        operations: vec![put(key("a", "y"))],
    };
    let refused = store.propose(both).await.unwrap_err();
    assert!(
        matches!(
            refused,
            ProposeError::Conflict {
                guard: 1,
                current: Some(_)
            }
        ),
        "{refused:?}"
    );
    assert_eq!(store.revision(), Revision(1));
    assert!(store.get(&key("a", "y")).is_none());
}

#[tokio::test]
async fn a_watch_joins_history_and_live_events() {
    let store = Store::ephemeral();
    for name in ["x", "y"] {
        store.propose(create(key("a", name))).await.unwrap();
    }
    let mut watch = store.watch(&[table()], Revision(1)).unwrap();
    assert_eq!(watch.progress_revision(), Revision(1));
    let delete = Operation::Delete {
        key: key("a", "x"),
        last: None,
    };
    store
        .propose(Transaction {
            guards: vec![],
            operations: vec![delete],
        })
        .await
        .unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, Revision(2));
    let gone = watch.next().await.unwrap().unwrap();
    assert!(gone.deleted && gone.entry.modify_revision == Revision(3));
    assert_eq!(watch.progress_revision(), Revision(3));
}

#[tokio::test]
async fn old_events_are_compacted_and_slow_watchers_closed() {
    let config = StoreConfig {
        event_history: 2,
        watch_buffer: 2,
        ..StoreConfig::default()
    };
    let store = Store::in_memory(config, Arc::new(NoPeers)).unwrap();
    let mut slow = store.watch(&[table()], Revision(0)).unwrap();
    for name in ["v", "w", "x", "y"] {
        store.propose(create(key("a", name))).await.unwrap();
    }
    assert_eq!(
        store.watch(&[table()], Revision(1)).unwrap_err(),
        WatchError::Compacted(Revision(2))
    );
    assert!(store.watch(&[table()], Revision(2)).is_ok());
    for revision in [1, 2] {
        let event = slow.next().await.unwrap().unwrap();
        assert_eq!(event.revision, Revision(revision));
    }
    assert_eq!(slow.next().await.unwrap().unwrap_err(), WatchError::Lagged);
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_reader_of_large_objects_is_closed_by_their_size() {
    let store = Store::ephemeral();
    let mut stalled = store.watch(&[table()], Revision(0)).unwrap();
    let mut reading = store.watch(&[table()], Revision(0)).unwrap();
    let large = 1 << 20;
    for number in 0..12 {
        let operation = Operation::Put {
            key: key("a", &format!("large-{number}")),
            value: vec![b'x'; large].into(),
            index: Index::default(),
        };
        let transaction = Transaction {
            guards: vec![],
            operations: vec![operation],
        };
        store.propose(transaction).await.unwrap();
        let event = reading.next().await.unwrap();
        assert!(event.is_ok(), "who reads is never closed: {event:?}");
    }
    let mut held = 0;
    let end = loop {
        match stalled.next().await.unwrap() {
            Ok(event) => held += event.entry.value.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(end, WatchError::Lagged);
    assert!((large..=8 * large).contains(&held), "{held} bytes waited");
}

#[tokio::test]
async fn pages_continue_after_their_cursor_on_their_revision() {
    let store = Store::ephemeral();
    for (namespace, name) in [("a", "x"), ("b", "x"), ("b", "y"), ("c", "x")] {
        store.propose(create(key(namespace, name))).await.unwrap();
    }
    let page = store.snapshot(&table());
    store.propose(create(key("b", "z"))).await.unwrap();
    let names = |namespace, cursor| {
        page.range_after(namespace, cursor)
            .map(|(key, _)| format!("{}/{}", key.0, key.1))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(None, Some(("a", "x"))), ["b/x", "b/y", "c/x"]);
    assert_eq!(names(Some("b"), Some(("b", "x"))), ["b/y"]);
    assert_eq!(page.range_namespace("b").count(), 2);
}

#[tokio::test]
async fn too_many_waiting_proposals_are_refused_until_some_are_answered() {
    let limits = HistoryLimits {
        events: 1,
        bytes: 1,
    };
    let shared = Shared::new(State::default(), limits);
    shared.admit(2).unwrap();
    shared.admit(2).unwrap();
    let refused = shared.admit(2).unwrap_err();
    assert!(
        matches!(refused, ProposeError::Overloaded { waiting: 2 }),
        "{refused:?}"
    );
    let (reply, answer) = oneshot::channel();
    shared.answer(reply, Ok(Revision(1)));
    assert_eq!(answer.await.unwrap().unwrap(), Revision(1));
    shared.admit(2).unwrap();
}

#[tokio::test]
async fn what_is_no_message_for_this_member_is_refused() {
    let store = Store::ephemeral();
    assert!(matches!(
        store.deliver(&[0xff; 7]),
        Err(DeliverError::Malformed)
    ));
    let packet = Packet {
        from: 2,
        to: 9,
        body: Some(Body::Consensus(Bytes::new())),
    };
    assert!(matches!(
        store.deliver(&packet.encode_to_vec()),
        Err(DeliverError::Misdirected { to: 9, member: 1 })
    ));
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let disk = Arc::new(SimDisk::default());
    let volume = Volume::new(
        std::path::Path::new("/data/m1"),
        Arc::clone(&disk) as Arc<_>,
        Encryption::default(),
    );
    let config = StoreConfig {
        data_dir: "/data/m1".into(),
        tick: std::time::Duration::from_millis(5),
        ..StoreConfig::default()
    };
    let store = Store::start(config, Arc::new(NoPeers), Some(volume), FEATURE_LEVEL).unwrap();
    store.propose(create(key("a", "kept"))).await.unwrap();
    let mut watch = store.watch(&[table()], Revision(1)).unwrap();
    let mut room = store.room();
    disk.fill(0);
    room.wait_for(|room| room.read_only.is_some())
        .await
        .unwrap();
    assert_eq!(room.borrow().short, [1]);
    for _ in 0..2 {
        let refused = store.propose(create(key("a", "x"))).await.unwrap_err();
        let message = refused.to_string();
        assert!(matches!(refused, ProposeError::ReadOnly(_)), "{message}");
        for part in [
            "nothing can be written",
            "/data/m1",
            "has 0 MiB left",
            "make room there",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
    // Nothing that is read or watched ends.
    store.read_barrier().await.unwrap();
    assert!(store.get(&key("a", "kept")).is_some());
    disk.make_room();
    room.wait_for(|room| room.read_only.is_none())
        .await
        .unwrap();
    store.propose(create(key("a", "x"))).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().key, key("a", "x"));
}

#[tokio::test]
async fn a_member_whose_disk_fails_stops_and_acknowledges_nothing_more() {
    let disk = Arc::new(SimDisk::default());
    let start = || {
        let volume = Volume::new(
            std::path::Path::new("/data/m1"),
            Arc::clone(&disk) as Arc<_>,
            Encryption::default(),
        );
        Store::start(
            StoreConfig::default(),
            Arc::new(NoPeers),
            Some(volume),
            FEATURE_LEVEL,
        )
        .unwrap()
    };
    let store = start();
    store.propose(create(key("a", "kept"))).await.unwrap();
    let mut watch = store.watch(&[table()], Revision(1)).unwrap();
    disk.light_fuse(0);
    for name in ["lost", "late"] {
        let refused = store.propose(create(key("a", name))).await.unwrap_err();
        let message = refused.to_string();
        assert!(matches!(refused, ProposeError::Stopped(_)), "{message}");
        assert!(
            message.contains("/data/m1") && message.contains("check that disk"),
            "{message}"
        );
    }
    assert!(watch.next().await.is_none());
    assert!(!store.leadership().borrow().is_leader);
    assert!(matches!(
        store.read_barrier().await,
        Err(ProposeError::Stopped(_))
    ));
    store.shutdown().await;
    disk.crash(&mut Random::new(1));
    let again = start();
    assert!(again.get(&key("a", "kept")).is_some());
    assert!(again.get(&key("a", "late")).is_none());
}

#[tokio::test]
async fn equal_states_have_equal_hashes_at_equal_entries() {
    let (one, other) = (Store::ephemeral(), Store::ephemeral());
    for store in [&one, &other] {
        store.propose(create(key("a", "x"))).await.unwrap();
    }
    let (index, hash) = one.fingerprint();
    assert_eq!(other.fingerprint_at(index), Some(hash));
    one.propose(create(key("a", "y"))).await.unwrap();
    other.propose(create(key("a", "z"))).await.unwrap();
    let (index, hash) = one.fingerprint();
    assert_ne!(other.fingerprint_at(index), Some(hash));
    assert_eq!(one.fingerprint_at(index + 1), None);
}
