//! From a HorizontalPodAutoscaler to what it goes by, and what limits it.

use gantry_api::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource;

use super::{Said, command, ended};
use crate::output::one_line;

/// How far a figure may be from its target, in thousandths, where nobody says.
const TOLERANCE: i64 = 100;
/// How long scaling down waits, in seconds, where nobody says.
const WINDOW_DOWN: i32 = 300;

/// What is said of an autoscaler.
pub(super) fn explain(autoscaler: &HorizontalPodAutoscaler) -> Said {
    let mut explaining = Explaining {
        autoscaler,
        said: Said::default(),
    };
    explaining.all();
    explaining.said
}

struct Explaining<'a> {
    autoscaler: &'a HorizontalPodAutoscaler,
    said: Said,
}

/// A metric's figure beside what is aimed at, in billionths of whatever it counts; and both as they are shown.
struct Figure {
    current: Option<(i128, String)>,
    target: (i128, String),
}

impl Explaining<'_> {
    fn all(&mut self) {
        let (metadata, spec) = (&self.autoscaler.metadata, &self.autoscaler.spec);
        let (name, target) = (
            metadata.name.as_deref().unwrap_or_default(),
            &spec.scale_target_ref,
        );
        self.said.say(format!(
            "HorizontalPodAutoscaler {} keeps {}/{} between {} and {} replicas.",
            one_line(name),
            one_line(&target.kind),
            one_line(&target.name),
            spec.min_replicas.unwrap_or(1),
            spec.max_replicas,
        ));
        let status = self.autoscaler.status.as_ref();
        let is_known = |status: &&HorizontalPodAutoscalerStatus| {
            status.conditions.is_some() || status.current_metrics.is_some()
        };
        let Some(status) = status.filter(is_known) else {
            self.said.say("Nobody has looked at it yet.");
            return self.propose(&format!("get hpa {name} -w"));
        };
        self.said.say(format!(
            "It has {} and wants {}.",
            status.current_replicas.unwrap_or(0),
            status.desired_replicas
        ));
        let statuses = status.current_metrics.as_deref().unwrap_or_default();
        for (number, metric) in spec.metrics.iter().flatten().enumerate() {
            self.metric(metric, statuses.get(number));
        }
        let said = self.said.sentences.len();
        self.unable();
        self.inactive();
        self.limited();
        self.waits();
        if self.said.sentences.len() == said {
            self.said.say("Nothing limits it.");
        }
    }

    fn propose(&mut self, words: &str) {
        let namespace = self.autoscaler.metadata.namespace.as_deref();
        self.said.propose(command(namespace, words));
    }

    /// Proposes to look at the target.
    fn propose_target(&mut self, verb: &str) {
        let target = &self.autoscaler.spec.scale_target_ref;
        let (kind, name) = (target.kind.to_lowercase(), &target.name);
        self.propose(&one_line(&format!("{verb} {kind} {name}")));
    }

    fn rules(&self, up: bool) -> Option<&HPAScalingRules> {
        let behavior = self.autoscaler.spec.behavior.as_ref()?;
        match up {
            true => behavior.scale_up.as_ref(),
            false => behavior.scale_down.as_ref(),
        }
    }

    /// How far a figure may be above its target, or below, in thousandths.
    fn tolerance(&self, up: bool) -> i64 {
        let said = self.rules(up).and_then(|rules| rules.tolerance.as_ref());
        let said = said.and_then(|said| said.0.parse::<Quantity>().ok());
        said.map_or(TOLERANCE, |said| said.millis())
    }

    fn metric(&mut self, spec: &MetricSpec, status: Option<&MetricStatus>) {
        let Some((what, figure)) = figure(spec, status) else {
            return;
        };
        let (target, shown) = figure.target;
        let Some((current, current_shown)) = figure.current else {
            return self
                .said
                .say(format!("{what} is not known; {shown} is aimed at."));
        };
        let up = current >= target;
        let tolerance = self.tolerance(up);
        // Compared without a division: |current - target| / target <= tolerance.
        let apart = (current - target).abs().saturating_mul(1000);
        let is_within = apart <= target.saturating_mul(tolerance.into());
        let asks = match (is_within, up) {
            (true, _) if current == target => "as it should be".to_owned(),
            (true, _) => format!("within the tolerance of {}%", tolerance / 10),
            (false, true) => "more replicas are asked for".to_owned(),
            (false, false) => "fewer would do".to_owned(),
        };
        self.said.say(format!(
            "{what} is {current_shown}, {shown} is aimed at: {asks}."
        ));
    }

    fn condition(&self, type_: &str) -> Option<&HorizontalPodAutoscalerCondition> {
        let conditions = self.autoscaler.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|known| known.type_ == type_)
    }

    /// The reason and the message of a condition that has this status.
    fn known(&self, type_: &str, status: &str) -> Option<(String, String)> {
        let known = self
            .condition(type_)
            .filter(|known| known.status == status)?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some((text(&known.reason), text(&known.message)))
    }

    fn unable(&mut self) {
        if let Some((_, message)) = self.known("AbleToScale", "False") {
            self.said
                .say(format!("It cannot scale its target: {}", ended(&message)));
            self.propose_target("get");
        }
        if let Some((_, message)) = self.known("SyncPeriodValid", "False") {
            self.said.say(format!(
                "Its period is the default one: {}",
                ended(&message)
            ));
        }
    }

    fn inactive(&mut self) {
        let name = self.autoscaler.metadata.name.clone().unwrap_or_default();
        if self.known("ScaledToZero", "True").is_some() {
            self.said
                .say("It has scaled its target to zero, and back when there is something to do.");
        }
        let Some((reason, message)) = self.known("ScalingActive", "False") else {
            return;
        };
        if reason == "ScalingDisabled" {
            self.said.say(
                "It is switched off, since its target has no replicas by somebody else's will.",
            );
            let least = self.autoscaler.spec.min_replicas.unwrap_or(1).max(1);
            let target = &self.autoscaler.spec.scale_target_ref;
            let (kind, target) = (target.kind.to_lowercase(), &target.name);
            let words = format!("scale {kind}/{target} --replicas {least}");
            return self.propose(&one_line(&words));
        }
        self.said
            .say(format!("It has nothing to go by: {}", ended(&message)));
        if message.contains("missing request") {
            // Utilization is a share of what containers request.
            self.said.say("Utilization is a share of resources.requests, which every container of the pods must have.");
            self.propose_target("describe");
        } else if reason.contains("ResourceMetric") {
            self.propose("top pods");
        }
        self.propose(&format!("describe hpa {}", one_line(&name)));
    }

    fn limited(&mut self) {
        let Some((reason, message)) = self.known("ScalingLimited", "True") else {
            return;
        };
        let spec = &self.autoscaler.spec;
        let name = one_line(self.autoscaler.metadata.name.as_deref().unwrap_or_default());
        let sentence = match reason.as_str() {
            "TooManyReplicas" => {
                format!(
                    "More would be wanted: spec.maxReplicas ({}) is the limit.",
                    spec.max_replicas
                )
            }
            "TooFewReplicas" => format!(
                "Fewer would do: spec.minReplicas ({}) is the limit.",
                spec.min_replicas.unwrap_or(1)
            ),
            "ScaleUpLimit" => {
                "It may grow no faster: the policies of spec.behavior.scaleUp are the limit."
                    .to_owned()
            }
            "ScaleDownLimit" => {
                "It may shrink no faster: the policies of spec.behavior.scaleDown are the limit."
                    .to_owned()
            }
            _ => format!("It is limited: {}", ended(&message)),
        };
        self.said.say(sentence);
        if reason != "TooFewReplicas" {
            self.propose(&format!("get hpa {name} -o yaml"));
        }
    }

    /// Whether a window keeps it from what it would do.
    fn waits(&mut self) {
        let Some((reason, message)) = self.known("AbleToScale", "True") else {
            return;
        };
        let up = match reason.as_str() {
            "ScaleUpStabilized" => true,
            "ScaleDownStabilized" => false,
            _ => return,
        };
        let window = self
            .rules(up)
            .and_then(|rules| rules.stabilization_window_seconds);
        let window = window.unwrap_or(if up { 0 } else { WINDOW_DOWN });
        let field = if up { "scaleUp" } else { "scaleDown" };
        self.said.say(format!(
            "It waits: {} spec.behavior.{field}.stabilizationWindowSeconds is {window}.",
            ended(&message)
        ));
    }
}

