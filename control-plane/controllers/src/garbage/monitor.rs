//! Follows the metadata of all objects of one kind into the graph.

use std::collections::HashSet;
use std::sync::Arc;

use gantry_informer::reflector::{self, Interruption, Metadata, Sink};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use tokio::sync::watch;

use super::Collector;
use super::graph::{Node, Uid};
use crate::resources::Resource;

/// Follows until cancelled; `listed` becomes true once all objects of the kind are in the graph.
pub(crate) async fn follow(
    collector: Arc<Collector>,
    resource: Arc<Resource>,
    listed: watch::Sender<bool>,
) {
    let api = resource.objects(&collector.context.client, "");
    let source = Metadata::new(api, resource.qualified());
    let monitor = Monitor {
        collector,
        resource,
        listed,
    };
    reflector::follow(&source, &monitor).await;
}

struct Monitor {
    collector: Arc<Collector>,
    resource: Arc<Resource>,
    listed: watch::Sender<bool>,
}

impl Monitor {
    fn put(&self, meta: &ObjectMeta) {
        let node = Node::new(self.resource.clone(), meta);
        self.collector.put(uid(meta), node);
    }
}

fn uid(meta: &ObjectMeta) -> Uid {
    meta.uid.as_deref().unwrap_or_default().into()
}

impl Sink<PartialObjectMeta<DynamicObject>> for Monitor {
    type Listed = HashSet<Uid>;

    fn page(&self, listed: &mut HashSet<Uid>, objects: Vec<PartialObjectMeta<DynamicObject>>) {
        for object in objects {
            self.put(&object.metadata);
            listed.insert(uid(&object.metadata));
        }
    }

    fn listed(&self, listed: HashSet<Uid>, _at: u64) {
        self.collector.forget_missing(&self.resource, &listed);
        self.listed.send_replace(true);
    }

    fn changed(&self, object: PartialObjectMeta<DynamicObject>) {
        self.put(&object.metadata);
    }

    fn deleted(&self, object: PartialObjectMeta<DynamicObject>) {
        self.collector.remove(&uid(&object.metadata));
    }

    fn interrupted(&self, why: &Interruption) {
        if matches!(why, Interruption::Absent(_)) {
            // The kind is gone, or cannot be followed after all: it holds nobody up.
            self.listed.send_replace(true);
        }
    }
}
