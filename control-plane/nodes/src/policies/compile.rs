//! From a NetworkPolicy to rules over sets of peers and CIDRs. Pure.
//!
//! What a rule says about pods becomes the id of a set, filled by the [`index`](super::index); what it says about
//! address blocks and numbers of ports is final here. Port names are the destination pod's business: for ingress the
//! isolated pod's, so they are resolved with its isolation; for egress the peer's, so they become sets of peers with
//! ports.

use std::collections::HashSet;
use std::sync::Arc;

use gantry_base::selector::LabelSelector;
use gantry_rpc::node::{self as rpc, Protocol, policy_port::Ports};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;
use sha2::{Digest, Sha256};

use super::blocks;
use super::delivery;
use super::facts::{self, Labels, PodFacts};

/// A selector, and its canonical spelling.
#[derive(Clone, Debug)]
struct Selector {
    matcher: LabelSelector,
    text: String,
}

impl Selector {
    fn new(selector: &metav1::LabelSelector) -> Self {
        Self {
            matcher: LabelSelector::from_api(Some(selector)),
            // A struct of maps and lists of strings always has a JSON form.
            text: serde_json::to_string(selector).unwrap_or_default(),
        }
    }

    fn matches(&self, labels: &Labels) -> bool {
        self.matcher.matches_map(Some(labels))
    }
}

#[derive(Clone, Debug)]
enum Namespaces {
    One(String),
    Selected(Selector),
}

/// A selection of pods as the peers of a rule; `port` narrows it to those that have a port of this name.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    namespaces: Namespaces,
    pods: Selector,
    port: Option<(String, Protocol)>,
}

impl Selection {
    /// Equal for equal selections, on every server and at any time; it tells nothing about them. Nobody can make two
    /// selections share an id, which would let one policy's peers through another policy.
    pub(super) fn id(&self) -> String {
        let mut hash = Sha256::new();
        // Lengths keep the parts apart.
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        match &self.namespaces {
            Namespaces::One(namespace) => {
                part("one");
                part(namespace);
            }
            Namespaces::Selected(selector) => {
                part("selected");
                part(&selector.text);
            }
        }
        part(&self.pods.text);
        if let Some((name, protocol)) = &self.port {
            part(protocol.as_str_name());
            part(name);
        }
        hash.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    pub(super) fn with_ports(&self) -> bool {
        self.port.is_some()
    }

    /// The namespace it is confined to.
    pub(super) fn namespace(&self) -> Option<&str> {
        match &self.namespaces {
            Namespaces::One(namespace) => Some(namespace),
            Namespaces::Selected(_) => None,
        }
    }

    /// Whether pods of a namespace can be among it; `labels` is `None` for a namespace that is not known.
    pub(super) fn takes_namespace(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        match &self.namespaces {
            Namespaces::One(own) => own == namespace,
            Namespaces::Selected(selector) => labels.is_some_and(|labels| selector.matches(labels)),
        }
    }

    /// What a pod of a namespace that is taken contributes: the port (0 without ports), when it is selected.
    pub(super) fn takes_pod(&self, pod: &PodFacts) -> Option<u16> {
        if !pod.is_peer() || !self.pods.matches(&pod.labels) {
            return None;
        }
        match &self.port {
            None => Some(0),
            Some((name, protocol)) => pod.port(name, *protocol),
        }
    }
}

/// A policy, compiled.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    selects: LabelSelector,
    /// Isolates the selected pods' ingress.
    pub(super) ingress: bool,
    /// Isolates their egress.
    pub(super) egress: bool,
    /// As they travel.
    pub(super) rules: Arc<rpc::PolicyRules>,
    /// Bytes of the rules as they travel.
    pub(super) length: usize,
    /// The selections that the rules refer to, by their ids.
    pub(super) selections: Vec<(String, Selection)>,
    /// Ports of the isolated pod that ingress rules name.
    pub(super) named_ports: Vec<(String, Protocol)>,
}

