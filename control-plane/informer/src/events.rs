//! Records Events: what a controller did and why, counted instead of repeated.
//!
//! Recording never waits and never fails its caller; under a flood the newest are dropped.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSeries, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, seconds};
use crate::error::words;
use crate::object::Object;

const WAITING: usize = 8192;
const WRITING_AT_ONCE: usize = 16;
const REMEMBERED: usize = 4096;

/// The two forms in which Kubernetes' components write events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventStyle {
    /// Controllers: `source`, `count`, `firstTimestamp`.
    Counted,
    /// The scheduler: `eventTime`, `action`, `series`.
    Series {
        /// What was being done.
        action: &'static str,
        /// Which of several processes of the component.
        instance: String,
    },
}

/// The object an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Such as `apps/v1`.
    pub api_version: String,
    /// Such as `Deployment`.
    pub kind: String,
    /// Empty for a cluster-wide object.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: String,
    /// The revision in which it was seen.
    pub resource_version: String,
}

impl Reference {
    /// The reference to an object.
    pub fn to<K: Object>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            api_version: <K as Resource>::api_version(&()).into_owned(),
            kind: <K as Resource>::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// What makes two events the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    name: String,
    component: &'static str,
    reason: &'static str,
    message: String,
}

struct Recorded {
    about: Reference,
    warning: bool,
    reason: &'static str,
    message: String,
}

/// Writes the events of one component.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Recorded>,
}

impl Recorder {
    /// A recorder for the named component; it writes until stopped.
    pub fn start(
        client: kube::Client,
        component: &'static str,
        style: EventStyle,
        clock: Clock,
        stop: &CancellationToken,
    ) -> Self {
        let (queue, events) = mpsc::channel(WAITING);
        let writer = Arc::new(Writer {
            client,
            component,
            style,
            clock,
            recent: Mutex::new(HashMap::new()),
        });
        let stop = stop.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(write_all(writer, events)).await;
        });
        Self { queue }
    }

    /// Something that went as it should.
    pub fn normal(&self, about: Reference, reason: &'static str, message: String) {
        self.record(Recorded {
            about,
            warning: false,
            reason,
            message,
        });
    }

    /// Something that went wrong.
    pub fn warning(&self, about: Reference, reason: &'static str, message: String) {
        self.record(Recorded {
            about,
            warning: true,
            reason,
            message,
        });
    }

    fn record(&self, event: Recorded) {
        if let Err(error) = self.queue.try_send(event) {
            tracing::debug!(%error, "an event was dropped");
        }
    }
}

struct Writer {
    client: kube::Client,
    component: &'static str,
    style: EventStyle,
    clock: Clock,
    recent: Mutex<HashMap<Identity, (String, i32)>>,
}

async fn write_all(writer: Arc<Writer>, mut events: mpsc::Receiver<Recorded>) {
    let slots = Arc::new(Semaphore::new(WRITING_AT_ONCE));
    while let Some(event) = events.recv().await {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let writer = writer.clone();
        tokio::spawn(async move {
            if let Err(error) = writer.write(event).await {
                // The namespace may be on its way out: its events go with it.
                tracing::debug!(error = words(&error), "writing an event");
            }
            drop(slot);
        });
    }
}

impl Writer {
    async fn write(&self, event: Recorded) -> kube::Result<()> {
        let namespace = if event.about.namespace.is_empty() {
            "default"
        } else {
            &event.about.namespace
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = self.clock.now();
        let identity = Identity {
            uid: event.about.uid.clone(),
            name: event.about.name.clone(),
            component: self.component,
            reason: event.reason,
            message: event.message.clone(),
        };
        let known = {
            let mut recent = self.recent.lock();
            if recent.len() >= REMEMBERED {
                recent.clear();
            }
            recent.get_mut(&identity).map(|(name, count)| {
                *count += 1;
                (name.clone(), *count)
            })
        };
        if let Some((name, count)) = known {
            let patch = self.repeated(count, now);
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match patched {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let object = self.first(&event, namespace, now);
        let name = object.metadata.name.clone().unwrap_or_default();
        self.recent.lock().insert(identity, (name, 1));
        api.create(&PostParams::default(), &object).await.map(drop)
    }

    fn repeated(&self, count: i32, now: Timestamp) -> serde_json::Value {
        match &self.style {
            EventStyle::Counted => json!({"count": count, "lastTimestamp": seconds(now)}),
            EventStyle::Series { .. } => {
                json!({"series": EventSeries { count: Some(count), last_observed_time: Some(MicroTime(now)) }})
            }
        }
    }

    fn first(&self, event: &Recorded, namespace: &str, now: Timestamp) -> Event {
        let about = &event.about;
        let mut object = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", about.name, now.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(about.api_version.clone()),
                kind: Some(about.kind.clone()),
                namespace: Some(about.namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: Some(about.name.clone()),
                uid: Some(about.uid.clone()),
                resource_version: Some(about.resource_version.clone())
                    .filter(|version| !version.is_empty()),
                field_path: None,
            },
            reason: Some(event.reason.to_owned()),
            message: Some(event.message.clone()),
            type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
            reporting_component: Some(self.component.to_owned()),
            ..Event::default()
        };
        match &self.style {
            EventStyle::Counted => {
                object.source = Some(EventSource {
                    component: Some(self.component.to_owned()),
                    host: None,
                });
                object.count = Some(1);
                object.first_timestamp = Some(seconds(now));
                object.last_timestamp = Some(seconds(now));
                object.reporting_instance = Some(String::new());
            }
            EventStyle::Series { action, instance } => {
                object.event_time = Some(MicroTime(now));
                object.action = Some((*action).to_owned());
                object.reporting_instance = Some(instance.clone());
            }
        }
        object
    }
}
