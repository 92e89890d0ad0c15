//! What is to be done about an autoscaler: Kubernetes' horizontal controller as two pure functions. [`decide`] says what the
//! target should have, and [`Decision::settle`] what is told of it once that was written, or not.

use gantry_informer::Key;
use gantry_informer::clock::seconds;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
    MetricSpec, MetricStatus,
};
use k8s_openapi::jiff::Timestamp;

use super::behavior::{Range, normalize, tolerances};
use super::conditions::{
    ABLE_TO_SCALE, SCALED_TO_ZERO, SCALING_ACTIVE, SCALING_LIMITED, SYNC_PERIOD_VALID, is_true,
    remove, set,
};
use super::history::Kept;
use super::metrics::{Reading, ask};
use super::monitor::{Action, Computation, Fault};
use super::observed::{Observed, Rescale, Selection, Target, Told};
use super::replicas::Counting;

/// What is to be done, and what is told if there is nothing to write, or before it was written.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) rescale: Option<Rescale>,
    pub(super) status: HorizontalPodAutoscalerStatus,
    pub(super) events: Vec<Told>,
    /// What became of each metric that was looked at, in their order.
    pub(super) computed: Vec<Computation>,
    /// Why nothing could be decided.
    pub(super) fault: Option<Fault>,
    current: i32,
}

/// Whether figures are needed at all, or what is to be done without.
pub(super) fn needs_figures(autoscaler: &HorizontalPodAutoscaler, replicas: i32) -> bool {
    matches!(first_look(autoscaler, replicas), Look::Metrics)
}

enum Look {
    Metrics,
    /// Somebody has turned the target off.
    Disabled,
    Out(i32, &'static str),
}

fn least(spec: &HorizontalPodAutoscalerSpec) -> i32 {
    spec.min_replicas.unwrap_or(1)
}

fn metrics(spec: &HorizontalPodAutoscalerSpec) -> &[MetricSpec] {
    spec.metrics.as_deref().unwrap_or_default()
}

/// Whether there is something to go by while there are no pods.
fn looks_elsewhere(spec: &HorizontalPodAutoscalerSpec) -> bool {
    let sorts = ["Object", "External"];
    metrics(spec)
        .iter()
        .any(|metric| sorts.contains(&metric.type_.as_str()))
}

/// Whether the target may have no replicas, and come back by itself.
pub(crate) fn may_have_none(spec: &HorizontalPodAutoscalerSpec) -> bool {
    least(spec) == 0 && looks_elsewhere(spec)
}

/// Whether the target has no replicas by our own doing.
pub(crate) fn was_scaled_to_zero(autoscaler: &HorizontalPodAutoscaler) -> bool {
    let status = autoscaler.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    is_true(conditions.unwrap_or_default(), SCALED_TO_ZERO)
}

const NOT_SCALED_TO_ZERO: (&str, &str) = (
    "NotScaledToZero",
    "the HPA controller did not scale the workload to zero",
);
const BELOW: &str = "Current number of replicas below Spec.MinReplicas";

fn first_look(autoscaler: &HorizontalPodAutoscaler, replicas: i32) -> Look {
    let spec = &autoscaler.spec;
    if replicas == 0 {
        let comes_back = least(spec) != 0 || looks_elsewhere(spec);
        match comes_back && was_scaled_to_zero(autoscaler) {
            true => Look::Metrics,
            false => Look::Disabled,
        }
    } else if replicas > spec.max_replicas {
        let reason = "Current number of replicas above Spec.MaxReplicas";
        Look::Out(spec.max_replicas, reason)
    } else if replicas < least(spec) {
        Look::Out(least(spec), BELOW)
    } else {
        Look::Metrics
    }
}

/// What is to be done; `kept` takes in what was found out.
pub(super) fn decide(observed: &Observed<'_>, kept: &mut Kept) -> Decision {
    let mut planning = Planning::new(observed, kept);
    planning.check_period();
    let target = match observed.target {
        Ok(target) => target,
        Err(why) => return planning.without_target(why),
    };
    let seen = "the HPA controller was able to get the target's current scale";
    planning.set(ABLE_TO_SCALE, true, "SucceededGetScale", seen);
    planning.kept.found(target.replicas, observed.now);
    if target.replicas > 0 && was_scaled_to_zero(observed.autoscaler) {
        // Somebody else has brought it back.
        planning.set(
            SCALED_TO_ZERO,
            false,
            NOT_SCALED_TO_ZERO.0,
            NOT_SCALED_TO_ZERO.1,
        );
    }
    match first_look(observed.autoscaler, target.replicas) {
        Look::Metrics => planning.by_metrics(target),
        Look::Disabled => {
            let why = "scaling is disabled since the replica count of the target is zero";
            planning.set(SCALING_ACTIVE, false, "ScalingDisabled", why);
            planning.finish(target.replicas, None, None)
        }
        Look::Out(replicas, reason) => {
            let rescale = Rescale {
                replicas,
                reason: reason.to_owned(),
            };
            planning.finish(target.replicas, Some(rescale), None)
        }
    }
}

struct Planning<'a> {
    observed: &'a Observed<'a>,
    kept: &'a mut Kept,
    status: HorizontalPodAutoscalerStatus,
    events: Vec<Told>,
    computed: Vec<Computation>,
    fault: Option<Fault>,
}

