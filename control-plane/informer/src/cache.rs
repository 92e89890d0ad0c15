//! An indexed copy of all objects of one kind.
//!
//! Two streams feed it: the watch, and the answers to our own writes ([`Cache::observe`]). Because a write is seen
//! here before its caller goes on, a reconciler never works on a state older than what it did last, and needs no
//! bookkeeping of expected events. What makes this safe:
//!
//! - an object replaces only an older revision of itself;
//! - an answer is taken in only when it is newer than the last event of the watch. Otherwise the watch has already
//!   told of that revision, and perhaps of the deletion after it: taking it in would bring back the dead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use gantry_tasks::caught_now;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::object::{Key, Object, revision};
use crate::reflector::Sink;

/// What happened to one object: created (`old` is none), changed, or deleted (`new` is none).
pub struct Change<'a, K> {
    /// The object before.
    pub old: Option<&'a Arc<K>>,
    /// The object now.
    pub new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The object now, or, once deleted, as it was last seen.
    pub fn last(&self) -> Option<&Arc<K>> {
        self.new.or(self.old)
    }
}

/// Called for each change, in order, while the cache is locked for writing: it must be quick (put a key into a
/// queue) and must not write to the same cache.
pub type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// Derives the values under which an object is found.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

struct Index<K> {
    name: &'static str,
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

impl<K> Index<K> {
    fn new(name: &'static str, values: IndexFn<K>) -> Self {
        Self {
            name,
            values,
            keys: HashMap::new(),
        }
    }

    fn add(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            withdraw(&mut self.keys, &value, key);
        }
    }
}

/// Who hears of changes, and until when.
struct Subscriber<K> {
    stop: CancellationToken,
    handler: Handler<K>,
}

struct Contents<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: Vec<Index<K>>,
    owners: HashMap<String, BTreeSet<Key>>,
    /// The last revision the watch told of, whatever the object.
    watched: u64,
}

/// The cache; see the module's documentation.
pub struct Cache<K> {
    contents: RwLock<Contents<K>>,
    prune: Option<fn(&mut K)>,
    subscribers: RwLock<Vec<Subscriber<K>>>,
    /// One change at a time, so that handlers see changes in order while readers stay unblocked by them.
    writing: Mutex<()>,
    synced: watch::Sender<bool>,
}

impl<K: Object> Cache<K> {
    /// An empty cache with these indexes beside those by namespace and owner.
    pub fn new(indexes: Vec<(&'static str, IndexFn<K>)>) -> Self {
        Self::pruned(indexes, None)
    }

    /// A cache that keeps of each object what `prune` leaves.
    pub(crate) fn pruned(
        indexes: Vec<(&'static str, IndexFn<K>)>,
        prune: Option<fn(&mut K)>,
    ) -> Self {
        Self {
            contents: RwLock::new(Contents {
                objects: BTreeMap::new(),
                indexes: indexes
                    .into_iter()
                    .map(|(name, values)| Index::new(name, values))
                    .collect(),
                owners: HashMap::new(),
                watched: 0,
            }),
            prune,
            subscribers: RwLock::new(Vec::new()),
            writing: Mutex::new(()),
            synced: watch::Sender::new(false),
        }
    }

    /// Finds objects by what `values` derives from them, under the index's name, from now on. An index of that name which
    /// is there already stays.
    pub fn add_index(&self, name: &'static str, values: IndexFn<K>) {
        let _writing = self.writing.lock();
        let mut contents = self.contents.write();
        if contents.indexes.iter().any(|index| index.name == name) {
            return;
        }
        let mut index = Index::new(name, values);
        for (key, object) in &contents.objects {
            index.add(key, object);
        }
        contents.indexes.push(index);
    }

    /// Calls `handler` for every change from now on until stopped, and once for each object already here.
    pub fn subscribe(&self, stop: &CancellationToken, handler: Handler<K>) {
        let _writing = self.writing.lock();
        for object in self.list() {
            tell(
                &handler,
                &Change {
                    old: None,
                    new: Some(&object),
                },
            );
        }
        let mut subscribers = self.subscribers.write();
        subscribers.retain(|known| !known.stop.is_cancelled());
        subscribers.push(Subscriber {
            stop: stop.clone(),
            handler,
        });
    }

    /// Returns once the first list has been taken in.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as self: this cannot fail.
        if synced.wait_for(|synced| *synced).await.is_err() {
            tracing::debug!("a cache was dropped while it was awaited");
        }
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.contents.read().objects.get(key).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.contents.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.contents.read().objects.values().cloned().collect()
    }

    /// The objects of a namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let contents = self.contents.read();
        contents
            .objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| &*key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects that name `uid` among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        let contents = self.contents.read();
        resolve(&contents, contents.owners.get(uid))
    }

    /// The objects under `value` of the named index; none when there is no such index.
    pub fn indexed(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let contents = self.contents.read();
        resolve(&contents, contents.keys(index, value))
    }

