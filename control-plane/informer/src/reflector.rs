//! The one loop by which anything here follows objects: a list, and then a watch from its revision on.
//!
//! States: *listing* (take everything, note the revision) → *watching* (take each event, note its revision). A watch
//! that ends is resumed from its last revision; one that is told 410 Gone goes back to listing; both that and an error wait,
//! longer each time until a watch has lasted, and resume.

use std::future::Future;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, ListParams, ObjectList, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use tokio::time::Instant;

use crate::error::words;
use crate::object::{Object, revision};

/// A watch is renewed after this many seconds, so that a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 290;
const PAGE: u32 = 1000;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A watch that ends sooner is not begun again at once: whoever ends it may have too many.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// What a watch tells.
pub type Events<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// Where objects come from.
pub trait Source: Send + Sync {
    /// What is followed of each object.
    type Object: Clone + Send;
    /// What is followed, for the log.
    fn name(&self) -> String;
    /// The object's metadata.
    fn meta(object: &Self::Object) -> &ObjectMeta;
    /// A page of a list.
    fn list(
        &self,
        parameters: ListParams,
    ) -> impl Future<Output = kube::Result<ObjectList<Self::Object>>> + Send;
    /// What happens from a revision on.
    fn watch(
        &self,
        parameters: WatchParams,
        from: &str,
    ) -> impl Future<Output = kube::Result<Events<Self::Object>>> + Send;
}

/// What takes objects in.
pub trait Sink<T>: Send + Sync {
    /// What is noted while a list comes in, page by page.
    type Listed: Default + Send;
    /// A page of a list.
    fn page(&self, listed: &mut Self::Listed, objects: Vec<T>);
    /// The list is complete; it tells the state at a revision.
    fn listed(&self, listed: Self::Listed, at: u64);
    /// An object that came or changed.
    fn changed(&self, object: T);
    /// An object that is gone, as it last was.
    fn deleted(&self, object: T);
    /// Nothing else happened up to a revision.
    fn reached(&self, _at: u64) {}
    /// It goes on later.
    fn interrupted(&self, _why: &Interruption) {}
}

