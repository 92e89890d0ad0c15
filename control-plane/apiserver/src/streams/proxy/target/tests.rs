//! Names, ports and addresses of targets.

use serde_json::json;

use super::*;

fn named(text: &str) -> Named<'_> {
    Named::parse(text).expect("a name")
}

#[test]
fn names_have_up_to_three_parts() {
    let parsed = |text| Named::parse(text).map(|Named { scheme, name, port }| (scheme, name, port));
    assert_eq!(parsed("a"), Some(("", "a", "")));
    assert_eq!(parsed("a:http"), Some(("", "a", "http")));
    assert_eq!(parsed("https:a:443"), Some(("https", "a", "443")));
    assert_eq!(parsed("https:a:"), Some(("https", "a", "")));
    for bad in ["", ":80", "ftp:a:80", "a:b:c:d", "HTTPS:a:443"] {
        assert_eq!(parsed(bad), None, "{bad}");
    }
}

#[test]
fn ready_endpoints_of_the_port_that_are_pods_are_found() {
    let target = json!({"kind": "Pod", "namespace": "d", "name": "p", "uid": "u"});
    let slice = json!({
        "ports": [{"name": "http", "port": 8080}, {"name": "adm", "port": 9000}],
        "endpoints": [
            {"addresses": ["10.244.0.1"], "conditions": {"ready": true}, "targetRef": target},
            {"addresses": ["10.244.0.2"], "conditions": {"ready": false}, "targetRef": target},
            {"addresses": ["10.244.0.3"], "conditions": {}, "targetRef": target},
            {"addresses": ["192.0.2.1"], "conditions": {}},
            {"addresses": ["192.0.2.2"], "targetRef": {"kind": "Pod", "namespace": "e", "name": "p"}},
            {"addresses": ["192.0.2.3"], "targetRef": {"kind": "Node", "namespace": "d", "name": "p"}}
        ]
    });
    let empty = json!({"ports": null, "endpoints": null});
    let slices = [empty, slice];
    let found = endpoints(&slices, "d", "http");
    let expected = ["10.244.0.1", "10.244.0.3"].map(|address| Endpoint {
        address,
        port: 8080,
        pod: "p",
    });
    assert_eq!(found, expected);
    assert!(endpoints(&slices, "d", "other").is_empty());
}

#[test]
fn no_spelling_leads_to_the_server_itself() {
    let reached = |text: &str| allowed(text, is_ordinary);
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
        "localhost",
        "",
    ] {
        let error = reached(inward).expect_err(inward);
        assert_eq!(
            (error.code(), error.message()),
            (400, "address not allowed")
        );
    }
    let target = |text: &str| {
        let target = Target {
            backend: Backend::Server,
            address: reached(text).expect(text),
            port: 80,
            tls: false,
        };
        target.authority()
    };
    assert_eq!(target("::ffff:192.0.2.1"), "192.0.2.1:80");
    assert_eq!(target("2001:db8::1"), "[2001:db8::1]:80");
    let of_node = |text: &str| {
        let object = json!({"status": {"addresses": [{"type": "InternalIP", "address": text}]}});
        let streams = Arc::new(crate::NoNodes);
        node(streams, &named("n:9100"), &object).map(|target| target.authority())
    };
    assert_eq!(of_node("192.0.2.1").ok().as_deref(), Some("192.0.2.1:9100"));
    for inward in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0"] {
        assert!(of_node(inward).is_err(), "{inward}");
    }
}

#[test]
fn a_services_port_is_named_or_numbered() {
    let service = json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81}]}});
    let of = |text: &str| port_name(&named(text), &service);
    assert_eq!(of("a:80").ok().as_deref(), Some("http"));
    assert_eq!(of("a:81").ok().as_deref(), Some(""));
    assert_eq!(of("a:web").ok().as_deref(), Some("web"));
    assert_eq!(of("https:a:").ok().as_deref(), Some(""));
    for missing in ["82", "-1"] {
        assert_eq!(
            of(&format!("a:{missing}")).map_err(|error| error.message().to_owned()),
            Err(format!("no service port {missing} found for service \"a\""))
        );
    }
}

#[test]
fn a_pods_port_is_numbered_named_or_the_first() {
    let pod = json!({"spec": {"containers": [
        {"name": "a"},
        {"name": "b", "ports": [{"containerPort": 8080}, {"containerPort": 9000, "name": "adm"}]}
    ]}});
    let of = |text: &str| {
        let port = pod_port(&named(text), &pod);
        port.map_err(|error| error.message().to_owned())
    };
    assert_eq!(of("p"), Ok(8080));
    assert_eq!(of("p:81"), Ok(81));
    assert_eq!(of("https:p:adm"), Ok(9000));
    for unknown in ["web", "65536", "+80", "-1"] {
        assert_eq!(
            of(&format!("p:{unknown}")),
            Err(format!(
                "error trying to reach service: dial tcp: lookup tcp/{unknown}: unknown port"
            ))
        );
    }
    let bare = json!({"spec": {"containers": [{"name": "a"}]}});
    assert_eq!(pod_port(&named("p"), &bare).ok(), Some(80));
    assert_eq!(pod_port(&named("https:p:"), &bare).ok(), Some(443));
}
