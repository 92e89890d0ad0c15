//! What is allowed in a pod and yet likely a mistake, or about to go.

mod ports;

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{
    EnvVar, NodeSelectorTerm, PersistentVolumeClaimSpec, PodSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::annotations::{APP_ARMOR, POD_SECCOMP, SECCOMP};
use super::every::{AnyContainer, all_containers};
use crate::field::Path;
use crate::kinds::addresses;
use crate::names;
use crate::quantity::Quantity;

/// Warnings beyond these are not told: the headers that carry them have room for less.
const MAX_WARNINGS: usize = 100;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Annotations that do nothing any more, and what to use instead.
const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// The warnings so far.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn is_full(&self) -> bool {
        self.0.len() >= MAX_WARNINGS
    }

    fn push(&mut self, path: &Path, warning: &str) {
        if !self.is_full() {
            self.0.push(format!("{path}: {warning}"));
        }
    }

    fn add(&mut self, warning: Option<String>) {
        let room = MAX_WARNINGS.saturating_sub(self.0.len());
        self.0.extend(warning.into_iter().take(room));
    }
}

/// What a label of nodes is called today, of one that has another name now.
fn old_label(label: &str) -> Option<String> {
    let replacement = match label {
        "beta.kubernetes.io/arch" => "kubernetes.io/arch",
        "beta.kubernetes.io/os" => "kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
        _ => return None,
    };
    Some(format!(
        "deprecated since v1.14; use \"{replacement}\" instead"
    ))
}

/// Looks at a term about nodes. Values that no label can have are refused where the pod cannot run without, and told of here
/// where it can.
fn check_term(term: &NodeSelectorTerm, is_preferred: bool, path: &Path, warnings: &mut Warnings) {
    for (index, expression) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        if let Some(warning) = old_label(&expression.key) {
            warnings.push(
                &path.child("key"),
                &format!("{} is {warning}", expression.key),
            );
        }
        let values = expression.values.iter().flatten().enumerate();
        for (index, value) in values.filter(|_| is_preferred) {
            let path = path.child("values").index(index);
            for fault in names::label_value(value) {
                warnings.push(&path, &format!("{value} is invalid, {fault}"));
            }
        }
    }
}

fn check_nodes(spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    for label in spec.node_selector.iter().flatten().map(|(label, _)| label) {
        if let Some(warning) = old_label(label) {
            warnings.push(&path.child("nodeSelector").key(label), &warning);
        }
    }
    let affinity = spec.affinity.as_ref();
    if let Some(nodes) = affinity.and_then(|affinity| affinity.node_affinity.as_ref()) {
        let path = path.child("affinity").child("nodeAffinity");
        let required = &nodes.required_during_scheduling_ignored_during_execution;
        let terms = required.iter().flat_map(|all| &all.node_selector_terms);
        for (index, term) in terms.enumerate() {
            let path = path.child(REQUIRED).child("nodeSelectorTerms").index(index);
            check_term(term, false, &path, warnings);
        }
        let preferred = &nodes.preferred_during_scheduling_ignored_during_execution;
        for (index, term) in preferred.iter().flatten().enumerate() {
            let path = path.child(PREFERRED).index(index).child("preference");
            check_term(&term.preference, true, &path, warnings);
        }
    }
    let constraints = spec.topology_spread_constraints.iter().flatten();
    for (index, constraint) in constraints.enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        let key = &constraint.topology_key;
        if let Some(warning) = old_label(key) {
            warnings.push(&path.child("topologyKey"), &format!("{key} is {warning}"));
        }
        check_selector(constraint.label_selector.as_ref(), &path, warnings);
    }
}

fn check_selector(selector: Option<&LabelSelector>, path: &Path, warnings: &mut Warnings) {
    if selector.is_none() {
        let warning = "a null labelSelector results in matching no pod";
        warnings.push(&path.child("labelSelector"), warning);
    }
}

