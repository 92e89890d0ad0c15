//! What one attempt to place a pod is judged by, beside each node for itself.

use crate::census::Question;
use crate::filters::{self, Refusal};
use crate::pod::PodInfo;
use crate::pod_affinity::{self, Affinities};
use crate::selection::Namespaces;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::spreading::{self, Spreading};
use crate::volumes::PodVolumes;

const TOO_MANY: &str =
    "node(s) cannot be judged by more than 256 terms of affinity and spread constraints";

/// The attempt.
pub(crate) struct Cycle<'a> {
    pod: &'a PodInfo,
    namespaces: &'a Namespaces,
    spreading: Spreading<'a>,
    affinities: Affinities<'a>,
    volumes: PodVolumes,
    too_many: bool,
}

/// Asks all that [`Cycle::new`] and the scores need to know.
pub(crate) fn prepare(pod: &PodInfo, snapshot: &mut Snapshot) {
    if pod.says_too_much() {
        return;
    }
    let questions: Vec<Question> = spreading::questions(pod)
        .chain(pod_affinity::questions(pod, snapshot.namespaces()))
        .collect();
    snapshot.ask(questions);
}

impl<'a> Cycle<'a> {
    /// Begins; [`prepare`] comes before.
    pub(crate) fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        if pod.says_too_much() {
            return Self {
                pod,
                namespaces: snapshot.namespaces(),
                spreading: Spreading::default(),
                affinities: Affinities::default(),
                volumes: PodVolumes::default(),
                too_many: true,
            };
        }
        Self {
            pod,
            namespaces: snapshot.namespaces(),
            spreading: Spreading::new(pod, snapshot),
            affinities: Affinities::new(pod, snapshot),
            volumes: PodVolumes::default(),
            too_many: false,
        }
    }

    /// The same for a pod with volumes of its own.
    pub(crate) fn with(self, volumes: PodVolumes) -> Self {
        Self { volumes, ..self }
    }

    /// The pod that is to be placed.
    pub(crate) fn pod(&self) -> &'a PodInfo {
        self.pod
    }

    /// Judges from now on as if `by` more pods like the other one were on the node. What they take of the node itself, a copy of
    /// it has to say: see [`Trial`](crate::trial::Trial).
    pub(crate) fn shift(&mut self, other: &'a PodInfo, node: &'a NodeInfo, by: i64) {
        if self.too_many {
            return;
        }
        self.spreading.shift(self.pod, other, node, by);
        self.affinities
            .shift(self.pod, other, self.namespaces, node, by);
    }

    /// Whether the pod can run on the node.
    pub(crate) fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        filters::check(self.pod, node)?;
        self.volumes.check(node)?;
        if self.too_many {
            return Err(Refusal::one("InterPodAffinity", TOO_MANY, false));
        }
        self.spreading.check(node)?;
        self.affinities.check(node)
    }
}
