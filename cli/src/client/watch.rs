//! The objects of a collection as they are: listed once, and watched from then on.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;

use super::{Call, Cluster};

/// A watch that said nothing, or an error, is not begun anew at once.
const AGAIN: Duration = Duration::from_secs(1);

/// What has become of the objects that are watched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// All that there are: whatever else was known is gone.
    All(Vec<Value>),
    /// One is new, or another than before.
    Is(Value),
    /// One is gone; this is what it was.
    Gone(Value),
}

/// Tells `heard` of the objects at `path` that `query` selects until it has heard enough, and returns what it then says. A
/// watch that ends, or has missed something, begins anew with a list.
pub(crate) async fn watch<T>(
    cluster: &Cluster,
    path: &str,
    query: &[(&str, &str)],
    mut heard: impl FnMut(Change) -> Result<ControlFlow<T>>,
) -> Result<T> {
    loop {
        let call = Call {
            query,
            ..Call::get(path)
        };
        let mut list = cluster.call(call).await?;
        let since = list["metadata"]["resourceVersion"].as_str();
        let since = since.unwrap_or_default().to_owned();
        let items = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        if let ControlFlow::Break(said) = heard(Change::All(items))? {
            return Ok(said);
        }
        let more = [("watch", "true"), ("resourceVersion", since.as_str())];
        let query = [query, &more].concat();
        let call = Call {
            query: &query,
            ..Call::get(path)
        };
        let mut lines = Box::pin(cluster.stream(call).await?.lines());
        let mut is_silent = true;
        while let Some(line) = lines.next().await {
            // A server that ends leaves half a line, or none.
            let event = line.map(|line| serde_json::from_str::<Value>(&line));
            let Ok(Ok(mut event)) = event else {
                is_silent = true;
                break;
            };
            let object = event.get_mut("object").map(Value::take);
            let object = object.unwrap_or_default();
            let change = match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => Change::Is(object),
                Some("DELETED") => Change::Gone(object),
                Some("BOOKMARK") => continue,
                // Such as that too much has happened since.
                _ => {
                    is_silent = true;
                    break;
                }
            };
            is_silent = false;
            if let ControlFlow::Break(said) = heard(change)? {
                return Ok(said);
            }
        }
        if is_silent {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::client::Body;
    use serde_json::json;
    use tokio::sync::OnceCell;

    use super::*;

    /// A cluster that gives these answers, one after the other, and whether each was asked for as a watch.
    fn answering(answers: Vec<(bool, String)>) -> (Cluster, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, answers) = (asked.clone(), Arc::new(answers));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (number, answers) = (count.fetch_add(1, Ordering::Relaxed), answers.clone());
            async move {
                let (is_watch, body) = answers.get(number).cloned().expect("one more answer");
                let query = request.uri().query().unwrap_or_default().to_owned();
                assert!(query.contains("labelSelector=a%3Db"), "{query}");
                assert_eq!(query.contains("watch=true"), is_watch, "{query}");
                Ok::<_, Infallible>(http::Response::new(Body::from(body.into_bytes())))
            }
        });
        let cluster = Cluster {
            client: kube::Client::new(service, "default"),
            namespace: "default".to_owned(),
            authority: None,
            certificate: None,
            mappings: OnceCell::new(),
        };
        (cluster, asked)
    }

    fn list(names: &[&str]) -> String {
        let items: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"metadata": {"resourceVersion": "7"}, "items": items}).to_string()
    }

    fn events(events: &[(&str, Value)]) -> String {
        let lines = events
            .iter()
            .map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n");
        lines.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_or_missed_something_begins_anew_with_a_list() {
        let object = |name: &str| json!({"name": name});
        let (cluster, asked) = answering(vec![
            (false, list(&["one"])),
            (
                true,
                events(&[
                    ("ADDED", object("two")),
                    ("BOOKMARK", json!({})),
                    ("DELETED", object("one")),
                    ("ERROR", json!({"code": 410, "message": "too old"})),
                    ("ADDED", object("never")),
                ]),
            ),
            (false, list(&["two"])),
            (true, events(&[("MODIFIED", object("two"))])),
            (false, list(&[])),
        ]);
        let mut changes = Vec::new();
        let told = watch(
            &cluster,
            "/api/v1/pods",
            &[("labelSelector", "a=b")],
            |change| {
                let is_last = change == Change::All(Vec::new());
                changes.push(change);
                Ok(match is_last {
                    true => ControlFlow::Break("enough"),
                    false => ControlFlow::Continue(()),
                })
            },
        );
        assert_eq!(told.await.expect("no error"), "enough");
        assert_eq!(
            changes,
            [
                Change::All(vec![object("one")]),
                Change::Is(object("two")),
                Change::Gone(object("one")),
                Change::All(vec![object("two")]),
                Change::Is(object("two")),
                Change::All(Vec::new()),
            ]
        );
        assert_eq!(asked.load(Ordering::Relaxed), 5);
    }
}
