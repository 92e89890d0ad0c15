use std::sync::Arc;

use http::header;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::testing::server;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// An answer: status, media type and body.
struct Read {
    status: u16,
    media_type: String,
    body: bytes::Bytes,
}

impl Read {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

async fn send(server: &ApiServer, method: Method, uri: &str, accept: &str, body: Value) -> Read {
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header(header::ACCEPT, accept)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(match body {
            Value::Null => String::new(),
            body => body.to_string(),
        }));
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let service = server.local_service(administrator);
    let Ok(response) = service.oneshot(request.expect("a request")).await;
    let (parts, body) = response.into_parts();
    let media_type = parts.headers.get(header::CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok());
    Read {
        status: parts.status.as_u16(),
        media_type: media_type.unwrap_or_default().to_owned(),
        body: body.collect().await.expect("a body").to_bytes(),
    }
}

async fn get(server: &ApiServer, uri: &str, accept: &str) -> Read {
    send(server, Method::GET, uri, accept, Value::Null).await
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

async fn deployed(server: &ApiServer) {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    let created = send(server, Method::POST, DEPLOYMENTS, "*/*", deployment).await;
    assert_eq!(created.status, 201);
}

fn cells(table: &Value) -> (Vec<&str>, &Value) {
    assert_eq!(table["kind"], "Table", "{table}");
    let columns = table["columnDefinitions"].as_array().expect("columns");
    let names = columns.iter().filter_map(|column| column["name"].as_str());
    (names.collect(), &table["rows"][0]["cells"])
}

#[tokio::test]
async fn subresources_have_tables_of_their_own() {
    let server = server().await;
    deployed(&server).await;
    let scale = get(&server, &format!("{DEPLOYMENTS}/d/scale"), TABLE).await;
    let scale = scale.json();
    let (names, cells_of) = cells(&scale);
    assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(
        (&cells_of[0], &cells_of[1], &cells_of[2]),
        (&json!("d"), &json!(3), &json!(0))
    );
    let status = get(&server, &format!("{DEPLOYMENTS}/d/status"), TABLE).await;
    let status = status.json();
    let (names, _) = cells(&status);
    assert!(names.contains(&"Up-to-date"), "{names:?}");
}

#[tokio::test]
async fn the_row_of_a_pod_that_is_over_says_so() {
    let server = server().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "schedulerName": "none"}});
    let mut pod = send(&server, Method::POST, pods, "*/*", pod).await.json();
    let uri = format!("{pods}/p");
    let running = get(&server, &uri, TABLE).await.json();
    assert_eq!(running["rows"][0]["conditions"], Value::Null);
    pod["status"]["phase"] = json!("Failed");
    let status = format!("{uri}/status");
    let written = send(&server, Method::PUT, &status, "*/*", pod).await;
    assert_eq!(written.status, 200);
    let expected = json!([
        {"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}
    ]);
    for uri in [uri.as_str(), pods] {
        let table = get(&server, uri, TABLE).await.json();
        assert_eq!(table["rows"][0]["conditions"], expected, "{uri}");
    }
}

#[tokio::test]
async fn a_scaling_that_is_tried_answers_with_what_was_asked_and_changes_nothing() {
    let server = server().await;
    deployed(&server).await;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let wanted = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d"},
        "spec": {"replicas": 7},
    });
    let trying = format!("{path}?dryRun=All");
    let tried = send(&server, Method::PUT, &trying, "*/*", wanted.clone()).await;
    let (status, answer) = (tried.status, tried.json());
    assert_eq!((status, &answer["spec"]["replicas"]), (200, &json!(7)));
    let mut nameless = wanted.clone();
    nameless["metadata"] = json!({"namespace": "default"});
    let refused = send(&server, Method::PUT, &path, "*/*", nameless).await;
    let expected =
        "the name of the object (d based on URL) was undeterminable: name must be provided";
    assert_eq!(
        (refused.status, &refused.json()["message"]),
        (400, &json!(expected))
    );
    let kept = get(&server, &path, "*/*").await.json();
    assert_eq!(kept["spec"]["replicas"], 3);
    let version = &kept["metadata"]["resourceVersion"];
    assert_eq!(&answer["metadata"]["resourceVersion"], version);
    let scaled = send(&server, Method::PUT, &path, "*/*", wanted)
        .await
        .json();
    assert_eq!(scaled["spec"]["replicas"], 7);
}

