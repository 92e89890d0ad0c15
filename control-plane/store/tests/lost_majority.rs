//! Two of three members are gone for good: the third goes on with what it has, and the cluster grows again.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{DEADLINE, Network, copy, dump, eventually, key, pause, put};
use gantry_store::recovery::become_sole_voter;
use gantry_store::{MemberRole, Store, StoreConfig};
use tempfile::TempDir;

/// Three members; ids count from 1, positions from 0.
struct Cluster {
    network: Network,
    dirs: Vec<TempDir>,
    stores: Vec<Store>,
}

fn config(dir: &Path, member: u64, voters: &[u64]) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        member_id: member,
        voters: voters.to_vec(),
        // Slower than a disk that others keep busy.
        tick: Duration::from_millis(50),
        ..StoreConfig::default()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("in time")
}

impl Cluster {
    async fn start() -> Cluster {
        let mut cluster = Cluster {
            network: Network::default(),
            dirs: Vec::new(),
            stores: Vec::new(),
        };
        for member in 1..=3 {
            let dir = tempfile::tempdir().unwrap();
            let config = config(dir.path(), member, &[1, 2, 3]);
            let port = cluster.network.port(member);
            let store = Store::open(config, port).await.unwrap();
            cluster.network.plug(member, &store);
            cluster.dirs.push(dir);
            cluster.stores.push(store);
        }
        eventually("a leader", || cluster.leading().is_some()).await;
        cluster
    }

    fn leading(&self) -> Option<usize> {
        let mut stores = self.stores.iter();
        stores.position(|store| store.leadership().borrow().is_leader)
    }

    async fn write(&self, at: usize, names: std::ops::Range<u32>) {
        for number in names {
            let transaction = put(key("pods", &format!("p{number}")), "value");
            within(self.stores[at].propose(transaction)).await.unwrap();
        }
    }

    /// Everybody is gone.
    async fn end(&self) {
        for (at, store) in self.stores.iter().enumerate() {
            self.network.unplug(at as u64 + 1);
            within(store.shutdown()).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (1..=3).for_each(|member| self.network.unplug(member));
    }
}

async fn roles(store: &Store) -> Vec<(u64, MemberRole)> {
    let members = within(store.members()).await;
    let role = |member: &gantry_store::MemberStatus| (member.id, member.role);
    members.iter().map(role).collect()
}

#[tokio::test]
async fn the_survivor_has_every_write_that_it_took_part_in_and_the_cluster_grows_again() {
    let cluster = Cluster::start().await;
    let leader = cluster.leading().unwrap();
    let (cut_off, survivor) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = survivor as u64 + 1;
    // From here on an acknowledged write is on the leader's disk and the survivor's.
    cluster.network.cut(cut_off as u64 + 1);
    cluster.write(leader, 0..100).await;
    let home = tempfile::tempdir().unwrap();
    let (old, new) = (home.path().join("old"), home.path().join("new"));
    // As it is at this moment, whatever the survivor knows of what is committed.
    copy(cluster.dirs[survivor].path(), &old);
    let expected = dump(&cluster.stores[leader], "pods");
    assert_eq!(expected.len(), 100);
    let term = cluster.stores[leader].leadership().borrow().term;
    cluster.end().await;

    let recovery = become_sole_voter(&config(&old, id, &[])).unwrap();
    let others: Vec<u64> = (1..=3).filter(|other| *other != id).collect();
    assert_eq!(recovery.dropped, others);
    assert!(recovery.last >= (term, 100), "{recovery:?}");
    let network = Network::default();
    let survivor = Store::open(config(&old, id, &[]), network.port(id)).await;
    let survivor = survivor.unwrap();
    network.plug(id, &survivor);
    assert!(survivor.leadership().borrow().is_leader);
    assert_eq!(dump(&survivor, "pods"), expected);
    assert_eq!(roles(&survivor).await, [(id, MemberRole::Voter)]);

    within(survivor.propose(put(key("pods", "after"), "value")))
        .await
        .unwrap();
    within(survivor.add_learner(4)).await.unwrap();
    let joined = Store::open(config(&new, 4, &[]), network.port(4))
        .await
        .unwrap();
    network.plug(4, &joined);
    within(async {
        let both = [(id, MemberRole::Voter), (4, MemberRole::Voter)];
        while roles(&survivor).await != both {
            pause().await;
        }
    })
    .await;
    within(joined.propose(put(key("pods", "by4"), "value")))
        .await
        .unwrap();
    within(survivor.read_barrier()).await.unwrap();
    assert_eq!(dump(&survivor, "pods").len(), 102);
    assert_eq!(dump(&joined, "pods"), dump(&survivor, "pods"));
    for (member, store) in [(4, joined), (id, survivor)] {
        network.unplug(member);
        within(store.shutdown()).await;
    }
}

#[tokio::test]
async fn a_survivor_that_was_cut_off_has_what_came_before_and_nothing_else() {
    let cluster = Cluster::start().await;
    let leader = cluster.leading().unwrap();
    let survivor = (leader + 1) % 3;
    let id = survivor as u64 + 1;
    cluster.write(leader, 0..20).await;
    within(cluster.stores[survivor].read_barrier())
        .await
        .unwrap();
    let expected = dump(&cluster.stores[survivor], "pods");
    assert_eq!(expected.len(), 20);
    cluster.network.cut(id);
    cluster.write(leader, 20..40).await;
    cluster.end().await;

    let home = config(cluster.dirs[survivor].path(), id, &[]);
    let recovery = become_sole_voter(&home).unwrap();
    assert_eq!(recovery.dropped.len(), 2, "{recovery:?}");
    let survivor = Store::open(home, Network::default().port(id))
        .await
        .unwrap();
    assert!(survivor.leadership().borrow().is_leader);
    assert_eq!(dump(&survivor, "pods"), expected);
    within(survivor.propose(put(key("pods", "after"), "value")))
        .await
        .unwrap();
    survivor.shutdown().await;
}
