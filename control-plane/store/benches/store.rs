//! Writes by 1, 32 and 256 clients with the log on disk, listing, and fan-out to 50 watchers.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gantry_store::{
    Guard, Index, Key, NoPeers, Operation, Revision, Store, StoreConfig, Table, Transaction,
};
use tokio::runtime::Runtime;

const VALUE_BYTES: usize = 1_024;

fn runtime() -> Runtime {
    Runtime::new().expect("a runtime starts")
}

fn pods() -> Table {
    Table("core/pods".into())
}

fn create(number: u64) -> Transaction {
    let key = Key {
        table: pods(),
        namespace: "default".into(),
        name: format!("pod-{number:012}").into(),
    };
    Transaction {
        guards: vec![Guard::Absent(key.clone())],
        operations: vec![Operation::Put {
            key,
            value: Bytes::from(vec![b'x'; VALUE_BYTES]),
            index: Index {
                labels: vec![("app".into(), "web".into())],
                fields: vec![("spec.nodeName".into(), "node-1".into())],
            },
        }],
    }
}

/// `total` creates, shared by the clients; every client waits for its answer before the next.
async fn create_all(store: &Store, clients: u64, total: u64, next: &Arc<AtomicU64>) {
    let end = next.load(Ordering::Relaxed) + total;
    let client = || {
        let (store, next) = (store.clone(), Arc::clone(next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return;
                }
                store
                    .propose(create(number))
                    .await
                    .expect("the create succeeds");
            }
        })
    };
    let clients: Vec<_> = (0..clients).map(|_| client()).collect();
    for client in clients {
        client.await.expect("a client does not panic");
    }
    next.store(end, Ordering::Relaxed);
}

fn creates(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("create, synced");
    group.throughput(Throughput::Elements(1));
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for clients in [1, 32, 256] {
        let dir = tempfile::tempdir().expect("a directory");
        let config = StoreConfig {
            data_dir: dir.path().to_owned(),
            ..StoreConfig::default()
        };
        let store = runtime
            .block_on(Store::open(config, Arc::new(NoPeers)))
            .expect("the store opens");
        let next = Arc::new(AtomicU64::new(0));
        group.bench_function(format!("{clients} clients"), |bencher| {
            bencher.iter_custom(|total| {
                let begun = Instant::now();
                runtime.block_on(create_all(&store, clients, total, &next));
                begun.elapsed()
            });
        });
        runtime.block_on(store.shutdown());
    }
    group.finish();
}

fn lists(criterion: &mut Criterion) {
    let runtime = runtime();
    let store = Store::ephemeral();
    let next = Arc::new(AtomicU64::new(0));
    runtime.block_on(create_all(&store, 64, 2_000, &next));
    criterion.bench_function("list 2000", |bencher| {
        bencher.iter(|| {
            let snapshot = store.snapshot(&pods());
            let bytes: usize = snapshot.iter().map(|(_, entry)| entry.value.len()).sum();
            black_box(bytes)
        });
    });
    criterion.bench_function("read barrier", |bencher| {
        bencher.iter(|| runtime.block_on(store.read_barrier()).expect("it leads"));
    });
}

fn watches(criterion: &mut Criterion) {
    const WATCHERS: usize = 50;
    let runtime = runtime();
    let mut group = criterion.benchmark_group("watch");
    group.throughput(Throughput::Elements(1));
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    group.bench_function(
        "create by 32 clients until 50 watchers have it",
        |bencher| {
            bencher.iter_custom(|total| {
                let store = Store::ephemeral();
                let next = Arc::new(AtomicU64::new(0));
                runtime.block_on(async {
                    let watcher = || {
                        let mut watch = store
                            .watch(&[pods()], Revision(0))
                            .expect("nothing is compacted yet");
                        tokio::spawn(async move {
                            for _ in 0..total {
                                watch
                                    .next()
                                    .await
                                    .expect("the store runs")
                                    .expect("the watcher keeps up");
                            }
                        })
                    };
                    let watchers: Vec<_> = (0..WATCHERS).map(|_| watcher()).collect();
                    let begun = Instant::now();
                    create_all(&store, 32, total, &next).await;
                    for watcher in watchers {
                        watcher.await.expect("a watcher does not panic");
                    }
                    begun.elapsed()
                })
            });
        },
    );
    group.finish();
}

criterion_group!(benches, creates, lists, watches);
criterion_main!(benches);
