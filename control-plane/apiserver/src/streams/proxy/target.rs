//! Whom a proxied request is for: a pod's port, a ready endpoint of a service, or a port of a node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gantry_api::status::StatusError;
use gantry_rpc::node::OpenStream;
use gantry_store::Key;
use rand::seq::SliceRandom;
use serde_json::Value;

use crate::codec;
use crate::context::{Context, meta};
use crate::streams::NodeStreams;
use crate::streams::port_forward::Ports;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The port at which others' agents have their pages.
const KUBELET: &str = "10250";

/// Who connects.
pub(super) enum Backend {
    /// The pod's node, which this server reaches by its link.
    Node(Box<Ports>),
    /// The node of this name itself, likewise: its own pages.
    Pages(Arc<dyn NodeStreams>, String),
    /// This server.
    Server,
}

pub(super) struct Target {
    pub(super) backend: Backend,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// Whether TLS is spoken; nobody vouches for the certificate.
    pub(super) tls: bool,
}

impl Target {
    /// As the target is called in URLs of its own.
    pub(super) fn authority(&self) -> String {
        SocketAddr::new(self.address, self.port).to_string()
    }
}

/// `name`, `name:port` or `scheme:name:port`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https");
        (known && !name.is_empty()).then_some(Self { scheme, name, port })
    }

    fn tls(&self) -> bool {
        self.scheme == "https"
    }

    /// The port of URLs that name none.
    fn usual_port(&self) -> u16 {
        if self.tls() { 443 } else { 80 }
    }
}

/// Finds the target that the path names.
pub(super) fn find(context: &Context<'_>) -> Result<Target, StatusError> {
    let streams = context.api.streams.clone();
    let kind = &*context.resource.info().singular;
    let named = Named::parse(context.name()).ok_or_else(|| {
        StatusError::bad_request(format!("invalid {kind} request {:?}", context.name()))
    })?;
    let key = context.resource.key(context.namespace(), named.name);
    let object = read(context, &key)?;
    match kind {
        "service" => service(context, streams, &named, &object),
        "pod" => {
            let port = pod_port(&named, &object)?;
            let address = addresses(&object).next().unwrap_or_default();
            pod(&object, streams, address, port, named.tls())
        }
        _ => node(streams, &named, &object),
    }
}

fn read(context: &Context<'_>, key: &Key) -> Result<Value, StatusError> {
    let info = context.resource.info();
    let entry = context.api.store.get(key);
    let entry = entry.ok_or_else(|| StatusError::not_found(info, &key.name))?;
    codec::decode(context.resource, &entry.value)
}

fn unavailable(message: String) -> StatusError {
    StatusError::service_unavailable(message)
}

/// A number as URLs have it.
fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u16>().ok().filter(|_| digits)
}

/// The items of a list somewhere in an object.
fn items<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a Value> + use<'a> {
    let list = path.iter().fold(object, |value, name| &value[*name]);
    list.as_array().into_iter().flatten()
}

/// The port of a pod: a number, a name that a container gives one, or the first of all.
fn pod_port(named: &Named<'_>, pod: &Value) -> Result<u16, StatusError> {
    let value = |port: &Value| u16::try_from(port["containerPort"].as_u64()?).ok();
    let containers = || items(pod, &["spec", "containers"]);
    if named.port.is_empty() {
        let mut first = containers().filter_map(|container| container["ports"].get(0));
        return Ok(first.find_map(value).unwrap_or(named.usual_port()));
    }
    let by_name = || {
        let mut ports = containers().flat_map(|container| items(container, &["ports"]));
        ports
            .find(|port| port["name"] == named.port)
            .and_then(value)
    };
    number(named.port).or_else(by_name).ok_or_else(|| {
        let why = format!("dial tcp: lookup tcp/{}: unknown port", named.port);
        super::unreachable(&why)
    })
}

/// The addresses of a pod, as its node says them.
fn addresses(pod: &Value) -> impl Iterator<Item = &str> {
    items(pod, &["status", "podIPs"]).filter_map(|entry| entry["ip"].as_str())
}

/// A port on one of a pod's addresses.
fn pod(
    pod: &Value,
    streams: Arc<dyn NodeStreams>,
    address: &str,
    port: u16,
    tls: bool,
) -> Result<Target, StatusError> {
    let address = allowed(address, is_ordinary)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(StatusError::bad_request(format!(
            "pod {} does not have a host assigned",
            meta(pod, "name")
        )));
    }
    let request = OpenStream {
        namespace: meta(pod, "namespace").to_owned(),
        pod: meta(pod, "name").to_owned(),
        pod_uid: meta(pod, "uid").to_owned(),
        ..OpenStream::default()
    };
    let ports = Ports::new(streams, node.to_owned(), request).at(address);
    Ok(Target {
        backend: Backend::Node(Box::new(ports)),
        address,
        port,
        tls,
    })
}