/// The replicas that metrics ask for, the metric that asks for the most, and what is told of all of them. Without replicas, why.
struct Computed {
    replicas: Result<(i32, String), String>,
    statuses: Option<Vec<MetricStatus>>,
}

impl<'a> Planning<'a> {
    fn new(observed: &'a Observed<'a>, kept: &'a mut Kept) -> Self {
        Self {
            observed,
            kept,
            status: observed.autoscaler.status.clone().unwrap_or_default(),
            events: Vec::new(),
            computed: Vec::new(),
            fault: None,
        }
    }

    fn set(&mut self, type_: &'static str, is_true: bool, reason: &str, message: &str) {
        let conditions = self.status.conditions.get_or_insert_default();
        let why = (reason, message);
        set(conditions, type_, is_true, why, self.observed.now);
    }

    fn warn(&mut self, reason: &'static str, message: &str) {
        if self.kept.tells(reason, message, self.observed.now) {
            self.events.push(Told {
                is_warning: true,
                reason,
                message: message.to_owned(),
            });
        }
    }

    fn check_period(&mut self) {
        match self.observed.bad_period {
            Some(why) => {
                self.set(SYNC_PERIOD_VALID, false, "InvalidSyncPeriod", why);
                self.warn("InvalidSyncPeriod", why);
            }
            None => {
                if let Some(conditions) = &mut self.status.conditions {
                    remove(conditions, SYNC_PERIOD_VALID);
                }
            }
        }
    }

    /// The status keeps what was known.
    fn without_target(mut self, why: &str) -> Decision {
        self.warn("FailedGetScale", why);
        let message =
            format!("the HPA controller was unable to get the target's current scale: {why}");
        self.set(ABLE_TO_SCALE, false, "FailedGetScale", &message);
        Decision {
            current: self.status.current_replicas.unwrap_or(0),
            rescale: None,
            status: self.status,
            events: self.events,
            computed: self.computed,
            fault: Some(Fault::Internal),
        }
    }

    fn finish(
        mut self,
        current: i32,
        rescale: Option<Rescale>,
        statuses: Option<Vec<MetricStatus>>,
    ) -> Decision {
        if rescale.is_none() {
            self.status.desired_replicas = current;
        }
        self.told(current, rescale, statuses)
    }

    /// As [`Planning::finish`], with the replicas that were wanted before.
    fn told(
        mut self,
        current: i32,
        rescale: Option<Rescale>,
        statuses: Option<Vec<MetricStatus>>,
    ) -> Decision {
        self.status.current_replicas = Some(current);
        self.status.current_metrics = statuses;
        self.status.observed_generation = None;
        Decision {
            rescale,
            status: self.status,
            events: self.events,
            computed: self.computed,
            fault: self.fault,
            current,
        }
    }

