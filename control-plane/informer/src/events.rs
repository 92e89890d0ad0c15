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
struct Identity([Option<String>; 9]);

impl Identity {
    fn of(event: &Event) -> Self {
        let (about, source) = (&event.involved_object, event.source.as_ref());
        Self([
            about.kind.clone(),
            about.namespace.clone(),
            about.name.clone(),
            about.uid.clone(),
            about.field_path.clone(),
            event.reason.clone(),
            event.message.clone(),
            event.reporting_component.clone(),
            source.and_then(|source| source.host.clone()),
        ])
    }
}

/// Writes events: those of one component, and those that others made.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    style: EventStyle,
    queue: mpsc::Sender<Event>,
}

impl Recorder {
    /// A recorder for the named component; it writes until stopped, or dropped with all its clones.
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
            clock,
            recent: Mutex::new(HashMap::new()),
        });
        let stop = stop.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(write_all(writer, events)).await;
        });
        Self {
            component,
            style,
            queue,
        }
    }

    /// Something that went as it should.
    pub fn normal(&self, about: Reference, reason: &str, message: String) {
        self.tell(about, "Normal", reason, message);
    }

    /// Something that went wrong.
    pub fn warning(&self, about: Reference, reason: &str, message: String) {
        self.tell(about, "Warning", reason, message);
    }

    fn tell(&self, about: Reference, type_: &str, reason: &str, message: String) {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let component = Some(self.component.to_owned());
        let mut event = Event {
            involved_object: ObjectReference {
                api_version: given(about.api_version),
                kind: given(about.kind),
                namespace: given(about.namespace),
                name: given(about.name),
                uid: given(about.uid),
                resource_version: given(about.resource_version),
                field_path: None,
            },
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(type_.to_owned()),
            reporting_component: component.clone(),
            ..Event::default()
        };
        match &self.style {
            EventStyle::Counted => {
                event.source = Some(EventSource {
                    component,
                    host: None,
                });
            }
            EventStyle::Series { action, instance } => {
                event.action = Some((*action).to_owned());
                event.reporting_instance = Some(instance.clone());
            }
        }
        self.record(event);
    }

    /// An event that somebody else made; its name, its count and its times are chosen here.
    pub fn record(&self, event: Event) {
        if let Err(error) = self.queue.try_send(event) {
            tracing::debug!(%error, "an event was dropped");
        }
    }
}

struct Writer {
    client: kube::Client,
    clock: Clock,
    recent: Mutex<HashMap<Identity, (String, i32)>>,
}

async fn write_all(writer: Arc<Writer>, mut events: mpsc::Receiver<Event>) {
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
    async fn write(&self, mut event: Event) -> kube::Result<()> {
        let namespace = event.involved_object.namespace.as_deref();
        let namespace = namespace.filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or("default").to_owned();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = self.clock.now();
        let identity = Identity::of(&event);
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
            let patch = repeated(&event, count, now);
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match patched {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let about = event.involved_object.name.as_deref().unwrap_or("unknown");
        let name = format!("{about}.{:x}", now.as_nanosecond());
        stamp(&mut event, &name, namespace, now);
        self.recent.lock().insert(identity, (name, 1));
        api.create(&PostParams::default(), &event).await.map(drop)
    }
}

/// Whether an event is of the form that has a source, and a count.
fn is_counted(event: &Event) -> bool {
    event.source.is_some()
}

fn repeated(event: &Event, count: i32, now: Timestamp) -> serde_json::Value {
    if is_counted(event) {
        return json!({"count": count, "lastTimestamp": seconds(now)});
    }
    let series = EventSeries {
        count: Some(count),
        last_observed_time: Some(MicroTime(now)),
    };
    json!({ "series": series })
}

fn stamp(event: &mut Event, name: &str, namespace: String, now: Timestamp) {
    event.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace),
        ..ObjectMeta::default()
    };
    if is_counted(event) {
        event.count = Some(1);
        event.first_timestamp = Some(seconds(now));
        event.last_timestamp = Some(seconds(now));
        event.reporting_instance.get_or_insert_default();
    } else {
        event.event_time = Some(MicroTime(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_by_another() -> Event {
        Event {
            involved_object: ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some("p".to_owned()),
                ..ObjectReference::default()
            },
            message: Some("m".to_owned()),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some("n".to_owned()),
            }),
            ..Event::default()
        }
    }

    #[test]
    fn events_are_told_apart_by_what_they_say_of_what_and_by_who_says_it() {
        let first = made_by_another();
        let mut other = first.clone();
        other.count = Some(7);
        other.metadata.name = Some("p.1".to_owned());
        assert!(Identity::of(&first) == Identity::of(&other));
        let changes: [fn(&mut Event); 3] = [
            |event| event.message = Some("another".to_owned()),
            |event| event.involved_object.field_path = Some("c".to_owned()),
            |event| event.source.get_or_insert_default().host = None,
        ];
        for change in changes {
            let mut other = first.clone();
            change(&mut other);
            assert!(Identity::of(&first) != Identity::of(&other));
        }
    }

    #[test]
    fn each_form_has_its_own_times() {
        let now = Timestamp::UNIX_EPOCH;
        let mut counted = made_by_another();
        stamp(&mut counted, "p.0", "ns".to_owned(), now);
        assert_eq!((counted.count, counted.event_time), (Some(1), None));
        assert_eq!(counted.first_timestamp, counted.last_timestamp);
        assert_eq!(counted.reporting_instance.as_deref(), Some(""));
        let mut series = made_by_another();
        series.source = None;
        stamp(&mut series, "p.0", "ns".to_owned(), now);
        assert_eq!((series.count, series.first_timestamp.clone()), (None, None));
        assert!(series.event_time.is_some());
        let again = repeated(&series, 3, now);
        assert_eq!(again["series"]["count"], 3);
    }
}