/// Looks at terms about other pods.
fn check_pods(spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    let Some(affinity) = &spec.affinity else {
        return;
    };
    let near = affinity.pod_affinity.as_ref().map(|terms| {
        (
            &terms.required_during_scheduling_ignored_during_execution,
            &terms.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let far = affinity.pod_anti_affinity.as_ref().map(|terms| {
        (
            &terms.required_during_scheduling_ignored_during_execution,
            &terms.preferred_during_scheduling_ignored_during_execution,
        )
    });
    for (field, terms) in [("podAffinity", near), ("podAntiAffinity", far)] {
        let Some((required, preferred)) = terms else {
            continue;
        };
        let path = path.child("affinity").child(field);
        for (index, term) in required.iter().flatten().enumerate() {
            let path = path.child(REQUIRED).index(index);
            check_selector(term.label_selector.as_ref(), &path, warnings);
        }
        for (index, term) in preferred.iter().flatten().enumerate() {
            let path = path.child(PREFERRED).index(index).child("podAffinityTerm");
            let selector = term.pod_affinity_term.label_selector.as_ref();
            check_selector(selector, &path, warnings);
        }
    }
}

fn check_amount(
    amounts: Option<&BTreeMap<String, ApiQuantity>>,
    resource: &str,
    path: &Path,
    warnings: &mut Warnings,
) {
    let amount = amounts.and_then(|amounts| amounts.get(resource));
    let Some(amount) = amount.and_then(|amount| amount.0.parse::<Quantity>().ok()) else {
        return;
    };
    if !amount.is_whole() {
        let text = amount.to_string();
        let warning = format!("fractional byte value {text:?} is invalid, must be an integer");
        warnings.push(&path.key(resource), &warning);
    }
}

fn check_claim(spec: &PersistentVolumeClaimSpec, path: &Path, warnings: &mut Warnings) {
    let Some(resources) = &spec.resources else {
        return;
    };
    for (amounts, field) in [
        (&resources.requests, "requests"),
        (&resources.limits, "limits"),
    ] {
        let path = path.child("resources").child(field);
        check_amount(amounts.as_ref(), "storage", &path, warnings);
    }
}

/// Warnings about what a claim asks for.
pub(in crate::kinds) fn claim_warnings(
    spec: &PersistentVolumeClaimSpec,
    path: &Path,
) -> Vec<String> {
    let mut warnings = Warnings::default();
    check_claim(spec, path, &mut warnings);
    warnings.0
}

/// Warnings about terms that nodes must match.
pub(in crate::kinds) fn node_terms_warnings(
    terms: &[NodeSelectorTerm],
    path: &Path,
) -> Vec<String> {
    let mut warnings = Warnings::default();
    for (index, term) in terms.iter().enumerate() {
        check_term(term, false, &path.index(index), &mut warnings);
    }
    warnings.0
}

/// Warnings about labels of nodes, each with where it is named.
pub(in crate::kinds) fn node_label_warnings<'a>(
    labels: impl Iterator<Item = (Path, &'a str)>,
) -> Vec<String> {
    let mut warnings = Warnings::default();
    for (path, label) in labels {
        if let Some(warning) = old_label(label) {
            warnings.push(&path, &warning);
        }
    }
    warnings.0
}

fn check_volume(volume: &Volume, path: &Path, warnings: &mut Warnings) {
    for (is_given, field, warning) in [
        (
            volume.photon_persistent_disk.is_some(),
            "photonPersistentDisk",
            "deprecated in v1.11, non-functional in v1.16+",
        ),
        (volume.git_repo.is_some(), "gitRepo", "deprecated in v1.11"),
        (
            volume.scale_io.is_some(),
            "scaleIO",
            "deprecated in v1.16, non-functional in v1.22+",
        ),
        (
            volume.flocker.is_some(),
            "flocker",
            "deprecated in v1.22, non-functional in v1.25+",
        ),
        (
            volume.storageos.is_some(),
            "storageOS",
            "deprecated in v1.22, non-functional in v1.25+",
        ),
        (
            volume.quobyte.is_some(),
            "quobyte",
            "deprecated in v1.22, non-functional in v1.25+",
        ),
        (
            volume.glusterfs.is_some(),
            "glusterfs",
            "deprecated in v1.25, non-functional in v1.26+",
        ),
    ] {
        if is_given {
            warnings.push(&path.child(field), warning);
        }
    }
    let template = volume
        .ephemeral
        .as_ref()
        .and_then(|ephemeral| ephemeral.volume_claim_template.as_ref());
    if let Some(template) = template {
        let path = path.child("ephemeral").child("volumeClaimTemplate");
        check_claim(&template.spec, &path.child("spec"), warnings);
    }
    for (is_given, field) in [
        (volume.cephfs.is_some(), "cephfs"),
        (volume.rbd.is_some(), "rbd"),
    ] {
        if is_given {
            let warning = "deprecated in v1.28, non-functional in v1.31+";
            warnings.push(&path.child(field), warning);
        }
    }
}

/// Looks for files that a token of the same pod, perhaps in another volume, has the path of.
fn check_tokens(spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let sources = |volume: &'_ Volume| {
        let projected = volume.projected.as_ref();
        let sources = projected.and_then(|projected| projected.sources.as_deref());
        sources.unwrap_or_default().to_vec()
    };
    let tokens: HashSet<String> = volumes
        .iter()
        .flat_map(sources)
        .filter_map(|source| source.service_account_token)
        .map(|token| token.path)
        .collect();
    if tokens.is_empty() {
        return;
    }
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.child("volumes").index(index);
        let path = path.child("projected").child("sources");
        let mut check = |path: &Path, file: &str| {
            if tokens.contains(file) {
                let warning = format!("has duplicated path with ServiceAccountToken {file:?}");
                warnings.push(path, &warning);
            }
        };
        for source in sources(volume) {
            let map = source.config_map.and_then(|map| map.items);
            let secret = source.secret.and_then(|secret| secret.items);
            for (items, field) in [(map, "configMap"), (secret, "secrets")] {
                for (index, item) in items.into_iter().flatten().enumerate() {
                    check(&path.child(field).index(index), &item.path);
                }
            }
            let fields = source.downward_api.and_then(|fields| fields.items);
            for (index, item) in fields.into_iter().flatten().enumerate() {
                check(&path.child("downwardAPI").index(index), &item.path);
            }
            if let Some(bundle) = source.cluster_trust_bundle {
                check(&path.child("ClusterTrustBundle"), &bundle.path);
            }
        }
    }
}

fn check_lists(spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    let mut seen = HashSet::new();
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if !seen.insert(&alias.ip) {
            let path = path.child("hostAliases").index(index).child("ip");
            warnings.push(&path, &format!("duplicate ip {:?}", alias.ip));
        }
    }
    let secrets = spec.image_pull_secrets.iter().flatten().enumerate();
    let path = path.child("imagePullSecrets");
    let mut seen = HashSet::new();
    for (index, secret) in secrets.clone() {
        if !seen.insert(&secret.name) {
            let path = path.index(index).child("name");
            warnings.push(&path, &format!("duplicate name {:?}", secret.name));
        }
    }
    for (index, _) in secrets.filter(|(_, secret)| secret.name.is_empty()) {
        warnings.push(&path.index(index).child("name"), "invalid empty name \"\"");
    }
}

