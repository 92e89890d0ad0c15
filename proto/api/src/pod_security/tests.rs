use serde_json::{Value, json};

use super::*;

fn pod(spec: &Value, annotations: &Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec}),
    )
    .expect("a pod")
}

fn standard(text: &str) -> Standard {
    let (level, version) = text.split_once(':').unwrap_or((text, "latest"));
    Standard {
        level: Level::parse(level).expect("a level"),
        version: Version::parse(version).expect("a version"),
    }
}

fn broken_with(text: &str, spec: &Value, annotations: &Value) -> String {
    let pod = pod(spec, annotations);
    evaluate(standard(text), &pod.metadata, &pod.spec.expect("a spec")).details()
}

fn broken(text: &str, spec: &Value) -> String {
    broken_with(text, spec, &json!({}))
}

/// A container that keeps every rule, and what is set besides.
fn hardened(name: &str, besides: &Value) -> Value {
    let mut container = json!({"name": name, "image": "i", "securityContext": {
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"}}});
    merge(&mut container, besides);
    container
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn security(besides: &Value) -> Value {
    json!({"containers": [hardened("c", &json!({ "securityContext": besides }))]})
}

#[test]
fn a_hardened_pod_keeps_every_rule() {
    let spec = json!({"initContainers": [hardened("i", &json!({}))], "containers": [hardened("c", &json!({}))]});
    for text in [
        "privileged",
        "baseline",
        "restricted",
        "restricted:v1.0",
        "restricted:v1.99",
    ] {
        assert_eq!(broken(text, &spec), "", "{text}");
    }
    assert_eq!(
        broken("privileged", &json!({"hostPID": true, "containers": []})),
        ""
    );
}

#[test]
fn each_rule_of_baseline_in_kubernetes_words() {
    let container = |besides: Value| json!({"containers": [hardened("c", &besides)]});
    for (spec, words) in [
        (
            security(&json!({"appArmorProfile": {"type": "Unconfined"}})),
            "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            security(&json!({"capabilities": {"add": ["NET_RAW", "SYS_ADMIN", "CHOWN"]}})),
            "non-default capabilities (container \"c\" must not include \"NET_RAW\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            json!({"containers": [], "hostNetwork": true, "hostPID": true, "hostIPC": true}),
            "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
        ),
        (
            json!({"containers": [], "volumes": [{"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "hostPath": {"path": "/"}}]}),
            "hostPath volumes (volumes \"a\", \"b\")",
        ),
        (
            container(
                json!({"ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 443}]}),
            ),
            "hostPort (container \"c\" uses hostPorts 443, 80)",
        ),
        (
            container(
                json!({"livenessProbe": {"httpGet": {"host": "h", "port": 1}}, "lifecycle": {"preStop": {"tcpSocket": {"host": "k", "port": 1}}}}),
            ),
            "probe or lifecycle host (container \"c\" uses probe or lifecycle hosts \"h\", \"k\")",
        ),
        (
            security(&json!({"privileged": true})),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            security(&json!({"procMount": "Unmasked"})),
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}, "containers": [hardened("c", &json!({"securityContext": {"seLinuxOptions": {"role": "r"}}}))]}),
            "seLinuxOptions (pod and container \"c\" set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set; role may not be set)",
        ),
        (
            security(&json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.core_pattern", "value": "x"}, {"name": "net.ipv4.tcp_rmem", "value": "1"}]}}),
            "forbidden sysctls (kernel.core_pattern)",
        ),
        (
            security(&json!({"windowsOptions": {"hostProcess": true}})),
            "hostProcess (container \"c\" must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ] {
        assert_eq!(broken("baseline", &spec), words);
        assert!(!broken("restricted", &spec).is_empty(), "{words}");
    }
    let annotations = json!({"container.apparmor.security.beta.kubernetes.io/c": "unconfined"});
    assert_eq!(
        broken_with("baseline", &json!({"containers": []}), &annotations),
        "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
         \"container.apparmor.security.beta.kubernetes.io/c=\"unconfined\"\")"
    );
}

#[test]
fn each_rule_of_restricted_in_kubernetes_words() {
    for (spec, words) in [
        (
            security(&json!({"allowPrivilegeEscalation": true})),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
        ),
        (
            security(&json!({"capabilities": {"drop": [], "add": ["CHOWN", "NET_BIND_SERVICE"]}})),
            "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]; container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
        (
            json!({"containers": [], "volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}, {"name": "w", "hostPath": {"path": "/"}}, {"name": "e", "emptyDir": {}}]}),
            "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (
            security(&json!({"runAsNonRoot": false})),
            "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
        ),
        (
            security(&json!({"runAsNonRoot": null})),
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
        ),
        (
            json!({"securityContext": {"runAsUser": 0}, "containers": [hardened("c", &json!({"securityContext": {"runAsUser": 0}}))]}),
            "runAsUser=0 (pod and container \"c\" must not set runAsUser=0)",
        ),
        (
            security(&json!({"seccompProfile": null})),
            "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ),
    ] {
        assert_eq!(broken("restricted", &spec), words);
    }
}

#[test]
fn ephemeral_and_init_containers_count_in_their_order() {
    let bad =
        |name: &str| json!({"name": name, "image": "i", "securityContext": {"privileged": true}});
    let spec = json!({"containers": [bad("b")], "initContainers": [bad("c")], "ephemeralContainers": [bad("a")]});
    assert_eq!(
        broken("baseline", &spec),
        "privileged (containers \"c\", \"b\", \"a\" must not set securityContext.privileged=true)"
    );
}

#[test]
fn rules_are_those_of_the_version() {
    let rmem = json!({"containers": [], "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]}});
    assert_eq!(
        broken("baseline:v1.31", &rmem),
        "forbidden sysctls (net.ipv4.tcp_rmem)"
    );
    assert_eq!(broken("baseline:v1.32", &rmem), "");
    let own_users = json!({"hostUsers": false, "containers": [hardened("c", &json!({"securityContext": {
        "runAsNonRoot": false, "runAsUser": 0, "procMount": "Unmasked"}}))]});
    assert_eq!(broken("restricted", &own_users), "");
    assert!(broken("restricted:v1.30", &own_users).starts_with("procMount"));
    let windows = json!({"os": {"name": "windows"}, "containers": [{"name": "c", "securityContext": {"runAsNonRoot": true}}]});
    assert_eq!(broken("restricted", &windows), "");
    assert!(broken("restricted:v1.24", &windows).contains("capabilities.drop"));
    let annotations = json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"});
    assert_eq!(
        broken_with("baseline:v1.18", &json!({"containers": []}), &annotations),
        "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
    );
}

#[test]
fn labels_are_read_and_what_is_wrong_is_enforced_strictly() {
    let of = |pairs: &[(&str, &str)]| {
        let labels = pairs
            .iter()
            .map(|(key, value)| (format!("{LABEL_PREFIX}{key}"), (*value).to_owned()));
        let labels: BTreeMap<String, String> = labels.collect();
        Policy::of_labels(Some(&labels))
    };
    let (policy, errors) = of(&[
        ("enforce", "baseline"),
        ("warn", "restricted"),
        ("warn-version", "v1.30"),
    ]);
    assert!(errors.is_empty());
    assert_eq!(policy.enforce.to_string(), "baseline:latest");
    assert_eq!(policy.warn.to_string(), "restricted:v1.30");
    assert_eq!(policy.audit, Standard::default());
    for wrong in ["bogus", "", "Baseline"] {
        let (policy, errors) = of(&[("enforce", wrong), ("audit", wrong)]);
        assert_eq!(policy.enforce.level, Level::Restricted, "{wrong}");
        assert_eq!(policy.audit.level, Level::Privileged);
        assert_eq!(errors.0.len(), 2);
    }
    for wrong in [
        "v1",
        "1.30",
        "v1.030",
        "v1.",
        "v2.1",
        "v1.99999999999",
        "v1.-1",
    ] {
        assert!(!of(&[("enforce-version", wrong)]).1.is_empty(), "{wrong}");
    }
    assert_eq!(
        Policy::of_labels(None),
        (Policy::default(), ErrorList::default())
    );
}

#[test]
fn only_changes_of_images_and_profiles_are_looked_at_again() {
    let one = pod(
        &json!({"containers": [{"name": "c", "image": "a"}]}),
        &json!({}),
    );
    let mut tolerating = one.clone();
    tolerating.spec.get_or_insert_default().priority = Some(1);
    assert!(!is_significant(&tolerating, &one));
    for other in [
        pod(
            &json!({"containers": [{"name": "c", "image": "b"}]}),
            &json!({}),
        ),
        pod(
            &json!({"containers": [{"name": "c", "image": "a"}], "ephemeralContainers": [{"name": "e", "image": "x"}]}),
            &json!({}),
        ),
        pod(
            &json!({"containers": [{"name": "c", "image": "a"}]}),
            &json!({"container.seccomp.security.alpha.kubernetes.io/c": "unconfined"}),
        ),
    ] {
        assert!(is_significant(&other, &one));
    }
}

#[test]
fn existing_pods_are_told_by_what_they_do() {
    let broken = |spec: &Value| {
        let pod = pod(spec, &json!({}));
        evaluate(
            standard("baseline"),
            &pod.metadata,
            &pod.spec.expect("a spec"),
        )
    };
    let host = broken(&json!({"containers": [], "hostPID": true}));
    let mut existing = Existing::default();
    for name in ["c", "b", "a"] {
        existing.add(name, &host);
    }
    existing.add("d", &broken(&security(&json!({"privileged": true}))));
    existing.add("fine", &broken(&json!({"containers": []})));
    assert_eq!(
        existing.warnings("n", standard("baseline"), 5, 9),
        [
            "new PodSecurity enforce level only checked against the first 5 of 9 existing pods",
            "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 2 other pods): host namespaces",
            "d: privileged",
        ]
    );
    assert!(
        Existing::default()
            .warnings("n", standard("baseline"), 3, 3)
            .is_empty()
    );
}
