//! How many pods the owners of some pods want, of all of them: what shares of them are taken of.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Key};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::deployment;
use crate::scale::{Targets, group};

/// Where owners are looked for.
pub(super) struct Owners {
    pub(super) deployments: Informer<Deployment>,
    pub(super) replica_sets: Informer<ReplicaSet>,
    pub(super) stateful_sets: Informer<StatefulSet>,
    pub(super) replication_controllers: Informer<ReplicationController>,
    /// Of all other kinds, the API server is asked for their scale.
    pub(super) others: Targets,
}

/// What the owners want.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Pods, of all owners.
    pub(super) pods: i32,
    /// Names of pods that nobody owns.
    pub(super) unmanaged: Vec<String>,
}

fn is(metadata: &ObjectMeta, owner: &OwnerReference) -> bool {
    metadata.uid.as_ref() == Some(&owner.uid)
}

/// Kinds of Kubernetes' own were in another group once.
fn is_of_apps(owner: &OwnerReference, kind: &str) -> bool {
    owner.kind == kind && matches!(group(&owner.api_version), Ok("apps" | "extensions"))
}

impl Owners {
    /// What the owners of these pods want; each is asked once, however many of the pods it has. Why that is not known, in
    /// Kubernetes' words.
    pub(super) async fn wanted(
        &self,
        namespace: &str,
        pods: &[Arc<Pod>],
    ) -> Result<Wanted, String> {
        let mut wanted = Wanted::default();
        let mut asked: HashSet<&str> = HashSet::new();
        let mut scales: HashMap<String, i32> = HashMap::new();
        for pod in pods {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let Some(owner) = controller_of(&pod.metadata) else {
                wanted.unmanaged.push(name.to_owned());
                continue;
            };
            if !asked.insert(&owner.uid) {
                continue;
            }
            let scale = match self.known(namespace, owner) {
                Some(scale) => Some(scale),
                None => self.asked(namespace, owner).await?,
            };
            let (uid, replicas) =
                scale.ok_or_else(|| format!("found no controllers for pod {name:?}"))?;
            scales.insert(uid, replicas);
        }
        let sum: i64 = scales.into_values().map(i64::from).sum();
        wanted.pods = i32::try_from(sum).unwrap_or(i32::MAX);
        Ok(wanted)
    }

    /// Who wants how many, of a pod's owner that is in the caches. Of a deployment's replica sets that is the deployment.
    fn known(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let key = Key::new(namespace, &owner.name);
        let replicas = if is_of_apps(owner, "ReplicaSet") {
            let set = self.replica_sets.get(&key);
            let set = set.filter(|set| is(&set.metadata, owner))?;
            if let Some(above) = controller_of(&set.metadata)
                && above.kind == "Deployment"
            {
                if !is_of_apps(above, "Deployment") {
                    return None;
                }
                let deployment = self.deployments.get(&Key::new(namespace, &above.name));
                let deployment = deployment.filter(|found| is(&found.metadata, above))?;
                return Some((above.uid.clone(), deployment::wanted(&deployment)));
            }
            set.spec.as_ref().and_then(|spec| spec.replicas)
        } else if owner.kind == "StatefulSet" && group(&owner.api_version) == Ok("apps") {
            let set = self.stateful_sets.get(&key);
            let set = set.filter(|set| is(&set.metadata, owner))?;
            set.spec.as_ref().and_then(|spec| spec.replicas)
        } else if owner.kind == "ReplicationController" && group(&owner.api_version) == Ok("") {
            let controller = self.replication_controllers.get(&key);
            let controller = controller.filter(|found| is(&found.metadata, owner))?;
            controller.spec.as_ref().and_then(|spec| spec.replicas)
        } else {
            return None;
        };
        Some((owner.uid.clone(), replicas.unwrap_or(1)))
    }

    /// The same of any other owner: none of one that is gone.
    async fn asked(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, String> {
        let target = CrossVersionObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
        };
        let found = self.others.look_up(namespace, &target).await?;
        let found = found.filter(|found| found.uid() == Some(&*owner.uid));
        Ok(found.map(|found| (owner.uid.clone(), found.replicas())))
    }
}
