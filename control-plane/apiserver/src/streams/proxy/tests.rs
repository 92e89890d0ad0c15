//! Requests through a node that is a small web server.

use std::convert::Infallible;
use std::sync::Arc;

use gantry_rpc::node::{OpenStream, StreamFrame, open_stream, stream_frame::Frame};
use http_body_util::BodyExt;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::streams::{NodeStream, NodeStreams};
use crate::{ApiServer, ApiServerConfig, Identity};

/// A node whose pods say what they were asked; port 81 is closed.
struct Web;

#[async_trait]
impl NodeStreams for Web {
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String> {
        let Some(open_stream::Kind::PortForward(options)) = request.kind else {
            return Err("not a port".to_owned());
        };
        if node != "n" {
            return Err(format!("node \"{node}\" is not connected"));
        }
        let (to_node, mut node_reads) = mpsc::channel::<StreamFrame>(4);
        let (node_writes, from_node) = mpsc::channel(4);
        let frame = |frame| StreamFrame {
            stream_id: String::new(),
            frame: Some(frame),
        };
        tokio::spawn(async move {
            if options.port == 81 {
                let status =
                    json!({"status": "Failure", "code": 500, "message": "connection refused"});
                let status = Frame::Status(status.to_string().into());
                return node_writes.send(frame(status)).await.expect("read");
            }
            let (near, far) = tokio::io::duplex(1024);
            let (mut reader, mut writer) = tokio::io::split(near);
            tokio::spawn(async move {
                while let Some(received) = node_reads.recv().await {
                    match received.frame {
                        Some(Frame::Stdin(bytes)) => writer.write_all(&bytes).await.expect("open"),
                        _ => writer.shutdown().await.expect("open"),
                    }
                }
            });
            let pod = request.pod;
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let pod = pod.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let header = |name: &str| {
                            let value = parts.headers.get(name);
                            value
                                .and_then(|value| value.to_str().ok())
                                .map(str::to_owned)
                        };
                        let told = json!({
                            "pod": pod,
                            "port": options.port,
                            "method": parts.method.as_str(),
                            "uri": parts.uri.to_string(),
                            "host": header("host"),
                            "credential": header("authorization"),
                            "forwarded": header("x-forwarded-uri"),
                            "body": String::from_utf8_lossy(&body.collect().await.expect("a body").to_bytes()),
                        });
                        let mut response = Response::new(Body::from(told.to_string()));
                        *response.status_mut() = StatusCode::IM_A_TEAPOT;
                        if parts.uri.path() == "/switch" {
                            let protocol = HeaderValue::from_static("madeup");
                            let upgrade = HeaderValue::from_static("upgrade");
                            response = Response::new(Body::empty());
                            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                            response.headers_mut().insert(header::CONNECTION, upgrade);
                            response.headers_mut().insert(header::UPGRADE, protocol);
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                let connection = server::Builder::new().serve_connection(TokioIo::new(far), answer);
                connection.await.ok();
            });
            let mut buffer = bytes::BytesMut::with_capacity(1024);
            while let Ok(1..) = reader.read_buf(&mut buffer).await {
                let bytes = Frame::Stdout(buffer.split().freeze());
                if node_writes.send(frame(bytes)).await.is_err() {
                    return;
                }
            }
            let status = Frame::Status(Bytes::from_static(br#"{"status":"Success"}"#));
            node_writes.send(frame(status)).await.ok();
        });
        Ok(NodeStream { to_node, from_node })
    }
}

async fn send(server: &ApiServer, method: Method, path: &str, body: Value) -> Response<Body> {
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v1/{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, "Bearer secret")
        .header(header::HOST, "api.example")
        .body(body)
        .expect("a request");
    let Ok(response) = server.local_service(administrator).oneshot(request).await;
    response
}

async fn told(response: Response<Body>) -> Value {
    let body = response.into_body().collect().await.expect("a body");
    serde_json::from_slice(&body.to_bytes()).expect("JSON")
}

async fn server() -> ApiServer {
    let store = gantry_store::Store::ephemeral();
    let server = ApiServer::new(ApiServerConfig::default(), store, Arc::new(Web));
    server.bootstrap(6443).await.expect("bootstrapped");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 8080}]}]}
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"name": "http", "port": 80}, {"name": "closed", "port": 81}]}
    });
    for (place, object) in [
        ("nodes", node),
        ("namespaces/default/pods", pod),
        ("namespaces/default/services", service),
    ] {
        let created = send(&server, Method::POST, place, object).await;
        assert_eq!(
            created.status(),
            StatusCode::CREATED,
            "{place}: {:?}",
            told(created).await
        );
    }
    server
}

async fn publish(server: &ApiServer) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "http", "port": 8080}, {"name": "closed", "port": 81}],
        "endpoints": [{
            "addresses": ["10.244.0.1"], "nodeName": "n", "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}
        }]
    });
    let place = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let request = Request::post(place)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(slice.to_string()))
        .expect("a request");
    let Ok(created) = server.local_service(administrator).oneshot(request).await;
    assert_eq!(created.status(), StatusCode::CREATED);
}

