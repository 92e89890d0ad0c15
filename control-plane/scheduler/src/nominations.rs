//! Pods that are expected on a node as soon as others have left it, which are told to.
//!
//! Others of their priority and below are not given the room that they wait for. A nomination is known here from the moment
//! that it is made; the pod's status tells of it to everybody, and to whoever schedules next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::pod::PodInfo;

#[derive(Debug)]
struct Nomination {
    pod: Arc<PodInfo>,
    node: Arc<str>,
}

/// The pods; see the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Nominations {
    by_pod: HashMap<Arc<str>, Nomination>,
    by_node: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// Pods that are being told to leave, until they are gone or will not be.
    leaving: HashSet<Arc<str>>,
}

impl Nominations {
    /// Where the pod is expected.
    pub(crate) fn node_of(&self, uid: &str) -> Option<&Arc<str>> {
        self.by_pod.get(uid).map(|nomination| &nomination.node)
    }

    /// The pod is expected on the node, and nowhere else.
    pub(crate) fn set(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        let uid = pod.uid.clone();
        self.remove(&uid);
        let pods = self.by_node.entry(node.clone()).or_default();
        pods.insert(uid.clone());
        self.by_pod.insert(uid, Nomination { pod, node });
    }

    /// The pod is expected nowhere. Where it was.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<str>> {
        let Nomination { node, .. } = self.by_pod.remove(uid)?;
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some(node)
    }

    /// What the status of a pod that waits says now. One that does not tell yet of its nomination keeps it; one that tells no
    /// more of it has lost it. Whether it has.
    pub(crate) fn take_in(&mut self, pod: &Arc<PodInfo>) -> bool {
        if let Some(node) = &pod.nominated {
            self.set(pod.clone(), node.clone());
            return false;
        }
        let Some(known) = self.by_pod.get_mut(&pod.uid) else {
            return false;
        };
        let told = known.pod.nominated.is_some();
        known.pod = pod.clone();
        told && self.remove(&pod.uid).is_some()
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        let uids = self.by_node.get(node).into_iter().flatten();
        uids.filter_map(move |uid| self.by_pod.get(uid).map(|nomination| &nomination.pod))
    }

    /// The others that are expected on the node and do not give way to the pod.
    pub(crate) fn ahead_of<'a>(&'a self, pod: &PodInfo, node: &str) -> Vec<&'a Arc<PodInfo>> {
        let others = self.on(node);
        others
            .filter(|other| other.priority >= pod.priority && other.uid != pod.uid)
            .collect()
    }

    /// Those that are expected on the node and have to give way to one of this priority.
    pub(crate) fn behind(&self, priority: i32, node: &str) -> Vec<Arc<PodInfo>> {
        let others = self.on(node);
        others
            .filter(|other| other.priority < priority)
            .cloned()
            .collect()
    }

    /// The pod is told to leave from now on. Whether it was not before.
    pub(crate) fn begin_leaving(&mut self, uid: &Arc<str>) -> bool {
        self.leaving.insert(uid.clone())
    }

    /// The pod has left, or will not.
    pub(crate) fn end_leaving(&mut self, uid: &str) {
        self.leaving.remove(uid);
    }

    /// Whether the pod makes room for another, and is still there.
    pub(crate) fn is_leaving(&self, pod: &PodInfo) -> bool {
        pod.leaves_for_another() || self.leaving.contains(&pod.uid)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;
    use crate::snapshot::tests::pod;

    fn info(uid: &str, priority: i32, nominated: Option<&str>) -> Arc<PodInfo> {
        let mut pod = pod(uid, "", "");
        pod.spec.get_or_insert_default().priority = Some(priority);
        pod.status = Some(PodStatus {
            nominated_node_name: nominated.map(str::to_owned),
            ..PodStatus::default()
        });
        Arc::new(PodInfo::new(&pod))
    }

    #[test]
    fn a_nomination_lasts_until_the_status_takes_it_back() {
        let mut nominations = Nominations::default();
        nominations.set(info("p", 0, None), "n".into());
        // The status does not tell of it yet.
        assert!(!nominations.take_in(&info("p", 0, None)));
        assert_eq!(nominations.node_of("p"), Some(&"n".into()));
        assert!(!nominations.take_in(&info("p", 0, Some("m"))));
        assert_eq!(nominations.node_of("p"), Some(&"m".into()));
        assert!(nominations.take_in(&info("p", 0, None)));
        assert_eq!(nominations.node_of("p"), None);
        assert!(!nominations.take_in(&info("p", 0, None)));
        assert!(nominations.by_node.is_empty());
        // As after a restart.
        assert!(!nominations.take_in(&info("p", 0, Some("n"))));
        assert_eq!(nominations.remove("p"), Some("n".into()));
        assert_eq!(nominations.remove("p"), None);
        assert!(nominations.by_node.is_empty());
    }

    #[test]
    fn those_of_lower_priority_give_way() {
        let mut nominations = Nominations::default();
        for (uid, priority, node) in [
            ("low", 1, "n"),
            ("same", 5, "n"),
            ("high", 9, "n"),
            ("x", 9, "m"),
        ] {
            nominations.set(info(uid, priority, None), node.into());
        }
        let asking = info("p", 5, None);
        let mut ahead: Vec<&str> = nominations
            .ahead_of(&asking, "n")
            .into_iter()
            .map(|pod| &*pod.uid)
            .collect();
        ahead.sort_unstable();
        assert_eq!(ahead, ["high", "same"]);
        // Nobody is in their own way.
        let highest = nominations.ahead_of(&info("high", 9, None), "n");
        assert!(highest.is_empty());
        let behind = nominations.behind(5, "n");
        assert_eq!(behind.len(), 1);
        assert_eq!(&*behind[0].uid, "low");
    }
}