    fn by_metrics(mut self, target: Target<'_>) -> Decision {
        let observed = self.observed;
        let (spec, now) = (&observed.autoscaler.spec, observed.now);
        let current = target.replicas;
        let computed = self.compute(target);
        let (recommended, metric) = match computed.replicas {
            Ok(found) => found,
            Err(why) => {
                self.warn("FailedComputeMetricsReplicas", &why);
                self.fault.get_or_insert(Fault::Internal);
                return self.told(current, None, computed.statuses);
            }
        };
        let mut reason = match recommended {
            more if more > current => format!("{metric} above target"),
            fewer if fewer < current => "All metrics below target".to_owned(),
            _ => String::new(),
        };
        let range = Range {
            least: least(spec),
            most: spec.max_replicas,
            current,
        };
        let behavior = spec.behavior.as_ref();
        let normal = normalize(behavior, self.kept, range, recommended, now);
        self.set(ABLE_TO_SCALE, true, normal.able.0, normal.able.1);
        let (why, limited) = (normal.limited, normal.is_limited);
        self.set(SCALING_LIMITED, limited, why.0, why.1);
        let mut replicas = normal.replicas;
        // Somebody wants some again of a target that was scaled to zero.
        if current == 0 && replicas < least(spec) {
            replicas = least(spec);
            if reason.is_empty() {
                reason = BELOW.to_owned();
            }
        }
        let rescale = (replicas != current).then_some(Rescale { replicas, reason });
        self.finish(current, rescale, computed.statuses)
    }

    /// Says what is wrong with the selector.
    fn unselected(&mut self, event: &'static str, told: &str, message: &str) -> Computed {
        self.warn(event, told);
        let reason = match event {
            "AmbiguousSelector" => event,
            _ => "InvalidSelector",
        };
        self.set(SCALING_ACTIVE, false, reason, message);
        Computed {
            replicas: Err(told.to_owned()),
            statuses: None,
        }
    }

    /// The highest of what the metrics ask for. Where some cannot be measured, the others may still add replicas.
    fn compute(&mut self, target: Target<'_>) -> Computed {
        let pods = match target.selection {
            Selection::Missing => {
                let message = "the HPA target's scale is missing a selector";
                return self.unselected("SelectorRequired", "selector is required", message);
            }
            Selection::Invalid(why) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {why}"
                );
                return self.unselected("InvalidSelector", &why, &why);
            }
            Selection::Pods {
                selector,
                autoscalers,
                ..
            } if autoscalers.len() > 1 => {
                let names: Vec<String> = autoscalers.iter().map(Key::to_string).collect();
                let names = names.join(" ");
                let why = format!(
                    "pods by selector {selector} are controlled by multiple HPAs: [{names}]"
                );
                return self.unselected("AmbiguousSelector", &why, &why);
            }
            Selection::Pods { pods, .. } => pods,
        };
        let observed = self.observed;
        let autoscaler = observed.autoscaler;
        let counting = Counting {
            replicas: target.replicas,
            observed: target.observed,
            pods,
            tolerances: tolerances(&autoscaler.spec),
            now: observed.now,
        };
        let namespace = autoscaler.metadata.namespace.as_deref();
        let namespace = namespace.unwrap_or_default();
        let specs = metrics(&autoscaler.spec);
        let unread = Reading::Failed("no metrics returned".to_owned());
        let (mut highest, mut name): (Option<i32>, String) = (None, String::new());
        let (mut invalid, mut first) = (0, None);
        let mut statuses = Vec::with_capacity(specs.len());
        for (number, spec) in specs.iter().enumerate() {
            let reading = observed.readings.get(number).unwrap_or(&unread);
            let asked = ask(spec, reading, namespace, &counting);
            let outcome = match &asked {
                Ok(asked) => Ok(Action::of(target.replicas, asked.replicas)),
                Err(trouble) => Err(trouble.fault()),
            };
            self.computed.push(Computation::new(&spec.type_, outcome));
            match asked {
                Ok(asked) => {
                    statuses.push(asked.status);
                    if highest.is_none_or(|highest| highest == 0 || asked.replicas > highest) {
                        highest = Some(asked.replicas);
                        name = asked.name;
                    }
                }
                Err(trouble) => {
                    self.warn(trouble.reason, &trouble.message);
                    statuses.push(MetricStatus::default());
                    invalid += 1;
                    first.get_or_insert(trouble);
                }
            }
        }
        let Some(replicas) = highest.filter(|found| first.is_none() || *found >= target.replicas)
        else {
            // Without metrics, which the API server does not allow, nothing is known either.
            let first = first.unwrap_or_default();
            self.fault = Some(first.fault());
            let message = format!(
                "the HPA was unable to compute the replica count: {}",
                first.message
            );
            self.set(SCALING_ACTIVE, false, first.reason, &message);
            let (all, summary) = (specs.len(), first.summary);
            return Computed {
                replicas: Err(format!(
                    "invalid metrics ({invalid} invalid out of {all}), first error is: {summary}"
                )),
                statuses: Some(statuses),
            };
        };
        let message =
            format!("the HPA was able to successfully calculate a replica count from {name}");
        self.set(SCALING_ACTIVE, true, "ValidMetricFound", &message);
        Computed {
            replicas: Ok((replicas.max(0), name)),
            statuses: Some(statuses),
        }
    }
}

