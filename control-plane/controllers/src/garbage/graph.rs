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
    /// Such as `apps/v1`.
    pub(crate) api_version: String,
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

    /// Whether the reference names this object by what it is called, too, and not only by its uid.
    fn is_named_by(&self, owner: &Owner) -> bool {
        let api = &self.resource.api;
        api.group == owner.group() && api.kind == owner.kind && *self.key.name == *owner.name
    }

    /// Whether it may own the other: an owner in a namespace has no dependents elsewhere.
    fn may_own(&self, dependent: &Node) -> bool {
        self.key.namespace.is_empty() || self.key.namespace == dependent.key.namespace
    }
}

impl Owner {
    fn new(reference: &OwnerReference) -> Self {
        Self {
            uid: reference.uid.as_str().into(),
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            blocks: reference.block_owner_deletion.unwrap_or(false),
        }
    }

    /// The API group; empty for the core.
    pub(crate) fn group(&self) -> &str {
        self.api_version
            .split_once('/')
            .map_or("", |(group, _)| group)
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

/// What follows from an object that came or changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Consequences {
    /// Those that must be looked at.
    pub(crate) look: Vec<Uid>,
    /// Dependents, and the owners that they name though these are in another namespace.
    pub(crate) misplaced: Vec<(Uid, Uid)>,
}

/// Looking for a circle of dependencies goes along this many references at most; beyond, there is taken to be one. So what
/// strangers tie into knots costs little, and goes in some order.
const MOST_REFERENCES: usize = 10_000;

/// What was seen when the circles of one object were looked for: an object may have any number of owners.
#[derive(Default)]
struct Walk<'a> {
    /// Those from which no reference leads back.
    elsewhere: HashSet<&'a str>,
    /// How many references were followed.
    references: usize,
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

    /// How the owner is being deleted, if there is such an object, called so, that may own this dependent.
    pub(crate) fn owner(&self, dependent: &Node, owner: &Owner) -> Option<Deletion> {
        let known = self.nodes.get(&owner.uid)?;
        let meant = known.is_named_by(owner) && known.may_own(dependent);
        meant.then_some(known.deletion)
    }

    /// Whether the object's foreground deletion waits for a dependent.
    pub(crate) fn is_blocked(&self, uid: &str) -> bool {
        let Some(owner) = self.nodes.get(uid) else {
            return false;
        };
        let mut dependents = self.dependents.get(uid).into_iter().flatten();
        dependents.any(|dependent| {
            self.nodes.get(dependent).is_some_and(|dependent| {
                let mut references = dependent.owners.iter();
                owner.may_own(dependent)
                    && references.any(|reference| reference.blocks && *reference.uid == *uid)
            })
        })
    }

