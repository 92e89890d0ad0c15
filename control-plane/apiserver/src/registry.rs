//! The registry: every kind the server serves, found by group, version and plural name.
//!
//! A registry never changes: [`Registry::with`] and [`Registry::without`] make the next one, which takes the place of the
//! former. A request keeps the one that it began with, and all that is derived from it, until it is answered.

pub(crate) mod subresource;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use gantry_api::kind::{ResourceInfo, ResourceKind};
use gantry_api::status::StatusError;
use gantry_store::{Key, Table};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::subresource::Subresource;
use crate::tables::table;

/// What clients may do with the objects of a resource.
const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// As [`VERBS`], of Namespaces: they are too much to lose in one request.
const VERBS_OF_NAMESPACES: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
const VERBS_OF_VIRTUAL: &[&str] = &["create"];
const VERBS_OF_MEASURED: &[&str] = &["get", "list"];

/// Where the objects of a resource are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the store.
    Stored,
    /// Nowhere: requests are answered, and that is all.
    Answered,
    /// Nowhere: they are made of what nodes say that they use, when somebody reads them.
    Measured,
}

/// The versions of the objects of one table.
struct Versions {
    /// The first is the hub, which the others are converted by; bytes that do not say their version are of it.
    kinds: Vec<Arc<dyn ResourceKind>>,
    /// Which of them new bytes are of.
    stored: usize,
}

impl Versions {
    fn hub(&self) -> Option<&Arc<dyn ResourceKind>> {
        self.kinds.first()
    }

    fn stored(&self) -> Option<&Arc<dyn ResourceKind>> {
        self.kinds.get(self.stored)
    }
}

/// A kind in one version: what is served under one group, version and plural name.
pub(crate) struct Resource {
    pub(crate) kind: Arc<dyn ResourceKind>,
    /// Where its objects are.
    pub(crate) table: Table,
    versions: Arc<Versions>,
    subresources: Vec<Subresource>,
    source: Source,
}

impl Resource {
    pub(crate) fn info(&self) -> &ResourceInfo {
        self.kind.info()
    }

    /// Names of its objects where they are kept, which those of several versions share: what is missing, is there already or
    /// conflicts is told of by these.
    pub(crate) fn stored_info(&self) -> &ResourceInfo {
        self.versions.hub().unwrap_or(&self.kind).info()
    }

    /// The key of an object; the namespace of a cluster-scoped one is empty.
    pub(crate) fn key(&self, namespace: Option<&str>, name: &str) -> Key {
        Key {
            table: self.table.clone(),
            namespace: namespace.unwrap_or_default().into(),
            name: name.into(),
        }
    }

