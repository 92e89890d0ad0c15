//! The pure part: from a deployment and its replica sets to what is to be written.
//!
//! One pass changes at most one side of a rollout: either the current set grows, or older sets shrink; both at once on the
//! way back from a revision that failed (`rollback.rs`). What the change brings about is judged in the next pass, by what
//! the sets then report. Invariants, kept here and tested below:
//!
//! - a rolling update never has more pods than wanted + maxSurge, and never takes away an available pod when that
//!   would leave fewer than wanted - maxUnavailable;
//! - a paused deployment keeps its templates and can only be scaled.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::canary::{self, CONTINUE, Canary, Walk, is_unproved};
use super::policy::Policy;
use super::revision::{
    REVISION, TEMPLATE_HASH, annotate_new, annotate_size, revision_of, sorted, text,
};
use super::rollback::{self, Look, Note};
use super::sizing::{
    allowed, available, is_rolling, max_unavailable, new_size, resize, size, sum, total, wanted,
};
use super::status::{
    self, FOUND_NEW_SET, NEW_SET_CREATED, PROGRESSING, condition, deadline, new_condition,
    set_condition,
};
use super::undo;
use crate::claim::controller_reference;
use crate::figures::PodValue;

/// What a name may have, in bytes.
const LONGEST_NAME: usize = 253;

/// What an event may say, in characters.
const LONGEST_MESSAGE: usize = 1000;

/// What one pass writes, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The set of the current template, when there is none yet.
    pub(crate) create: Option<ReplicaSet>,
    /// Sets to write, as they shall be.
    pub(crate) update: Vec<ReplicaSet>,
    /// Messages of `ScalingReplicaSet` events.
    pub(crate) events: Vec<String>,
    /// Names of sets beyond the history limit.
    pub(crate) delete: Vec<String>,
    /// The deployment with its revision and new status, when they changed.
    pub(crate) deployment: Option<Deployment>,
    /// The deployment with another template: the next pass goes on from there.
    pub(crate) rewrite: Option<Deployment>,
    /// What is told once all of that is written.
    pub(crate) told: Vec<Told>,
    /// The uid of a pod whose probe's last answer belongs into what is told; asked for while there is none.
    pub(crate) asks: Option<String>,
    /// When to look again though nothing changed.
    pub(crate) wake: Option<Duration>,
}

/// An event of the deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) is_warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Told {
    pub(crate) fn normal(reason: &'static str, message: String) -> Self {
        Self {
            is_warning: false,
            reason,
            message,
        }
    }

    pub(crate) fn warning(reason: &'static str, message: String) -> Self {
        Self {
            is_warning: true,
            reason,
            message,
        }
    }
}

/// What is known of a deployment.
#[derive(Clone)]
pub(crate) struct Observed<'a> {
    pub(crate) deployment: &'a Deployment,
    /// The sets it controls.
    pub(crate) sets: Vec<ReplicaSet>,
    /// Whether pods of older templates still run, or are thought to; only asked for by the strategy Recreate.
    pub(crate) old_pods_run: bool,
    /// The hash of the current template.
    pub(crate) hash: String,
    /// What is said of automatic rollback.
    pub(crate) policy: Policy,
    /// What is said of steps.
    pub(crate) canary: Canary,
    /// The pods of the current set; only asked for where revisions take themselves back, or have steps.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The metric of these pods that a step goes by, or why it is not known; only asked for at a step.
    pub(crate) figures: Option<Result<Vec<PodValue>, String>>,
    /// What a failing probe was answered last.
    pub(crate) answer: Option<String>,
    pub(crate) now: Timestamp,
}

/// How a pass goes on once it is known whether the current revision works.
enum Then {
    GoOn,
    /// The template is written, and nothing else.
    Rewrite,
    /// What was found out is written, and nothing is sized.
    Tell,
}

/// A pass under way.
pub(super) struct Pass<'a> {
    pub(super) deployment: &'a Deployment,
    /// The status as it becomes.
    status: DeploymentStatus,
    revision: Option<String>,
    /// Other annotations to write.
    notes: Vec<Note>,
    /// The set of the current template.
    pub(super) new: Option<ReplicaSet>,
    /// All others, oldest first.
    pub(super) old: Vec<ReplicaSet>,
    /// How far the current set is, where its rollout has steps.
    pub(super) walk: Walk,
    plan: Plan,
    now: Timestamp,
}

