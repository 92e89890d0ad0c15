//! Follows the metadata of all objects of one kind into the graph.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use tokio::sync::watch;

use super::Collector;
use super::graph::Node;
use crate::error::{code, words};
use crate::resources::Resource;

const WATCH_SECONDS: u32 = 290;
const PAGE: u32 = 1000;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Follows until cancelled; `listed` becomes true once all objects of the kind are in the graph.
pub(crate) async fn follow(
    collector: Arc<Collector>,
    resource: Arc<Resource>,
    listed: watch::Sender<bool>,
) {
    let api = resource.objects(&collector.context.client, "");
    let mut wait = FIRST_WAIT;
    let mut at: Option<String> = None;
    loop {
        let outcome = match &at {
            None => list(&collector, &resource, &api).await,
            Some(from) => watch(&collector, &resource, &api, from.clone()).await,
        };
        match outcome {
            Ok(reached) => {
                listed.send_replace(true);
                wait = FIRST_WAIT;
                at = Some(reached);
            }
            Err(error) => {
                if matches!(code(&error), Some(404 | 405)) {
                    // The kind is gone, or cannot be followed after all: it holds nobody up.
                    listed.send_replace(true);
                }
                tracing::debug!(
                    resource = resource.qualified(),
                    error = words(&error),
                    "following owners was interrupted"
                );
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                at = None;
            }
        }
    }
}

async fn list(
    collector: &Collector,
    resource: &Arc<Resource>,
    api: &Api<DynamicObject>,
) -> kube::Result<String> {
    let mut parameters = ListParams::default().limit(PAGE);
    let mut seen = HashSet::new();
    loop {
        let page = api.list_metadata(&parameters).await?;
        for object in page.items {
            let uid = object.metadata.uid.as_deref().unwrap_or_default().into();
            put(collector, resource, &object.metadata);
            seen.insert(uid);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => {
                collector.forget_missing(resource, &seen);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }
}

async fn watch(
    collector: &Collector,
    resource: &Arc<Resource>,
    api: &Api<DynamicObject>,
    from: String,
) -> kube::Result<String> {
    let parameters = WatchParams::default().timeout(WATCH_SECONDS);
    let mut at = from;
    let mut events = api.watch_metadata(&parameters, &at).await?.boxed();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                put(collector, resource, &object.metadata);
                note(&mut at, &object.metadata);
            }
            WatchEvent::Deleted(object) => {
                collector.remove(object.metadata.uid.as_deref().unwrap_or_default());
                note(&mut at, &object.metadata);
            }
            WatchEvent::Bookmark(bookmark) => at = bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    Ok(at)
}

fn put(collector: &Collector, resource: &Arc<Resource>, meta: &ObjectMeta) {
    let uid = meta.uid.as_deref().unwrap_or_default();
    collector.put(uid.into(), Node::new(resource.clone(), meta));
}

fn note(at: &mut String, meta: &ObjectMeta) {
    if let Some(version) = &meta.resource_version {
        at.clone_from(version);
    }
}
