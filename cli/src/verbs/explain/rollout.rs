//! From a Deployment, its ReplicaSets and pods to what its rollout waits for.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::super::rollout::{Revision, Seen, Sort, Trouble, condition, images, trouble};
use super::{Said, command, ended};
use crate::output::one_line;

/// Sorts of trouble that are told.
const TOLD: usize = 6;

/// The uids of pods that run and are not ready: of those it matters what their probes were answered.
pub(super) fn asked(seen: &Seen, now: Timestamp) -> Vec<String> {
    let revisions = seen.revisions().into_iter();
    let pods = revisions.flat_map(|revision| revision.pods);
    let unready = pods.filter(|pod| trouble(pod, now).is_some_and(|of| of.sort == Sort::Unready));
    unready.filter_map(|pod| pod.metadata.uid.clone()).collect()
}

/// What is said of the rollout. `answers` has what probes were answered last, by the uids of their pods.
pub(super) fn explain(seen: &Seen, answers: &BTreeMap<String, String>, now: Timestamp) -> Said {
    let mut explaining = Explaining {
        seen,
        revisions: seen.revisions(),
        answers,
        now,
        said: Said::default(),
    };
    explaining.all();
    explaining.said
}

struct Explaining<'a> {
    seen: &'a Seen,
    revisions: Vec<Revision<'a>>,
    answers: &'a BTreeMap<String, String>,
    now: Timestamp,
    said: Said,
}

/// Pods in the same trouble.
struct Group<'a> {
    first: &'a Pod,
    trouble: Trouble,
    revision: i64,
    pods: usize,
}

fn pods(count: impl Into<i64>) -> String {
    match count.into() {
        1 => "1 pod".to_owned(),
        count => format!("{count} pods"),
    }
}

fn name(pod: &Pod) -> String {
    one_line(pod.metadata.name.as_deref().unwrap_or_default())
}

impl<'a> Explaining<'a> {
    fn all(&mut self) {
        self.counts();
        let metadata = &self.seen.deployment.metadata;
        if metadata.deletion_timestamp.is_some() {
            return self.said.say("It is being deleted.");
        }
        let status = self.seen.deployment.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        if metadata.generation > observed {
            self.said.say(format!(
                "Its latest change has not been looked at yet: it is generation {}, and the controller has seen {}.",
                metadata.generation.unwrap_or(0),
                observed.unwrap_or(0)
            ));
            return self.propose("doctor");
        }
        let is_back = self.rolled_back();
        let known = self.said.sentences.len();
        if self.is_paused() {
            self.said
                .say("It is paused: changes of its template wait until it is resumed.");
            self.propose(&format!("rollout resume deploy/{}", self.seen.name()));
        }
        self.canary();
        self.refused();
        self.troubles();
        self.not_yet_available();
        self.leaving();
        self.order();
        let is_held = self.said.sentences.len() > known;
        let is_done = self.seen.is_complete();
        match (is_done, is_held) {
            (true, false) => self.said.say("Nothing is waited for."),
            (false, false) => self
                .said
                .say("Nothing holds it up: it goes on as pods become available."),
            _ => {}
        }
        if !is_done && !is_back {
            self.deadline();
        }
    }

    fn propose(&mut self, words: &str) {
        let namespace = self.seen.deployment.metadata.namespace.as_deref();
        self.said.propose(command(namespace, words));
    }

    fn is_paused(&self) -> bool {
        let spec = self.seen.deployment.spec.as_ref();
        spec.and_then(|spec| spec.paused) == Some(true)
    }

    /// What the step of a canary that holds it says.
    fn step(&self) -> Option<&str> {
        let progressing = self.seen.condition("Progressing")?;
        let is_step = progressing.reason.as_deref() == Some("CanaryStep");
        progressing.message.as_deref().filter(|_| is_step)
    }