/// Decides on one pass.
pub(crate) fn plan(mut observed: Observed<'_>) -> Plan {
    let deployment = observed.deployment;
    let sets = std::mem::take(&mut observed.sets);
    let mut pass = Pass::new(deployment, sets, observed.now);
    if deployment.metadata.deletion_timestamp.is_some() {
        pass.sync_revision(None);
        return pass.finish(false);
    }
    status::note_pause(deployment, &mut pass.status, pass.now);
    pass.note_faults([&observed.policy.faults, &observed.canary.faults]);
    let paused = status::is_paused(deployment);
    let only_sized = paused || pass.was_resized();
    pass.walk = pass.look_at_steps(&observed, only_sized);
    if let Some(revision) = undo::asked(deployment).filter(|_| !paused) {
        return pass.undo(&observed.hash, revision);
    }
    let then = match paused {
        true => Then::GoOn,
        false => pass.take_back(&observed),
    };
    if status::is_rolled_back(&pass.status) {
        // No steps on the way back.
        pass.walk = pass.walk.given_up();
    }
    match then {
        Then::GoOn => {}
        Then::Rewrite => return pass.plan,
        Then::Tell => {
            pass.sync_revision(None);
            return pass.finish(true);
        }
    }
    if only_sized {
        pass.sync_revision(None);
        pass.scale_all();
        if paused {
            pass.clean_up();
        }
        return pass.finish(false);
    }
    if is_rolling(deployment) {
        pass.sync_revision(Some(&observed.hash));
        if status::is_rolled_back(&pass.status) {
            // What does not work goes, and what works takes its place, in one.
            pass.shrink_old();
            pass.grow_new();
        } else if !pass.grow_new() && !pass.refill_old() {
            pass.shrink_old();
        }
    } else {
        pass.sync_revision(None);
        if !pass.stop_old() && !observed.old_pods_run {
            pass.sync_revision(Some(&observed.hash));
            pass.grow_new();
        }
    }
    pass.finish(true)
}

impl<'a> Pass<'a> {
    fn new(deployment: &'a Deployment, sets: Vec<ReplicaSet>, now: Timestamp) -> Self {
        let (mut sets, current) = sorted(deployment, sets);
        let new = current.map(|at| sets.remove(at));
        Self {
            deployment,
            status: deployment.status.clone().unwrap_or_default(),
            revision: None,
            notes: Vec::new(),
            new,
            old: sets,
            walk: Walk::default(),
            plan: Plan::default(),
            now,
        }
    }

