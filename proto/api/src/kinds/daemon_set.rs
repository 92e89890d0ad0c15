//! DaemonSet: a pod on every node that it fits.

use k8s_openapi::api::apps::v1::{
    DaemonSet, DaemonSetSpec, DaemonSetStatus, DaemonSetUpdateStrategy, RollingUpdateDaemonSet,
};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::json;

use super::table::{self, Printer};
use super::workload;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;
use crate::selector::{self, LabelSelector as Selector};

/// See [`DaemonSet`].
pub struct DaemonSetKind;

/// How often the template has changed, which earlier versions had in the spec.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
const ROLLING: &str = "RollingUpdate";

/// A strategy as Kubernetes writes the type that has no names for JSON.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownStrategy<'a> {
    r#type: &'a str,
    rolling_update: Option<ShownRolling>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownRolling {
    max_unavailable: IntOrString,
    max_surge: IntOrString,
}

impl<'a> From<&'a DaemonSetUpdateStrategy> for ShownStrategy<'a> {
    fn from(strategy: &'a DaemonSetUpdateStrategy) -> Self {
        let none = || IntOrString::Int(0);
        let rolling = strategy.rolling_update.as_ref();
        Self {
            r#type: strategy.type_.as_deref().unwrap_or_default(),
            rolling_update: rolling.map(|rolling| ShownRolling {
                max_unavailable: rolling.max_unavailable.clone().unwrap_or_else(none),
                max_surge: rolling.max_surge.clone().unwrap_or_else(none),
            }),
        }
    }
}

fn template_generation(set: &DaemonSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    let written = annotations.and_then(|annotations| annotations.get(TEMPLATE_GENERATION));
    written
        .and_then(|written| written.parse().ok())
        .unwrap_or_default()
}

fn set_template_generation(set: &mut DaemonSet, generation: i64) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string());
}

fn validate_strategy(strategy: &DaemonSetUpdateStrategy, path: &Path, errors: &mut ErrorList) {
    let rolling_path = path.child("rollingUpdate");
    match (strategy.type_.as_deref(), &strategy.rolling_update) {
        (Some("OnDelete"), _) => {}
        (Some(ROLLING), None) => errors.required(&rolling_path, ""),
        (Some(ROLLING), Some(rolling)) => validate_rolling(rolling, &rolling_path, errors),
        _ => errors.not_supported(path, ShownStrategy::from(strategy), &[ROLLING, "OnDelete"]),
    }
}