impl Policy {
    pub(super) fn uid(&self) -> &str {
        &self.rules.uid
    }

    /// Whether it has any rules. One without isolates the pods that it selects, and is nothing more to a node.
    pub(super) fn allows(&self) -> bool {
        !self.rules.ingress.is_empty() || !self.rules.egress.is_empty()
    }

    /// As it travels to a node that has no room for its rules.
    pub(super) fn without_rules(&self) -> Arc<rpc::PolicyRules> {
        Arc::new(rpc::PolicyRules {
            uid: self.rules.uid.clone(),
            namespace: self.rules.namespace.clone(),
            name: self.rules.name.clone(),
            ..rpc::PolicyRules::default()
        })
    }

    /// Whether it applies to a pod of its own namespace.
    pub(super) fn selects(&self, pod: &PodFacts) -> bool {
        self.selects.matches_map(Some(&pod.labels))
    }

    /// Compiles a stored policy. The API server validated it; what should be wrong nevertheless allows nothing.
    pub(super) fn compile(policy: &NetworkPolicy) -> Self {
        let empty = NetworkPolicySpec::default();
        let spec = policy.spec.as_ref().unwrap_or(&empty);
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let mut compiler = Compiler {
            namespace: namespace.clone(),
            selections: Vec::new(),
            known: HashSet::new(),
            named_ports: Vec::new(),
        };
        let (ingress, egress) = directions(spec);
        let mut rules = rpc::PolicyRules {
            uid: policy.metadata.uid.clone().unwrap_or_default(),
            deleted: false,
            namespace,
            name: policy.metadata.name.clone().unwrap_or_default(),
            ingress: Vec::new(),
            egress: Vec::new(),
        };
        for rule in spec.ingress.iter().flatten().filter(|_| ingress) {
            let (peers, ports) = (rule.from.as_deref(), rule.ports.as_deref());
            rules
                .ingress
                .extend(compiler.ingress(peers.unwrap_or_default(), ports.unwrap_or_default()));
        }
        for rule in spec.egress.iter().flatten().filter(|_| egress) {
            let (peers, ports) = (rule.to.as_deref(), rule.ports.as_deref());
            rules
                .egress
                .extend(compiler.egress(peers.unwrap_or_default(), ports.unwrap_or_default()));
        }
        if rules.encoded_len() > delivery::ROOM {
            tracing::error!(
                namespace = rules.namespace,
                name = rules.name,
                "a network policy is larger than any that is accepted; it allows nothing"
            );
            (rules.ingress, rules.egress) = (Vec::new(), Vec::new());
            (compiler.selections, compiler.named_ports) = (Vec::new(), Vec::new());
        }
        let everything = metav1::LabelSelector::default();
        Self {
            selects: LabelSelector::from_api(Some(
                spec.pod_selector.as_ref().unwrap_or(&everything),
            )),
            ingress,
            egress,
            length: rules.encoded_len(),
            rules: Arc::new(rules),
            selections: compiler.selections,
            named_ports: compiler.named_ports,
        }
    }
}

/// Which directions a policy isolates: those it names, else ingress always and egress when it has rules for it.
fn directions(spec: &NetworkPolicySpec) -> (bool, bool) {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return (true, egress);
    }
    let names = |direction| types.iter().any(|name| name == direction);
    (names("Ingress"), names("Egress"))
}

/// A port of a rule.
enum Port<'a> {
    Number(rpc::PolicyPort),
    Name(&'a str, Protocol),
}

fn port(written: &NetworkPolicyPort) -> Option<Port<'_>> {
    let protocol = facts::protocol(written.protocol.as_deref())?;
    let of = |ports| {
        Port::Number(rpc::PolicyPort {
            protocol: protocol.into(),
            ports: Some(ports),
        })
    };
    let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
    match &written.port {
        None => Some(of(Ports::All(true))),
        Some(IntOrString::String(name)) => Some(Port::Name(name, protocol)),
        Some(IntOrString::Int(first)) => {
            let first = number(*first)?;
            let last = match written.end_port {
                Some(last) => number(last).filter(|last| *last >= first)?,
                None => first,
            };
            Some(of(Ports::Range(rpc::PortRange {
                first: first.into(),
                last: last.into(),
            })))
        }
    }
}

