//! Canary rollouts: a new template is given its share of the pods step by step, and goes on only while they stay healthy. The
//! pure part: how many pods the rollout's own plan may give the current set, and when to ask again.
//!
//! How far a set is, is kept in an annotation of it (`mark.rs`), written together with its size:
//!
//! ```text
//!                    its pods are available             the time is over, or somebody promotes it
//! made: step 1 waits ----------------------> step 1 runs ------------------------------------> step 2 waits ... done
//!                    <----------------------  |      ^
//!                     a pod is lost           v      |  the metric holds again: the time begins anew
//!                                            step 1 fails: taken back if it does so for long enough
//! ```
//!
//! A set without a mark has no steps to walk: it was there before there were any, so that the way back to it has none. One that
//! has been through them neither.

mod bound;
mod mark;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use gantry_informer::clock::seconds;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

pub(crate) use self::bound::Bound;
use self::bound::Figure;
pub(crate) use self::mark::MARK;
use self::mark::{At, Clock, Mark};
use self::steps::{Hold, Step};
use super::evidence::{Fault, started_anew};
use super::plan::Told;
use super::policy::{Policy, fault};
use super::revision::text;
use super::sizing::{available, is_rolling, size, total, wanted};
use super::status::{CANARY_STEP, is_paused, left};
use crate::figures::PodValue;
use crate::pods::{is_active, is_ready, ready_since};

/// The steps of a rollout: `10%,30s;50%,pause`.
const CANARY: &str = "gantry.dev/canary";
/// What must hold of a metric of the new pods, on average: `errors_per_second<0.5`.
const METRIC: &str = "gantry.dev/canary-metric";
/// The number of a step that is to be over now, or [`ALL`]; taken off when it is heeded.
pub(crate) const CONTINUE: &str = "gantry.dev/canary-continue";
const ALL: &str = "all";

/// A metric may not hold for so long where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(30);
/// A metric is looked at this often: nobody tells when it crosses its bound.
const LOOK: Duration = Duration::from_secs(2);
const FAULTY: &str = "CanaryMetric";

/// What annotations say of the steps of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Canary {
    /// None where rollouts have no steps.
    steps: Vec<Step>,
    pub(crate) bound: Option<Bound>,
    /// Annotations that say nothing, and why; they count as not there.
    pub(crate) faults: Vec<String>,
}

impl Canary {
    /// The steps of a Deployment.
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let mut canary = Self::default();
        if let Some(value) = text(&deployment.metadata, CANARY) {
            let steps = match is_rolling(deployment) {
                true => steps::parse(value),
                false => Err(
                    "the strategy Recreate replaces all pods at once: use RollingUpdate for steps",
                ),
            };
            match steps {
                Ok(steps) => canary.steps = steps,
                Err(why) => canary.faults.push(fault("", CANARY, value, why)),
            }
        }
        if let Some(value) = text(&deployment.metadata, METRIC) {
            match Bound::parse(value) {
                Some(bound) => canary.bound = Some(bound),
                None => canary
                    .faults
                    .push(fault("", METRIC, value, bound::NO_BOUND)),
            }
        }
        canary
    }

    /// Whether the set is at one of the steps.
    pub(crate) fn is_walked(&self, set: &ReplicaSet) -> bool {
        !self.steps.is_empty() && is_unproved(&set.metadata)
    }

    /// How many of `wanted` pods are the current set's at a step: never fewer than at the steps before.
    fn ceiling(&self, step: usize, wanted: i32) -> i32 {
        let steps = self.steps.iter().take(step.saturating_add(1));
        let most = steps.map(|step| step.count(wanted)).max();
        most.unwrap_or(wanted)
    }
}

/// Whether a set has begun steps that it has not been through.
pub(crate) fn is_unproved(set: &ObjectMeta) -> bool {
    matches!(Mark::of(set, 0), Mark::At(_))
}

/// What is known when it is decided.
pub(crate) struct Look<'a> {
    pub(crate) deployment: &'a Deployment,
    pub(crate) canary: &'a Canary,
    pub(crate) policy: &'a Policy,
    /// The set of the current template.
    pub(crate) new: Option<&'a ReplicaSet>,
    /// All others.
    pub(crate) old: &'a [ReplicaSet],
    /// The revision that the current set has, or is to have.
    pub(crate) revision: i64,
    /// The pods of the current set.
    pub(crate) pods: &'a [Arc<Pod>],
    /// The metric of these pods, or why it is not known.
    pub(crate) figures: Option<&'a Result<Vec<PodValue>, String>>,
    /// Whether this pass only follows a change of size, or a pause, and no step goes on.
    pub(crate) is_frozen: bool,
    pub(crate) now: Timestamp,
}

