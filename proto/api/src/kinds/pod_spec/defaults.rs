//! What a pod's spec leaves out.
//!
//! An empty text and a zero mean "left out" wherever Kubernetes cannot tell the two apart.

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe, Volume};

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

fn fill(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

fn fill_number(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}

fn probe(probe: &mut Option<Probe>) {
    let Some(probe) = probe else {
        return;
    };
    fill_number(&mut probe.timeout_seconds, 1);
    fill_number(&mut probe.period_seconds, 10);
    fill_number(&mut probe.success_threshold, 1);
    fill_number(&mut probe.failure_threshold, 3);
    if let Some(http) = &mut probe.http_get {
        fill(&mut http.path, "/");
        fill(&mut http.scheme, "HTTP");
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn container(container: &mut Container, host_network: bool) {
    let image = container.image.clone().unwrap_or_default();
    fill(&mut container.image_pull_policy, pull_policy(&image));
    fill(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    fill(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
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
            fill(&mut field.api_version, "v1");
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
            fill(&mut http.path, "/");
            fill(&mut http.scheme, "HTTP");
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
    if let Some(iscsi) = &mut volume.iscsi {
        fill(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(template) = volume
        .ephemeral
        .as_mut()
        .and_then(|ephemeral| ephemeral.volume_claim_template.as_mut())
    {
        fill(&mut template.spec.volume_mode, "Filesystem");
        template.metadata.get_or_insert_default();
    }
    if let Some(image) = &mut volume.image {
        let reference = image.reference.clone().unwrap_or_default();
        fill(&mut image.pull_policy, pull_policy(&reference));
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
            fill(&mut field.api_version, "v1");
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
                    fill(&mut field.api_version, "v1");
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
    fill(&mut spec.restart_policy, "Always");
    spec.termination_grace_period_seconds.get_or_insert(30);
    fill(&mut spec.dns_policy, "ClusterFirst");
    spec.security_context.get_or_insert_default();
    fill(&mut spec.scheduler_name, "default-scheduler");
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
