//! Three members in one process: election, replication, refusal, partitions, late joiners.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use common::{DEADLINE, Network, create, dump, eventually, key, put, table};
use gantry_store::{Guard, ProposeError, Revision, Store, StoreConfig, Term, WatchError};
use std::time::Duration;

struct Cluster {
    network: Network,
    stores: Vec<Store>,
}

fn config(member: u64) -> StoreConfig {
    StoreConfig {
        member_id: member,
        voters: vec![1, 2, 3],
        tick: Duration::from_millis(20),
        log_entries: 16,
        ..StoreConfig::default()
    }
}

impl Cluster {
    fn start() -> Cluster {
        let network = Network::default();
        let start = |member| {
            let store = Store::in_memory(config(member), network.port(member)).unwrap();
            network.plug(member, &store);
            store
        };
        let stores = (1..=3).map(start).collect();
        Cluster { network, stores }
    }

    /// The position of the leader among `candidates`, once there is one.
    async fn leader(&self, candidates: &[usize]) -> usize {
        let leads = |at: &usize| self.stores[*at].leadership().borrow().is_leader;
        eventually("a leader", || candidates.iter().any(leads)).await;
        *candidates.iter().find(|at| leads(at)).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (1..=3).for_each(|member| self.network.unplug(member));
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("in time")
}

#[tokio::test]
async fn writes_reach_every_member_and_followers_take_them_too() {
    let cluster = Cluster::start();
    let leader = cluster.leader(&[0, 1, 2]).await;
    for number in 0..20 {
        let transaction = create(key("pods", &format!("p{number}")), "v");
        within(cluster.stores[leader].propose(transaction))
            .await
            .unwrap();
    }
    let follower = &cluster.stores[(leader + 1) % 3];
    let barrier = within(follower.read_barrier()).await.unwrap();
    assert_eq!(barrier, Revision(20));
    assert_eq!(
        dump(follower, "pods"),
        dump(&cluster.stores[leader], "pods")
    );
    let revision = within(follower.propose(create(key("pods", "x"), "")))
        .await
        .unwrap();
    assert_eq!(revision, Revision(21));
    assert!(
        follower.get(&key("pods", "x")).is_some(),
        "whoever wrote it reads it at the same member"
    );
    let conflict = within(follower.propose(create(key("pods", "x"), "other")))
        .await
        .unwrap_err();
    let ProposeError::Conflict {
        guard: 0,
        current: Some(current),
    } = conflict
    else {
        panic!("another error: {conflict:?}");
    };
    assert_eq!(current.modify_revision, Revision(21));
}

#[tokio::test]
async fn a_cut_off_leader_is_replaced_and_writes_nothing() {
    let cluster = Cluster::start();
    let old = cluster.leader(&[0, 1, 2]).await;
    let old_term = cluster.stores[old].leadership().borrow().term;
    within(cluster.stores[old].propose(put(key("pods", "a"), "1")))
        .await
        .unwrap();
    cluster.network.cut(old as u64 + 1);
    let lost = within(cluster.stores[old].propose(put(key("pods", "b"), "lost")))
        .await
        .unwrap_err();
    assert!(
        matches!(lost, ProposeError::Unknown | ProposeError::NotLeader { .. }),
        "{lost:?}"
    );
    let rest: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    let new = cluster.leader(&rest).await;
    within(cluster.stores[new].propose(put(key("pods", "c"), "2")))
        .await
        .unwrap();
    let stale = within(cluster.stores[old].read_barrier()).await;
    assert!(
        stale.is_err(),
        "a cut off member must not claim to be up to date"
    );
    cluster.network.heal();
    within(async {
        // Refused while it has not heard of the new leader yet.
        while cluster.stores[old].read_barrier().await.is_err() {}
    })
    .await;
    assert_eq!(
        dump(&cluster.stores[old], "pods"),
        dump(&cluster.stores[new], "pods")
    );
    assert!(cluster.stores[old].get(&key("pods", "b")).is_none());
    let mut fenced = put(key("pods", "d"), "");
    fenced.guards.push(Guard::Term(old_term));
    let refused = within(cluster.stores[new].propose(fenced.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ProposeError::Conflict { guard: 0, .. }),
        "{refused:?}"
    );
    fenced.guards = vec![Guard::Term(Term(
        cluster.stores[new].leadership().borrow().term.0,
    ))];
    within(cluster.stores[new].propose(fenced)).await.unwrap();
}

#[tokio::test]
async fn a_member_that_missed_too_much_takes_over_the_state() {
    let cluster = Cluster::start();
    let leader = cluster.leader(&[0, 1, 2]).await;
    let late = (leader + 1) % 3;
    within(cluster.stores[leader].propose(put(key("pods", "first"), "1")))
        .await
        .unwrap();
    within(cluster.stores[late].read_barrier()).await.unwrap();
    let mut watch = cluster.stores[late]
        .watch(&[table("pods")], Revision(1))
        .unwrap();
    cluster.network.cut(late as u64 + 1);
    for number in 0..100 {
        let transaction = put(key("pods", &format!("p{number}")), "v");
        within(cluster.stores[leader].propose(transaction))
            .await
            .unwrap();
    }
    cluster.network.heal();
    eventually("the late member caught up", || {
        cluster.stores[late].revision() == Revision(101)
    })
    .await;
    assert_eq!(
        dump(&cluster.stores[late], "pods"),
        dump(&cluster.stores[leader], "pods")
    );
    // It never saw the events between, so its watchers must not be left with a gap.
    assert_eq!(
        within(watch.next()).await.unwrap().unwrap_err(),
        WatchError::Lagged
    );
    assert_eq!(cluster.stores[late].compacted(), Revision(101));
}

#[tokio::test]
async fn a_leader_that_shuts_down_hands_over() {
    let cluster = Cluster::start();
    let old = cluster.leader(&[0, 1, 2]).await;
    within(cluster.stores[old].propose(put(key("pods", "a"), "1")))
        .await
        .unwrap();
    within(cluster.stores[old].shutdown()).await;
    let rest: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    let new = cluster.leader(&rest).await;
    assert_eq!(
        within(cluster.stores[new].propose(put(key("pods", "b"), "1")))
            .await
            .unwrap(),
        Revision(2)
    );
}

#[tokio::test]
async fn a_restarted_member_keeps_its_vote_and_catches_up_from_its_files() {
    let network = Network::default();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let durable = |member: u64| StoreConfig {
        data_dir: dirs[member as usize - 1].path().to_owned(),
        ..config(member)
    };
    let mut stores = Vec::new();
    for member in 1..=3 {
        let store = Store::open(durable(member), network.port(member))
            .await
            .unwrap();
        network.plug(member, &store);
        stores.push(store);
    }
    let cluster = Cluster { network, stores };
    let leader = cluster.leader(&[0, 1, 2]).await;
    within(cluster.stores[leader].propose(put(key("pods", "a"), "1")))
        .await
        .unwrap();
    let other = (leader + 1) % 3;
    let member = other as u64 + 1;
    within(cluster.stores[other].read_barrier()).await.unwrap();
    let term = cluster.stores[other].leadership().borrow().term;
    cluster.network.unplug(member);
    within(cluster.stores[other].shutdown()).await;
    for number in 0..10 {
        let transaction = put(key("pods", &format!("p{number}")), "v");
        within(cluster.stores[leader].propose(transaction))
            .await
            .unwrap();
    }
    let again = Store::open(durable(member), cluster.network.port(member))
        .await
        .unwrap();
    assert!(
        again.get(&key("pods", "a")).is_some(),
        "it had that on its disk"
    );
    assert!(
        again.leadership().borrow().term >= term,
        "a term is never forgotten"
    );
    cluster.network.plug(member, &again);
    assert_eq!(within(again.read_barrier()).await.unwrap(), Revision(11));
    assert_eq!(dump(&again, "pods"), dump(&cluster.stores[leader], "pods"));
}
