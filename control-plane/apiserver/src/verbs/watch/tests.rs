use http::{Method, Request};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::streams::NoNodes;
use crate::{ApiServer, ApiServerConfig};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LARGE: usize = 512 << 10;

async fn send(server: &ApiServer, method: Method, uri: &str, body: String) -> http::Response<Body> {
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .expect("a request");
    let Ok(response) = server.local_service(administrator).oneshot(request).await;
    response
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_and_holds_little() {
    let store = gantry_store::Store::ephemeral();
    let server = ApiServer::new(ApiServerConfig::default(), store, Arc::new(NoNodes));
    server.bootstrap(6443).await.expect("bootstrapped");
    let watch = send(
        &server,
        Method::GET,
        &format!("{MAPS}?watch=1"),
        String::new(),
    )
    .await;
    assert_eq!(watch.status(), StatusCode::OK);
    // Twenty times what a watcher may hold.
    for number in 0..20 * AHEAD / LARGE {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": format!("large-{number}")},
            "data": {"text": "x".repeat(LARGE)},
        });
        let created = send(&server, Method::POST, MAPS, object.to_string()).await;
        assert_eq!(created.status(), StatusCode::CREATED);
    }
    // Past the time that a stalled client has.
    tokio::time::pause();
    tokio::time::sleep(STALLED * 2).await;
    tokio::time::resume();
    let mut body = watch.into_body();
    let (mut bytes, mut last) = (0, Bytes::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("a line").into_data().expect("data");
        bytes += frame.len();
        last = frame;
    }
    assert!(bytes < AHEAD + 4096, "{bytes} bytes were held");
    let end: Value = serde_json::from_slice(&last).expect("JSON");
    assert_eq!(end["type"], "ERROR");
    assert_eq!(
        (&end["object"]["code"], &end["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
}
