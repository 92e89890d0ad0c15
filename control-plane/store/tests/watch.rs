//! Watches under load: no gap, no repetition, in order; quiet tables unharmed by busy ones; old revisions.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::sync::Arc;

use common::{DEADLINE, create, delete, key, pause, put, table};
use gantry_store::{NoPeers, Revision, Store, StoreConfig, Watch, WatchError};

const WRITERS: usize = 8;
const WRITES: usize = 150;

/// Revisions and names of everything until the watch has seen revision `last`.
async fn collect(mut watch: Watch, last: Revision) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    while watch.progress_revision() < last {
        let next = tokio::time::timeout(DEADLINE, watch.next()).await;
        let event = next.expect("the watch must not starve").unwrap().unwrap();
        seen.push((event.revision.0, event.key.name.to_string()));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_start_anywhere_under_load_miss_nothing() {
    let store = Store::ephemeral();
    let last = Revision((WRITERS * WRITES) as u64);
    let writer = |writer: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..WRITES {
                let name = format!("w{writer}-{number}");
                let kind = if number % 3 == 0 { "busy" } else { "other" };
                store.propose(create(key(kind, &name), "v")).await.unwrap();
            }
        })
    };
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    let mut watches = Vec::new();
    // Begin all along the way; where the writers are by then is up to the scheduler, and must not matter.
    for number in 0..40 {
        let from = Revision(store.revision().0.saturating_sub(number));
        let both = store.watch(&[table("busy"), table("other")], from).unwrap();
        watches.push((from, tokio::spawn(collect(both, last))));
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for (from, watch) in watches {
        let revisions: Vec<u64> = watch
            .await
            .unwrap()
            .into_iter()
            .map(|seen| seen.0)
            .collect();
        let expected: Vec<u64> = (from.0 + 1..=last.0).collect();
        assert_eq!(revisions, expected);
    }
}

