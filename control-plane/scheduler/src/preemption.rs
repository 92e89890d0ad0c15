//! Whom a pod that fits nowhere may make go, by Kubernetes' rules: pods of lower priority, as few and as unimportant as will do,
//! all of one node; and those that no budget of disruptions keeps before those that one does.
//!
//! Nothing is done here: the caller has the victims evicted, and holds their room for the pod. Costs the nodes whose pods of
//! lower priority would leave room enough, up to a tenth of the cluster; what they take is known of all others.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::budgets::Budgets;
use crate::cycle::Cycle;
use crate::filters::{self, Refusal};
use crate::nominations::Nominations;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::trial::Trial;
use crate::verdict::{Diagnosis, NEVER, NO_VICTIMS, Obstacles, Preemption};

const LEAVING: &str = "not eligible due to a terminating pod on the nominated node.";
/// A choice is made among at least so many nodes, if there are.
const CANDIDATES: usize = 100;
/// And among this part of those where others' going may help.
const PART: usize = 10;

/// What comes of an attempt.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The pod may not make others go, or those that it has chosen have not left yet.
    Unchanged,
    /// Nobody's going would help.
    Vain,
    /// These are to go.
    Room(Candidate),
}

/// A node, and who would have to go for the pod to run on it.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) node: Arc<str>,
    /// At least one; the most important first.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// How many of them go though a budget of disruptions does not allow it.
    violations: usize,
}

impl Candidate {
    /// The less, the better.
    fn cost(&self) -> (usize, i32, i64, usize, Reverse<i64>) {
        let highest = self.victims.iter().map(|victim| victim.priority).max();
        let highest = highest.unwrap_or(i32::MIN);
        // Priorities below zero, too, make a victim more cost more.
        let weight = |victim: &Arc<PodInfo>| i64::from(victim.priority) - i64::from(i32::MIN);
        let important = self.victims.iter();
        let important = important.filter(|victim| victim.priority == highest);
        let earliest = important.map(|victim| victim.started).min();
        (
            self.violations,
            highest,
            self.victims.iter().map(weight).sum(),
            self.victims.len(),
            Reverse(earliest.unwrap_or(i64::MAX)),
        )
    }
}

/// Looks for room for the pod of a cycle that found none, as the diagnosis says, which is told what came of it. The search
/// begins at another node with each turn.
pub(crate) fn attempt<'a>(
    cycle: &mut Cycle<'a>,
    snapshot: &'a Snapshot,
    nominations: &'a Nominations,
    budgets: &Budgets,
    diagnosis: &mut Diagnosis,
    turn: usize,
) -> Outcome {
    if let Err(why) = check_eligible(cycle.pod(), snapshot, nominations, diagnosis.resolvable()) {
        diagnosis.preemption = Preemption::NotEligible(why);
        return Outcome::Unchanged;
    }
    let names = diagnosis.resolvable();
    let wanted = (names.len() / PART).max(CANDIDATES);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut obstacles = Obstacles::default();
    for offset in 0..names.len() {
        let name = &names[(turn % names.len() + offset) % names.len()];
        let Some(node) = snapshot.node(name) else {
            continue;
        };
        match victims(cycle, node, nominations, budgets) {
            Ok((victims, violations)) => candidates.push(Candidate {
                node: node.name.clone(),
                victims: victims.into_iter().cloned().collect(),
                violations,
            }),
            Err(reasons) => obstacles.add(reasons),
        }
        if candidates.len() >= wanted {
            break;
        }
    }
    match candidates.into_iter().min_by_key(Candidate::cost) {
        Some(best) => {
            diagnosis.preemption = Preemption::Done;
            Outcome::Room(best)
        }
        None => {
            diagnosis.preemption = Preemption::Vain(obstacles);
            Outcome::Vain
        }
    }
}

/// Whether the pod may make others go now.
fn check_eligible(
    pod: &PodInfo,
    snapshot: &Snapshot,
    nominations: &Nominations,
    resolvable: &[Arc<str>],
) -> Result<(), &'static str> {
    if pod.never_preempts {
        return Err(NEVER);
    }
    // Where nobody's going helps any more, there is nothing to wait for.
    let nominated = nominations.node_of(&pod.uid);
    let nominated = nominated.filter(|name| resolvable.contains(name));
    let Some(node) = nominated.and_then(|name| snapshot.node(name)) else {
        return Ok(());
    };
    if !node.has_below(pod.priority) {
        return Ok(());
    }
    let mut others = node.pods.values();
    match others.any(|other| other.priority < pod.priority && nominations.is_leaving(other)) {
        true => Err(LEAVING),
        false => Ok(()),
    }
}

/// The order of importance: the highest, and of those the ones that run for longest, are the first to be let stay.
fn by_importance(one: &Arc<PodInfo>, other: &Arc<PodInfo>) -> Ordering {
    let importance = |pod: &PodInfo| (Reverse(pod.priority), pod.started);
    importance(one)
        .cmp(&importance(other))
        .then_with(|| one.uid.cmp(&other.uid))
}

/// Pods of a node, the most important first, and how many of them a budget does not allow to go.
type Victims<'a> = (Vec<&'a Arc<PodInfo>>, usize);

/// Who would have to go for the pod to run on the node; or what would be in the way still. Those are let stay first whose going
/// a budget of disruptions does not allow.
fn victims<'a>(
    cycle: &mut Cycle<'a>,
    node: &'a NodeInfo,
    nominations: &'a Nominations,
    budgets: &Budgets,
) -> Result<Victims<'a>, Vec<Cow<'static, str>>> {
    let pod = cycle.pod();
    if !node.has_below(pod.priority) {
        return Err(vec![NO_VICTIMS.into()]);
    }
    let reasons = |refusal: Refusal| refusal.reasons;
    let expected = nominations.ahead_of(pod, &node.name);
    // Most nodes that will not do have no room. Ports come before room in what is told.
    if expected.is_empty() && pod.host_ports.is_empty() {
        let (used, pods) = node.taken_from(pod.priority);
        filters::room(pod, node, &used, pods).map_err(reasons)?;
    }
    let lower = node.pods.values();
    let mut lower: Vec<&'a Arc<PodInfo>> = lower
        .filter(|other| other.priority < pod.priority)
        .collect();
    let mut trial = Trial::new(cycle, node);
    for other in lower.iter().copied() {
        trial.remove(other);
    }
    trial.check_beside(&expected).map_err(reasons)?;
    lower.sort_by(|one, other| by_importance(one, other));
    let (violating, others) = budgets.part(lower);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (pods, violate) in [(violating, true), (others, false)] {
        for other in pods {
            trial.add(other);
            if trial.check_beside(&expected).is_err() {
                trial.remove(other);
                victims.push(other);
                violations += usize::from(violate);
            }
        }
    }
    victims.sort_by(|one, other| by_importance(one, other));
    match victims.is_empty() {
        true => Err(vec![NO_VICTIMS.into()]),
        false => Ok((victims, violations)),
    }
}

#[cfg(test)]
mod tests;
