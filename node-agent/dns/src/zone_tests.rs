use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn service(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn table(records: &[(&str, &[&str])], reverse: &[(&str, &str)]) -> DnsTable {
    let absolute = |name: &str| format!("{name}.default.svc.cluster.local");
    let parse = |addresses: &[&str]| addresses.iter().map(|a| a.parse().unwrap()).collect();
    DnsTable {
        records: records
            .iter()
            .map(|(name, addresses)| (absolute(name), vec![DnsRecord::Addresses(parse(addresses))]))
            .collect(),
        reverse: reverse
            .iter()
            .map(|(address, name)| (address.parse().unwrap(), absolute(name)))
            .collect(),
    }
}

fn zone() -> Zone {
    Zone::new("cluster.local").unwrap()
}

fn found(zone: &Zone, name: &str, wanted: RecordType) -> (ResponseCode, Vec<String>) {
    let query = Query::query(Name::from_ascii(name).unwrap(), wanted);
    match zone.find(&query, 0) {
        Found::Answer(found) => {
            let data = found.answers.iter().map(|record| record.data.to_string());
            (found.code, data.collect())
        }
        Found::Alias { target, .. } => (ResponseCode::NoError, vec![target.to_ascii()]),
        Found::Elsewhere => (ResponseCode::Refused, vec![]),
    }
}

fn code(zone: &Zone, name: &str) -> ResponseCode {
    found(zone, name, RecordType::A).0
}

#[test]
fn names_above_others_exist_as_long_as_those() {
    use ResponseCode::{NXDomain, NoError};
    let mut zone = zone();
    let deep = table(&[("a.b.db", &["10.0.0.1"]), ("c.b.db", &["10.0.0.2"])], &[]);
    let one = table(&[("c.b.db", &["10.0.0.2"])], &[]);
    let none = DnsTable::default();
    let above = "b.db.default.svc.cluster.local.";
    zone.change(&service("db"), &none, &deep);
    assert_eq!(
        (
            code(&zone, above),
            code(&zone, "default.svc.cluster.local.")
        ),
        (NoError, NoError)
    );
    zone.change(&service("db"), &deep, &one);
    assert_eq!(code(&zone, above), NoError);
    assert_eq!(code(&zone, "a.b.db.default.svc.cluster.local."), NXDomain);
    zone.change(&service("db"), &one, &none);
    for name in [
        above,
        "db.default.svc.cluster.local.",
        "default.svc.cluster.local.",
    ] {
        assert_eq!(code(&zone, name), NXDomain, "{name}");
    }
    assert_eq!(code(&zone, "svc.cluster.local."), NoError);
    assert!(zone.names.is_empty());
}

#[test]
fn a_service_answers_for_its_own_names_only() {
    let (mut zone, none) = (zone(), DnsTable::default());
    let theirs = table(
        &[
            ("web", &["10.0.0.1"]),
            ("xdb", &["10.0.0.2"]),
            ("db", &["10.0.0.3"]),
        ],
        &[],
    );
    zone.change(
        &service("web"),
        &none,
        &table(&[("web", &["10.0.0.9"])], &[]),
    );
    zone.change(&service("db"), &none, &theirs);
    let address = |name: &str| found(&zone, name, RecordType::A).1;
    assert_eq!(address("web.default.svc.cluster.local."), ["10.0.0.9"]);
    assert_eq!(address("db.default.svc.cluster.local."), ["10.0.0.3"]);
    assert!(address("xdb.default.svc.cluster.local.").is_empty());
    let mut without = zone.clone();
    without.change(&service("db"), &theirs, &none);
    let web = found(&without, "web.default.svc.cluster.local.", RecordType::A);
    assert_eq!(web.1, ["10.0.0.9"], "removing it takes nothing of others");
}

#[test]
fn an_address_may_have_names_in_several_services() {
    let (mut zone, none) = (zone(), DnsTable::default());
    let first = table(&[], &[("10.0.0.1", "p0.a"), ("fd00::1", "p0.a")]);
    let second = table(&[], &[("10.0.0.1", "p0.b")]);
    zone.change(&service("a"), &none, &first);
    zone.change(&service("b"), &none, &second);
    let pointers = |zone: &Zone, name: &str| found(zone, name, RecordType::PTR).1;
    let v4 = "1.0.0.10.in-addr.arpa.";
    assert_eq!(
        pointers(&zone, v4),
        [
            "p0.a.default.svc.cluster.local.",
            "p0.b.default.svc.cluster.local."
        ]
    );
    let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
    assert_eq!(pointers(&zone, v6), ["p0.a.default.svc.cluster.local."]);
    zone.change(&service("a"), &first, &none);
    assert_eq!(pointers(&zone, v4), ["p0.b.default.svc.cluster.local."]);
    let elsewhere = (ResponseCode::Refused, vec![]);
    assert_eq!(found(&zone, v6, RecordType::PTR), elsewhere);
    assert_eq!(
        found(&zone, "0.10.in-addr.arpa.", RecordType::PTR),
        elsewhere
    );
}

#[test]
fn addresses_of_pods_have_names_without_asking_who_they_are() {
    let zone = zone();
    let address = |name: &str, wanted| {
        let name = format!("{name}.pod.cluster.local.");
        found(&zone, &name, wanted)
    };
    let known = |data: &str| (ResponseCode::NoError, vec![data.to_owned()]);
    assert_eq!(
        address("10-244-0-9.default", RecordType::A),
        known("10.244.0.9")
    );
    assert_eq!(
        address("fd00--9.default", RecordType::AAAA),
        known("fd00::9")
    );
    let nothing = (ResponseCode::NoError, vec![]);
    assert_eq!(address("fd00--9.default", RecordType::A), nothing);
    assert_eq!(address("default", RecordType::A), nothing);
    let absent = (ResponseCode::NXDomain, vec![]);
    for name in [
        "10-244-0.default",
        "10-244-0-9.more.default",
        "web.default",
        "10-244-0-256.x",
    ] {
        assert_eq!(address(name, RecordType::A), absent, "{name}");
    }
}

fn names() -> impl Strategy<Value = BTreeMap<String, Vec<DnsRecord>>> {
    let name = proptest::sample::select(vec!["", "a.", "b.", "a.b.", "c.a.b.", "_x._tcp."]);
    let addresses = proptest::collection::vec(any::<[u8; 4]>(), 0..3);
    let record = addresses.prop_map(|all| {
        vec![DnsRecord::Addresses(
            all.into_iter().map(IpAddr::from).collect(),
        )]
    });
    proptest::collection::btree_map(
        name.prop_map(|name| format!("{name}db.default.svc.cluster.local")),
        record,
        0..6,
    )
}

proptest! {
    /// However it came about, a zone is as if it had been made of the last table alone.
    #[test]
    fn changes_leave_nothing_behind(tables in proptest::collection::vec(names(), 1..5)) {
        let (mut zone, mut old) = (zone(), DnsTable::default());
        let mut last = DnsTable::default();
        for records in tables {
            last = DnsTable { records, reverse: BTreeMap::new() };
            zone.change(&service("db"), &old, &last);
            old = last.clone();
        }
        let mut anew = super::tests::zone();
        anew.change(&service("db"), &DnsTable::default(), &last);
        let all = |zone: &Zone| -> BTreeMap<String, (Option<Vec<RData>>, u32)> {
            let names = zone.names.iter();
            names.map(|(name, node)| {
                let records = node.records.as_ref().map(|records| records.to_vec());
                (name.to_string(), (records, node.below))
            }).collect()
        };
        prop_assert_eq!(all(&zone), all(&anew));
        for (name, node) in zone.names.iter() {
            let below = zone.names.keys().filter(|other| other.split_once('.').map(|(_, above)| above) == Some(&**name));
            prop_assert_eq!(node.below as usize, below.count());
        }
    }
}
