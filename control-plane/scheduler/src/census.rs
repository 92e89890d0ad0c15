//! The pods that run, as terms and constraints ask for them: how many match, node by node.
//!
//! What was asked once is counted from then on, pod by pod as they come and go, so that the next pod with the same question
//! has its answer at once. Invariant: an answer is what counting all assigned pods would give.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gantry_base::by_label::ByLabel;
use gantry_base::selector::LabelSelector;

use crate::pod::PodInfo;
use crate::selection::{PodTerm, Selection};

/// Questions that are kept. One more costs each pod that comes or goes a look, unless its labels rule that out.
const KEPT: usize = 512;

/// Which pods are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    /// Those that match all of these, which are at least one.
    Matching(Vec<Selection>),
    /// Those that match and are not being deleted.
    Staying(Selection),
    /// Those of one controller that are not being deleted: namespace and uid.
    Controlled(Arc<str>, Arc<str>),
}

impl Question {
    fn is_about(&self, pod: &PodInfo) -> bool {
        let matches = |selection: &Selection| selection.matches(&pod.key.namespace, &pod.labels);
        match self {
            Self::Matching(all) => all.iter().all(matches),
            Self::Staying(selection) => !pod.deleting && matches(selection),
            // Anybody may write another namespace's controller into pods of their own.
            Self::Controlled(namespace, controller) => {
                !pod.deleting
                    && pod.key.namespace == *namespace
                    && pod.controller.as_ref() == Some(controller)
            }
        }
    }

    /// The namespaces of the pods; none for all.
    fn namespaces(&self) -> Option<&[Arc<str>]> {
        match self {
            Self::Matching(all) => all.first().and_then(|first| first.namespaces.as_deref()),
            Self::Staying(selection) => selection.namespaces.as_deref(),
            Self::Controlled(namespace, _) => Some(std::slice::from_ref(namespace)),
        }
    }

    /// A selector that all of the pods match.
    fn selector(&self) -> Option<&LabelSelector> {
        match self {
            Self::Matching(all) => all.first().map(|first| &first.selector),
            Self::Staying(selection) => Some(&selection.selector),
            Self::Controlled(..) => None,
        }
    }
}

/// Numbers by the name of the node; those that are zero are left out.
pub(crate) type ByNode = HashMap<Arc<str>, i64>;

#[derive(Debug, Default)]
struct Answer {
    by_node: ByNode,
    /// In which cycle it was last asked for.
    asked: u64,
}

/// What the pods of a node that state a term say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// How many state it.
    pods: i64,
    /// How many want none of those it is about near.
    pub(crate) excluding: i64,
    /// How glad they are of those it is about.
    pub(crate) gladness: i64,
}

/// The pods; see the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pods: HashMap<Arc<str>, HashSet<Arc<str>>>,
    answers: HashMap<Arc<Question>, Answer>,
    questions: ByLabel<Question>,
    /// By namespace and uid of the controller.
    controlled: HashMap<(Arc<str>, Arc<str>), Arc<Question>>,
    stated: HashMap<Arc<PodTerm>, HashMap<Arc<str>, Tally>>,
    terms: ByLabel<PodTerm>,
    cycle: u64,
}

impl Census {
    /// A pod that is on the node from now on.
    pub(crate) fn add(&mut self, pod: &PodInfo, node: &Arc<str>) {
        let namespace = pod.key.namespace.clone();
        let pods = self.pods.entry(namespace).or_default();
        pods.insert(pod.uid.clone());
        self.count(pod, node, 1);
    }

    /// The same pod, when it is there no more.
    pub(crate) fn remove(&mut self, pod: &PodInfo, node: &Arc<str>) {
        if let Some(pods) = self.pods.get_mut(&pod.key.namespace) {
            pods.remove(&pod.uid);
            if pods.is_empty() {
                self.pods.remove(&pod.key.namespace);
            }
        }
        self.count(pod, node, -1);
    }

    fn count(&mut self, pod: &PodInfo, node: &Arc<str>, by: i64) {
        let Self {
            answers,
            questions,
            controlled,
            ..
        } = self;
        let controlled = pod.controller.as_ref().and_then(|uid| {
            let place = (pod.key.namespace.clone(), uid.clone());
            controlled.get(&place)
        });
        for question in questions.candidates(&pod.labels).chain(controlled) {
            if question.is_about(pod)
                && let Some(answer) = answers.get_mut(question)
            {
                add(&mut answer.by_node, node, by);
            }
        }
        if pod.says_too_much() {
            return;
        }
        for term in &pod.terms.required {
            // As much as the least that a preference can weigh, so that pods gather round those that need them.
            self.state(term, node, (by, 0, by));
        }
        for term in &pod.terms.excluded {
            self.state(term, node, (by, by, 0));
        }
        for (weight, term) in &pod.terms.preferred {
            self.state(term, node, (by, 0, by * weight));
        }
    }

    fn state(&mut self, term: &Arc<PodTerm>, node: &Arc<str>, by: (i64, i64, i64)) {
        if !self.stated.contains_key(term) {
            self.terms.insert(&term.selector, term.clone());
        }
        let by_node = self.stated.entry(term.clone()).or_default();
        let tally = by_node.entry(node.clone()).or_default();
        let (pods, excluding, gladness) = by;
        tally.pods += pods;
        tally.excluding += excluding;
        tally.gladness += gladness;
        if tally.pods == 0 {
            by_node.remove(node);
        }
        if by_node.is_empty() {
            self.stated.remove(term);
            self.terms.remove(&term.selector, term);
        }
    }

