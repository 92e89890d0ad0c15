//! Slices as they should be, from services, pods and the slices there are.

use k8s_openapi::api::core::v1::{Container, PodCondition, PodIP, PodSpec, PodStatus, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::*;

fn service() -> Service {
    let port = |name: &str, number: i32, target: IntOrString| ServicePort {
        name: Some(name.to_owned()),
        port: number,
        target_port: Some(target),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some("s".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("service".to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some([("app".to_owned(), "x".to_owned())].into()),
            ports: Some(vec![
                port("http", 80, IntOrString::String("web".to_owned())),
                port("adm", 81, IntOrString::Int(9000)),
            ]),
            ip_families: Some(vec!["IPv4".to_owned()]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn pod(number: usize, ready: bool) -> Pod {
    let ip = format!("10.244.{}.{}", number / 250, number % 250);
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("p{number}")),
            namespace: Some("ns".to_owned()),
            uid: Some(format!("uid{number}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some("node-1".to_owned()),
            containers: vec![Container {
                ports: Some(vec![ContainerPort {
                    name: Some("web".to_owned()),
                    container_port: 8080,
                    protocol: Some("TCP".to_owned()),
                    ..ContainerPort::default()
                }]),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            pod_ip: Some(ip.clone()),
            pod_ips: Some(vec![PodIP { ip }]),
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

fn planned(pods: &[Pod], existing: &[EndpointSlice]) -> Plan {
    let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
    let existing: Vec<_> = existing.iter().cloned().map(Arc::new).collect();
    plan(&service(), &pods, &BTreeMap::new(), &existing, None)
}

fn named(mut slice: EndpointSlice, name: &str) -> EndpointSlice {
    slice.metadata.name = Some(name.to_owned());
    slice
}

fn states(slice: &EndpointSlice) -> Vec<(bool, bool, bool)> {
    slice
        .endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| endpoint.conditions.as_ref())
        .map(|conditions| {
            (
                conditions.ready.unwrap_or_default(),
                conditions.serving.unwrap_or_default(),
                conditions.terminating.unwrap_or_default(),
            )
        })
        .collect()
}

#[test]
fn a_service_without_pods_has_one_empty_slice_which_they_fill() {
    let empty = planned(&[], &[]);
    assert_eq!(empty.create.len(), 1);
    assert_eq!(empty.create[0].endpoints, None);
    assert_eq!(empty.create[0].ports, None);
    let slice = named(empty.create[0].clone(), "s-1");
    let filled = planned(&[pod(1, true), pod(2, false)], std::slice::from_ref(&slice));
    assert_eq!(
        (
            filled.create.len(),
            filled.update.len(),
            filled.delete.len()
        ),
        (0, 1, 0)
    );
    assert_eq!(
        states(&filled.update[0]),
        [(true, true, false), (false, false, false)]
    );
    let ports: Vec<_> = filled.update[0]
        .ports
        .iter()
        .flatten()
        .map(|port| port.port)
        .collect();
    assert_eq!(ports, [Some(9000), Some(8080)]);
    // And it stays one slice when they go.
    let emptied = planned(&[], &filled.update);
    assert_eq!(
        (
            emptied.create.len(),
            emptied.update.len(),
            emptied.delete.len()
        ),
        (0, 1, 0)
    );
    assert_eq!(planned(&[], &emptied.update), Plan::default());
}

#[test]
fn a_terminating_pod_serves_but_is_not_ready_and_a_finished_one_is_gone() {
    let mut leaving = pod(1, true);
    leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let mut finished = pod(2, true);
    finished.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    let planned = planned(&[leaving, finished], &[]);
    assert_eq!(states(&planned.create[0]), [(false, true, true)]);
}

#[test]
fn unready_addresses_are_published_when_asked_for() {
    let mut service = service();
    service
        .spec
        .get_or_insert_default()
        .publish_not_ready_addresses = Some(true);
    let pods = [Arc::new(pod(1, false))];
    let planned = plan(&service, &pods, &BTreeMap::new(), &[], None);
    assert_eq!(states(&planned.create[0]), [(true, false, false)]);
}

#[test]
fn short_ways_are_hinted_at_when_the_service_wants_them() {
    let zones = BTreeMap::from([("node-1".to_owned(), "z1".to_owned())]);
    let hinted = |wish: Option<&str>| {
        let mut service = service();
        service.spec.get_or_insert_default().traffic_distribution = wish.map(str::to_owned);
        let planned = plan(&service, &[Arc::new(pod(1, true))], &zones, &[], None);
        let endpoint = planned.create[0]
            .endpoints
            .as_ref()
            .map(|all| all[0].clone());
        let endpoint = endpoint.expect("an endpoint");
        assert_eq!(endpoint.zone.as_deref(), Some("z1"));
        let hints = endpoint.hints?;
        let zones = hints.for_zones.unwrap_or_default();
        let nodes = hints.for_nodes.unwrap_or_default();
        let zones = zones.into_iter().map(|zone| zone.name);
        Some(
            zones
                .chain(nodes.into_iter().map(|node| node.name))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(hinted(None), None);
    assert_eq!(hinted(Some("PreferClose")), Some(vec!["z1".to_owned()]));
    assert_eq!(hinted(Some("PreferSameZone")), Some(vec!["z1".to_owned()]));
    assert_eq!(
        hinted(Some("PreferSameNode")),
        Some(vec!["z1".to_owned(), "node-1".to_owned()])
    );
}

#[test]
fn each_family_has_slices_of_its_own() {
    let mut service = service();
    let families = ["IPv4", "IPv6"].map(str::to_owned);
    service.spec.get_or_insert_default().ip_families = Some(families.to_vec());
    let mut dual = pod(1, true);
    let ips = &mut dual.status.get_or_insert_default().pod_ips;
    ips.get_or_insert_default().push(PodIP {
        ip: "fd00::1".to_owned(),
    });
    let pods = [Arc::new(dual), Arc::new(pod(2, true))];
    let planned = plan(&service, &pods, &BTreeMap::new(), &[], None);
    let told: Vec<_> = planned
        .create
        .iter()
        .map(|slice| {
            let endpoints = slice.endpoints.iter().flatten();
            let addresses: Vec<_> = endpoints.map(|one| one.addresses[0].as_str()).collect();
            (slice.address_type.as_str(), addresses)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("IPv4", vec!["10.244.0.1", "10.244.0.2"]),
            ("IPv6", vec!["fd00::1"])
        ]
    );
}

#[test]
fn many_endpoints_are_spread_and_a_change_touches_one_slice() {
    let mut pods: Vec<Pod> = (0..250).map(|number| pod(number, true)).collect();
    let first = planned(&pods, &[]);
    let sizes: Vec<_> = first
        .create
        .iter()
        .map(|slice| slice.endpoints.iter().flatten().count())
        .collect();
    assert_eq!(sizes, [100, 100, 50]);
    let slices: Vec<_> = first
        .create
        .into_iter()
        .enumerate()
        .map(|(at, slice)| named(slice, &format!("s-{at}")))
        .collect();
    assert_eq!(planned(&pods, &slices), Plan::default());
    pods.remove(150);
    let second = planned(&pods, &slices);
    assert_eq!(
        (
            second.create.len(),
            second.update.len(),
            second.delete.len()
        ),
        (0, 1, 0)
    );
    assert_eq!(second.update[0].metadata.name.as_deref(), Some("s-1"));
    let last = pods.split_off(199);
    let only_last = planned(&last, &slices);
    assert_eq!(
        (
            only_last.create.len(),
            only_last.update.len(),
            only_last.delete.len()
        ),
        (0, 0, 2),
        "the slice that has them stays as it is"
    );
    pods.truncate(30);
    let third = planned(&pods, &slices);
    assert_eq!(
        (third.create.len(), third.update.len(), third.delete.len()),
        (0, 1, 2)
    );
}
