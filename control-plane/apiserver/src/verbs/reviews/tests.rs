use http::Method;

use super::*;
use crate::authorisation::tests::{Cluster, administrator, grant, user};

const AUTHORIZATION: &str = "/apis/authorization.k8s.io/v1";

/// A cluster in which Jane may get pods of `default`.
async fn cluster() -> Cluster {
    let cluster = Cluster::new().await;
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    grant(&cluster, "reads", rule, "jane").await;
    cluster
}

async fn ask(cluster: &Cluster, path: &str, spec: Value, who: Identity) -> (u16, Value) {
    let path = format!("{AUTHORIZATION}/{path}");
    let body = json!({"spec": spec});
    cluster.send(Method::POST, &path, &body, who).await
}

fn pods(verb: &str, namespace: &str) -> Value {
    json!({"verb": verb, "resource": "pods", "namespace": namespace})
}

#[tokio::test]
async fn who_asks_is_told_who_they_are() {
    let cluster = cluster().await;
    let jane = Identity {
        uid: "u-1".to_owned(),
        extra: [("scopes".to_owned(), vec!["view".to_owned()])].into(),
        ..Identity::new("jane", &["devs", "system:authenticated"])
    };
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (status, answer) = cluster.send(Method::POST, path, &json!({}), jane).await;
    assert_eq!(status, 201, "{answer}");
    let user = json!({
        "username": "jane", "uid": "u-1", "groups": ["devs", "system:authenticated"],
        "extra": {"scopes": ["view"]},
    });
    assert_eq!(answer["kind"], "SelfSubjectReview");
    assert_eq!(answer["status"]["userInfo"], user);
}

#[tokio::test]
async fn reviews_say_what_would_be_decided_and_why() {
    let cluster = cluster().await;
    let all = "subjectaccessreviews";
    let why = "RBAC: allowed by RoleBinding \"reads/default\" of Role \"reads\" to User \"jane\"";
    for (spec, status) in [
        (
            json!({"user": "jane", "resourceAttributes": pods("get", "default")}),
            json!({"allowed": true, "reason": why}),
        ),
        (
            json!({"user": "jane", "resourceAttributes": pods("get", "other")}),
            json!({"allowed": false}),
        ),
        (
            json!({"user": "jane", "resourceAttributes": pods("get", "")}),
            json!({"allowed": false}),
        ),
        (
            json!({"groups": ["system:masters"], "resourceAttributes": pods("delete", "")}),
            json!({"allowed": true}),
        ),
    ] {
        let (code, answer) = ask(&cluster, all, spec.clone(), administrator()).await;
        assert_eq!((code, &answer["status"]), (201, &status), "{spec}");
    }
    let path = json!({"verb": "get", "path": "/metrics"});
    let asked = json!({"user": "jane", "nonResourceAttributes": path});
    let (_, answer) = ask(&cluster, all, asked, administrator()).await;
    assert_eq!(answer["status"]["allowed"], false);
    // Others are not told about others.
    let asked = json!({"user": "joe", "resourceAttributes": pods("get", "default")});
    let (code, _) = ask(&cluster, all, asked.clone(), user("jane")).await;
    assert_eq!(code, 403);
    let local = "namespaces/default/localsubjectaccessreviews";
    let (code, answer) = ask(&cluster, local, asked, administrator()).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(false)));
    let elsewhere = json!({"user": "joe", "resourceAttributes": pods("get", "other")});
    let (code, answer) = ask(&cluster, local, elsewhere, administrator()).await;
    assert_eq!(code, 422, "{answer}");
}

