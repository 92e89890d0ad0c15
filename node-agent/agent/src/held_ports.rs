//! Ports that a process of this node has: which of them services leave to it.
//!
//! A load balancer's address or an external IP may be one of the node's own. A service's port there is left out as long
//! as a process listens on it (SSH, say), since the process would be cut off; who came first does not matter, so that a
//! process that is started again is found where it was. A node port is the cluster's to give, and is served on
//! every node: it goes to the service, as with kube-proxy, and the process is cut off. The service is told of both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_cri::network::NetworkError;
use gantry_network::{Listeners, LocalPort, Protocol, ServiceChanges, ServiceName, ServicePort};
use k8s_openapi::api::core::v1::Service;

use crate::desired::ServiceUpdates;
use crate::metrics::METRICS;
use crate::reports::{Reports, Severity};

/// What is known of the services whose ports may be a process's.
pub(crate) struct HeldPorts {
    node: String,
    listeners: Arc<dyn Listeners>,
    reports: Arc<Reports>,
    known: BTreeMap<ServiceName, ServicePorts>,
}

/// The ports of one service that a process may listen on.
#[derive(Default)]
struct ServicePorts {
    wanted: BTreeSet<LocalPort>,
    /// Those of them that a process listens on.
    held: BTreeSet<LocalPort>,
}

impl ServicePorts {
    /// Whether it wants addresses that may be this node's.
    fn has_addresses(&self) -> bool {
        has_addresses(&self.wanted)
    }
}

fn has_addresses(ports: &BTreeSet<LocalPort>) -> bool {
    ports.iter().any(|port| port.address.is_some())
}

impl HeldPorts {
    pub(crate) fn new(node: &str, listeners: Arc<dyn Listeners>, reports: Arc<Reports>) -> Self {
        Self {
            node: node.to_owned(),
            listeners,
            reports,
            known: BTreeMap::new(),
        }
    }

    /// Leaves out of what is to be programmed what processes have. The node is asked about services that want
    /// addresses, and about new node ports.
    pub(crate) async fn leave_out(&mut self, changes: &mut ServiceChanges, news: &ServiceUpdates) {
        if changes.complete {
            self.known
                .retain(|name, _| changes.services.contains_key(name));
        }
        let mut asked = BTreeSet::new();
        let mut about = Vec::new();
        for (name, ports) in &changes.services {
            let wanted = wanted(ports);
            if wanted.is_empty() {
                self.known.remove(name);
                continue;
            }
            let known = self.known.entry(name.clone()).or_default();
            if known.wanted != wanted || has_addresses(&wanted) {
                asked.extend(wanted.iter().copied());
                about.push(name);
            }
            known.held.retain(|port| wanted.contains(port));
            known.wanted = wanted;
        }
        if let Some(held) = self.ask(asked).await {
            for name in about {
                let service = news.services.get(name);
                let service = service.and_then(|objects| objects.service.as_deref());
                if let (Some(known), Some(service)) = (self.known.get_mut(name), service) {
                    let now: BTreeSet<LocalPort> =
                        known.wanted.intersection(&held).copied().collect();
                    let before = std::mem::replace(&mut known.held, now);
                    tell(&self.reports, &self.node, service, &before, &known.held);
                }
            }
        }
        for (name, ports) in &mut changes.services {
            if let Some(known) = self.known.get(name) {
                ports.iter_mut().for_each(|port| free(port, &known.held));
            }
        }
        self.count();
    }