fn validate_rolling(rolling: &RollingUpdateDaemonSet, path: &Path, errors: &mut ErrorList) {
    let none = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&none);
    let surge = rolling.max_surge.as_ref().unwrap_or(&none);
    let (unavailable_path, surge_path) = (path.child("maxUnavailable"), path.child("maxSurge"));
    workload::validate_amount(unavailable, &unavailable_path, errors);
    workload::validate_amount(surge, &surge_path, errors);
    workload::validate_at_most_all(unavailable, &unavailable_path, errors);
    workload::validate_at_most_all(surge, &surge_path, errors);
    match (workload::is_zero(unavailable), workload::is_zero(surge)) {
        (false, false) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            errors.invalid(&surge_path, surge, detail);
        }
        (true, true) => errors.required(&unavailable_path, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

fn template_of(object: &DaemonSet) -> Option<&PodTemplateSpec> {
    object.spec.as_ref().map(|spec| &spec.template)
}

impl Kind for DaemonSetKind {
    type Object = DaemonSet;

    const INFO: StaticInfo = StaticInfo {
        group: "apps",
        version: "v1",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<DaemonSet> = parts!(DaemonSet: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const SELECTORS: &'static [&'static str] = &["/spec/selector"];

    fn default(object: &mut DaemonSet) {
        let spec = object.spec.get_or_insert_default();
        spec.revision_history_limit.get_or_insert(10);
        let strategy = spec.update_strategy.get_or_insert_default();
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.type_ = Some(ROLLING.to_owned());
        }
        if strategy.type_.as_deref() == Some(ROLLING) {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
        }
        workload::default_template(&mut spec.template);
    }

    fn prepare_create(object: &mut DaemonSet) {
        object.status = Some(DaemonSetStatus::default());
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    }

    fn validate(object: &DaemonSet, errors: &mut ErrorList) {
        let (path, empty) = (Path::new("spec"), DaemonSetSpec::default());
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let selector_path = path.child("selector");
        let before = errors.0.len();
        selector::validate(&spec.selector, &selector_path, errors);
        let makes_sense = errors.0.len() == before;
        let wanted = Selector::from_api(Some(&spec.selector));
        let labels = workload::labels_of(&spec.template);
        let is_given =
            spec.selector.match_labels.is_some() || spec.selector.match_expressions.is_some();
        let template_path = path.child("template");
        let selects = is_given && (wanted.is_everything() || wanted.matches_map(labels));
        if makes_sense && !selects {
            let path = template_path.child("metadata").child("labels");
            errors.invalid(&path, labels, workload::UNSELECTED);
        }
        if is_given && wanted.is_everything() {
            let detail = "empty selector is invalid for daemonset";
            errors.invalid(&selector_path, json!({}), detail);
        }
        workload::validate_pods(&spec.template, "DaemonSet", &template_path, errors);
        let seconds_path = path.child("minReadySeconds");
        workload::validate_not_negative(spec.min_ready_seconds, &seconds_path, errors);
        let strategy = spec.update_strategy.clone().unwrap_or_default();
        validate_strategy(&strategy, &path.child("updateStrategy"), errors);
        let limit_path = path.child("revisionHistoryLimit");
        workload::validate_not_negative(spec.revision_history_limit, &limit_path, errors);
    }

    fn prepare_update(new: &mut DaemonSet, old: &DaemonSet) {
        let template = |set: &DaemonSet| set.spec.as_ref().map(|spec| spec.template.clone());
        let rolls = template(new) != template(old);
        let generation = template_generation(old).saturating_add(i64::from(rolls));
        set_template_generation(new, generation);
    }

    fn validate_update(new: &DaemonSet, old: &DaemonSet, errors: &mut ErrorList) {
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            workload::validate_selector_kept(&new.selector, &old.selector, errors);
        }
        Self::validate(new, errors);
    }

    fn prepare_status_update(new: &mut DaemonSet, old: &DaemonSet) {
        set_template_generation(new, template_generation(old));
    }

    fn validate_status_update(new: &DaemonSet, old: &DaemonSet, errors: &mut ErrorList) {
        let (path, status) = (Path::new("status"), new.status.clone().unwrap_or_default());
        let first = [
            (
                "currentNumberScheduled",
                Some(status.current_number_scheduled),
            ),
            ("numberMisscheduled", Some(status.number_misscheduled)),
            (
                "desiredNumberScheduled",
                Some(status.desired_number_scheduled),
            ),
            ("numberReady", Some(status.number_ready)),
        ];
        let rest = [
            ("updatedNumberScheduled", status.updated_number_scheduled),
            ("numberAvailable", status.number_available),
            ("numberUnavailable", status.number_unavailable),
            ("collisionCount", status.collision_count),
        ];
        for (name, count) in first {
            workload::validate_not_negative(count, &path.child(name), errors);
        }
        workload::validate_observed(status.observed_generation, &path, errors);
        for (name, count) in rest {
            workload::validate_not_negative(count, &path.child(name), errors);
        }
        let (now, before) = (status.collision_count, old.status.as_ref());
        let before = before.and_then(|status| status.collision_count);
        if before.is_some_and(|before| now.is_none_or(|now| now < before)) {
            let path = path.child("collisionCount");
            errors.invalid(&path, now.unwrap_or(0), "cannot be decremented");
        }
    }

    /// Its pods are warned of when their template is new, and its own name never.
    fn warnings(new: &DaemonSet, old: Option<&DaemonSet>) -> Vec<String> {
        let same = old.is_some_and(|old| template_generation(old) == template_generation(new));
        let template = template_of(new).filter(|_| !same);
        workload::template_warnings(template, &Path::new("spec").child("template"))
    }

    fn printer() -> Printer<DaemonSet> {
        let number = |name, field| {
            table::column(
                name,
                "integer",
                table::field_doc::<DaemonSetStatus>(field),
                0,
            )
        };
        let nodes = table::field_doc::<PodSpec>("nodeSelector");
        let selector = table::field_doc::<DaemonSetSpec>("selector");
        let numbers = [
            number("Desired", "desiredNumberScheduled"),
            number("Current", "currentNumberScheduled"),
            number("Ready", "numberReady"),
            number("Up-to-date", "updatedNumberScheduled"),
            number("Available", "numberAvailable"),
        ];
        Printer::<DaemonSet>::named()
            .columns(numbers, |object, _| {
                let status = object.status.clone().unwrap_or_default();
                [
                    json!(status.desired_number_scheduled),
                    json!(status.current_number_scheduled),
                    json!(status.number_ready),
                    json!(status.updated_number_scheduled.unwrap_or(0)),
                    json!(status.number_available.unwrap_or(0)),
                ]
            })
            .column(
                table::column("Node Selector", "string", nodes, 0),
                |object| {
                    let pod = template_of(object).and_then(|template| template.spec.as_ref());
                    json!(workload::labels_text(
                        pod.and_then(|pod| pod.node_selector.as_ref())
                    ))
                },
            )
            .age()
            .columns(workload::template_columns(1), |object, _| {
                workload::template_cells(template_of(object))
            })
            .column(table::column("Selector", "string", selector, 1), |object| {
                let spec = object.spec.as_ref();
                json!(workload::selector_cell(spec.map(|spec| &spec.selector)))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(change: impl Fn(&mut DaemonSetSpec)) -> DaemonSet {
        let container = json!({
            "name": "c", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File",
        });
        let labels = json!({"a": "b"});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
        let spec = json!({"selector": {"matchLabels": labels}, "template": template});
        let object = json!({"metadata": {"name": "d"}, "spec": spec});
        let mut object: DaemonSet = serde_json::from_value(object).unwrap();
        change(object.spec.get_or_insert_default());
        DaemonSetKind::default(&mut object);
        object
    }

    fn refused(set: &DaemonSet) -> Vec<String> {
        let mut errors = ErrorList::default();
        DaemonSetKind::validate(set, &mut errors);
        errors.told()
    }

    fn rolling(unavailable: i32, surge: i32) -> DaemonSet {
        set(|spec| {
            spec.update_strategy = Some(DaemonSetUpdateStrategy {
                type_: None,
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                    max_surge: Some(IntOrString::Int(surge)),
                }),
            });
        })
    }

    #[test]
    fn pods_are_replaced_by_one_way_or_the_other() {
        assert_eq!(refused(&set(|_| {})), [""; 0]);
        assert_eq!(refused(&rolling(0, 1)), [""; 0]);
        let path = "spec.updateStrategy.rollingUpdate";
        let none = format!("{path}.maxUnavailable: Required value: cannot be 0 when maxSurge is 0");
        assert_eq!(refused(&rolling(0, 0)), [none]);
        let both = format!(
            "{path}.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"
        );
        assert_eq!(refused(&rolling(1, 1)), [both]);
        let selects_all = set(|spec| spec.selector.match_labels = Some(BTreeMap::new()));
        let all = "spec.selector: Invalid value: {}: empty selector is invalid for daemonset";
        assert_eq!(refused(&selects_all), [all]);
    }

    #[test]
    fn a_strategy_that_nobody_knows_is_shown_whole() {
        let odd = |rolling: Option<RollingUpdateDaemonSet>| {
            refused(&set(|spec| {
                spec.update_strategy = Some(DaemonSetUpdateStrategy {
                    type_: Some("Odd".to_owned()),
                    rolling_update: rolling.clone(),
                });
            }))
        };
        let told = |shown: &str| {
            format!(
                "spec.updateStrategy: Unsupported value: {shown}: supported values: \"RollingUpdate\", \"OnDelete\""
            )
        };
        let expected = told(r#"{"Type":"Odd","RollingUpdate":null}"#);
        assert_eq!(odd(None), [expected]);
        let expected = told(r#"{"Type":"Odd","RollingUpdate":{"MaxUnavailable":0,"MaxSurge":0}}"#);
        assert_eq!(odd(Some(RollingUpdateDaemonSet::default())), [expected]);
    }

    #[test]
    fn what_changes_is_checked_once_and_the_selector_first() {
        let old = set(|_| {});
        let new = set(|spec| {
            spec.selector.match_labels = Some([("x".to_owned(), "y".to_owned())].into());
        });
        let mut errors = ErrorList::default();
        DaemonSetKind::validate_update(&new, &old, &mut errors);
        let paths = errors.0.iter().map(|error| error.path.to_string());
        assert_eq!(
            paths.collect::<Vec<_>>(),
            ["spec.selector", "spec.template.metadata.labels"]
        );
        let counted = |collisions: Option<i32>| {
            let mut set = old.clone();
            set.status.get_or_insert_default().collision_count = collisions;
            set
        };
        for now in [None, Some(1)] {
            let mut errors = ErrorList::default();
            let (new, old) = (counted(now), counted(Some(2)));
            DaemonSetKind::validate_status_update(&new, &old, &mut errors);
            assert_eq!(errors.0.len(), 1, "{now:?}");
            assert!(errors.0[0].message.ends_with("cannot be decremented"));
        }
    }

    #[test]
    fn names_are_warned_of_nowhere() {
        let mut dotted = set(|_| {});
        dotted.metadata.name = Some("a.b".to_owned());
        assert_eq!(DaemonSetKind::warnings(&dotted, None), [""; 0]);
    }

    #[test]
    fn generations_follow_the_template_and_the_spec() {
        let generations = |set: &DaemonSet| (set.metadata.generation, template_generation(set));
        let mut old = set(|_| {});
        old.metadata.generation = Some(1);
        crate::typed::prepare_create::<DaemonSetKind>(&mut old);
        assert_eq!(generations(&old), (Some(1), 1));
        let mut same = old.clone();
        set_template_generation(&mut same, 7);
        crate::typed::prepare_update::<DaemonSetKind>(&mut same, &old);
        assert_eq!(generations(&same), (Some(1), 1), "it is not the client's");
        let mut limited = set(|spec| spec.revision_history_limit = Some(3));
        crate::typed::prepare_update::<DaemonSetKind>(&mut limited, &old);
        assert_eq!(generations(&limited), (Some(2), 1));
        let mut rolled = set(|spec| {
            let pod = spec.template.spec.get_or_insert_default();
            pod.host_network = Some(true);
        });
        crate::typed::prepare_update::<DaemonSetKind>(&mut rolled, &old);
        assert_eq!(generations(&rolled), (Some(2), 2));
    }
}