    /// How many objects there are under `value` of the named index.
    pub fn count(&self, index: &str, value: &str) -> usize {
        let contents = self.contents.read();
        contents.keys(index, value).map_or(0, BTreeSet::len)
    }

    /// Takes in the answer to a write of ours, unless the watch is already past it.
    pub fn observe(&self, object: K) {
        let at = revision(object.meta());
        let _writing = self.writing.lock();
        if at > self.contents.read().watched {
            self.put(object);
        }
    }

    /// Takes in the answer to a deletion of ours: an object that is on its way out. Never adds one.
    pub fn observe_deleting(&self, object: K) {
        let _writing = self.writing.lock();
        let known = self.get(&Key::of(object.meta()));
        if known.is_some_and(|known| known.meta().uid == object.meta().uid) {
            self.put(object);
        }
    }

    /// Takes in that the object with this uid is gone, as an answer of 404 tells.
    pub fn observe_gone(&self, key: &Key, uid: &str) {
        let _writing = self.writing.lock();
        if self
            .get(key)
            .is_some_and(|known| known.meta().uid.as_deref() == Some(uid))
        {
            self.remove(key);
        }
    }

    /// An object that the watch told of.
    pub(crate) fn watch_put(&self, object: K) {
        let _writing = self.writing.lock();
        let at = revision(object.meta());
        self.put(object);
        self.advance(at);
    }

    /// A deletion that the watch told of.
    pub(crate) fn watch_delete(&self, object: &K) {
        let _writing = self.writing.lock();
        let key = Key::of(object.meta());
        // A successor of the same name may already be here, from the answer to its creation.
        if self
            .get(&key)
            .is_some_and(|known| known.meta().uid == object.meta().uid)
        {
            self.remove(&key);
        }
        self.advance(revision(object.meta()));
    }

    /// The complete state at `at`, from a list.
    pub(crate) fn replace(&self, objects: Vec<K>, at: u64) {
        let _writing = self.writing.lock();
        let mut gone: BTreeSet<Key> = self.contents.read().objects.keys().cloned().collect();
        for object in objects {
            gone.remove(&Key::of(object.meta()));
            self.put(object);
        }
        for key in gone {
            // What we wrote after the list was taken stays: the watch tells of it next.
            if self
                .get(&key)
                .is_some_and(|known| revision(known.meta()) <= at)
            {
                self.remove(&key);
            }
        }
        self.advance(at);
        self.synced.send_replace(true);
    }

    pub(crate) fn advance(&self, at: u64) {
        let mut contents = self.contents.write();
        contents.watched = contents.watched.max(at);
    }

    fn put(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        if let Some(prune) = self.prune {
            prune(&mut object);
        }
        let key = Key::of(object.meta());
        let object = Arc::new(object);
        let old = {
            let mut contents = self.contents.write();
            let old = contents.objects.get(&key).cloned();
            if let Some(old) = &old {
                let same = old.meta().uid == object.meta().uid;
                let newer = revision(object.meta()) > revision(old.meta());
                // An answer to a final deletion may carry the revision it found.
                let dying = old.meta().deletion_timestamp.is_none()
                    && object.meta().deletion_timestamp.is_some()
                    && revision(object.meta()) == revision(old.meta());
                if !(newer || same && dying) {
                    return;
                }
                contents.unindex(&key, old);
            }
            contents.index(&key, &object);
            contents.objects.insert(key, object.clone());
            old
        };
        self.notify(&Change {
            old: old.as_ref(),
            new: Some(&object),
        });
    }

    fn remove(&self, key: &Key) {
        let old = {
            let mut contents = self.contents.write();
            let Some(old) = contents.objects.remove(key) else {
                return;
            };
            contents.unindex(key, &old);
            old
        };
        self.notify(&Change {
            old: Some(&old),
            new: None,
        });
    }

    fn notify(&self, change: &Change<'_, K>) {
        for subscriber in self.subscribers.read().iter() {
            if !subscriber.stop.is_cancelled() {
                tell(&subscriber.handler, change);
            }
        }
    }
}

impl<K> Contents<K> {
    fn keys(&self, index: &str, value: &str) -> Option<&BTreeSet<Key>> {
        let index = self.indexes.iter().find(|known| known.name == index)?;
        index.keys.get(value)
    }
}

impl<K: Object> Contents<K> {
    fn index(&mut self, key: &Key, object: &K) {
        for index in &mut self.indexes {
            index.add(key, object);
        }
        for owner in object.meta().owner_references.iter().flatten() {
            let owned = self.owners.entry(owner.uid.clone()).or_default();
            owned.insert(key.clone());
        }
    }

    fn unindex(&mut self, key: &Key, object: &K) {
        for index in &mut self.indexes {
            index.remove(key, object);
        }
        for owner in object.meta().owner_references.iter().flatten() {
            withdraw(&mut self.owners, &owner.uid, key);
        }
    }
}

