//! Which files a configMap, secret, downwardAPI or projected volume holds.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, ServiceAccountTokenProjection,
};

use super::atomic::{File, Files};
use super::{TokenSource, VolumeContext, VolumeError};
use crate::env::{self, EnvContext, EnvError};
use crate::limits;

pub(super) const DEFAULT_MODE: i32 = 0o644;
/// Of tokens whose owner is known; with a group of the pod's own it may read them too.
const TOKEN_MODE: u32 = 0o600;
/// What the files of one volume may hold, in bytes. An object has at most about 1 MiB, so only a volume of dozens of them
/// comes near, or one that shows the same key in dozens of places.
const MOST_BYTES: usize = 30 << 20;
/// How many files a volume may have, and directories, which count for each file below them.
const MOST_ENTRIES: usize = 32 << 10;
/// How long a path in a volume may be, in bytes: in front of it comes where the volume is, and no path is longer than 4095.
const MOST_PATH: usize = 4000;
/// How many names a path in a volume may have.
const MOST_LEVELS: usize = 64;

fn mode(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}

/// A relative path as the API allows it: no way up, not absolute; and neither longer nor deeper than can be served.
fn safe(path: &str) -> Result<PathBuf, VolumeError> {
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.is_empty() || path.starts_with("..") {
        return Err(VolumeError::Outside(path.to_owned()));
    }
    if path.len() > MOST_PATH || Path::new(path).components().count() > MOST_LEVELS {
        return Err(VolumeError::LongPath {
            bytes: MOST_PATH,
            levels: MOST_LEVELS,
        });
    }
    Ok(PathBuf::from(path))
}

/// Gathers the files of one volume. A few words of a pod's specification can ask for the contents of an object many times
/// over: what is gathered is bounded before it takes any memory.
pub(super) struct Payload<'a> {
    context: &'a VolumeContext<'a>,
    files: Files,
    bytes: usize,
    entries: usize,
}

impl<'a> Payload<'a> {
    pub(super) fn new(context: &'a VolumeContext<'a>) -> Self {
        Self {
            context,
            files: Files::new(),
            bytes: 0,
            entries: 0,
        }
    }

    pub(super) fn into_files(self) -> Files {
        self.files
    }

    fn add(&mut self, path: &str, content: &[u8], mode: u32) -> Result<(), VolumeError> {
        self.add_owned(path, content, mode, None)
    }

    fn add_owned(
        &mut self,
        path: &str,
        content: &[u8],
        mode: u32,
        owner: Option<u32>,
    ) -> Result<(), VolumeError> {
        let path = safe(path)?;
        self.bytes = self.bytes.saturating_add(content.len());
        self.entries += path.components().count();
        if self.bytes > MOST_BYTES || self.entries > MOST_ENTRIES {
            return Err(VolumeError::TooMuch {
                bytes: MOST_BYTES,
                entries: MOST_ENTRIES,
            });
        }
        let content = content.to_vec();
        let file = File {
            content,
            mode,
            owner,
        };
        self.files.insert(path, file);
        Ok(())
    }

