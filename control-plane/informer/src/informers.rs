//! The caches of a process: one for each kind that anybody asks for, from the moment it is first asked for, shared by all
//! who do. An object is decoded once and held once.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EphemeralVolumeSource, Pod, Volume};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Handler, IndexFn};
use crate::object::Object;
use crate::reflector::{self, Whole};

/// A kind, and what its objects are chosen by.
type Which = (TypeId, Option<&'static str>);

struct Shared {
    client: kube::Client,
    /// For as long as the caches are filled.
    stop: CancellationToken,
    /// Each is an `Arc<Cache<K>>` of its kind.
    caches: Mutex<HashMap<Which, Box<dyn Any + Send>>>,
}

/// The caches; clones share them.
#[derive(Clone)]
pub struct Informers {
    shared: Arc<Shared>,
    /// For as long as the one who asks wants to hear of changes.
    stop: CancellationToken,
}

impl Informers {
    /// None yet. They are filled with what `client` may see, until stopped.
    pub fn new(client: kube::Client, stop: &CancellationToken) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                stop: stop.clone(),
                caches: Mutex::default(),
            }),
            stop: stop.clone(),
        }
    }

    /// The same caches for a part of the process that ends by itself: then nothing calls it any more.
    #[must_use]
    pub fn until(&self, stop: &CancellationToken) -> Self {
        Self {
            shared: self.shared.clone(),
            stop: stop.clone(),
        }
    }

    /// All objects of a kind.
    pub fn of<K: Object>(&self) -> Informer<K> {
        self.matching(None)
    }

    /// The objects of a kind that match a field selector. They are held beside those of others who ask for all.
    pub fn only<K: Object>(&self, fields: &'static str) -> Informer<K> {
        self.matching(Some(fields))
    }

    fn matching<K: Object>(&self, fields: Option<&'static str>) -> Informer<K> {
        let mut caches = self.shared.caches.lock();
        let which = (TypeId::of::<K>(), fields);
        let known = caches
            .get(&which)
            .and_then(|known| known.downcast_ref::<Arc<Cache<K>>>());
        let cache = match known {
            Some(known) => known.clone(),
            None => {
                let cache = self.shared.start::<K>(fields);
                caches.insert(which, Box::new(cache.clone()));
                cache
            }
        };
        Informer::new(cache, &self.stop)
    }
}

impl Shared {
    fn start<K: Object>(&self, fields: Option<&str>) -> Arc<Cache<K>> {
        let cache = Arc::new(Cache::pruned(Vec::new(), pruning()));
        let source = Arc::new(Whole::<K>::new(self.client.clone(), fields));
        let (filled, stop) = (cache.clone(), self.stop.clone());
        tokio::spawn(async move {
            let feeding = gantry_tasks::supervised("informer", &stop, || {
                let (source, filled) = (source.clone(), filled.clone());
                async move { reflector::follow(&*source, &*filled).await }
            });
            stop.run_until_cancelled(feeding).await;
        });
        cache
    }
}

/// What is left out of the objects of a kind, if anything is.
fn pruning<K: Object>() -> Option<fn(&mut K)> {
    let of_pods: Box<dyn Any> = Box::new(without_what_runs as fn(&mut Pod));
    of_pods
        .downcast::<fn(&mut K)>()
        .ok()
        .map(|pruning| *pruning)
}

/// What a pod's node makes of it is most of a pod, and matters to nobody else.
fn without_what_runs(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else {
        return;
    };
    // Those that name a claim matter to who protects claims.
    let claims = spec.volumes.take().into_iter().flatten();
    let claims = claims.filter_map(|volume| {
        let ephemeral = volume.ephemeral.map(|_| EphemeralVolumeSource::default());
        let named = volume.persistent_volume_claim.is_some() || ephemeral.is_some();
        named.then(|| Volume {
            name: volume.name,
            persistent_volume_claim: volume.persistent_volume_claim,
            ephemeral,
            ..Volume::default()
        })
    });
    spec.volumes = Some(claims.collect::<Vec<_>>()).filter(|claims| !claims.is_empty());
    let containers = spec.containers.iter_mut();
    for container in containers.chain(spec.init_containers.iter_mut().flatten()) {
        container.env = None;
        container.env_from = None;
        container.args = None;
        container.command = None;
        container.volume_mounts = None;
        container.lifecycle = None;
        container.liveness_probe = None;
        container.readiness_probe = None;
        container.startup_probe = None;
    }
}

/// A cache as one of those sees it who share it. Clones see the same.
pub struct Informer<K> {
    cache: Arc<Cache<K>>,
    stop: CancellationToken,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            stop: self.stop.clone(),
        }
    }
}

impl<K: Object> Informer<K> {
    /// For who wants to hear of changes until stopped.
    pub fn new(cache: Arc<Cache<K>>, stop: &CancellationToken) -> Self {
        Self {
            cache,
            stop: stop.clone(),
        }
    }

