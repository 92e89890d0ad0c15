//! Requests through a node that is a small web server.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use gantry_rpc::node::{
    OpenStream, PortForwardOptions, StreamFrame, open_stream, stream_frame::Frame,
};
use http_body_util::BodyExt;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::target::{Backend, Target};
use super::*;
use crate::streams::{NodeStream, NodeStreams};
use crate::{ApiServer, ApiServerConfig, Identity};
use gantry_authority::pki::{Authority, Subject, server_config};

/// A node whose pods say what they were asked: over TLS at port 443. Port 81 is closed.
struct Web {
    tls: Arc<rustls::ServerConfig>,
}

fn frame(frame: Frame) -> StreamFrame {
    StreamFrame {
        stream_id: String::new(),
        frame: Some(frame),
    }
}

#[async_trait]
impl NodeStreams for Web {
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String> {
        let options = match request.kind {
            Some(open_stream::Kind::PortForward(options)) => options,
            // At no port of its own, and of no pod.
            Some(open_stream::Kind::Pages(_)) => PortForwardOptions::default(),
            _ => return Err("neither a port nor pages".to_owned()),
        };
        if node != "n" {
            return Err(format!("node \"{node}\" is not connected"));
        }
        let (to_node, mut node_reads) = mpsc::channel::<StreamFrame>(4);
        let (node_writes, from_node) = mpsc::channel(4);
        let tls = self.tls.clone();
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
            let told = json!({
                "pod": request.pod, "uid": request.pod_uid, "address": options.address, "port": options.port,
            });
            if options.port == 443 {
                tokio::spawn(async move {
                    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
                    if let Ok(stream) = acceptor.accept(far).await {
                        answer(stream, told).await;
                    }
                });
            } else {
                tokio::spawn(answer(far, told));
            }
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

/// Answers the requests of one connection to the place that `told` says.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, told: Value) {
    let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
        let told = told.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let header = |name: &str| {
                let value = parts.headers.get(name);
                value
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned)
            };
            let told = json!({
                "at": told,
                "method": parts.method.as_str(),
                "uri": parts.uri.to_string(),
                "host": header("host"),
                "credential": header("authorization"),
                "forwarded": header("x-forwarded-uri"),
                "client": header("x-forwarded-for"),
                "body": String::from_utf8_lossy(&body),
            });
            let mut response = Response::new(Body::from(told.to_string()));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            match parts.uri.path() {
                "/switch" => {
                    let protocol = HeaderValue::from_static("madeup");
                    let upgrade = HeaderValue::from_static("upgrade");
                    response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    response.headers_mut().insert(header::CONNECTION, upgrade);
                    response.headers_mut().insert(header::UPGRADE, protocol);
                }
                "/page" => {
                    let html = HeaderValue::from_static("text/html; charset=utf-8");
                    let anybody = HeaderValue::from_static("*");
                    response = Response::new(Body::from("<a href=\"/rewriteme\">test</a>"));
                    let headers = response.headers_mut();
                    headers.insert(header::CONTENT_TYPE, html);
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, anybody);
                }
                "/moved" => {
                    let location = HeaderValue::from_static("/login?to=/moved");
                    response.headers_mut().insert(header::LOCATION, location);
                    *response.status_mut() = StatusCode::FOUND;
                }
                _ => {}
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = server::Builder::new().serve_connection(TokioIo::new(stream), answer);
    connection.await.ok();
}

/// An administrator's request to a path below `/`.
async fn ask(server: &ApiServer, request: http::request::Builder, body: Value) -> Response<Body> {
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let peer = Peer {
        address: IpAddr::from([192, 0, 2, 7]),
        identity: None,
        key: None,
    };
    let request = request.extension(Arc::new(peer)).body(body);
    let request = request.expect("a request");
    let Ok(response) = server.local_service(administrator).oneshot(request).await;
    response
}

async fn send(server: &ApiServer, method: Method, path: &str, body: Value) -> Response<Body> {
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v1/{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, "Bearer secret")
        .header(header::HOST, "api.example");
    ask(server, request, body).await
}

async fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    let answer = send(server, Method::GET, path, Value::Null).await;
    (answer.status().as_u16(), told(answer).await)
}

async fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect().await.expect("a body");
    String::from_utf8(body.to_bytes().to_vec()).expect("text")
}

async fn told(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response).await).expect("JSON")
}

async fn status(server: &ApiServer, path: &str, status: Value) {
    let request = Request::patch(format!("/api/v1/{path}/status"))
        .header(header::CONTENT_TYPE, "application/merge-patch+json");
    let patched = ask(server, request, json!({"status": status})).await;
    assert_eq!(patched.status(), StatusCode::OK, "{}", text(patched).await);
}

const POD: &str = "namespaces/default/pods/p";
const SERVICE: &str = "namespaces/default/services";
const ADDRESS: &str = "10.244.0.1";

async fn server() -> ApiServer {
    let store = gantry_store::Store::ephemeral();
    let day = Duration::from_secs(24 * 60 * 60);
    let authority = Authority::create(day).expect("an authority");
    let own = authority.issue(&Subject::client("web", &[]), day);
    let tls = server_config(&own.expect("a certificate"), authority.certificate());
    let tls = tls.expect("a configuration");
    let server = ApiServer::new(ApiServerConfig::default(), store, Arc::new(Web { tls }));
    server.bootstrap(6443).await.expect("bootstrapped");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 8080}, {"containerPort": 443, "name": "tls"}]}
        ]}
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [
            {"name": "http", "port": 80}, {"name": "closed", "port": 81}, {"name": "tls", "port": 443}
        ]}
    });
    for (place, object) in [
        ("nodes", node),
        ("namespaces/default/pods", pod),
        ("namespaces/default/services", service),
    ] {
        let created = send(&server, Method::POST, place, object).await;
        let code = created.status();
        assert_eq!(
            code,
            StatusCode::CREATED,
            "{place}: {}",
            text(created).await
        );
    }
    let addresses = json!({"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]});
    status(&server, POD, addresses).await;
    server
}

/// Makes a slice of the service: endpoints are addresses, and whose they are said to be.
async fn publish(server: &ApiServer, name: &str, endpoints: &[(&str, Value)]) {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, target)| json!({"addresses": [address], "targetRef": target}))
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [
            {"name": "http", "port": 8080}, {"name": "closed", "port": 81}, {"name": "tls", "port": 443}
        ],
        "endpoints": endpoints
    });
    let place = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let request = Request::post(place).header(header::CONTENT_TYPE, "application/json");
    let created = ask(server, request, slice).await;
    assert_eq!(created.status(), StatusCode::CREATED);
}

fn reference() -> Value {
    json!({"kind": "Pod", "namespace": "default", "name": "p"})
}

#[tokio::test]
async fn a_request_reaches_the_pod_whole_and_without_the_credential() {
    let server = server().await;
    let path = format!("{POD}/proxy/a//b%2Fc/?q=1&path=x");
    let answer = send(&server, Method::PUT, &path, json!({"k": "v"})).await;
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    let mut told = told(answer).await;
    let at = told["at"].take();
    assert_eq!(
        (&at["pod"], &at["address"], &at["port"]),
        (&json!("p"), &json!(ADDRESS), &json!(8080))
    );
    assert_ne!(at["uid"], "");
    assert_eq!(
        told,
        json!({
            "at": null, "method": "PUT", "uri": "/a//b%2Fc/?q=1&path=x", "host": "api.example", "credential": null,
            "client": "192.0.2.7", "forwarded": "/api/v1/namespaces/default/pods/p/proxy/a//b%2Fc/", "body": "{\"k\":\"v\"}"
        })
    );
}

