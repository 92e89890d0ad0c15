//! Which files a configMap, secret, downwardAPI or projected volume holds.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource};

use super::atomic::{File, Files};
use super::{VolumeContext, VolumeError};
use crate::env::{self, EnvContext, EnvError};
use crate::limits;

pub(super) const DEFAULT_MODE: i32 = 0o644;

fn mode(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}

/// A relative path as the API allows it: no way up, not absolute.
fn safe(path: &str) -> Result<PathBuf, VolumeError> {
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if inside && !path.is_empty() && !path.starts_with("..") {
        Ok(PathBuf::from(path))
    } else {
        Err(VolumeError::Outside(path.to_owned()))
    }
}

fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    kind: &'static str,
    optional: bool,
) -> Result<Files, VolumeError> {
    let mut files = Files::new();
    match items.filter(|items| !items.is_empty()) {
        None => {
            for (key, content) in data {
                files.insert(
                    safe(key)?,
                    File {
                        content: content.clone(),
                        mode: mode(default_mode),
                    },
                );
            }
        }
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(content) => {
                        let file = File {
                            content: content.clone(),
                            mode: mode(item.mode.unwrap_or(default_mode)),
                        };
                        files.insert(safe(&item.path)?, file);
                    }
                    None if optional => {}
                    None => {
                        return Err(VolumeError::Key {
                            kind,
                            key: item.key.clone(),
                        });
                    }
                }
            }
        }
    }
    Ok(files)
}

pub(super) fn config_map(
    context: &VolumeContext<'_>,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    optional: bool,
) -> Result<Files, VolumeError> {
    let namespace = context
        .pod
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    let Some(map) = context.desired.config_map(namespace, name) else {
        return missing("configmap", name, optional);
    };
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()));
    select(
        &text.chain(binary).collect(),
        items,
        default_mode,
        "config",
        optional,
    )
}

pub(super) fn secret(
    context: &VolumeContext<'_>,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    optional: bool,
) -> Result<Files, VolumeError> {
    let namespace = context
        .pod
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    let Some(secret) = context.desired.secret(namespace, name) else {
        return missing("secret", name, optional);
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.0.clone()))
        .collect();
    select(&data, items, default_mode, "secret", optional)
}

fn missing(kind: &'static str, name: &str, optional: bool) -> Result<Files, VolumeError> {
    if optional {
        Ok(Files::new())
    } else {
        Err(VolumeError::Missing {
            kind,
            name: name.to_owned(),
        })
    }
}

pub(super) fn downward(
    context: &VolumeContext<'_>,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    default_mode: i32,
) -> Result<Files, VolumeError> {
    let values = EnvContext {
        pod: context.pod,
        desired: context.desired,
        pod_ips: context.pod_ips,
        host_ips: context.host_ips,
        allocatable: context.allocatable,
    };
    let mut files = Files::new();
    for item in items.into_iter().flatten() {
        let content = if let Some(selector) = &item.field_ref {
            env::field(&values, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            let named = selector.container_name.as_deref().unwrap_or_default();
            let spec = context.pod.spec.as_ref();
            let mut all = spec.into_iter().flat_map(|spec| {
                spec.containers
                    .iter()
                    .chain(spec.init_containers.iter().flatten())
            });
            let container = all
                .find(|container| container.name == named)
                .ok_or_else(|| {
                    EnvError::Resource(format!("{} of container {named:?}", selector.resource))
                })?;
            limits::field(
                container,
                &selector.resource,
                selector.divisor.as_ref(),
                context.allocatable,
            )
            .ok_or_else(|| EnvError::Resource(selector.resource.clone()))?
        } else {
            String::new()
        };
        let file = File {
            content: content.into_bytes(),
            mode: mode(item.mode.unwrap_or(default_mode)),
        };
        files.insert(safe(&item.path)?, file);
    }
    Ok(files)
}

pub(super) fn projected(
    context: &VolumeContext<'_>,
    source: &ProjectedVolumeSource,
) -> Result<Files, VolumeError> {
    let default_mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut files = Files::new();
    for projection in source.sources.iter().flatten() {
        if let Some(part) = &projection.config_map {
            let optional = part.optional == Some(true);
            files.extend(config_map(
                context,
                &part.name,
                part.items.as_ref(),
                default_mode,
                optional,
            )?);
        }
        if let Some(part) = &projection.secret {
            let optional = part.optional == Some(true);
            files.extend(secret(
                context,
                &part.name,
                part.items.as_ref(),
                default_mode,
                optional,
            )?);
        }
        if let Some(part) = &projection.downward_api {
            files.extend(downward(context, part.items.as_ref(), default_mode)?);
        }
        // Tokens come from a Secret of the account where there is one: the link carries no token requests. A pod that
        // does not use its token must start nevertheless.
        if let Some(part) = &projection.service_account_token
            && let Some(content) = token(context)
        {
            files.insert(
                safe(&part.path)?,
                File {
                    content,
                    mode: mode(default_mode),
                },
            );
        }
    }
    Ok(files)
}

/// The token of a `kubernetes.io/service-account-token` Secret that the pod's account lists.
fn token(context: &VolumeContext<'_>) -> Option<Vec<u8>> {
    let namespace = context.pod.metadata.namespace.as_deref()?;
    let name = context.pod.spec.as_ref()?.service_account_name.as_deref()?;
    let account = context.desired.service_account(namespace, name)?;
    account.secrets.iter().flatten().find_map(|reference| {
        let secret = context
            .desired
            .secret(namespace, reference.name.as_deref()?)?;
        secret
            .data
            .as_ref()?
            .get("token")
            .map(|token| token.0.clone())
    })
}
