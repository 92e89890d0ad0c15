//! Conditions of an autoscaler.

use gantry_informer::clock::seconds;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerCondition;
use k8s_openapi::jiff::Timestamp;

pub(super) const ABLE_TO_SCALE: &str = "AbleToScale";
pub(super) const SCALING_ACTIVE: &str = "ScalingActive";
pub(super) const SCALING_LIMITED: &str = "ScalingLimited";
pub(super) const SCALED_TO_ZERO: &str = "ScaledToZero";
/// Ours: there, and false, where the annotation with the period cannot be read.
pub(super) const SYNC_PERIOD_VALID: &str = "SyncPeriodValid";

/// Says of a condition what it is now. When it last changed is known by its status alone.
pub(super) fn set(
    conditions: &mut Vec<HorizontalPodAutoscalerCondition>,
    type_: &'static str,
    is_true: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let status = if is_true { "True" } else { "False" };
    let known = conditions
        .iter_mut()
        .find(|condition| condition.type_ == type_);
    let (reason, message) = (Some(reason.to_owned()), Some(message.to_owned()));
    match known {
        Some(known) => {
            if known.status != status {
                known.last_transition_time = Some(seconds(now));
                known.status = status.to_owned();
            }
            known.reason = reason;
            known.message = message;
        }
        None => conditions.push(HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: Some(seconds(now)),
        }),
    }
}

/// Takes a condition away.
pub(super) fn remove(conditions: &mut Vec<HorizontalPodAutoscalerCondition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// Whether a condition is true.
pub(super) fn is_true(conditions: &[HorizontalPodAutoscalerCondition], type_: &str) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}
