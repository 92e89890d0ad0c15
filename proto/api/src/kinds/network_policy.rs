//! NetworkPolicy: which connections the pods of a namespace may accept and open.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::table::{self, Printer};
use super::{addresses, workload};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;
use crate::{names, selector};

/// See [`NetworkPolicy`].
pub struct NetworkPolicyKind;

const INGRESS: &str = "Ingress";
const EGRESS: &str = "Egress";
const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];

/// Peers that select pods, and ports, of one policy: each is a rule or two on every node that has a pod of the policy's, all
/// of which a packet may be compared with. Nodes have room for some policies as large (`network/src/policy/plan.rs`).
const MOST_CONDITIONS: usize = 2_000;
/// Blocks of addresses of one policy. Nodes know no exceptions: one is as many blocks as there are bits between the block's
/// prefix and its own.
const MOST_BLOCKS: usize = 10_000;

/// What a policy costs nodes, at most.
#[derive(Default)]
struct Size {
    conditions: usize,
    blocks: usize,
}

impl Size {
    fn of(spec: &NetworkPolicySpec) -> Self {
        let mut size = Self::default();
        for rule in spec.ingress.iter().flatten() {
            size.add(rule.from.as_deref(), rule.ports.as_deref());
        }
        for rule in spec.egress.iter().flatten() {
            let selections = size.add(rule.to.as_deref(), rule.ports.as_deref());
            // A name stands for a port of each peer's own.
            let named =
                |port: &&NetworkPolicyPort| matches!(port.port, Some(IntOrString::String(_)));
            let names = rule.ports.iter().flatten().filter(named).count();
            size.conditions += names.saturating_mul(selections.max(1));
        }
        size
    }

    /// Adds a rule; how many of its peers select pods.
    fn add(
        &mut self,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> usize {
        let mut selections = 0;
        for peer in peers.unwrap_or_default() {
            match &peer.ip_block {
                None => selections += 1,
                Some(block) => self.blocks += blocks(block),
            }
        }
        self.conditions += 1 + selections + ports.unwrap_or_default().len();
        selections
    }
}

/// How many blocks are left of one without its exceptions, at most.
fn blocks(block: &IPBlock) -> usize {
    let length = |cidr: &str| {
        cidr.parse()
            .map_or(0, |cidr: ipnet::IpNet| cidr.prefix_len())
    };
    let own = length(&block.cidr);
    let bits = |except: &String| usize::from(length(except).saturating_sub(own));
    1 + block.except.iter().flatten().map(bits).sum::<usize>()
}

fn validate_size(spec: &NetworkPolicySpec, errors: &mut ErrorList) {
    let size = Size::of(spec);
    for (what, actual, most) in [
        ("rules, peers and ports", size.conditions, MOST_CONDITIONS),
        (
            "blocks of addresses (an exception is one for each bit that its prefix is longer)",
            size.blocks,
            MOST_BLOCKS,
        ),
    ] {
        if actual > most {
            let detail = format!(
                "{actual} {what} are more than the {most} that a policy may have: make several policies of it"
            );
            errors.forbidden(&Path::new("spec"), &detail);
        }
    }
}

fn validate_port(port: &NetworkPolicyPort, path: &Path, errors: &mut ErrorList) {
    if let Some(protocol) = &port.protocol
        && !PROTOCOLS.contains(&protocol.as_str())
    {
        errors.not_supported(&path.child("protocol"), protocol, PROTOCOLS);
    }
    let end_path = path.child("endPort");
    match (&port.port, port.end_port) {
        (None, None) => {}
        (None, Some(end)) => {
            errors.invalid(
                &end_path,
                end,
                "may not be specified when `port` is not specified",
            );
        }
        (Some(IntOrString::Int(first)), end) => {
            if let Some(detail) = names::is_port_number(i64::from(*first)) {
                errors.invalid(&path.child("port"), first, &detail);
            }
            let Some(end) = end else { return };
            if end < *first {
                let detail = "must be greater than or equal to `port`";
                errors.invalid(&end_path, first, detail);
            }
            if let Some(detail) = names::is_port_number(i64::from(end)) {
                errors.invalid(&end_path, end, &detail);
            }
        }
        (Some(IntOrString::String(name)), end) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                errors.invalid(&end_path, end, detail);
            }
            for detail in names::port_name(name) {
                errors.invalid(&path.child("port"), name, &detail);
            }
        }
    }
}

