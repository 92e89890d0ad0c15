//! Defaults of a pod's spec, shared by pods and the templates of workloads.

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe, Volume};

use crate::field::{ErrorList, Path};
use crate::names;

/// `Always` for images tagged `latest` or without tag, `IfNotPresent` for all others.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest" | "")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn probe(probe: &mut Option<Probe>) {
    let Some(probe) = probe else {
        return;
    };
    probe.timeout_seconds.get_or_insert(1);
    probe.period_seconds.get_or_insert(10);
    probe.success_threshold.get_or_insert(1);
    probe.failure_threshold.get_or_insert(3);
    if let Some(http) = &mut probe.http_get {
        http.path.get_or_insert_with(|| "/".to_owned());
        http.scheme.get_or_insert_with(|| "HTTP".to_owned());
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn container(container: &mut Container, host_network: bool) {
    let image = container.image.clone().unwrap_or_default();
    container
        .image_pull_policy
        .get_or_insert_with(|| pull_policy(&image).to_owned());
    container
        .termination_message_path
        .get_or_insert_with(|| "/dev/termination-log".to_owned());
    container
        .termination_message_policy
        .get_or_insert_with(|| "File".to_owned());
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
        if host_network && port.host_port.unwrap_or(0) == 0 {
            port.host_port = Some(port.container_port);
        }
    }
    for variable in container.env.iter_mut().flatten() {
        if let Some(field) = variable
            .value_from
            .as_mut()
            .and_then(|source| source.field_ref.as_mut())
        {
            field.api_version.get_or_insert_with(|| "v1".to_owned());
        }
    }
    probe(&mut container.liveness_probe);
    probe(&mut container.readiness_probe);
    probe(&mut container.startup_probe);
    for handler in container
        .lifecycle
        .iter_mut()
        .flat_map(|lifecycle| [&mut lifecycle.post_start, &mut lifecycle.pre_stop])
        .flatten()
    {
        if let Some(http) = &mut handler.http_get {
            http.path.get_or_insert_with(|| "/".to_owned());
            http.scheme.get_or_insert_with(|| "HTTP".to_owned());
        }
    }
    // A limit without request is also the request.
    if let Some(resources) = &mut container.resources
        && let Some(limits) = resources.limits.clone()
    {
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn volume(volume: &mut Volume) {
    const FILE_MODE: i32 = 0o644;
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(map) = &mut volume.config_map {
        map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(host) = &mut volume.host_path {
        host.type_.get_or_insert_default();
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        for field in downward
            .items
            .iter_mut()
            .flatten()
            .filter_map(|item| item.field_ref.as_mut())
        {
            field.api_version.get_or_insert_with(|| "v1".to_owned());
        }
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            for item in source
                .downward_api
                .iter_mut()
                .flat_map(|downward| downward.items.iter_mut().flatten())
            {
                if let Some(field) = &mut item.field_ref {
                    field.api_version.get_or_insert_with(|| "v1".to_owned());
                }
            }
        }
    }
    let sources = serde_json::to_value(&*volume).ok();
    let has_source = sources
        .and_then(|value| value.as_object().map(|fields| fields.len() > 1))
        .unwrap_or(true);
    if !has_source {
        volume.empty_dir = Some(Default::default());
    }
}

/// Fills in what a pod's spec leaves out.
pub fn default(spec: &mut PodSpec) {
    let host_network = spec.host_network.unwrap_or(false);
    spec.restart_policy
        .get_or_insert_with(|| "Always".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.dns_policy
        .get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.security_context.get_or_insert_default();
    spec.scheduler_name
        .get_or_insert_with(|| "default-scheduler".to_owned());
    if let Some(name) = spec
        .service_account_name
        .clone()
        .filter(|name| !name.is_empty())
    {
        spec.service_account = Some(name);
    }
    for one in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        container(one, host_network);
    }
    for one in spec.volumes.iter_mut().flatten() {
        volume(one);
    }
}

/// Checks what people most often get wrong.
pub fn validate(spec: Option<&PodSpec>, path: &Path, errors: &mut ErrorList) {
    let empty = PodSpec::default();
    let spec = spec.unwrap_or(&empty);
    if spec.containers.is_empty() {
        errors.required(&path.child("containers"), "");
    }
    let mut seen: Vec<&str> = Vec::new();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [
        ("containers", spec.containers.as_slice()),
        ("initContainers", init),
    ] {
        for (index, container) in containers.iter().enumerate() {
            let path = path.child(list).index(index);
            match container.name.as_str() {
                "" => errors.required(&path.child("name"), ""),
                name => {
                    if let Some(message) = names::is_dns1123_label(name) {
                        errors.invalid(&path.child("name"), name, &message);
                    } else if seen.contains(&name) {
                        errors.duplicate(&path.child("name"), name);
                    }
                    seen.push(name);
                }
            }
            if container.image.as_deref().unwrap_or_default().is_empty() {
                errors.required(&path.child("image"), "");
            }
            for (index, port) in container.ports.iter().flatten().enumerate() {
                if let Some(message) = names::is_port_number(i64::from(port.container_port)) {
                    errors.invalid(
                        &path.child("ports").index(index).child("containerPort"),
                        port.container_port,
                        &message,
                    );
                }
            }
            for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
                let known = spec
                    .volumes
                    .iter()
                    .flatten()
                    .any(|volume| volume.name == mount.name);
                if !known {
                    errors.not_found(
                        &path.child("volumeMounts").index(index).child("name"),
                        &mount.name,
                    );
                }
            }
        }
    }
    if let Some(policy) = spec.restart_policy.as_deref()
        && !["Always", "OnFailure", "Never"].contains(&policy)
    {
        errors.not_supported(
            &path.child("restartPolicy"),
            policy,
            &["Always", "OnFailure", "Never"],
        );
    }
}
