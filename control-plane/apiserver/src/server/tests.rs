use crate::streams::NoNodes;

use super::*;

#[tokio::test]
async fn a_flood_of_reads_leaves_everybody_else_alone() {
    let server = ApiServer::new(
        ApiServerConfig::default(),
        Store::ephemeral(),
        Arc::new(NoNodes),
    );
    server.bootstrap(6443).await.expect("bootstrapped");
    let mut flood = Vec::new();
    // The clock is the test's: a full class is found out at once.
    tokio::time::pause();
    while let Ok(place) = server.inner.limits.enter(Class::Reads).await {
        flood.push(place);
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
        let peer = Peer {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            identity: Some(identity.clone()),
            key: None,
        };
        server.dispatch(request, &peer, None).await
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
