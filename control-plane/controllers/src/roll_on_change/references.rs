//! The ConfigMaps and Secrets that pods name: where their environments and volumes come from.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};

/// So many are followed; a template that names more is not.
pub(super) const MOST: usize = 64;

/// The kinds that configuration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    ConfigMap,
    Secret,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

/// An object of the workload's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    pub(super) source: Source,
    pub(super) name: String,
}

impl fmt::Display for Named {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.source, self.name)
    }
}

/// What a pod of that spec names, each once, and whether it starts without it.
pub(super) fn named(spec: &PodSpec) -> BTreeMap<Named, bool> {
    let mut all = BTreeMap::new();
    let mut note = |source, name: &str, is_optional: Option<bool>| {
        if name.is_empty() {
            return;
        }
        let name = name.to_owned();
        let known = all.entry(Named { source, name }).or_insert(true);
        *known &= is_optional == Some(true);
    };
    let containers = spec.containers.iter();
    for container in containers.chain(spec.init_containers.iter().flatten()) {
        of_environment(container, &mut note);
    }
    for volume in spec.volumes.iter().flatten() {
        of_volume(volume, &mut note);
    }
    all
}

fn of_environment(container: &Container, note: &mut impl FnMut(Source, &str, Option<bool>)) {
    for from in container.env_from.iter().flatten() {
        if let Some(map) = &from.config_map_ref {
            note(Source::ConfigMap, &map.name, map.optional);
        }
        if let Some(secret) = &from.secret_ref {
            note(Source::Secret, &secret.name, secret.optional);
        }
    }
    let values = container.env.iter().flatten();
    for from in values.filter_map(|value| value.value_from.as_ref()) {
        if let Some(map) = &from.config_map_key_ref {
            note(Source::ConfigMap, &map.name, map.optional);
        }
        if let Some(secret) = &from.secret_key_ref {
            note(Source::Secret, &secret.name, secret.optional);
        }
    }
}

fn of_volume(volume: &Volume, note: &mut impl FnMut(Source, &str, Option<bool>)) {
    if let Some(map) = &volume.config_map {
        note(Source::ConfigMap, &map.name, map.optional);
    }
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        note(Source::Secret, name, secret.optional);
    }
    let projected = volume.projected.iter();
    for source in projected.flat_map(|projected| projected.sources.iter().flatten()) {
        if let Some(map) = &source.config_map {
            note(Source::ConfigMap, &map.name, map.optional);
        }
        if let Some(secret) = &source.secret {
            note(Source::Secret, &secret.name, secret.optional);
        }
    }
}
