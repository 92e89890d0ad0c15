//! Members come, catch up, vote, lead and go; what cannot be done is refused with what to do instead.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::time::Duration;

use common::{DEADLINE, Network, create, dump, eventually, key, pause, put};
use gantry_store::{MemberRole, MembershipError, Store, StoreConfig};

struct Cluster {
    network: Network,
    stores: Vec<Store>,
}

fn config(member: u64, voters: &[u64]) -> StoreConfig {
    StoreConfig {
        member_id: member,
        voters: voters.to_vec(),
        tick: Duration::from_millis(25),
        snapshot_chunk_bytes: 100,
        promote_learners: false,
        ..StoreConfig::default()
    }
}

impl Cluster {
    async fn start(config: impl Fn(u64) -> StoreConfig, members: u64) -> Cluster {
        let mut cluster = Cluster {
            network: Network::default(),
            stores: Vec::new(),
        };
        for member in 1..=members {
            cluster.join(config(member));
        }
        eventually("a leader", || cluster.leading().is_some()).await;
        cluster
    }

    fn join(&mut self, config: StoreConfig) -> Store {
        let member = config.member_id;
        let store = Store::in_memory(config, self.network.port(member)).unwrap();
        self.network.plug(member, &store);
        self.stores.push(store.clone());
        store
    }

    fn leading(&self) -> Option<&Store> {
        let mut stores = self.stores.iter();
        stores.find(|store| store.leadership().borrow().is_leader)
    }

