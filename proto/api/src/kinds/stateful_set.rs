//! StatefulSet: pods that keep their names and their volumes.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetStatus, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
};
use serde_json::json;

use super::table::{self, Printer};
use super::{internal, pod_spec, workload};
use crate::field::{ErrorList, ErrorType, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::names;
use crate::parts;
use crate::quantity::Quantity;
use crate::selector::{self, LabelSelector as Selector};

/// See [`StatefulSet`].
pub struct StatefulSetKind;

const ROLLING: &str = "RollingUpdate";
const ORDERED: &str = "OrderedReady";
const RETAIN: &str = "Retain";

/// How a refusal of a change begins that is none of those which are allowed.
const MAY_CHANGE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

fn default_text(text: &mut Option<String>, default: &str) {
    if text.as_deref().unwrap_or_default().is_empty() {
        *text = Some(default.to_owned());
    }
}

fn default_strategy(strategy: &mut StatefulSetUpdateStrategy) {
    if strategy.type_.as_deref().unwrap_or_default().is_empty() {
        strategy.type_ = Some(ROLLING.to_owned());
        strategy.rolling_update.get_or_insert_default();
    }
    if strategy.type_.as_deref() == Some(ROLLING)
        && let Some(rolling) = &mut strategy.rolling_update
    {
        rolling.partition.get_or_insert(0);
    }
}

fn default_claim(claim: &mut PersistentVolumeClaim) {
    let spec = claim.spec.get_or_insert_default();
    spec.volume_mode
        .get_or_insert_with(|| "Filesystem".to_owned());
    let status = claim.status.get_or_insert_default();
    default_text(&mut status.phase, "Pending");
}

fn validate_strategy(strategy: &StatefulSetUpdateStrategy, path: &Path, errors: &mut ErrorList) {
    let rolling_path = path.child("rollingUpdate");
    match (strategy.type_.as_deref(), &strategy.rolling_update) {
        (None | Some(""), _) => errors.required(path, ""),
        (Some("OnDelete"), None) | (Some(ROLLING), None) => {}
        (Some("OnDelete"), Some(rolling)) => {
            errors.push(ErrorType::Invalid, &rolling_path, || {
                let printed = internal::print(rolling, "RollingUpdateStatefulSetStrategy");
                format!("Invalid value: {printed}: only allowed for updateStrategy '{ROLLING}'")
            });
        }
        (Some(ROLLING), Some(rolling)) => {
            let partition = rolling.partition;
            workload::validate_not_negative(partition, &rolling_path.child("partition"), errors);
        }
        _ => errors.push(ErrorType::Invalid, path, || {
            let printed = internal::print(strategy, "StatefulSetUpdateStrategy");
            format!("Invalid value: {printed}: must be '{ROLLING}' or 'OnDelete'")
        }),
    }
}

fn validate_retention(
    policy: &StatefulSetPersistentVolumeClaimRetentionPolicy,
    path: &Path,
    errors: &mut ErrorList,
) {
    const POLICIES: [&str; 2] = [RETAIN, "Delete"];
    for (field, policy) in [
        ("whenDeleted", &policy.when_deleted),
        ("whenScaled", &policy.when_scaled),
    ] {
        let policy = policy.as_deref().unwrap_or_default();
        if !POLICIES.contains(&policy) {
            errors.not_supported(&path.child(field), policy, &POLICIES);
        }
    }
}

/// The template with a volume for each template of claims, which goes before one of the same name.
fn with_claims(template: &PodTemplateSpec, claims: &[PersistentVolumeClaim]) -> PodTemplateSpec {
    let names = claims.iter().map(|claim| claim.metadata.name.clone());
    let names: BTreeSet<String> = names.map(Option::unwrap_or_default).collect();
    let mut template = template.clone();
    let spec = template.spec.get_or_insert_default();
    let mut own = spec.volumes.take().unwrap_or_default();
    own.retain(|volume| !names.contains(&volume.name));
    let claimed = names.into_iter().map(|name| Volume {
        name: name.clone(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: name,
            read_only: None,
        }),
        ..Volume::default()
    });
    let volumes: Vec<Volume> = claimed.chain(own).collect();
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    template
}

