//! A member whose state differs from the others': it stops, and does not start again. The difference comes from a storage
//! transformer that opens values otherwise on one member, as a faulty memory or build would.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Network, eventually, key, pause, put};
use gantry_store::{
    OpenError, ProposeError, Store, StoreConfig, Table, TransformError, Transformer,
};

/// Leaves values as they are, until it is faulty.
#[derive(Debug, Default)]
struct Glass {
    faulty: AtomicBool,
}

impl Transformer for Glass {
    fn covers(&self, _: &Table) -> bool {
        true
    }

    fn seal(&self, _: &[u8], value: &[u8]) -> Vec<u8> {
        value.to_vec()
    }

    fn open(&self, _: &[u8], sealed: &[u8]) -> Result<Vec<u8>, TransformError> {
        let mut value = sealed.to_vec();
        if self.faulty.load(Ordering::Relaxed) {
            value.push(b'!');
        }
        Ok(value)
    }
}

struct Cluster {
    network: Network,
    members: Vec<(Store, Arc<Glass>)>,
}

fn config(directory: &Path, member: u64, voters: u64, transformer: Arc<Glass>) -> StoreConfig {
    StoreConfig {
        data_dir: directory.join(member.to_string()),
        member_id: member,
        voters: (1..=voters).collect(),
        // Slower than a disk that others keep busy.
        tick: Duration::from_millis(50),
        transformer: Some(transformer),
        ..StoreConfig::default()
    }
}

impl Cluster {
    async fn start(directory: &Path, voters: u64) -> Cluster {
        let mut cluster = Cluster {
            network: Network::default(),
            members: Vec::new(),
        };
        for member in 1..=voters {
            let transformer = Arc::new(Glass::default());
            let config = config(directory, member, voters, transformer.clone());
            let store = Store::open(config, cluster.network.port(member))
                .await
                .unwrap();
            cluster.network.plug(member, &store);
            cluster.members.push((store, transformer));
        }
        eventually("a leader", || cluster.leader().is_some()).await;
        cluster
    }

    fn leader(&self) -> Option<usize> {
        let leads = |(store, _): &(Store, _)| store.leadership().borrow().is_leader;
        self.members.iter().position(leads)
    }

    async fn write(&self, name: &str) {
        loop {
            let at = self.leader().unwrap_or_default();
            match self.members[at]
                .0
                .propose(put(key("pods", name), "{}"))
                .await
            {
                Ok(_) => return,
                Err(ProposeError::Stopped(reason)) => panic!("{reason}"),
                Err(_) => pause().await,
            }
        }
    }

    async fn is_stopped(&self, at: usize) -> bool {
        let barrier = self.members[at].0.read_barrier().await;
        matches!(barrier, Err(ProposeError::Stopped(_)))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (1..=self.members.len() as u64).for_each(|member| self.network.unplug(member));
    }
}

/// Waits until a member has stopped; how it says so.
async fn why_stopped(store: &Store) -> String {
    let waiting = async {
        loop {
            match store.propose(put(key("pods", "late"), "{}")).await {
                Err(ProposeError::Stopped(reason)) => return reason,
                _ => pause().await,
            }
        }
    };
    tokio::time::timeout(common::DEADLINE, waiting)
        .await
        .expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_differs_is_fenced_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path(), 3).await;
    cluster.write("before").await;
    let leader = cluster.leader().expect("somebody leads");
    let odd = (leader + 1) % 3;
    cluster.members[odd].1.faulty.store(true, Ordering::Relaxed);
    cluster.write("different").await;
    let reason = why_stopped(&cluster.members[odd].0).await;
    assert!(
        reason.contains("differs from that of the others")
            && reason.contains("gantry member remove"),
        "{reason}"
    );
    for at in [leader, (leader + 2) % 3] {
        assert!(!cluster.is_stopped(at).await, "member {at} has stopped too");
    }
    cluster.write("after").await;
    // With a sound transformer again: what is on its disk is wrong all the same.
    cluster.members[odd].0.shutdown().await;
    let config = config(directory.path(), odd as u64 + 1, 3, Arc::default());
    let port = cluster.network.port(odd as u64 + 1);
    let refused = Store::open(config, port).await.unwrap_err();
    assert!(matches!(refused, OpenError::Diverged { .. }), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("add it anew with an empty one")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_from_the_majority_stops_itself() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path(), 3).await;
    let leader = cluster.leader().expect("somebody leads");
    cluster.members[leader]
        .1
        .faulty
        .store(true, Ordering::Relaxed);
    cluster.write("different").await;
    let reason = why_stopped(&cluster.members[leader].0).await;
    assert!(
        reason.contains("differs from that of the others"),
        "{reason}"
    );
    eventually("another leader", || {
        cluster.leader().is_some_and(|at| at != leader)
    })
    .await;
    cluster.write("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_differ_none_is_blamed() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path(), 2).await;
    let leader = cluster.leader().expect("somebody leads");
    let other = 1 - leader;
    cluster.members[other]
        .1
        .faulty
        .store(true, Ordering::Relaxed);
    cluster.write("different").await;
    let seen = async {
        loop {
            // Whoever leads by now knows.
            for (member, _) in &cluster.members {
                if member.members().await.iter().any(|member| member.differs) {
                    return;
                }
            }
            pause().await;
        }
    };
    tokio::time::timeout(common::DEADLINE, seen)
        .await
        .expect("it is seen");
    cluster.write("after").await;
    for at in [leader, other] {
        assert!(!cluster.is_stopped(at).await, "member {at} has stopped");
    }
}
