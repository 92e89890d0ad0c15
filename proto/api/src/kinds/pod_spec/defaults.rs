//! What a pod's spec leaves out.
//!
//! An empty text and a zero mean "left out" wherever Kubernetes cannot tell the two apart.

use k8s_openapi::api::core::v1::{Container, EnvVar, EphemeralContainer, PodSpec, Probe, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::amounts::{self, Amounts};
use super::{image, resources};
use crate::quantity::Quantity;

/// `Always` for images tagged `latest` or without tag, `IfNotPresent` for all others.
fn pull_policy(reference: &str) -> &'static str {
    match image::tag(reference) {
        Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// No amount is finer than a thousandth.
fn round(amounts: &mut Option<Amounts>) {
    const THOUSANDTH: i128 = 1_000_000;
    for amount in amounts.iter_mut().flat_map(|amounts| amounts.values_mut()) {
        let parsed = amount.0.parse::<Quantity>();
        if let Ok(parsed) = parsed.as_ref()
            && parsed.nanos() % THOUSANDTH != 0
        {
            amount.0 = Quantity::from_millis(parsed.millis()).to_string();
        }
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

fn variables(variables: &mut Option<Vec<EnvVar>>) {
    for variable in variables.iter_mut().flatten() {
        if let Some(field) = variable
            .value_from
            .as_mut()
            .and_then(|source| source.field_ref.as_mut())
        {
            fill(&mut field.api_version, "v1");
        }
    }
}

fn container(container: &mut Container) {
    let reference = container.image.clone().unwrap_or_default();
    fill(&mut container.image_pull_policy, pull_policy(&reference));
    fill(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    fill(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    variables(&mut container.env);
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
    if let Some(resources) = &mut container.resources {
        round(&mut resources.limits);
        round(&mut resources.requests);
    }
}

/// As [`container`]; what such a container may not have is not filled in, but refused.
fn ephemeral(container: &mut EphemeralContainer) {
    let reference = container.image.clone().unwrap_or_default();
    fill(&mut container.image_pull_policy, pull_policy(&reference));
    fill(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    fill(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    variables(&mut container.env);
}

/// What volumes in devices of others leave out.
fn remote(volume: &mut Volume) {
    if let Some(iscsi) = &mut volume.iscsi {
        fill(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        fill(&mut rbd.pool, "rbd");
        fill(&mut rbd.user, "admin");
        fill(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut volume.azure_disk {
        disk.caching_mode
            .get_or_insert_with(|| "ReadWrite".to_owned());
        disk.kind.get_or_insert_with(|| "Shared".to_owned());
        disk.fs_type.get_or_insert_with(|| "ext4".to_owned());
        disk.read_only.get_or_insert(false);
    }
    if let Some(scale) = &mut volume.scale_io {
        fill(&mut scale.storage_mode, "ThinProvisioned");
        fill(&mut scale.fs_type, "xfs");
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
    remote(volume);
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

/// Fills in what a pod's spec leaves out, of a pod and of a template.
pub fn default(spec: &mut PodSpec) {
    fill(&mut spec.restart_policy, "Always");
    spec.termination_grace_period_seconds.get_or_insert(30);
    fill(&mut spec.dns_policy, "ClusterFirst");
    spec.security_context.get_or_insert_default();
    fill(&mut spec.scheduler_name, "default-scheduler");
    // One field under two names, of which the newer one counts.
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    if let Some(name) = given(&spec.service_account_name).or_else(|| given(&spec.service_account)) {
        spec.service_account_name = Some(name.clone());
        spec.service_account = Some(name);
    }
    for one in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        container(one);
    }
    for one in spec.ephemeral_containers.iter_mut().flatten() {
        ephemeral(one);
    }
    for one in spec.volumes.iter_mut().flatten() {
        volume(one);
    }
    round(&mut spec.overhead);
    if let Some(resources) = &mut spec.resources {
        round(&mut resources.limits);
        round(&mut resources.requests);
    }
}

/// Fills in what only a pod's own spec has filled in, and no template's.
pub(in crate::kinds) fn default_for_pod(spec: &mut PodSpec) {
    let host_network = spec.host_network.unwrap_or(false);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        for port in container.ports.iter_mut().flatten() {
            if host_network && port.host_port.unwrap_or(0) == 0 {
                port.host_port = Some(port.container_port);
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
    default_pod_resources(spec);
}

/// What a pod as a whole asks for, of whatever it has a limit: what its containers ask for, else the limit.
fn default_pod_resources(spec: &mut PodSpec) {
    let asked: Vec<(String, String)> = amounts::most_at_once(spec, amounts::requests_of)
        .into_iter()
        .filter(|(name, _)| amounts::is_for_pods(name) && resources::may_be_overcommitted(name))
        .map(|(name, amount)| (name.to_owned(), amount.to_string()))
        .collect();
    let Some(whole) = &mut spec.resources else {
        return;
    };
    let limits = whole.limits.clone().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    let mut requests = whole.requests.take().unwrap_or_default();
    for (name, amount) in asked {
        requests.entry(name).or_insert_with(|| ApiQuantity(amount));
    }
    for (name, limit) in limits {
        if amounts::is_for_pods(&name) {
            requests.entry(name).or_insert(limit);
        }
    }
    whole.requests = (!requests.is_empty()).then_some(requests);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn defaulted(spec: Value, is_pod: bool) -> PodSpec {
        let mut spec = serde_json::from_value(spec).unwrap();
        default(&mut spec);
        if is_pod {
            default_for_pod(&mut spec);
        }
        spec
    }

    #[test]
    fn requests_and_host_ports_are_filled_in_for_pods() {
        let spec = json!({
            "hostNetwork": true,
            "containers": [{
                "name": "a", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1500000.1n"}}
            }]
        });
        let first = |spec: PodSpec| serde_json::to_value(&spec.containers).unwrap()[0].clone();
        let template = first(defaulted(spec.clone(), false));
        assert_eq!(
            template["ports"][0],
            json!({"containerPort": 80, "protocol": "TCP"})
        );
        assert_eq!(
            template["resources"],
            json!({"limits": {"cpu": "1", "memory": "2m"}})
        );
        let pod = first(defaulted(spec, true));
        assert_eq!(pod["ports"][0]["hostPort"], 80);
        assert_eq!(
            pod["resources"]["requests"],
            json!({"cpu": "1", "memory": "2m"})
        );
    }

    #[test]
    fn a_pod_asks_for_what_its_containers_do() {
        let spec = defaulted(
            json!({
                "resources": {"limits": {"cpu": "4", "memory": "1Gi"}},
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "1"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "500m"}}}
                ]
            }),
            true,
        );
        let requests = serde_json::to_value(spec.resources.unwrap().requests).unwrap();
        assert_eq!(requests, json!({"cpu": "1500m", "memory": "1Gi"}));
    }

    #[test]
    fn ephemeral_containers_and_old_names_are_filled_in() {
        let spec = defaulted(
            json!({
                "serviceAccount": "a", "containers": [],
                "ephemeralContainers": [{"name": "e", "image": "x:latest"}]
            }),
            true,
        );
        assert_eq!(spec.service_account_name.as_deref(), Some("a"));
        let ephemeral = spec.ephemeral_containers.unwrap();
        assert_eq!(ephemeral[0].image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(
            ephemeral[0].termination_message_policy.as_deref(),
            Some("File")
        );
    }
}
