//! Members whose disks are nearly full: others write in their stead, or nobody does and says why.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{DEADLINE, Network, create, eventually, key, pause};
use gantry_store::{Demand, MembershipError, ProposeError, Store, StoreConfig, Transaction};

/// No disk has this much room.
const FULL: u64 = u64::MAX / 4;

fn config(directory: &Path, member: u64, reserve: u64) -> StoreConfig {
    StoreConfig {
        data_dir: directory.join(member.to_string()),
        member_id: member,
        voters: vec![1, 2, 3],
        // Slower than a disk that others keep busy.
        tick: Duration::from_millis(50),
        reserve,
        ..StoreConfig::default()
    }
}

async fn cluster(directory: &Path, reserves: [u64; 3]) -> (Network, Vec<Store>) {
    let network = Network::default();
    let mut stores = Vec::new();
    for (member, reserve) in (1..).zip(reserves) {
        let config = config(directory, member, reserve);
        let store = Store::open(config, network.port(member)).await.unwrap();
        network.plug(member, &store);
        stores.push(store);
    }
    (network, stores)
}

async fn write(store: &Store, name: &str) -> Result<(), ProposeError> {
    propose(store, create(key("pods", name), "{}"), Demand::Adds).await
}

async fn propose(
    store: &Store,
    transaction: Transaction,
    demand: Demand,
) -> Result<(), ProposeError> {
    let attempts = async {
        loop {
            match store.propose_for(transaction.clone(), demand).await {
                // With Unknown it may have been written all the same; the next attempt tells.
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::Overloaded { .. }
                    | ProposeError::Unknown,
                ) => pause().await,
                Err(ProposeError::Conflict { .. }) => return Ok(()),
                done => return done.map(drop),
            }
        }
    };
    tokio::time::timeout(DEADLINE, attempts)
        .await
        .expect("in time")
}

fn leader(stores: &[Store]) -> Option<usize> {
    stores
        .iter()
        .position(|store| store.leadership().borrow().is_leader)
}

fn unplug(network: &Network) {
    (1..=3).for_each(|member| network.unplug(member));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_without_room_neither_leads_nor_grows_and_the_others_write() {
    let directory = tempfile::tempdir().unwrap();
    let (network, stores) = cluster(directory.path(), [FULL, 0, 0]).await;
    eventually("one with room to lead", || {
        matches!(leader(&stores), Some(1 | 2))
    })
    .await;
    for number in 0..50 {
        write(&stores[1 + number % 2], &format!("pod-{number}"))
            .await
            .unwrap();
    }
    // Its own clients are told at once that they had better ask another.
    let refused = write(&stores[0], "through the full one").await.unwrap_err();
    assert!(matches!(refused, ProposeError::ReadOnly(_)), "{refused}");
    let refused = stores[0].read_barrier().await.unwrap_err();
    assert!(refused.to_string().contains("make room there"), "{refused}");
    let at = leader(&stores).expect("somebody leads");
    assert_ne!(at, 0, "the one without room leads");
    eventually("the leader to know", || {
        stores[at].room().borrow().short == [1]
    })
    .await;
    assert_eq!(stores[at].room().borrow().read_only, None);
    assert!(stores[0].get(&key("pods", "pod-49")).is_none(), "it grows");
    let members = stores[at].members().await;
    let short = members.iter().filter(|member| member.short_of_room);
    assert_eq!(short.map(|member| member.id).collect::<Vec<_>>(), [1]);
    let refused = stores[at].transfer_leadership(1).await.unwrap_err();
    assert_eq!(refused, MembershipError::Full(1));
    unplug(&network);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_on_a_majority_writes_are_refused_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (network, stores) = cluster(directory.path(), [FULL, FULL, 0]).await;
    eventually("a leader that refuses", || {
        leader(&stores).is_some_and(|at| stores[at].room().borrow().read_only.is_some())
    })
    .await;
    for store in &stores {
        let refused = write(store, "late").await.unwrap_err();
        let ProposeError::ReadOnly(reason) = &refused else {
            panic!("{refused}");
        };
        assert!(reason.contains("make room"), "{reason}");
    }
    let at = leader(&stores).expect("somebody leads");
    stores[at].read_barrier().await.unwrap();
    unplug(&network);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_anywhere_what_makes_room_is_written_by_all() {
    let directory = tempfile::tempdir().unwrap();
    let (network, stores) = cluster(directory.path(), [FULL, FULL, FULL]).await;
    eventually("a leader that refuses", || {
        leader(&stores).is_some_and(|at| stores[at].room().borrow().read_only.is_some())
    })
    .await;
    for (number, store) in stores.iter().enumerate() {
        for demand in [Demand::Changes, Demand::Frees] {
            let name = format!("{demand:?}-{number}");
            let change = create(key("pods", &name), "{}");
            propose(store, change, demand).await.unwrap();
        }
        let refused = write(store, &format!("more-{number}")).await.unwrap_err();
        assert!(matches!(refused, ProposeError::ReadOnly(_)), "{refused}");
    }
    for store in &stores {
        store.read_barrier().await.unwrap();
        eventually("every member to have taken it", || {
            let names = ["Changes-0", "Frees-1", "Frees-2"];
            let mut found = names.iter().map(|name| store.get(&key("pods", name)));
            found.all(|entry| entry.is_some())
        })
        .await;
        assert!(store.get(&key("pods", "more-0")).is_none());
    }
    unplug(&network);
}