/// Checks selector and template against each other. `is_kept` says that the template is that of before.
fn validate_template(spec: &StatefulSetSpec, is_kept: bool, path: &Path, errors: &mut ErrorList) {
    let selector = &spec.selector;
    let selector_path = path.child("selector");
    let is_given = selector.match_labels.is_some() || selector.match_expressions.is_some();
    let wanted = Selector::from_api(Some(selector));
    let before = errors.0.len();
    if is_given {
        selector::validate(selector, &selector_path, errors);
    } else {
        errors.required(&selector_path, "");
    }
    let makes_sense = !is_given || errors.0.len() == before;
    if is_given && wanted.is_everything() {
        let detail = "empty selector is invalid for statefulset";
        errors.invalid(&selector_path, json!({}), detail);
    }
    let template_path = path.child("template");
    if !makes_sense {
        errors.push(ErrorType::Invalid, &selector_path, || {
            let printed = serde_json::to_string(&workload::Printed::from(selector));
            format!("Invalid value: {}", printed.unwrap_or_default())
        });
        return;
    }
    let labels = workload::labels_of(&spec.template);
    if !is_given || !wanted.is_everything() && !wanted.matches_map(labels) {
        let path = template_path.child("metadata").child("labels");
        errors.invalid(&path, labels, workload::UNSELECTED);
    }
    if !is_kept {
        let claims = spec.volume_claim_templates.as_deref().unwrap_or_default();
        let template = with_claims(&spec.template, claims);
        workload::validate_any_pods(&template, &template_path, errors);
    }
}

