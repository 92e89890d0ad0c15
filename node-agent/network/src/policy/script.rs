//! From plans to nft's words: the tables' skeleton, and the difference between two plans. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Write};
use std::net::{IpAddr, Ipv4Addr};

use imbl::OrdSet;
use imbl::ordset::DiffItem;

use super::plan::{Direction, Family, Members, Plan, SetKind};
use crate::names::hardware_address;
use crate::{PolicyPeer, Protocol};

/// Elements per command: nft's parser slows down on very long lines.
const ELEMENTS_PER_COMMAND: usize = 512;

/// Protocol numbers: names would be looked up in a file that may be missing.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What the skeleton makes in the `inet` table, apart from its maps; of each set there is one per family.
const FIXED_CHAINS: [&str; 4] = ["of_no_connection", "egress", "ingress", "dns"];
const FIXED_SETS: [&str; 3] = ["isolated", "itself", "no_dns"];

/// What the tables' fixed part depends on.
#[derive(Clone, Debug)]
pub(super) struct Skeleton {
    pub(super) table: String,
    /// What the host's ends of pods' links begin with.
    pub(super) links: String,
    pub(super) gateway: Ipv4Addr,
    /// The node's address at which the cluster's DNS answers, should it be judged.
    pub(super) dns: Option<Ipv4Addr>,
}

/// Names of what the `inet` table holds, whoever made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
    maps: BTreeSet<String>,
}

impl Found {
    /// From what nft prints of the table.
    pub(super) fn parse(listing: &str) -> Self {
        let mut found = Self::default();
        for line in listing.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["chain", name, "{"] => drop(found.chains.insert(name.to_owned())),
                ["set", name, "{"] => drop(found.sets.insert(name.to_owned())),
                ["map", name, "{"] => drop(found.maps.insert(name.to_owned())),
                _ => {}
            }
        }
        found
    }
}

/// The script that makes the tables anew, whatever was there.
pub(super) fn from_scratch(skeleton: &Skeleton, plan: &Plan) -> String {
    let table = &skeleton.table;
    let changes = difference(skeleton, &Plan::default(), plan);
    format!(
        "add table inet {table}\ndelete table inet {table}\n\
         add table bridge {table}\ndelete table bridge {table}\n\
         {skeleton}{changes}"
    )
}

/// The script that fills tables which an earlier agent left with `plan`, so that not one packet passes in between.
///
/// Tables that are replaced leak: a packet that passes the hook while the kernel changes generations can meet the new
/// chain before, and the old one after the change, and both are empty then. A chain that stays has its old rules before
/// and its new ones after.
pub(super) fn take_over(skeleton: &Skeleton, found: &Found, plan: &Plan) -> String {
    let table = &skeleton.table;
    let mut script = Script {
        table,
        text: format!(
            "add table bridge {table}\nflush table inet {table}\nflush table bridge {table}\n{skeleton}"
        ),
    };
    for set in &found.sets {
        script.line(format_args!("flush set inet {table} {set}"));
    }
    for map in &found.maps {
        script.line(format_args!("flush map inet {table} {map}"));
    }
    script
        .text
        .push_str(&difference(skeleton, &Plan::default(), plan));
    let fixed = |chain: &str| FIXED_CHAINS.contains(&chain);
    for chain in &found.chains {
        if !fixed(chain) && !plan.chains.contains_key(chain) {
            script.line(format_args!("delete chain inet {table} {chain}"));
        }
    }
    let kept: BTreeSet<String> = Family::BOTH
        .iter()
        .flat_map(|family| {
            let number = family.number();
            let fixed = FIXED_SETS.iter().map(|set| (*set).to_owned());
            let own = plan.sets.keys().cloned();
            fixed.chain(own).map(move |set| format!("{set}_{number}"))
        })
        .collect();
    for set in found.sets.difference(&kept) {
        script.line(format_args!("delete set inet {table} {set}"));
    }
    script.text
}

