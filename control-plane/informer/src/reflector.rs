//! Feeds a [`Cache`] by list and watch.
//!
//! States: *listing* (take everything, note the revision) → *watching* (take each event, note its revision). A watch
//! that ends is resumed from its last revision; one that is told 410 Gone goes back to listing; an error waits, longer
//! each time, and resumes.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, IndexFn};
use crate::error::words;
use crate::object::{Object, revision};

/// A watch is renewed after this many seconds, so that a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 290;
const PAGE: u32 = 1000;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Describes what to cache; [`Informer::start`] begins.
pub struct Informer<K> {
    api: Api<K>,
    fields: Option<String>,
    indexes: Vec<(&'static str, IndexFn<K>)>,
    prune: Option<fn(&mut K)>,
}

impl<K: Object> Informer<K> {
    /// Caches every object of the kind, in all namespaces.
    pub fn all(client: kube::Client) -> Self {
        Self {
            api: Api::all(client),
            fields: None,
            indexes: Vec::new(),
            prune: None,
        }
    }

    /// Only those that match the field selector.
    #[must_use]
    pub fn fields(mut self, selector: &str) -> Self {
        self.fields = Some(selector.to_owned());
        self
    }

    /// Finds objects by what `values` derives from them, under the index's name.
    #[must_use]
    pub fn index(mut self, name: &'static str, values: IndexFn<K>) -> Self {
        self.indexes.push((name, values));
        self
    }

    /// Lets go of what nobody asks for before an object is kept.
    #[must_use]
    pub fn prune(mut self, prune: fn(&mut K)) -> Self {
        self.prune = Some(prune);
        self
    }

    /// Fills the cache until stopped.
    pub fn start(self, stop: &CancellationToken) -> Arc<Cache<K>> {
        let cache = Arc::new(Cache::pruned(self.indexes, self.prune));
        let (api, fields, filled, stop) = (self.api, self.fields, cache.clone(), stop.clone());
        tokio::spawn(async move {
            let feeding = gantry_tasks::supervised("informer", &stop, || {
                feed(api.clone(), fields.clone(), &filled)
            });
            stop.run_until_cancelled(feeding).await;
        });
        cache
    }
}

/// Why a watch ended other than by its time running out.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the revision is no longer kept")]
    Expired,
    #[error("{}", words(.0))]
    Client(#[source] kube::Error),
    #[error("the watch was refused: {0}")]
    Refused(String),
}

async fn feed<K: Object>(api: Api<K>, fields: Option<String>, cache: &Cache<K>) {
    let kind = K::kind(&()).into_owned();
    let mut wait = FIRST_WAIT;
    let mut at: Option<String> = None;
    loop {
        let outcome = match at.take() {
            None => list(&api, fields.as_deref(), cache).await,
            Some(from) => watch(&api, fields.as_deref(), cache, from).await,
        };
        match outcome {
            Ok(reached) => {
                wait = FIRST_WAIT;
                at = Some(reached);
            }
            Err((Broken::Expired, _)) => tracing::debug!(kind, "listing anew"),
            Err((error, reached)) => {
                tracing::warn!(kind, %error, "following changes was interrupted; trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                at = reached;
            }
        }
    }
}

/// The revision reached, or the failure and, when it can be resumed, from where.
type Reached = Result<String, (Broken, Option<String>)>;

async fn list<K: Object>(api: &Api<K>, fields: Option<&str>, cache: &Cache<K>) -> Reached {
    let mut parameters = ListParams::default().limit(PAGE);
    if let Some(fields) = fields {
        parameters = parameters.fields(fields);
    }
    let mut objects = Vec::new();
    loop {
        let page = api
            .list(&parameters)
            .await
            .map_err(|error| (broken(error), None))?;
        objects.extend(page.items);
        let version = page.metadata.resource_version.unwrap_or_default();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => {
                cache.replace(objects, version.parse().unwrap_or(0));
                return Ok(version);
            }
        }
    }
}

async fn watch<K: Object>(
    api: &Api<K>,
    fields: Option<&str>,
    cache: &Cache<K>,
    from: String,
) -> Reached {
    let mut parameters = WatchParams::default().timeout(WATCH_SECONDS);
    if let Some(fields) = fields {
        parameters = parameters.fields(fields);
    }
    let mut at = from;
    let events = match api.watch(&parameters, &at).await {
        Ok(events) => events,
        Err(error) => return Err((broken(error), Some(at))),
    };
    let mut events = events.boxed();
    loop {
        match events.try_next().await {
            Ok(None) => return Ok(at),
            Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                note(&mut at, &object);
                cache.watch_put(object);
            }
            Ok(Some(WatchEvent::Deleted(object))) => {
                note(&mut at, &object);
                cache.watch_delete(&object);
            }
            Ok(Some(WatchEvent::Bookmark(bookmark))) => {
                at = bookmark.metadata.resource_version;
                cache.advance(at.parse().unwrap_or(0));
            }
            Ok(Some(WatchEvent::Error(status))) if status.code == 410 => {
                return Err((Broken::Expired, None));
            }
            Ok(Some(WatchEvent::Error(status))) => {
                return Err((Broken::Refused(status.message.clone()), None));
            }
            Err(error) => return Err((broken(error), Some(at))),
        }
    }
}

fn note<K: Object>(at: &mut String, object: &K) {
    if revision(object.meta()) > 0
        && let Some(version) = &object.meta().resource_version
    {
        at.clone_from(version);
    }
}

fn broken(error: kube::Error) -> Broken {
    match error {
        kube::Error::Api(status) if status.code == 410 => Broken::Expired,
        other => Broken::Client(other),
    }
}
