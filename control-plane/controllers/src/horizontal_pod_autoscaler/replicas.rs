//! How many replicas a metric asks for: Kubernetes' replica calculator.
//!
//! Two rules are stricter than Kubernetes', which counts whatever pods a selector finds. Pods beyond those that the target wants,
//! such as the surge of a rollout, add nothing to a growth: each rollout would multiply the replicas otherwise. And usage
//! below the target never adds replicas, as usage above it never takes any, however many pods there are at the moment.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::pods::{is_ready, phase, ready_condition};

/// For how long after its start a pod's use of processors is that of its beginning.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// Who turned unready within this time of its start has never been ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);
/// Times of conditions are cut to this: what they are about was so much later at most.
const RESOLUTION: SignedDuration = SignedDuration::from_secs(1);

const NO_PODS: &str = "no pods returned by selector while calculating replica count";
const NO_METRICS: &str = "did not receive metrics for targeted pods (pods might be unready)";

/// How far usage may be from its target, as shares of it, before anything is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn hold(self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

/// A figure of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Thousandths.
    pub(super) value: i64,
    pub(super) at: Timestamp,
    pub(super) window: Duration,
}

/// What is known of the target and its pods.
#[derive(Clone, Copy)]
pub(super) struct Counting<'a> {
    /// As the target wants it.
    pub(super) replicas: i32,
    /// As the target has it.
    pub(super) observed: i32,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) tolerances: Tolerances,
    pub(super) now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Ready,
    /// Begins, and says nothing yet of what it will need.
    Unready,
    /// Nothing is known of it.
    Missing,
    /// Ends.
    Ignored,
}

fn group(pod: &Pod, sample: Option<&Sample>, is_cpu: bool, now: Timestamp) -> Group {
    let phase = phase(pod);
    if pod.metadata.deletion_timestamp.is_some() || phase == "Failed" {
        return Group::Ignored;
    }
    if phase == "Pending" {
        return Group::Unready;
    }
    let Some(sample) = sample else {
        return Group::Missing;
    };
    match is_cpu && is_beginning(pod, sample, now) {
        true => Group::Unready,
        false => Group::Ready,
    }
}

fn is_beginning(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (ready_condition(pod), started) else {
        return true;
    };
    let is_unready = ready.status == "False";
    let changed = ready.last_transition_time.as_ref().map(|time| time.0);
    // Kubernetes' time of a condition that has none is long ago.
    let changed = changed.unwrap_or(Timestamp::UNIX_EPOCH);
    if now.duration_since(started.0) < CPU_INITIALIZATION {
        // Windows are as short as that here, and one that has the beginning in it would count it in full.
        let window = SignedDuration::try_from(sample.window).unwrap_or(SignedDuration::MAX);
        is_unready || sample.at.duration_since(changed) < window.saturating_add(RESOLUTION)
    } else {
        is_unready && changed.duration_since(started.0) < INITIAL_READINESS
    }
}

/// Usage against its target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    ratio: f64,
    /// Percent of what is asked for; only of resources.
    pub(super) utilization: i32,
    /// Thousandths per pod.
    pub(super) average: i64,
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The next whole number, within what a number of replicas can be.
fn whole(replicas: f64) -> i32 {
    // Saturates, and makes none of what is no number.
    replicas.ceil() as i32
}

type Values = [Option<i64>];

fn sum_and_count(values: &Values) -> (i128, i128) {
    let known = values.iter().flatten();
    known.fold((0, 0), |(sum, count), value| {
        (sum + i128::from(*value), count + 1)
    })
}

fn utilization(values: &Values, requests: &[i64], target: i32) -> Result<Measured, String> {
    let (used, count) = sum_and_count(values);
    let known = values
        .iter()
        .zip(requests)
        .filter(|(value, _)| value.is_some());
    let asked: i128 = known.map(|(_, request)| i128::from(*request)).sum();
    if asked == 0 || count == 0 {
        return Err("no metrics returned matched known pods".to_owned());
    }
    let percent = i32::try_from(used.saturating_mul(100) / asked).unwrap_or(i32::MAX);
    Ok(Measured {
        ratio: f64::from(percent) / f64::from(target),
        utilization: percent,
        average: clamp(used / count),
    })
}

fn average(values: &Values, target: i64) -> Measured {
    let (used, count) = sum_and_count(values);
    let average = clamp(used / count.max(1));
    Measured {
        ratio: average as f64 / target as f64,
        utilization: 0,
        average,
    }
}

/// The replicas, and what is used at the moment.
pub(super) type Proposal = Result<(i32, Measured), String>;

