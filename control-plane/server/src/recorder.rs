//! Writes Events: named and stamped here, and counted instead of repeated.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_api::json::Members;
use gantry_api::paths;
use gantry_tasks::caught;
use http::{Method, Request};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::node_link::call;

/// Events waiting to be written; more are dropped, since they must never hold up what they tell about.
const WAITING: usize = 1024;
/// Recent events that are counted instead of repeated.
const REMEMBERED: usize = 4096;

/// A handle to the writer.
pub(crate) struct Recorder {
    queue: mpsc::Sender<Value>,
}

impl Recorder {
    pub(crate) fn new(client: kube::Client) -> Self {
        let (queue, mut events) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let recent = Arc::new(Mutex::new(HashMap::new()));
            while let Some(event) = events.recv().await {
                match caught(write(&client, &recent, event)).await {
                    Ok(Ok(())) => {}
                    // The namespace may be on its way out: its events go with it.
                    Ok(Err(error)) => tracing::debug!(%error, "writing an event"),
                    Err(panicked) => tracing::error!(%panicked, "writing an event"),
                }
            }
        });
        Self { queue }
    }

    /// Takes an Event without name; never waits.
    pub(crate) fn record(&self, event: Value) {
        if self.queue.try_send(event).is_err() {
            tracing::warn!("too many events at once: one was dropped");
        }
    }
}

/// What makes two events the same.
fn identity(event: &Value) -> String {
    format!(
        "{}|{}|{}|{}",
        event["involvedObject"], event["reason"], event["message"], event["source"]["component"]
    )
}

async fn write(
    client: &kube::Client,
    recent: &Mutex<HashMap<String, (String, i64)>>,
    mut event: Value,
) -> kube::Result<()> {
    let now = jiff::Timestamp::now();
    let stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let namespace = match event["involvedObject"]["namespace"].as_str() {
        Some(namespace) if !namespace.is_empty() => namespace.to_owned(),
        _ => "default".to_owned(),
    };
    let collection = paths::namespaced(&namespace, &["events"]);
    let identity = identity(&event);
    let known = recent.lock().get(&identity).cloned();
    if let Some((name, count)) = known {
        let patch = json!({"count": count + 1, "lastTimestamp": stamp});
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(paths::namespaced(&namespace, &["events", &name]))
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        if client.request::<Value>(request).await.is_ok() {
            recent.lock().insert(identity, (name, count + 1));
            return Ok(());
        }
        // Expired meanwhile: written anew below.
    }
    let object = event["involvedObject"]["name"]
        .as_str()
        .unwrap_or("unknown");
    let name = format!("{object}.{:x}", now.as_nanosecond());
    *event.member(&["apiVersion"]) = json!("v1");
    *event.member(&["kind"]) = json!("Event");
    *event.member(&["metadata"]) = json!({"name": name, "namespace": namespace});
    *event.member(&["count"]) = json!(1);
    *event.member(&["firstTimestamp"]) = json!(stamp);
    *event.member(&["lastTimestamp"]) = json!(stamp);
    call(client, Method::POST, &collection, &event).await?;
    let mut recent = recent.lock();
    if recent.len() >= REMEMBERED {
        recent.clear();
    }
    recent.insert(identity, (name, 1));
    Ok(())
}
