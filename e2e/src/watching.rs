//! What becomes of objects, as a client's watch tells it.

use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::{Api, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;

/// Seconds that a watch lasts.
const LASTS: u32 = 290;
/// Between attempts to begin one.
const AGAIN: Duration = Duration::from_millis(100);

/// Hands over every state of the objects that a selector of labels selects, for ever.
pub async fn follow<K>(api: Api<K>, selector: &str, mut seen: impl FnMut(&K))
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    loop {
        let parameters = WatchParams::default().labels(selector).timeout(LASTS);
        let Ok(events) = api.watch(&parameters, "0").await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let mut events = events.boxed();
        while let Ok(Some(event)) = events.try_next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                seen(&object);
            }
        }
    }
}
