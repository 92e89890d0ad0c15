//! The one registry: every kind the server serves, found by group, version and plural name.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_api::kind::{ResourceInfo, ResourceKind};
use gantry_store::{Key, Table};

use crate::request::ResourcePath;

/// A kind and where its objects are stored.
pub(crate) struct Resource {
    pub(crate) kind: Box<dyn ResourceKind>,
    pub(crate) table: Table,
}

impl Resource {
    pub(crate) fn info(&self) -> &ResourceInfo {
        self.kind.info()
    }

    /// The key of an object; the namespace of a cluster-scoped one is empty.
    pub(crate) fn key(&self, namespace: Option<&str>, name: &str) -> Key {
        Key {
            table: self.table.clone(),
            namespace: namespace.unwrap_or_default().into(),
            name: name.into(),
        }
    }
}

/// The table of a resource: `core/pods`, `apps/deployments`.
pub(crate) fn table(group: &str, plural: &str) -> Table {
    let group = if group.is_empty() { "core" } else { group };
    Table(format!("{group}/{plural}").into())
}

/// All resources.
pub(crate) struct Registry {
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    all: Vec<Arc<Resource>>,
}

impl Registry {
    pub(crate) fn new(kinds: Vec<Box<dyn ResourceKind>>) -> Self {
        let all: Vec<Arc<Resource>> = kinds
            .into_iter()
            .map(|kind| {
                let info = kind.info();
                let table = table(info.group, info.plural);
                Arc::new(Resource { kind, table })
            })
            .collect();
        let by_path = all
            .iter()
            .map(|resource| {
                let info = resource.info();
                let path = (
                    info.group.to_owned(),
                    info.version.to_owned(),
                    info.plural.to_owned(),
                );
                (path, resource.clone())
            })
            .collect();
        Self { by_path, all }
    }

    pub(crate) fn find(&self, path: &ResourcePath) -> Option<&Arc<Resource>> {
        self.get(&path.group, &path.version, &path.resource)
    }

    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.all
    }

    /// Whether anything is served under a group and version.
    pub(crate) fn serves(&self, group: &str, version: &str) -> bool {
        self.all
            .iter()
            .any(|resource| resource.info().group == group && resource.info().version == version)
    }
}