/// A ready endpoint of a service's port that says which pod it is.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint<'a> {
    address: &'a str,
    port: u16,
    pod: &'a str,
}

fn service(
    context: &Context<'_>,
    streams: Arc<dyn NodeStreams>,
    named: &Named<'_>,
    object: &Value,
) -> Result<Target, StatusError> {
    let port = port_name(named, object)?;
    let namespace = context.namespace().unwrap_or_default();
    let table = crate::tables::table("discovery.k8s.io", "endpointslices");
    let snapshot = context.api.store.snapshot(&table);
    let slices: Vec<Value> = snapshot
        .range_namespace(namespace)
        .filter(|(_, entry)| {
            let labels = &entry.index.labels;
            labels
                .iter()
                .any(|(key, value)| key == SERVICE_NAME && value == named.name)
        })
        .filter_map(|(_, entry)| serde_json::from_slice(&entry.value).ok())
        .collect();
    if slices.is_empty() {
        return Err(StatusError::not_found(context.resource.info(), named.name));
    }
    let mut endpoints = endpoints(&slices, namespace, &port);
    endpoints.shuffle(&mut rand::rng());
    for endpoint in endpoints {
        // An endpoint is what somebody wrote. Requests go nowhere but to pods, and to those at their own addresses.
        let key = Key {
            table: crate::tables::table("", "pods"),
            namespace: namespace.into(),
            name: endpoint.pod.into(),
        };
        let entry = context.api.store.get(&key);
        let found = entry.and_then(|entry| serde_json::from_slice::<Value>(&entry.value).ok());
        if let Some(found) = found
            && addresses(&found).any(|own| own == endpoint.address)
        {
            return pod(
                &found,
                streams,
                endpoint.address,
                endpoint.port,
                named.tls(),
            );
        }
    }
    let asked = context.name();
    Err(unavailable(format!(
        "no endpoints available for service {asked:?}"
    )))
}

/// The name of the service's port that is asked for, by name or number.
fn port_name(named: &Named<'_>, service: &Value) -> Result<String, StatusError> {
    let Ok(number) = named.port.parse::<i64>() else {
        return Ok(named.port.to_owned());
    };
    let found = items(service, &["spec", "ports"]).find(|port| port["port"] == number);
    let found = found.ok_or_else(|| {
        unavailable(format!(
            "no service port {number} found for service {:?}",
            named.name
        ))
    })?;
    Ok(found["name"].as_str().unwrap_or_default().to_owned())
}

fn endpoints<'a>(slices: &'a [Value], namespace: &str, port: &str) -> Vec<Endpoint<'a>> {
    let mut found = Vec::new();
    for slice in slices {
        let number = items(slice, &["ports"])
            .find(|known| known["name"].as_str().unwrap_or_default() == port)
            .and_then(|known| u16::try_from(known["port"].as_u64()?).ok());
        let Some(port) = number else { continue };
        let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] != false;
        for endpoint in items(slice, &["endpoints"]).filter(ready) {
            let target = &endpoint["targetRef"];
            let is_here = target["kind"] == "Pod" && target["namespace"] == namespace;
            if let (Some(address), Some(pod)) =
                (endpoint["addresses"][0].as_str(), target["name"].as_str())
                && is_here
            {
                found.push(Endpoint { address, port, pod });
            }
        }
    }
    found
}

/// A port of a node; the pages of its agent where none is named, or that of a kubelet.
fn node(
    streams: Arc<dyn NodeStreams>,
    named: &Named<'_>,
    object: &Value,
) -> Result<Target, StatusError> {
    if ["", KUBELET].contains(&named.port) {
        return Ok(Target {
            backend: Backend::Pages(streams, named.name.to_owned()),
            // Nobody dials it.
            address: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            tls: false,
        });
    }
    let port = number(named.port).ok_or_else(|| {
        StatusError::bad_request(format!("{:?} is not a port of a node", named.port))
    })?;
    let internal = items(object, &["status", "addresses"])
        .find(|address| address["type"] == "InternalIP")
        .and_then(|address| address["address"].as_str())
        .ok_or_else(|| unavailable(format!("node {:?} has no address", named.name)))?;
    let address = allowed(internal, is_ordinary)?;
    Ok(Target {
        backend: Backend::Server,
        address,
        port,
        tls: named.tls(),
    })
}

/// Whether an address is of one machine on a network. Anything else would lead back to this server, or to what answers only
/// its own machine.
fn is_ordinary(address: IpAddr) -> bool {
    let own = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !own && !local
}

/// An address that may be reached, however it is spelled.
fn allowed(text: &str, is_allowed: impl Fn(IpAddr) -> bool) -> Result<IpAddr, StatusError> {
    let address = text.parse::<IpAddr>().ok();
    let address = address.map(|address| address.to_canonical());
    address
        .filter(|address| is_allowed(*address))
        .ok_or_else(|| StatusError::bad_request("address not allowed"))
}

#[cfg(test)]
mod tests;