/// Compiles the rules of one policy.
struct Compiler {
    namespace: String,
    selections: Vec<(String, Selection)>,
    /// Their ids.
    known: HashSet<String>,
    named_ports: Vec<(String, Protocol)>,
}

impl Compiler {
    fn ingress(
        &mut self,
        peers: &[NetworkPolicyPeer],
        ports: &[NetworkPolicyPort],
    ) -> Option<rpc::PolicyRule> {
        let mut compiled = Vec::new();
        for port in ports.iter().filter_map(port) {
            compiled.push(match port {
                Port::Number(port) => port,
                Port::Name(name, protocol) => {
                    let named = (name.to_owned(), protocol);
                    if !self.named_ports.contains(&named) {
                        self.named_ports.push(named);
                    }
                    rpc::PolicyPort {
                        protocol: protocol.into(),
                        ports: Some(Ports::Name(name.to_owned())),
                    }
                }
            });
        }
        self.rule(peers, ports.is_empty(), compiled)
    }

    fn egress(
        &mut self,
        peers: &[NetworkPolicyPeer],
        ports: &[NetworkPolicyPort],
    ) -> Vec<rpc::PolicyRule> {
        let (mut numbers, mut rules) = (Vec::new(), Vec::new());
        for port in ports.iter().filter_map(port) {
            match port {
                Port::Number(port) => numbers.push(port),
                Port::Name(name, protocol) => {
                    rules.extend(self.egress_by_name(peers, name, protocol))
                }
            }
        }
        rules.extend(self.rule(peers, ports.is_empty(), numbers));
        rules
    }

    /// A rule about peers whatever their ports are called; none when it allows nothing.
    fn rule(
        &mut self,
        peers: &[NetworkPolicyPeer],
        any_port: bool,
        ports: Vec<rpc::PolicyPort>,
    ) -> Option<rpc::PolicyRule> {
        if !any_port && ports.is_empty() {
            return None;
        }
        let selections: Vec<Selection> = peers
            .iter()
            .filter_map(|peer| self.selection(peer, None))
            .collect();
        let blocks: Vec<IpNet> = peers.iter().flat_map(block).collect();
        let rule = rpc::PolicyRule {
            anyone: peers.is_empty(),
            peers: self.refer(selections),
            blocks: blocks::union(&blocks)
                .iter()
                .map(ToString::to_string)
                .collect(),
            any_port,
            ports,
        };
        (rule.anyone || !rule.peers.is_empty() || !rule.blocks.is_empty()).then_some(rule)
    }

    /// Egress to the port that each peer calls by this name. Addresses outside of pods have no names for ports.
    fn egress_by_name(
        &mut self,
        peers: &[NetworkPolicyPeer],
        name: &str,
        protocol: Protocol,
    ) -> Option<rpc::PolicyRule> {
        let port = Some((name.to_owned(), protocol));
        let everything = || Selector::new(&metav1::LabelSelector::default());
        let selections: Vec<Selection> = if peers.is_empty() {
            vec![Selection {
                namespaces: Namespaces::Selected(everything()),
                pods: everything(),
                port,
            }]
        } else {
            peers
                .iter()
                .filter_map(|peer| self.selection(peer, port.clone()))
                .collect()
        };
        let peers = self.refer(selections);
        (!peers.is_empty()).then(|| rpc::PolicyRule {
            anyone: false,
            peers,
            blocks: Vec::new(),
            any_port: false,
            ports: vec![rpc::PolicyPort {
                protocol: protocol.into(),
                ports: Some(Ports::OfPeer(true)),
            }],
        })
    }