    fn leader(&self) -> Store {
        self.leading().expect("a leader was there").clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (1..=self.stores.len() as u64).for_each(|member| self.network.unplug(member));
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("in time")
}

async fn roles(store: &Store) -> Vec<(u64, MemberRole)> {
    let members = within(store.members()).await;
    let role = |member: &gantry_store::MemberStatus| (member.id, member.role);
    members.iter().map(role).collect()
}

async fn promoted(leader: &Store, id: u64) {
    within(async {
        while let Err(error) = leader.promote(id).await {
            assert!(matches!(error, MembershipError::Behind { .. }), "{error}");
            pause().await;
        }
    })
    .await;
}

/// Removes a member once the leader has heard from enough of those that stay: on a busy machine some may seem silent.
async fn removed(leader: &Store, id: u64) {
    within(async {
        while let Err(error) = leader.remove(id).await {
            assert!(matches!(error, MembershipError::Quorum { .. }), "{error}");
            pause().await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_server_becomes_three() {
    let mut cluster = Cluster::start(|member| config(member, &[1]), 1).await;
    let first = cluster.leader();
    for number in 0..50 {
        let transaction = put(key("pods", &format!("p{number}")), "value");
        within(first.propose(transaction)).await.unwrap();
    }
    for id in [2, 3] {
        within(first.add_learner(id)).await.unwrap();
        let refused = within(first.promote(id)).await.unwrap_err();
        assert!(
            matches!(refused, MembershipError::Behind { member, .. } if member == id),
            "{refused}"
        );
        let joined = cluster.join(config(id, &[]));
        promoted(&first, id).await;
        within(joined.propose(create(key("pods", &format!("by{id}")), "")))
            .await
            .unwrap();
        // The one that wrote may have applied it before the leader.
        within(first.read_barrier()).await.unwrap();
        assert_eq!(dump(&joined, "pods"), dump(&first, "pods"));
    }
    let voters = [1, 2, 3].map(|id| (id, MemberRole::Voter));
    assert_eq!(roles(&first).await, voters);
    let progress = within(first.members()).await;
    assert!(
        progress
            .iter()
            .all(|member| member.matched.is_some() && member.active.is_some()),
        "{progress:?}"
    );
    assert!(
        within(cluster.stores[2].members())
            .await
            .iter()
            .all(|member| member.matched.is_none()),
        "only the leader knows how far the others are"
    );
}

#[tokio::test]
async fn a_learner_that_caught_up_becomes_a_voter_by_itself() {
    let eager = |member| StoreConfig {
        promote_learners: true,
        ..config(member, if member == 1 { &[1] } else { &[] })
    };
    let mut cluster = Cluster::start(eager, 1).await;
    let first = cluster.leader();
    within(first.propose(put(key("pods", "a"), "1")))
        .await
        .unwrap();
    within(first.add_learner(2)).await.unwrap();
    cluster.join(eager(2));
    within(async {
        while roles(&first).await != [(1, MemberRole::Voter), (2, MemberRole::Voter)] {
            pause().await;
        }
    })
    .await;
}

#[tokio::test]
async fn leadership_moves_to_the_member_that_was_named() {
    let cluster = Cluster::start(|member| config(member, &[1, 2, 3]), 3).await;
    let old = cluster.leader();
    let own = old.leadership().borrow().leader.unwrap();
    let to = own % 3 + 1;
    within(old.transfer_leadership(to)).await.unwrap();
    let new = &cluster.stores[to as usize - 1];
    eventually("it leads", || new.leadership().borrow().is_leader).await;
    let refused = within(old.transfer_leadership(own)).await.unwrap_err();
    assert_eq!(refused, MembershipError::NotLeader { leader: Some(to) });
    assert_eq!(
        within(new.transfer_leadership(9)).await.unwrap_err(),
        MembershipError::NotFound(9)
    );
}

#[tokio::test]
async fn a_removed_member_counts_no_more() {
    let cluster = Cluster::start(|member| config(member, &[1, 2, 3]), 3).await;
    let leader = cluster.leader();
    let own = leader.leadership().borrow().leader.unwrap();
    assert_eq!(
        within(leader.remove(own)).await.unwrap_err(),
        MembershipError::Leads(own)
    );
    assert_eq!(
        within(leader.remove(9)).await.unwrap_err(),
        MembershipError::NotFound(9)
    );
    assert_eq!(
        within(leader.add_learner(own)).await.unwrap_err(),
        MembershipError::Exists(own)
    );
    let (gone, stays) = (own % 3 + 1, (own + 1) % 3 + 1);
    removed(&leader, gone).await;
    assert!(roles(&leader).await.iter().all(|(id, _)| *id != gone));
    // Two of two now: without the one that was removed everything works.
    cluster.network.cut(gone);
    within(leader.propose(put(key("pods", "a"), "1")))
        .await
        .unwrap();
    // The one that was removed does not claim to know the present.
    cluster.network.heal();
    let store = &cluster.stores[gone as usize - 1];
    if let Ok(read) = within(store.read_barrier()).await {
        assert_eq!(read, leader.revision());
    }
    // Alone, the other one could not write.
    cluster.network.cut(stays);
    within(async {
        let reachable = async || {
            let members = leader.members().await;
            let stays = members.iter().find(|member| member.id == stays);
            stays.is_some_and(|member| member.active == Some(true))
        };
        while leader.leadership().borrow().is_leader && reachable().await {
            pause().await;
        }
    })
    .await;
    cluster.network.heal();
    eventually("a leader again", || cluster.leading().is_some()).await;
}

#[tokio::test]
async fn the_last_voter_is_not_removed() {
    let cluster = Cluster::start(|member| config(member, &[member]), 1).await;
    let refused = within(cluster.leader().remove(1)).await.unwrap_err();
    assert_eq!(refused, MembershipError::LastVoter(1));
    assert!(refused.to_string().contains("add another one"), "{refused}");
}

#[tokio::test]
async fn removing_one_that_is_needed_for_a_majority_is_refused() {
    let cluster = Cluster::start(|member| config(member, &[1, 2, 3, 4]), 4).await;
    let leader = cluster.leader();
    let own = leader.leadership().borrow().leader.unwrap();
    let others: Vec<u64> = (1..=4).filter(|id| *id != own).collect();
    cluster.network.cut(others[0]);
    let lost = async || {
        let members = leader.members().await;
        members
            .iter()
            .any(|member| member.id == others[0] && member.active == Some(false))
    };
    within(async {
        while !lost().await {
            pause().await;
        }
    })
    .await;
    // Three would remain, two of them reachable: enough.
    removed(&leader, others[1]).await;
    // Two would remain, one of them reachable: too few.
    let refused = within(async {
        loop {
            let refused = leader.remove(others[2]).await.unwrap_err();
            if lost().await {
                return refused;
            }
            pause().await;
        }
    })
    .await;
    assert!(
        matches!(
            refused,
            MembershipError::Quorum {
                active: 1,
                voters: 2,
                ..
            }
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn a_state_travels_in_chunks_and_goes_on_where_it_was() {
    let mut cluster = Cluster::start(|member| config(member, &[1]), 1).await;
    let first = cluster.leader();
    const OBJECTS: usize = 40;
    for number in 0..OBJECTS {
        let value = "v".repeat(200);
        let transaction = put(key("pods", &format!("p{number}")), &value);
        within(first.propose(transaction)).await.unwrap();
    }
    cluster.network.lose_parts(3);
    within(first.add_learner(2)).await.unwrap();
    let joined = cluster.join(config(2, &[]));
    promoted(&first, 2).await;
    eventually("it has everything", || {
        dump(&joined, "pods") == dump(&first, "pods")
    })
    .await;
    // Every object is larger than a chunk's size, so that each travels alone, and a third of them twice.
    let parts = cluster.network.parts();
    assert!(parts >= OBJECTS, "{parts} parts");
    assert!(parts < OBJECTS * 2, "{parts} parts: it started over");
    eventually("equal states at equal entries", || {
        joined.fingerprint() == first.fingerprint()
    })
    .await;
}