    /// Forgets the questions that were not asked for longest, if there are too many. Those asked from now on stay.
    pub(crate) fn begin_cycle(&mut self) {
        self.cycle += 1;
        if self.answers.len() <= KEPT {
            return;
        }
        let mut known: Vec<(u64, Arc<Question>)> = self
            .answers
            .iter()
            .map(|(question, answer)| (answer.asked, question.clone()))
            .collect();
        known.sort_by_key(|(asked, _)| *asked);
        let forgotten = known.len() - KEPT / 2;
        for (_, question) in known.into_iter().take(forgotten) {
            self.answers.remove(&question);
            match (&*question, question.selector()) {
                (Question::Controlled(namespace, uid), _) => {
                    let place = (namespace.clone(), uid.clone());
                    self.controlled.remove(&place);
                }
                (_, Some(selector)) => self.questions.remove(selector, &question),
                (_, None) => {}
            }
        }
    }

    /// Whether the answer is known, and is to be kept.
    pub(crate) fn ask(&mut self, question: &Question) -> bool {
        let answer = self.answers.get_mut(question);
        answer.is_some_and(|answer| {
            answer.asked = self.cycle;
            true
        })
    }

    /// The uids of the pods that a question may be about.
    pub(crate) fn candidates(&self, question: &Question) -> Vec<Arc<str>> {
        match question.namespaces() {
            Some(namespaces) => {
                let pods = namespaces.iter().filter_map(|name| self.pods.get(name));
                pods.flatten().cloned().collect()
            }
            None => self.pods.values().flatten().cloned().collect(),
        }
    }

    /// Takes in a question with all pods that it may be about, and counts them from now on.
    pub(crate) fn learn<'a>(
        &mut self,
        question: Question,
        pods: impl Iterator<Item = (&'a PodInfo, &'a Arc<str>)>,
    ) {
        let mut by_node = ByNode::new();
        for (_, node) in pods.filter(|(pod, _)| question.is_about(pod)) {
            add(&mut by_node, node, 1);
        }
        let question = Arc::new(question);
        match (&*question, question.selector()) {
            (Question::Controlled(namespace, uid), _) => {
                let place = (namespace.clone(), uid.clone());
                self.controlled.insert(place, question.clone());
            }
            (_, Some(selector)) => self.questions.insert(selector, question.clone()),
            (_, None) => {}
        }
        let asked = self.cycle;
        self.answers.insert(question, Answer { by_node, asked });
    }

    /// How many pods there are on each node; none when nobody has asked.
    pub(crate) fn answer(&self, question: &Question) -> Option<&ByNode> {
        self.answers.get(question).map(|answer| &answer.by_node)
    }

    /// The terms of running pods that may be about this one, with what the pods of each node say of it.
    pub(crate) fn stated<'a>(
        &'a self,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = (&'a PodTerm, &'a HashMap<Arc<str>, Tally>)> {
        let terms = self.terms.candidates(&pod.labels);
        terms.filter_map(move |term| Some((&**term, self.stated.get(term)?)))
    }
}

fn add(by_node: &mut ByNode, node: &Arc<str>, by: i64) {
    let count = by_node.entry(node.clone()).or_default();
    *count += by;
    if *count == 0 {
        by_node.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::snapshot::tests::pod;

    fn question(at: usize) -> Question {
        let selector = LabelSelector::parse(&format!("app={at}")).expect("a selector");
        Question::Staying(Selection::within(&"ns".into(), &selector))
    }

    #[test]
    fn questions_that_nobody_asks_any_more_are_forgotten() {
        let mut census = Census::default();
        for at in 0..KEPT * 3 {
            census.begin_cycle();
            if !census.ask(&question(at)) {
                census.learn(question(at), std::iter::empty());
            }
            // One that is asked all the time stays.
            if !census.ask(&question(0)) {
                census.learn(question(0), std::iter::empty());
            }
            assert!(census.answer(&question(at)).is_some());
            assert!(census.answers.len() <= KEPT + 2);
        }
        let mut labelled = pod("p", "", "");
        labelled.metadata.labels = Some([("app".to_owned(), "0".to_owned())].into());
        let info = PodInfo::new(&labelled);
        census.add(&info, &"n".into());
        let answer = census.answer(&question(0)).expect("it was kept");
        assert_eq!(answer.get("n"), Some(&1));
        census.remove(&info, &"n".into());
        let answer = census.answer(&question(0)).expect("it was kept");
        assert!(answer.is_empty());
        assert!(census.pods.is_empty());
    }

    #[test]
    fn a_controllers_pods_are_those_of_its_namespace() {
        let question = |namespace: &str| Question::Controlled(namespace.into(), "set".into());
        let replica = |uid: &str, namespace: &str| {
            let mut replica = pod(uid, "", "");
            replica.metadata.namespace = Some(namespace.to_owned());
            replica.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "ReplicaSet".to_owned(),
                uid: "set".to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
            PodInfo::new(&replica)
        };
        let mut census = Census::default();
        for namespace in ["ns", "theirs"] {
            census.learn(question(namespace), std::iter::empty());
        }
        let pods = [("a", "ns"), ("b", "theirs"), ("c", "theirs")];
        let pods = pods.map(|(uid, namespace)| replica(uid, namespace));
        for info in &pods {
            census.add(info, &"n".into());
        }
        for (namespace, count) in [("ns", 1), ("theirs", 2)] {
            let answer = census.answer(&question(namespace)).expect("it was asked");
            assert_eq!(answer.get("n"), Some(&count), "{namespace}");
        }
        for info in &pods {
            census.remove(info, &"n".into());
        }
        for namespace in ["ns", "theirs"] {
            let answer = census.answer(&question(namespace)).expect("it was asked");
            assert!(answer.is_empty(), "{namespace}");
        }
    }
}
