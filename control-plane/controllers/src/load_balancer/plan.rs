//! The pure part: which addresses a balanced service has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use gantry_api::node_labels::DIALS_FROM;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::endpoint_slice::plan::families;

/// The class of services that want exactly this.
const CLASS: &str = "gantry.io/node";
/// The condition that says that a service is balanced here, or why not.
const CONDITION: &str = "gantry.io/LoadBalancer";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What an event tells of a plan.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    None,
    /// It has addresses for the first time.
    Given,
    /// It has others.
    Moved,
    /// There is no node for it.
    Unavailable,
    /// It cannot have any.
    Refused(String),
}

/// The status as it should be.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) ingress: Vec<LoadBalancerIngress>,
    pub(super) change: Change,
    /// Whether the status is another now.
    pub(super) write: bool,
    /// Status, reason and message of the condition; none when it goes.
    condition: Option<(&'static str, &'static str, String)>,
}

/// Whether the service asks this cluster to balance it.
pub(super) fn balances(service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS)
}

/// Whether only nodes with endpoints of their own may be sent requests.
pub(super) fn is_local(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

fn condition(service: &Service) -> Option<&Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == CONDITION)
}

/// Whether the service has addresses of nodes.
pub(super) fn serves(service: &Service) -> bool {
    condition(service).is_some_and(|condition| condition.status == "True")
}

fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref();
    status
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default()
}

/// Whether somebody else has given the service addresses.
fn is_foreign(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let named = spec.is_some_and(|spec| spec.load_balancer_class.is_some());
    !named && !ingress(service).is_empty() && condition(service).is_none()
}

/// Whether a node is where it says that it is: it dials from there, or from a server's own machine. One without a link says
/// nothing: whoever wrote its Node is believed.
fn is_shown(node: &Node, address: IpAddr) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    let from = annotations.and_then(|annotations| annotations.get(DIALS_FROM));
    from.is_none_or(|from| {
        from.parse().is_ok_and(|from: IpAddr| {
            from.is_loopback() || from.to_canonical() == address.to_canonical()
        })
    })
}

/// Whether a node takes requests for services.
fn takes_requests(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let excluded = labels.is_some_and(|labels| labels.contains_key(EXCLUDED));
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && !excluded && node.metadata.deletion_timestamp.is_none()
}

/// A node's addresses for services, one of each family; none when it takes no requests. All nodes redirect what is for such
/// an address: it is an external one, which only an administrator gives, or an internal one that is shown to be the node's.
pub(super) fn addresses(node: &Node) -> Vec<IpAddr> {
    if !takes_requests(node) {
        return Vec::new();
    }
    let status = node.status.as_ref();
    let of = |kind: &'static str| {
        let addresses = status.and_then(|status| status.addresses.as_ref());
        addresses
            .into_iter()
            .flatten()
            .filter(move |address| address.type_ == kind)
            .filter_map(|address| address.address.parse::<IpAddr>().ok())
    };
    [false, true]
        .into_iter()
        .filter_map(|v6| {
            let shown = of("InternalIP").filter(|address| is_shown(node, *address));
            let mut all = of("ExternalIP").chain(shown);
            all.find(|address| address.is_ipv6() == v6)
        })
        .collect()
}

/// Compares the status with what it should be; none when the service is not ours to write to.
///
/// `local` are the nodes with endpoints, where only those may serve; `rival` says who has a port of the service.
pub(super) fn plan(
    service: &Service,
    nodes: &[Arc<Node>],
    local: Option<&BTreeSet<String>>,
    rival: Option<&str>,
) -> Option<Plan> {
    let known = ingress(service);
    if !balances(service) {
        // Its addresses went with its type; what was said of them goes, too.
        condition(service)?;
        return Some(Plan {
            ingress: known.to_vec(),
            change: Change::None,
            write: true,
            condition: None,
        });
    }
    if is_foreign(service) {
        return None;
    }
    let wanted = match rival {
        Some(_) => Vec::new(),
        None => of_nodes(service, nodes, local),
    };
    let (status, reason, message) = match (rival, wanted.len()) {
        (Some(why), _) => ("False", "PortTaken", why.to_owned()),
        (None, 0) => {
            let words = match local {
                Some(_) => "no ready node has a ready endpoint, and the traffic policy is Local",
                None if nodes.iter().any(|node| takes_requests(node)) => {
                    "no ready node dials the servers from an address of these families: give nodes one of type ExternalIP in their status"
                }
                None => "no node is ready",
            };
            ("False", "NoNodes", words.to_owned())
        }
        (None, _) => ("True", "Served", "on the addresses of the nodes".to_owned()),
    };
    let told = condition(service);
    let same_condition = told.is_some_and(|told| {
        told.status == status && told.reason == reason && told.message == message
    });
    let change = match (rival, known.is_empty(), wanted.is_empty()) {
        (Some(why), ..) if !same_condition => Change::Refused(why.to_owned()),
        (Some(_), ..) => Change::None,
        (None, true, false) => Change::Given,
        (None, false, false) if known != wanted => Change::Moved,
        (None, _, true) if !same_condition => Change::Unavailable,
        (None, ..) => Change::None,
    };
    // A service that never had addresses, in a cluster without nodes, is just pending.
    let pending = told.is_none() && wanted.is_empty() && rival.is_none();
    Some(Plan {
        write: !pending && (known != wanted || !same_condition),
        ingress: wanted,
        change,
        condition: Some((status, reason, message)),
    })
}