/// How far the current set is, and what comes of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Walk {
    /// What the current set is marked with from now on; none for what it has.
    mark: Option<Mark>,
    /// How many pods it may have; none for as many as the strategy gives it.
    pub(crate) ceiling: Option<i32>,
    /// What the step waits for, while its pods are all there.
    pub(crate) holds: Option<String>,
    /// Why the revision does not work, by its metric.
    pub(crate) fault: Option<Fault>,
    /// Events.
    pub(crate) told: Vec<Told>,
    /// Whether [`CONTINUE`] is heeded, or of something that is over.
    pub(crate) is_heeded: bool,
    /// When to look again though nothing changed.
    pub(crate) wake: Option<Duration>,
}

impl Walk {
    /// Notes in a set how far it is.
    pub(crate) fn annotate(&self, set: &mut ObjectMeta) {
        if let Some(mark) = &self.mark {
            let annotations = set.annotations.get_or_insert_default();
            annotations.insert(MARK.to_owned(), mark.to_string());
        }
    }

    /// The size that the current set is to get, of that which the strategy gives it. It never shrinks by a step.
    pub(crate) fn limited(&self, current: i32, to: i32) -> i32 {
        self.ceiling
            .map_or(to, |ceiling| to.min(ceiling.max(current)))
    }

    /// No steps any more; what was asked of them counts as heeded.
    pub(crate) fn given_up(&self) -> Self {
        Self {
            is_heeded: self.is_heeded,
            ..Self::default()
        }
    }

    /// How many older pods stay, of those that are `wanted` in all.
    pub(crate) fn kept(&self, wanted: i32) -> i32 {
        self.ceiling
            .map_or(0, |ceiling| wanted.saturating_sub(ceiling).max(0))
    }
}

