//! Whom a proxied request is for: a pod's port, a ready endpoint of a service, or an address of a node.

use std::net::IpAddr;
use std::sync::Arc;

use gantry_api::status::StatusError;
use gantry_rpc::node::OpenStream;
use gantry_store::Key;
use rand::seq::IndexedRandom;
use serde_json::Value;

use crate::codec;
use crate::context::{Context, meta};
use crate::streams::NodeStreams;
use crate::streams::port_forward::Ports;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Where bytes go.
pub(super) enum Backend {
    /// Into a pod, over its node's link.
    Pod(Box<Ports>),
    /// Straight to an address: of a node, or of an endpoint that is no pod.
    Address(IpAddr),
}

pub(super) struct Target {
    pub(super) backend: Backend,
    pub(super) port: u16,
    /// As the target is called in the request.
    pub(super) host: String,
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
}

/// Finds the target that the path names.
pub(super) fn find(context: &Context<'_>) -> Result<Target, StatusError> {
    let streams = context.api.streams.clone();
    let kind = &*context.resource.info().singular;
    let invalid =
        || StatusError::bad_request(format!("invalid {kind} request {:?}", context.name()));
    let named = Named::parse(context.name()).ok_or_else(invalid)?;
    let key = context.resource.key(context.namespace(), named.name);
    let object = read(context, &key)?;
    if named.scheme == "https" {
        return Err(StatusError::bad_request(format!(
            "{kind} {:?} cannot be reached over https here, since nobody vouches for its certificate: use http, or kubectl port-forward",
            named.name
        )));
    }
    match kind {
        "service" => service(context, streams, &named, &object),
        "pod" => {
            let port = match named.port {
                "" => first_port(&object).unwrap_or(80),
                text => text.parse().map_err(|_| invalid())?,
            };
            let place = Place {
                namespace: context.namespace().unwrap_or_default(),
                name: named.name,
                uid: meta(&object, "uid"),
                node: object["spec"]["nodeName"].as_str().unwrap_or_default(),
            };
            place.target(streams, port)
        }
        _ => node(&named, &object),
    }
}

fn read(context: &Context<'_>, key: &Key) -> Result<Value, StatusError> {
    let info = context.resource.info();
    let entry = context.api.store.get(key);
    let entry = entry.ok_or_else(|| StatusError::not_found(info, &key.name))?;
    codec::decode(context.resource, &entry.value)
}

/// The first port that a pod's containers name.
fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?.iter();
    containers
        .filter_map(|container| container["ports"].get(0))
        .find_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
}

/// Where a pod runs.
struct Place<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    node: &'a str,
}

impl Place<'_> {
    fn target(self, streams: Arc<dyn NodeStreams>, port: u16) -> Result<Target, StatusError> {
        if self.node.is_empty() {
            return Err(StatusError::bad_request(format!(
                "pod {} does not have a host assigned",
                self.name
            )));
        }
        let request = OpenStream {
            namespace: self.namespace.to_owned(),
            pod: self.name.to_owned(),
            pod_uid: self.uid.to_owned(),
            ..OpenStream::default()
        };
        let ports = Ports::new(streams, self.node.to_owned(), request);
        Ok(Target {
            backend: Backend::Pod(Box::new(ports)),
            port,
            host: format!("{}:{port}", self.name),
        })
    }
}

/// A ready endpoint of a service's port.
#[derive(Debug, PartialEq)]
struct Endpoint {
    address: String,
    port: u16,
    /// Name, uid and node of the pod that it is.
    pod: Option<(String, String, String)>,
}

fn service(
    context: &Context<'_>,
    streams: Arc<dyn NodeStreams>,
    named: &Named<'_>,
    object: &Value,
) -> Result<Target, StatusError> {
    let port = port_name(named, object)?;
    let table = crate::registry::table("discovery.k8s.io", "endpointslices");
    let snapshot = context.api.store.snapshot(&table);
    let slices: Vec<Value> = snapshot
        .range_namespace(context.namespace().unwrap_or_default())
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
    let endpoints = endpoints(&slices, &port);
    let Some(chosen) = endpoints.choose(&mut rand::rng()) else {
        return Err(StatusError::service_unavailable(format!(
            "no endpoints available for service {:?}",
            named.name
        )));
    };
    match &chosen.pod {
        Some((name, uid, node)) => {
            let namespace = context.namespace().unwrap_or_default();
            let place = Place {
                namespace,
                name,
                uid,
                node,
            };
            place.target(streams, chosen.port)
        }
        None => address(&chosen.address, chosen.port, is_ordinary),
    }
}

/// The name of the service's port that is asked for, by name or number.
fn port_name(named: &Named<'_>, service: &Value) -> Result<String, StatusError> {
    let Ok(number) = named.port.parse::<u64>() else {
        return Ok(named.port.to_owned());
    };
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.find(|port| port["port"] == number);
    let found = found.ok_or_else(|| {
        StatusError::service_unavailable(format!(
            "no service port {number} found for service {:?}",
            named.name
        ))
    })?;
    Ok(found["name"].as_str().unwrap_or_default().to_owned())
}

