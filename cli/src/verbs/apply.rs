//! `gantry apply`: creates what is missing and patches what differs, three ways: what was applied last, what is
//! wanted now, and what lives in the cluster.

use anyhow::{Result, bail};
use gantry_api::json::Members;
use gantry_api::patch::{PatchType, three_way};
use gantry_api::schema::TypeSchema;
use http::Method;
use serde_json::{Value, json};

use crate::client::{ApiError, Call, Cluster, Mapping};
use crate::manifest::{self, Manifest};
use crate::output;

/// Where the last applied manifest is kept: the same place as kubectl's, so that both can be used in turn.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How often a patch that names a revision is made anew for a newer one.
const MAX_CONFLICTS: usize = 5;

/// Create or change objects so that they match manifests
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// File, directory, URL or - for standard input; may be repeated
    #[arg(long, short = 'f', required = true)]
    filename: Vec<String>,
    /// Descend into directories
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Let the server check everything and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Apply {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let manifests = manifest::read_all(&self.filename, self.recursive).await?;
        let mut failures = 0;
        let many = manifests.len() > 1;
        for manifest in &manifests {
            if let Err(error) = self.apply(cluster, manifest).await {
                // One bad object does not keep the others of a file from being applied; the exit code tells.
                if !many {
                    return Err(error);
                }
                eprintln!("{}", crate::client::explain(&error));
                failures += 1;
            }
        }
        if failures > 0 {
            bail!(
                "{failures} of {} objects could not be applied",
                manifests.len()
            );
        }
        Ok(())
    }

    async fn apply(&self, cluster: &Cluster, manifest: &Manifest) -> Result<()> {
        let Some(mapping) = cluster
            .mapping_of(manifest.api_version(), manifest.kind())
            .await?
        else {
            bail!(
                "resource mapping not found for name: \"{}\" namespace: \"{}\" from \"{}\": no matches for kind \"{}\" in version \"{}\"",
                manifest.name(),
                manifest.namespace().unwrap_or_default(),
                manifest.source,
                manifest.kind(),
                manifest.api_version(),
            );
        };
        if manifest.name().is_empty() {
            bail!(
                "{}: metadata.name is missing: apply needs a name to find the object by",
                manifest.source
            );
        }
        let namespace = manifest.namespace().unwrap_or(&cluster.namespace);
        let target = Target {
            mapping,
            collection: mapping.path(Some(namespace), None),
            path: mapping.path(Some(namespace), Some(manifest.name())),
            wanted: with_last_applied(&placed(&manifest.object, mapping, namespace)),
            manifest,
        };
        let what = match cluster.find(&target.path).await? {
            None => self.create(cluster, &target).await?,
            Some(live) => self.patch(cluster, &target, live).await?,
        };
        let suffix = if self.dry_run {
            " (server dry run)"
        } else {
            ""
        };
        output::report(mapping, manifest.name(), &format!("{what}{suffix}"))
    }

    fn parameters(&self) -> Vec<(&'static str, &'static str)> {
        let mut parameters = vec![
            ("fieldManager", "gantry-apply"),
            ("fieldValidation", "Strict"),
        ];
        if self.dry_run {
            parameters.push(("dryRun", "All"));
        }
        parameters
    }

    async fn create(&self, cluster: &Cluster, target: &Target<'_>) -> Result<&'static str> {
        let call = Call {
            query: &self.parameters(),
            ..Call::send(
                Method::POST,
                &target.collection,
                &without_nulls(&target.wanted),
            )
        };
        cluster
            .call(call)
            .await
            .map_err(|error| located(error, "creating", target.manifest))?;
        Ok("created")
    }

    async fn patch(
        &self,
        cluster: &Cluster,
        target: &Target<'_>,
        mut live: Value,
    ) -> Result<&'static str> {
        let schema = target.schema();
        if live["metadata"]["annotations"][LAST_APPLIED].is_null() {
            eprintln!(
                "Warning: resource {} is missing the {LAST_APPLIED} annotation: what an earlier manifest had and this one lacks stays. The annotation is added now.",
                target.mapping.display(target.manifest.name()),
            );
        }
        let mut conflicts = 0;
        loop {
            let last = live["metadata"]["annotations"][LAST_APPLIED]
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or(Value::Null);
            let mut difference = three_way(&last, &target.wanted, &live, schema);
            if difference.is_empty() {
                return Ok("unchanged");
            }
            let revision = difference.patch.pointer("/metadata/resourceVersion");
            if difference.needs_revision && revision.is_none() {
                let revision = live["metadata"]["resourceVersion"].clone();
                *difference.patch.member(&["metadata", "resourceVersion"]) = revision;
            }
            let call = Call {
                query: &self.parameters(),
                content_type: match difference.patch_type {
                    PatchType::Strategic => "application/strategic-merge-patch+json",
                    _ => "application/merge-patch+json",
                },
                ..Call::send(Method::PATCH, &target.path, &difference.patch)
            };
            let error = match cluster.call(call).await {
                Ok(changed) => {
                    return Ok(match is_same(&live, &changed) {
                        true => "unchanged",
                        false => "configured",
                    });
                }
                Err(error) => error,
            };
            // The list that was sent may be that of an older object.
            let is_outdated = difference.needs_revision && error.code() == Some(409);
            conflicts += 1;
            if is_outdated
                && conflicts < MAX_CONFLICTS
                && let Some(newer) = cluster.find(&target.path).await?
            {
                live = newer;
                continue;
            }
            return Err(located(error, "applying patch for", target.manifest));
        }
    }
}