#[tokio::test]
async fn a_pod_without_a_node_has_no_log() {
    let server = server().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    send(&server, Method::POST, accounts, "*/*", account).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "annotations": {"kubectl.kubernetes.io/default-container": "none"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let created = send(&server, Method::POST, pods, "*/*", pod).await;
    assert_eq!(created.status, 201, "{}", created.json());
    let log = get(&server, &format!("{pods}/p/log"), "*/*").await;
    assert_eq!((log.status, log.body.len()), (204, 0));
    // Options are checked before the pod is looked for, and the container before its node.
    for (asked, status) in [
        ("p/log?container=x", 400),
        ("x/log", 404),
        ("x/log?tailLines=-1", 422),
    ] {
        let answer = get(&server, &format!("{pods}/{asked}"), "*/*").await;
        assert_eq!(answer.status, status, "{asked}");
    }
}

#[tokio::test]
async fn what_has_no_objects_has_no_table() {
    let server = server().await;
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}
    });
    let asked = async |accept: &str| {
        let answer = send(&server, Method::POST, reviews, accept, review.clone()).await;
        answer.status
    };
    assert_eq!(asked(TABLE).await, 406);
    assert_eq!(asked("application/json").await, 201);
}

#[tokio::test]
async fn whatever_answers_with_an_object_answers_in_the_wanted_shape() {
    let server = server().await;
    let created = send(&server, Method::POST, MAPS, TABLE, map("m")).await;
    assert_eq!(created.status, 201);
    let created = created.json();
    let (names, cells_of) = cells(&created);
    assert_eq!(
        (names, &cells_of[1]),
        (vec!["Name", "Data", "Age"], &json!(1))
    );
    assert_eq!(
        created["rows"][0]["object"]["kind"],
        "PartialObjectMetadata"
    );
    let one = format!("{MAPS}/m");
    let beta = TABLE.replace("v=v1", "v=v1beta1");
    let beta = get(&server, &one, &beta).await.json();
    assert_eq!(beta["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(
        beta["rows"][0]["object"]["apiVersion"],
        "meta.k8s.io/v1beta1"
    );
    let partial = TABLE.replace("Table", "PartialObjectMetadata");
    let partial = get(&server, &one, &partial).await.json();
    assert_eq!(
        (&partial["kind"], &partial["data"]),
        (&json!("PartialObjectMetadata"), &Value::Null)
    );
    for (uri, form, words) in [
        (
            one.as_str(),
            "PartialObjectMetadataList",
            "not a list (*core.ConfigMap)",
        ),
        (
            MAPS,
            "PartialObjectMetadata",
            "is a list (*core.ConfigMapList)",
        ),
    ] {
        let refused = get(&server, uri, &TABLE.replace("Table", form)).await;
        let message = refused.json()["message"].to_string();
        assert!(
            refused.status == 406 && message.contains(words),
            "{message}"
        );
    }
    let refused = get(&server, &format!("{one}?includeObject=Nope"), TABLE).await;
    assert_eq!(refused.status, 400);
    // What is gone is no object, and a refusal none either.
    let gone = send(&server, Method::DELETE, &one, TABLE, Value::Null).await;
    assert_eq!(
        (gone.status, &gone.json()["status"]),
        (200, &json!("Success"))
    );
    let missing = get(&server, &one, TABLE).await;
    assert_eq!(
        (missing.status, &missing.json()["reason"]),
        (404, &json!("NotFound"))
    );
}

#[tokio::test]
async fn objects_and_refusals_are_written_in_every_format() {
    let server = server().await;
    send(&server, Method::POST, MAPS, "*/*", map("m")).await;
    let protobuf = "application/vnd.kubernetes.protobuf";
    for (uri, status) in [(format!("{MAPS}/m"), 200), (format!("{MAPS}/none"), 404)] {
        let read = get(&server, &uri, protobuf).await;
        assert_eq!((read.status, read.media_type.as_str()), (status, protobuf));
        assert!(read.body.starts_with(b"k8s\0"));
        let yaml = get(&server, &uri, "application/yaml").await;
        assert_eq!(
            (yaml.status, yaml.media_type.as_str()),
            (status, "application/yaml")
        );
        let pretty = get(&server, &format!("{uri}?pretty=true"), "*/*").await;
        assert!(pretty.body.starts_with(b"{\n  \""));
    }
    let list = get(&server, &format!("{MAPS}?pretty=true"), "*/*").await;
    assert_eq!(list.json()["kind"], "ConfigMapList");
    assert!(list.body.starts_with(b"{\n  \""));
    let list = get(&server, MAPS, &format!("{protobuf}, */*")).await;
    assert_eq!(
        (list.status, list.media_type.as_str()),
        (200, "application/json")
    );
    let refused = get(&server, &format!("{MAPS}/m"), "text/html").await;
    let message = refused.json()["message"].to_string();
    assert!(
        refused.status == 406 && message.contains("406: Not Acceptable"),
        "{message}"
    );
}

#[tokio::test]
async fn watches_by_path_are_served() {
    let server = server().await;
    for name in ["m", "n"] {
        send(&server, Method::POST, MAPS, "*/*", map(name)).await;
    }
    for (uri, names) in [
        (
            "/api/v1/watch/namespaces/default/configmaps/m?timeoutSeconds=1",
            vec!["m"],
        ),
        ("/api/v1/watch/configmaps?timeoutSeconds=1", vec!["m", "n"]),
    ] {
        let read = get(&server, uri, "*/*").await;
        let text = String::from_utf8(read.body.to_vec()).expect("text");
        let events: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let found = events
            .iter()
            .filter_map(|event| event["object"]["metadata"]["name"].as_str());
        let found: Vec<&str> = found.filter(|name| ["m", "n"].contains(name)).collect();
        assert_eq!(found, names, "{text}");
    }
    let posted = "/api/v1/watch/configmaps";
    let refused = send(&server, Method::POST, posted, "*/*", map("o")).await;
    assert_eq!(refused.status, 405);
    let one = get(&server, &format!("{MAPS}/m?watch=1"), "*/*").await;
    assert_eq!(one.json()["kind"], "ConfigMap");
}

#[tokio::test]
async fn what_there_is_not_and_what_cannot_be_done_are_told_apart() {
    let server = server().await;
    for (method, uri, status) in [
        (Method::GET, "/api/v1/namespaces/default/bindings", 405),
        (Method::GET, "/api/v1/namespaces/default/bindings/b", 404),
        (Method::POST, "/api/v1/bindings", 405),
        (Method::PUT, MAPS, 405),
        (Method::POST, "/api/v1/configmaps", 405),
        (Method::DELETE, "/api/v1/configmaps", 405),
        (Method::DELETE, "/api/v1/namespaces", 405),
        (Method::GET, "/api/v1/configmaps/m", 404),
        (Method::GET, "/api/v1/namespaces/default/nodes", 404),
        (
            Method::GET,
            "/api/v1/namespaces/default/configmaps/m/status",
            404,
        ),
        (
            Method::POST,
            "/api/v1/namespaces/default/pods/p/status",
            405,
        ),
        (
            Method::DELETE,
            "/api/v1/namespaces/default/pods/p/exec",
            405,
        ),
        (
            Method::GET,
            "/api/v1/namespaces/default/pods/p/binding",
            405,
        ),
        (
            Method::GET,
            "/api/v1/namespaces/default/pods/p/made/up",
            404,
        ),
        (
            Method::POST,
            "/api/v1/namespaces/default/pods/p/exec?dryRun=All",
            400,
        ),
        (
            Method::GET,
            "/api/v1/namespaces/default/pods/p/proxy/?dryRun=",
            400,
        ),
        (Method::GET, "/api/v1/namespaces/default?export=true", 400),
        (Method::GET, "/api/v1/namespaces/default?export=0", 200),
        (Method::GET, "/readyz/ping", 200),
        (Method::GET, "/readyz/made-up", 404),
        (Method::POST, "/apis/apps/v1", 405),
        (Method::GET, "/apis/made.up/v1", 404),
    ] {
        let read = send(&server, method.clone(), uri, "*/*", Value::Null).await;
        assert_eq!(read.status, status, "{method} {uri}");
    }
    // A version that a group does not have, and a group that nobody knows.
    for (uri, known) in [
        ("/api/v9", true),
        ("/api/v9/pods", true),
        ("/apis/apps/v9", true),
        ("/apis/apps/v9/deployments", true),
        ("/apis/made.up/v1", false),
        ("/apis/made.up/v1/things", false),
        ("/apis/made.up", false),
    ] {
        let read = get(&server, uri, "*/*").await;
        assert_eq!(read.status, 404, "{uri}");
        let said = String::from_utf8_lossy(&read.body).into_owned();
        assert_eq!(said.contains("\"Status\""), known, "{uri}: {said}");
    }
}

#[tokio::test]
async fn both_versions_of_a_kind_show_the_same_objects() {
    let server = server().await;
    let core = "/api/v1/namespaces/default/events";
    let newer = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "R", "action": "A",
        "reportingController": "example.com/c", "reportingInstance": "i",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}, "note": "said",
    });
    let created = send(&server, Method::POST, newer, "*/*", event).await;
    assert_eq!(created.status, 201, "{:?}", created.json());
    let old = get(&server, &format!("{core}/e"), "*/*").await.json();
    assert_eq!(
        (&old["apiVersion"], &old["message"]),
        (&json!("v1"), &json!("said"))
    );
    for (uri, name) in [
        (
            format!("{core}?fieldSelector=involvedObject.name%3Dp"),
            "involvedObject",
        ),
        (
            format!("{newer}?fieldSelector=regarding.name%3Dp"),
            "regarding",
        ),
    ] {
        let list = get(&server, &uri, "*/*").await.json();
        assert_eq!(list["items"][0][name]["name"], "p", "{list}");
    }
    let none = get(
        &server,
        &format!("{newer}?fieldSelector=regarding.name%3Dq"),
        "*/*",
    )
    .await;
    assert_eq!(none.json()["items"], json!([]));
    let missing = get(&server, &format!("{newer}/none"), "*/*").await.json();
    assert_eq!(missing["message"], "events \"none\" not found");
    let unknown = format!("{newer}?fieldSelector=involvedObject.name%3Dp");
    assert_eq!(get(&server, &unknown, "*/*").await.status, 400);
}

#[test]
fn a_server_catches_up_with_what_a_reader_has_seen_elsewhere() {
    let content = |method: Method, query: &str| {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{MAPS}?{query}"))
            .body(());
        let registry = Arc::new(crate::registry::Registry::built_in());
        let info = RequestInfo::of(&request.expect("a request"), registry);
        is_content(&info, Revision(5))
    };
    let page = |revision: u64| {
        let token = json!({"rv": revision, "namespace": "default", "name": "m"});
        let encoder = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let token = base64::Engine::encode(&encoder, token.to_string());
        format!("limit=1&continue={token}")
    };
    for (query, enough) in [
        ("limit=1", false),
        ("watch=1", false),
        (
            "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            false,
        ),
        ("resourceVersion=0", true),
        ("watch=1&resourceVersion=5", true),
        ("watch=1&resourceVersion=6", false),
        ("resourceVersion=6&resourceVersionMatch=NotOlderThan", false),
        ("resourceVersion=none", true),
        (page(5).as_str(), true),
        (page(6).as_str(), false),
    ] {
        assert_eq!(content(Method::GET, query), enough, "{query}");
    }
    assert!(!content(Method::POST, "resourceVersion=0"));
}
