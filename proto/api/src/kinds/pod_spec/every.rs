//! The containers of a pod, of every kind.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EphemeralContainer, PodSpec, ResourceRequirements,
    SecurityContext, VolumeDevice,
};

use crate::field::Path;

/// What containers of every kind have.
#[derive(Clone, Copy)]
pub(super) struct AnyContainer<'a> {
    pub(super) name: &'a str,
    pub(super) env: Option<&'a Vec<EnvVar>>,
    pub(super) ports: Option<&'a Vec<ContainerPort>>,
    pub(super) resources: Option<&'a ResourceRequirements>,
    pub(super) security_context: Option<&'a SecurityContext>,
    pub(super) volume_devices: Option<&'a Vec<VolumeDevice>>,
}

impl<'a> From<&'a Container> for AnyContainer<'a> {
    fn from(container: &'a Container) -> Self {
        Self {
            name: &container.name,
            env: container.env.as_ref(),
            ports: container.ports.as_ref(),
            resources: container.resources.as_ref(),
            security_context: container.security_context.as_ref(),
            volume_devices: container.volume_devices.as_ref(),
        }
    }
}

impl<'a> From<&'a EphemeralContainer> for AnyContainer<'a> {
    fn from(container: &'a EphemeralContainer) -> Self {
        Self {
            name: &container.name,
            env: container.env.as_ref(),
            ports: container.ports.as_ref(),
            resources: container.resources.as_ref(),
            security_context: container.security_context.as_ref(),
            volume_devices: container.volume_devices.as_ref(),
        }
    }
}

/// All containers of a pod and where they are, in Kubernetes' order.
pub(super) fn all_containers<'a>(spec: &'a PodSpec, path: &Path) -> Vec<(AnyContainer<'a>, Path)> {
    let mut all = Vec::new();
    let mut add = |list: &str, containers: Vec<AnyContainer<'a>>| {
        let path = path.child(list);
        let containers = containers.into_iter().enumerate();
        all.extend(containers.map(|(index, container)| (container, path.index(index))));
    };
    let init = spec.init_containers.iter().flatten();
    add("initContainers", init.map(AnyContainer::from).collect());
    let others = spec.containers.iter();
    add("containers", others.map(AnyContainer::from).collect());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    add(
        "ephemeralContainers",
        ephemeral.map(AnyContainer::from).collect(),
    );
    all
}
