//! What ReplicaSets and ReplicationControllers are both: a number of equal pods that is kept. What is done for either is the
//! same, and nothing but this module knows which it is done for; they differ in how they say what is wanted, and in how they
//! tell what there is.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use k8s_openapi::serde::Serialize;
use kube::Resource;

use crate::context::Context;
use crate::selecting::{Selecting, Selects, Wanted};

/// A number of equal pods.
pub(crate) trait Replicas:
    Selects + Serialize + Resource<DynamicType = (), Scope = NamespaceResourceScope>
{
    /// Whose its events are.
    const COMPONENT: &'static str;
    /// The queue of those to look at, in metrics and logs.
    const QUEUE: &'static str;

    /// Those that there are.
    fn known(context: &Context) -> &Selecting<Self>;

    /// `spec.replicas`.
    fn replicas(&self) -> Option<i32>;

    /// `spec.minReadySeconds`.
    fn min_ready_seconds(&self) -> Option<i32>;

    /// `spec.template`.
    fn template(&self) -> Option<&PodTemplateSpec>;

    /// The status, as a ReplicaSet's.
    fn status(&self) -> Option<ReplicaSetStatus>;

    /// Tells of what there is, as far as this kind does.
    fn set_status(&mut self, status: ReplicaSetStatus);
}

impl Selects for ReplicaSet {
    fn wanted(&self) -> Option<Wanted<'_>> {
        let spec = self.spec.as_ref()?;
        Some(Wanted::Selector(&spec.selector))
    }
}

impl Replicas for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";
    const QUEUE: &'static str = "replicaset";

    fn known(context: &Context) -> &Selecting<Self> {
        &context.replica_sets
    }

    fn replicas(&self) -> Option<i32> {
        self.spec.as_ref()?.replicas
    }

    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }

    fn set_status(&mut self, status: ReplicaSetStatus) {
        self.status = Some(status);
    }
}

impl Selects for ReplicationController {
    fn wanted(&self) -> Option<Wanted<'_>> {
        let labels = self.spec.as_ref()?.selector.as_ref()?;
        Some(Wanted::Labels(labels)).filter(|_| !labels.is_empty())
    }
}

impl Replicas for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";
    const QUEUE: &'static str = "replicationmanager";

    fn known(context: &Context) -> &Selecting<Self> {
        &context.replication_controllers
    }

    fn replicas(&self) -> Option<i32> {
        self.spec.as_ref()?.replicas
    }

    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let conditions = status.conditions.map(|all| {
            let all = all.into_iter().map(|told| ReplicaSetCondition {
                type_: told.type_,
                status: told.status,
                reason: told.reason,
                message: told.message,
                last_transition_time: told.last_transition_time,
            });
            all.collect()
        });
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions,
        })
    }

    fn set_status(&mut self, status: ReplicaSetStatus) {
        let conditions = status.conditions.map(|all| {
            let all = all.into_iter().map(|told| ReplicationControllerCondition {
                type_: told.type_,
                status: told.status,
                reason: told.reason,
                message: told.message,
                last_transition_time: told.last_transition_time,
            });
            all.collect()
        });
        self.status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replication_controller_tells_all_but_who_is_going() {
        let told = ReplicaSetStatus {
            replicas: 4,
            fully_labeled_replicas: Some(3),
            ready_replicas: Some(2),
            available_replicas: Some(1),
            terminating_replicas: Some(5),
            observed_generation: Some(6),
            conditions: Some(vec![ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some("FailedCreate".to_owned()),
                message: Some("no room".to_owned()),
                last_transition_time: None,
            }]),
        };
        let mut controller = ReplicationController::default();
        controller.set_status(told.clone());
        let expected = ReplicaSetStatus {
            terminating_replicas: None,
            ..told
        };
        assert_eq!(Replicas::status(&controller), Some(expected));
    }

    #[test]
    fn a_replication_controller_without_labels_selects_nothing() {
        let mut controller = ReplicationController::default();
        assert_eq!(controller.wanted(), None);
        let spec = controller.spec.get_or_insert_default();
        spec.selector = Some([].into());
        assert_eq!(controller.wanted(), None);
    }
}
