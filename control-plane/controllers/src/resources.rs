//! Every kind of object the API server has, found by discovery: for controllers that work on all of them.

use std::collections::HashMap;
use std::sync::Arc;

use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::discovery::{ApiCapabilities, ApiGroup, Discovery, Scope, verbs};

/// A kind of object, by one of its versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) operations: Vec<String>,
    /// Whether its objects have a scale.
    pub(crate) has_scale: bool,
}

impl Resource {
    fn new(api: ApiResource, capabilities: ApiCapabilities) -> Self {
        let mut subresources = capabilities.subresources.iter();
        Self {
            has_scale: subresources.any(|(subresource, _)| subresource.plural == "scale"),
            api,
            namespaced: capabilities.scope == Scope::Namespaced,
            operations: capabilities.operations,
        }
    }

    pub(crate) fn can(&self, verb: &str) -> bool {
        self.operations.iter().any(|operation| operation == verb)
    }

    /// `pods`, `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.api.group.is_empty() {
            self.api.plural.clone()
        } else {
            format!("{}.{}", self.api.plural, self.api.group)
        }
    }

    /// Requests for objects of the kind; an empty namespace means all, or none.
    pub(crate) fn objects(&self, client: &kube::Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.api)
        } else {
            Api::all_with(client.clone(), &self.api)
        }
    }
}

/// What the API server has, as discovery says.
pub(crate) struct Served {
    /// All kinds whose objects can be listed and deleted, each by the version that its group prefers; one that is not in that
    /// by the most stable of its own.
    pub(crate) deletable: Vec<Arc<Resource>>,
    /// All kinds, in each of their versions.
    pub(crate) by_kind: ByKind,
}

/// Kinds by `apiVersion` and `kind`, as owner references name them.
pub(crate) type ByKind = HashMap<(String, String), Arc<Resource>>;

impl Served {
    /// Asks the API server.
    pub(crate) async fn discover(client: &kube::Client) -> kube::Result<Self> {
        let discovery = Discovery::new(client.clone()).run_aggregated().await?;
        let mut served = Self {
            deletable: Vec::new(),
            by_kind: ByKind::new(),
        };
        for group in discovery.groups_alphabetical() {
            for (api, capabilities) in of_group(group) {
                let resource = Resource::new(api, capabilities);
                if resource.can(verbs::LIST) && resource.can(verbs::DELETE) {
                    served.deletable.push(Arc::new(resource));
                }
            }
            for version in group.versions() {
                for (api, capabilities) in group.versioned_resources(version) {
                    let key = (api.api_version.clone(), api.kind.clone());
                    let resource = Arc::new(Resource::new(api, capabilities));
                    served.by_kind.insert(key, resource);
                }
            }
        }
        Ok(served)
    }
}

fn of_group(group: &ApiGroup) -> Vec<(ApiResource, ApiCapabilities)> {
    let mut all = group.recommended_resources();
    for (api, capabilities) in group.resources_by_stability() {
        if !all.iter().any(|(known, _)| known.kind == api.kind) {
            all.push((api, capabilities));
        }
    }
    all
}

/// All kinds whose objects can be listed and deleted.
pub(crate) async fn deletable(client: &kube::Client) -> kube::Result<Vec<Arc<Resource>>> {
    Ok(Served::discover(client).await?.deletable)
}
