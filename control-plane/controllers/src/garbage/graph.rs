//! The pure part: who owns whom, and what follows from it.
//!
//! Of each object only its owners and the state of its deletion are kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gantry_informer::Key;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::resources::Resource;

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

pub(crate) type Uid = Arc<str>;

/// How an object is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// Not at all.
    None,
    /// Waits for something that is not the collector's.
    Other,
    /// Waits for the dependents that block it.
    Foreground,
    /// Waits until its dependents are released.
    Orphan,
}

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: Uid,
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Whether the owner's foreground deletion waits for this dependent.
    pub(crate) blocks: bool,
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) resource: Arc<Resource>,
    pub(crate) key: Key,
    pub(crate) owners: Vec<Owner>,
    pub(crate) deletion: Deletion,
}

impl Node {
    pub(crate) fn new(resource: Arc<Resource>, meta: &ObjectMeta) -> Self {
        Self {
            resource,
            key: Key::of(meta),
            owners: meta
                .owner_references
                .iter()
                .flatten()
                .map(Owner::new)
                .collect(),
            deletion: deletion(meta),
        }
    }
}

impl Owner {
    fn new(reference: &OwnerReference) -> Self {
        let group = reference
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        Self {
            uid: reference.uid.as_str().into(),
            group: group.to_owned(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            blocks: reference.block_owner_deletion.unwrap_or(false),
        }
    }
}

/// How the object with this metadata is being deleted.
pub(crate) fn deletion(meta: &ObjectMeta) -> Deletion {
    if meta.deletion_timestamp.is_none() {
        return Deletion::None;
    }
    let has = |finalizer: &str| {
        meta.finalizers
            .iter()
            .flatten()
            .any(|known| known == finalizer)
    };
    if has(ORPHAN) {
        Deletion::Orphan
    } else if has(FOREGROUND) {
        Deletion::Foreground
    } else {
        Deletion::Other
    }
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerState {
    /// It is there, and stays.
    Solid,
    /// It is not there, or another object has its name.
    Absent,
    /// It is there, and waits for its dependents to go.
    Waiting,
}

/// What is to be done with a dependent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    /// Let go of the owners with these uids; others stay.
    Release(Vec<Uid>),
    Delete {
        /// Its own dependents go before it.
        foreground: bool,
    },
}

/// Decides on a dependent by the states of its owners.
pub(crate) fn judge(owners: &[(Uid, OwnerState)], has_dependents: bool) -> Verdict {
    let of = |state: OwnerState| owners.iter().filter(move |(_, known)| *known == state);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if of(OwnerState::Solid).next().is_none() {
        return Verdict::Delete {
            foreground: has_dependents && of(OwnerState::Waiting).next().is_some(),
        };
    }
    let going: Vec<Uid> = of(OwnerState::Absent)
        .chain(of(OwnerState::Waiting))
        .map(|(uid, _)| uid.clone())
        .collect();
    if going.is_empty() {
        Verdict::Keep
    } else {
        Verdict::Release(going)
    }
}

/// All objects; see the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    by_resource: HashMap<Arc<Resource>, HashSet<Uid>>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Those that name the object among their owners.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Uid> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Those that the object's foreground deletion waits for.
    pub(crate) fn blockers(&self, uid: &str) -> Vec<Uid> {
        let blocks = |dependent: &Uid| {
            self.nodes.get(dependent).is_some_and(|node| {
                node.owners
                    .iter()
                    .any(|owner| &*owner.uid == uid && owner.blocks)
            })
        };
        let mut dependents = self.dependents(uid);
        dependents.retain(blocks);
        dependents
    }