    /// The services of which a port is free that was held, or the other way around.
    pub(crate) async fn look_again(&self) -> Vec<ServiceName> {
        let with_addresses = || self.known.iter().filter(|(_, known)| known.has_addresses());
        let wanted = with_addresses().flat_map(|(_, known)| known.wanted.iter().copied());
        let Some(held) = self.ask(wanted.collect()).await else {
            return Vec::new();
        };
        with_addresses()
            .filter(|(_, known)| {
                let now = known.wanted.intersection(&held);
                !now.eq(known.held.iter())
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Which of the ports are held; none when nothing is asked, or when it is not to be found out.
    async fn ask(&self, ports: BTreeSet<LocalPort>) -> Option<BTreeSet<LocalPort>> {
        if ports.is_empty() {
            return None;
        }
        let held: Result<_, NetworkError> = self.listeners.held(ports).await;
        held.inspect_err(|error| {
            tracing::warn!(
                error = gantry_cri::words(error),
                "looking for processes that listen on ports of services; taking it that nothing has changed"
            );
        })
        .ok()
    }

    fn count(&self) {
        let held = self.known.values().flat_map(|known| known.held.iter());
        let count = held.count();
        METRICS
            .held_ports
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// The ports of this host that a service may take, but for those on which an endpoint of its own listens, on the
/// node's network.
fn wanted(ports: &[ServicePort]) -> BTreeSet<LocalPort> {
    let mut wanted = BTreeSet::new();
    for port in ports {
        let endpoints = || port.endpoints.iter().chain(&port.local_endpoints);
        let local = |address, number| LocalPort {
            protocol: port.protocol,
            address,
            port: number,
        };
        for &address in port.external_ips.iter().chain(&port.load_balancer_ips) {
            if !endpoints().any(|endpoint| (endpoint.ip, endpoint.port) == (address, port.port)) {
                wanted.insert(local(Some(address), port.port));
            }
        }
        if let Some(number) = port.node_port
            && !endpoints().any(|endpoint| endpoint.local && endpoint.port == number)
        {
            wanted.insert(local(None, number));
        }
    }
    wanted
}

/// Takes the addresses off a port where it is held.
fn free(port: &mut ServicePort, held: &BTreeSet<LocalPort>) {
    let (protocol, number) = (port.protocol, port.port);
    let is_free = |address: &std::net::IpAddr| {
        !held.contains(&LocalPort {
            protocol,
            address: Some(*address),
            port: number,
        })
    };
    port.external_ips.retain(is_free);
    port.load_balancer_ips.retain(is_free);
}

fn tell(
    reports: &Reports,
    node: &str,
    service: &Service,
    before: &BTreeSet<LocalPort>,
    now: &BTreeSet<LocalPort>,
) {
    for port in now.difference(before) {
        let number = number(port);
        let message = match port.address {
            Some(address) => format!(
                "Node {node} does not serve port {number} on its address {address}: a process of the node listens \
                 there. Stop that process, or choose another port for the service; other ports and nodes are served"
            ),
            None => format!(
                "Node {node} serves the node port {number}, and a process of the node that listens there is cut off. \
                 Let that process listen on a port that is no node port, or choose another node port for the service"
            ),
        };
        reports.service_event(service, Severity::Warning, "PortInUse", &message);
    }
    for port in before.difference(now) {
        if let Some(address) = port.address {
            let number = number(port);
            let message = format!("Node {node} serves port {number} on its address {address}");
            reports.service_event(service, Severity::Normal, "PortServed", &message);
        }
    }
}

fn number(port: &LocalPort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    format!("{}/{protocol}", port.port)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::FutureExt as _;
    use gantry_network::{Endpoint, FakeListeners};
    use gantry_rpc::node::agent_message;
    use serde_json::{Value, json};

    use super::*;
    use crate::services::ServiceObjects;

    const ANY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    const HERE: &str = "192.0.2.1";
    const ELSEWHERE: &str = "192.0.2.2";

    struct Bed {
        held: HeldPorts,
        listeners: Arc<FakeListeners>,
        reports: Arc<Reports>,
    }

    impl Bed {
        fn new() -> Self {
            let listeners = Arc::new(FakeListeners::new([ip(HERE)]));
            let reports = Arc::new(Reports::new("n1"));
            Self {
                held: HeldPorts::new("n1", listeners.clone(), reports.clone()),
                listeners,
                reports,
            }
        }

        /// What is to be programmed of these services.
        async fn leave_out<const N: usize>(
            &mut self,
            services: [(&str, Vec<ServicePort>); N],
        ) -> BTreeMap<ServiceName, Vec<ServicePort>> {
            let mut changes = ServiceChanges::default();
            let mut news = ServiceUpdates::default();
            for (service, ports) in services {
                let object =
                    json!({"metadata": {"name": service, "namespace": "shop", "uid": "u"}});
                let objects = ServiceObjects {
                    service: serde_json::from_value(object).unwrap(),
                    slices: Vec::new(),
                };
                news.services.insert(name(service), objects);
                changes.services.insert(name(service), ports);
            }
            self.held.leave_out(&mut changes, &news).await;
            changes.services
        }

        fn events(&self) -> Vec<Value> {
            let messages = self.reports.next().now_or_never().unwrap_or_default();
            let events = messages
                .into_iter()
                .filter_map(|message| match message.message {
                    Some(agent_message::Message::Event(record)) => Some(record.event),
                    _ => None,
                });
            events
                .map(|event| serde_json::from_slice(&event).unwrap())
                .collect()
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn name(service: &str) -> ServiceName {
        ServiceName {
            namespace: "shop".into(),
            name: service.into(),
        }
    }

    fn port(number: u16, balancers: &[&str], node_port: Option<u16>) -> ServicePort {
        ServicePort {
            port_name: String::new(),
            protocol: Protocol::Tcp,
            cluster_ip: ip("10.96.0.9"),
            port: number,
            external_ips: vec![],
            load_balancer_ips: balancers.iter().map(|address| ip(address)).collect(),
            source_ranges: vec![],
            node_port,
            client_ip_affinity: None,
            external_local: false,
            internal_local: false,
            endpoints: vec![],
            local_endpoints: vec![],
            held: None,
        }
    }

    #[tokio::test]
    async fn a_port_that_a_process_has_is_left_out_and_told_once() {
        let mut bed = Bed::new();
        bed.listeners.listen(Protocol::Tcp, ANY, 22);
        let ports = || {
            let mut ssh = port(22, &[HERE, ELSEWHERE], None);
            ssh.external_ips = vec![ip(HERE)];
            vec![ssh, port(80, &[HERE, ELSEWHERE], None)]
        };
        for turn in 0..2 {
            let programmed = &bed.leave_out([("web", ports())]).await[&name("web")];
            assert_eq!(programmed[0].load_balancer_ips, [ip(ELSEWHERE)]);
            assert!(programmed[0].external_ips.is_empty());
            assert_eq!(programmed[1], ports()[1]);
            let events = bed.events();
            assert_eq!(events.len(), usize::from(turn == 0), "{events:?}");
            for event in events {
                let about = &event["involvedObject"];
                assert_eq!(
                    (&about["kind"], &about["namespace"], &about["name"]),
                    (&json!("Service"), &json!("shop"), &json!("web"))
                );
                assert_eq!(
                    (&event["type"], &event["reason"]),
                    (&json!("Warning"), &json!("PortInUse"))
                );
                let message = event["message"].as_str().unwrap();
                for words in ["n1", HERE, "22/TCP", "Stop that process"] {
                    assert!(message.contains(words), "{message}");
                }
            }
        }
        assert_eq!(bed.held.look_again().await, []);
        bed.listeners.close(Protocol::Tcp, ANY, 22);
        assert_eq!(bed.held.look_again().await, [name("web")]);
        assert_eq!(
            bed.leave_out([("web", ports())]).await[&name("web")],
            ports()
        );
        assert_eq!(bed.events()[0]["reason"], "PortServed");
        // Who comes later is found, too.
        bed.listeners.listen(Protocol::Tcp, ip(HERE), 80);
        assert_eq!(bed.held.look_again().await, [name("web")]);
        let programmed = &bed.leave_out([("web", ports())]).await[&name("web")];
        assert_eq!(programmed[1].load_balancer_ips, [ip(ELSEWHERE)]);
        // Of a port that the service gives up, nothing is said.
        bed.events();
        bed.leave_out([("web", vec![port(81, &[HERE], None)])])
            .await;
        assert_eq!(bed.events(), Vec::<Value>::new());
    }

    #[tokio::test]
    async fn a_node_port_goes_to_the_service_which_is_told() {
        let mut bed = Bed::new();
        bed.listeners.listen(Protocol::Tcp, ip("127.0.0.1"), 30080);
        let ports = vec![port(80, &[], Some(30080))];
        for turn in 0..2 {
            let programmed = bed.leave_out([("web", ports.clone())]).await;
            assert_eq!(programmed[&name("web")], ports);
            let events = bed.events();
            assert_eq!(events.len(), usize::from(turn == 0), "{events:?}");
            for event in events {
                let message = event["message"].as_str().unwrap();
                assert_eq!(event["reason"], "PortInUse");
                assert!(message.contains("node port 30080/TCP"), "{message}");
            }
        }
    }

    #[tokio::test]
    async fn only_services_with_such_ports_are_looked_at() {
        let mut bed = Bed::new();
        let plain = || vec![port(80, &[], None)];
        let (node_port, balanced) = (
            || vec![port(80, &[], Some(30080))],
            || vec![port(443, &[HERE], None)],
        );
        bed.leave_out([("plain", plain())]).await;
        bed.held.look_again().await;
        assert!(bed.listeners.take_asked().is_empty());
        bed.leave_out([("a", plain()), ("b", node_port()), ("c", balanced())])
            .await;
        bed.leave_out([("a", plain()), ("b", node_port())]).await;
        bed.leave_out([("c", balanced())]).await;
        bed.held.look_again().await;
        let asked: Vec<Vec<u16>> = bed
            .listeners
            .take_asked()
            .iter()
            .map(|ports| ports.iter().map(|port| port.port).collect())
            .collect();
        assert_eq!(asked, [vec![30080, 443], vec![443], vec![443]]);
        bed.leave_out([("c", vec![])]).await;
        bed.held.look_again().await;
        assert!(bed.listeners.take_asked().is_empty(), "it is gone");
    }

    #[tokio::test]
    async fn a_process_that_is_an_endpoint_of_the_service_is_no_obstacle() {
        let mut bed = Bed::new();
        bed.listeners.listen(Protocol::Tcp, ANY, 443);
        let mut ingress = port(443, &[HERE], None);
        let endpoint = |address| Endpoint {
            ip: ip(address),
            port: 443,
            local: address == HERE,
        };
        ingress.endpoints = vec![endpoint(ELSEWHERE), endpoint(HERE)];
        let programmed = bed.leave_out([("ingress", vec![ingress.clone()])]).await;
        assert_eq!(programmed[&name("ingress")], [ingress]);
        assert_eq!(bed.events(), Vec::<Value>::new());
    }
}