fn endpoints(slices: &[Value], port: &str) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports
            .find(|known| known["name"].as_str().unwrap_or_default() == port)
            .and_then(|known| u16::try_from(known["port"].as_u64()?).ok());
        let Some(port) = number else { continue };
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        for endpoint in endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false) {
            let target = &endpoint["targetRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let pod = (target["kind"] == "Pod").then(|| {
                (
                    text(&target["name"]),
                    text(&target["uid"]),
                    text(&endpoint["nodeName"]),
                )
            });
            if let Some(address) = endpoint["addresses"][0].as_str() {
                let address = address.to_owned();
                found.push(Endpoint { address, port, pod });
            }
        }
    }
    found
}

/// A node's own port. Its agent has none of its own, so that one must be named.
fn node(named: &Named<'_>, object: &Value) -> Result<Target, StatusError> {
    if named.port.is_empty() {
        return Err(StatusError::service_unavailable(format!(
            "the agent of node {:?} serves no HTTP: name a port of the node, as in nodes/{}:9100/proxy/",
            named.name, named.name
        )));
    }
    let port = named.port.parse().map_err(|_| {
        StatusError::bad_request(format!("{:?} is not a port of a node", named.port))
    })?;
    let mut addresses = object["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten();
    let internal = addresses
        .find(|address| address["type"] == "InternalIP")
        .and_then(|address| address["address"].as_str());
    match internal {
        // A node that runs beside a server may call itself by the loopback address.
        Some(text) => address(text, port, |address| {
            address.is_loopback() || is_ordinary(address)
        }),
        None => Err(StatusError::service_unavailable(format!(
            "node {:?} has no address",
            named.name
        ))),
    }
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
fn address(
    text: &str,
    port: u16,
    is_allowed: impl Fn(IpAddr) -> bool,
) -> Result<Target, StatusError> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| StatusError::service_unavailable(format!("{text:?} is not an address")))?;
    let address = address.to_canonical();
    if !is_allowed(address) {
        return Err(StatusError::bad_request("address not allowed"));
    }
    Ok(Target {
        backend: Backend::Address(address),
        port,
        host: std::net::SocketAddr::new(address, port).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_have_up_to_three_parts() {
        let parsed =
            |text| Named::parse(text).map(|Named { scheme, name, port }| (scheme, name, port));
        assert_eq!(parsed("a"), Some(("", "a", "")));
        assert_eq!(parsed("a:http"), Some(("", "a", "http")));
        assert_eq!(parsed("https:a:443"), Some(("https", "a", "443")));
        assert_eq!(parsed("https:a:"), Some(("https", "a", "")));
        for bad in ["", ":80", "ftp:a:80", "a:b:c:d"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn ready_endpoints_of_the_port_are_found() {
        let slice = json!({
            "ports": [{"name": "http", "port": 8080}, {"name": "adm", "port": 9000}],
            "endpoints": [
                {
                    "addresses": ["10.244.0.1"], "conditions": {"ready": true}, "nodeName": "n",
                    "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}
                },
                {"addresses": ["10.244.0.2"], "conditions": {"ready": false}},
                {"addresses": ["192.0.2.1"], "conditions": {}}
            ]
        });
        let empty = json!({"ports": null, "endpoints": null});
        let found = endpoints(&[empty, slice], "http");
        let pod = ("p".to_owned(), "u".to_owned(), "n".to_owned());
        let expected = [("10.244.0.1", Some(pod)), ("192.0.2.1", None)];
        let expected = expected.map(|(address, pod)| Endpoint {
            address: address.to_owned(),
            port: 8080,
            pod,
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn no_spelling_leads_to_the_server_itself() {
        let reached = |text: &str| address(text, 80, is_ordinary).map(|target| target.host);
        for inward in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            let error = reached(inward).expect_err(inward);
            assert_eq!(
                (error.code(), error.message()),
                (400, "address not allowed")
            );
        }
        assert_eq!(
            reached("::ffff:192.0.2.1").ok().as_deref(),
            Some("192.0.2.1:80")
        );
        assert_eq!(
            reached("2001:db8::1").ok().as_deref(),
            Some("[2001:db8::1]:80")
        );
        let of_node = |text: &str| {
            let node = json!({"status": {"addresses": [{"type": "InternalIP", "address": text}]}});
            let named = Named::parse("n:9100").expect("a name");
            super::node(&named, &node).map(|target| target.host)
        };
        assert_eq!(of_node("127.0.0.1").ok().as_deref(), Some("127.0.0.1:9100"));
        assert!(of_node("169.254.169.254").is_err());
        assert!(of_node("0.0.0.0").is_err());
    }

    #[test]
    fn a_port_is_named_or_numbered() {
        let service = json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81}]}});
        let of = |text| port_name(&Named::parse(text).expect("a name"), &service);
        assert_eq!(of("a:80").ok().as_deref(), Some("http"));
        assert_eq!(of("a:81").ok().as_deref(), Some(""));
        assert_eq!(of("a:web").ok().as_deref(), Some("web"));
        assert_eq!(
            of("a:82").map_err(|error| error.message().to_owned()),
            Err("no service port 82 found for service \"a\"".to_owned())
        );
    }
}
