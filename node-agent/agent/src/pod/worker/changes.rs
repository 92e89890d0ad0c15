//! What changes while the pod runs: its own specification, and the objects it refers to.

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::surroundings::Surroundings;
use super::{Effect, Worker};
use crate::pod::launch::Sandbox;
use crate::pod::record::{Stage, containers};
use crate::pod::setup;
use crate::reports::Severity;

impl Worker {
    pub(super) fn references_changed(&mut self) {
        for (record, control) in self.records.iter().zip(&mut self.controls) {
            if matches!(&record.stage, Stage::Waiting { reason, .. } if reason == "CreateContainerConfigError")
            {
                control.retry_at = None;
            }
        }
        match &mut self.surroundings {
            Surroundings::Missing { retry_at } => *retry_at = Instant::now(),
            Surroundings::Ready(Sandbox { pod_ips, .. }) => {
                let (node, pod, uid, pod_ips) = (
                    self.node.clone(),
                    self.pod.clone(),
                    self.uid.clone(),
                    pod_ips.clone(),
                );
                self.effects.spawn(async move {
                    let refreshed = tokio::task::spawn_blocking(move || {
                        if let Err(error) = setup::refresh(&node, &pod, &uid, &pod_ips) {
                            node.reports.event(
                                &pod,
                                None,
                                Severity::Warning,
                                error.reason,
                                &error.message,
                            );
                        }
                    });
                    Effect::Released(refreshed.await.map_err(|error| error.to_string()))
                });
            }
            _ => {}
        }
    }

    /// The pod was updated: labels and annotations may be in volumes, and a container's image may be another.
    pub(super) fn specification_changed(&mut self, before: &Pod) {
        let image_before = |name: &str| {
            let (_, container) =
                containers(before.spec.as_ref()?).find(|(_, container)| container.name == name)?;
            container.image.clone()
        };
        for index in 0..self.records.len() {
            let name = self.records[index].name.clone();
            let now = self.container(index).and_then(|container| container.image);
            if now == image_before(&name) {
                continue;
            }
            match &self.records[index].stage {
                Stage::Running { .. } => {
                    let message = format!("Container {name} definition changed, will be restarted");
                    self.stop_container(index, self.grace(), &message);
                }
                Stage::Waiting { .. } => self.controls[index].retry_at = None,
                _ => {}
            }
        }
        let shown = |pod: &Pod| {
            (
                pod.metadata.labels.clone(),
                pod.metadata.annotations.clone(),
            )
        };
        let ready = matches!(self.surroundings, Surroundings::Ready(_)) && self.stopping.is_none();
        if ready && shown(before) != shown(&self.pod) && self.has_downward_volumes() {
            self.references_changed();
        }
    }

    pub(super) fn has_downward_volumes(&self) -> bool {
        let volumes = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        volumes
            .into_iter()
            .any(|volume| volume.downward_api.is_some() || volume.projected.is_some())
    }
}