const POD: &str = "namespaces/default/pods/p";
const SERVICE: &str = "namespaces/default/services";

#[tokio::test]
async fn a_request_reaches_the_pod_whole_and_without_the_credential() {
    let server = server().await;
    let path = format!("{POD}/proxy/a//b/?q=1&path=x");
    let answer = send(&server, Method::PUT, &path, json!({"k": "v"})).await;
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    let told = told(answer).await;
    assert_eq!(
        told,
        json!({
            "pod": "p", "port": 8080, "method": "PUT", "uri": "/a//b/?q=1&path=x", "host": "p:8080",
            "credential": null, "forwarded": "/api/v1/namespaces/default/pods/p/proxy/a//b/", "body": "{\"k\":\"v\"}"
        })
    );
}

#[tokio::test]
async fn a_pod_switches_no_protocol_unasked() {
    let server = server().await;
    let path = format!("{POD}/proxy/switch");
    let answer = send(&server, Method::GET, &path, Value::Null).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let message = told(answer).await["message"].clone();
    assert!(
        message.as_str().expect("text").contains("did not ask"),
        "{message}"
    );
}

#[test]
fn what_is_asked_is_behind_the_subresource() {
    let asked = |uri: &'static str| {
        let uri = Uri::from_static(uri);
        let namespaced = uri.path().contains("/namespaces/");
        asked_path(&uri, namespaced).map(str::to_owned)
    };
    let pods = "/api/v1/namespaces/pods/pods/proxy/proxy/pods/proxy/x";
    assert_eq!(asked(pods).as_deref(), Some("/pods/proxy/x"));
    assert_eq!(asked("/api/v1/nodes/n/proxy/").as_deref(), Some("/"));
    assert_eq!(asked("/api/v1/nodes/n/proxy"), None);
}

#[tokio::test]
async fn a_path_without_slash_is_sent_to_one_with() {
    let server = server().await;
    let answer = send(
        &server,
        Method::GET,
        &format!("{POD}:9/proxy?a=b"),
        Value::Null,
    )
    .await;
    assert_eq!(answer.status(), StatusCode::MOVED_PERMANENTLY);
    let location = &answer.headers()[header::LOCATION];
    assert_eq!(location, "/api/v1/namespaces/default/pods/p:9/proxy/?a=b");
}

#[tokio::test]
async fn a_service_has_a_ready_endpoint_or_says_that_it_has_none() {
    let server = server().await;
    let get = async |name: &str| {
        let path = format!("{SERVICE}/{name}/proxy/");
        let answer = send(&server, Method::GET, &path, Value::Null).await;
        (answer.status().as_u16(), told(answer).await)
    };
    assert_eq!(get("s:http").await.0, 404, "it has no slices");
    publish(&server).await;
    for name in ["s:http", "s:80", "http:s:http"] {
        let (status, told) = get(name).await;
        assert_eq!(
            (status, &told["pod"], &told["port"]),
            (418, &json!("p"), &json!(8080))
        );
    }
    let (status, told) = get("s:nope").await;
    assert_eq!(status, 503);
    assert_eq!(told["message"], "no endpoints available for service \"s\"");
    let (status, told) = get("s:closed").await;
    assert_eq!(status, 503);
    assert_eq!(
        told["message"],
        "error trying to reach service: connection refused"
    );
    assert_eq!(get("ftp:s:80").await.0, 400);
    assert_eq!(get("https:s:80").await.0, 400);
}

#[tokio::test]
async fn a_nodes_port_is_named() {
    let server = server().await;
    let none = send(&server, Method::GET, "nodes/n/proxy/metrics", Value::Null).await;
    assert_eq!(none.status(), StatusCode::SERVICE_UNAVAILABLE);
    let message = told(none).await["message"].clone();
    assert!(
        message
            .as_str()
            .expect("text")
            .contains("nodes/n:9100/proxy/"),
        "{message}"
    );

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
            let told = json!({"uri": request.uri().path()});
            Ok::<_, Infallible>(Response::new(Body::from(told.to_string())))
        });
        let connection = server::Builder::new().serve_connection(TokioIo::new(stream), answer);
        connection.await.ok();
    });
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let patch = Request::patch("/api/v1/nodes/n/status")
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .body(Body::from(status.to_string()))
        .expect("a request");
    let Ok(patched) = server.local_service(administrator).oneshot(patch).await;
    assert_eq!(patched.status(), StatusCode::OK);
    let answer = send(
        &server,
        Method::GET,
        &format!("nodes/n:{port}/proxy/metrics"),
        Value::Null,
    )
    .await;
    assert_eq!(told(answer).await, json!({"uri": "/metrics"}));
}
