//! `gantry apply`: creates what is missing and patches what differs, three ways: what was applied last, what is
//! wanted now, and what lives in the cluster.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use gantry_api::json::Members;
use http::Method;
use serde_json::{Value, json};

use crate::client::{ApiError, Call, Cluster, Mapping};
use crate::manifest::{self, Manifest};
use crate::output;

/// Where the last applied manifest is kept: the same place as kubectl's, so that both can be used in turn.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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
        let path = mapping.path(Some(namespace), Some(manifest.name()));
        let what = match cluster.find(&path).await? {
            None => self.create(cluster, mapping, namespace, manifest).await?,
            Some(live) => self.patch(cluster, &path, manifest, &live).await?,
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

    async fn create(
        &self,
        cluster: &Cluster,
        mapping: &Mapping,
        namespace: &str,
        manifest: &Manifest,
    ) -> Result<&'static str> {
        let object = with_last_applied(&manifest.object);
        let path = mapping.path(Some(namespace), None);
        let call = Call {
            query: &self.parameters(),
            ..Call::send(Method::POST, &path, &object)
        };
        cluster
            .call(call)
            .await
            .map_err(|error| located(error, "creating", manifest))?;
        Ok("created")
    }

    async fn patch(
        &self,
        cluster: &Cluster,
        path: &str,
        manifest: &Manifest,
        live: &Value,
    ) -> Result<&'static str> {
        let wanted = with_last_applied(&manifest.object);
        let last = live["metadata"]["annotations"][LAST_APPLIED]
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null);
        let Some(patch) = three_way(&last, &wanted, live) else {
            return Ok("unchanged");
        };
        let call = Call {
            query: &self.parameters(),
            content_type: "application/strategic-merge-patch+json",
            ..Call::send(Method::PATCH, path, &patch)
        };
        let changed = cluster
            .call(call)
            .await
            .map_err(|error| located(error, "applying patch for", manifest))?;
        let same = changed["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
        Ok(if same { "unchanged" } else { "configured" })
    }
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

/// The manifest with itself recorded in its annotations.
fn with_last_applied(manifest: &Value) -> Value {
    let mut plain = manifest.clone();
    if let Some(annotations) = plain
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    let mut object = plain.clone();
    if !object["metadata"]["annotations"].is_object() {
        *object.member(&["metadata", "annotations"]) = json!({});
    }
    *object.member(&["metadata", "annotations", LAST_APPLIED]) = json!(format!("{plain}\n"));
    object
}

/// The fields that identify an element of a list that the server merges by key.
const MERGE_KEYS: &[&str] = &[
    "name",
    "containerPort",
    "port",
    "mountPath",
    "ip",
    "uid",
    "type",
    "topologyKey",
    "devicePath",
];

/// A strategic merge patch that takes `live` to `wanted`: adds and changes what is wanted, and removes what was
/// applied before and is wanted no more. What others have set stays. `None` when nothing differs.
fn three_way(last: &Value, wanted: &Value, live: &Value) -> Option<Value> {
    let patch = difference(last, wanted, live);
    match &patch {
        Value::Object(fields) if fields.is_empty() => None,
        _ => Some(patch),
    }
}

fn difference(last: &Value, wanted: &Value, live: &Value) -> Value {
    let empty = serde_json::Map::new();
    let wanted_fields = wanted.as_object().unwrap_or(&empty);
    let live_fields = live.as_object().unwrap_or(&empty);
    let mut patch = serde_json::Map::new();
    for (field, value) in wanted_fields {
        if value.is_null() {
            continue;
        }
        let old = live_fields.get(field).unwrap_or(&Value::Null);
        let before = last.get(field).unwrap_or(&Value::Null);
        match (value, old) {
            (Value::Object(_), Value::Object(_)) => {
                let inner = difference(before, value, old);
                if inner.as_object().is_some_and(|inner| !inner.is_empty()) {
                    patch.insert(field.clone(), inner);
                }
            }
            (Value::Array(items), Value::Array(_)) => {
                let removed = removed_elements(before, items);
                let differs = !covers(old, value) || !removed.is_empty();
                let elements = items.iter().cloned().chain(removed).collect();
                patch.extend(differs.then_some((field.clone(), Value::Array(elements))));
            }
            _ if value != old => {
                patch.insert(field.clone(), value.clone());
            }
            _ => {}
        }
    }
    for field in last.as_object().unwrap_or(&empty).keys() {
        if !wanted_fields.contains_key(field) && live_fields.contains_key(field) {
            patch.insert(field.clone(), Value::Null);
        }
    }
    Value::Object(patch)
}

/// Deletion directives for the keyed elements that were applied before and are wanted no more.
fn removed_elements(last: &Value, wanted: &[Value]) -> Vec<Value> {
    let Some(key) = wanted.first().and_then(merge_key) else {
        return Vec::new();
    };
    let kept: BTreeMap<String, ()> = wanted
        .iter()
        .map(|element| (element[key].to_string(), ()))
        .collect();
    last.as_array()
        .into_iter()
        .flatten()
        .filter(|element| !element[key].is_null() && !kept.contains_key(&element[key].to_string()))
        .map(|element| json!({"$patch": "delete", key: element[key]}))
        .collect()
}

fn merge_key(element: &Value) -> Option<&'static str> {
    MERGE_KEYS
        .iter()
        .copied()
        .find(|key| element.get(key).is_some())
}

/// Whether everything `wanted` says is already so in `live`; `live` may say more (defaults).
fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(field, value)| live.get(field).is_some_and(|live| covers(live, value))),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len()
                && live
                    .iter()
                    .zip(wanted)
                    .all(|(live, wanted)| covers(live, wanted))
        }
        _ => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str) -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"replicas": 3, "template": {"spec": {
            "containers": [{"name": "web", "image": image}]}}}})
    }

    #[test]
    fn defaults_and_foreign_fields_are_no_difference() {
        let wanted = deployment("a");
        let mut live = wanted.clone();
        live["spec"]["strategy"] = json!({"type": "RollingUpdate"});
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        assert_eq!(three_way(&wanted, &wanted, &live), None);
    }

    #[test]
    fn a_changed_list_element_is_sent_and_others_stay() {
        let last = deployment("a");
        let patch = three_way(&last, &deployment("b"), &last).expect("a change");
        assert_eq!(
            patch,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "b"}]}}}})
        );
    }

    #[test]
    fn what_was_applied_and_is_wanted_no_more_is_removed() {
        let mut last = deployment("a");
        last["metadata"]["labels"]["tier"] = json!("front");
        last["spec"]["template"]["spec"]["containers"] =
            json!([{"name": "web", "image": "a"}, {"name": "side", "image": "s"}]);
        let mut live = last.clone();
        live["metadata"]["labels"]["other"] = json!("kept");
        let patch = three_way(&last, &deployment("a"), &live).expect("a change");
        assert_eq!(
            patch,
            json!({
                "metadata": {"labels": {"tier": null}},
                "spec": {"template": {"spec": {"containers": [
                    {"name": "web", "image": "a"}, {"$patch": "delete", "name": "side"},
                ]}}},
            })
        );
    }

    #[test]
    fn the_manifest_is_recorded_without_its_own_record() {
        let object = with_last_applied(&with_last_applied(&json!({"metadata": {"name": "a"}})));
        let recorded = object["metadata"]["annotations"][LAST_APPLIED]
            .as_str()
            .expect("recorded");
        assert!(!recorded.contains(LAST_APPLIED), "{recorded}");
    }
}
