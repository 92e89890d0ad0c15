//! Facts about types that their JSON schemas do not carry: how lists merge, which scalars are pointers in Go (so that a
//! zero is kept), what Go writes for what was never set, defaults and unions. For every type of Kubernetes' API, served or
//! not: the tables beside this file are written by `generate.py`.
//!
//! A line of a table is a type and its fields, `core.v1.Pod metadata spec status`: types without `io.k8s.api.` and
//! `io.k8s.apimachinery.pkg.apis.`.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Absent, Merge};

/// How lists and maps merge: `field:list-type:map-keys:strategy:merge-key`, where `-` is absent and keys and strategies are
/// joined by `+`.
const LISTS: &str = include_str!("lists.txt");
/// Scalars that are pointers in Go: their zero value is written, not left out.
const POINTERS: &str = include_str!("pointers.txt");
/// Structs held by value: written as `{}` (with what they always have) when nothing was set.
const STRUCTS: &str = include_str!("structs.txt");
/// Times held by value, and lists, maps and pointers without `omitempty`: written as `null` when not set.
const NULLS: &str = include_str!("nulls.txt");
/// Scalars written when they are zero, though OpenAPI does not require them.
const ZEROS: &str = include_str!("zeros.txt");
/// Scalars left out when they are zero, though OpenAPI requires them.
const OMITTED: &str = include_str!("omitted.txt");
/// What OpenAPI requires of types that have metadata, where the generated types require the metadata alone.
const REQUIRED: &str = include_str!("required.txt");
/// `x-kubernetes-map-type` of types.
const TYPES: &str = include_str!("types.txt");
/// `type field value`: defaults in JSON.
const DEFAULTS: &str = include_str!("defaults.txt");
/// `type value`: `x-kubernetes-unions` in JSON.
const UNIONS: &str = include_str!("unions.txt");
/// `package group`: the API groups of Go's packages.
const GROUPS: &str = include_str!("groups.txt");

/// A field of a type.
type Key = (&'static str, &'static str);

pub(super) static FACTS: LazyLock<Facts> = LazyLock::new(Facts::parse);

/// The tables, by short type name and field.
pub(super) struct Facts {
    pub(super) merges: HashMap<Key, Merge>,
    pub(super) pointers: HashMap<Key, ()>,
    pub(super) absent: HashMap<Key, Absent>,
    pub(super) omitted: HashMap<Key, ()>,
    pub(super) defaults: HashMap<Key, &'static str>,
    pub(super) required: HashMap<&'static str, Vec<&'static str>>,
    pub(super) map_types: HashMap<&'static str, &'static str>,
    pub(super) unions: HashMap<&'static str, &'static str>,
    pub(super) groups: HashMap<&'static str, &'static str>,
}

/// The first word of each line, and the rest.
fn lines(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    table.lines().filter_map(|line| line.split_once(' '))
}

/// The fields of all types.
fn words(table: &'static str) -> impl Iterator<Item = Key> {
    lines(table).flat_map(|(name, fields)| fields.split(' ').map(move |field| (name, field)))
}

fn merge(row: &'static str) -> Option<(&'static str, Merge)> {
    let mut columns = row
        .split(':')
        .map(|column| Some(column).filter(|column| *column != "-"));
    let field = columns.next()??;
    let list_type = columns.next()?;
    let map_keys = columns
        .next()?
        .map(|keys| keys.split('+').collect())
        .unwrap_or_default();
    let strategy = columns.next()?.unwrap_or_default();
    let key = columns.next()?;
    let has = |word| strategy.split('+').any(|one| one == word);
    let merge = Merge {
        merge: has("merge"),
        replace: has("replace"),
        retain_keys: has("retainKeys"),
        key,
        list_type,
        map_keys,
    };
    Some((field, merge))
}

