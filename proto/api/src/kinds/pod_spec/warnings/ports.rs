//! Ports that are there twice, or would be if they were given to the host.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::ContainerPort;

use super::super::every::AnyContainer;
use super::{MAX_WARNINGS, Warnings};
use crate::field::Path;

struct Place<'a> {
    path: Path,
    host_port: i32,
    host_ip: &'a str,
}

/// The ports so far that have one number and one protocol, by where of the host they are. However many there are, only those
/// that a further one clashes with are looked at.
#[derive(Default)]
struct Same<'a> {
    places: Vec<Place<'a>>,
    by_port: HashMap<i32, Vec<usize>>,
    by_address: HashMap<(i32, &'a str), Vec<usize>>,
}

impl<'a> Same<'a> {
    /// The places that another clashes with, in their order.
    fn clashes(&self, host_port: i32, host_ip: &str) -> Vec<usize> {
        fn indices(list: Option<&Vec<usize>>) -> impl Iterator<Item = usize> {
            list.into_iter().flatten().copied().take(MAX_WARNINGS)
        }
        let on_port = |port: i32| indices(self.by_port.get(&port));
        let mut found: Vec<usize> = Vec::new();
        match (host_port, host_ip) {
            (0, _) => found.extend(0..self.places.len().min(MAX_WARNINGS)),
            (_, "") => {
                found.extend(on_port(0));
                found.extend(on_port(host_port));
            }
            (_, address) => {
                found.extend(on_port(0));
                for address in [address, ""] {
                    found.extend(indices(self.by_address.get(&(host_port, address))));
                }
            }
        }
        found.sort_unstable();
        found
    }

    fn add(&mut self, place: Place<'a>) {
        let index = self.places.len();
        let (port, address) = (place.host_port, place.host_ip);
        self.by_port.entry(port).or_default().push(index);
        self.by_address
            .entry((port, address))
            .or_default()
            .push(index);
        self.places.push(place);
    }
}

/// A port as Go prints a struct.
fn printed(port: &ContainerPort) -> String {
    format!(
        "{{Name:{} HostPort:{} ContainerPort:{} Protocol:{} HostIP:{}}}",
        port.name.as_deref().unwrap_or_default(),
        port.host_port.unwrap_or(0),
        port.container_port,
        port.protocol.as_deref().unwrap_or_default(),
        port.host_ip.as_deref().unwrap_or_default(),
    )
}

/// Looks at the ports of all containers, which share the pod's address.
pub(super) fn check(containers: &[(AnyContainer<'_>, Path)], warnings: &mut Warnings) {
    let mut seen: HashMap<(i32, &str), Same<'_>> = HashMap::new();
    for (container, path) in containers {
        for (index, port) in container.ports.into_iter().flatten().enumerate() {
            if warnings.is_full() {
                return;
            }
            let path = path.child("ports").index(index);
            let host_port = port.host_port.unwrap_or(0);
            let host_ip = port.host_ip.as_deref().unwrap_or_default();
            if !host_ip.is_empty() && host_port == 0 {
                let warning = format!("hostIP set without hostPort: {}", printed(port));
                warnings.push(&path, &warning);
            }
            let protocol = port.protocol.as_deref().unwrap_or_default();
            let same = seen.entry((port.container_port, protocol)).or_default();
            for index in same.clashes(host_port, host_ip) {
                let Some(other) = same.places.get(index) else {
                    continue;
                };
                let what = if (other.host_port, other.host_ip) == (host_port, host_ip) {
                    "duplicate"
                } else if host_port == 0 || other.host_port == 0 {
                    "overlapping"
                } else {
                    "dangerously ambiguous"
                };
                let warning = format!("{what} port definition with {}", other.path);
                warnings.push(&path, &warning);
            }
            same.add(Place {
                path,
                host_port,
                host_ip,
            });
        }
    }
}
