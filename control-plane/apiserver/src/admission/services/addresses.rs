//! Cluster IPs: one for each family of a service. Beside the key that makes an address unique there is an IPAddress, by
//! which clients see who has it.

use std::net::IpAddr;

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::kind::finish;
use gantry_api::status::StatusError;
use gantry_store::{Guard, Key, Operation, Table, Transaction};
use ipnet::IpNet;
use rand::Rng;
use serde_json::{Value, json};

use super::allocation::{Allocation, free, listed, service_type};
use crate::codec;
use crate::context::meta;

const GROUP: &str = "networking.k8s.io";
const PLURAL: &str = "ipaddresses";
/// What only services with an address have.
const FIELDS: [&str; 5] = [
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "internalTrafficPolicy",
];

fn key(address: &IpAddr) -> Key {
    Key {
        table: Table("-/clusterips".into()),
        namespace: "".into(),
        name: address.to_string().as_str().into(),
    }
}

/// The key of the IPAddress.
fn object_key(address: &IpAddr) -> Key {
    Key {
        table: crate::tables::table(GROUP, PLURAL),
        namespace: "".into(),
        name: address.to_string().as_str().into(),
    }
}

/// The allocated addresses of a service: not those of headless ones.
fn addresses(service: &Value) -> Vec<IpAddr> {
    let listed = listed(service, "clusterIPs");
    listed.iter().filter_map(|text| text.parse().ok()).collect()
}

pub(super) fn release(service: &Value, transaction: &mut Transaction) {
    for address in addresses(service) {
        free(key(&address), transaction);
        free(object_key(&address), transaction);
    }
}

/// Gives an address for each family that has none, takes those that the client asks for, and returns the others.
pub(super) fn allocate(
    allocation: &mut Allocation<'_>,
    service: &mut Value,
) -> Result<(), StatusError> {
    let before = allocation.current.map(addresses).unwrap_or_default();
    let asked = listed(service, "clusterIPs");
    let mut given: Vec<(IpAddr, String)> = Vec::new();
    if service_type(service) == "ExternalName" {
        if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
            for field in FIELDS {
                spec.remove(field);
            }
        }
    } else if asked.first().is_some_and(|first| first == "None") {
        *service.member(&["spec", "clusterIPs"]) = json!(["None"]);
    } else {
        for (index, family) in listed(service, "ipFamilies").iter().enumerate() {
            let range = allocation.ranges.of(family).ok_or_else(|| {
                StatusError::internal(format!("the cluster has no range of {family} for services"))
            })?;
            let address = match asked.get(index) {
                None => {
                    let address = free_address(allocation, range)?;
                    (address, address.to_string())
                }
                Some(text) => (
                    wanted(allocation, service, &asked, text, range, &before)?,
                    text.clone(),
                ),
            };
            given.push(address);
        }
        let texts: Vec<&String> = given.iter().map(|(_, text)| text).collect();
        *service.member(&["spec", "clusterIP"]) = json!(texts.first());
        *service.member(&["spec", "clusterIPs"]) = json!(texts);
    }
    for (address, _) in given
        .iter()
        .filter(|(address, _)| !before.contains(address))
    {
        take(allocation, service, address)?;
    }
    for address in before {
        if !given.iter().any(|(given, _)| *given == address) {
            free(key(&address), allocation.transaction);
            free(object_key(&address), allocation.transaction);
        }
    }
    Ok(())
}

/// An address that the client names, if it can have it.
fn wanted(
    allocation: &Allocation<'_>,
    service: &Value,
    asked: &[String],
    text: &str,
    range: IpNet,
    before: &[IpAddr],
) -> Result<IpAddr, StatusError> {
    let refused = |why: &str| {
        let mut errors = ErrorList::default();
        let path = Path::new("spec").child("clusterIPs");
        errors.invalid(
            &path,
            asked,
            &format!("failed to allocate IP {text}: {why}"),
        );
        allocation.refuse(service, errors)
    };
    match text.parse::<IpAddr>() {
        Ok(address) if before.contains(&address) => Ok(address),
        Ok(address) if in_range(range, address) => match is_free(allocation, &address) {
            true => Ok(address),
            false => Err(refused("provided IP is already allocated")),
        },
        _ => Err(refused(
            "the provided network does not match the current range",
        )),
    }
}