#[tokio::test]
async fn a_quiet_tables_watch_outlives_a_busy_one_and_makes_progress() {
    let config = StoreConfig {
        watch_buffer: 4,
        ..StoreConfig::default()
    };
    let store = Store::in_memory(config, Arc::new(NoPeers)).unwrap();
    let mut quiet = store.watch(&[table("quiet")], Revision(0)).unwrap();
    let mut busy = store.watch(&[table("busy")], Revision(0)).unwrap();
    for number in 0..20 {
        store
            .propose(put(key("busy", &format!("b{number}")), ""))
            .await
            .unwrap();
    }
    let last = store.propose(put(key("quiet", "q"), "")).await.unwrap();
    let event = quiet.next().await.unwrap().unwrap();
    assert_eq!(event.revision, last);
    let mut delivered = 0;
    let end = loop {
        match busy.next().await.unwrap() {
            Ok(_) => delivered += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((delivered, end), (4, WatchError::Lagged));
    assert!(busy.next().await.is_none());
    // Nothing of its own happens any more, but its bookmark must move on.
    let later = store.propose(put(key("busy", "again"), "")).await.unwrap();
    tokio::time::timeout(DEADLINE, async {
        while quiet.progress_revision() < later {
            pause().await;
        }
    })
    .await
    .expect("the bookmark moves");
    assert!(quiet.try_next().is_none());
}

#[tokio::test]
async fn a_watch_from_the_future_begins_there() {
    let store = Store::ephemeral();
    let mut watch = store.watch(&[table("pods")], Revision(2)).unwrap();
    for name in ["a", "b", "c"] {
        store.propose(put(key("pods", name), "")).await.unwrap();
    }
    assert_eq!(watch.next().await.unwrap().unwrap().revision, Revision(3));
}

#[tokio::test]
async fn a_paged_list_stays_on_its_revision() {
    let config = StoreConfig {
        event_history: 5,
        ..StoreConfig::default()
    };
    let store = Store::in_memory(config, Arc::new(NoPeers)).unwrap();
    for name in ["a", "b", "c"] {
        store.propose(put(key("pods", name), "1")).await.unwrap();
    }
    let then = Revision(3);
    store.propose(put(key("pods", "a"), "2")).await.unwrap();
    store.propose(delete(key("pods", "b"))).await.unwrap();
    store.propose(put(key("nodes", "n"), "")).await.unwrap();
    let list = |revision| {
        let snapshot = store.snapshot_at(&table("pods"), revision)?;
        let row = |(key, entry): (&(Arc<str>, Arc<str>), &Arc<gantry_store::Entry>)| {
            format!("{}={}", key.1, String::from_utf8_lossy(&entry.value))
        };
        Some(snapshot.iter().map(row).collect::<Vec<_>>())
    };
    let expected = Some(vec!["a=1".to_owned(), "b=1".to_owned(), "c=1".to_owned()]);
    assert_eq!(list(then), expected);
    assert_eq!(
        list(store.revision()),
        Some(vec!["a=2".to_owned(), "c=1".to_owned()])
    );
    for _ in 0..20 {
        store.propose(put(key("pods", "z"), "")).await.unwrap();
    }
    assert_eq!(
        list(then),
        expected,
        "a list that began goes on after compaction"
    );
    assert_eq!(list(Revision(4)), None);
    assert_eq!(list(Revision(store.revision().0 + 1)), None);
}

#[tokio::test]
async fn a_barrier_reads_what_was_written() {
    let store = Store::ephemeral();
    let written = store.propose(put(key("pods", "a"), "")).await.unwrap();
    let read = tokio::time::timeout(DEADLINE, store.read_barrier()).await;
    assert_eq!(read.unwrap().unwrap(), written);
}

#[tokio::test]
async fn a_watch_of_the_past_holds_a_page_of_it_and_misses_nothing() {
    let store = Store::ephemeral();
    let mut last = Revision(0);
    for number in 0..300 {
        let name = format!("n{number}");
        last = store.propose(put(key("busy", &name), "")).await.unwrap();
    }
    let watch = store.watch(&[table("busy")], Revision(0)).unwrap();
    // While it reads the past, more happens.
    let more = store.propose(put(key("busy", "more"), "")).await.unwrap();
    assert!(watch.progress_revision() < last);
    let seen = collect(watch, more).await;
    let revisions: Vec<u64> = seen.into_iter().map(|seen| seen.0).collect();
    assert_eq!(revisions, (1..=more.0).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_watch_that_the_history_passes_while_it_reads_is_told() {
    let config = StoreConfig {
        event_history: 100,
        ..StoreConfig::default()
    };
    let store = Store::in_memory(config, Arc::new(NoPeers)).unwrap();
    let write = async || store.propose(put(key("busy", "b"), "")).await.unwrap();
    for _ in 0..90 {
        write().await;
    }
    let mut watch = store.watch(&[table("busy")], Revision(0)).unwrap();
    for _ in 0..200 {
        write().await;
    }
    let mut end = None;
    while let Some(next) = watch.next().await {
        end = Some(next);
    }
    assert!(
        matches!(end, Some(Err(WatchError::Compacted(_)))),
        "{end:?}"
    );
}

#[tokio::test]
async fn readers_that_do_not_read_share_what_waits_for_them_and_leave_others_some() {
    let store = Store::ephemeral();
    let budget = gantry_store::Budget::new(1 << 20);
    let watch = || {
        let tables = [table("busy")];
        store.watch_within(&tables, Revision(0), budget.clone())
    };
    let mut unread: Vec<Watch> = (0..100).map(|_| watch().unwrap()).collect();
    let value = "x".repeat(10 << 10);
    for _ in 0..20 {
        store.propose(put(key("busy", "b"), &value)).await.unwrap();
    }
    // Each event is counted once, with what was there before it.
    let used = budget.used();
    assert!(used > 64 << 10, "{used}");
    assert!(used <= (1 << 20) / 8 + (21 << 10), "{used}");
    let mut end = None;
    while let Some(next) = unread[0].next().await {
        end = Some(next);
    }
    assert!(matches!(end, Some(Err(WatchError::Lagged))), "{end:?}");
    unread.clear();
    assert_eq!(budget.used(), 0);
}
