//! ResourceQuotas: what is used of each is counted from what there is. The API server charges a quota with every object that
//! comes; here it gets its first count, what objects gave back that are gone or ask for less, and whatever else was missed.
//!
//! All quotas of a namespace are counted at once, from lists that are asked for after the quotas, and are written at the
//! revision that they had then: whatever is charged in between makes the write fail, and the count begin anew. So a count never
//! undoes a charge. Under so many charges that none ever gets through, quotas fill up; then nothing is charged any more.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::paths::segment;
use gantry_api::quota::{Counted, Item, parsed};
use gantry_informer::{Informer, Informers, Key, Next, Object, Queue, is_conflict, runner};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::plan::{Count, Part, gives_back, is_about};
use crate::context::Context;
use crate::error::{Doing, Result, code};
use crate::listing::each_page;
use crate::resources::{Resource, deletable};

/// Everything is counted anew this often, whatever was missed.
const RESYNC: Duration = Duration::from_secs(300);
/// How soon to look again for a kind that a quota names and nobody serves.
const REDISCOVER: Duration = Duration::from_secs(30);
/// How soon to count anew what was charged meanwhile, at the earliest.
const AGAIN: Duration = Duration::from_millis(10);
/// What counting may take of the time, as one in so many: in a namespace whose objects go one by one each gives reason to.
const SHARE: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

struct Counter {
    context: Arc<Context>,
    quotas: Informer<ResourceQuota>,
    queue: Arc<Queue<Arc<str>>>,
    /// Until when the quotas of a namespace are not counted again.
    pauses: Mutex<HashMap<Arc<str>, Instant>>,
    /// What the API server serves, and when it was asked.
    served: Mutex<Option<(Instant, Vec<Arc<Resource>>)>>,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers) {
    let stop = context.stop.clone();
    let counter = Arc::new(Counter {
        quotas: informers.of(),
        queue: Arc::default(),
        pauses: Mutex::default(),
        served: Mutex::default(),
        context,
    });
    counter.follow(informers);
    if stop
        .run_until_cancelled(counter.quotas.synced())
        .await
        .is_none()
    {
        return;
    }
    let queue = counter.queue.clone();
    runner::run("resource-quota", queue, 4, stop, move |namespace| {
        let counter = counter.clone();
        async move { counter.reconcile(&namespace).await }
    })
    .await;
}

/// Whether what is kept of a quota's limits is what it asks for.
fn is_settled(quota: &ResourceQuota) -> bool {
    let wanted = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let kept = quota
        .status
        .as_ref()
        .and_then(|status| status.hard.as_ref());
    parsed(wanted) == parsed(kept)
}

impl Counter {
    fn follow(self: &Arc<Self>, informers: &Informers) {
        let counter = self.clone();
        self.quotas.subscribe(Box::new(move |change| {
            let Some(new) = change.new else {
                return;
            };
            // What is used of it changes with every object.
            let same = change
                .old
                .is_some_and(|old| old.metadata.uid == new.metadata.uid && old.spec == new.spec);
            if !same || !is_settled(new) {
                counter.queue.add(Key::of(&new.metadata).namespace);
            }
        }));
        // It is the context's, which this has.
        let counter = Arc::downgrade(self);
        self.context
            .departures
            .listen(Box::new(move |resource, namespace| {
                let Some(counter) = counter.upgrade() else {
                    return;
                };
                let kind = Counted {
                    group: &resource.api.group,
                    plural: &resource.api.plural,
                };
                let quotas = counter.quotas.in_namespace(namespace);
                if quotas.iter().any(|quota| is_about(quota, kind)) {
                    counter.queue.add(namespace.into());
                }
            }));
        self.follow_changes(&self.context.pods, |pod| Item::Pod(pod));
        self.follow_changes(&self.context.services, |service| Item::Service(service));
        let claims: Informer<PersistentVolumeClaim> = informers.of();
        self.follow_changes(&claims, |claim| Item::Claim(claim));
    }