const SCALES_TO_ZERO: (&str, &str) = (
    "ScaledToZero",
    "the HPA controller scaled the workload to zero",
);

impl Decision {
    /// What has to be told before the last replica goes: only a target that is known to have been scaled to zero comes back,
    /// and whoever leads by then knows no more than that. None where nothing is scaled to zero.
    pub(super) fn before_zero(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        now: Timestamp,
    ) -> Option<HorizontalPodAutoscalerStatus> {
        let rescale = self.rescale.as_ref()?;
        let ends = self.current > 0 && rescale.replicas == 0 && may_have_none(&autoscaler.spec);
        ends.then(|| {
            let mut status = autoscaler.status.clone().unwrap_or_default();
            let conditions = status.conditions.get_or_insert_default();
            set(conditions, SCALED_TO_ZERO, true, SCALES_TO_ZERO, now);
            status
        })
    }

    /// What is told once the target was scaled, or why it was not.
    pub(super) fn settle(
        mut self,
        autoscaler: &HorizontalPodAutoscaler,
        outcome: Result<(), String>,
        kept: &mut Kept,
        now: Timestamp,
    ) -> Self {
        let Some(rescale) = self.rescale.take() else {
            return self;
        };
        let (replicas, reason) = (rescale.replicas, rescale.reason);
        let conditions = self.status.conditions.get_or_insert_default();
        if let Err(why) = outcome {
            let message =
                format!("the HPA controller was unable to update the target scale: {why}");
            let told = ("FailedUpdateScale", message.as_str());
            set(conditions, ABLE_TO_SCALE, false, told, now);
            let message = format!("New size: {replicas}; reason: {reason}; error: {why}");
            if kept.tells("FailedRescale", &message, now) {
                self.events.push(Told {
                    is_warning: true,
                    reason: "FailedRescale",
                    message,
                });
            }
            return self;
        }
        let message =
            format!("the HPA controller was able to update the target scale to {replicas}");
        let told = ("SucceededRescale", message.as_str());
        set(conditions, ABLE_TO_SCALE, true, told, now);
        let spec = &autoscaler.spec;
        let may_sleep = may_have_none(spec);
        if self.current > 0 && replicas == 0 && may_sleep {
            set(conditions, SCALED_TO_ZERO, true, SCALES_TO_ZERO, now);
        } else if may_sleep
            || conditions
                .iter()
                .any(|condition| condition.type_ == SCALED_TO_ZERO)
        {
            // Others, which cannot be scaled to zero, are not told that they were not.
            set(conditions, SCALED_TO_ZERO, false, NOT_SCALED_TO_ZERO, now);
        }
        if spec.behavior.is_some() {
            kept.scaled(self.current, replicas, now);
        }
        self.events.push(Told {
            is_warning: false,
            reason: "SuccessfulRescale",
            message: format!("New size: {replicas}; reason: {reason}"),
        });
        self.status.desired_replicas = replicas;
        self.status.last_scale_time = Some(seconds(now));
        self
    }
}