fn check_variables(variables: &[EnvVar], path: &Path, warnings: &mut Warnings) {
    let mut defined = HashSet::new();
    for (index, variable) in variables.iter().enumerate() {
        let value = variable.value.as_deref().unwrap_or_default();
        let reference = format!("$({})", variable.name);
        // Appending to an earlier value of the same name is no mistake.
        let appends =
            variable.value_from.is_none() && value != reference && value.contains(&reference);
        if !defined.insert(&variable.name) && !appends {
            let warning = format!(
                "hides previous definition of {:?}, which may be dropped when using apply",
                variable.name
            );
            warnings.push(&path.child("env").index(index), &warning);
        }
    }
}

/// The object that a spec is in: where its metadata is, and whether it is a template.
struct Around<'a> {
    metadata: &'a ObjectMeta,
    path: &'a Path,
    is_template: bool,
}

impl Around<'_> {
    fn has(&self, annotation: &str) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(annotation))
    }

    fn path_of(&self, annotation: &str) -> Path {
        let path = self.path.child("metadata").child("annotations");
        path.key(annotation)
    }
}

fn check_container(
    container: &AnyContainer<'_>,
    has_app_armor: bool,
    around: &Around<'_>,
    path: &Path,
    warnings: &mut Warnings,
) {
    let context = container.security_context;
    let seccomp = format!("{SECCOMP}{}", container.name);
    if context.is_none_or(|context| context.seccomp_profile.is_none()) && around.has(&seccomp) {
        warnings.push(&around.path_of(&seccomp), NO_SECCOMP);
    }
    let app_armor = format!("{APP_ARMOR}{}", container.name);
    let own = context.is_some_and(|context| context.app_armor_profile.is_some());
    if around.is_template && !own && !has_app_armor && around.has(&app_armor) {
        let warning = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
        warnings.push(&around.path_of(&app_armor), warning);
    }
    if let Some(resources) = container.resources {
        for resource in ["memory", "ephemeral-storage"] {
            for (amounts, field) in [
                (&resources.limits, "limits"),
                (&resources.requests, "requests"),
            ] {
                let path = path.child("resources").child(field);
                check_amount(amounts.as_ref(), resource, &path, warnings);
            }
        }
    }
    let variables = container.env.map(Vec::as_slice).unwrap_or_default();
    check_variables(variables, path, warnings);
}

