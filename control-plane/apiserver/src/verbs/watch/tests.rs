use http::{Method, StatusCode};
use http_body_util::BodyExt;

use super::*;
use crate::ApiServer;
use crate::testing::{JSON, ask, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LARGE: usize = 512 << 10;

async fn send(server: &ApiServer, method: Method, uri: &str, body: String) -> http::Response<Body> {
    ask(server, method, uri, JSON, body).await
}

/// The lines of a watch until it ends.
async fn lines(watch: http::Response<Body>) -> Vec<Value> {
    let bytes = watch
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let lines = bytes.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect()
}

async fn create(server: &ApiServer, name: &str, text: String) {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"text": text},
    });
    let created = send(server, Method::POST, MAPS, object.to_string()).await;
    assert_eq!(created.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_told_to_list_again() {
    let server = server().await;
    let uri = format!("{MAPS}?watch=1&timeoutSeconds=60");
    let watch = send(&server, Method::GET, &uri, String::new()).await;
    assert_eq!(watch.status(), StatusCode::OK);
    // Twice what waits for a watcher at most.
    for number in 0..(16 << 20) / LARGE {
        create(&server, &format!("large-{number}"), "x".repeat(LARGE)).await;
    }
    let lines = lines(watch).await;
    let end = lines.last().expect("a line");
    assert_eq!(end["type"], "ERROR");
    assert_eq!(
        (&end["object"]["code"], &end["object"]["reason"]),
        (&json!(410), &json!("Expired"))
    );
    assert!(lines.len() < 20, "{} lines were held", lines.len());
}

#[tokio::test(start_paused = true)]
async fn large_and_small_objects_arrive_whole_as_what_is_and_as_what_changes() {
    let server = server().await;
    let sizes = [1, PIECE, LARGE, 2, PIECE * 3, 5];
    for (number, size) in sizes.iter().enumerate() {
        create(&server, &format!("before-{number}"), "x".repeat(*size)).await;
    }
    let uri = format!("{MAPS}?watch=1&timeoutSeconds=5");
    let watch = send(&server, Method::GET, &uri, String::new()).await;
    for (number, size) in sizes.iter().enumerate() {
        create(&server, &format!("later-{number}"), "x".repeat(*size)).await;
    }
    let lines = lines(watch).await;
    let ours = lines.iter().filter_map(|line| {
        assert_eq!(
            (&line["type"], &line["object"]["kind"]),
            (&json!("ADDED"), &json!("ConfigMap"))
        );
        let name = line["object"]["metadata"]["name"].as_str()?;
        let (when, number) = name.split_once('-')?;
        let number: usize = number.parse().ok()?;
        assert_eq!(
            line["object"]["data"]["text"].as_str()?.len(),
            sizes[number]
        );
        Some((when.to_owned(), number))
    });
    let expected = ["before", "later"]
        .iter()
        .flat_map(|when| (0..sizes.len()).map(|number| ((*when).to_owned(), number)));
    assert_eq!(ours.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let list = send(&server, Method::GET, MAPS, String::new()).await;
    let bytes = list.into_body().collect().await.expect("a body").to_bytes();
    let list: Value = serde_json::from_slice(&bytes).expect("JSON");
    let items = list["items"].as_array().expect("items");
    let sum = |items: &[Value]| -> usize {
        let text = |item: &Value| item["data"]["text"].as_str().map_or(0, str::len);
        items.iter().map(text).sum()
    };
    assert_eq!(sum(items), 2 * sizes.iter().sum::<usize>());
}
