//! The Pod Security Standards: how much of a node the pods of a namespace may have, by the namespace's labels.
//!
//! `pod-security.kubernetes.io/enforce` refuses pods; `warn` tells whoever writes them, or a workload of them; `audit` is
//! told in the log. Each has a `-version` of the rules, `latest` unless it says otherwise. The rules, their order and their
//! words are those of Kubernetes 1.36.

mod checks;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::field::{ErrorList, Path};

/// What every label of these standards begins with.
pub const LABEL_PREFIX: &str = "pod-security.kubernetes.io/";

/// How strict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Anything goes.
    #[default]
    Privileged,
    /// No known way to more privileges.
    Baseline,
    /// What hardened pods do.
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

/// Whose rules: those of Kubernetes 1.`minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Of a release.
    Minor(u32),
    /// Of the newest.
    Latest,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let digits = text.strip_prefix("v1.")?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let leading = digits.len() > 1 && digits.starts_with('0');
        match plain && !leading {
            true => digits.parse().ok().map(Self::Minor),
            false => None,
        }
    }
}

/// A level of a version: `restricted:latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    /// How strict.
    pub level: Level,
    /// By whose rules.
    pub version: Version,
}

impl Default for Standard {
    fn default() -> Self {
        Self {
            level: Level::Privileged,
            version: Version::Latest,
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(formatter, "{level}:latest"),
            Version::Minor(minor) => write!(formatter, "{level}:v1.{minor}"),
        }
    }
}

/// What a namespace's labels ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Pods beyond it are refused.
    pub enforce: Standard,
    /// Pods and workloads beyond it are told in the log.
    pub audit: Standard,
    /// Whoever writes pods and workloads beyond it is warned.
    pub warn: Standard,
}

impl Policy {
    /// Of a namespace's labels, with what is wrong about them: what cannot be read is enforced as `restricted:latest`, and
    /// neither audited nor warned about.
    pub fn of<'a>(labels: impl Fn(&str) -> Option<&'a str>) -> (Self, ErrorList) {
        let mut errors = ErrorList::default();
        let mut read = |mode: &str, on_error: Level| {
            let mut standard = Standard::default();
            let key = format!("{LABEL_PREFIX}{mode}");
            if let Some(text) = labels(&key) {
                standard.level = Level::parse(text).unwrap_or_else(|| {
                    let detail = "must be one of privileged, baseline, restricted";
                    errors.invalid(
                        &Path::new("metadata").child("labels").key(&key),
                        text,
                        detail,
                    );
                    on_error
                });
            }
            let key = format!("{key}-version");
            if let Some(text) = labels(&key) {
                standard.version = Version::parse(text).unwrap_or_else(|| {
                    let detail = "must be \"latest\" or \"v1.x\"";
                    errors.invalid(
                        &Path::new("metadata").child("labels").key(&key),
                        text,
                        detail,
                    );
                    Version::Latest
                });
            }
            standard
        };
        let policy = Self {
            enforce: read("enforce", Level::Restricted),
            audit: read("audit", Level::Privileged),
            warn: read("warn", Level::Privileged),
        };
        (policy, errors)
    }

    /// Of labels in a map.
    pub fn of_labels(labels: Option<&BTreeMap<String, String>>) -> (Self, ErrorList) {
        Self::of(|key| labels?.get(key).map(String::as_str))
    }
}

/// One rule that a pod breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    reason: String,
    detail: String,
}

/// Every rule that a pod breaks, in the order in which Kubernetes names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Whether the pod keeps all rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rules alone: `host namespaces, privileged`.
    pub fn reasons(&self) -> String {
        let reasons: Vec<&str> = self.0.iter().map(|one| one.reason.as_str()).collect();
        reasons.join(", ")
    }

    /// The rules, and what breaks them.
    pub fn details(&self) -> String {
        let described = self.0.iter().map(|one| match one.detail.as_str() {
            "" => one.reason.clone(),
            detail => format!("{} ({detail})", one.reason),
        });
        described.collect::<Vec<_>>().join(", ")
    }
}

/// Which rules of a standard a pod breaks.
pub fn evaluate(standard: Standard, metadata: &ObjectMeta, spec: &PodSpec) -> Violations {
    if standard.level == Level::Privileged {
        return Violations::default();
    }
    Violations(checks::run(standard, metadata, spec))
}

/// Whether a change of a pod may break a rule that the pod kept before. Others were decided when it was created.
pub fn is_significant(new: &Pod, old: &Pod) -> bool {
    let annotation = |pod: &Pod, key: &str| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(key)).cloned()
    };
    let differs = |key: &str| annotation(new, key) != annotation(old, key);
    if differs("seccomp.security.alpha.kubernetes.io/pod") {
        return true;
    }
    let images = |pod: &Pod| -> Vec<(String, Option<String>)> {
        let Some(spec) = &pod.spec else {
            return Vec::new();
        };
        let inits = spec.init_containers.iter().flatten();
        let plain = inits.chain(&spec.containers);
        let plain = plain.map(|one| (one.name.clone(), one.image.clone()));
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral = ephemeral.map(|one| (one.name.clone(), one.image.clone()));
        plain.chain(ephemeral).collect()
    };
    let containers = images(new);
    let seccomp = |(name, _): &(String, _)| {
        differs(&format!(
            "container.seccomp.security.alpha.kubernetes.io/{name}"
        ))
    };
    containers != images(old) || containers.iter().any(seccomp)
}

/// What pods' violations are told as, when their namespace becomes stricter: the pods of the same violations together.
#[derive(Debug, Default)]
pub struct Existing {
    /// By violations: the first pod by name, and how many there are.
    found: BTreeMap<String, (String, usize)>,
}

impl Existing {
    /// Adds a pod.
    pub fn add(&mut self, pod: &str, violations: &Violations) {
        if violations.is_empty() {
            return;
        }
        let (first, count) = self
            .found
            .entry(violations.reasons())
            .or_insert_with(|| (pod.to_owned(), 0));
        if pod < first.as_str() {
            pod.clone_into(first);
        }
        *count += 1;
    }

    /// The warnings, for a namespace of which `checked` of `total` pods were looked at.
    pub fn warnings(
        self,
        namespace: &str,
        standard: Standard,
        checked: usize,
        total: usize,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        if checked < total {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
            ));
        }
        if !self.found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{standard}\""
            ));
        }
        let told = self
            .found
            .into_iter()
            .map(|(reasons, (pod, count))| match count {
                1 => format!("{pod}: {reasons}"),
                2 => format!("{pod} (and 1 other pod): {reasons}"),
                _ => format!("{pod} (and {} other pods): {reasons}", count - 1),
            });
        let mut told: Vec<String> = told.collect();
        told.sort();
        warnings.extend(told);
        warnings
    }
}

#[cfg(test)]
mod tests;