fn validate_spec(
    spec: &StatefulSetSpec,
    old: Option<&StatefulSetSpec>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let policy_path = path.child("podManagementPolicy");
    match spec.pod_management_policy.as_deref().unwrap_or_default() {
        "" => errors.required(&policy_path, ""),
        ORDERED | "Parallel" => {}
        policy => errors.invalid(&policy_path, policy, "must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    validate_strategy(&strategy, &path.child("updateStrategy"), errors);
    if let Some(policy) = &spec.persistent_volume_claim_retention_policy {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        validate_retention(policy, &path, errors);
    }
    for (number, name) in [
        (spec.replicas, "replicas"),
        (spec.min_ready_seconds, "minReadySeconds"),
    ] {
        workload::validate_not_negative(number, &path.child(name), errors);
    }
    if let Some(ordinals) = &spec.ordinals {
        workload::validate_not_negative(ordinals.start, &path.child("ordinals.start"), errors);
    }
    let service = spec.service_name.as_deref().unwrap_or_default();
    if old.is_none() && !service.is_empty() {
        let details = names::dns1123_label(service);
        errors.invalid_each(&path.child("serviceName"), service, details);
    }
    let is_kept = old.is_some_and(|old| old.template == spec.template);
    validate_template(spec, is_kept, path, errors);
    let claims = spec.volume_claim_templates.iter().flatten();
    for (index, claim) in claims.enumerate().filter(|_| old.is_none()) {
        let path = path.child("volumeClaimTemplates").index(index);
        let claim = claim.spec.clone().unwrap_or_default();
        pod_spec::check_claim_spec(&claim, true, &path.child("spec"), errors);
    }
    let Some(pod) = &spec.template.spec else {
        return;
    };
    let path = path.child("template").child("spec");
    let policy = pod.restart_policy.as_deref().unwrap_or_default();
    if policy != "Always" {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if pod.active_deadline_seconds.is_some() {
        let detail = "activeDeadlineSeconds in StatefulSet is not Supported";
        errors.forbidden(&path.child("activeDeadlineSeconds"), detail);
    }
}

/// Whether nothing of the spec is changed that must not be.
fn keeps_the_rest(new: &StatefulSetSpec, old: &StatefulSetSpec) -> bool {
    let mut new = new.clone();
    new.replicas = old.replicas;
    new.ordinals.clone_from(&old.ordinals);
    new.template.clone_from(&old.template);
    new.update_strategy.clone_from(&old.update_strategy);
    new.revision_history_limit = old.revision_history_limit;
    new.persistent_volume_claim_retention_policy
        .clone_from(&old.persistent_volume_claim_retention_policy);
    new.min_ready_seconds = old.min_ready_seconds;
    workload::same(&new, old)
}

/// The warning about a claim of a part of a byte.
fn claim_warning(claim: &PersistentVolumeClaim, path: &Path) -> Option<String> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    let storage = resources.requests.as_ref()?.get("storage")?;
    let amount = storage.0.parse::<Quantity>().ok()?;
    let path = path.child("resources").child("requests").key("storage");
    (!amount.is_whole()).then(|| {
        let amount = amount.to_string();
        format!("{path}: fractional byte value {amount:?} is invalid, must be an integer")
    })
}

/// Drops what only a feature that is off by default knows.
fn drop_disabled(set: &mut StatefulSet) {
    let spec = set.spec.as_mut();
    let strategy = spec.and_then(|spec| spec.update_strategy.as_mut());
    if let Some(rolling) = strategy.and_then(|strategy| strategy.rolling_update.as_mut()) {
        rolling.max_unavailable = None;
    }
}

fn validate_status(status: &StatefulSetStatus, errors: &mut ErrorList) {
    let path = Path::new("status");
    let ready = status.ready_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let counts = [
        ("readyReplicas", ready),
        ("currentReplicas", status.current_replicas.unwrap_or(0)),
        ("updatedReplicas", status.updated_replicas.unwrap_or(0)),
        ("availableReplicas", available),
    ];
    let replicas = [("replicas", status.replicas)];
    for (name, count) in replicas.into_iter().chain(counts) {
        workload::validate_not_negative(Some(count), &path.child(name), errors);
    }
    workload::validate_observed(status.observed_generation, &path, errors);
    let collisions = status.collision_count;
    workload::validate_not_negative(collisions, &path.child("collisionCount"), errors);
    workload::validate_within(&counts, status.replicas, &path, errors);
    if available > ready {
        let detail = "cannot be greater than status.readyReplicas";
        errors.invalid(&path.child("availableReplicas"), available, detail);
    }
}

impl Kind for StatefulSetKind {
    type Object = StatefulSet;

    const INFO: StaticInfo = StaticInfo {
        group: "apps",
        version: "v1",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: true,
        has_generation: true,
        create_on_update: false,
    };

    /// Pods are named after it.
    const NAME_RULE: crate::meta::NameRule = names::dns1123_label;

    const PARTS: Parts<StatefulSet> = parts!(StatefulSet: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const SELECTORS: &'static [&'static str] = &["/spec/selector"];

    fn default(object: &mut StatefulSet) {
        let spec = object.spec.get_or_insert_default();
        default_text(&mut spec.pod_management_policy, ORDERED);
        default_strategy(spec.update_strategy.get_or_insert_default());
        let policy = spec
            .persistent_volume_claim_retention_policy
            .get_or_insert_default();
        default_text(&mut policy.when_deleted, RETAIN);
        default_text(&mut policy.when_scaled, RETAIN);
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            default_claim(claim);
        }
        workload::default_template(&mut spec.template);
    }

    fn prepare_create(object: &mut StatefulSet) {
        object.status = Some(StatefulSetStatus::default());
        drop_disabled(object);
    }

    fn validate(object: &StatefulSet, errors: &mut ErrorList) {
        let empty = StatefulSetSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        validate_spec(spec, None, &Path::new("spec"), errors);
    }

    fn prepare_update(new: &mut StatefulSet, _old: &StatefulSet) {
        drop_disabled(new);
    }

    fn validate_update(new: &StatefulSet, old: &StatefulSet, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let empty = StatefulSetSpec::default();
        let now = new.spec.as_ref().unwrap_or(&empty);
        let before = old.spec.as_ref().unwrap_or(&empty);
        validate_spec(now, Some(before), &path, errors);
        if !keeps_the_rest(now, before) {
            errors.forbidden(&path, MAY_CHANGE);
        }
    }

    fn validate_status_update(new: &StatefulSet, old: &StatefulSet, errors: &mut ErrorList) {
        let empty = StatefulSetStatus::default();
        let status = new.status.as_ref().unwrap_or(&empty);
        validate_status(status, errors);
        let before = old
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let now = status.collision_count;
        if before.is_some_and(|before| now.is_none_or(|now| now < before)) {
            let path = Path::new("status").child("collisionCount");
            errors.invalid(&path, now.unwrap_or(0), "cannot be decremented");
        }
    }

    fn warnings(new: &StatefulSet, old: Option<&StatefulSet>) -> Vec<String> {
        let Some(spec) = &new.spec else {
            return Vec::new();
        };
        let path = Path::new("spec");
        let same = old.is_some_and(|old| old.metadata.generation == new.metadata.generation);
        let mut warnings = match same {
            true => Vec::new(),
            false => workload::template_warnings(Some(&spec.template), &path.child("template")),
        };
        let claims = spec.volume_claim_templates.iter().flatten().enumerate();
        warnings.extend(claims.filter_map(|(index, claim)| {
            claim_warning(claim, &path.child("volumeClaimTemplates").index(index))
        }));
        if spec.revision_history_limit.is_some_and(|limit| limit < 0) {
            let warning = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
            warnings.push(warning.to_owned());
        }
        warnings
    }

    fn printer() -> Printer<StatefulSet> {
        let ready = table::column("Ready", "string", "Number of the pod with ready state", 0);
        Printer::<StatefulSet>::named()
            .column(ready, |object| {
                let asked = object.spec.as_ref().and_then(|spec| spec.replicas);
                let status = object.status.as_ref();
                let ready = status.and_then(|status| status.ready_replicas);
                json!(format!("{}/{}", ready.unwrap_or(0), asked.unwrap_or(0)))
            })
            .age()
            .columns(workload::template_columns(1), |object, _| {
                let spec = object.spec.as_ref();
                workload::template_cells(spec.map(|spec| &spec.template))
            })
    }
}

#[cfg(test)]
mod tests;