impl Facts {
    fn parse() -> Self {
        let merges = words(LISTS).filter_map(|(name, row)| {
            let (field, merge) = merge(row)?;
            Some(((name, field), merge))
        });
        let absent = words(STRUCTS)
            .map(|key| (key, Absent::Struct))
            .chain(words(NULLS).map(|key| (key, Absent::Null)))
            .chain(words(ZEROS).map(|key| (key, Absent::Zero)));
        let defaults = lines(DEFAULTS).filter_map(|(name, rest)| {
            let (field, value) = rest.split_once(' ')?;
            Some(((name, field), value))
        });
        let groups = lines(GROUPS).map(|(package, group)| match group {
            "-" => (package, ""),
            group => (package, group),
        });
        Self {
            merges: merges.collect(),
            pointers: words(POINTERS).map(|key| (key, ())).collect(),
            absent: absent.collect(),
            omitted: words(OMITTED).map(|key| (key, ())).collect(),
            defaults: defaults.collect(),
            required: lines(REQUIRED)
                .map(|(name, fields)| (name, fields.split(' ').collect()))
                .collect(),
            map_types: lines(TYPES).collect(),
            unions: lines(UNIONS).collect(),
            groups: groups.collect(),
        }
    }
}

/// Whether Kubernetes has a kind of objects of that name, served or not: those have metadata.
pub(super) fn is_kind(group: &str, version: &str, kind: &str) -> bool {
    let facts: &Facts = &FACTS;
    let packages = facts.groups.iter().filter(|(_, known)| **known == group);
    // What the metadata itself is made of is in every group.
    let mut packages = packages.filter(|(package, _)| **package != "meta");
    packages.any(|(package, _)| {
        let name = format!("{package}.{version}.{kind}");
        facts.absent.contains_key(&(name.as_str(), "metadata"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_group_and_version() {
        for (group, version, kind, known) in [
            ("", "v1", "Secret", true),
            ("apps", "v1", "StatefulSet", true),
            ("events.k8s.io", "v1", "Event", true),
            ("", "v2", "Secret", false),
            ("", "v1", "Deployment", false),
            ("", "v1", "PartialObjectMetadata", false),
            ("made.up", "v1", "Secret", false),
            ("", "v1", "Made Up", false),
        ] {
            assert_eq!(
                is_kind(group, version, kind),
                known,
                "{group} {version} {kind}"
            );
        }
    }

    #[test]
    fn every_line_is_understood() {
        let facts = &*FACTS;
        assert_eq!(facts.merges.len(), words(LISTS).count());
        let joined = [STRUCTS, NULLS, ZEROS].map(|table| words(table).count());
        assert_eq!(facts.absent.len(), joined.iter().sum::<usize>());
        assert_eq!(facts.defaults.len(), DEFAULTS.lines().count());
        for ((name, field), value) in &facts.defaults {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(value);
            assert!(parsed.is_ok(), "{name}.{field}");
        }
        for (name, value) in &facts.unions {
            let parsed: Result<Vec<serde_json::Value>, _> = serde_json::from_str(value);
            assert!(parsed.is_ok(), "{name}");
        }
    }

    #[test]
    fn kinds_that_nothing_serves_yet_have_theirs() {
        let merge = |name, field| FACTS.merges.get(&(name, field)).cloned();
        let hpa = merge("autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions");
        assert_eq!(hpa.and_then(|merge| merge.key), Some("type"));
        let budget = merge("policy.v1.PodDisruptionBudgetSpec", "selector");
        assert!(budget.is_some_and(|merge| merge.replace && !merge.merge));
        let absent = |name, field| FACTS.absent.get(&(name, field)).copied();
        assert_eq!(absent("rbac.v1.Role", "rules"), Some(Absent::Null));
        assert_eq!(absent("rbac.v1.RoleRef", "apiGroup"), Some(Absent::Zero));
        assert_eq!(absent("batch.v1.Job", "status"), Some(Absent::Struct));
        assert!(
            FACTS
                .pointers
                .contains_key(&("batch.v1.JobSpec", "suspend"))
        );
        assert_eq!(FACTS.groups.get("rbac"), Some(&"rbac.authorization.k8s.io"));
        assert_eq!(FACTS.groups.get("core"), Some(&""));
    }
}
