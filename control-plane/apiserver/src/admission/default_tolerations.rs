//! DefaultTolerationSeconds: how long a pod stays on a node that is failing, where it says nothing of that.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::plugin::{Attributes, Operation, Plugin};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.writes("", "Pod") && attributes.operation != Operation::Delete
    }

    async fn admit(&self, _: &Attributes<'_>, draft: &mut dyn Draft) -> Result<(), StatusError> {
        if let Some(spec) = draft.typed_mut::<Pod>().and_then(|pod| pod.spec.as_mut()) {
            let tolerations = spec.tolerations.get_or_insert_default();
            for taint in TAINTS {
                if !tolerations
                    .iter()
                    .any(|toleration| covers(toleration, taint))
                {
                    tolerations.push(default_of(taint));
                }
            }
        }
        Ok(())
    }
}

fn covers(toleration: &Toleration, taint: &str) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
}

fn default_of(taint: &str) -> Toleration {
    Toleration {
        key: Some(taint.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        toleration_seconds: Some(SECONDS),
        value: None,
    }
}