    /// What clients may do with it, sorted.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match (self.source, self.info().group_kind()) {
            (Source::Answered, _) => VERBS_OF_VIRTUAL,
            (Source::Measured, _) => VERBS_OF_MEASURED,
            (Source::Stored, ("", "Namespace")) => VERBS_OF_NAMESPACES,
            (Source::Stored, _) => VERBS,
        }
    }

    /// Where its objects are.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Whether it is answered and never stored.
    pub(crate) fn is_virtual(&self) -> bool {
        self.source != Source::Stored
    }

    /// Its subresources, sorted by name.
    pub(crate) fn subresources(&self) -> &[Subresource] {
        &self.subresources
    }

    /// The subresource that a path names; some have paths of their own behind them.
    pub(crate) fn subresource(&self, path: &str) -> Option<&Subresource> {
        let (name, behind) = path.split_once('/').unwrap_or((path, ""));
        let has = |one: &&Subresource| one.name == name && (one.any_path || behind.is_empty());
        self.subresources.iter().find(has)
    }

    /// Whether it is the version that the others are converted by, whose fields selectors look at.
    pub(crate) fn is_hub(&self) -> bool {
        let hub = self.versions.hub();
        hub.is_none_or(|hub| Arc::ptr_eq(hub, &self.kind))
    }

    /// Whether new bytes are in this very version.
    pub(crate) fn is_stored(&self) -> bool {
        let stored = self.versions.stored();
        stored.is_none_or(|stored| Arc::ptr_eq(stored, &self.kind))
    }

    /// The version that new bytes must name, where they are not the hub's.
    pub(crate) fn mark(&self) -> Option<String> {
        let stored = self.versions.stored().filter(|_| self.versions.stored > 0);
        stored.map(|stored| stored.info().api_version())
    }

    /// The kind that new bytes are of.
    pub(crate) fn storage_kind(&self) -> &dyn ResourceKind {
        self.versions.stored().unwrap_or(&self.kind).as_ref()
    }

    fn to_hub(&self, object: Value) -> Result<Value, StatusError> {
        match self.versions.hub() {
            Some(hub) if !Arc::ptr_eq(hub, &self.kind) => self.kind.convert_to_hub(object),
            _ => Ok(object),
        }
    }

    /// An object of this version as it is stored.
    pub(crate) fn to_stored(&self, object: Value) -> Result<Value, StatusError> {
        let object = self.to_hub(object)?;
        match self.versions.stored() {
            Some(stored) if self.versions.stored > 0 => stored.convert_from_hub(object),
            _ => Ok(object),
        }
    }

    /// What was stored, in this version. `apiVersion` says in which version it was; without, it was the hub's.
    pub(crate) fn convert_stored(&self, mut object: Value) -> Result<Value, StatusError> {
        let Some(hub) = self.versions.hub() else {
            return Ok(object);
        };
        let found = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let of = |kind: &&Arc<dyn ResourceKind>| kind.info().api_version() == found;
        let stored = match found.is_empty() {
            true => hub,
            false => self.versions.kinds.iter().find(of).ok_or_else(|| {
                StatusError::internal(format!(
                    "a stored {} is in version \"{found}\", which is not served any more",
                    self.info().kind
                ))
            })?,
        };
        if Arc::ptr_eq(stored, &self.kind) {
            return Ok(object);
        }
        if let Some(object) = object.as_object_mut() {
            let info = stored.info();
            object.insert("apiVersion".to_owned(), json!(info.api_version()));
            object.insert("kind".to_owned(), json!(info.kind));
        }
        if !Arc::ptr_eq(stored, hub) {
            object = stored.convert_to_hub(object)?;
        }
        match Arc::ptr_eq(hub, &self.kind) {
            true => Ok(object),
            false => self.kind.convert_from_hub(object),
        }
    }

    /// What field selectors of any version may look at, by the hub's labels.
    pub(crate) fn selectable_fields(&self, object: &Value) -> Vec<(String, String)> {
        match self.versions.hub() {
            Some(hub) if !Arc::ptr_eq(hub, &self.kind) => self
                .kind
                .convert_to_hub(object.clone())
                .map(|object| hub.selectable_fields(&object))
                .unwrap_or_default(),
            _ => self.kind.selectable_fields(object),
        }
    }
}

/// What a registry is made of.
#[derive(Clone)]
struct Entry {
    kind: Arc<dyn ResourceKind>,
    source: Source,
}

impl Entry {
    fn is(&self, group: &str, version: &str, plural: &str) -> bool {
        let info = self.kind.info();
        (&*info.group, &*info.version, &*info.plural) == (group, version, plural)
    }
}

/// Tells which subresources a kind has, sorted by name.
pub(crate) type Describe = fn(&ResourceInfo) -> Vec<Subresource>;

/// A group whose requests are not about kinds of objects.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// The preferred one first.
    pub(crate) versions: &'static [&'static str],
}

/// All resources.
pub(crate) struct Registry {
    entries: Vec<Entry>,
    groups: Vec<Group>,
    describe: Describe,
    /// By group and version, then by plural name.
    by_version: HashMap<String, HashMap<String, Arc<Resource>>>,
    all: Vec<Arc<Resource>>,
    /// What others have made of it, by type.
    derived: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

fn entries(kinds: Vec<Box<dyn ResourceKind>>, source: Source) -> impl Iterator<Item = Entry> {
    kinds.into_iter().map(move |kind| Entry {
        kind: Arc::from(kind),
        source,
    })
}

fn group_version(group: &str, version: &str) -> String {
    format!("{group}/{version}")
}

impl Registry {
    /// A registry of kinds whose objects are stored, and of others that are answered only.
    pub(crate) fn new(
        kinds: Vec<Box<dyn ResourceKind>>,
        virtuals: Vec<Box<dyn ResourceKind>>,
        describe: Describe,
    ) -> Self {
        let kinds = entries(kinds, Source::Stored);
        let virtuals = entries(virtuals, Source::Answered);
        Self::of(kinds.chain(virtuals).collect(), Vec::new(), describe)
    }