    /// The owners that wait for this object to go while it waits, itself or through others, for them: a circle that nobody
    /// would ever leave.
    ///
    /// The last object of a circle that begins to wait finds it by going from owner to owner, of which an object has few,
    /// however many dependents they have.
    pub(crate) fn circular_owners(&self, uid: &str) -> Vec<Uid> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        if node.deletion != Deletion::Foreground {
            return Vec::new();
        }
        let waiting = node.owners.iter().filter(|owner| self.waits(owner, node));
        let mut walk = Walk::default();
        waiting
            .filter(|owner| self.waits_in_the_end(uid, &owner.uid, &mut walk))
            .map(|owner| owner.uid.clone())
            .collect()
    }

    /// Whether the owner waits for the dependent that names it so.
    fn waits(&self, owner: &Owner, dependent: &Node) -> bool {
        owner.blocks
            && self.nodes.get(&owner.uid).is_some_and(|known| {
                known.deletion == Deletion::Foreground && known.may_own(dependent)
            })
    }

    /// Whether `waiting` waits for `other`, itself or through others. `walk` is the same for all that `waiting` is asked about.
    fn waits_in_the_end<'a>(&'a self, waiting: &str, other: &'a str, walk: &mut Walk<'a>) -> bool {
        let mut seen: HashSet<&str> = HashSet::new();
        let mut next: Vec<&str> = vec![other];
        while let Some(uid) = next.pop() {
            if uid == waiting {
                return true;
            }
            if walk.elsewhere.contains(uid) {
                continue;
            }
            let Some(node) = self.nodes.get(uid).filter(|_| seen.insert(uid)) else {
                continue;
            };
            walk.references += node.owners.len();
            if walk.references > MOST_REFERENCES {
                return true;
            }
            let awaiting = node.owners.iter().filter(|owner| self.waits(owner, node));
            next.extend(awaiting.map(|owner| &*owner.uid));
        }
        walk.elsewhere.extend(seen);
        false
    }

    /// An object that came or changed.
    pub(crate) fn put(&mut self, uid: Uid, node: Node) -> Consequences {
        let old = self.nodes.get(&uid).cloned();
        if old.as_ref() == Some(&node) {
            return Consequences::default();
        }
        let mut look = Vec::new();
        let mut misplaced = Vec::new();
        match &old {
            Some(old) => {
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
            None => self.recognise(&uid, &node, &mut look, &mut misplaced),
        }
        // Nobody is told twice of an owner, however often it is named.
        let before = old.iter().flat_map(|old| &old.owners);
        let mut told: HashSet<Uid> = before.map(|owner| owner.uid.clone()).collect();
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
            if matches!(self.owner(&node, owner), None | Some(Deletion::Foreground)) {
                look.push(uid.clone());
            }
            let known = self.nodes.get(&owner.uid);
            let elsewhere = known.is_some_and(|known| !known.may_own(&node));
            if told.insert(owner.uid.clone()) && elsewhere {
                misplaced.push((uid.clone(), owner.uid.clone()));
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
        Consequences { look, misplaced }
    }

    /// An object that was only known by its dependents: those that took it for another are looked at again.
    fn recognise(
        &self,
        uid: &Uid,
        node: &Node,
        look: &mut Vec<Uid>,
        misplaced: &mut Vec<(Uid, Uid)>,
    ) {
        for dependent_uid in self.dependents.get(uid).into_iter().flatten() {
            let Some(dependent) = self.nodes.get(dependent_uid) else {
                continue;
            };
            let mut references = dependent.owners.iter();
            let Some(owner) = references.find(|owner| owner.uid == *uid) else {
                continue;
            };
            if !node.may_own(dependent) {
                misplaced.push((dependent_uid.clone(), uid.clone()));
            } else if node.is_named_by(owner) {
                continue;
            }
            look.push(dependent_uid.clone());
        }
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
                        api_version: "v1".to_owned(),
                        kind: "Pod".to_owned(),
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
            has_scale: false,
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

    fn look(graph: &mut Graph, uid: &str, node: Node) -> Vec<String> {
        names(graph.put(uid.into(), node).look)
    }

    #[test]
    fn an_object_whose_owner_is_unknown_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(
            look(&mut graph, "pod", node(&[("set", true)], None)),
            ["pod"]
        );
        assert!(look(&mut graph, "set", node(&[], None)).is_empty());
        assert!(look(&mut graph, "other", node(&[("set", true)], None)).is_empty());
        assert_eq!(names(graph.remove("set")), ["other", "pod"]);
    }

    #[test]
    fn a_foreground_deletion_looks_at_dependents_and_each_that_goes_at_its_owner() {
        let mut graph = Graph::default();
        graph.put("set".into(), node(&[], None));
        graph.put("pod".into(), node(&[("set", true)], None));
        graph.put("loose".into(), node(&[("set", false)], None));
        let looked_at = look(&mut graph, "set", node(&[], Some(FOREGROUND)));
        assert_eq!(looked_at, ["loose", "pod", "set"]);
        assert!(graph.is_blocked("set"));
        assert_eq!(names(graph.remove("pod")), ["set"]);
        assert!(!graph.is_blocked("set"));
        // One that comes meanwhile goes, too.
        assert_eq!(
            look(&mut graph, "late", node(&[("set", true)], None)),
            ["late"]
        );
    }

    #[test]
    fn an_owner_is_one_by_its_name_and_place_too() {
        let placed = |namespace: &str, node: Node| Node {
            key: Key::new(namespace, ""),
            ..node
        };
        let owned = || node(&[("owner", true)], None);
        for (owner, dependent, misplaced) in [
            ("a", "a", false),
            ("", "a", false),
            ("", "", false),
            ("a", "b", true),
            ("a", "", true),
        ] {
            let owner = || placed(owner, node(&[], None));
            let dependent = || placed(dependent, owned());
            let expected: Vec<(Uid, Uid)> = match misplaced {
                true => vec![("dependent".into(), "owner".into())],
                false => Vec::new(),
            };
            // Whichever is heard of first; and nothing is told twice.
            let mut graph = Graph::default();
            graph.put("owner".into(), owner());
            let put = graph.put("dependent".into(), dependent());
            assert_eq!(put.misplaced, expected);
            assert_eq!(put.look.is_empty(), !misplaced);
            let changed = Node {
                deletion: Deletion::Other,
                ..dependent()
            };
            let put = graph.put("dependent".into(), changed);
            assert!(put.misplaced.is_empty());
            let mut graph = Graph::default();
            graph.put("dependent".into(), dependent());
            let put = graph.put("owner".into(), owner());
            assert_eq!(put.misplaced, expected);
            assert_eq!(put.look.is_empty(), !misplaced);
            // What cannot be a dependent holds up nobody.
            let waiting = Node {
                deletion: Deletion::Foreground,
                ..owner()
            };
            graph.put("owner".into(), waiting);
            assert_eq!(graph.is_blocked("owner"), !misplaced);
        }
        let mut graph = Graph::default();
        graph.put("dependent".into(), owned());
        let renamed = Node {
            key: Key::new("", "another"),
            ..node(&[], None)
        };
        assert_eq!(look(&mut graph, "owner", renamed), ["dependent"]);
    }

    #[test]
    fn the_last_of_a_circle_that_waits_finds_it() {
        for length in 1..6 {
            let mut graph = Graph::default();
            let name = |at: usize| (at % length).to_string();
            for at in 0..length {
                let owner = name(at + 1);
                graph.put(name(at).into(), node(&[(owner.as_str(), true)], None));
            }
            for at in 0..length {
                for earlier in 0..at {
                    assert!(graph.circular_owners(&name(earlier)).is_empty());
                }
                let owner = name(at + 1);
                let owners = [(owner.as_str(), true), ("other", true)];
                let looked_at = look(&mut graph, &name(at), node(&owners, Some(FOREGROUND)));
                assert!(looked_at.contains(&name(at)));
            }
            for at in 0..length {
                let circular = names(graph.circular_owners(&name(at)));
                assert_eq!(circular, [name(at + 1)], "of {length}");
            }
        }
    }

    #[test]
    fn what_is_no_circle_is_left_to_wait() {
        let mut graph = Graph::default();
        let waiting = |owners: &[(&str, bool)]| node(owners, Some(FOREGROUND));
        graph.put("deployment".into(), waiting(&[]));
        graph.put("set".into(), waiting(&[("deployment", true)]));
        graph.put(
            "pod".into(),
            waiting(&[("set", true), ("deployment", true)]),
        );
        for uid in ["deployment", "set", "pod"] {
            assert!(graph.circular_owners(uid).is_empty());
        }
        // One that does not block, and one that does not wait, are no part of a circle either.
        graph.put("deployment".into(), waiting(&[("pod", false)]));
        assert!(graph.circular_owners("pod").is_empty());
        graph.put("deployment".into(), node(&[("pod", true)], None));
        assert!(graph.circular_owners("pod").is_empty());
        graph.put("deployment".into(), waiting(&[("pod", true)]));
        assert_eq!(names(graph.circular_owners("deployment")), ["pod"]);
        assert_eq!(names(graph.circular_owners("set")), ["deployment"]);
        let both = names(graph.circular_owners("pod"));
        assert_eq!(both, ["deployment", "set"]);
    }

    #[test]
    fn a_knot_too_large_to_look_through_is_untied() {
        let mut graph = Graph::default();
        for at in 0..MOST_REFERENCES + 2 {
            let owner = (at + 1).to_string();
            let waiting = node(&[(owner.as_str(), true)], Some(FOREGROUND));
            graph.put(at.to_string().into(), waiting);
        }
        assert!(!graph.circular_owners("0").is_empty());
        assert!(graph.circular_owners("9").is_empty());
    }

    #[test]
    fn looking_for_circles_costs_no_more_for_more_owners() {
        let mut graph = Graph::default();
        // A chain that leads nowhere, and an object that each of its links owns.
        let length = MOST_REFERENCES / 3;
        let names: Vec<String> = (0..=length).map(|at| at.to_string()).collect();
        for (name, owner) in names.iter().zip(names.iter().skip(1)) {
            let waiting = node(&[(owner.as_str(), true)], Some(FOREGROUND));
            graph.put(name.as_str().into(), waiting);
        }
        let owners: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), true)).collect();
        graph.put("owned".into(), node(&owners, Some(FOREGROUND)));
        assert!(graph.circular_owners("owned").is_empty());
    }

    #[test]
    fn an_owner_elsewhere_is_told_once_however_often_it_is_named() {
        let mut graph = Graph::default();
        let place = |namespace: &str, node: Node| Node {
            key: Key::new(namespace, ""),
            ..node
        };
        graph.put("owner".into(), place("a", node(&[], None)));
        let owners = [("owner", true), ("owner", true), ("owner", false)];
        let put = graph.put("dependent".into(), place("b", node(&owners, None)));
        let expected: Vec<(Uid, Uid)> = vec![("dependent".into(), "owner".into())];
        assert_eq!(put.misplaced, expected);
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
