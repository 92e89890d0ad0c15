//! Deployment: replicas of a pod, rolled from one version to the next.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{table, workload};
use crate::field::{ErrorList, Path};
use crate::kind::{Column, Kind, ResourceInfo};

/// See [`Deployment`].
pub struct DeploymentKind;

impl Kind for DeploymentKind {
    type Object = Deployment;

    const INFO: ResourceInfo = ResourceInfo {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: true,
        has_generation: true,
        create_on_update: false,
    };

    fn default(object: &mut Deployment) {
        let Some(spec) = &mut object.spec else {
            return;
        };
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec
            .strategy
            .get_or_insert_with(DeploymentStrategy::default);
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.type_ = Some("RollingUpdate".to_owned());
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy
                .rolling_update
                .get_or_insert_with(RollingUpdateDeployment::default);
            let quarter = || IntOrString::String("25%".to_owned());
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        workload::default_template(&mut spec.template);
    }

    fn prepare_create(object: &mut Deployment) {
        object.status = None;
    }

    fn validate(object: &Deployment, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let empty = DeploymentSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        workload::validate(spec.replicas, &spec.selector, &spec.template, &path, errors);
    }

    fn prepare_update(new: &mut Deployment, old: &Deployment) {
        new.status.clone_from(&old.status);
        let changed = new.spec != old.spec || new.metadata.annotations != old.metadata.annotations;
        new.metadata.generation = old
            .metadata
            .generation
            .map(|generation| generation + i64::from(changed));
    }

    fn validate_update(new: &Deployment, old: &Deployment, errors: &mut ErrorList) {
        Self::validate(new, errors);
        let selector = |object: &Deployment| object.spec.as_ref().map(|spec| spec.selector.clone());
        if selector(new) != selector(old) {
            errors.invalid(
                &Path::new("spec").child("selector"),
                selector(new),
                "field is immutable",
            );
        }
    }

    fn prepare_status_update(new: &mut Deployment, old: &Deployment) {
        new.spec.clone_from(&old.spec);
        new.metadata.labels.clone_from(&old.metadata.labels);
    }

    fn columns() -> Vec<Column> {
        let text = |name, description: &str, priority| {
            table::column(name, "string", description.to_owned(), priority)
        };
        vec![
            table::name_column(),
            text("Ready", "Number of the pod with ready state", 0),
            text(
                "Up-to-date",
                "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
                0,
            ),
            text(
                "Available",
                "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
                0,
            ),
            table::age_column(),
            text("Containers", "Names of each container in the template.", 1),
            text(
                "Images",
                "Images referenced by each container in the template.",
                1,
            ),
            table::column(
                "Selector",
                "string",
                table::field_doc::<DeploymentSpec>("selector"),
                1,
            ),
        ]
    }

    fn row(object: &Deployment, now: i64) -> Vec<Value> {
        let empty = DeploymentSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let status = object.status.clone().unwrap_or_default();
        let (names, images) = workload::containers(&spec.template);
        vec![
            table::name_cell(&object.metadata),
            json!(format!(
                "{}/{}",
                status.ready_replicas.unwrap_or(0),
                spec.replicas.unwrap_or(0)
            )),
            json!(status.updated_replicas.unwrap_or(0)),
            json!(status.available_replicas.unwrap_or(0)),
            table::age_cell(&object.metadata, now),
            json!(names),
            json!(images),
            json!(workload::selector_text(&spec.selector)),
        ]
    }
}
