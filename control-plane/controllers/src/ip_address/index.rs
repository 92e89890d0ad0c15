//! How the cache of addresses finds those of a service.

use gantry_informer::Key;
use k8s_openapi::api::networking::v1::IPAddress;

pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "ipallocator.k8s.io";
/// Index of addresses: the service that has them.
pub(crate) const OF_PARENT: &str = "parent";

/// The service that an address was given to.
pub(super) fn parent(address: &IPAddress) -> Option<Key> {
    let labels = address.metadata.labels.as_ref()?;
    let parent = &address.spec.parent_ref;
    let given = labels.get(MANAGED_BY)? == MANAGER && parent.resource == "services";
    let namespace = parent.namespace.as_deref().unwrap_or_default();
    given.then(|| Key::new(namespace, &parent.name))
}

pub(crate) fn of_parent(address: &IPAddress) -> Vec<String> {
    let parent = parent(address);
    parent.map(|key| key.to_string()).into_iter().collect()
}
