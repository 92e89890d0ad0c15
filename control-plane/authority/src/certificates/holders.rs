//! Whose certificates are: administrators', people's and nodes', beside servers'.

use gantry_store::{Key, Table};

/// What administrators' certificates say.
pub(super) const ADMINISTRATOR: (&str, &str) = ("kubernetes-admin", "system:masters");
/// Where a person's certificate is noted to be: what no server is called.
pub(super) const PERSON: &str = "(person)";

/// Where the Node object of a name is.
pub(super) fn node_key(name: &str) -> Key {
    Key {
        table: Table("core/nodes".into()),
        namespace: "".into(),
        name: name.into(),
    }
}