impl Counting<'_> {
    /// For pods to use this much of what they ask for, in percent.
    pub(super) fn by_utilization(
        &self,
        samples: &[Option<Sample>],
        resource: &str,
        request: impl Fn(&Pod) -> Result<i64, String>,
        target: i32,
    ) -> Proposal {
        let (groups, values) = self.grouped(samples, resource == "cpu")?;
        let requests: Vec<i64> = self
            .pods
            .iter()
            .map(|pod| request(pod))
            .collect::<Result<_, _>>()?;
        let most = i128::from(target.max(100));
        let assumed = |index: usize| {
            let asked = requests.get(index).copied().unwrap_or(0);
            clamp(i128::from(asked) * most / 100)
        };
        let measure = |values: &Values| utilization(values, &requests, target);
        self.propose(&groups, values, assumed, measure)
    }

    /// For pods to have this much each, in thousandths. `resource` is empty for what is none.
    pub(super) fn by_average(
        &self,
        samples: &[Option<Sample>],
        resource: &str,
        target: i64,
    ) -> Proposal {
        let (groups, values) = self.grouped(samples, resource == "cpu")?;
        self.propose(
            &groups,
            values,
            |_| target,
            |values| Ok(average(values, target)),
        )
    }

    /// What each pod is to the count, and the figures of those that are ready.
    fn grouped(
        &self,
        samples: &[Option<Sample>],
        is_cpu: bool,
    ) -> Result<(Vec<Group>, Vec<Option<i64>>), String> {
        if self.pods.is_empty() {
            return Err(NO_PODS.to_owned());
        }
        let samples = samples.iter().copied().chain(std::iter::repeat(None));
        let both = self.pods.iter().zip(samples).map(|(pod, sample)| {
            let group = group(pod, sample.as_ref(), is_cpu, self.now);
            let value = sample.filter(|_| group == Group::Ready);
            (group, value.map(|sample| sample.value))
        });
        let (groups, values): (Vec<Group>, Vec<Option<i64>>) = both.unzip();
        if values.iter().all(Option::is_none) {
            return Err(NO_METRICS.to_owned());
        }
        Ok((groups, values))
    }

    fn propose(
        &self,
        groups: &[Group],
        mut values: Vec<Option<i64>>,
        assumed: impl Fn(usize) -> i64,
        measure: impl Fn(&Values) -> Result<Measured, String>,
    ) -> Proposal {
        let first = measure(&values)?;
        let any = |wanted: Group| groups.contains(&wanted);
        let ready = groups
            .iter()
            .filter(|group| **group == Group::Ready)
            .count();
        let grows_with_unready = any(Group::Unready) && first.ratio > 1.0;
        if !grows_with_unready && !any(Group::Missing) {
            if self.tolerances.hold(first.ratio) {
                return Ok((self.replicas, first));
            }
            return Ok((self.directed(first.ratio, ready, ready), first));
        }
        // Those of which nothing is known weigh against whatever is to be done.
        for (index, (group, value)) in groups.iter().zip(&mut values).enumerate() {
            match group {
                Group::Missing if first.ratio < 1.0 => *value = Some(assumed(index)),
                Group::Missing if first.ratio > 1.0 => *value = Some(0),
                Group::Unready if grows_with_unready => *value = Some(0),
                _ => {}
            }
        }
        let again = measure(&values)?.ratio;
        let turned = (first.ratio < 1.0 && again > 1.0) || (first.ratio > 1.0 && again < 1.0);
        if turned || self.tolerances.hold(again) {
            return Ok((self.replicas, first));
        }
        let counted = values.iter().flatten().count();
        Ok((self.directed(again, counted, ready), first))
    }

    /// As many as bring that many pods to their target, but none the other way. Of those counted, so many are ready: what is
    /// beyond the target's wish among them does not count towards more.
    fn directed(&self, ratio: f64, counted: usize, ready: usize) -> i32 {
        let wanted = usize::try_from(self.replicas).unwrap_or(0);
        if ratio > 1.0 {
            let beyond = ready.saturating_sub(wanted);
            let counted = counted.saturating_sub(beyond);
            whole(ratio * counted as f64).max(self.replicas)
        } else {
            whole(ratio * counted as f64).min(self.replicas)
        }
    }

    fn ready(&self) -> Result<i32, String> {
        if self.pods.is_empty() {
            return Err(format!("unable to calculate ready pods: {NO_PODS}"));
        }
        let ready = self.pods.iter().filter(|pod| phase(pod) == "Running");
        let ready = ready.filter(|pod| is_ready(pod)).count();
        Ok(i32::try_from(ready).unwrap_or(i32::MAX))
    }

    /// For a metric of something else to have this value, both in thousandths.
    pub(super) fn by_value(&self, usage: i64, target: i64) -> Result<i32, String> {
        let ratio = usage as f64 / target as f64;
        if self.replicas == 0 {
            return Ok(whole(ratio));
        }
        if self.tolerances.hold(ratio) {
            return Ok(self.replicas);
        }
        let ready = self.ready()?;
        if ratio > 1.0 {
            Ok(whole(ratio * f64::from(ready.min(self.replicas))))
        } else {
            Ok(whole(ratio * f64::from(ready)).min(self.replicas))
        }
    }

    /// For a metric of something else to have this value per pod, both in thousandths; and what it is per pod now.
    pub(super) fn by_value_per_pod(&self, usage: i64, target: i64) -> (i32, i64) {
        let replicas = match self.replicas {
            0 => self.observed,
            wanted => self.observed.min(wanted),
        };
        let ratio = usage as f64 / (target as f64 * f64::from(replicas));
        let proposal = match self.tolerances.hold(ratio) {
            true => replicas,
            false => whole(usage as f64 / target as f64),
        };
        let average = match self.observed {
            0 => usage,
            _ if usage == i64::MAX => usage,
            observed => (usage as f64 / f64::from(observed)).ceil() as i64,
        };
        (proposal, average)
    }
}

/// All series together.
pub(super) fn total(values: &[i64]) -> i64 {
    values
        .iter()
        .fold(0, |sum, value| sum.saturating_add(*value))
}