impl<K: Object> Sink<K> for Cache<K> {
    type Listed = Vec<K>;

    fn page(&self, listed: &mut Vec<K>, objects: Vec<K>) {
        listed.extend(objects);
    }

    fn listed(&self, listed: Vec<K>, at: u64) {
        self.replace(listed, at);
    }

    fn changed(&self, object: K) {
        self.watch_put(object);
    }

    fn deleted(&self, object: K) {
        self.watch_delete(&object);
    }

    fn reached(&self, at: u64) {
        self.advance(at);
    }
}

/// Tells a handler of a change. One that panics over an object misses that change; the cache goes on for everybody.
fn tell<K: Object>(handler: &Handler<K>, change: &Change<'_, K>) {
    if let Err(panicked) = caught_now(|| handler(change)) {
        let key = change.last().map(|object| Key::of(object.meta()));
        tracing::error!(kind = %K::kind(&()), ?key, %panicked, "a change could not be taken in");
    }
}

fn withdraw(index: &mut HashMap<String, BTreeSet<Key>>, value: &str, key: &Key) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
}

fn resolve<K>(contents: &Contents<K>, keys: Option<&BTreeSet<Key>>) -> Vec<Arc<K>> {
    keys.into_iter()
        .flatten()
        .filter_map(|key| contents.objects.get(key).cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

    use super::*;

    fn object(name: &str, uid: &str, revision: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("ns".to_owned()),
                uid: Some(uid.to_owned()),
                resource_version: Some(revision.to_string()),
                owner_references: Some(vec![OwnerReference {
                    uid: format!("owner-of-{uid}"),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn cache() -> Cache<ConfigMap> {
        Cache::new(vec![("uid", |object| {
            object.metadata.uid.iter().cloned().collect()
        })])
    }

    #[test]
    fn an_answer_is_seen_at_once_and_an_older_event_does_not_undo_it() {
        let cache = cache();
        cache.watch_put(object("a", "1", 5));
        cache.observe(object("a", "1", 9));
        cache.watch_put(object("a", "1", 7));
        let known = cache.get(&Key::new("ns", "a")).expect("present");
        assert_eq!(revision(&known.metadata), 9);
    }

    #[test]
    fn an_answer_that_the_watch_is_past_does_not_bring_back_the_dead() {
        let cache = cache();
        cache.watch_put(object("a", "1", 5));
        cache.watch_delete(&object("a", "1", 8));
        cache.observe(object("a", "1", 5));
        assert!(cache.is_empty());
        // Nor does the answer to a deletion.
        cache.observe_deleting(object("a", "1", 9));
        assert!(cache.is_empty());
    }

    #[test]
    fn the_deletion_of_a_predecessor_spares_the_successor() {
        let cache = cache();
        cache.watch_put(object("a", "1", 5));
        cache.observe(object("a", "2", 9));
        cache.watch_delete(&object("a", "1", 8));
        let known = cache.get(&Key::new("ns", "a")).expect("present");
        assert_eq!(known.metadata.uid.as_deref(), Some("2"));
    }

    #[test]
    fn indexes_follow_the_objects() {
        let cache = cache();
        cache.watch_put(object("a", "1", 1));
        cache.watch_put(object("b", "2", 2));
        assert_eq!(cache.owned_by("owner-of-2").len(), 1);
        assert_eq!(cache.indexed("uid", "1").len(), 1);
        assert_eq!((cache.count("uid", "1"), cache.count("uid", "3")), (1, 0));
        assert_eq!(cache.in_namespace("ns").len(), 2);
        assert_eq!(cache.in_namespace("n").len(), 0);
        cache.watch_delete(&object("b", "2", 3));
        assert!(cache.owned_by("owner-of-2").is_empty());
        assert!(cache.indexed("uid", "2").is_empty());
    }

    #[test]
    fn a_list_removes_what_it_lacks_but_not_what_was_written_after_it() {
        let cache = cache();
        cache.watch_put(object("old", "1", 1));
        cache.observe(object("new", "2", 20));
        cache.replace(vec![object("listed", "3", 7)], 10);
        let names: Vec<_> = cache
            .list()
            .iter()
            .filter_map(|object| object.metadata.name.clone())
            .collect();
        assert_eq!(names, ["listed", "new"]);
    }

    #[test]
    fn a_late_subscriber_hears_of_everything() {
        let cache = cache();
        cache.watch_put(object("a", "1", 1));
        let heard = Arc::new(AtomicUsize::new(0));
        let counter = heard.clone();
        let stop = CancellationToken::new();
        cache.subscribe(
            &stop,
            Box::new(move |_| {
                counter.fetch_add(1, Ordering::Relaxed);
            }),
        );
        cache.watch_put(object("b", "2", 2));
        assert_eq!(heard.load(Ordering::Relaxed), 2);
    }
}