    pub(super) fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }

    /// The revision that a set gets which becomes the current one.
    fn next_revision(&self) -> i64 {
        let last = self.old.iter().map(|set| revision_of(&set.metadata)).max();
        last.unwrap_or(0) + 1
    }

    /// Gives the current set its revision, and notes how far it is; with a hash, plans the set when there is none.
    fn sync_revision(&mut self, hash: Option<&str>) {
        let revision = self.next_revision();
        if let Some(new) = &mut self.new {
            let before = new.clone();
            annotate_new(self.deployment, new, revision);
            self.walk.annotate(&mut new.metadata);
            let seconds = self
                .deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.min_ready_seconds);
            let spec = new.spec.get_or_insert_default();
            if spec.min_ready_seconds.unwrap_or(0) != seconds.unwrap_or(0) {
                spec.min_ready_seconds = seconds;
            }
            let changed = *new != before;
            let name = new.metadata.name.clone().unwrap_or_default();
            self.revision = text(&new.metadata, REVISION).map(str::to_owned);
            if changed {
                self.wrote(new_clone(&self.new));
            }
            if condition(&self.status, PROGRESSING).is_none() {
                self.progressing(FOUND_NEW_SET, format!("Found new replica set {name:?}"));
            }
        } else if let Some(hash) = hash {
            let mut set = set_of(self.deployment, hash);
            let replicas = new_size(self.deployment, 0, total(&self.old));
            let replicas = self.walk.limited(0, replicas);
            resize(&mut set, replicas);
            annotate_new(self.deployment, &mut set, revision);
            self.walk.annotate(&mut set.metadata);
            let wanted = wanted(self.deployment);
            annotate_size(&mut set, wanted, allowed(self.deployment));
            let name = set.metadata.name.clone().unwrap_or_default();
            if replicas > 0 {
                let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                self.plan.events.push(message);
            }
            self.progressing(NEW_SET_CREATED, format!("Created new replica set {name:?}"));
            self.revision = Some(revision.to_string());
            self.plan.create = Some(set.clone());
            self.new = Some(set);
        }
    }

    fn progressing(&mut self, reason: &str, message: String) {
        if deadline(self.deployment).is_some() && !status::is_rolled_back(&self.status) {
            let condition = new_condition(PROGRESSING, "True", reason, message, self.now);
            set_condition(&mut self.status, condition);
        }
    }

    /// Notes that a set is to be written; of several changes to one set, the last is complete.
    fn wrote(&mut self, set: ReplicaSet) {
        let update = &mut self.plan.update;
        update.retain(|known| known.metadata.name != set.metadata.name);
        update.push(set);
    }

    /// Sizes a set and notes the deployment's size in it.
    pub(super) fn scaled(&mut self, mut set: ReplicaSet, to: i32) -> ReplicaSet {
        let from = size(&set);
        let before = set.metadata.annotations.clone();
        let wanted = wanted(self.deployment);
        resize(&mut set, to);
        annotate_size(&mut set, wanted, allowed(self.deployment));
        if from != to {
            let direction = if from < to { "up" } else { "down" };
            let name = set.metadata.name.as_deref().unwrap_or_default();
            self.plan.events.push(format!(
                "Scaled {direction} replica set {name} from {from} to {to}"
            ));
        }
        if from != to || before != set.metadata.annotations {
            self.wrote(set.clone());
        }
        set
    }

    pub(super) fn scale_old(&mut self, at: usize, to: i32) {
        let set = self.old[at].clone();
        self.old[at] = self.scaled(set, to);
    }

    /// Brings the current set to the size it may have; whether that changed anything.
    fn grow_new(&mut self) -> bool {
        // One that is planned in this very pass has its size.
        if self.plan.create.is_some() {
            return true;
        }
        let Some(new) = self.new.take() else {
            return false;
        };
        let current = size(&new);
        let target = if current > wanted(self.deployment) {
            wanted(self.deployment)
        } else {
            let target = new_size(self.deployment, current, total(&self.old));
            self.walk.limited(current, target)
        };
        if current == target {
            self.new = Some(new);
            return false;
        }
        self.new = Some(self.scaled(new, target));
        true
    }

    /// Takes away older pods: first those that are not available anyway, then as many as availability and steps allow.
    fn shrink_old(&mut self) {
        let old_total = total(&self.old);
        if old_total == 0 {
            return;
        }
        let kept = self.walk.kept(wanted(self.deployment));
        let least = wanted(self.deployment).saturating_sub(max_unavailable(self.deployment));
        let new_unavailable = self
            .new
            .as_ref()
            .map_or(0, |new| size(new).saturating_sub(available(new)));
        let mut spare = old_total
            .saturating_add(self.new.as_ref().map_or(0, size))
            .saturating_sub(least)
            .saturating_sub(new_unavailable)
            .min(old_total.saturating_sub(kept));
        if spare <= 0 {
            return;
        }
        for at in 0..self.old.len() {
            let unhealthy = size(&self.old[at]).saturating_sub(available(&self.old[at]));
            let take = unhealthy.min(spare);
            if take > 0 {
                self.scale_old(at, size(&self.old[at]) - take);
                spare -= take;
            }
        }
        // A set that was shrunk a moment ago may still report the pods it had.
        let still = |set: &&ReplicaSet| available(set).min(size(set));
        let mut spare = sum(self.all().iter().map(still))
            .saturating_sub(least)
            .min(total(&self.old).saturating_sub(kept));
        // What has not been through its steps has shown the least of itself.
        let mut order: Vec<usize> = (0..self.old.len()).collect();
        order.sort_by_key(|at| !is_unproved(&self.old[*at].metadata));
        for at in order {
            // What was unhealthy is gone by now: the rest is available.
            let take = size(&self.old[at]).min(spare);
            if take > 0 {
                self.scale_old(at, size(&self.old[at]) - take);
                spare -= take;
            }
        }
    }

    /// While a step holds, the older pods stand in for the newest: what does not work of them gives its places to the newest
    /// older set of which all pods work, as does what is missing. Whether anything moves.
    fn refill_old(&mut self) -> bool {
        let kept = self.walk.kept(wanted(self.deployment));
        // Those above go first.
        if self.walk.ceiling.is_none() || total(&self.old) > kept {
            return false;
        }
        let is_whole = |set: &ReplicaSet| size(set) > 0 && available(set) >= size(set);
        let proved = |set: &ReplicaSet| !is_unproved(&set.metadata) && is_whole(set);
        let Some(stable) = self.old.iter().rposition(proved) else {
            return false;
        };
        let there = total(self.all());
        let room = allowed(self.deployment).saturating_sub(there);
        let missing = kept.saturating_sub(total(&self.old)).min(room).max(0);
        let mut moved = 0i32;
        for at in (0..self.old.len()).filter(|at| *at != stable) {
            let unhealthy = size(&self.old[at]).saturating_sub(available(&self.old[at]));
            if unhealthy > 0 {
                self.scale_old(at, size(&self.old[at]).saturating_sub(unhealthy));
                moved = moved.saturating_add(unhealthy);
            }
        }
        let more = moved.saturating_add(missing);
        if more > 0 {
            self.scale_old(stable, size(&self.old[stable]).saturating_add(more));
        }
        more > 0
    }

    /// Recreate: all older sets go to zero first; whether any had to.
    fn stop_old(&mut self) -> bool {
        let mut stopped = false;
        for at in 0..self.old.len() {
            if size(&self.old[at]) > 0 {
                self.scale_old(at, 0);
                stopped = true;
            }
        }
        stopped
    }

    /// Lets go of the oldest revisions beyond the history limit, when nothing is left of them.
    fn clean_up(&mut self) {
        let spec = self.deployment.spec.as_ref();
        let limit = spec
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(10);
        let mut sets: Vec<&ReplicaSet> = self
            .old
            .iter()
            .filter(|set| set.metadata.deletion_timestamp.is_none())
            .collect();
        sets.sort_by_key(|set| revision_of(&set.metadata));
        let excess = sets
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        let kept = [rollback::HEALTHY, rollback::WARM];
        let kept = kept.map(|name| text(&self.deployment.metadata, name));
        self.plan.delete = sets
            .into_iter()
            .take(excess)
            .filter(|set| rollback::hash_of(set).is_none_or(|hash| !kept.contains(&Some(hash))))
            .filter(|set| {
                let status = set.status.clone().unwrap_or_default();
                status.replicas == 0
                    && size(set) == 0
                    && set.metadata.generation <= status.observed_generation
            })
            .filter_map(|set| set.metadata.name.clone())
            .collect();
    }

    fn note_faults(&mut self, faults: [&[String]; 2]) {
        let faults = faults.concat();
        if status::note_faults(&mut self.status, &faults, self.now) {
            let message = faults.join("; ");
            self.plan
                .told
                .push(Told::warning(status::INVALID_ANNOTATION, message));
        }
    }

    /// Looks how far the current set is on its steps.
    fn look_at_steps(&self, observed: &Observed<'_>, is_frozen: bool) -> Walk {
        let new = self.new.as_ref();
        let known = new.map_or(0, |set| revision_of(&set.metadata));
        let look = canary::Look {
            deployment: self.deployment,
            canary: &observed.canary,
            policy: &observed.policy,
            new,
            old: &self.old,
            revision: known.max(self.next_revision()),
            pods: &observed.pods,
            figures: observed.figures.as_ref(),
            is_frozen,
            now: self.now,
        };
        look.walk()
    }

    /// Looks whether the current revision works, before anything of it is brought further.
    fn take_back(&mut self, observed: &Observed<'_>) -> Then {
        let mut before = self.deployment.status.clone().unwrap_or_default();
        before.conditions.clone_from(&self.status.conditions);
        let (new, all) = (self.new.as_ref(), self.all());
        let holds = self.walk.holds.as_deref();
        let status = status::of_rollout(self.deployment, &before, new, &all, holds, self.now);
        let decision = rollback::decide(&Look {
            deployment: self.deployment,
            policy: &observed.policy,
            new,
            old: &self.old,
            hash: &observed.hash,
            pods: &observed.pods,
            metric: self.walk.fault.as_ref(),
            status: &status,
            now: self.now,
        });
        if let Some(restored) = decision.restore {
            let known = condition(&self.status, status::ROLLED_BACK);
            let message = known.and_then(|condition| condition.message.clone());
            let message = message.unwrap_or_else(|| "Its template failed before.".to_owned());
            self.plan.rewrite = Some(restored);
            self.plan.told = vec![Told::warning(status::ROLLED_BACK, message)];
            return Then::Rewrite;
        }
        if decision.is_over {
            status::forget_rollback(&mut self.status);
        }
        self.notes = decision.notes;
        self.plan.wake = decision.wake;
        let Some(fault) = decision.given_up else {
            return Then::GoOn;
        };
        let message = match &observed.answer {
            Some(answer) => format!("{}: {answer}", fault.message),
            None => fault.message,
        };
        let message: String = message.chars().take(LONGEST_MESSAGE).collect();
        status::note_rollback(&mut self.status, &fault.reason, &message, self.now);
        self.plan.asks = fault.asks.filter(|_| observed.answer.is_none());
        Then::Tell
    }

    /// Goes back to a revision that somebody asks for.
    fn undo(mut self, hash: &str, revision: i64) -> Plan {
        self.sync_revision(Some(hash));
        let (changed, told) = undo::undo(self.deployment, &self.all(), revision);
        self.plan.rewrite = Some(changed);
        self.plan.told.push(told);
        self.plan
    }

    fn finish(mut self, rollout: bool) -> Plan {
        let all = self.all();
        let (deployment, new, now) = (self.deployment, self.new.as_ref(), self.now);
        let status = if rollout {
            let mut before = deployment.status.clone().unwrap_or_default();
            before.conditions.clone_from(&self.status.conditions);
            let holds = self.walk.holds.as_deref();
            status::of_rollout(deployment, &before, new, &all, holds, now)
        } else {
            status::counted(deployment, &self.status, new, &all, now)
        };
        if rollout && status::is_complete(deployment, &status) {
            self.clean_up();
        }
        let mut changed = deployment.clone();
        if let Some(revision) = self.revision.take() {
            let annotations = changed.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_owned(), revision);
        }
        let walk = std::mem::take(&mut self.walk);
        self.notes
            .extend(walk.is_heeded.then_some((CONTINUE, None)));
        self.plan.told.extend(walk.told);
        for (name, value) in std::mem::take(&mut self.notes) {
            let annotations = changed.metadata.annotations.get_or_insert_default();
            match value {
                Some(value) => annotations.insert(name.to_owned(), value),
                None => annotations.remove(name),
            };
        }
        let deadline = status::wake(deployment, &status, now);
        let wakes = [self.plan.wake, walk.wake, deadline];
        self.plan.wake = wakes.into_iter().flatten().min();
        changed.status = Some(status);
        if changed != *deployment {
            self.plan.deployment = Some(changed);
        }
        self.plan
    }
}

fn new_clone(new: &Option<ReplicaSet>) -> ReplicaSet {
    new.clone().unwrap_or_default()
}

/// The name of the set of a template: the deployment's, cut where the whole would be longer than a name may be, and the hash.
pub(crate) fn set_name(deployment: &Deployment, hash: &str) -> String {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let room = LONGEST_NAME.saturating_sub(hash.len() + 1);
    // Names are ASCII; one that is not is left whole, for the API server to refuse.
    format!("{}-{hash}", name.get(..room).unwrap_or(name))
}

/// The set of the current template, not yet sized.
fn set_of(deployment: &Deployment, hash: &str) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let label = || (TEMPLATE_HASH.to_owned(), hash.to_owned());
    let mut template = spec.template;
    let metadata = template.metadata.get_or_insert_default();
    let labels = metadata.labels.get_or_insert_default();
    labels.extend([label()]);
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .extend([label()]);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set_name(deployment, hash)),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}