/// What a metric is called, its figure and its target; none where the sort of metric is not known.
fn figure(spec: &MetricSpec, status: Option<&MetricStatus>) -> Option<(String, Figure)> {
    let (what, target, current) = match spec.type_.as_str() {
        "Resource" => {
            let source = spec.resource.as_ref()?;
            let current = status.and_then(|status| status.resource.as_ref());
            let what = format!("{} of the pods", source.name);
            (what, &source.target, current.map(|status| &status.current))
        }
        "ContainerResource" => {
            let source = spec.container_resource.as_ref()?;
            let current = status.and_then(|status| status.container_resource.as_ref());
            let what = format!("{} of the containers {}", source.name, source.container);
            (what, &source.target, current.map(|status| &status.current))
        }
        "Pods" => {
            let source = spec.pods.as_ref()?;
            let current = status.and_then(|status| status.pods.as_ref());
            let what = format!("{} of the pods", source.metric.name);
            (what, &source.target, current.map(|status| &status.current))
        }
        "Object" => {
            let source = spec.object.as_ref()?;
            let current = status.and_then(|status| status.object.as_ref());
            let of = &source.described_object;
            let what = format!("{} of {}/{}", source.metric.name, of.kind, of.name);
            (what, &source.target, current.map(|status| &status.current))
        }
        "External" => {
            let source = spec.external.as_ref()?;
            let current = status.and_then(|status| status.external.as_ref());
            let what = source.metric.name.clone();
            (what, &source.target, current.map(|status| &status.current))
        }
        _ => return None,
    };
    Some((one_line(&what), beside(target, current)?))
}