#[tokio::test]
async fn everybody_may_ask_about_themselves() {
    let cluster = cluster().await;
    let own = "selfsubjectaccessreviews";
    for (verb, allowed) in [("get", true), ("delete", false)] {
        let spec = json!({"resourceAttributes": pods(verb, "default")});
        let (code, answer) = ask(&cluster, own, spec, user("jane")).await;
        let status = &answer["status"]["allowed"];
        assert_eq!((code, status), (201, &json!(allowed)), "{verb}");
    }
    let rules = "selfsubjectrulesreviews";
    let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    for (namespace, has) in [("default", true), ("other", false)] {
        let spec = json!({"namespace": namespace});
        let (code, answer) = ask(&cluster, rules, spec, user("jane")).await;
        assert_eq!(code, 201, "{answer}");
        let listed = answer["status"]["resourceRules"].as_array();
        let listed = listed.expect("everybody has some");
        assert_eq!(listed.contains(&rule), has, "{answer}");
        let paths = answer["status"]["nonResourceRules"].to_string();
        assert!(paths.contains("/healthz"), "{paths}");
    }
    let (code, answer) = ask(&cluster, rules, json!({}), user("jane")).await;
    assert_eq!(
        (code, answer["message"].as_str()),
        (400, Some("no namespace on request"))
    );
}

#[tokio::test]
async fn nodes_may_select_the_pods_that_are_theirs() {
    let cluster = cluster().await;
    let selects = |selector: Value| {
        json!({
            "user": "system:node:one", "groups": ["system:nodes"],
            "resourceAttributes": {"verb": "watch", "resource": "pods", "fieldSelector": selector},
        })
    };
    let by = |operator: &str, node: &str| {
        let requirement = json!({"key": "spec.nodeName", "operator": operator, "values": [node]});
        json!({"requirements": [requirement]})
    };
    for (selector, allowed) in [
        (by("In", "one"), true),
        (by("In", "two"), false),
        (by("NotIn", "one"), false),
        (json!({"rawSelector": "spec.nodeName=one"}), true),
        (json!({"rawSelector": "spec.nodeName!=one"}), false),
    ] {
        let asked = selects(selector.clone());
        let (code, answer) = ask(&cluster, "subjectaccessreviews", asked, administrator()).await;
        let status = &answer["status"]["allowed"];
        assert_eq!((code, status), (201, &json!(allowed)), "{selector}");
    }
}

#[tokio::test]
async fn what_of_a_selector_is_not_understood_is_told() {
    let cluster = cluster().await;
    let field = |operator: &str, values: &[&str]| json!({"key": "a", "operator": operator, "values": values});
    let ignored = |selector: &str| {
        Some(format!(
            "spec.resourceAttributes.{selector} ignored due to parse error"
        ))
    };
    for (selector, says, expected) in [
        ("fieldSelector", json!({"rawSelector": "a=b"}), None),
        (
            "fieldSelector",
            json!({"rawSelector": "a"}),
            ignored("fieldSelector"),
        ),
        (
            "fieldSelector",
            json!({"requirements": [field("In", &["b"]), field("NotIn", &["b"])]}),
            None,
        ),
        (
            "fieldSelector",
            json!({"requirements": [field("In", &["b", "c"])]}),
            ignored("fieldSelector"),
        ),
        (
            "fieldSelector",
            json!({"requirements": [field("In", &["b"]), field("Exists", &[])]}),
            Some(
                "spec.resourceAttributes.fieldSelector partially ignored due to parse error"
                    .to_owned(),
            ),
        ),
        ("labelSelector", json!({"rawSelector": "a in (b)"}), None),
        (
            "labelSelector",
            json!({"rawSelector": "a=b=c"}),
            ignored("labelSelector"),
        ),
        (
            "labelSelector",
            json!({"requirements": [field("In", &["b", "c"])]}),
            None,
        ),
        (
            "labelSelector",
            json!({"requirements": [field("Newer", &[])]}),
            ignored("labelSelector"),
        ),
    ] {
        let attributes = json!({"verb": "list", "resource": "pods", selector: says});
        let spec = json!({"resourceAttributes": attributes});
        let path = "selfsubjectaccessreviews";
        let (code, answer) = ask(&cluster, path, spec, administrator()).await;
        assert_eq!(code, 201, "{answer}");
        let told = answer["status"]["evaluationError"].as_str();
        assert_eq!(told, expected.as_deref(), "{selector} {says}");
        assert_eq!(answer["status"]["allowed"], true);
    }
}
