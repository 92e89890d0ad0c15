//! PodTemplate: a template of pods by itself, for programs that make pods of it.

use k8s_openapi::api::core::v1::{PodTemplate, PodTemplateSpec};
use serde_json::json;

use super::table::{self, Printer};
use super::{pod_spec, workload};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;

/// See [`PodTemplate`].
pub struct PodTemplateKind;

impl Kind for PodTemplateKind {
    type Object = PodTemplate;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<PodTemplate> = parts!(PodTemplate: template);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut PodTemplate) {
        workload::default_template(object.template.get_or_insert_default());
    }

    fn validate(object: &PodTemplate, errors: &mut ErrorList) {
        let empty = PodTemplateSpec::default();
        let template = object.template.as_ref().unwrap_or(&empty);
        workload::validate_any_pods(template, &Path::new("template"), errors);
    }

    fn warnings(new: &PodTemplate, old: Option<&PodTemplate>) -> Vec<String> {
        let same = old.is_some_and(|old| old.metadata.generation == new.metadata.generation);
        let template = new.template.as_ref().filter(|_| !same);
        let Some(template) = template else {
            return Vec::new();
        };
        let Some(spec) = &template.spec else {
            return Vec::new();
        };
        let metadata = template.metadata.clone().unwrap_or_default();
        pod_spec::warnings(&metadata, spec, true, &Path::new("template"))
    }

    fn printer() -> Printer<PodTemplate> {
        let labels = "The labels for the pod template.";
        Printer::<PodTemplate>::named()
            .columns(workload::template_columns(0), |object, _| {
                workload::template_cells(object.template.as_ref())
            })
            .column(table::column("Pod Labels", "string", labels, 0), |object| {
                let template = object.template.as_ref();
                json!(workload::labels_text(
                    template.and_then(workload::labels_of)
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn template(spec: Value) -> PodTemplate {
        let metadata = json!({"labels": {"a": "b"}});
        let object = json!({
            "metadata": {"name": "t", "generation": 1},
            "template": {"metadata": metadata, "spec": spec}
        });
        let mut object = serde_json::from_value(object).unwrap();
        PodTemplateKind::default(&mut object);
        object
    }

    #[test]
    fn its_pods_may_end_and_a_changed_template_is_a_new_generation() {
        let refused = |spec: Value| {
            let mut errors = ErrorList::default();
            PodTemplateKind::validate(&template(spec), &mut errors);
            errors
                .0
                .iter()
                .map(|error| error.path.to_string())
                .collect::<Vec<_>>()
        };
        let containers = json!([{"name": "c", "image": "i"}]);
        let ends = json!({"restartPolicy": "Never", "containers": containers});
        assert_eq!(refused(ends.clone()), [""; 0]);
        assert_eq!(
            refused(json!({"containers": []})),
            ["template.spec.containers"]
        );
        let old = template(ends);
        let mut new = template(json!({"containers": containers}));
        crate::typed::prepare_update::<PodTemplateKind>(&mut new, &old);
        assert_eq!(new.metadata.generation, Some(2));
        let row = PodTemplateKind::printer().row(&new, 0);
        assert_eq!(row, [json!("t"), json!("c"), json!("i"), json!("a=b")]);
    }
}
