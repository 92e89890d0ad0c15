//! References to other objects by group, kind and name.

use crate::field::{ErrorList, Path};
use crate::names;

/// Refuses a reference without kind or name, and names that could not be part of a path.
pub(super) fn check_local(
    group: Option<&str>,
    kind: &str,
    name: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Some(group) = group {
        let details = names::dns1123_subdomain(group);
        errors.invalid_each(&path.child("apiGroup"), group, details);
    }
    for (field, value) in [("kind", kind), ("name", name)] {
        let path = path.child(field);
        match value {
            "" => errors.required(&path, &format!("{field} is required")),
            value => check_segment(value, &path, errors),
        }
    }
}

/// Refuses a name that could not be one segment of a path.
pub(super) fn check_segment(name: &str, path: &Path, errors: &mut ErrorList) {
    errors.invalid_each(path, name, names::path_segment(name));
}
