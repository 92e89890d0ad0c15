//! What is refused of PUT and PATCH, and in which words.

use http::{Method, header};
use serde_json::json;

use super::*;
use crate::ApiServer;
use crate::testing::{self, JSON, MERGE, ask, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// An answer: status, body and warnings.
struct Told {
    status: u16,
    body: Value,
    warnings: Vec<String>,
}

impl Told {
    /// Status and message of a refusal.
    fn refusal(&self) -> (u16, &str) {
        let message = self.body["message"].as_str();
        (self.status, message.unwrap_or_default())
    }
}

async fn send(server: &ApiServer, method: Method, uri: &str, sort: &str, body: &str) -> Told {
    let response = ask(server, method, uri, sort, body.to_owned()).await;
    let warnings = response.headers().get_all(header::WARNING).iter();
    let warnings = warnings.map(|warning| warning.to_str().expect("text").to_owned());
    Told {
        status: response.status().as_u16(),
        warnings: warnings.collect(),
        body: testing::told(response).await,
    }
}

async fn make(server: &ApiServer, uri: &str, object: &Value) {
    let made = send(server, Method::POST, uri, JSON, &object.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.body);
}

#[tokio::test]
async fn a_patch_that_makes_something_wrong_is_what_is_wrong() {
    let server = server().await;
    make(
        &server,
        MAPS,
        &json!({"metadata": {"name": "m"}, "data": {"k": "v"}}),
    )
    .await;
    let patch = async |sort: &str, query: &str, body: &str| {
        let uri = format!("{MAPS}/m?{query}");
        send(&server, Method::PATCH, &uri, sort, body).await
    };
    let strict = "fieldValidation=Strict";
    for (query, body, why) in [
        (
            "",
            r#"{"data":"str"}"#,
            r#" "" is invalid: patch: Invalid value: "map[data:str]": cannot restore map from string"#,
        ),
        (
            strict,
            r#"{"bogus":1}"#,
            r#" "" is invalid: patch: Invalid value: "map[bogus:1]": strict decoding error: unknown field "bogus""#,
        ),
    ] {
        let told = patch(STRATEGIC, query, body).await;
        assert_eq!(told.refusal(), (422, why), "{body}");
    }
    // Its kind is what it was, whatever such a patch says.
    let told = patch(STRATEGIC, "", r#"{"kind":"Secret"}"#).await;
    assert_eq!(
        (told.status, &told.body["kind"]),
        (200, &json!("ConfigMap"))
    );
    for sort in [STRATEGIC, MERGE] {
        let twice = r#"{"data":{"k":"1","k":"2"}}"#;
        let told = patch(sort, "", twice).await;
        assert_eq!(told.status, 200);
        assert_eq!(told.warnings, [r#"299 - "duplicate field \"data.k\"""#]);
        let told = patch(sort, "fieldValidation=Ignore", twice).await;
        assert_eq!((told.status, told.warnings.len()), (200, 0));
        assert_eq!(patch(sort, strict, twice).await.status, 422);
        let told = patch(sort, "", r#"{"metadata":{"namespace":"other"}}"#).await;
        let why =
            "the namespace of the provided object does not match the namespace sent on the request";
        assert_eq!(told.refusal(), (400, why));
    }
    let told = patch(MERGE, "", r#"{"metadata":{"name":null}}"#).await;
    let why = "the name of the object (m based on URL) was undeterminable: name must be provided";
    assert_eq!(told.refusal(), (400, why));
    let owner = r#"{"apiVersion":"v1","kind":"ConfigMap","name":"o","uid":"u"}"#;
    let owners = format!(r#"{{"metadata":{{"ownerReferences":[{owner},{owner}]}}}}"#);
    let told = patch(MERGE, "", &owners).await;
    assert_eq!(
        (told.status, told.warnings.len()),
        (200, 1),
        "{}",
        told.body
    );
    let kept = told.body["metadata"]["ownerReferences"].as_array();
    assert_eq!(kept.map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_scale_is_read_as_every_object_is() {
    let server = server().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"a": "b"});
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    make(&server, deployments, &deployment).await;
    let put = async |sort: &str, body: &str| {
        let uri = format!("{deployments}/d/scale");
        send(&server, Method::PUT, &uri, sort, body).await
    };
    let yaml = "metadata:\n  name: d\nspec:\n  replicas: 5\n";
    let told = put("application/yaml", yaml).await;
    assert_eq!(told.status, 200, "{}", told.body);
    assert_eq!(told.body["spec"]["replicas"], 5);
    for (body, why) in [
        (
            r#"{"spec":{"replicas":1}}"#,
            "the name of the object (d based on URL) was undeterminable: name must be provided",
        ),
        (
            r#"{"metadata":{"name":"d","namespace":"other"}}"#,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"d"}}"#,
            r#"ConfigMap in version "v1" cannot be handled as a Scale: converting (v1.ConfigMap) to (autoscaling.Scale): unknown conversion"#,
        ),
    ] {
        assert_eq!(put(JSON, body).await.refusal(), (400, why), "{body}");
    }
    assert_eq!(put("text/plain", yaml).await.status, 415);
    let patch = async |name: &str, sort: &str, query: &str, body: &str| {
        let uri = format!("{deployments}/{name}/scale?{query}");
        send(&server, Method::PATCH, &uri, sort, body).await
    };
    for sort in [MERGE, STRATEGIC] {
        let told = patch("d", sort, "", r#"{"spec":{"replicas":3}}"#).await;
        assert_eq!(
            (told.status, &told.body["spec"]["replicas"]),
            (200, &json!(3))
        );
        let unknown = r#"{"spec":{"bogus":1}}"#;
        let told = patch("d", sort, "fieldValidation=Strict", unknown).await;
        assert_eq!(told.status, 422);
        let told = patch("d", sort, "", r#"{"spec":{"replicas":-1}}"#).await;
        assert_eq!(told.status, 422);
        let told = patch("d", sort, "", r#"{"metadata":{"resourceVersion":"1"}}"#).await;
        assert_eq!(told.status, 409);
        let told = patch("d", sort, "", r#"{"metadata":{"name":"other"}}"#).await;
        assert_eq!(told.status, 400);
    }
    let told = patch("d", MERGE, "", r#"{"metadata":{"uid":"other"}}"#).await;
    let (status, why) = told.refusal();
    let expected = r#"Operation cannot be fulfilled on deployments/scale.apps "d": Precondition failed: UID in precondition: other, "#;
    assert!(status == 409 && why.starts_with(expected), "{why}");
    let other = r#"{"apiVersion":"v1","kind":"ConfigMap"}"#;
    assert_eq!(patch("d", MERGE, "", other).await.status, 422);
    // What is no patch is so whatever there is.
    assert_eq!(patch("none", "text/plain", "", "{}").await.status, 415);
}

#[tokio::test]
async fn nothing_becomes_another_object() {
    let server = server().await;
    make(&server, MAPS, &json!({"metadata": {"name": "m"}})).await;
    let uri = format!("{MAPS}/m");
    let why =
        r#"ConfigMap "m" is invalid: metadata.uid: Invalid value: "other": field is immutable"#;
    for sort in [MERGE, STRATEGIC] {
        let other = r#"{"metadata":{"uid":"other"}}"#;
        let told = send(&server, Method::PATCH, &uri, sort, other).await;
        assert_eq!(told.refusal(), (422, why));
        // Who has seen an older one is told that first.
        let late = r#"{"metadata":{"uid":"other","resourceVersion":"1"}}"#;
        let told = send(&server, Method::PATCH, &uri, sort, late).await;
        assert_eq!(told.status, 409);
    }
    let other = r#"{"metadata":{"name":"m","uid":"other"}}"#;
    let told = send(&server, Method::PUT, &uri, JSON, other).await;
    assert_eq!(told.status, 409);
    // What is made by a PUT is no object that was there.
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let gone = r#"{"metadata":{"name":"l","uid":"other"}}"#;
    let told = send(&server, Method::PUT, lease, JSON, gone).await;
    let (status, why) = told.refusal();
    let expected = "Precondition failed: UID in precondition: other, UID in object meta: ";
    assert!(status == 409 && why.ends_with(expected), "{why}");
}

#[tokio::test]
async fn a_namespace_is_finalized_by_who_has_seen_it() {
    let server = server().await;
    make(
        &server,
        "/api/v1/namespaces",
        &json!({"metadata": {"name": "n"}}),
    )
    .await;
    let put = async |name: &str, metadata: Value, finalizers: Value| {
        let uri = format!("/api/v1/namespaces/{name}/finalize");
        let mut body = json!({"spec": {"finalizers": finalizers}, "metadata": metadata});
        *body.member(&["metadata", "name"]) = json!(name);
        send(&server, Method::PUT, &uri, JSON, &body.to_string()).await
    };
    for (metadata, finalizers, status) in [
        (json!({"uid": "other"}), json!(["a b"]), 409),
        (json!({"resourceVersion": "1"}), json!(["a b"]), 409),
        (json!({"resourceVersion": "0"}), json!(["a b"]), 422),
        (json!({}), json!([1]), 400),
        (json!({"resourceVersion": "0"}), json!(["a.b/c"]), 200),
    ] {
        let told = put("n", metadata, finalizers).await;
        assert_eq!(told.status, status, "{}", told.body);
    }
    let told = put("none", json!({}), json!(["a b"])).await;
    assert_eq!(told.status, 404, "{}", told.body);
}

#[tokio::test]
async fn some_kinds_are_updated_by_who_says_what_they_have_seen() {
    let server = server().await;
    let uri = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let put = async |version: &Value, holder: &str| {
        let lease = json!({
            "metadata": {"name": "l", "resourceVersion": version}, "spec": {"holderIdentity": holder}
        });
        send(&server, Method::PUT, uri, JSON, &lease.to_string()).await
    };
    let made = put(&Value::Null, "a").await;
    assert_eq!(made.status, 201);
    let why = r#"leases.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"#;
    assert_eq!(put(&Value::Null, "b").await.refusal(), (422, why));
    let seen = &made.body["metadata"]["resourceVersion"];
    assert_eq!(put(seen, "b").await.status, 200);
    assert_eq!(put(seen, "c").await.status, 409);
    // What is created has no revision, unless it is that of nothing.
    for (version, status) in [("5", 500), ("0", 201)] {
        let name = format!("v{version}");
        let map = json!({"metadata": {"name": name, "resourceVersion": version}});
        let told = send(&server, Method::POST, MAPS, JSON, &map.to_string()).await;
        assert_eq!(told.status, status, "{version}");
    }
}