/// The Service by which pods find the API: the first address of the range is its alone, also while it is not there.
const API: &str = "default/kubernetes";

/// Whether the service may take the address, and nobody has it.
fn is_free(allocation: &Allocation<'_>, address: &IpAddr) -> bool {
    let first = at(allocation.ranges.service_cidr.into(), 1);
    if *address == first && allocation.owner != API {
        return false;
    }
    let store = &allocation.context.api.store;
    store.get(&key(address)).is_none() && store.get(&object_key(address)).is_none()
}

fn in_range(range: IpNet, address: IpAddr) -> bool {
    // The last address of an IPv6 range is an address as any other.
    let last = address.is_ipv4() && address == range.broadcast();
    range.contains(&address) && address != range.network() && !last
}

fn take(
    allocation: &mut Allocation<'_>,
    service: &Value,
    address: &IpAddr,
) -> Result<(), StatusError> {
    allocation.take(key(address));
    let context = allocation.context;
    let resource = context
        .registry
        .get(GROUP, "v1", PLURAL)
        .ok_or_else(|| StatusError::internal("IPAddress is not served"))?;
    let object = json!({
        "metadata": {
            "name": address.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": context.api.clock.stamp(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": if address.is_ipv6() { "IPv6" } else { "IPv4" },
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": meta(service, "namespace"),
            "name": meta(service, "name"),
        }},
    });
    let (object, _) = finish(resource.kind.draft(object)?)?;
    let object_key = object_key(address);
    let transaction = &mut allocation.transaction;
    transaction.guards.push(Guard::Absent(object_key.clone()));
    transaction.operations.push(Operation::Put {
        key: object_key,
        value: codec::encode(resource, &object)?,
        index: codec::index(resource, &object),
    });
    Ok(())
}

/// How many addresses of a range are looked at: as many as fit into the smallest IPv6 range that is large.
const MAX_SIZE: u128 = 1 << 64;

/// The address at a distance from a range's first.
fn at(range: IpNet, offset: u128) -> IpAddr {
    match range.network() {
        // Offsets are below the range's size: the sum stays in the family.
        IpAddr::V4(first) => IpAddr::V4(u32::wrapping_add(first.into(), offset as u32).into()),
        IpAddr::V6(first) => IpAddr::V6(u128::wrapping_add(first.into(), offset).into()),
    }
}

/// A random free address; the lowest 256 are left to those who ask for one.
fn free_address(allocation: &Allocation<'_>, range: IpNet) -> Result<IpAddr, StatusError> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1_u128.checked_shl(bits).unwrap_or(MAX_SIZE).min(MAX_SIZE);
    // Without the broadcast address.
    let size = size - u128::from(range.network().is_ipv4());
    let reserved = (size / 16).clamp(1, 256);
    let mut random = rand::rng();
    let free =
        |offset: u128| Some(at(range, offset)).filter(|address| is_free(allocation, address));
    (0..64)
        .find_map(|_| free(random.random_range(reserved..size)))
        .or_else(|| (reserved..size).chain(1..reserved).find_map(free))
        .ok_or_else(|| StatusError::internal(format!("the service CIDR {range} is used up")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_range_are_not_given() {
        let range: IpNet = "10.96.0.0/30".parse().unwrap();
        let inside = |text: &str| in_range(range, text.parse().unwrap());
        let given: Vec<bool> = [
            "10.96.0.0",
            "10.96.0.1",
            "10.96.0.2",
            "10.96.0.3",
            "10.96.0.4",
            "fd00::1",
        ]
        .into_iter()
        .map(inside)
        .collect();
        assert_eq!(given, [false, true, true, false, false, false]);
        let range: IpNet = "fd00::/126".parse().unwrap();
        assert!(!in_range(range, "fd00::".parse().unwrap()));
        assert!(in_range(range, "fd00::3".parse().unwrap()));
        assert_eq!(at(range, 3).to_string(), "fd00::3");
    }
}