/// A target, and the figure that is of its sort.
fn beside(target: &MetricTarget, current: Option<&MetricValueStatus>) -> Option<Figure> {
    let percent = |share: i32| (i128::from(share), format!("{share}% of what is requested"));
    let quantity = |value: &resource::Quantity, per_pod: bool| {
        let parsed = value.0.parse::<Quantity>().ok()?;
        let shown = one_line(&value.0);
        Some(match per_pod {
            true => (parsed.nanos(), format!("{shown} per pod")),
            false => (parsed.nanos(), shown),
        })
    };
    if let Some(value) = &target.average_value {
        let current = current.and_then(|current| current.average_value.as_ref());
        return Some(Figure {
            target: quantity(value, true)?,
            current: current.and_then(|value| quantity(value, true)),
        });
    }
    if let Some(value) = &target.value {
        let current = current.and_then(|current| current.value.as_ref());
        return Some(Figure {
            target: quantity(value, false)?,
            current: current.and_then(|value| quantity(value, false)),
        });
    }
    Some(Figure {
        target: percent(target.average_utilization?),
        current: current
            .and_then(|current| current.average_utilization)
            .map(percent),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(spec: Value, status: Value) -> Said {
        let mut whole = json!({
            "minReplicas": 2, "maxReplicas": 5, "metrics": [cpu(50)],
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        });
        if let (Some(whole), Value::Object(own)) = (whole.as_object_mut(), spec) {
            whole.extend(own);
        }
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": whole, "status": status});
        explain(&serde_json::from_value(object).expect("an autoscaler"))
    }

    fn cpu(percent: i32) -> Value {
        json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": percent}}})
    }

    fn at(percent: i32, conditions: Value) -> Value {
        json!({"currentReplicas": 3, "desiredReplicas": 4, "conditions": conditions, "currentMetrics": [
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]})
    }

    #[test]
    fn replicas_and_figures_are_told_beside_their_targets() {
        let tolerant = json!({"behavior": {"scaleUp": {"tolerance": "0.5"}, "scaleDown": {}}});
        for (spec, percent, shown) in [
            (
                json!({}),
                76,
                "76% of what is requested, 50% of what is requested is aimed at: more replicas are asked for.",
            ),
            (
                json!({}),
                55,
                "50% of what is requested is aimed at: within the tolerance of 10%.",
            ),
            (json!({}), 50, "is aimed at: as it should be."),
            (json!({}), 12, "is aimed at: fewer would do."),
            (tolerant.clone(), 75, "within the tolerance of 50%."),
            (tolerant, 44, "fewer would do."),
        ] {
            let said = said(spec, at(percent, json!([])));
            assert_eq!(
                said.sentences[..2],
                [
                    "HorizontalPodAutoscaler web keeps Deployment/web between 2 and 5 replicas.",
                    "It has 3 and wants 4.",
                ]
            );
            assert!(
                said.sentences[2].starts_with("cpu of the pods is "),
                "{said:?}"
            );
            assert!(said.sentences[2].ends_with(shown), "{shown}: {said:?}");
            assert_eq!(said.sentences[3..], ["Nothing limits it."]);
        }
    }

    #[test]
    fn every_sort_of_metric_is_told() {
        let metric = json!({"name": "m"});
        let of = json!({"kind": "Service", "name": "web"});
        let metrics = json!([
            {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                "target": {"type": "AverageValue", "averageValue": "100Mi"}}},
            {"type": "Pods", "pods": {"metric": metric, "target": {"type": "AverageValue", "averageValue": "10"}}},
            {"type": "Object", "object": {"metric": metric, "describedObject": of, "target": {"type": "Value", "value": "1k"}}},
            {"type": "External", "external": {"metric": metric, "target": {"type": "AverageValue", "averageValue": "30"}}},
            {"type": "Other"},
        ]);
        let status = json!({"currentReplicas": 2, "desiredReplicas": 2, "currentMetrics": [
            {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                "current": {"averageValue": "110Mi"}}},
            {"type": ""},
            {"type": "Object", "object": {"metric": metric, "describedObject": of, "current": {"value": "2000"}}},
            {"type": "External", "external": {"metric": metric, "current": {"averageValue": "1500m"}}},
        ]});
        let said = said(json!({"metrics": metrics}), status);
        assert_eq!(
            said.sentences[2..],
            [
                "memory of the containers c is 110Mi per pod, 100Mi per pod is aimed at: within the tolerance of 10%.",
                "m of the pods is not known; 10 per pod is aimed at.",
                "m of Service/web is 2000, 1k is aimed at: more replicas are asked for.",
                "m is 1500m per pod, 30 per pod is aimed at: fewer would do.",
                "Nothing limits it.",
            ]
        );
    }

    #[test]
    fn what_limits_it_is_said_with_what_to_do() {
        let condition = |type_: &str, status: &str, reason: &str, message: &str| json!([{"type": type_, "status": status, "reason": reason, "message": message}]);
        for (conditions, sentence, next) in [
            (
                condition(
                    "AbleToScale",
                    "False",
                    "FailedGetScale",
                    "deployments.apps \"web\" not found",
                ),
                "It cannot scale its target: deployments.apps \"web\" not found.",
                "gantry get deployment web",
            ),
            (
                condition("ScalingActive", "False", "ScalingDisabled", "zero"),
                "It is switched off",
                "gantry scale deployment/web --replicas 2",
            ),
            (
                condition(
                    "ScalingActive",
                    "False",
                    "FailedGetResourceMetric",
                    "missing request for cpu in container c",
                ),
                "Utilization is a share of resources.requests",
                "gantry describe deployment web",
            ),
            (
                condition(
                    "ScalingActive",
                    "False",
                    "FailedGetResourceMetric",
                    "no metrics returned",
                ),
                "It has nothing to go by: no metrics returned.",
                "gantry top pods",
            ),
            (
                condition("ScalingLimited", "True", "TooManyReplicas", ""),
                "More would be wanted: spec.maxReplicas (5) is the limit.",
                "gantry get hpa web -o yaml",
            ),
            (
                condition("ScalingLimited", "True", "TooFewReplicas", ""),
                "Fewer would do: spec.minReplicas (2) is the limit.",
                "",
            ),
            (
                condition("ScalingLimited", "True", "ScaleUpLimit", ""),
                "the policies of spec.behavior.scaleUp are the limit.",
                "gantry get hpa web -o yaml",
            ),
            (
                condition(
                    "AbleToScale",
                    "True",
                    "ScaleDownStabilized",
                    "recent recommendations were higher",
                ),
                "It waits: recent recommendations were higher. spec.behavior.scaleDown.stabilizationWindowSeconds is 300.",
                "",
            ),
            (
                condition("ScaledToZero", "True", "ScaledToZero", ""),
                "It has scaled its target to zero",
                "",
            ),
            (
                condition(
                    "SyncPeriodValid",
                    "False",
                    "InvalidSyncPeriod",
                    "\"x\" is no duration",
                ),
                "Its period is the default one: \"x\" is no duration.",
                "",
            ),
        ] {
            let said = said(json!({}), at(50, conditions));
            let text = said.text();
            assert!(text.contains(sentence), "{sentence}: {text}");
            assert!(
                next.is_empty() || said.next.contains(&next.to_owned()),
                "{next}: {text}"
            );
            assert!(!text.contains("Nothing limits it"), "{text}");
        }
    }

    #[test]
    fn who_was_not_looked_at_yet_says_so() {
        let said = said(json!({}), Value::Null);
        assert_eq!(said.sentences[1..], ["Nobody has looked at it yet."]);
        assert_eq!(said.next, ["gantry get hpa web -w"]);
    }
}