/// The script that turns one plan into another. Empty when nothing changed.
///
/// The kernel checks each command when it comes to it: what is referred to is made before, and removed after, what
/// refers to it.
pub(super) fn difference(skeleton: &Skeleton, now: &Plan, next: &Plan) -> String {
    let mut script = Script {
        table: &skeleton.table,
        text: String::new(),
    };
    for (name, set) in &next.sets {
        let before = now.sets.get(name).map(|before| &before.members);
        if before.is_none() {
            script.add_set(name, set.kind);
        }
        script.exchange_members(name, set, before.unwrap_or(&OrdSet::new()));
    }
    for chain in next
        .chains
        .keys()
        .filter(|chain| !now.chains.contains_key(*chain))
    {
        script.line(format_args!("add chain inet {} {chain}", skeleton.table));
    }
    for (chain, rules) in &next.chains {
        let before = now.chains.get(chain);
        if before == Some(rules) {
            continue;
        }
        if before.is_some() {
            script.line(format_args!("flush chain inet {} {chain}", skeleton.table));
        }
        for rule in rules {
            script.line(format_args!(
                "add rule inet {} {chain} {rule}",
                skeleton.table
            ));
        }
    }
    script.exchange_verdicts(now, next);
    let gone: Vec<&String> = now
        .chains
        .keys()
        .filter(|chain| !next.chains.contains_key(*chain))
        .collect();
    for chain in &gone {
        script.line(format_args!("flush chain inet {} {chain}", skeleton.table));
    }
    for chain in &gone {
        script.line(format_args!("delete chain inet {} {chain}", skeleton.table));
    }
    for name in now
        .sets
        .keys()
        .filter(|name| !next.sets.contains_key(*name))
    {
        for family in Family::BOTH {
            let number = family.number();
            script.line(format_args!(
                "delete set inet {} {name}_{number}",
                skeleton.table
            ));
        }
    }
    script.text
}

struct Script<'a> {
    table: &'a str,
    text: String,
}

/// Elements of sets and maps by the object that holds them.
type Elements = BTreeMap<String, Vec<String>>;

impl Script<'_> {
    fn line(&mut self, words: fmt::Arguments<'_>) {
        let _infallible = writeln!(self.text, "{words}");
    }

    fn add_set(&mut self, name: &str, kind: SetKind) {
        let table = self.table;
        for family in Family::BOTH {
            let number = family.number();
            let elements = match kind {
                SetKind::Address => format!("ipv{number}_addr"),
                SetKind::AddressAndPort => format!("ipv{number}_addr . inet_service"),
            };
            self.line(format_args!(
                "add set inet {table} {name}_{number} {{ type {elements}; }}"
            ));
        }
    }

    fn exchange_members(&mut self, name: &str, set: &Members, before: &OrdSet<PolicyPeer>) {
        if before.ptr_eq(&set.members) {
            return;
        }
        let (mut gone, mut new) = (Elements::new(), Elements::new());
        for item in before.diff(&set.members) {
            let (into, (address, port)) = match item {
                DiffItem::Add(peer) => (&mut new, peer),
                DiffItem::Remove(peer) => (&mut gone, peer),
            };
            let element = match set.kind {
                SetKind::Address => address.to_string(),
                SetKind::AddressAndPort => format!("{address} . {port}"),
            };
            into.entry(format!("{name}_{}", Family::of(*address).number()))
                .or_default()
                .push(element);
        }
        self.elements("delete", &gone);
        self.elements("add", &new);
    }

    fn exchange_verdicts(&mut self, now: &Plan, next: &Plan) {
        let (mut gone, mut new) = (Elements::new(), Elements::new());
        let map = |(direction, address): &(Direction, IpAddr)| {
            format!("{}_{}", direction.word(), Family::of(*address).number())
        };
        for (key, chain) in &now.verdicts {
            if next.verdicts.get(key) != Some(chain) {
                gone.entry(map(key)).or_default().push(key.1.to_string());
            }
        }
        for (key, chain) in &next.verdicts {
            if now.verdicts.get(key) != Some(chain) {
                new.entry(map(key))
                    .or_default()
                    .push(format!("{} : goto {chain}", key.1));
            }
        }
        let isolated = |into: &mut Elements, address: &IpAddr| {
            let number = Family::of(*address).number();
            into.entry(format!("isolated_{number}"))
                .or_default()
                .push(address.to_string());
            into.entry(format!("itself_{number}"))
                .or_default()
                .push(format!("{address} . {address}"));
        };
        for address in now.isolated.difference(&next.isolated) {
            isolated(&mut gone, address);
        }
        for address in next.isolated.difference(&now.isolated) {
            isolated(&mut new, address);
        }
        let no_dns = |into: &mut Elements, (address, protocol): &(Ipv4Addr, u8)| {
            into.entry("no_dns_4".to_owned())
                .or_default()
                .push(format!("{address} . {protocol}"));
        };
        for one in now.no_dns.difference(&next.no_dns) {
            no_dns(&mut gone, one);
        }
        for one in next.no_dns.difference(&now.no_dns) {
            no_dns(&mut new, one);
        }
        self.elements("delete", &gone);
        self.elements("add", &new);
    }

    fn elements(&mut self, verb: &str, elements: &Elements) {
        let table = self.table;
        for (object, elements) in elements {
            for some in elements.chunks(ELEMENTS_PER_COMMAND) {
                let list = some.join(", ");
                self.line(format_args!(
                    "{verb} element inet {table} {object} {{ {list} }}"
                ));
            }
        }
    }
}