    /// The next registry, which serves some kinds more, of which nothing is stored and that are measured.
    pub(crate) fn with_measured(&self, kinds: Vec<Box<dyn ResourceKind>>) -> Self {
        let known = self.entries.iter().cloned();
        let measured = entries(kinds, Source::Measured);
        Self::of(
            known.chain(measured).collect(),
            self.groups.clone(),
            self.describe,
        )
    }

    /// The next registry, which serves one more group without kinds.
    pub(crate) fn with_group(&self, group: Group) -> Self {
        let mut groups = self.groups.clone();
        groups.push(group);
        Self::of(self.entries.clone(), groups, self.describe)
    }

    fn of(entries: Vec<Entry>, groups: Vec<Group>, describe: Describe) -> Self {
        let mut tables: HashMap<Table, Vec<Arc<dyn ResourceKind>>> = HashMap::new();
        let table_of = |entry: &Entry| {
            let (group, plural) = entry.kind.table();
            table(group, plural)
        };
        for entry in &entries {
            let kinds = tables.entry(table_of(entry)).or_default();
            kinds.push(entry.kind.clone());
        }
        let tables: HashMap<Table, Arc<Versions>> = tables
            .into_iter()
            .map(|(table, kinds)| {
                let stored = kinds.iter().position(|kind| kind.is_storage_version());
                let stored = stored.unwrap_or_default();
                (table, Arc::new(Versions { kinds, stored }))
            })
            .collect();
        let all: Vec<Arc<Resource>> = entries
            .iter()
            .filter_map(|entry| {
                let table = table_of(entry);
                let versions = tables.get(&table)?.clone();
                Some(Arc::new(Resource {
                    subresources: describe(entry.kind.info()),
                    kind: entry.kind.clone(),
                    table,
                    versions,
                    source: entry.source,
                }))
            })
            .collect();
        let mut by_version: HashMap<String, HashMap<String, Arc<Resource>>> = HashMap::new();
        for resource in &all {
            let info = resource.info();
            let version = group_version(&info.group, &info.version);
            let resources = by_version.entry(version).or_default();
            resources.insert(info.plural.to_string(), resource.clone());
        }
        Self {
            entries,
            groups,
            describe,
            by_version,
            all,
            derived: Mutex::default(),
        }
    }

    /// The next registry, which serves one more kind, or another one in the place of that with the same names.
    pub(crate) fn with(&self, kind: &Arc<dyn ResourceKind>) -> Self {
        let info = kind.info();
        let mut entries = self.entries.clone();
        let (group, version, plural) = (&info.group, &info.version, &info.plural);
        let place = entries
            .iter()
            .position(|entry| entry.is(group, version, plural));
        let entry = Entry {
            kind: kind.clone(),
            source: Source::Stored,
        };
        match place.and_then(|place| entries.get_mut(place)) {
            Some(former) => *former = entry,
            None => entries.push(entry),
        }
        Self::of(entries, self.groups.clone(), self.describe)
    }

    /// The next registry, which serves a kind no longer.
    pub(crate) fn without(&self, group: &str, version: &str, plural: &str) -> Self {
        let mut entries = self.entries.clone();
        entries.retain(|entry| !entry.is(group, version, plural));
        Self::of(entries, self.groups.clone(), self.describe)
    }

    /// The `T` of this registry: empty when somebody asks for it first, and gone with the registry.
    pub(crate) fn derived<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut derived = self.derived.lock();
        let one = derived.entry(TypeId::of::<T>());
        let one = one.or_insert_with(|| Arc::new(T::default())).clone();
        // It is one of these by its key.
        one.downcast().unwrap_or_default()
    }

    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_version
            .get(&group_version(group, version))?
            .get(plural)
    }

    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.all
    }

    /// The groups without kinds.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether anything is served under a group and version.
    pub(crate) fn serves(&self, group: &str, version: &str) -> bool {
        let is_named = |known: &Group| known.name == group && known.versions.contains(&version);
        self.groups.iter().any(is_named)
            || self.by_version.contains_key(&group_version(group, version))
    }

    /// Whether anything is served under a group, in whichever version.
    pub(crate) fn has_group(&self, group: &str) -> bool {
        let is_named = self.groups.iter().any(|known| known.name == group);
        is_named
            || self
                .all()
                .iter()
                .any(|resource| resource.info().group == group)
    }
}

#[cfg(test)]
mod tests;
