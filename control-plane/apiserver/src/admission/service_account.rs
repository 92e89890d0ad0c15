//! ServiceAccount: the account of a pod, and its token where containers look for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Key};
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    ObjectFieldSelector, Pod, PodSpec, ProjectedVolumeSource, ServiceAccount as Account,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};

use super::mountable_secrets;
use super::node_restriction::{SECRETS, references};
use super::plugin::{Attributes, Plugin, shown_name};
use crate::authorisation::node::MIRROR;
use crate::context::Context;
use crate::generated_names::random_suffix;

/// Where containers find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds a token is valid: an hour, and a little for clocks that differ.
const TOKEN_SECONDS: i64 = 3607;
/// The account of pods that name none; every namespace gets one.
const DEFAULT_ACCOUNT: &str = "default";
/// How long a pod waits for the default account of its namespace.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);
/// What the volume of a token is called, with a suffix.
const VOLUME_PREFIX: &str = "kube-api-access-";

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("", "Pod")
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let Some(pod) = draft.typed_mut::<Pod>() else {
            return Ok(());
        };
        let annotations = pod.metadata.annotations.as_ref();
        if annotations.is_some_and(|all| all.contains_key(MIRROR)) {
            // It shows what a node runs by itself, which has no account.
            return match mirrors_too_much(pod) {
                Some(why) => {
                    let name = shown_name(&pod.metadata);
                    Err(StatusError::forbidden(attributes.info(), name, why))
                }
                None => Ok(()),
            };
        }
        let pod_name = shown_name(&pod.metadata).to_owned();
        // Validation says what is missing of a pod without one.
        let Some(spec) = &mut pod.spec else {
            return Ok(());
        };
        let named = [&spec.service_account_name, &spec.service_account];
        let named = named.into_iter().flatten().find(|name| !name.is_empty());
        let name = named.cloned().unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned());
        spec.service_account_name = Some(name.clone());
        spec.service_account = Some(name.clone());
        let context = attributes.context;
        let Some(entry) = find_account(context, &name).await else {
            return Err(StatusError::forbidden(
                attributes.info(),
                &pod_name,
                &format!(
                    "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                    context.namespace().unwrap_or_default()
                ),
            ));
        };
        // The store holds only what was written here.
        let account: Account = serde_json::from_slice(&entry.value).unwrap_or_default();
        let has_own = spec
            .image_pull_secrets
            .as_ref()
            .is_some_and(|own| !own.is_empty());
        if !has_own
            && account
                .image_pull_secrets
                .as_ref()
                .is_some_and(|all| !all.is_empty())
        {
            spec.image_pull_secrets
                .clone_from(&account.image_pull_secrets);
        }
        let automount = spec.automount_service_account_token;
        if automount.or(account.automount_service_account_token) != Some(false) {
            mount_token(spec);
        }
        match mountable_secrets::forbidden(&account, spec) {
            Some(why) => Err(StatusError::forbidden(attributes.info(), &pod_name, &why)),
            None => Ok(()),
        }
    }
}

/// What a mirror pod must not refer to, if it does: who lets a node have something by it would let every node have it.
fn mirrors_too_much(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let accounts = [&spec.service_account_name, &spec.service_account];
    if accounts.into_iter().flatten().any(|name| !name.is_empty()) {
        return Some("a mirror pod may not reference service accounts");
    }
    let written = serde_json::to_value(spec).unwrap_or_default();
    if references(&written).contains(SECRETS) {
        return Some("a mirror pod may not reference secrets");
    }
    let volumes = spec.volumes.iter().flatten();
    let sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
    let mut sources = sources.flatten();
    sources
        .any(|source| source.service_account_token.is_some())
        .then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// A service account. The default one of a namespace that was just created comes in a moment: it is waited for.
async fn find_account(context: &Context<'_>, name: &str) -> Option<Arc<Entry>> {
    let store = &context.api.store;
    let table = crate::tables::table("", "serviceaccounts");
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
fn mount_token(spec: &mut PodSpec) {
    let volumes = spec.volumes.get_or_insert_default();
    let existing = volumes
        .iter()
        .map(|volume| &volume.name)
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .cloned();
    let is_new = existing.is_none();
    let name = existing.unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", random_suffix()));
    let mut mounted = false;
    let containers = spec.init_containers.iter_mut().flatten();
    for container in containers.chain(&mut spec.containers) {
        let mounts = container.volume_mounts.get_or_insert_default();
        if mounts.iter().any(|mount| mount.mount_path == TOKEN_PATH) {
            continue;
        }
        mounts.push(VolumeMount {
            name: name.clone(),
            read_only: Some(true),
            mount_path: TOKEN_PATH.to_owned(),
            ..VolumeMount::default()
        });
        mounted = true;
    }
    if mounted && is_new {
        volumes.push(token_volume(name));
    }
}

/// The token, the cluster's authority and the pod's namespace, as one volume.
fn token_volume(name: String) -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            expiration_seconds: Some(TOKEN_SECONDS),
            path: "token".to_owned(),
            ..ServiceAccountTokenProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: "kube-root-ca.crt".to_owned(),
            items: Some(vec![KeyToPath {
                key: "ca.crt".to_owned(),
                path: "ca.crt".to_owned(),
                ..KeyToPath::default()
            }]),
            ..ConfigMapProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                path: "namespace".to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.namespace".to_owned(),
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name,
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o644),
            sources: Some(vec![token, authority, namespace]),
        }),
        ..Volume::default()
    }
}
