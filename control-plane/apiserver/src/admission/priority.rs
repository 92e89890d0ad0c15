//! Priority: what a pod's class is worth, and that one class at most is everybody's.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::kinds::priority_class::{GROUP, PLURAL, PREEMPTS};
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::plugin::{Attributes, Operation, Plugin, shown_name, stored};
use super::view::View;
use crate::context::Context;
use crate::tables::table;

pub(super) struct Priority {
    /// Those that say that they are everybody's.
    defaults: View<PriorityClass>,
}

impl Default for Priority {
    fn default() -> Self {
        Self {
            defaults: View::new(table(GROUP, PLURAL), |class: &PriorityClass| {
                class.global_default == Some(true)
            }),
        }
    }
}

impl Priority {
    /// The class of pods that name none; of several, that which is worth least.
    fn default_class(&self, context: &Context<'_>) -> Option<PriorityClass> {
        let classes = self.defaults.of(&context.api.store, "").into_iter();
        let least = classes.min_by_key(|class| class.value.unwrap_or(0))?;
        Some(PriorityClass::clone(&least))
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        let writes = attributes.writes("", "Pod") || attributes.writes(GROUP, "PriorityClass");
        writes && attributes.operation != Operation::Delete
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
            Some(pod) => give(attributes, pod, || self.default_class(attributes.context)),
            None => Ok(()),
        }
    }

    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let class = draft.typed::<PriorityClass>();
        let Some(class) = class.filter(|class| class.global_default == Some(true)) else {
            return Ok(Vec::new());
        };
        let name = class.metadata.name.as_deref().unwrap_or_default();
        let default = self.default_class(attributes.context);
        match default.and_then(|class| class.metadata.name) {
            Some(other) if other != name || attributes.operation == Operation::Create => {
                let why = format!(
                    "PriorityClass {other} is already marked as default. Only one default can exist"
                );
                Err(StatusError::forbidden(attributes.info(), name, &why))
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn give(
    attributes: &Attributes<'_>,
    pod: &mut Pod,
    default_class: impl FnOnce() -> Option<PriorityClass>,
) -> Result<(), StatusError> {
    let name = shown_name(&pod.metadata).to_owned();
    let refused = |why: &str| StatusError::forbidden(attributes.info(), &name, why);
    let Some(spec) = &mut pod.spec else {
        return Ok(());
    };
    let context = attributes.context;
    let class = match spec.priority_class_name.as_deref().unwrap_or_default() {
        "" => default_class(),
        class => {
            let found = stored::<PriorityClass>(context, GROUP, PLURAL, "", class);
            let missing = || refused(&format!("no PriorityClass with name {class} was found"));
            Some(found.ok_or_else(missing)?)
        }
    };
    let class = class.unwrap_or_default();
    let value = class.value.unwrap_or(0);
    let policy = class.preemption_policy.as_deref().unwrap_or(PREEMPTS);
    if let Some(asked) = spec.priority.filter(|asked| *asked != value) {
        return Err(refused(&format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(asked) = spec
        .preemption_policy
        .as_ref()
        .filter(|asked| *asked != policy)
    {
        return Err(refused(&format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    spec.priority = Some(value);
    spec.preemption_policy = Some(policy.to_owned());
    if let Some(name) = class.metadata.name {
        spec.priority_class_name = Some(name);
    }
    Ok(())
}