fn validate_block(block: &IPBlock, path: &Path, errors: &mut ErrorList) {
    let cidr_path = path.child("cidr");
    if block.cidr.is_empty() {
        errors.required(&cidr_path, "");
        return;
    }
    let before = errors.0.len();
    addresses::check_cidr(&block.cidr, &cidr_path, errors);
    if errors.0.len() > before {
        return;
    }
    let whole: Option<ipnet::IpNet> = block.cidr.parse().ok();
    for (index, except) in block.except.iter().flatten().enumerate() {
        let path = path.child("except").index(index);
        let before = errors.0.len();
        addresses::check_cidr(except, &path, errors);
        if errors.0.len() > before {
            continue;
        }
        let part: Option<ipnet::IpNet> = except.parse().ok();
        if let (Some(whole), Some(part)) = (whole, part)
            && (!whole.contains(&part.addr()) || whole.prefix_len() >= part.prefix_len())
        {
            errors.invalid(&path, except, "must be a strict subset of `cidr`");
        }
    }
}

/// Warnings about blocks that are not written as Kubernetes writes them.
fn block_warnings(peers: &[NetworkPolicyPeer], path: &Path, warnings: &mut Vec<String>) {
    for (index, peer) in peers.iter().enumerate() {
        let Some(block) = &peer.ip_block else {
            continue;
        };
        let path = path.index(index).child("ipBlock");
        warnings.extend(addresses::form_warning(&block.cidr, &path.child("cidr")));
        for (index, except) in block.except.iter().flatten().enumerate() {
            let path = path.child("except").index(index);
            warnings.extend(addresses::form_warning(except, &path));
        }
    }
}

fn validate_peer(peer: &NetworkPolicyPeer, path: &Path, errors: &mut ErrorList) {
    let selectors = [
        ("podSelector", &peer.pod_selector),
        ("namespaceSelector", &peer.namespace_selector),
    ];
    let mut selects = false;
    for (field, labels) in selectors {
        if let Some(labels) = labels {
            selects = true;
            selector::validate(labels, &path.child(field), errors);
        }
    }
    match &peer.ip_block {
        Some(block) => {
            validate_block(block, &path.child("ipBlock"), errors);
            if selects {
                errors.forbidden(path, "may not specify both ipBlock and another peer");
            }
        }
        None if !selects => errors.required(path, "must specify a peer"),
        None => {}
    }
}

fn validate_rule(
    ports: Option<&Vec<NetworkPolicyPort>>,
    (peers_field, peers): (&str, Option<&Vec<NetworkPolicyPeer>>),
    path: &Path,
    errors: &mut ErrorList,
) {
    for (index, port) in ports.into_iter().flatten().enumerate() {
        validate_port(port, &path.child("ports").index(index), errors);
    }
    for (index, peer) in peers.into_iter().flatten().enumerate() {
        validate_peer(peer, &path.child(peers_field).index(index), errors);
    }
}

fn validate_spec(spec: &NetworkPolicySpec, errors: &mut ErrorList) {
    validate_size(spec, errors);
    let path = Path::new("spec");
    if let Some(pods) = &spec.pod_selector {
        selector::validate(pods, &path.child("podSelector"), errors);
    }
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let path = path.child("ingress").index(index);
        let peers = ("from", rule.from.as_ref());
        validate_rule(rule.ports.as_ref(), peers, &path, errors);
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let path = path.child("egress").index(index);
        let peers = ("to", rule.to.as_ref());
        validate_rule(rule.ports.as_ref(), peers, &path, errors);
    }
    let path = path.child("policyTypes");
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        errors.invalid(&path, types, "may not specify more than two policyTypes");
        return;
    }
    for (index, kind) in types.iter().enumerate() {
        if kind != INGRESS && kind != EGRESS {
            errors.not_supported(&path.index(index), kind, &[INGRESS, EGRESS]);
        }
    }
}

fn default_ports(ports: Option<&mut Vec<NetworkPolicyPort>>) {
    for port in ports.into_iter().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
}

impl Kind for NetworkPolicyKind {
    type Object = NetworkPolicy;