impl Look<'_> {
    /// Decides.
    pub(crate) fn walk(&self) -> Walk {
        let asked = text(&self.deployment.metadata, CONTINUE).filter(|_| !self.is_frozen);
        Walk {
            is_heeded: asked.is_some(),
            ..self.at_step(asked)
        }
    }

    fn at_step(&self, asked: Option<&str>) -> Walk {
        // Without older pods there is nothing to hold it back with.
        let is_alone = total(self.old) == 0;
        let Some(new) = self.new else {
            let begins = !is_alone && !self.is_frozen && !self.canary.steps.is_empty();
            return match begins {
                true => self.begin(0),
                false => Walk::default(),
            };
        };
        let Mark::At(at) = Mark::of(&new.metadata, self.revision) else {
            return Walk::default();
        };
        if !is_alone && is_rolling(self.deployment) && !self.canary.faults.is_empty() {
            // What is meant is not known: it stays where it is until somebody says so.
            return Walk {
                mark: Some(Mark::At(At {
                    clock: Clock::Waits,
                    ..at
                })),
                ceiling: Some(size(new)),
                ..Walk::default()
            };
        }
        let Some(step) = self.canary.steps.get(at.step).filter(|_| !is_alone) else {
            return Walk {
                mark: Some(Mark::Done),
                ..Walk::default()
            };
        };
        let ceiling = self.canary.ceiling(at.step, wanted(self.deployment));
        let stay = |clock| Walk {
            mark: Some(Mark::At(At { clock, ..at })),
            ceiling: Some(ceiling),
            ..Walk::default()
        };
        if is_paused(self.deployment) {
            return stay(Clock::Waits);
        }
        if asked == Some(ALL) {
            return self.begin(self.canary.steps.len());
        }
        if asked.is_some_and(|asked| asked.parse() == Ok(at.number())) {
            return self.begin(at.number());
        }
        if size(new) < ceiling || available(new) < size(new) {
            return stay(self.while_incomplete(at.clock));
        }
        if self.is_frozen {
            return stay(at.clock);
        }
        let figure = self.figure();
        let clock = self.clock(at.clock, &figure);
        let time = match (step.hold, clock) {
            (Hold::For(time), Clock::Runs(since)) => Some((since, time)),
            _ => None,
        };
        let rest = time.map(|(since, time)| left(since, time, self.now));
        if rest == Some(None) && figure == Figure::Holds {
            return self.begin(at.number());
        }
        let mut walk = stay(clock);
        let look = self.canary.bound.is_some().then_some(LOOK);
        walk.wake = [rest.flatten(), look].into_iter().flatten().min();
        if let (Figure::Broken(words), Clock::Fails(since)) = (&figure, clock) {
            self.fail(words, since, &mut walk);
            if clock != at.clock {
                let message = format!("{}: {words}", self.name(at.step));
                walk.told.push(Told::warning(CANARY_STEP, message));
            }
        }
        walk.holds = Some(self.words(at.step, step, time, &figure, size(new)));
        walk
    }

    /// The step of that place begins; or, when there is none, all are over.
    fn begin(&self, at: usize) -> Walk {
        let Some(step) = self.canary.steps.get(at) else {
            let count = self.canary.steps.len();
            let (revision, word) = (self.revision, if count == 1 { "step" } else { "steps" });
            let message = format!("Revision {revision} is through its {count} {word}");
            return Walk {
                mark: Some(Mark::Done),
                told: vec![Told::normal(CANARY_STEP, message)],
                ..Walk::default()
            };
        };
        let (revision, name) = (self.revision, self.name(at));
        let message = format!("Revision {revision} begins {name}: {step}");
        Walk {
            mark: Some(Mark::At(At {
                revision,
                step: at,
                clock: Clock::Waits,
            })),
            ceiling: Some(self.canary.ceiling(at, wanted(self.deployment))),
            told: vec![Told::normal(CANARY_STEP, message)],
            ..Walk::default()
        }
    }

    fn figure(&self) -> Figure {
        match (&self.canary.bound, self.figures) {
            (None, _) => Figure::Holds,
            (Some(bound), Some(figures)) => bound.judge(self.pods, figures),
            (Some(_), None) => Figure::Unknown("none were asked for".to_owned()),
        }
    }

    /// The clock of a step whose pods are all available. What is not known neither begins nor ends a step, and is no failure.
    fn clock(&self, known: Clock, figure: &Figure) -> Clock {
        let clock = match (figure, known) {
            (Figure::Holds, Clock::Waits | Clock::Fails(_)) => Clock::Runs(self.now),
            (Figure::Broken(_), Clock::Waits | Clock::Runs(_)) => Clock::Fails(self.now),
            (Figure::Unknown(_), Clock::Fails(_)) => Clock::Waits,
            (_, known) => known,
        };
        match clock {
            // Who led before may have had a clock that was ahead.
            Clock::Runs(since) => Clock::Runs(self.undisturbed(since.min(self.now))),
            other => other,
        }
    }

    /// The clock while not all pods are available. It goes on if the set only grows: all pods that were there when it began are
    /// ready, and none of them leaves.
    fn while_incomplete(&self, known: Clock) -> Clock {
        let Clock::Runs(since) = known else {
            return Clock::Waits;
        };
        let mut there = self
            .pods
            .iter()
            .filter(|pod| was_made(pod, since))
            .peekable();
        match there.peek().is_some() && there.all(|pod| is_active(pod) && is_ready(pod)) {
            true => known,
            false => Clock::Waits,
        }
    }

    /// Since when the pods that were there have all been ready, and no container of any has started anew, at or after `since`.
    /// A time that is still to come is that of a node whose clock is ahead.
    fn undisturbed(&self, since: Timestamp) -> Timestamp {
        let pods = self.pods.iter().filter(|pod| is_active(pod));
        let times = pods.flat_map(|pod| {
            let ready = ready_since(pod).filter(|_| was_made(pod, since));
            ready.into_iter().chain(started_anew(pod))
        });
        let past = times.filter(|time| *time <= self.now);
        past.max().map_or(since, |last| last.max(since))
    }

    /// The metric does not hold since then.
    fn fail(&self, words: &str, since: Timestamp, walk: &mut Walk) {
        let patience = self.policy.stall.unwrap_or(PATIENCE);
        match left(since, patience, self.now) {
            Some(left) => walk.wake = walk.wake.map(|wake| wake.min(left)),
            None => {
                let patience = written(patience);
                walk.fault = Some(Fault {
                    reason: FAULTY.to_owned(),
                    message: format!("{words}, for {patience}"),
                    asks: None,
                });
            }
        }
    }

    fn name(&self, at: usize) -> String {
        let count = self.canary.steps.len();
        format!("step {} of {count}", at.saturating_add(1))
    }

    /// What a step waits for. The same words as long as that is the same: they are written whenever they change.
    fn words(
        &self,
        at: usize,
        step: &Step,
        time: Option<(Timestamp, Duration)>,
        figure: &Figure,
        new: i32,
    ) -> String {
        let mut words = format!("{}: {step}", self.name(at));
        if let Some((since, time)) = time {
            let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
            let end = since.saturating_add(time).unwrap_or(since);
            words = format!("{words}, until {}", seconds(end).0);
        }
        words = format!("{words}; {new} of {} pods are new", wanted(self.deployment));
        let Some(bound) = &self.canary.bound else {
            return words;
        };
        match figure {
            Figure::Holds => words,
            Figure::Broken(_) => format!("{words}; waits for {bound}, which does not hold"),
            Figure::Unknown(why) => {
                format!("{words}; waits for {bound}, of which there are no figures: {why}")
            }
        }
    }
}

/// Whether a pod was made before that time.
fn was_made(pod: &Pod, then: Timestamp) -> bool {
    let made = pod.metadata.creation_timestamp.as_ref();
    made.is_none_or(|made| made.0 <= then)
}

/// A duration as annotations have it.
fn written(time: Duration) -> String {
    match SignedDuration::try_from(time) {
        Ok(time) => format!("{time:#}").replace(' ', ""),
        Err(_) => format!("{}s", time.as_secs()),
    }
}