/// Why following stopped other than by the time of a watch running out.
#[derive(Debug, thiserror::Error)]
pub enum Interruption {
    /// Everything is listed anew.
    #[error("the revision is no longer kept")]
    Expired,
    /// The kind is not served, or cannot be followed.
    #[error("there is nothing to follow: {}", words(.0))]
    Absent(#[source] kube::Error),
    /// No answer, or another refusal.
    #[error("{}", words(.0))]
    Client(#[source] kube::Error),
    /// An error instead of an event.
    #[error("the watch was refused: {0}")]
    Refused(String),
}

/// The objects of a kind, with all that they say.
pub struct Whole<K> {
    api: Api<K>,
    fields: Option<String>,
}

impl<K: Object> Whole<K> {
    /// Those of all namespaces; with a field selector, only those that match.
    pub fn new(client: kube::Client, fields: Option<&str>) -> Self {
        Self {
            api: Api::all(client),
            fields: fields.map(str::to_owned),
        }
    }
}

impl<K: Object> Source for Whole<K> {
    type Object = K;

    fn name(&self) -> String {
        K::kind(&()).into_owned()
    }

    fn meta(object: &K) -> &ObjectMeta {
        object.meta()
    }

    async fn list(&self, mut parameters: ListParams) -> kube::Result<ObjectList<K>> {
        parameters.field_selector.clone_from(&self.fields);
        self.api.list(&parameters).await
    }

    async fn watch(&self, mut parameters: WatchParams, from: &str) -> kube::Result<Events<K>> {
        parameters.field_selector.clone_from(&self.fields);
        Ok(self.api.watch(&parameters, from).await?.boxed())
    }
}

/// The metadata of the objects of a kind that is known by discovery.
pub struct Metadata {
    api: Api<DynamicObject>,
    name: String,
}

impl Metadata {
    /// Of those that `api` is about, which the log calls by that name.
    pub fn new(api: Api<DynamicObject>, name: String) -> Self {
        Self { api, name }
    }
}

impl Source for Metadata {
    type Object = PartialObjectMeta<DynamicObject>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn meta(object: &Self::Object) -> &ObjectMeta {
        &object.metadata
    }

    async fn list(&self, parameters: ListParams) -> kube::Result<ObjectList<Self::Object>> {
        self.api.list_metadata(&parameters).await
    }

    async fn watch(
        &self,
        parameters: WatchParams,
        from: &str,
    ) -> kube::Result<Events<Self::Object>> {
        Ok(self.api.watch_metadata(&parameters, from).await?.boxed())
    }
}

/// Follows until dropped.
pub async fn follow<S: Source, T: Sink<S::Object>>(source: &S, sink: &T) {
    let name = source.name();
    let mut wait = FIRST_WAIT;
    let mut at: Option<String> = None;
    // Whether the last watch had to give up, and none has lasted since.
    let mut is_relist = false;
    loop {
        let (is_watch, begun) = (at.is_some(), Instant::now());
        let outcome = match at.take() {
            None => list(source, sink).await,
            Some(from) => watch(source, sink, from).await,
        };
        let lasted = begun.elapsed();
        // A list does not show that it can be gone on from: where the last could not, another one soon is a lot of work.
        let has_gone_well = match is_watch {
            true => lasted > wait,
            false => outcome.is_ok() && !is_relist,
        };
        if has_gone_well {
            (wait, is_relist) = (FIRST_WAIT, false);
        }
        at = match outcome {
            Ok(reached) if !is_watch || lasted > SHORTEST_WATCH => {
                at = Some(reached);
                continue;
            }
            Ok(reached) => Some(reached),
            Err((why, resumed)) => {
                sink.interrupted(&why);
                tell(&name, &why, wait);
                let resumed = resumed.filter(|_| !matches!(why, Interruption::Expired));
                is_relist |= is_watch && resumed.is_none();
                resumed
            }
        };
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn tell(name: &str, why: &Interruption, wait: Duration) {
    match why {
        Interruption::Expired => tracing::debug!(name, "listing anew in {wait:?}"),
        Interruption::Absent(_) => {
            tracing::debug!(name, %why, "following changes; trying again in {wait:?}");
        }
        _ => {
            tracing::warn!(name, %why, "following changes was interrupted; trying again in {wait:?}");
        }
    }
}

/// The revision reached, or the failure and, when it can be resumed, from where.
type Reached = Result<String, (Interruption, Option<String>)>;

async fn list<S: Source, T: Sink<S::Object>>(source: &S, sink: &T) -> Reached {
    let mut parameters = ListParams::default().limit(PAGE);
    let mut listed = T::Listed::default();
    loop {
        let page = source.list(parameters.clone()).await;
        let page = page.map_err(|error| (interruption(error), None))?;
        sink.page(&mut listed, page.items);
        let version = page.metadata.resource_version.unwrap_or_default();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => {
                sink.listed(listed, version.parse().unwrap_or(0));
                return Ok(version);
            }
        }
    }
}

async fn watch<S: Source, T: Sink<S::Object>>(source: &S, sink: &T, from: String) -> Reached {
    let parameters = WatchParams::default().timeout(WATCH_SECONDS);
    let mut at = from;
    let mut events = match source.watch(parameters, &at).await {
        Ok(events) => events,
        Err(error) => return Err((interruption(error), Some(at))),
    };
    loop {
        match events.try_next().await {
            Ok(None) => return Ok(at),
            Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                note(&mut at, S::meta(&object));
                sink.changed(object);
            }
            Ok(Some(WatchEvent::Deleted(object))) => {
                note(&mut at, S::meta(&object));
                sink.deleted(object);
            }
            Ok(Some(WatchEvent::Bookmark(bookmark))) => {
                at = bookmark.metadata.resource_version;
                sink.reached(at.parse().unwrap_or(0));
            }
            Ok(Some(WatchEvent::Error(status))) if status.code == 410 => {
                return Err((Interruption::Expired, None));
            }
            Ok(Some(WatchEvent::Error(status))) => {
                return Err((Interruption::Refused(status.message.clone()), None));
            }
            Err(error) => return Err((interruption(error), Some(at))),
        }
    }
}

fn note(at: &mut String, meta: &ObjectMeta) {
    if revision(meta) > 0
        && let Some(version) = &meta.resource_version
    {
        at.clone_from(version);
    }
}

fn interruption(error: kube::Error) -> Interruption {
    let code = match &error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    };
    match code {
        410 => Interruption::Expired,
        404 | 405 => Interruption::Absent(error),
        _ => Interruption::Client(error),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;

    use super::*;
    use crate::cache::Cache;

    /// How often a server is asked for lists and watches in ten seconds that ends watches at once with this code and body.
    async fn lists_and_watches(code: u16, body: &'static str) -> (usize, usize) {
        let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let counter = counts.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let is_watch = query.contains("watch=true");
            let count = &counter[usize::from(is_watch)];
            count.fetch_add(1, Ordering::Relaxed);
            let (code, body) = match is_watch {
                true => (code, body),
                false => (
                    200,
                    r#"{"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}, "items": []}"#,
                ),
            };
            let mut answer = http::Response::new(Body::from(body.as_bytes().to_vec()));
            *answer.status_mut() = http::StatusCode::from_u16(code).expect("a code");
            async move { Ok::<_, Infallible>(answer) }
        });
        let source = Whole::<ConfigMap>::new(kube::Client::new(service, "ns"), None);
        let cache = Cache::<ConfigMap>::new(Vec::new());
        let following = follow(&source, &cache);
        let ended = tokio::time::timeout(Duration::from_secs(10), following).await;
        ended.expect_err("it goes on");
        let [lists, watches] = &*counts;
        (
            lists.load(Ordering::Relaxed),
            watches.load(Ordering::Relaxed),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_watched_is_not_asked_for_again_and_again() {
        let expired = r#"{"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": "too old", "reason": "Expired", "code": 410}"#;
        let (lists, _) = lists_and_watches(410, expired).await;
        assert!((4..20).contains(&lists), "{lists} lists");
        let (lists, watches) = lists_and_watches(200, "").await;
        assert_eq!(lists, 1);
        assert!((4..20).contains(&watches), "{watches} watches");
    }
}
