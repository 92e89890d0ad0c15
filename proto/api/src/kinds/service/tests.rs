//! Defaults, updates and refusals of services, as recorded from a real control plane.

use serde_json::Value;

use super::*;

fn parse(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap()
}

fn created(spec: Value) -> Service {
    let mut object = parse(spec);
    ServiceKind::default(&mut object);
    crate::typed::prepare_create::<ServiceKind>(&mut object);
    object
}

fn refused(spec: Value) -> Vec<String> {
    let mut errors = ErrorList::default();
    ServiceKind::validate(&created(spec), &mut errors);
    errors.told()
}

/// The object an update stores, and why it is refused.
fn updated(old: &Service, new: Value) -> (ServiceSpec, Vec<String>) {
    let mut new = parse(new);
    ServiceKind::default(&mut new);
    crate::typed::prepare_update::<ServiceKind>(&mut new, old);
    let mut errors = ErrorList::default();
    ServiceKind::validate_update(&new, old, &mut errors);
    (new.spec.unwrap(), errors.told())
}

#[test]
fn every_bad_port_is_told() {
    let range = "must be between 1 and 65535, inclusive";
    let found = refused(json!({"ports": [
        {"port": 0},
        {"name": "b", "port": 70000, "targetPort": -1},
        {"name": "c", "port": 5, "targetPort": "bad_port!", "protocol": "FOO"}
    ]}));
    let expected = [
        "spec.ports[0].name: Required value".to_owned(),
        format!("spec.ports[0].port: Invalid value: 0: {range}"),
        format!("spec.ports[0].targetPort: Invalid value: 0: {range}"),
        format!("spec.ports[1].port: Invalid value: 70000: {range}"),
        format!("spec.ports[1].targetPort: Invalid value: -1: {range}"),
        "spec.ports[2].protocol: Unsupported value: \"FOO\": supported values: \"SCTP\", \"TCP\", \"UDP\""
            .to_owned(),
        "spec.ports[2].targetPort: Invalid value: \"bad_port!\": must contain only alpha-numeric \
         characters (a-z, 0-9), and hyphens (-)"
            .to_owned(),
    ];
    assert_eq!(found, expected);
}