/// The script that makes the tables with nothing in them, when they are absent or empty.
///
/// `inet`: whatever passes the node is judged twice, as what its source may send and as what its destination may be
/// sent. What the node itself sends its pods, or they send it, is nobody's business, but for questions to the cluster's DNS.
/// A packet that belongs to no connection cannot be judged and does not pass an isolated pod; errors about connections
/// that exist always do.
///
/// `bridge`: the packets of pods on one node pass the `inet` table because they are routed: a pod has no route but to
/// its gateway. This table keeps a pod from sending frames to another pod's hardware address itself. It needs neither
/// connection tracking in bridges (`nf_conntrack_bridge`) nor bridge netfilter, and with the latter switched on, frames
/// that it readdresses on the way still pass, since they were sent to the gateway.
impl Display for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table,
            links,
            gateway,
            dns,
        } = self;
        let dns = dns.map_or_else(String::new, |dns| {
            let (tcp, udp) = (Protocol::Tcp.number(), Protocol::Udp.number());
            format!(
                "ip daddr {dns} meta l4proto {{ {tcp}, {udp} }} th dport 53 ip saddr . meta l4proto @no_dns_4 counter drop"
            )
        });
        let octets: Vec<String> = hardware_address(*gateway)
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect();
        let gateway = octets.join(":");
        write!(
            f,
            r#"table inet {table} {{
  map egress_4 {{ type ipv4_addr : verdict; }}
  map egress_6 {{ type ipv6_addr : verdict; }}
  map ingress_4 {{ type ipv4_addr : verdict; }}
  map ingress_6 {{ type ipv6_addr : verdict; }}
  set isolated_4 {{ type ipv4_addr; }}
  set isolated_6 {{ type ipv6_addr; }}
  set itself_4 {{ type ipv4_addr . ipv4_addr; }}
  set itself_6 {{ type ipv6_addr . ipv6_addr; }}
  set no_dns_4 {{ type ipv4_addr . inet_proto; }}
  chain of_no_connection {{
    ip saddr @isolated_4 counter drop
    ip daddr @isolated_4 counter drop
    ip6 saddr @isolated_6 counter drop
    ip6 daddr @isolated_6 counter drop
  }}
  chain egress {{
    type filter hook forward priority 10; policy accept;
    ct state invalid,untracked goto of_no_connection
    ct state related meta l4proto {{ {ICMP}, {ICMPV6} }} accept
    ct original ip saddr . ct reply ip saddr @itself_4 accept
    ct original ip6 saddr . ct reply ip6 saddr @itself_6 accept
    ct original ip saddr vmap @egress_4
    ct original ip6 saddr vmap @egress_6
  }}
  chain ingress {{
    type filter hook forward priority 11; policy accept;
    ct state related meta l4proto {{ {ICMP}, {ICMPV6} }} accept
    ct original ip saddr . ct reply ip saddr @itself_4 accept
    ct original ip6 saddr . ct reply ip6 saddr @itself_6 accept
    ct reply ip saddr vmap @ingress_4
    ct reply ip6 saddr vmap @ingress_6
  }}
  chain dns {{
    type filter hook input priority 10; policy accept;
    {dns}
  }}
}}
table bridge {table} {{
  chain from_pods {{
    type filter hook prerouting priority -400; policy accept;
    iifname "{links}*" ether daddr != {gateway} ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 drop
  }}
  chain between_pods {{
    type filter hook forward priority 0; policy accept;
    iifname "{links}*" oifname "{links}*" ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop
  }}
}}
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{any_policies, policies};
    use super::*;
    use crate::NodePolicies;

    fn skeleton() -> Skeleton {
        Skeleton {
            table: "gt-policy".into(),
            links: "gt.".into(),
            gateway: [10, 244, 1, 1].into(),
            dns: Some([10, 96, 0, 10].into()),
        }
    }

    /// Does what nft does with the scripts, and refuses what the kernel refuses: adding what is there, removing what is
    /// absent or still referred to, referring to what is not there.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Kernel {
        sets: BTreeMap<String, BTreeSet<String>>,
        maps: BTreeMap<String, BTreeMap<String, String>>,
        chains: BTreeMap<String, Vec<String>>,
    }

    const SETS: [&str; 5] = [
        "isolated_4",
        "isolated_6",
        "itself_4",
        "itself_6",
        "no_dns_4",
    ];
    const MAPS: [&str; 4] = ["egress_4", "egress_6", "ingress_4", "ingress_6"];

    impl Kernel {
        fn new() -> Self {
            Self {
                sets: SETS.map(|name| (name.to_owned(), BTreeSet::new())).into(),
                maps: MAPS.map(|name| (name.to_owned(), BTreeMap::new())).into(),
                chains: BTreeMap::new(),
            }
        }

        fn refers(&self, to: &str) -> bool {
            let word = |rule: &String| rule.split(' ').any(|word| word == to);
            self.chains.values().flatten().any(word)
                || self
                    .maps
                    .values()
                    .flat_map(BTreeMap::values)
                    .any(|verdict| verdict.split(' ').any(|word| word == to))
        }

        fn apply(&mut self, script: &str) {
            for line in script.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["add", "set", "inet", "gt-policy", set, ..] => {
                        assert!(
                            self.sets.insert(set.into(), BTreeSet::new()).is_none(),
                            "{line}"
                        );
                    }
                    ["delete", "set", "inet", "gt-policy", set] => {
                        assert!(!self.refers(&format!("@{set}")), "{line}");
                        self.sets.remove(set).expect(line);
                    }
                    ["add", "chain", "inet", "gt-policy", chain] => {
                        assert!(self.chains.insert(chain.into(), vec![]).is_none(), "{line}");
                    }
                    ["flush", "chain", "inet", "gt-policy", chain] => {
                        self.chains.get_mut(chain).expect(line).clear();
                    }
                    ["delete", "chain", "inet", "gt-policy", chain] => {
                        assert!(!self.refers(chain), "{line}");
                        self.chains.remove(chain).expect(line);
                    }
                    ["add", "rule", "inet", "gt-policy", chain, ref rule @ ..] => {
                        for word in rule {
                            if let Some(set) = word.strip_prefix('@') {
                                assert!(self.sets.contains_key(set), "{line}");
                            }
                        }
                        if let [.., "jump" | "goto", to] = rule {
                            assert!(self.chains.contains_key(*to), "{line}");
                        }
                        self.chains.get_mut(chain).expect(line).push(rule.join(" "));
                    }
                    [
                        verb @ ("add" | "delete"),
                        "element",
                        "inet",
                        "gt-policy",
                        object,
                        ..,
                    ] => {
                        let (_, list) = line.split_once("{ ").expect(line);
                        for element in list.trim_end_matches(" }").split(", ") {
                            self.element(verb, object, element, line);
                        }
                    }
                    _ => panic!("an unknown command: {line}"),
                }
            }
        }

        fn element(&mut self, verb: &str, object: &str, element: &str, line: &str) {
            let changed = if let Some(map) = self.maps.get_mut(object) {
                match element.split_once(" : ") {
                    Some((key, verdict)) => {
                        let chain = verdict.strip_prefix("goto ").expect(line);
                        assert!(self.chains.contains_key(chain), "{line}");
                        map.insert(key.into(), verdict.into()).is_none()
                    }
                    None => map.remove(element).is_some(),
                }
            } else {
                let set = self.sets.get_mut(object).expect(line);
                match verb {
                    "add" => set.insert(element.into()),
                    _ => set.remove(element),
                }
            };
            assert!(changed, "{element} in {line}");
        }
    }

    fn scratch(desired: &NodePolicies) -> Kernel {
        let mut kernel = Kernel::new();
        kernel.apply(&difference(
            &skeleton(),
            &Plan::default(),
            &Plan::with_dns(desired, skeleton().dns),
        ));
        kernel
    }

    #[test]
    fn one_more_peer_is_one_element_however_many_there_are() {
        let mut desired = policies();
        let many: OrdSet<PolicyPeer> = (0..10_000u32)
            .map(|number| (IpAddr::from(Ipv4Addr::from(0x0af4_0000 + number)), 0))
            .collect();
        desired.peers.get_mut("web").unwrap().peers = many;
        let before = Plan::new(&desired);
        let web = desired.peers.get_mut("web").unwrap();
        web.peers.insert(("fd00::9".parse().unwrap(), 0));
        web.peers.remove(&(IpAddr::from([10, 244, 0, 7]), 0));
        let after = Plan::new(&desired);
        assert_eq!(
            difference(&skeleton(), &before, &after),
            "delete element inet gt-policy peers_web_4 { 10.244.0.7 }\n\
             add element inet gt-policy peers_web_6 { fd00::9 }\n"
        );
        assert_eq!(difference(&skeleton(), &after, &Plan::new(&desired)), "");
    }

    #[test]
    fn who_may_not_ask_the_clusters_dns_is_in_a_set() {
        let mut desired = policies();
        let skeleton = skeleton();
        let before = Plan::with_dns(&desired, skeleton.dns);
        desired.pods.get_mut("one").unwrap().egress = true;
        let after = Plan::with_dns(&desired, skeleton.dns);
        let line = "element inet gt-policy no_dns_4 { 10.244.1.2 . 6, 10.244.1.2 . 17 }\n";
        let script = difference(&skeleton, &before, &after);
        assert!(script.contains(&format!("add {line}")), "{script}");
        let script = difference(&skeleton, &after, &before);
        assert!(script.contains(&format!("delete {line}")), "{script}");
        let script = from_scratch(&skeleton, &before);
        assert!(script.contains("ip daddr 10.96.0.10 "), "{script}");
    }

    #[test]
    fn the_tables_are_replaced_in_the_transaction_that_removes_them() {
        let script = from_scratch(&skeleton(), &Plan::new(&policies()));
        assert!(
            script.starts_with(
                "add table inet gt-policy\ndelete table inet gt-policy\n\
                 add table bridge gt-policy\ndelete table bridge gt-policy\n"
            ),
            "{script}"
        );
        assert!(
            script.contains("ether daddr != 02:67:0a:f4:01:01"),
            "{script}"
        );
    }

    #[test]
    fn an_earlier_agents_table_is_known_by_its_names() {
        let skeleton = skeleton();
        let listing = "table inet gt-policy {\n\tmap egress_4 {\n\t\ttype ipv4_addr : verdict\n\t}\n\n\
                       \tset peers_old_4 {\n\t\ttype ipv4_addr\n\t}\n\n\
                       \tset peers_web_4 {\n\t\ttype ipv4_addr\n\t}\n\n\
                       \tchain pod_egress_old {\n\t\tcounter drop\n\t}\n\n\
                       \tchain egress {\n\t\ttype filter hook forward priority filter + 10; policy accept;\n\t}\n}\n";
        let script = take_over(&skeleton, &Found::parse(listing), &Plan::new(&policies()));
        let lines: Vec<&str> = script.lines().collect();
        let at = |line: &str| lines.iter().position(|one| *one == line);
        assert!(at("flush map inet gt-policy egress_4").is_some());
        assert!(at("flush set inet gt-policy peers_web_4").is_some());
        let deleted: Vec<&&str> = lines
            .iter()
            .filter(|line| line.starts_with("delete "))
            .collect();
        assert_eq!(
            deleted,
            [
                &"delete chain inet gt-policy pod_egress_old",
                &"delete set inet gt-policy peers_old_4"
            ]
        );
    }

    proptest! {
        /// The invariant of incremental programming: it never matters which way the kernel got where it is.
        #[test]
        fn differences_lead_to_the_same_as_a_fresh_start(
            steps in proptest::collection::vec(any_policies(), 1..6)
        ) {
            let (mut kernel, mut now) = (Kernel::new(), Plan::default());
            for step in &steps {
                crate::policy::check(step).expect("valid");
                let next = Plan::with_dns(step, skeleton().dns);
                kernel.apply(&difference(&skeleton(), &now, &next));
                now = next;
                prop_assert_eq!(&kernel, &scratch(step));
            }
        }
    }
}