fn of_nodes(
    service: &Service,
    nodes: &[Arc<Node>],
    local: Option<&BTreeSet<String>>,
) -> Vec<LoadBalancerIngress> {
    let families = families(service);
    let mut addresses: Vec<IpAddr> = nodes
        .iter()
        .filter(|node| {
            let name = node.metadata.name.as_ref();
            local.is_none_or(|local| name.is_some_and(|name| local.contains(name)))
        })
        .flat_map(|node| addresses(node))
        .filter(|address| families.contains(&if address.is_ipv6() { "IPv6" } else { "IPv4" }))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
        .into_iter()
        .map(|address| LoadBalancerIngress {
            ip: Some(address.to_string()),
            // Packets arrive with the node's address: whoever meets one on the way may serve it.
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        })
        .collect()
}

impl Plan {
    /// The service's conditions with the one of this plan.
    pub(super) fn conditions(&self, service: &Service, now: Time) -> Vec<Condition> {
        let status = service.status.as_ref();
        let known = status.and_then(|status| status.conditions.clone());
        let mut conditions = known.unwrap_or_default();
        conditions.retain(|condition| condition.type_ != CONDITION);
        if let Some((status, reason, message)) = &self.condition {
            let before = condition(service).filter(|before| before.status == *status);
            conditions.push(Condition {
                type_: CONDITION.to_owned(),
                status: (*status).to_owned(),
                reason: (*reason).to_owned(),
                message: message.clone(),
                last_transition_time: before
                    .map_or(now, |before| before.last_transition_time.clone()),
                observed_generation: None,
            });
        }
        conditions
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value, status: Value) -> Service {
        let mut object =
            json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": spec, "status": status});
        if object["spec"]["type"].is_null() {
            object["spec"]["type"] = json!("LoadBalancer");
        }
        serde_json::from_value(object).expect("a service")
    }

