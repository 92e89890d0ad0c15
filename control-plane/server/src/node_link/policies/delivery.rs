//! What one node has been told, and the messages that bring it up to date. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use gantry_rpc::node::{Peer, PeerSetChange, PodIsolation, PolicyChange, PolicyRules};
use imbl::OrdSet;
use imbl::ordset::DiffItem;

/// Peers in one message. A message may be 8 MiB; one peer takes at most 28 bytes.
const MOST_PEERS: usize = 64 * 1024;

/// The members of a selection: addresses, with the port there (0 in a set without ports).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerSet {
    pub(super) with_ports: bool,
    pub(super) peers: OrdSet<(IpAddr, u16)>,
}

/// All that policies mean for one node. Cheap to make and to keep: its parts are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NodeView {
    /// By uid.
    pub(super) pods: BTreeMap<String, Arc<PodIsolation>>,
    /// By uid.
    pub(super) policies: BTreeMap<String, Arc<PolicyRules>>,
    /// By the id of the selection.
    pub(super) peers: BTreeMap<String, PeerSet>,
}

impl NodeView {
    /// Everything, for a node that has just connected.
    pub(super) fn snapshot(&self) -> PolicyChange {
        PolicyChange {
            snapshot: true,
            ..Self::default().change_to(self)
        }
    }

    /// What has to be said to a node that knows `self` so that it knows `next`.
    pub(super) fn change_to(&self, next: &Self) -> PolicyChange {
        let mut change = PolicyChange::default();
        for (id, peers) in &next.peers {
            let before = self.peers.get(id);
            let told = before.is_some();
            let set = set_change(id, before.unwrap_or(&PeerSet::default()), peers);
            if !told || !set.added.is_empty() || !set.removed.is_empty() {
                change.peers.push(set);
            }
        }
        for (uid, rules) in &next.policies {
            let same = |before: &Arc<PolicyRules>| Arc::ptr_eq(before, rules) || before == rules;
            if !self.policies.get(uid).is_some_and(same) {
                change.policies.push((**rules).clone());
            }
        }
        for (uid, pod) in &next.pods {
            let same = |before: &Arc<PodIsolation>| Arc::ptr_eq(before, pod) || before == pod;
            if !self.pods.get(uid).is_some_and(same) {
                change.pods.push((**pod).clone());
            }
        }
        for pod in gone(&self.pods, &next.pods) {
            change.pods.push(PodIsolation {
                uid: pod.clone(),
                deleted: true,
                ..PodIsolation::default()
            });
        }
        for policy in gone(&self.policies, &next.policies) {
            change.policies.push(PolicyRules {
                uid: policy.clone(),
                deleted: true,
                ..PolicyRules::default()
            });
        }
        for set in gone(&self.peers, &next.peers) {
            change.peers.push(PeerSetChange {
                id: set.clone(),
                deleted: true,
                ..PeerSetChange::default()
            });
        }
        change
    }
}

fn gone<'a, T>(
    before: &'a BTreeMap<String, T>,
    now: &'a BTreeMap<String, T>,
) -> impl Iterator<Item = &'a String> {
    before.keys().filter(|key| !now.contains_key(*key))
}

fn set_change(id: &str, before: &PeerSet, now: &PeerSet) -> PeerSetChange {
    let mut change = PeerSetChange {
        id: id.to_owned(),
        with_ports: now.with_ports,
        ..PeerSetChange::default()
    };
    if before.peers.ptr_eq(&now.peers) {
        return change;
    }
    for item in before.peers.diff(&now.peers) {
        match item {
            DiffItem::Add(peer) => change.added.push(message(peer)),
            DiffItem::Remove(peer) => change.removed.push(message(peer)),
        }
    }
    change
}

fn message((address, port): &(IpAddr, u16)) -> Peer {
    let address = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    Peer {
        address: address.into(),
        port: (*port).into(),
    }
}

/// Whether there is nothing to say.
pub(super) fn is_empty(change: &PolicyChange) -> bool {
    !change.snapshot
        && change.peers.is_empty()
        && change.policies.is_empty()
        && change.pods.is_empty()
}

/// The change in messages small enough to travel; all but the last say that there is more.
pub(super) fn pieces(change: PolicyChange) -> Vec<PolicyChange> {
    pieces_of(change, MOST_PEERS)
}

fn pieces_of(mut change: PolicyChange, most: usize) -> Vec<PolicyChange> {
    let mut pieces = Vec::new();
    let empty = |change: &PolicyChange| PolicyChange {
        revision: change.revision,
        more: true,
        ..PolicyChange::default()
    };
    let mut piece = PolicyChange {
        snapshot: change.snapshot,
        ..empty(&change)
    };
    let mut room = most;
    for mut set in std::mem::take(&mut change.peers) {
        loop {
            let rest = split(&mut set, room);
            room -= set.added.len() + set.removed.len();
            piece.peers.push(set);
            match rest {
                Some(rest) => {
                    let next = empty(&change);
                    pieces.push(std::mem::replace(&mut piece, next));
                    room = most;
                    set = rest;
                }
                None => break,
            }
        }
    }
    piece.policies = change.policies;
    piece.pods = change.pods;
    piece.more = false;
    pieces.push(piece);
    pieces
}

/// Leaves at most `room` peers in a set's change and answers the rest.
fn split(set: &mut PeerSetChange, room: usize) -> Option<PeerSetChange> {
    if set.added.len() + set.removed.len() <= room {
        return None;
    }
    let removed = set.removed.split_off(room.min(set.removed.len()));
    let added = set
        .added
        .split_off((room - set.removed.len()).min(set.added.len()));
    Some(PeerSetChange {
        id: set.id.clone(),
        deleted: false,
        with_ports: set.with_ports,
        added,
        removed,
    })
}