#[tokio::test]
async fn without_a_slash_what_reads_is_redirected_and_all_else_is_passed_on() {
    let server = server().await;
    publish(&server, "s-1", &[(ADDRESS, reference())]).await;
    for place in [format!("{POD}:9/proxy"), format!("{SERVICE}/s:http/proxy")] {
        for method in [Method::GET, Method::HEAD] {
            let path = format!("{place}?method={method}");
            let answer = send(&server, method, &path, Value::Null).await;
            assert_eq!(answer.status(), StatusCode::MOVED_PERMANENTLY);
            let (path, query) = path.split_once('?').expect("a query");
            let location = &answer.headers()[header::LOCATION];
            assert_eq!(location, &format!("/api/v1/{path}/?{query}"));
        }
        for method in [
            Method::DELETE,
            Method::OPTIONS,
            Method::PATCH,
            Method::POST,
            Method::PUT,
        ] {
            let path = format!("{place}?method={method}");
            let answer = send(&server, method.clone(), &path, Value::Null).await;
            assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT, "{method}");
            let told = told(answer).await;
            assert_eq!(
                (&told["method"], &told["uri"]),
                (
                    &json!(method.as_str()),
                    &json!(format!("/?method={method}"))
                )
            );
        }
        let trace = send(&server, Method::TRACE, &place, Value::Null).await;
        assert_eq!(trace.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn tls_is_spoken_where_it_is_asked_for_and_nobody_vouches() {
    let server = server().await;
    publish(&server, "s-1", &[(ADDRESS, reference())]).await;
    for place in [
        "namespaces/default/pods/https:p:443".to_owned(),
        "namespaces/default/pods/https:p:tls".to_owned(),
        format!("{SERVICE}/https:s:443"),
        format!("{SERVICE}/https:s:tls"),
    ] {
        let (code, told) = get(&server, &format!("{place}/proxy/x")).await;
        assert_eq!((code, &told["uri"]), (418, &json!("/x")), "{place}");
        assert_eq!(told["at"]["port"], 443);
    }
    // Neither side understands the other.
    let (code, told) = get(&server, "namespaces/default/pods/https:p:80/proxy/").await;
    assert_eq!(code, 503, "{told}");
    let message = told["message"].as_str().expect("text");
    assert!(
        message.starts_with("error trying to reach service: "),
        "{message}"
    );
    let (code, told) = get(&server, "namespaces/default/pods/https:p:81/proxy/").await;
    assert_eq!(
        (code, &told["message"]),
        (
            503,
            &json!("error trying to reach service: connection refused")
        )
    );
}

#[tokio::test]
async fn links_and_redirects_lead_through_the_proxy() {
    let server = server().await;
    let path = format!("{POD}/proxy/page");
    let page = send(&server, Method::GET, &path, Value::Null).await;
    assert!(!page.headers().contains_key("access-control-allow-origin"));
    assert!(!page.headers().contains_key(header::CONTENT_LENGTH));
    assert_eq!(
        text(page).await,
        "<a href=\"/api/v1/namespaces/default/pods/p/proxy/rewriteme\">test</a>"
    );
    let page = send(&server, Method::HEAD, &path, Value::Null).await;
    assert_eq!(text(page).await, "");
    let path = format!("{POD}:8080/proxy/moved");
    let moved = send(&server, Method::GET, &path, Value::Null).await;
    assert_eq!(moved.status(), StatusCode::FOUND);
    let location = &moved.headers()[header::LOCATION];
    let expected = "/api/v1/namespaces/default/pods/p:8080/proxy/login?to=/moved";
    assert_eq!(location, expected);
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
    let cut = |uri: &'static str| {
        let uri = Uri::from_static(uri);
        let namespaced = uri.path().contains("/namespaces/");
        let cut = super::cut(&uri, namespaced);
        cut.map(|(prefix, path)| (prefix.to_owned(), path.to_owned()))
    };
    let parts = |prefix: &str, path: &str| Some((prefix.to_owned(), path.to_owned()));
    assert_eq!(
        cut("/api/v1/namespaces/pods/pods/proxy/proxy/pods/proxy/x"),
        parts("/api/v1/namespaces/pods/pods/proxy/proxy", "/pods/proxy/x")
    );
    assert_eq!(
        cut("/api/v1/nodes/n/proxy/"),
        parts("/api/v1/nodes/n/proxy", "/")
    );
    assert_eq!(
        cut("//api/v1/nodes/n/proxy"),
        parts("//api/v1/nodes/n/proxy", "")
    );
    assert_eq!(cut("/api/v1/nodes/n/proxying"), None);
    assert_eq!(cut("/api/v1/nodes/n"), None);
}

#[tokio::test]
async fn a_service_has_a_ready_endpoint_or_says_that_it_has_none() {
    let server = server().await;
    let get = async |name: &str| get(&server, &format!("{SERVICE}/{name}/proxy/")).await;
    assert_eq!(get("s:http").await.0, 404, "it has no slices");
    // What is no pod's own address is nobody's: not the server's, not another machine's.
    let elsewhere = [
        ("192.0.2.1", Value::Null),
        ("192.0.2.2", reference()),
        (
            ADDRESS,
            json!({"kind": "Pod", "namespace": "default", "name": "q"}),
        ),
        (
            ADDRESS,
            json!({"kind": "Pod", "namespace": "other", "name": "p"}),
        ),
    ];
    publish(&server, "s-0", &elsewhere).await;
    let (code, told) = get("s:http").await;
    assert_eq!(
        (code, &told["message"]),
        (503, &json!("no endpoints available for service \"s:http\""))
    );
    publish(&server, "s-1", &[(ADDRESS, reference())]).await;
    for name in ["s:http", "s:80", "http:s:http"] {
        let (code, told) = get(name).await;
        assert_eq!(
            (
                code,
                &told["at"]["pod"],
                &told["at"]["address"],
                &told["at"]["port"]
            ),
            (418, &json!("p"), &json!(ADDRESS), &json!(8080))
        );
    }
    for (name, message) in [
        ("s:nope", "no endpoints available for service \"s:nope\""),
        ("s", "no endpoints available for service \"s\""),
        ("s:82", "no service port 82 found for service \"s\""),
        (
            "s:closed",
            "error trying to reach service: connection refused",
        ),
    ] {
        let (code, told) = get(name).await;
        assert_eq!((code, &told["message"]), (503, &json!(message)), "{name}");
    }
    let (code, told) = get("ftp:s:80").await;
    assert_eq!(
        (code, &told["message"]),
        (400, &json!("invalid service request \"ftp:s:80\""))
    );
}

#[tokio::test]
async fn a_pod_is_reached_at_an_address_of_its_own_or_not_at_all() {
    let server = server().await;
    for address in ["127.0.0.1", "169.254.169.254"] {
        let addresses = json!({"podIP": address, "podIPs": [{"ip": address}]});
        status(&server, POD, addresses).await;
        let (code, told) = get(&server, &format!("{POD}/proxy/")).await;
        assert_eq!(
            (code, &told["message"]),
            (400, &json!("address not allowed"))
        );
    }
    let (code, told) = get(&server, "namespaces/default/pods/a:b:p:80/proxy/").await;
    assert_eq!(
        (code, &told["message"]),
        (400, &json!("invalid pod request \"a:b:p:80\""))
    );
}

#[tokio::test]
async fn a_node_has_pages_and_its_other_ports_are_named() {
    let server = server().await;
    for node in ["n", "n:10250", "https:n:10250"] {
        let path = format!("nodes/{node}/proxy/metrics/resource?x=y");
        let (code, told) = get(&server, &path).await;
        let at = json!({"pod": "", "uid": "", "address": "", "port": 0});
        assert_eq!((code, &told["at"]), (418, &at), "{told}");
        assert_eq!(told["uri"], "/metrics/resource?x=y");
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // A node that says so must not make the server speak to itself.
    let addresses = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]});
    status(&server, "nodes/n", addresses).await;
    let (code, told) = get(&server, &format!("nodes/n:{port}/proxy/metrics")).await;
    assert_eq!(
        (code, &told["message"]),
        (400, &json!("address not allowed"))
    );
    // Wherever else it is, this server dials it.
    let target = Target {
        backend: Backend::Server,
        address: IpAddr::from([127, 0, 0, 1]),
        port,
        tls: false,
    };
    assert!(connect(target).await.is_ok());
}