#[test]
fn addresses_agree_before_anything_else_is_looked_at() {
    let cases = [
        (
            json!({"clusterIP": "nope"}),
            "spec.clusterIPs[0]: Invalid value: \"nope\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"clusterIPs": ["10.96.200.2"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.200.2\"]: must be empty when `clusterIP` is not specified",
        ),
        (
            json!({"clusterIP": "10.96.200.3", "clusterIPs": ["10.96.200.4"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.200.4\"]: first value must match `clusterIP`",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
            "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(refused(spec.clone()), [expected], "{spec}");
    }
}

#[test]
fn a_headless_service_has_no_node_ports_but_may_lack_ports() {
    assert_eq!(refused(json!({"clusterIP": "None"})), Vec::<String>::new());
    let found = refused(json!({"clusterIP": "None", "type": "NodePort", "ports": [{"port": 80}]}));
    let expected = "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services";
    assert_eq!(found, [expected]);
    assert_eq!(refused(json!({})), ["spec.ports: Required value"]);
}

#[test]
fn fields_of_other_types_are_refused() {
    let port = json!([{"port": 80, "nodePort": 30080}]);
    let cases = [
        (
            json!({"ports": port}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"ports": [{"port": 80}], "loadBalancerClass": "a/b"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\"TargetPort\":0,\"NodePort\":0}",
        ),
        (
            json!({"type": "ExternalName"}),
            "spec.externalName: Required value",
        ),
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "Cookie"}),
            "spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\"",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(refused(spec.clone()), [expected], "{spec}");
    }
}

#[test]
fn external_addresses_have_a_traffic_policy_and_a_warning() {
    let object = created(json!({"externalIPs": ["203.0.113.1"], "ports": [{"port": 80}]}));
    let spec = object.spec.as_ref().unwrap();
    assert_eq!(spec.external_traffic_policy.as_deref(), Some("Cluster"));
    assert_eq!(ServiceKind::warnings(&object, None).len(), 1);
}

#[test]
fn an_address_is_kept_and_cannot_change() {
    let old = created(json!({"clusterIP": "10.96.77.7", "ports": [{"port": 80}]}));
    let (kept, errors) = updated(&old, json!({"ports": [{"port": 81}]}));
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(kept.cluster_ips, Some(vec!["10.96.77.7".to_owned()]));
    for address in ["10.96.77.8", "None"] {
        let (_, errors) = updated(&old, json!({"clusterIP": address, "ports": [{"port": 80}]}));
        let expected =
            format!("spec.clusterIPs[0]: Invalid value: [\"{address}\"]: may not change once set");
        assert_eq!(errors, [expected]);
    }
    let new =
        json!({"clusterIP": "10.96.77.7", "clusterIPs": ["10.96.77.9"], "ports": [{"port": 80}]});
    let (_, errors) = updated(&old, new);
    let expected =
        "spec.clusterIPs: Invalid value: [\"10.96.77.9\"]: first value must match `clusterIP`";
    assert_eq!(errors, [expected]);
}

#[test]
fn a_second_family_needs_a_policy_and_goes_with_it() {
    let port = json!([{"port": 80}]);
    let both = |policy: Option<&str>| {
        json!({
            "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": policy,
            "ports": port
        })
    };
    let needs = |what: &str| {
        format!(
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be RequireDualStack or PreferDualStack when multiple {what} are specified"
        )
    };
    let expected = [needs("clusterIPs"), needs("ipFamilies")];
    assert_eq!(refused(both(None)), expected);
    assert_eq!(refused(both(Some("SingleStack"))), expected);
    let old = created(both(Some("PreferDualStack")));
    assert_eq!(refused(both(Some("PreferDualStack"))), Vec::<String>::new());

    let (kept, errors) = updated(&old, json!({"ports": port}));
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(kept.ip_family_policy.as_deref(), Some("PreferDualStack"));
    assert_eq!(kept.cluster_ips.unwrap().len(), 2);

    let (single, errors) = updated(&old, both(Some("SingleStack")));
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(single.cluster_ips.unwrap(), ["10.0.0.1"]);
    assert_eq!(single.ip_families.unwrap(), ["IPv4"]);

    let mut lost = both(Some("PreferDualStack"));
    lost["clusterIPs"] = json!(["10.0.0.1"]);
    let (_, errors) = updated(&old, lost);
    let expected = "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP";
    assert_eq!(errors, [expected]);
    let mut swapped = both(Some("PreferDualStack"));
    swapped["ipFamilies"] = json!(["IPv6", "IPv4"]);
    let (_, errors) = updated(&old, swapped);
    assert!(!errors.is_empty());
}

#[test]
fn a_balancer_and_its_port_for_health_stay() {
    let balanced = |class: Option<&str>, port: i32| {
        json!({
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local",
            "loadBalancerClass": class, "healthCheckNodePort": port, "ports": [{"port": 80}]
        })
    };
    let old = created(balanced(Some("a/b"), 30100));
    let (kept, errors) = updated(&old, balanced(Some("a/b"), 0));
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(kept.health_check_node_port, Some(30100));
    let (_, errors) = updated(&old, balanced(None, 30101));
    let expected = [
        "spec.loadBalancerClass: Invalid value: null: may not change once set",
        "spec.healthCheckNodePort: Forbidden: field is immutable",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn what_the_old_type_had_goes_with_it() {
    let port = json!([{"port": 80, "nodePort": 30080}]);
    let old = created(json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": port}));
    let mut patched = serde_json::to_value(old.spec.as_ref().unwrap()).unwrap();
    patched["type"] = json!("ClusterIP");
    let (spec, errors) = updated(&old, patched.clone());
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(spec.ports.unwrap()[0].node_port, None);
    assert_eq!(spec.external_traffic_policy, None);
    assert_eq!(spec.allocate_load_balancer_node_ports, None);
    assert_eq!(spec.cluster_ip.as_deref(), Some("10.0.0.1"));

    patched["type"] = json!("ExternalName");
    patched["externalName"] = json!("x.example");
    let (spec, errors) = updated(&old, patched.clone());
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!((spec.cluster_ip, spec.cluster_ips), (None, None));

    patched["clusterIP"] = json!("10.0.0.2");
    let (_, errors) = updated(&old, patched);
    assert_eq!(
        errors,
        ["spec.clusterIPs: Forbidden: may not be set for ExternalName services"]
    );
}

#[test]
fn a_balancer_reports_addresses() {
    let status = |kind: &str, address: &str| {
        let mut object = created(json!({"type": kind, "ports": [{"port": 80}]}));
        object.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": address}]}}))
                .unwrap();
        ServiceKind::default(&mut object);
        let mut errors = ErrorList::default();
        ServiceKind::validate_status_update(&object, &object, &mut errors);
        let ingress = object
            .status
            .unwrap()
            .load_balancer
            .unwrap()
            .ingress
            .unwrap();
        (ingress[0].ip_mode.clone(), errors.told())
    };
    assert_eq!(
        status("LoadBalancer", "203.0.113.5"),
        (Some("VIP".to_owned()), vec![])
    );
    assert_eq!(status("LoadBalancer", "bad").1.len(), 1);
    assert_eq!(status("ClusterIP", "203.0.113.5").1.len(), 1);
}

#[test]
fn a_name_is_one_label() {
    let rule = ServiceKind::NAME_RULE;
    assert_eq!(rule("1abc.def"), ["must not contain dots"]);
    assert!(rule("1abc").is_empty());
    assert_eq!(rule("A").len(), 1);
}
