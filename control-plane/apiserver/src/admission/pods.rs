//! Pods: their service account and its token, tolerations of failing nodes, priority.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Key};
use rand::Rng;
use serde_json::{Value, json};

use crate::context::{Context, meta};

/// Where containers find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds a pod stays on a node that is failing.
const TOLERATION_SECONDS: i64 = 300;
/// Seconds a token is valid: an hour, and a little for clocks that differ.
const TOKEN_SECONDS: i64 = 3607;
/// The account of pods that name none; every namespace gets one.
const DEFAULT_ACCOUNT: &str = "default";
/// How long a pod waits for the default account of its namespace.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Priorities of the classes that every cluster has.
const SYSTEM_PRIORITIES: &[(&str, i64)] = &[
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub(super) async fn admit(context: &Context<'_>, pod: &mut Value) -> Result<(), StatusError> {
    if !pod["spec"].is_object() {
        // Validation says what is missing.
        return Ok(());
    }
    service_account(context, pod).await?;
    tolerations(pod);
    priority(context, pod)
}

async fn service_account(context: &Context<'_>, pod: &mut Value) -> Result<(), StatusError> {
    let info = context.resource.info();
    let spec = pod.member(&["spec"]);
    let named = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|field| {
            spec[field]
                .as_str()
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
        });
    let name = named.unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned());
    *spec.member(&["serviceAccountName"]) = json!(name);
    *spec.member(&["serviceAccount"]) = json!(name);
    let Some(entry) = find_account(context, &name).await else {
        return Err(StatusError::forbidden(
            info,
            meta(pod, "name"),
            &format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                context.namespace().unwrap_or_default()
            ),
        ));
    };
    let account: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
    let spec = pod.member(&["spec"]);
    if spec["imagePullSecrets"]
        .as_array()
        .is_none_or(Vec::is_empty)
        && account["imagePullSecrets"]
            .as_array()
            .is_some_and(|secrets| !secrets.is_empty())
    {
        *spec.member(&["imagePullSecrets"]) = account["imagePullSecrets"].clone();
    }
    let automount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    Ok(())
}

/// A service account. The default one of a namespace that was just created comes in a moment: it is waited for.
async fn find_account(context: &Context<'_>, name: &str) -> Option<Arc<Entry>> {
    let store = &context.api.store;
    let table = crate::registry::table("", "serviceaccounts");
    let key = Key {
        table: table.clone(),
        namespace: context.namespace().unwrap_or_default().into(),
        name: name.into(),
    };
    let since = store.revision();
    let found = store.get(&key);
    if found.is_some() || name != DEFAULT_ACCOUNT {
        return found;
    }
    let mut changes = store.watch(&[table], since).ok()?;
    let appears = async {
        while let Some(Ok(change)) = changes.next().await {
            if change.key == key && !change.deleted {
                return Some(change.entry.clone());
            }
        }
        None
    };
    tokio::time::timeout(ACCOUNT_PATIENCE, appears).await.ok()?
}

/// Adds the token's volume to the pod and mounts it in every container that has nothing there.
fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| {
        let mut random = rand::rng();
        let suffix: String = (0..5)
            .map(|_| char::from(SUFFIX_ALPHABET[random.random_range(0..SUFFIX_ALPHABET.len())]))
            .collect();
        format!("kube-api-access-{suffix}")
    });
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list]
            .as_array_mut()
            .into_iter()
            .flatten()
            .filter(|container| container.is_object())
        {
            let mounts = container["volumeMounts"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
                continue;
            }
            let mut mounts = mounts;
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            *container.member(&["volumeMounts"]) = Value::Array(mounts);
            mounted = true;
        }
    }
    if mounted && existing.is_none() {
        let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
        volumes.push(json!({
            "name": name,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
            },
        }));
        *spec.member(&["volumes"]) = Value::Array(volumes);
    }
}

fn tolerations(pod: &mut Value) {
    let spec = pod.member(&["spec"]);
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|toleration| {
            let names = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (names == key || names.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    *spec.member(&["tolerations"]) = Value::Array(tolerations);
}

fn priority(context: &Context<'_>, pod: &mut Value) -> Result<(), StatusError> {
    let class = pod["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let (value, preemption) = match class.as_str() {
        "" => (0, "PreemptLowerPriority".to_owned()),
        name => match find_class(context, name) {
            Some(found) => found,
            None => {
                return Err(StatusError::forbidden(
                    context.resource.info(),
                    meta(pod, "name"),
                    &format!("no PriorityClass with name {name} was found"),
                ));
            }
        },
    };
    if let Some(asked) = pod["spec"]["priority"]
        .as_i64()
        .filter(|asked| *asked != value)
    {
        return Err(StatusError::forbidden(
            context.resource.info(),
            meta(pod, "name"),
            &format!(
                "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ),
        ));
    }
    *pod.member(&["spec", "priority"]) = json!(value);
    if pod["spec"]["preemptionPolicy"].is_null() {
        *pod.member(&["spec", "preemptionPolicy"]) = json!(preemption);
    }
    Ok(())
}

fn find_class(context: &Context<'_>, name: &str) -> Option<(i64, String)> {
    let never = |value: &Value| {
        value["preemptionPolicy"]
            .as_str()
            .unwrap_or("PreemptLowerPriority")
            .to_owned()
    };
    let key = Key {
        table: crate::registry::table("scheduling.k8s.io", "priorityclasses"),
        namespace: "".into(),
        name: name.into(),
    };
    if let Some(entry) = context.api.store.get(&key) {
        let class: Value = serde_json::from_slice(&entry.value).ok()?;
        return Some((class["value"].as_i64().unwrap_or(0), never(&class)));
    }
    SYSTEM_PRIORITIES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| (*value, "PreemptLowerPriority".to_owned()))
}
