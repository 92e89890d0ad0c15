use std::net::{IpAddr, Ipv4Addr};

use gantry_api::yaml;
use http::HeaderValue;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::net::TcpStream;

use super::*;
use crate::connections::Connected;
use crate::streams::NoNodes;

fn yaml(text: &str) -> serde_json::Value {
    let document = yaml::document(text.as_bytes()).expect("YAML");
    document.to_value().expect("JSON")
}

/// A connection of an administrator, with its other end.
async fn connected(server: &ApiServer) -> (Connected, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (accepted, from) = accepted.expect("accepted");
    let connected = server.inner.connections.admit(accepted, from.ip());
    (connected, client.expect("connected"))
}

#[tokio::test]
async fn a_flood_of_reads_leaves_everybody_else_alone() {
    let server = ApiServer::new(
        ApiServerConfig::default(),
        Store::ephemeral(),
        Arc::new(NoNodes),
    );
    server.bootstrap(6443).await.expect("bootstrapped");
    let (connection, _client) = connected(&server).await;
    let mut flood = Vec::new();
    let (limits, connections) = (&server.inner.limits, &server.inner.connections);
    // The clock is the test's: a full class is found out at once.
    tokio::time::pause();
    for user in ["one", "another"] {
        let user = Identity::new(user, &["system:authenticated"]);
        while let Ok(place) = limits.enter(Class::Reads, &user, connections).await {
            flood.push(place);
        }
    }
    let list = "/api/v1/namespaces/default/configmaps";
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let send = async |method: Method, path: &str, body: &str, identity: &Identity| {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_owned()))
            .expect("a request");
        let caller = Caller {
            peer: Arc::new(Peer {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                identity: Some(identity.clone()),
                key: None,
            }),
            connection: connection.connection().clone(),
        };
        server.dispatch(request, caller, None).await
    };
    let refused = send(Method::GET, list, "", &administrator).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    tokio::time::resume();
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    let body = refused.into_body().collect().await.expect("a body");
    let status: serde_json::Value = serde_json::from_slice(&body.to_bytes()).expect("JSON");
    assert_eq!(
        (&status["kind"], &status["reason"]),
        (&json!("Status"), &json!("TooManyRequests"))
    );

    let object = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}"#;
    let written = send(Method::POST, list, object, &administrator).await;
    assert_eq!(written.status(), StatusCode::CREATED);
    let ready = send(Method::GET, "/readyz", "", &administrator).await;
    assert_eq!(ready.status(), StatusCode::OK);
    let metrics = send(Method::GET, "/metrics", "", &administrator).await;
    let text = metrics.into_body().collect().await.expect("a body");
    let text = String::from_utf8(text.to_bytes().to_vec()).expect("text");
    assert!(
        text.contains(r#"gantry_apiserver_requests_rejected_total{class="reads"}"#),
        "{text}"
    );
    // Within the process nobody queues.
    let request = http::Request::get(list).body(Body::empty());
    let inside = server
        .local_service(administrator.clone())
        .oneshot(request.expect("a request"))
        .await;
    let Ok(inside) = inside;
    assert_eq!(inside.status(), StatusCode::OK);

    drop(flood);
    let answered = send(Method::GET, list, "", &administrator).await;
    assert_eq!(answered.status(), StatusCode::OK);
}

