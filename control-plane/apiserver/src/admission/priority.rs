//! Priority: what a pod's class is worth.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::plugin::{Attributes, Operation, Plugin, stored};
use crate::context::Context;

const PREEMPTS: &str = "PreemptLowerPriority";

/// Priorities of the classes that every cluster has.
const SYSTEM_PRIORITIES: &[(&str, i32)] = &[
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.writes("", "Pod") && attributes.operation != Operation::Delete
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        if let Some(old) = draft.typed_old::<Pod>() {
            let old = old.spec.as_ref();
            let priority = old.and_then(|spec| spec.priority);
            let policy = old.and_then(|spec| spec.preemption_policy.clone());
            if let Some(spec) = draft.typed_mut::<Pod>().and_then(|pod| pod.spec.as_mut()) {
                // A client that does not know of it means to keep it.
                spec.priority = spec.priority.or(priority);
                spec.preemption_policy = spec.preemption_policy.take().or(policy);
            }
            return Ok(());
        }
        match draft.typed_mut::<Pod>() {
            Some(pod) => give(attributes, pod),
            None => Ok(()),
        }
    }
}

fn give(attributes: &Attributes<'_>, pod: &mut Pod) -> Result<(), StatusError> {
    let name = pod.metadata.name.as_deref().unwrap_or_default().to_owned();
    let refused = |why: &str| StatusError::forbidden(attributes.info(), &name, why);
    let Some(spec) = &mut pod.spec else {
        return Ok(());
    };
    let (value, policy) = match spec.priority_class_name.as_deref().unwrap_or_default() {
        "" => (0, PREEMPTS.to_owned()),
        class => find_class(attributes.context, class)
            .ok_or_else(|| refused(&format!("no PriorityClass with name {class} was found")))?,
    };
    if let Some(asked) = spec.priority.filter(|asked| *asked != value) {
        return Err(refused(&format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    spec.priority = Some(value);
    spec.preemption_policy.get_or_insert(policy);
    Ok(())
}

fn find_class(context: &Context<'_>, name: &str) -> Option<(i32, String)> {
    let group = "scheduling.k8s.io";
    if let Some(class) = stored::<PriorityClass>(context, group, "priorityclasses", "", name) {
        let policy = class.preemption_policy;
        let value = class.value.unwrap_or(0);
        return Some((value, policy.unwrap_or_else(|| PREEMPTS.to_owned())));
    }
    let known = SYSTEM_PRIORITIES.iter().find(|(known, _)| *known == name);
    known.map(|(_, value)| (*value, PREEMPTS.to_owned()))
}