    fn wanted(&self) -> Option<&Revision<'a>> {
        self.revisions.iter().find(|revision| revision.is_wanted)
    }

    /// Which revision is wanted, and how many pods of it and of others there are.
    fn counts(&mut self) {
        let spec = self.seen.deployment.spec.as_ref();
        let which = match self.wanted() {
            Some(revision) => format!("revision {}", revision.number),
            None => "a new revision".to_owned(),
        };
        self.said.say(format!(
            "Deployment {} wants {} of {which}, image {}.",
            one_line(self.seen.name()),
            pods(self.seen.wanted()),
            images(spec.map(|spec| &spec.template)),
        ));
        let there = match self.wanted() {
            Some(revision) => {
                let (there, ready, available) = revision.counts();
                format!("It has {there} of them: {ready} ready, {available} available.")
            }
            None => "Its ReplicaSet is not there yet.".to_owned(),
        };
        let old = self
            .revisions
            .iter()
            .filter(|revision| !revision.is_wanted && revision.is_alive());
        let old: Vec<String> = old
            .map(|revision| {
                let (there, _, available) = revision.counts();
                format!(
                    "{there} of revision {} ({available} available)",
                    revision.number
                )
            })
            .collect();
        self.said.say(match old.is_empty() {
            true => there,
            false => format!("{there} Older pods: {}.", old.join(", ")),
        });
    }

    /// Whether a revision was taken back.
    fn rolled_back(&mut self) -> bool {
        let rolled_back = self
            .seen
            .condition("RolledBack")
            .filter(|known| known.status == "True");
        let Some(rolled_back) = rolled_back else {
            return false;
        };
        let message = rolled_back.message.as_deref().unwrap_or_default();
        let reason = one_line(rolled_back.reason.as_deref().unwrap_or_default());
        self.said.say(format!("{} ({reason})", ended(message)));
        self.said
            .say("That template is not tried again until another one is wanted.");
        self.propose(&format!("rollout history deploy/{}", self.seen.name()));
        true
    }

    fn canary(&mut self) {
        if let Some(step) = self.step() {
            let sentence = format!("It is held by a canary: {}", ended(step));
            self.said.say(sentence);
            self.propose(&format!("rollout promote deploy/{}", self.seen.name()));
        }
    }

    /// Whether pods cannot be made, such as for a quota.
    fn refused(&mut self) {
        let refused = self
            .seen
            .condition("ReplicaFailure")
            .filter(|known| known.status == "True");
        if let Some(message) = refused.and_then(|known| known.message.as_deref()) {
            self.said
                .say(format!("Pods cannot be created: {}", ended(message)));
            let set = self
                .wanted()
                .and_then(|revision| revision.set.metadata.name.clone());
            if let Some(set) = set {
                self.propose(&format!("describe rs {set}"));
            }
        }
    }

    fn troubles(&mut self) {
        let mut groups: BTreeMap<(bool, Sort, String), Group<'a>> = BTreeMap::new();
        for revision in &self.revisions {
            for pod in revision.pods.iter().copied() {
                let Some(trouble) = trouble(pod, self.now) else {
                    continue;
                };
                let same = (!revision.is_wanted, trouble.sort, trouble.reason.clone());
                let group = groups.entry(same).or_insert(Group {
                    first: pod,
                    trouble,
                    revision: revision.number,
                    pods: 0,
                });
                group.pods += 1;
            }
        }
        let has_trouble = groups.keys().any(|(is_old, ..)| !is_old);
        for group in groups.values().take(TOLD) {
            self.say_trouble(group);
        }
        let is_followed = self.revisions.iter().any(|revision| !revision.is_wanted);
        if has_trouble && is_followed && !self.seen.is_complete() && !self.is_paused() {
            self.propose(&format!("rollout undo deploy/{}", self.seen.name()));
        }
    }

    fn say_trouble(&mut self, group: &Group<'_>) {
        let (pod, trouble) = (name(group.first), &group.trouble);
        let container = trouble.container.as_deref().unwrap_or_default();
        let who = match group.pods {
            1 => format!("Pod {pod}"),
            several => format!("{several} pods, such as {pod}"),
        };
        let what = match trouble.sort {
            Sort::Unscheduled => "no node takes it".to_owned(),
            Sort::Image => format!("the image of container {container} cannot be had"),
            Sort::Creation => format!("container {container} cannot be made"),
            Sort::Crash => format!("container {container} does not go on running"),
            Sort::Failed => "it has failed".to_owned(),
            Sort::Unready => "it runs and is not ready".to_owned(),
            Sort::Slow => "it is still starting".to_owned(),
        };
        let uid = group.first.metadata.uid.as_deref().unwrap_or_default();
        let why = match self.answers.get(uid) {
            Some(answer) if trouble.sort == Sort::Unready => answer.clone(),
            _ => trouble.to_string(),
        };
        self.said.say(format!(
            "{who} of revision {}: {what}: {}",
            group.revision,
            ended(&why)
        ));
        match trouble.sort {
            Sort::Unscheduled => self.propose("top nodes"),
            Sort::Image => {
                let deployment = self.seen.name();
                self.propose(&format!("set image deploy/{deployment} {container}=IMAGE"));
            }
            Sort::Crash => self.propose(&format!("logs {pod} -c {container} --previous")),
            Sort::Unready => self.propose(&format!("logs {pod}")),
            Sort::Creation | Sort::Failed | Sort::Slow => {}
        }
        self.propose(&format!("describe pod {pod}"));
    }

    /// Pods that are ready, and not for long enough.
    fn not_yet_available(&mut self) {
        let spec = self.seen.deployment.spec.as_ref();
        let least = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let least = Duration::from_secs(u64::try_from(least).unwrap_or(0));
        let pods = self.wanted().map(|revision| revision.pods.as_slice());
        let young = pods.unwrap_or_default().iter().filter_map(|pod| {
            let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
            self.left(ready.last_transition_time.as_ref(), least)
        });
        let young: Vec<Duration> = young.collect();
        if let Some(soonest) = young.iter().min() {
            self.said.say(format!(
                "{} ready, but not yet for minReadySeconds ({}): the next is available in {} s.",
                match young.len() {
                    1 => "1 pod is".to_owned(),
                    several => format!("{several} pods are"),
                },
                least.as_secs(),
                soonest.as_secs().max(1)
            ));
        }
    }

    /// What is left of a time; none when it is over.
    fn left(&self, since: Option<&Time>, of: Duration) -> Option<Duration> {
        let passed = Duration::try_from(self.now.duration_since(since?.0)).unwrap_or_default();
        of.checked_sub(passed).filter(|left| !left.is_zero())
    }

    fn leaving(&mut self) {
        let pods = self.revisions.iter().flat_map(|revision| &revision.pods);
        let leaving = pods.filter(|pod| pod.metadata.deletion_timestamp.is_some());
        match leaving.count() {
            0 => {}
            1 => self.said.say("1 pod is on its way out."),
            count => self.said.say(format!("{count} pods are on their way out.")),
        }
    }

    /// What keeps further pods from being made now.
    fn order(&mut self) {
        let Some(spec) = self.seen.deployment.spec.as_ref() else {
            return;
        };
        let strategy = spec.strategy.as_ref();
        let there = self.wanted().map_or(0, Revision::wanted);
        let is_old_alive = self
            .revisions
            .iter()
            .any(|revision| !revision.is_wanted && revision.is_alive());
        if there >= self.seen.wanted() || !is_old_alive || self.is_paused() || self.step().is_some()
        {
            return;
        }
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return self.said.say(
                "Its strategy is Recreate: new pods are made when all older ones have ended.",
            );
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let shown = |value: Option<&IntOrString>| match value {
            Some(IntOrString::Int(count)) => count.to_string(),
            Some(IntOrString::String(share)) => one_line(share),
            None => "25%".to_owned(),
        };
        self.said.say(format!(
            "No more than maxSurge ({}) may exist beyond {}, and no more than maxUnavailable ({}) be missing: the rest follows as pods become available.",
            shown(rolling.and_then(|rolling| rolling.max_surge.as_ref())),
            pods(self.seen.wanted()),
            shown(rolling.and_then(|rolling| rolling.max_unavailable.as_ref())),
        ));
    }

    /// When the rollout counts as failed.
    fn deadline(&mut self) {
        let spec = self.seen.deployment.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.progress_deadline_seconds);
        let Some(seconds) = seconds.filter(|seconds| *seconds != i32::MAX) else {
            return;
        };
        let progressing = self.seen.condition("Progressing");
        let reason = progressing.and_then(|known| known.reason.as_deref());
        if reason == Some("ProgressDeadlineExceeded") {
            self.said.say(format!(
                "It counts as failed: there was no progress for progressDeadlineSeconds ({seconds})."
            ));
            return self.propose(&format!("rollout undo deploy/{}", self.seen.name()));
        }
        if self.is_paused() || self.step().is_some() {
            return;
        }
        let since = progressing.and_then(|known| known.last_update_time.as_ref());
        let deadline = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        if let Some(left) = self.left(since, deadline) {
            self.said.say(format!(
                "It counts as failed when there is no progress for another {} s (progressDeadlineSeconds).",
                left.as_secs().max(1)
            ));
        }
    }
}