#[tokio::test]
async fn metrics_name_only_what_is_served() {
    let server = ApiServer::new(
        ApiServerConfig::default(),
        Store::ephemeral(),
        Arc::new(NoNodes),
    );
    let (connection, _client) = connected(&server).await;
    let send = async |method: &str, path: String| {
        let request = http::Request::builder().method(method).uri(path);
        let caller = Caller {
            peer: Arc::new(Peer {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                identity: Some(Identity::new("kubernetes-admin", &["system:masters"])),
                key: None,
            }),
            connection: connection.connection().clone(),
        };
        let request = request.body(Body::empty()).expect("a request");
        server.dispatch(request, caller, None).await
    };
    for number in 0..20 {
        send("GET", format!("/apis/made{number}.up/v1/madeup{number}")).await;
        send("GET", format!("/api/v1/madeup{number}/name/madeup{number}")).await;
        send("GET", format!("/api/v{number}9/pods")).await;
        send(&format!("MADEUP{number}"), "/api/v1/pods".to_owned()).await;
        send("POST", format!("/apis/apps/v1/madeup{number}?watch=madeup")).await;
    }
    let metrics = send("GET", "/metrics".to_owned()).await;
    let text = metrics.into_body().collect().await.expect("a body");
    let text = String::from_utf8(text.to_bytes().to_vec()).expect("text");
    let lower = text.to_lowercase();
    assert!(
        !lower.contains("madeup") && !lower.contains("made1"),
        "{text}"
    );
    assert!(text.contains(r#"resource="unknown""#), "{text}");
}

#[tokio::test]
async fn yaml_is_made_of_documents_and_never_of_streams() {
    let server = ApiServer::new(
        ApiServerConfig::default(),
        Store::ephemeral(),
        Arc::new(NoNodes),
    );
    server.bootstrap(6443).await.expect("bootstrapped");
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let send = async |path: &str| {
        let request = http::Request::get(path).header(header::ACCEPT, "application/yaml");
        let request = request.body(Body::empty()).expect("a request");
        let Ok(response) = server
            .local_service(administrator.clone())
            .oneshot(request)
            .await;
        let (parts, body) = response.into_parts();
        let text = body.collect().await.expect("a body").to_bytes();
        let kind = parts.headers[header::CONTENT_TYPE]
            .to_str()
            .expect("text")
            .to_owned();
        (
            parts.status,
            kind,
            String::from_utf8(text.to_vec()).expect("text"),
        )
    };
    for path in [
        "/api/v1/namespaces?watch=true",
        "/api/v1/watch/namespaces/default",
        "/api/v1/namespaces?watch&fieldSelector=metadata.name%3Ddefault",
    ] {
        let (status, kind, text) = send(path).await;
        assert_eq!(
            (status.as_u16(), &kind[..]),
            (406, "application/yaml"),
            "{text}"
        );
        let status = yaml(&text);
        assert_eq!(status["reason"], "NotAcceptable");
    }
    for (path, kind) in [
        ("/api/v1/namespaces", "NamespaceList"),
        ("/api/v1/namespaces/default", "Namespace"),
        ("/api/v1/pods", "PodList"),
        ("/api", "APIVersions"),
    ] {
        let (status, media_type, text) = send(path).await;
        assert_eq!(
            (status.as_u16(), &media_type[..]),
            (200, "application/yaml"),
            "{path}"
        );
        let document = yaml(&text);
        assert_eq!(document["kind"], kind, "{text}");
    }
    let (_, _, text) = send("/api/v1/namespaces").await;
    let list = yaml(&text);
    let names: Vec<_> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| item["metadata"]["name"].clone())
        .collect();
    assert!(names.contains(&json!("default")), "{text}");
}

/// A server, and somebody's connection to it.
struct Served {
    server: ApiServer,
    connection: Connected,
    _client: TcpStream,
}

impl Served {
    async fn new() -> Self {
        let server = ApiServer::new(
            ApiServerConfig::default(),
            Store::ephemeral(),
            Arc::new(NoNodes),
        );
        let (connection, client) = connected(&server).await;
        Self {
            server,
            connection,
            _client: client,
        }
    }

    async fn send(&self, request: Request, identity: Option<Identity>) -> Response<Body> {
        let caller = Caller {
            peer: Arc::new(Peer {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                identity,
                key: None,
            }),
            connection: self.connection.connection().clone(),
        };
        let others = axum::Router::new();
        self.server.dispatch(request, caller, Some(others)).await
    }
}

/// A body that never arrives, and whether anybody waits for it.
fn never() -> (Body, Arc<std::sync::atomic::AtomicBool>) {
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let body = Body::from_stream(futures::stream::poll_fn({
        let asked = asked.clone();
        move |_| {
            asked.store(true, std::sync::atomic::Ordering::Release);
            std::task::Poll::<Option<Result<bytes::Bytes, std::io::Error>>>::Pending
        }
    }));
    (body, asked)
}

fn asking(method: &str, path: &str, body: Body) -> Request {
    let request = http::Request::builder().method(method).uri(path);
    request.body(body).expect("a request")
}

fn administrator() -> Option<Identity> {
    Some(Identity::new("kubernetes-admin", &["system:masters"]))
}

#[tokio::test]
async fn the_body_of_what_is_refused_is_not_read() {
    let served = Served::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let somebody = || Some(Identity::new("somebody", &["system:authenticated"]));
    for (method, path, identity) in [
        ("POST", "/x", None),
        ("POST", "/version", None),
        ("PUT", "/", None),
        ("POST", "/gantry/v1/members", None),
        ("POST", maps, None),
        ("POST", "/x", somebody()),
        ("PATCH", "/openapi/v3", somebody()),
        ("POST", maps, somebody()),
    ] {
        let (body, asked) = never();
        let answer = served.send(asking(method, path, body), identity).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
        let asked = asked.load(std::sync::atomic::Ordering::Acquire);
        assert!(!asked, "{method} {path}");
    }
}

#[tokio::test]
async fn no_body_is_waited_for_without_a_limit() {
    let served = Served::new().await;
    let map = "/api/v1/namespaces/default/configmaps/c";
    for (method, path, code) in [
        // No verb takes it.
        ("OPTIONS", map.to_owned(), 405),
        ("MADEUP", map.to_owned(), 405),
        // What looks like a stream and is none.
        ("POST", format!("{map}/log"), 408),
        ("POST", format!("{map}/exec"), 408),
        ("POST", format!("{map}/proxy/x"), 408),
        (
            "POST",
            "/api/v1/namespaces/default/pods/p/log?follow=1".to_owned(),
            408,
        ),
    ] {
        let (body, asked) = never();
        let request = asking(method, &path, body);
        // What is waited for is late at once, by the test's clock.
        if code == 408 {
            tokio::time::pause();
        }
        let hour = std::time::Duration::from_secs(3600);
        let answer = tokio::time::timeout(hour, served.send(request, administrator())).await;
        if code == 408 {
            tokio::time::resume();
        }
        let answer = answer.expect("it is answered");
        assert_eq!(answer.status().as_u16(), code, "{method} {path}");
        let asked = asked.load(std::sync::atomic::Ordering::Acquire);
        assert_eq!(asked, code == 408, "{method} {path}");
    }
}

#[tokio::test]
async fn refusals_repeat_little_of_what_was_sent() {
    let served = Served::new().await;
    let long = "x".repeat(60_000);
    let quotes = "\"".repeat(3_950);
    for (path, header) in [
        (format!("/{long}"), ""),
        (format!("/version?{long}"), quotes.as_str()),
        (format!("/apis/{long}/v1/{long}"), ""),
        (format!("/api/v1/namespaces/{long}/pods/{long}"), ""),
    ] {
        let mut request = asking("GET", &path[..path.len().min(65_000)], Body::empty());
        if !header.is_empty() {
            let value = HeaderValue::from_str(header).expect("a header");
            request.headers_mut().insert("impersonate-user", value);
        }
        let answer = served.send(request, None).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let body = answer.into_body().collect().await.expect("a body");
        let length = body.to_bytes().len();
        assert!(length < 4096, "{length} bytes");
    }
}

#[tokio::test]
async fn whoever_may_do_nothing_takes_no_place() {
    let served = Served::new().await;
    let (limits, connections) = (
        &served.server.inner.limits,
        &served.server.inner.connections,
    );
    let anonymous = Identity::anonymous();
    let mut unread = Vec::new();
    for _ in 0..100 {
        let request = asking("GET", "/api/v1/pods", Body::empty());
        unread.push(served.send(request, None).await);
    }
    // Of 32 places that the anonymous have.
    limits
        .enter(Class::Reads, &anonymous, connections)
        .await
        .expect("none is taken");
    assert!(
        unread
            .iter()
            .all(|answer| answer.status() == StatusCode::FORBIDDEN)
    );
}

#[tokio::test]
async fn a_query_of_many_names_is_refused() {
    let served = Served::new().await;
    let names: Vec<_> = (0..1000).map(|number| format!("n{number}")).collect();
    let path = format!("/api/v1/configmaps?watch=1&{}", names.join("&"));
    let request = asking("GET", &path, Body::empty());
    let answer = served.send(request, administrator()).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_certificate_that_does_not_count_makes_nobody_a_node() {
    let served = Served::new().await;
    let store = &served.server.inner.api.store;
    let adopted = crate::node_keys::adopt(store, "one").await;
    adopted.expect("written");
    for (node, standing) in [("one", Standing::Own), ("removed", Standing::Stranger)] {
        let (connection, _client) = connected(&served.server).await;
        let user = format!("system:node:{node}");
        let peer = Arc::new(Peer {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            identity: Some(Identity::new(&user, &["system:nodes"])),
            key: serde_json::from_value(json!("00")).expect("a key"),
        });
        served.server.greet(connection.connection(), &peer);
        assert_eq!(connection.connection().standing(), standing, "{node}");
    }
}

#[tokio::test]
async fn only_what_asks_for_another_protocol_switches_to_one() {
    let served = Served::new().await;
    let (limits, connections) = (
        &served.server.inner.limits,
        &served.server.inner.connections,
    );
    let used = connections.budget().used();
    let switched = async |asked: bool| {
        let anonymous = Identity::anonymous();
        let place = limits.enter(Class::Streams, &anonymous, connections).await;
        let answering = Answering::begin(served.connection.connection())
            .switching(asked)
            .holding(place.expect("there is room"));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answered(response, answering).status()
    };
    assert_eq!(switched(false).await, StatusCode::BAD_GATEWAY);
    assert_eq!(connections.budget().used(), used, "its place is free");
    assert_eq!(switched(true).await, StatusCode::SWITCHING_PROTOCOLS);
    // For as long as the connection lasts.
    assert!(connections.budget().used() > used);
}

#[tokio::test]
async fn the_token_of_an_account_that_is_gone_holds_up_nobody_of_its_address() {
    let server = ApiServer::new(
        ApiServerConfig::default(),
        Store::ephemeral(),
        Arc::new(NoNodes),
    );
    server.bootstrap(6443).await.expect("bootstrapped");
    let (connection, _client) = connected(&server).await;
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let account = |namespace: &str, rest: &[&str]| {
        let path = [&["serviceaccounts", "default"], rest].concat();
        gantry_api::paths::namespaced(namespace, &path)
    };
    let inside = async |method: Method, path: String| {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from("{}"))
            .expect("a request");
        let service = server.local_service(administrator.clone());
        let Ok(answer) = service.oneshot(request).await;
        let bytes = answer.into_body().collect().await.expect("a body");
        serde_json::from_slice::<serde_json::Value>(&bytes.to_bytes()).expect("JSON")
    };
    let token = async |namespace: &str| {
        let answer = inside(Method::POST, account(namespace, &["token"])).await;
        let token = answer["status"]["token"].as_str();
        token.unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let show = async |token: &str| {
        let request = http::Request::get("/api/v1/namespaces/default/secrets")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::empty())
            .expect("a request");
        let caller = Caller {
            peer: Arc::new(Peer {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                identity: None,
                key: None,
            }),
            connection: connection.connection().clone(),
        };
        let answer = server.dispatch(request, caller, None).await;
        answer.status().as_u16()
    };
    let (good, gone) = (token("default").await, token("kube-public").await);
    assert_eq!((show(&good).await, show(&gone).await), (403, 403), "known");
    inside(Method::DELETE, account("kube-public", &[])).await;
    for _ in 0..100 {
        assert_eq!(show(&gone).await, 401);
    }
    assert_eq!(show(&good).await, 403, "nobody is held up");
    // What nobody has signed is slowed down, and what is known goes on.
    while show("a.b.c").await != 429 {}
    assert_eq!((show(&good).await, show(&gone).await), (403, 401));
}

#[tokio::test]
async fn what_describes_the_api_is_told_to_whoever_has_a_credential() {
    let served = Served::new().await;
    // With it come the roles of everybody.
    let bootstrapped = served.server.bootstrap(6443).await;
    bootstrapped.expect("bootstrapped");
    let somebody = || Some(Identity::new("somebody", &["system:authenticated"]));
    for (path, code, content_type) in [
        ("/openapi/v2", 200, "application/json"),
        ("/openapi/v3/", 200, "text/plain; charset=utf-8"),
        ("/openapi/v3/apis/apps/v1", 200, "application/json"),
        ("/openapi/v3/apis/apps/v1?hash=OLD", 301, "application/json"),
        (
            "/openapi/v3/apis/made.up/v1",
            404,
            "text/plain; charset=utf-8",
        ),
    ] {
        let request = asking("GET", path, Body::empty());
        let answer = served.send(request, somebody()).await;
        let found = &answer.headers()[header::CONTENT_TYPE];
        assert_eq!(
            (answer.status().as_u16(), found.as_bytes()),
            (code, content_type.as_bytes())
        );
    }
    // They are not written in what Kubernetes does not write them in.
    let mut request = asking("GET", "/openapi/v2", Body::empty());
    let yaml = HeaderValue::from_static("application/yaml");
    request.headers_mut().insert(header::ACCEPT, yaml);
    let answer = served.send(request, somebody()).await;
    assert_eq!(answer.status(), StatusCode::NOT_ACCEPTABLE);
    let request = asking("GET", "/openapi/v2", Body::empty());
    let answer = served.send(request, None).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn gantrys_own_requests_are_nobody_elses() {
    let served = Served::new().await;
    let bootstrapped = served.server.bootstrap(6443).await;
    bootstrapped.expect("bootstrapped");
    let ask = async |named: &'static str, value: &'static str| {
        let mut request = asking("GET", "/gantry/v1/members", Body::empty());
        let value = HeaderValue::from_static(value);
        request.headers_mut().insert(named, value);
        let answer = served.send(request, administrator()).await;
        answer.status().as_u16()
    };
    assert_eq!(ask("impersonate-user", "jane").await, 403);
    assert_eq!(ask("impersonate-group", "gantry:members").await, 403);
    // Which is not there, in this test.
    assert_eq!(ask("x-impersonate-user", "jane").await, 404);
}