    /// The pods of a peer, unless it is about addresses.
    fn selection(
        &self,
        peer: &NetworkPolicyPeer,
        port: Option<(String, Protocol)>,
    ) -> Option<Selection> {
        if peer.ip_block.is_some() {
            return None;
        }
        let (pods, namespaces) = (&peer.pod_selector, &peer.namespace_selector);
        if pods.is_none() && namespaces.is_none() {
            return None;
        }
        Some(Selection {
            namespaces: match namespaces {
                Some(selector) => Namespaces::Selected(Selector::new(selector)),
                None => Namespaces::One(self.namespace.clone()),
            },
            pods: Selector::new(pods.as_ref().unwrap_or(&metav1::LabelSelector::default())),
            port,
        })
    }

    /// Notes selections and answers their ids.
    fn refer(&mut self, selections: Vec<Selection>) -> Vec<String> {
        let (mut ids, mut referred) = (Vec::new(), HashSet::new());
        for selection in selections {
            let id = selection.id();
            if self.known.insert(id.clone()) {
                self.selections.push((id.clone(), selection));
            }
            if referred.insert(id.clone()) {
                ids.push(id);
            }
        }
        ids
    }
}

/// The addresses of a peer that is about addresses. One that cannot be read stands for none; so does a block of which
/// an exception cannot be read.
fn block(peer: &NetworkPolicyPeer) -> Vec<IpNet> {
    let Some(block) = &peer.ip_block else {
        return Vec::new();
    };
    let except = block.except.as_deref().unwrap_or_default();
    let except: Result<Vec<IpNet>, _> = except.iter().map(|text| text.parse()).collect();
    match (block.cidr.parse(), except) {
        (Ok(cidr), Ok(except)) => blocks::without(cidr, &except),
        _ => {
            tracing::warn!(
                ?block,
                "a policy's address block cannot be read; it allows nothing"
            );
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn compile(spec: Value) -> Policy {
        let policy =
            json!({"metadata": {"namespace": "shop", "name": "p", "uid": "u"}, "spec": spec});
        Policy::compile(&serde_json::from_value(policy).unwrap())
    }

    fn range(protocol: Protocol, first: u32, last: u32) -> rpc::PolicyPort {
        rpc::PolicyPort {
            protocol: protocol.into(),
            ports: Some(Ports::Range(rpc::PortRange { first, last })),
        }
    }

    #[test]
    fn the_directions_are_those_named_or_follow_from_the_rules() {
        for (spec, expected) in [
            (json!({}), (true, false)),
            (json!({"egress": []}), (true, false)),
            (json!({"egress": [{}]}), (true, true)),
            (json!({"policyTypes": ["Egress"]}), (false, true)),
            (
                json!({"policyTypes": ["Egress"], "ingress": [{}]}),
                (false, true),
            ),
            (json!({"policyTypes": ["Ingress", "Egress"]}), (true, true)),
        ] {
            let policy = compile(spec.clone());
            assert_eq!((policy.ingress, policy.egress), expected, "{spec}");
            assert!(policy.ingress || policy.rules.ingress.is_empty(), "{spec}");
        }
    }

    #[test]
    fn a_rule_without_peers_is_about_anyone_and_no_rules_allow_nothing() {
        let rules = compile(json!({"ingress": [{}]})).rules;
        assert_eq!(rules.ingress.len(), 1);
        assert!(rules.ingress[0].anyone && rules.ingress[0].any_port);
        assert!(compile(json!({"ingress": []})).rules.ingress.is_empty());
    }

    #[test]
    fn ports_are_tcp_unless_they_say_otherwise() {
        let rules = compile(json!({"ingress": [{"ports": [
            {"port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 8000, "endPort": 8999},
            {"protocol": "SCTP"}, {"port": "http"}, {"port": 9, "endPort": 3}, {"port": 7, "protocol": "XYZ"},
        ]}]}))
        .rules;
        let ports = &rules.ingress[0].ports;
        assert_eq!(ports[0], range(Protocol::Tcp, 80, 80));
        assert_eq!(ports[1], range(Protocol::Udp, 53, 53));
        assert_eq!(ports[2], range(Protocol::Tcp, 8000, 8999));
        assert_eq!(ports[3].ports, Some(Ports::All(true)));
        assert_eq!(ports[4].ports, Some(Ports::Name("http".to_owned())));
        assert_eq!(ports.len(), 5, "what makes no sense allows nothing");
        let none = compile(json!({"ingress": [{"ports": [{"port": 9, "endPort": 3}]}]}));
        assert!(none.rules.ingress.is_empty(), "rather than any port");
    }

    #[test]
    fn equal_selections_share_an_id_and_others_do_not() {
        let peers = |peer: Value| {
            compile(json!({"ingress": [{"from": [peer]}]}))
                .rules
                .ingress[0]
                .peers
                .clone()
        };
        let web = json!({"matchLabels": {"app": "web"}});
        let all = [
            json!({"podSelector": web}),
            json!({"podSelector": {}}),
            json!({"namespaceSelector": {}}),
            json!({"namespaceSelector": web}),
            json!({"namespaceSelector": {}, "podSelector": web}),
            json!({"namespaceSelector": web, "podSelector": web}),
        ];
        let ids: std::collections::BTreeSet<Vec<String>> = all.iter().cloned().map(peers).collect();
        assert_eq!(ids.len(), all.len());
        assert_eq!(
            peers(all[2].clone()),
            peers(json!({"namespaceSelector": {}, "podSelector": {}}))
        );
    }

    #[test]
    fn names_of_ports_belong_to_the_destination() {
        let policy = compile(json!({
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "http"}]}],
            "egress": [{"to": [{"podSelector": {}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": "http"}, {"port": 81}]}],
        }));
        assert_eq!(policy.named_ports, [("http".to_owned(), Protocol::Tcp)]);
        let egress = &policy.rules.egress;
        assert_eq!(egress[0].ports[0].ports, Some(Ports::OfPeer(true)));
        assert!(
            egress[0].blocks.is_empty(),
            "no pod there that could have a name for a port"
        );
        assert_eq!((egress[1].ports.len(), egress[1].blocks.len()), (1, 1));
        assert_ne!(egress[0].peers, egress[1].peers);
        assert_eq!(policy.selections.len(), 2);
        let anywhere = compile(json!({"egress": [{"ports": [{"port": "http"}]}]}));
        assert!(!anywhere.rules.egress[0].anyone && anywhere.rules.egress[0].peers.len() == 1);
    }

    #[test]
    fn a_policy_that_is_larger_than_any_accepted_isolates_and_allows_nothing() {
        let mut peers: Vec<Value> = (0..100_000u32)
            .map(|number| format!("fd00::{:x}:{:x}/128", number >> 8, 2 * (number & 0xff)))
            .map(|cidr| json!({"ipBlock": {"cidr": cidr}}))
            .collect();
        peers.push(json!({"podSelector": {}}));
        let policy = compile(json!({"ingress": [{"from": peers}]}));
        assert!(policy.ingress && !policy.allows() && policy.selections.is_empty());
        assert!(policy.length < delivery::ROOM);
    }

    #[test]
    fn blocks_that_cannot_be_read_allow_nothing() {
        let blocks = |block: Value| {
            let rules = compile(json!({"ingress": [{"from": [{"ipBlock": block}]}]})).rules;
            rules
                .ingress
                .first()
                .map(|rule| rule.blocks.clone())
                .unwrap_or_default()
        };
        assert_eq!(
            blocks(json!({"cidr": "10.0.0.0/30", "except": ["10.0.0.0/31"]})),
            ["10.0.0.2/31"]
        );
        assert!(blocks(json!({"cidr": "10.0.0.0/8", "except": ["nonsense"]})).is_empty());
        assert!(blocks(json!({"cidr": "nonsense"})).is_empty());
    }
}