    /// Has the quotas of an object's namespace counted when it counts for less than before.
    fn follow_changes<K: Object>(
        self: &Arc<Self>,
        objects: &Informer<K>,
        item: for<'a> fn(&'a K) -> Item<'a>,
    ) {
        let counter = self.clone();
        objects.subscribe(Box::new(move |change| {
            let (Some(old), Some(new)) = (change.old, change.new) else {
                return;
            };
            let namespace = Key::of(new.meta()).namespace;
            let quotas = counter.quotas.in_namespace(&namespace);
            if quotas.is_empty() {
                return;
            }
            let now = counter.now();
            let (old, new) = (item(old), item(new));
            if quotas
                .iter()
                .any(|quota| gives_back(quota, &old, &new, now))
            {
                counter.queue.add(namespace);
            }
        }));
    }

    fn now(&self) -> i64 {
        let now = self.context.clock.now().as_nanosecond();
        i64::try_from(now).unwrap_or(i64::MAX)
    }

    async fn reconcile(&self, namespace: &Arc<str>) -> Result<Next> {
        let begun = Instant::now();
        let pause = self.pauses.lock().get(namespace).copied();
        if let Some(pause) = pause.filter(|pause| *pause > begun) {
            return Ok(Next::After(pause - begun));
        }
        let next = self.count(namespace).await?;
        let mut pauses = self.pauses.lock();
        match next {
            Next::Changed => pauses.remove(namespace),
            Next::After(_) => {
                let pause = begun.elapsed().saturating_mul(SHARE).min(LONGEST_PAUSE);
                pauses.insert(namespace.clone(), Instant::now() + pause)
            }
        };
        Ok(next)
    }

    /// Counts what is used of the quotas of a namespace, and writes what is not as it was.
    async fn count(&self, namespace: &str) -> Result<Next> {
        let key = Key::new("", namespace);
        let client = &self.context.client;
        let api: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
        let mut quotas = Vec::new();
        let source = &api;
        let listed = each_page(
            move |parameters| async move { source.list(&parameters).await },
            |page| quotas.extend(page),
        );
        listed.await.doing("listing the quotas of", &key)?;
        if quotas.is_empty() {
            return Ok(Next::Changed);
        }
        let mut count = Count::of(quotas, self.now());
        let mut next = RESYNC;
        for part in count.parts() {
            if !self.count_part(&mut count, &part, namespace).await? {
                next = REDISCOVER;
            }
        }
        if let Some(until) = count.until() {
            next = next.min(until.max(Duration::from_secs(1)));
        }
        for quota in count.changed() {
            let key = Key::of(&quota.metadata);
            let parameters = PostParams::default();
            let name = segment(&key.name);
            match api.replace_status(&name, &parameters, &quota).await {
                Ok(written) => self.quotas.observe(written),
                Err(error) if code(&error) == Some(404) => {}
                // Something was charged since: there is no trouble, and more of that may come.
                Err(error) if is_conflict(&error) => next = AGAIN,
                Err(error) => return Err(error).doing("writing what is used of quota", &key),
            }
        }
        Ok(Next::After(next))
    }

    /// Counts the objects of a kind; whether it is known.
    async fn count_part(&self, count: &mut Count, part: &Part, namespace: &str) -> Result<bool> {
        let (client, key) = (self.context.client.clone(), Key::new("", namespace));
        match part {
            Part::Pods => {
                let api: Api<Pod> = Api::namespaced(client, namespace);
                Self::count_items(count, part, (&api, &key), |pod| Item::Pod(pod)).await?;
            }
            Part::Services => {
                let api: Api<Service> = Api::namespaced(client, namespace);
                Self::count_items(count, part, (&api, &key), |service| Item::Service(service))
                    .await?;
            }
            Part::Claims => {
                let api: Api<PersistentVolumeClaim> = Api::namespaced(client, namespace);
                Self::count_items(count, part, (&api, &key), |claim| Item::Claim(claim)).await?;
            }
            Part::Objects(name) => {
                let Some(resource) = self.served(name).await? else {
                    return Ok(false);
                };
                let api = resource.objects(&client, namespace);
                let mut number = 0;
                let source = &api;
                let listed = each_page(
                    move |parameters| async move { source.list_metadata(&parameters).await },
                    |page| number += page.len(),
                );
                match listed.await {
                    Err(error) if code(&error) == Some(404) => {
                        *self.served.lock() = None;
                        return Ok(false);
                    }
                    listed => listed.doing("counting objects of", &key)?,
                }
                count.begin(part);
                count.add_objects(Counted::of_qualified(name), number);
            }
        }
        Ok(true)
    }

    async fn count_items<K>(
        count: &mut Count,
        part: &Part,
        (api, namespace): (&Api<K>, &Key),
        item: for<'a> fn(&'a K) -> Item<'a>,
    ) -> Result<()>
    where
        K: Object,
    {
        count.begin(part);
        let listed = each_page(
            move |parameters| async move { api.list(&parameters).await },
            |page| page.iter().for_each(|object| count.add(&item(object))),
        );
        listed.await.doing("counting objects of", namespace)
    }

    /// The kind of that name, as the API server serves it. It is asked again for what it did not serve a while ago.
    async fn served(&self, name: &str) -> Result<Option<Arc<Resource>>> {
        let find = |served: &[Arc<Resource>]| {
            let mut all = served.iter();
            let found = all.find(|kind| kind.namespaced && kind.qualified() == name);
            found.cloned()
        };
        let known = self.served.lock().as_ref().map(|(asked, served)| {
            let is_recent = asked.elapsed() < REDISCOVER;
            (is_recent, find(served))
        });
        match known {
            Some((_, Some(found))) => return Ok(Some(found)),
            Some((true, None)) => return Ok(None),
            _ => {}
        }
        let served = deletable(&self.context.client).await;
        let served = served.doing("looking for the kind", &Key::new("", name))?;
        let found = find(&served);
        *self.served.lock() = Some((Instant::now(), served));
        Ok(found)
    }
}
