//! What one node has been told, and the messages that bring it up to date. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use gantry_rpc::node::{Peer, PeerSetChange, PodIsolation, PolicyChange, PolicyRules};
use imbl::OrdSet;
use imbl::ordset::DiffItem;
use prost::Message;

/// Bytes of one message, unless a single thing in it has more: a policy has as many at most, and the isolation of a pod
/// not twice as many. A message may be 8 MiB.
pub(super) const ROOM: usize = 1 << 20;
/// Bytes of a peer in a message, at most.
pub(super) const PEER: usize = 28;
/// Bytes of a set's fields besides its id and its peers, and of a message's besides what it lists, at most.
const FIELDS: usize = 32;
/// Bytes that a part of a message has besides its own: its tag and its length, at most.
const FRAME: usize = 6;

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
    /// Uids of those of the policies that are told without their rules, which allow nothing then.
    pub(super) without_room: BTreeSet<String>,
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
    pieces_of(change, ROOM)
}

fn pieces_of(change: PolicyChange, most: usize) -> Vec<PolicyChange> {
    let mut packing = Packing {
        pieces: Vec::new(),
        piece: PolicyChange {
            revision: change.revision,
            snapshot: change.snapshot,
            ..PolicyChange::default()
        },
        most: most.saturating_sub(FIELDS),
        taken: 0,
    };
    for mut set in change.peers {
        loop {
            let head = set.id.len() + FIELDS;
            let rest = split(
                &mut set,
                packing.room(head + PEER).saturating_sub(head) / PEER,
            );
            packing.taken += head + PEER * (set.added.len() + set.removed.len());
            packing.piece.peers.push(set);
            match rest {
                Some(rest) => set = rest,
                None => break,
            }
        }
    }
    for policy in change.policies {
        let length = policy.encoded_len() + FRAME;
        packing.room(length);
        packing.taken += length;
        packing.piece.policies.push(policy);
    }
    for pod in change.pods {
        let length = pod.encoded_len() + FRAME;
        packing.room(length);
        packing.taken += length;
        packing.piece.pods.push(pod);
    }
    packing.pieces.push(packing.piece);
    packing.pieces
}

/// Fills one message after the other.
struct Packing {
    pieces: Vec<PolicyChange>,
    /// The last one.
    piece: PolicyChange,
    /// Bytes that each may have.
    most: usize,
    /// Bytes that the last one has.
    taken: usize,
}

impl Packing {
    /// The bytes that there is room for in the last message, after another was begun should `least` have none in it: at
    /// least so many, whatever a message may have.
    fn room(&mut self, least: usize) -> usize {
        if self.taken > 0 && self.taken.saturating_add(least) > self.most {
            let next = PolicyChange {
                revision: self.piece.revision,
                ..PolicyChange::default()
            };
            let mut full = std::mem::replace(&mut self.piece, next);
            full.more = true;
            self.pieces.push(full);
            self.taken = 0;
        }
        self.most.saturating_sub(self.taken).max(least)
    }
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