    fn node(name: &str, ready: &str, labels: Value, addresses: &[(&str, &str)]) -> Arc<Node> {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|(kind, address)| json!({"type": kind, "address": address}))
            .collect();
        let node = json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": addresses}
        });
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    fn three() -> Vec<Arc<Node>> {
        let internal = |address: &'static str| [("InternalIP", address)];
        vec![
            node("a", "True", json!({}), &internal("192.0.2.1")),
            node(
                "b",
                "True",
                json!({}),
                &[
                    ("InternalIP", "192.0.2.2"),
                    ("InternalIP", "fd00::2"),
                    ("ExternalIP", "203.0.113.2"),
                ],
            ),
            node("c", "True", json!({}), &internal("192.0.2.3")),
        ]
    }

    fn ips(plan: &Plan) -> Vec<&str> {
        let ingress = plan.ingress.iter();
        ingress.filter_map(|entry| entry.ip.as_deref()).collect()
    }

    fn written(service: &Service, plan: &Plan) -> Service {
        let now = Time(Timestamp::UNIX_EPOCH);
        let mut service = service.clone();
        let conditions = plan.conditions(&service, now);
        let status = service.status.get_or_insert_default();
        status.conditions = Some(conditions);
        status.load_balancer.get_or_insert_default().ingress = Some(plan.ingress.clone());
        service
    }

    #[test]
    fn every_ready_node_serves_and_what_is_written_stays() {
        let new = service(json!({}), json!({}));
        let first = plan(&new, &three(), None, None).expect("ours");
        assert_eq!(ips(&first), ["192.0.2.1", "192.0.2.3", "203.0.113.2"]);
        assert_eq!((&first.change, first.write), (&Change::Given, true));
        let known = written(&new, &first);
        assert!(serves(&known));
        let again = plan(&known, &three(), None, None).expect("ours");
        assert_eq!((&again.change, again.write), (&Change::None, false));

        let mut nodes = three();
        nodes[0] = node("a", "Unknown", json!({}), &[("InternalIP", "192.0.2.1")]);
        nodes[2] = node(
            "c",
            "True",
            json!({EXCLUDED: ""}),
            &[("InternalIP", "192.0.2.3")],
        );
        let moved = plan(&known, &nodes, None, None).expect("ours");
        assert_eq!(ips(&moved), ["203.0.113.2"]);
        assert_eq!((&moved.change, moved.write), (&Change::Moved, true));

        let alone = plan(&known, &[], None, None).expect("ours");
        assert_eq!((&alone.change, alone.write), (&Change::Unavailable, true));
        assert!(!serves(&written(&known, &alone)));
    }

    #[test]
    fn an_address_that_a_node_only_claims_is_not_served() {
        let dialling = |from: &str, addresses: &[(&str, &str)]| {
            let mut node = Node::clone(&node("a", "True", json!({}), addresses));
            let annotations = node.metadata.annotations.get_or_insert_default();
            // As the servers write it.
            annotations.insert("gantry.io/dials-from".to_owned(), from.to_owned());
            Arc::new(node)
        };
        let new = service(json!({"ipFamilies": ["IPv4", "IPv6"]}), json!({}));
        let serves = |node: Arc<Node>| {
            let plan = plan(&new, &[node], None, None).expect("ours");
            ips(&plan)
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let claims = [
            ("InternalIP", "1.1.1.1"),
            ("InternalIP", "192.0.2.7"),
            ("InternalIP", "2606:4700:4700::1111"),
        ];
        assert_eq!(serves(dialling("192.0.2.7", &claims)), ["192.0.2.7"]);
        assert!(serves(dialling("198.51.100.1", &claims)).is_empty());
        assert!(serves(dialling("", &claims)).is_empty());
        let beside = dialling("127.0.0.1", &claims[1..]);
        assert_eq!(serves(beside), ["192.0.2.7", "2606:4700:4700::1111"]);
        // What an administrator gave it.
        let given = [("InternalIP", "192.0.2.7"), ("ExternalIP", "203.0.113.7")];
        let given = dialling("198.51.100.1", &given);
        assert_eq!(serves(given), ["203.0.113.7"]);
    }

    #[test]
    fn families_and_local_endpoints_narrow_it() {
        let both = service(json!({"ipFamilies": ["IPv4", "IPv6"]}), json!({}));
        let plan_of = |service: &Service, local: Option<&[&str]>| {
            let local = local.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            plan(service, &three(), local.as_ref(), None).expect("ours")
        };
        let found = plan_of(&both, None);
        assert_eq!(
            ips(&found),
            ["192.0.2.1", "192.0.2.3", "203.0.113.2", "fd00::2"]
        );
        let one = service(json!({}), json!({}));
        assert_eq!(ips(&plan_of(&one, Some(&["c"]))), ["192.0.2.3"]);
        assert_eq!(plan_of(&one, Some(&[])).change, Change::Unavailable);
    }

    #[test]
    fn what_others_balance_is_left_alone() {
        let class = service(json!({"loadBalancerClass": "example.com/lb"}), json!({}));
        assert_eq!(plan(&class, &three(), None, None), None);
        let given = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
        let foreign = service(json!({}), given.clone());
        assert_eq!(plan(&foreign, &three(), None, None), None);
        let ours = service(json!({"loadBalancerClass": CLASS}), given);
        let plan = plan(&ours, &three(), None, None).expect("ours");
        assert_eq!(plan.change, Change::Moved);
    }

    #[test]
    fn without_nodes_a_new_service_is_pending_and_nothing_is_written() {
        let new = service(json!({}), json!({}));
        let plan = plan(&new, &[], None, None).expect("ours");
        assert_eq!((&plan.change, plan.write), (&Change::Unavailable, false));
    }

    #[test]
    fn a_port_serves_one_service() {
        let new = service(json!({}), json!({}));
        let why = "port 80/TCP of the nodes serves service ns/other";
        let refused = plan(&new, &three(), None, Some(why)).expect("ours");
        assert_eq!((ips(&refused).len(), refused.write), (0, true));
        assert_eq!(refused.change, Change::Refused(why.to_owned()));
        let told = written(&new, &refused);
        let again = plan(&told, &three(), None, Some(why)).expect("ours");
        assert_eq!((&again.change, again.write), (&Change::None, false));
        let free = plan(&told, &three(), None, None).expect("ours");
        assert_eq!((ips(&free).len(), &free.change), (3, &Change::Given));
    }

    #[test]
    fn the_condition_goes_with_the_type() {
        let served = written(
            &service(json!({}), json!({})),
            &plan(&service(json!({}), json!({})), &three(), None, None).expect("ours"),
        );
        let mut changed = served;
        changed.spec.get_or_insert_default().type_ = Some("ClusterIP".to_owned());
        changed.status.get_or_insert_default().load_balancer = None;
        let gone = plan(&changed, &three(), None, None).expect("to be cleaned");
        assert!(gone.write && gone.ingress.is_empty());
        let now = Time(Timestamp::UNIX_EPOCH);
        assert_eq!(gone.conditions(&changed, now), []);
        let plain = service(json!({"type": "ClusterIP"}), json!({}));
        assert_eq!(plan(&plain, &three(), None, None), None);
    }
}
