use serde_json::Value;

use super::*;

fn parse(value: Value) -> Ingress {
    let mut object = serde_json::from_value(value).unwrap();
    IngressKind::default(&mut object);
    object
}

fn refused(value: Value) -> Vec<String> {
    let mut errors = ErrorList::default();
    IngressKind::validate(&parse(value), &mut errors);
    errors.told()
}

fn route(path: &str, kind: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": "s", "port": {"number": 80}}}})
}

#[test]
fn something_is_routed_somewhere() {
    let nothing = refused(json!({"spec": {}}));
    let expected =
        "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified";
    assert_eq!(nothing, [expected]);
    let nowhere =
        refused(json!({"spec": {"defaultBackend": {}, "rules": [{"http": {"paths": []}}]}}));
    let expected = [
        "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
        "spec.rules[0].http.paths: Required value",
    ];
    assert_eq!(nowhere, expected);
}

#[test]
fn paths_can_be_read_in_one_way_only() {
    let paths: Vec<Value> = ["/a/../b", "/a%2Fb", "/a/..", "/a", ""]
        .iter()
        .map(|path| route(path, "Exact"))
        .chain([
            route("", "ImplementationSpecific"),
            route("a", "ImplementationSpecific"),
        ])
        .collect();
    let refused = refused(json!({"spec": {"rules": [{"http": {"paths": paths}}]}}));
    let at = |index: usize, value: &str, detail: &str| {
        format!("spec.rules[0].http.paths[{index}].path: Invalid value: \"{value}\": {detail}")
    };
    let expected = [
        at(0, "/a/../b", "must not contain '/../'"),
        at(1, "/a%2Fb", "must not contain '%2F'"),
        at(2, "/a/..", "cannot end with '/..'"),
        at(4, "", "must be an absolute path"),
        at(6, "a", "must be an absolute path"),
    ];
    assert_eq!(refused, expected);
}

#[test]
fn backends_are_named_whole() {
    let refused = refused(json!({"spec": {
        "defaultBackend": {"resource": {"kind": "", "name": "a/b", "apiGroup": "X"}},
        "tls": [{"hosts": ["*.a.b", "*"], "secretName": "A"}],
        "ingressClassName": "A B"
    }}));
    let paths: Vec<&str> = refused
        .iter()
        .filter_map(|message| message.split(": ").next())
        .collect();
    let expected = [
        "spec.defaultBackend.resource.apiGroup",
        "spec.defaultBackend.resource.kind",
        "spec.defaultBackend.resource.name",
        "spec.tls[0].hosts[1]",
        "spec.tls[0].secretName",
        "spec.ingressClassName",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn annotation_and_field_name_the_same_class_at_first() {
    let object = |class: &str| {
        json!({
            "metadata": {"annotations": {"kubernetes.io/ingress.class": "a"}},
            "spec": {"ingressClassName": class, "defaultBackend": {"service": {"name": "s", "port": {"name": "http"}}}}
        })
    };
    assert_eq!(refused(object("a")), Vec::<String>::new());
    assert_eq!(refused(object("b")).len(), 1);
    let (old, new) = (parse(object("a")), parse(object("b")));
    let mut errors = ErrorList::default();
    IngressKind::validate_update(&new, &old, &mut errors);
    assert!(errors.is_empty());
    assert_eq!(IngressKind::warnings(&new, None).len(), 1);
    assert_eq!(IngressKind::warnings(&new, Some(&old)).len(), 0);
}

#[test]
fn a_status_is_written_by_itself_and_the_generation_follows_the_spec() {
    let old = parse(json!({
        "metadata": {"generation": 1},
        "spec": {"rules": [{"host": "a.b"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    }));
    let mut new = parse(json!({"spec": {"rules": [{"host": "c.d"}]}}));
    crate::typed::prepare_update::<IngressKind>(&mut new, &old);
    assert_eq!(new.metadata.generation, Some(2));
    assert_eq!(new.status, old.status);
    let reported = parse(json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "x"}, {"hostname": "192.0.2.1"}, {"hostname": "lb.example"}
    ]}}}));
    let mut errors = ErrorList::default();
    IngressKind::validate_status_update(&reported, &old, &mut errors);
    assert_eq!(errors.0.len(), 2, "{errors:?}");
}

#[test]
fn a_row_shows_hosts_and_addresses() {
    let object = parse(json!({
        "spec": {"rules": [{"host": "a"}, {}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]},
        "status": {"loadBalancer": {"ingress": [{"hostname": "z"}, {"ip": "192.0.2.1"}]}}
    }));
    let row = IngressKind::printer().row(&object, 0);
    assert_eq!(row[1], "<none>");
    assert_eq!(row[2], "a,b,c + 1 more...");
    assert_eq!(row[3], "192.0.2.1,z");
    assert_eq!(row[4], "80, 443");
    let plain = parse(json!({"spec": {}}));
    assert_eq!(
        IngressKind::printer().row(&plain, 0)[2..5],
        [json!("*"), json!(""), json!("80")]
    );
}