const NO_SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";

fn check_containers(spec: &PodSpec, around: &Around<'_>, path: &Path, warnings: &mut Warnings) {
    let context = spec.security_context.as_ref();
    if context.is_none_or(|context| context.seccomp_profile.is_none()) && around.has(POD_SECCOMP) {
        warnings.push(&around.path_of(POD_SECCOMP), NO_SECCOMP);
    }
    let has_app_armor = context.is_some_and(|context| context.app_armor_profile.is_some());
    let containers = all_containers(spec, path);
    for (container, path) in &containers {
        if warnings.is_full() {
            return;
        }
        check_container(container, has_app_armor, around, path, warnings);
    }
    ports::check(&containers, warnings);
}

/// Warnings about a spec. `path` is where the object is that has the spec and its metadata: nowhere for a pod.
pub fn warnings(
    metadata: &ObjectMeta,
    spec: &PodSpec,
    is_template: bool,
    path: &Path,
) -> Vec<String> {
    let mut warnings = Warnings::default();
    let around = Around {
        metadata,
        path,
        is_template,
    };
    let path = &path.child("spec");
    check_nodes(spec, path, &mut warnings);
    for (annotation, warning) in ANNOTATIONS {
        if around.has(annotation) {
            warnings.push(&around.path_of(annotation), warning);
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        check_volume(volume, &path.child("volumes").index(index), &mut warnings);
    }
    check_tokens(spec, path, &mut warnings);
    check_lists(spec, path, &mut warnings);
    for resource in ["memory", "ephemeral-storage"] {
        let path = path.child("overhead");
        check_amount(spec.overhead.as_ref(), resource, &path, &mut warnings);
    }
    check_containers(spec, &around, path, &mut warnings);
    if spec
        .termination_grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
    {
        let warning = "must be >= 0; negative values are invalid and will be treated as 1";
        warnings.push(&path.child("terminationGracePeriodSeconds"), warning);
    }
    check_pods(spec, path, &mut warnings);
    let servers = spec.dns_config.as_ref();
    let servers = servers.and_then(|config| config.nameservers.as_ref());
    for (index, server) in servers.into_iter().flatten().enumerate() {
        let path = path.child("dnsConfig").child("nameservers").index(index);
        warnings.add(addresses::form_warning(server, &path));
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.child("hostAliases").index(index).child("ip");
        warnings.add(addresses::form_warning(&alias.ip, &path));
    }
    warnings.0
}

#[cfg(test)]
mod tests;
