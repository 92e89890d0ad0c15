//! Where objects are in the store: the names of tables and keys.

use gantry_store::{Key, Table};

/// The table of a resource: `core/pods`, `apps/deployments`.
pub(crate) fn table(group: &str, plural: &str) -> Table {
    let group = if group.is_empty() { "core" } else { group };
    Table(format!("{group}/{plural}").into())
}

/// The key of a namespace's own object.
pub(crate) fn namespace_key(namespace: &str) -> Key {
    Key {
        table: table("", "namespaces"),
        namespace: "".into(),
        name: namespace.into(),
    }
}
