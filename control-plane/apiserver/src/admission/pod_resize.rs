//! PodResizeValidator: what a pod is resized to must fit on its node, were it alone there.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::kinds::pod_spec;
use gantry_api::quantity::Quantity;
use gantry_api::status::{Cause, Details, StatusError};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use super::plugin::{Attributes, Plugin, stored};

pub(super) struct PodResizeValidator;

#[async_trait]
impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.resizes_pod()
    }

    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let before = draft.old_metadata().and_then(|old| old.generation);
        let spec = draft.typed::<Pod>().and_then(|pod| pod.spec.as_ref());
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let (Some(spec), Some(name)) = (spec, node.filter(|name| !name.is_empty())) else {
            return Ok(Vec::new());
        };
        if draft.metadata().generation == before {
            return Ok(Vec::new());
        }
        let info = attributes.info();
        let pod = attributes.context.name();
        let Some(node) = stored::<Node>(attributes.context, "", "nodes", "", name) else {
            let why = format!("node {name:?} not found");
            return Err(StatusError::forbidden(info, pod, &why));
        };
        let refused = unsupported(&node).or_else(|| too_much(spec, &node));
        match refused {
            None => Ok(Vec::new()),
            Some((reason, why)) => {
                let error = StatusError::forbidden(info, pod, &why);
                Err(with_cause(&error, reason))
            }
        }
    }
}

/// The same error with a cause that programs know it by.
fn with_cause(error: &StatusError, reason: &str) -> StatusError {
    let cause = Cause {
        reason: reason.to_owned(),
        message: String::new(),
        field: String::new(),
    };
    let details = Details {
        causes: vec![cause],
        ..error.details().cloned().unwrap_or_default()
    };
    StatusError::new(error.code(), error.reason(), error.message(), Some(details))
}

type Refusal = (&'static str, String);

fn unsupported(node: &Node) -> Option<Refusal> {
    let labels = node.metadata.labels.as_ref();
    let system = labels.and_then(|labels| labels.get("kubernetes.io/os"))?;
    let name = node.metadata.name.as_deref().unwrap_or_default();
    (system != "linux").then(|| {
        let why =
            format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}");
        ("UnsupportedPlatform", why)
    })
}

fn too_much(spec: &PodSpec, node: &Node) -> Option<Refusal> {
    let status = node.status.as_ref();
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    let requests = pod_spec::requests_at_once(spec);
    let mut missing = Vec::new();
    for resource in ["cpu", "memory"] {
        let there = allocatable.and_then(|amounts| amounts.get(resource)?.0.parse().ok());
        let there: Quantity = there.unwrap_or_default();
        let overhead = spec.overhead.as_ref();
        let overhead = overhead.and_then(|amounts| amounts.get(resource)?.0.parse().ok());
        let own = requests.get(resource).copied().unwrap_or_default();
        let asked = own.plus(overhead.unwrap_or_default());
        if asked > there {
            let count = |amount: &Quantity| match resource {
                "cpu" => amount.millis(),
                _ => amount.units(),
            };
            let (asked, there) = (count(&asked), count(&there));
            missing.push(format!(
                "{resource}, requested: {asked}, allocatable: {there}"
            ));
        }
    }
    (!missing.is_empty()).then(|| {
        let missing = missing.join("; ");
        let why = format!("node didn't have enough allocatable resources: {missing}");
        ("NodeCapacity", why)
    })
}