    /// Adds the keys of an object: all, or those that `items` name. `get` finds one of `data`.
    fn select<'d>(
        &mut self,
        data: impl Iterator<Item = (&'d str, &'d [u8])>,
        get: impl Fn(&str) -> Option<&'d [u8]>,
        items: Option<&Vec<KeyToPath>>,
        default_mode: i32,
        kind: &'static str,
        optional: bool,
    ) -> Result<(), VolumeError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, content) in data {
                self.add(key, content, mode(default_mode))?;
            }
            return Ok(());
        };
        for item in items {
            match get(&item.key) {
                Some(content) => {
                    let mode = mode(item.mode.unwrap_or(default_mode));
                    self.add(&item.path, content, mode)?;
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
        Ok(())
    }

    fn namespace(&self) -> &'a str {
        let namespace = self.context.pod.metadata.namespace.as_deref();
        namespace.unwrap_or_default()
    }

    pub(super) fn config_map(
        &mut self,
        name: &str,
        items: Option<&Vec<KeyToPath>>,
        default_mode: i32,
        optional: bool,
    ) -> Result<(), VolumeError> {
        let Some(map) = self.context.objects.config_map(self.namespace(), name) else {
            return missing("configmap", name, optional);
        };
        let text = map.data.iter().flatten();
        let text = text.map(|(key, value)| (key.as_str(), value.as_bytes()));
        let binary = map.binary_data.iter().flatten();
        let binary = binary.map(|(key, value)| (key.as_str(), value.0.as_slice()));
        let get = |key: &str| {
            let binary = map.binary_data.as_ref().and_then(|data| data.get(key));
            let text = || map.data.as_ref().and_then(|data| data.get(key));
            binary
                .map(|value| value.0.as_slice())
                .or_else(|| text().map(String::as_bytes))
        };
        let data = text.chain(binary);
        self.select(data, get, items, default_mode, "config", optional)
    }

    pub(super) fn secret(
        &mut self,
        name: &str,
        items: Option<&Vec<KeyToPath>>,
        default_mode: i32,
        optional: bool,
    ) -> Result<(), VolumeError> {
        let Some(secret) = self.context.objects.secret(self.namespace(), name) else {
            return missing("secret", name, optional);
        };
        let data = secret.data.iter().flatten();
        let data = data.map(|(key, value)| (key.as_str(), value.0.as_slice()));
        let get = |key: &str| {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value.map(|value| value.0.as_slice())
        };
        self.select(data, get, items, default_mode, "secret", optional)
    }

    pub(super) fn downward(
        &mut self,
        items: Option<&Vec<DownwardAPIVolumeFile>>,
        default_mode: i32,
    ) -> Result<(), VolumeError> {
        let context = self.context;
        let values = EnvContext {
            pod: context.pod,
            objects: context.objects,
            pod_ips: context.pod_ips,
            host_ips: context.host_ips,
            allocatable: context.allocatable,
        };
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
            let mode = mode(item.mode.unwrap_or(default_mode));
            self.add(&item.path, content.as_bytes(), mode)?;
        }
        Ok(())
    }

    pub(super) fn projected(&mut self, source: &ProjectedVolumeSource) -> Result<(), VolumeError> {
        let default_mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for projection in source.sources.iter().flatten() {
            if let Some(part) = &projection.config_map {
                let optional = part.optional == Some(true);
                self.config_map(&part.name, part.items.as_ref(), default_mode, optional)?;
            }
            if let Some(part) = &projection.secret {
                let optional = part.optional == Some(true);
                self.secret(&part.name, part.items.as_ref(), default_mode, optional)?;
            }
            if let Some(part) = &projection.downward_api {
                self.downward(part.items.as_ref(), default_mode)?;
            }
            if let Some(part) = &projection.service_account_token {
                self.token(part, default_mode)?;
            }
        }
        Ok(())
    }

    /// A token is nobody else's where it is known whose it is: the pod's user's, or that of its group.
    fn token(
        &mut self,
        part: &ServiceAccountTokenProjection,
        default_mode: i32,
    ) -> Result<(), VolumeError> {
        let context = self.context;
        let source = TokenSource::of(part);
        let Some(token) = context.tokens.get(&source) else {
            return Err(VolumeError::NoToken(source.audience));
        };
        let owner = context.fs_user();
        let mode = match owner.is_some() || context.fs_group().is_some() {
            true => TOKEN_MODE,
            false => mode(default_mode),
        };
        self.add_owned(&part.path, token.as_bytes(), mode, owner)
    }
}

fn missing(kind: &'static str, name: &str, optional: bool) -> Result<(), VolumeError> {
    if optional {
        Ok(())
    } else {
        Err(VolumeError::Missing {
            kind,
            name: name.to_owned(),
        })
    }
}
