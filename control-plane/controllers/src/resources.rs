//! Every kind of object the API server has, found by discovery: for controllers that work on all of them.

use std::collections::HashMap;
use std::sync::Arc;

use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

/// A kind of object, by its preferred version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) operations: Vec<String>,
}

impl Resource {
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

/// All kinds whose objects can be listed and deleted.
pub(crate) async fn deletable(client: &kube::Client) -> kube::Result<Vec<Arc<Resource>>> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let mut resources = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (api, capabilities) in group.recommended_resources() {
            let resource = Resource {
                api,
                namespaced: capabilities.scope == Scope::Namespaced,
                operations: capabilities.operations,
            };
            if resource.can(verbs::LIST) && resource.can(verbs::DELETE) {
                resources.push(Arc::new(resource));
            }
        }
    }
    Ok(resources)
}

/// The kinds by group and kind, as owner references name them.
pub(crate) type ByKind = HashMap<(String, String), Arc<Resource>>;

pub(crate) fn by_kind(resources: &[Arc<Resource>]) -> ByKind {
    resources
        .iter()
        .map(|resource| {
            let key = (resource.api.group.clone(), resource.api.kind.clone());
            (key, resource.clone())
        })
        .collect()
}
