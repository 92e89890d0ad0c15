//! One table at one revision.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::types::{Entry, Revision};

/// Namespace, then name.
pub(crate) type RowKey = (Arc<str>, Arc<str>);
pub(crate) type Rows = OrdMap<RowKey, Arc<Entry>>;

/// A table as it was at one revision; taking and cloning one is O(1), and later writes do not change it.
#[derive(Clone, Debug, Default)]
pub struct TableSnapshot {
    pub(crate) revision: Revision,
    pub(crate) rows: Rows,
}

impl TableSnapshot {
    /// The store's revision when the snapshot was taken.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many objects it holds.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One object; the namespace is empty for cluster-scoped ones.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Entry>> {
        self.rows.get(&(Arc::from(namespace), Arc::from(name)))
    }

    /// All objects, ordered by namespace, then name.
    pub fn iter(&self) -> impl Iterator<Item = (&RowKey, &Arc<Entry>)> {
        self.rows.iter()
    }

    /// What makes an earlier snapshot of the same table this one: objects as they are now, and `None` for those that are
    /// gone. O(log objects) for each change, since what did not change is shared and not looked at.
    pub fn changes_since<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = (&'a RowKey, Option<&'a Arc<Entry>>)> {
        earlier.rows.diff(&self.rows).map(|change| match change {
            DiffItem::Add(key, entry)
            | DiffItem::Update {
                new: (key, entry), ..
            } => (key, Some(entry)),
            DiffItem::Remove(key, _) => (key, None),
        })
    }

    /// The objects of one namespace, ordered by name.
    pub fn range_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a RowKey, &'a Arc<Entry>)> {
        self.range_after(Some(namespace), None)
    }

    /// The objects strictly after `cursor` (namespace, name), of one namespace or of all: the next page of a list.
    pub fn range_after<'a>(
        &'a self,
        namespace: Option<&'a str>,
        cursor: Option<(&str, &str)>,
    ) -> impl Iterator<Item = (&'a RowKey, &'a Arc<Entry>)> {
        let first: RowKey = (Arc::from(namespace.unwrap_or("")), Arc::from(""));
        let start = match cursor.map(|(space, name)| (Arc::from(space), Arc::from(name))) {
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        self.rows
            .range((start, Bound::Unbounded))
            .take_while(move |(key, _)| namespace.is_none_or(|wanted| *key.0 == *wanted))
    }
}