    const INFO: StaticInfo = StaticInfo {
        group: "networking.k8s.io",
        version: "v1",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<NetworkPolicy> = parts!(NetworkPolicy: spec);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut NetworkPolicy) {
        let spec = object.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        for rule in spec.ingress.iter_mut().flatten() {
            default_ports(rule.ports.as_mut());
        }
        for rule in spec.egress.iter_mut().flatten() {
            default_ports(rule.ports.as_mut());
        }
        let types = spec.policy_types.get_or_insert_default();
        if types.is_empty() {
            types.push(INGRESS.to_owned());
            if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
                types.push(EGRESS.to_owned());
            }
        }
    }

    fn validate(object: &NetworkPolicy, errors: &mut ErrorList) {
        if let Some(spec) = &object.spec {
            validate_spec(spec, errors);
        }
    }

    fn warnings(new: &NetworkPolicy, old: Option<&NetworkPolicy>) -> Vec<String> {
        if old.is_some_and(|old| old.spec == new.spec) {
            return Vec::new();
        }
        let path = Path::new("spec");
        let empty = NetworkPolicySpec::default();
        let spec = new.spec.as_ref().unwrap_or(&empty);
        let mut warnings = Vec::new();
        for (index, rule) in spec.ingress.iter().flatten().enumerate() {
            let path = path.child("ingress").index(index).child("from");
            block_warnings(
                rule.from.as_deref().unwrap_or_default(),
                &path,
                &mut warnings,
            );
        }
        for (index, rule) in spec.egress.iter().flatten().enumerate() {
            let path = path.child("egress").index(index).child("to");
            block_warnings(rule.to.as_deref().unwrap_or_default(), &path, &mut warnings);
        }
        warnings
    }

    fn printer() -> Printer<NetworkPolicy> {
        let pods = table::field_doc::<NetworkPolicySpec>("podSelector");
        Printer::<NetworkPolicy>::named()
            .column(table::column("Pod-Selector", "string", pods, 0), |object| {
                let spec = object.spec.as_ref();
                let pods = spec.and_then(|spec| spec.pod_selector.as_ref());
                let text = pods.map(workload::selector_text).unwrap_or_default();
                json!(table::or_none(text))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(spec: Value) -> NetworkPolicy {
        let mut object = serde_json::from_value(json!({"spec": spec})).unwrap();
        NetworkPolicyKind::default(&mut object);
        object
    }

    fn messages(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        NetworkPolicyKind::validate(&parse(spec), &mut errors);
        errors.told()
    }

    #[test]
    fn the_types_follow_the_rules_and_ports_are_of_tcp() {
        let types = |spec: Value| parse(spec).spec.unwrap().policy_types.unwrap();
        assert_eq!(types(json!({})), ["Ingress"]);
        assert_eq!(types(json!({"egress": []})), ["Ingress"]);
        let egress = json!({"egress": [{"ports": [{"port": 53}]}]});
        assert_eq!(types(egress.clone()), ["Ingress", "Egress"]);
        let rules = parse(egress).spec.unwrap().egress.unwrap();
        let port = &rules[0].ports.as_ref().unwrap()[0];
        assert_eq!(port.protocol.as_deref(), Some("TCP"));
        assert_eq!(
            types(json!({"policyTypes": ["Egress"]})),
            ["Egress"],
            "what is named stays"
        );
    }

    #[test]
    fn peers_are_one_thing_each() {
        let refused = messages(json!({"ingress": [{"from": [
            {},
            {"podSelector": {}, "namespaceSelector": {}},
            {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}},
            {"podSelector": {"matchLabels": {"a b": "c"}}}
        ]}]}));
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert_eq!(
            refused[0],
            "spec.ingress[0].from[0]: Required value: must specify a peer"
        );
        assert_eq!(
            refused[1],
            "spec.ingress[0].from[2]: Forbidden: may not specify both ipBlock and another peer"
        );
        assert!(
            refused[2]
                .starts_with("spec.ingress[0].from[3].podSelector.matchLabels: Invalid value")
        );
    }

    #[test]
    fn exceptions_are_inside_the_block_and_smaller() {
        let refused = messages(json!({"egress": [{"to": [{"ipBlock": {
            "cidr": "10.0.0.0/8",
            "except": ["10.1.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "x", "fd00::/64"]
        }}, {"ipBlock": {"cidr": ""}}]}]}));
        let subset = |index: usize, value: &str| {
            format!(
                "spec.egress[0].to[0].ipBlock.except[{index}]: Invalid value: \"{value}\": must be a strict subset of `cidr`"
            )
        };
        assert_eq!(refused[0], subset(1, "10.0.0.0/8"));
        assert_eq!(refused[1], subset(2, "192.168.0.0/16"));
        assert!(refused[2].contains("except[3]: Invalid value: \"x\": must be a valid CIDR value"));
        assert_eq!(refused[3], subset(4, "fd00::/64"));
        assert_eq!(
            refused[4],
            "spec.egress[0].to[1].ipBlock.cidr: Required value"
        );
    }

    #[test]
    fn a_policy_has_no_more_than_nodes_can_take() {
        let list = |count: usize, item: &Value| vec![item.clone(); count];
        let (pods, port) = (json!({"podSelector": {}}), json!({"port": 80}));
        let block = json!({"ipBlock": {"cidr": "10.0.0.0/8"}});
        let ingress = |pods: Vec<Value>, ports: Vec<Value>| {
            messages(json!({"ingress": [{"from": pods, "ports": ports}]}))
        };
        assert!(ingress(list(1_000, &pods), list(999, &port)).is_empty());
        let refused = ingress(list(1_000, &pods), list(1_000, &port));
        assert_eq!(
            refused,
            [
                "spec: Forbidden: 2001 rules, peers and ports are more than the 2000 that a policy may have: make several policies of it"
            ]
        );
        assert!(ingress(list(10_000, &block), vec![]).is_empty());
        assert_eq!(ingress(list(10_001, &block), vec![]).len(), 1);

        // A name in egress is a port of each peer's own.
        let named = json!({"port": "http"});
        let egress = |pods: usize, names: usize| {
            let (to, ports) = (list(pods, &json!({"podSelector": {}})), list(names, &named));
            messages(json!({"egress": [{"to": to, "ports": ports}]}))
        };
        assert!(egress(40, 40).is_empty());
        assert_eq!(egress(45, 45).len(), 1);

        // An exception is as many blocks as it is longer.
        let except = |count: usize| {
            let parts = list(count, &json!("10.1.1.1/32"));
            let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": parts}});
            ingress(vec![block], vec![])
        };
        assert!(except(416).is_empty());
        assert_eq!(except(417).len(), 1);
    }

    #[test]
    fn ranges_of_ports_are_numbers_in_order() {
        let ports = json!([
            {"port": 1000, "endPort": 2000},
            {"port": 2000, "endPort": 1000},
            {"port": "web", "endPort": 1},
            {"endPort": 1},
            {"port": 0, "protocol": "ICMP"},
            {"port": "Not_A_Name"}
        ]);
        let refused = messages(json!({"ingress": [{"ports": ports}]}));
        let paths: Vec<&str> = refused
            .iter()
            .filter_map(|message| message.strip_prefix("spec.ingress[0]."))
            .filter_map(|message| message.split(": ").next())
            .collect();
        let expected = [
            "ports[1].endPort",
            "ports[2].endPort",
            "ports[3].endPort",
            "ports[4].protocol",
            "ports[4].port",
            "ports[5].port",
        ];
        assert_eq!(paths, expected, "{refused:?}");
    }

    #[test]
    fn types_are_known_and_few() {
        let unknown = messages(json!({"policyTypes": ["Ingress", "Foo"]}));
        assert_eq!(
            unknown,
            [
                "spec.policyTypes[1]: Unsupported value: \"Foo\": supported values: \"Ingress\", \"Egress\""
            ]
        );
        let many = messages(json!({"policyTypes": ["Ingress", "Egress", "Foo"]}));
        assert_eq!(many.len(), 1);
        assert!(many[0].ends_with("may not specify more than two policyTypes"));
    }

    #[test]
    fn a_row_shows_whom_it_selects() {
        let shown = |spec: Value| NetworkPolicyKind::printer().row(&parse(spec), 0)[1].clone();
        assert_eq!(shown(json!({})), "<none>");
        let labelled = json!({"podSelector": {"matchLabels": {"a": "b"}}});
        assert_eq!(shown(labelled), "a=b");
    }
}