    /// An object that came or changed; returns those that must be looked at because of it.
    pub(crate) fn put(&mut self, uid: Uid, node: Node) -> Vec<Uid> {
        let old = self.nodes.get(&uid).cloned();
        if old.as_ref() == Some(&node) {
            return Vec::new();
        }
        let mut look = Vec::new();
        if let Some(old) = &old {
            self.unlink(&uid, old);
            // An owner that waited for it may wait no longer.
            let waits = |owner: &&Owner| owner.blocks;
            look.extend(
                old.owners
                    .iter()
                    .filter(waits)
                    .map(|owner| owner.uid.clone()),
            );
        }
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
            let state = self.nodes.get(&owner.uid).map(|owner| owner.deletion);
            if matches!(state, None | Some(Deletion::Foreground)) {
                look.push(uid.clone());
            }
        }
        if matches!(node.deletion, Deletion::Foreground | Deletion::Orphan) {
            look.push(uid.clone());
        }
        if node.deletion == Deletion::Foreground {
            look.extend(self.dependents(&uid));
        }
        self.by_resource
            .entry(node.resource.clone())
            .or_default()
            .insert(uid.clone());
        self.nodes.insert(uid, node);
        look
    }

    /// An object that is gone; returns those that must be looked at because of it.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else {
            return Vec::new();
        };
        self.unlink(&uid, &node);
        if let Some(known) = self.by_resource.get_mut(&node.resource) {
            known.remove(&uid);
        }
        let mut look = self.dependents(&uid);
        look.extend(self.waiting_owners(&node));
        look
    }

    /// Owners that wait for their dependents, and perhaps no longer for this one.
    fn waiting_owners(&self, node: &Node) -> Vec<Uid> {
        let waits = |owner: &&Owner| {
            let known = self.nodes.get(&owner.uid);
            known.is_some_and(|known| known.deletion == Deletion::Foreground)
        };
        let waiting = node.owners.iter().filter(waits);
        waiting.map(|owner| owner.uid.clone()).collect()
    }

    fn unlink(&mut self, uid: &Uid, node: &Node) {
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// The objects of one kind that are not among those just listed.
    pub(crate) fn missing(&self, resource: &Arc<Resource>, listed: &HashSet<Uid>) -> Vec<Uid> {
        let known = self.by_resource.get(resource).into_iter().flatten();
        known
            .filter(|uid| !listed.contains(*uid))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use kube::core::ApiResource;

    use super::*;

    fn node(owners: &[(&str, bool)], finalizer: Option<&str>) -> Node {
        let meta = ObjectMeta {
            owner_references: Some(
                owners
                    .iter()
                    .map(|(uid, blocks)| OwnerReference {
                        api_version: "apps/v1".to_owned(),
                        kind: "ReplicaSet".to_owned(),
                        uid: (*uid).to_owned(),
                        block_owner_deletion: Some(*blocks),
                        ..OwnerReference::default()
                    })
                    .collect(),
            ),
            deletion_timestamp: finalizer.map(|_| Time(Timestamp::UNIX_EPOCH)),
            finalizers: finalizer.map(|finalizer| vec![finalizer.to_owned()]),
            ..ObjectMeta::default()
        };
        let resource = Resource {
            api: ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()),
            namespaced: true,
            operations: Vec::new(),
        };
        Node::new(Arc::new(resource), &meta)
    }

    fn names(uids: Vec<Uid>) -> Vec<String> {
        let mut names: Vec<_> = uids.iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        names
    }

    #[test]
    fn judged_by_the_owners_that_are_left() {
        use OwnerState::{Absent, Solid, Waiting};
        let uid = |name: &str| -> Uid { name.into() };
        let cases = [
            (vec![], true, Verdict::Keep),
            (vec![Solid], true, Verdict::Keep),
            (vec![Solid, Absent], true, Verdict::Release(vec![uid("1")])),
            (
                vec![Solid, Waiting],
                false,
                Verdict::Release(vec![uid("1")]),
            ),
            (vec![Absent], true, Verdict::Delete { foreground: false }),
            (vec![Waiting], true, Verdict::Delete { foreground: true }),
            (
                vec![Waiting, Absent],
                false,
                Verdict::Delete { foreground: false },
            ),
        ];
        for (states, has_dependents, expected) in cases {
            let owners: Vec<_> = states
                .iter()
                .enumerate()
                .map(|(at, state)| (uid(&at.to_string()), *state))
                .collect();
            assert_eq!(judge(&owners, has_dependents), expected, "{states:?}");
        }
    }

    #[test]
    fn an_object_whose_owner_is_unknown_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(
            names(graph.put("pod".into(), node(&[("set", true)], None))),
            ["pod"]
        );
        assert!(graph.put("set".into(), node(&[], None)).is_empty());
        assert!(
            graph
                .put("other".into(), node(&[("set", true)], None))
                .is_empty()
        );
        assert_eq!(names(graph.remove("set")), ["other", "pod"]);
    }

    #[test]
    fn a_foreground_deletion_looks_at_dependents_and_each_that_goes_at_its_owner() {
        let mut graph = Graph::default();
        graph.put("set".into(), node(&[], None));
        graph.put("pod".into(), node(&[("set", true)], None));
        graph.put("loose".into(), node(&[("set", false)], None));
        let look = graph.put("set".into(), node(&[], Some(FOREGROUND)));
        assert_eq!(names(look), ["loose", "pod", "set"]);
        assert_eq!(names(graph.blockers("set")), ["pod"]);
        assert_eq!(names(graph.remove("pod")), ["set"]);
        assert!(graph.blockers("set").is_empty());
        // One that comes meanwhile goes, too.
        assert_eq!(
            names(graph.put("late".into(), node(&[("set", true)], None))),
            ["late"]
        );
    }

    #[test]
    fn a_list_tells_what_is_missing() {
        let mut graph = Graph::default();
        let known = node(&[], None);
        graph.put("a".into(), known.clone());
        graph.put("b".into(), known.clone());
        let listed = HashSet::from(["a".into()]);
        assert_eq!(names(graph.missing(&known.resource, &listed)), ["b"]);
    }
}