/// What is applied, and where.
struct Target<'a> {
    mapping: &'a Mapping,
    collection: String,
    path: String,
    /// The object, with what is recorded of it.
    wanted: Value,
    manifest: &'a Manifest,
}

impl Target<'_> {
    /// The type of the object; none for kinds that only the cluster knows.
    fn schema(&self) -> Option<&'static TypeSchema> {
        let kinds = gantry_api::kinds::all();
        let kind = kinds.iter().find(|kind| {
            let info = kind.info();
            info.kind[..] == self.mapping.kind[..]
                && info.group[..] == self.mapping.group[..]
                && info.version[..] == self.mapping.version[..]
        })?;
        Some(kind.schema())
    }
}

/// Whether a patch has changed nothing. That of a dry run comes back with the old revision.
fn is_same(live: &Value, changed: &Value) -> bool {
    let plain = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        object
    };
    plain(live) == plain(changed)
}

fn located(error: ApiError, doing: &str, manifest: &Manifest) -> anyhow::Error {
    match error {
        ApiError::Status {
            code,
            reason,
            message,
        } => ApiError::Status {
            code,
            reason,
            message: format!("error when {doing} \"{}\": {message}", manifest.source),
        }
        .into(),
        other => other.into(),
    }
}

/// The manifest with the namespace that its object is in; none where objects have none.
fn placed(manifest: &Value, mapping: &Mapping, namespace: &str) -> Value {
    let mut object = manifest.clone();
    match mapping.namespaced {
        true => *object.member(&["metadata", "namespace"]) = Value::from(namespace),
        false => {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("namespace");
            }
        }
    }
    object
}

/// The manifest with itself recorded in its annotations, as kubectl records it.
fn with_last_applied(manifest: &Value) -> Value {
    let mut plain = manifest.clone();
    let annotations = plain.member(&["metadata", "annotations"]);
    match annotations.as_object_mut() {
        Some(annotations) => drop(annotations.remove(LAST_APPLIED)),
        None => *annotations = json!({}),
    }
    let mut object = plain.clone();
    *object.member(&["metadata", "annotations", LAST_APPLIED]) = json!(format!("{plain}\n"));
    object
}

/// The manifest as it is created: a field that is null is not set, just as a patch would not set it.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            let fields = fields.map(|(name, value)| (name.clone(), without_nulls(value)));
            fields.collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_has_no_fields_that_are_null() {
        let manifest = json!({
            "metadata": {"name": "a", "labels": null, "annotations": {"b": null, "c": "null"}},
            "spec": {"args": [null, "x"], "ports": [{"port": 1, "name": null}], "selector": {"a": null}},
        });
        let created = json!({
            "metadata": {"name": "a", "annotations": {"c": "null"}},
            "spec": {"args": [null, "x"], "ports": [{"port": 1}], "selector": {}},
        });
        assert_eq!(without_nulls(&manifest), created);
    }

    fn mapping(namespaced: bool) -> Mapping {
        Mapping {
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
            singular: "deployment".to_owned(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced,
            verbs: Vec::new(),
        }
    }

    #[test]
    fn the_manifest_is_recorded_without_its_own_record() {
        for manifest in [
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {"name": "a", "annotations": null}}),
            json!({"metadata": {"name": "a", "annotations": {LAST_APPLIED: "older"}}}),
        ] {
            let object = with_last_applied(&with_last_applied(&manifest));
            assert_eq!(
                object["metadata"]["annotations"][LAST_APPLIED],
                "{\"metadata\":{\"annotations\":{},\"name\":\"a\"}}\n"
            );
        }
    }

    #[test]
    fn what_kubectl_has_applied_is_applied_without_a_namespace() {
        // kubectl records the namespace; a manifest need not have it.
        let manifest = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1}});
        let recorded = with_last_applied(&placed(&manifest, &mapping(true), "default"));
        assert_eq!(recorded["metadata"]["namespace"], "default");
        let last = recorded["metadata"]["annotations"][LAST_APPLIED].as_str();
        let last: Value = serde_json::from_str(last.expect("recorded")).expect("JSON");
        assert!(three_way(&last, &recorded, &recorded, None).is_empty());
        let bare = three_way(&last, &manifest, &recorded, None).patch;
        assert_eq!(bare.pointer("/metadata/namespace"), None);
        let everywhere = json!({"metadata": {"name": "a", "namespace": "x"}});
        assert_eq!(
            placed(&everywhere, &mapping(false), "default"),
            json!({"metadata": {"name": "a"}})
        );
    }

    #[test]
    fn types_are_known_for_kinds_of_the_binary() {
        let manifest = Manifest {
            source: String::new(),
            object: json!({}),
        };
        let schema_of = |mapping: Mapping| {
            let target = Target {
                mapping: &mapping,
                collection: String::new(),
                path: String::new(),
                wanted: Value::Null,
                manifest: &manifest,
            };
            target.schema().map(|schema| schema.name.clone())
        };
        assert_eq!(
            schema_of(mapping(true)).as_deref(),
            Some("io.k8s.api.apps.v1.Deployment")
        );
        let custom = Mapping {
            group: "example.com".to_owned(),
            ..mapping(true)
        };
        assert_eq!(schema_of(custom), None);
    }

    #[test]
    fn a_dry_run_that_would_change_something_is_told() {
        let live = json!({"metadata": {"resourceVersion": "1", "managedFields": [1]}, "spec": 1});
        let same = json!({"metadata": {"resourceVersion": "1", "managedFields": [2]}, "spec": 1});
        let other = json!({"metadata": {"resourceVersion": "1"}, "spec": 2});
        assert!(is_same(&live, &same));
        assert!(!is_same(&live, &other));
    }
}