    /// Finds objects by what `values` derives from them, under the index's name.
    #[must_use]
    pub fn index(self, name: &'static str, values: IndexFn<K>) -> Self {
        self.cache.add_index(name, values);
        self
    }

    /// Calls `handler` for every change from now on until stopped, and once for each object already here.
    pub fn subscribe(&self, handler: Handler<K>) {
        self.cache.subscribe(&self.stop, handler);
    }
}

impl<K> Deref for Informer<K> {
    type Target = Cache<K>;

    fn deref(&self) -> &Cache<K> {
        &self.cache
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;

    use super::*;
    use crate::object::Key;

    /// An API server with one config map, whose watches never tell anything; and how often it was asked for a list.
    fn server() -> (kube::Client, Arc<AtomicUsize>) {
        let lists = Arc::new(AtomicUsize::new(0));
        let counter = lists.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let counter = counter.clone();
            async move {
                let query = request.uri().query().unwrap_or_default();
                if query.contains("watch=true") {
                    std::future::pending::<()>().await;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let list = r#"{"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"},
                    "items": [{"metadata": {"name": "a", "namespace": "ns", "uid": "1", "resourceVersion": "5"}}]}"#;
                let body = Body::from(list.as_bytes().to_vec());
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        (kube::Client::new(service, "ns"), lists)
    }

    #[tokio::test]
    async fn who_asks_for_the_same_gets_the_same() {
        let (client, lists) = server();
        let stop = CancellationToken::new();
        let _ends = stop.clone().drop_guard();
        let informers = Informers::new(client, &stop);
        assert!(informers.shared.caches.lock().is_empty(), "nobody asked");
        let first: Informer<ConfigMap> = informers.of();
        first.synced().await;
        let part = stop.child_token();
        let second: Informer<ConfigMap> = informers
            .until(&part)
            .of::<ConfigMap>()
            .index("name", |map| map.metadata.name.iter().cloned().collect());
        second.synced().await;
        assert_eq!(lists.load(Ordering::Relaxed), 1);
        // An index that comes late finds what was there before.
        assert_eq!(second.count("name", "a"), 1);
        let (one, other) = (
            first.get(&Key::new("ns", "a")),
            second.get(&Key::new("ns", "a")),
        );
        assert!(Arc::ptr_eq(&one.expect("there"), &other.expect("there")));
        let chosen: Informer<ConfigMap> = informers.only("metadata.name=a");
        chosen.synced().await;
        assert_eq!(lists.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_part_that_has_ended_hears_of_nothing_any_more() {
        let (client, _) = server();
        let stop = CancellationToken::new();
        let _ends = stop.clone().drop_guard();
        let informers = Informers::new(client, &stop);
        let part = stop.child_token();
        let heard = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
        for (token, heard) in [&stop, &part].into_iter().zip(&heard) {
            let counter = heard.clone();
            let informer: Informer<ConfigMap> = informers.until(token).of();
            informer.subscribe(Box::new(move |_| {
                counter.fetch_add(1, Ordering::Relaxed);
            }));
            informer.synced().await;
        }
        part.cancel();
        let informer: Informer<ConfigMap> = informers.of();
        let mut changed = (*informer.list()[0]).clone();
        changed.metadata.resource_version = Some("9".to_owned());
        informer.observe(changed);
        let heard = heard.map(|heard| heard.load(Ordering::Relaxed));
        assert_eq!(heard, [2, 1]);
    }

    #[test]
    fn of_pods_what_only_their_nodes_need_is_left_out() {
        assert!(pruning::<ConfigMap>().is_none());
        let pruning = pruning::<Pod>().expect("pods are pruned");
        let mut pod: Pod = serde_json::from_str(
            r#"{"metadata": {"name": "p", "annotations": {"a": "b"}}, "spec": {"volumes": [{"name": "v"}],
                "containers": [{"name": "c", "args": ["x"], "ports": [{"containerPort": 80}]}]}}"#,
        )
        .expect("a pod");
        pruning(&mut pod);
        assert!(pod.metadata.annotations.is_some());
        let spec = pod.spec.expect("a spec");
        assert!(spec.volumes.is_none());
        assert!(spec.containers[0].args.is_none());
        assert!(spec.containers[0].ports.is_some());
        let mut pod: Pod = serde_json::from_str(
            r#"{"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [
                {"name": "v", "emptyDir": {}}, {"name": "c", "persistentVolumeClaim": {"claimName": "d"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"volumeMode": "Block"}}}}]}}"#,
        )
        .expect("a pod");
        pruning(&mut pod);
        let volumes = pod.spec.and_then(|spec| spec.volumes).expect("claims");
        let kept = serde_json::to_string(&volumes).expect("JSON");
        let expected = r#"[{"name":"c","persistentVolumeClaim":{"claimName":"d"}},{"ephemeral":{},"name":"e"}]"#;
        assert_eq!(kept, expected);
    }
}
