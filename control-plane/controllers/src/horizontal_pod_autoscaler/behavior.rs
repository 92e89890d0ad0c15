//! How fast a target may be scaled: tolerances, windows over what was recommended, and policies over what was done.

use gantry_api::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingRules, HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec,
};
use k8s_openapi::jiff::Timestamp;

use super::history::Kept;
use super::replicas::Tolerances;

/// Share of the target.
const TOLERANCE: f64 = 0.1;
/// Seconds for which the highest recommendation holds where nothing else is said.
const DOWN_WINDOW: i32 = 300;
/// Where nothing is said of behaviour, a step up is to this many times the replicas, or to this many of them.
const UP_FACTOR: i32 = 2;
const UP_MINIMUM: i32 = 4;

/// A reason and what it means, of a condition.
pub(super) type Why = (&'static str, &'static str);

const SCALE_UP_LIMIT: Why = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const SCALE_DOWN_LIMIT: Why = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: Why = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: Why = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const WITHIN: Why = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const READY: Why = ("ReadyForNewScale", "recommended size matches current size");

/// What becomes of a recommendation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Normal {
    pub(super) replicas: i32,
    /// Of the condition AbleToScale, which is true.
    pub(super) able: Why,
    /// Of the condition ScalingLimited.
    pub(super) limited: Why,
    /// Whether that condition is true.
    pub(super) is_limited: bool,
}

/// Between which numbers, and from which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) least: i32,
    pub(super) most: i32,
    pub(super) current: i32,
}

/// The tolerances of an autoscaler, each in its direction.
pub(super) fn tolerances(spec: &HorizontalPodAutoscalerSpec) -> Tolerances {
    let behavior = spec.behavior.as_ref();
    let said = |rules: Option<&HPAScalingRules>| {
        let amount: Quantity = rules?.tolerance.as_ref()?.0.parse().ok()?;
        Some(amount.nanos() as f64 / 1e9)
    };
    Tolerances {
        down: said(behavior.and_then(|all| all.scale_down.as_ref())).unwrap_or(TOLERANCE),
        up: said(behavior.and_then(|all| all.scale_up.as_ref())).unwrap_or(TOLERANCE),
    }
}

/// Limits what was recommended, and remembers it as it was.
pub(super) fn normalize(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    kept: &mut Kept,
    range: Range,
    recommended: i32,
    now: Timestamp,
) -> Normal {
    let Some(behavior) = behavior else {
        let stable = kept.highest_since(recommended, DOWN_WINDOW, now);
        kept.recommend(recommended, now);
        let (replicas, limited) = limit_by_default(range, stable);
        return normal(recommended, stable, DOWN_STABILIZED, replicas, limited);
    };
    let (up, down) = (behavior.scale_up.as_ref(), behavior.scale_down.as_ref());
    let window = |rules: Option<&HPAScalingRules>, default: i32| {
        let said = rules.and_then(|rules| rules.stabilization_window_seconds);
        said.unwrap_or(default)
    };
    let lowest = kept.lowest_within(recommended, window(up, 0), now);
    let highest = kept.highest_within(recommended, window(down, DOWN_WINDOW), now);
    kept.recommend(recommended, now);
    // The one recommendation is among all: the lowest is no higher than the highest.
    let stable = range.current.max(lowest).min(highest);
    let (replicas, limited) = limit_by_policies(up, down, kept, range, stable, now);
    let stabilized = match recommended >= range.current {
        true => UP_STABILIZED,
        false => DOWN_STABILIZED,
    };
    normal(recommended, stable, stabilized, replicas, limited)
}

fn normal(recommended: i32, stable: i32, stabilized: Why, replicas: i32, limited: Why) -> Normal {
    Normal {
        replicas,
        able: match stable == recommended {
            true => READY,
            false => stabilized,
        },
        limited,
        is_limited: replicas != stable,
    }
}

fn limit_by_default(range: Range, stable: i32) -> (i32, Why) {
    let step = range.current.saturating_mul(UP_FACTOR).max(UP_MINIMUM);
    let (most, reason) = match range.most > step {
        true => (step, SCALE_UP_LIMIT),
        false => (range.most, TOO_MANY),
    };
    if stable < range.least {
        (range.least, TOO_FEW)
    } else if stable > most {
        (most, reason)
    } else {
        (stable, WITHIN)
    }
}

fn limit_by_policies(
    up: Option<&HPAScalingRules>,
    down: Option<&HPAScalingRules>,
    kept: &Kept,
    range: Range,
    stable: i32,
    now: Timestamp,
) -> (i32, Why) {
    if stable > range.current {
        let limit = up_limit(up, kept, range.current, now).max(range.current);
        let (most, reason) = match range.most > limit {
            true => (limit, SCALE_UP_LIMIT),
            false => (range.most, TOO_MANY),
        };
        if stable > most {
            return (most, reason);
        }
    } else if stable < range.current {
        let limit = down_limit(down, kept, range.current, now).min(range.current);
        let (least, reason) = match range.least < limit {
            true => (limit, SCALE_DOWN_LIMIT),
            false => (range.least, TOO_FEW),
        };
        if stable < least {
            return (least, reason);
        }
    }
    (stable, WITHIN)
}

#[derive(Clone, Copy, Debug)]
struct Policy {
    is_percent: bool,
    value: i32,
    period: i32,
}

const PERCENT: Policy = Policy {
    is_percent: true,
    value: 100,
    period: 15,
};
const PODS: Policy = Policy {
    is_percent: false,
    value: 4,
    period: 15,
};

fn policies(rules: Option<&HPAScalingRules>, default: &[Policy]) -> Vec<Policy> {
    let Some(said) = rules.and_then(|rules| rules.policies.as_ref()) else {
        return default.to_vec();
    };
    let read = said.iter().map(|policy| Policy {
        is_percent: policy.type_ == "Percent",
        value: policy.value,
        period: policy.period_seconds,
    });
    read.collect()
}

fn selects(rules: Option<&HPAScalingRules>) -> &str {
    let said = rules.and_then(|rules| rules.select_policy.as_deref());
    said.unwrap_or("Max")
}

/// As replicas are counted.
fn count(replicas: i64) -> i32 {
    i32::try_from(replicas).unwrap_or(if replicas < 0 { i32::MIN } else { i32::MAX })
}

fn up_limit(rules: Option<&HPAScalingRules>, kept: &Kept, current: i32, now: Timestamp) -> i32 {
    let limits = policies(rules, &[PODS, PERCENT]).into_iter().map(|policy| {
        let start = kept.at_start(current, policy.period, now);
        match policy.is_percent {
            // Rounded up: a share of few would otherwise never be one more.
            true => (start as f64 * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            false => count(start.saturating_add(i64::from(policy.value))),
        }
    });
    match selects(rules) {
        "Disabled" => current,
        "Min" => limits.min().unwrap_or(current),
        _ => limits.max().unwrap_or(current),
    }
}

fn down_limit(rules: Option<&HPAScalingRules>, kept: &Kept, current: i32, now: Timestamp) -> i32 {
    let limits = policies(rules, &[PERCENT]).into_iter().map(|policy| {
        let start = kept.at_start(current, policy.period, now);
        match policy.is_percent {
            true => (start as f64 * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            false => count(start.saturating_sub(i64::from(policy.value))),
        }
    });
    match selects(rules) {
        "Disabled" => current,
        "Min" => limits.max().unwrap_or(current),
        _ => limits.min().unwrap_or(current),
    }
}
