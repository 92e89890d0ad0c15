//! What is known of a rollout: a Deployment, the ReplicaSets of its revisions, and their pods.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use gantry_api::selector::LabelSelector;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{REVISION, without_hash};
use crate::client::Change;
use crate::output::one_line;

/// Objects by uid.
type ByUid<K> = BTreeMap<String, K>;

/// What is known of a rollout.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) deployment: Deployment,
    /// Those with the Deployment's labels, whoever's they are; none until they were listed.
    sets: Option<ByUid<ReplicaSet>>,
    /// Likewise.
    pods: Option<ByUid<Pod>>,
}

/// A revision of a Deployment: its ReplicaSet, and the set's pods.
#[derive(Clone, Debug)]
pub(crate) struct Revision<'a> {
    pub(crate) number: i64,
    /// Whether its template is the one that is wanted.
    pub(crate) is_wanted: bool,
    pub(crate) set: &'a ReplicaSet,
    pub(crate) pods: Vec<&'a Pod>,
}

impl Seen {
    /// A Deployment of which nothing else is known yet.
    pub(crate) fn of(deployment: Value) -> Result<Self> {
        Ok(Self {
            deployment: read(deployment)?,
            ..Self::default()
        })
    }

    /// What selects its ReplicaSets and pods, as queries have it.
    pub(crate) fn selector(&self) -> String {
        let spec = self.deployment.spec.as_ref();
        LabelSelector::from_api(spec.map(|spec| &spec.selector)).to_string()
    }

    /// Takes in what has become of the Deployment; that it is gone is an error.
    pub(crate) fn take_deployment(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Is(object) => self.deployment = read(object)?,
            Change::All(objects) => match objects.into_iter().next() {
                Some(object) => self.deployment = read(object)?,
                None => bail!("object has been deleted"),
            },
            Change::Gone(_) => bail!("object has been deleted"),
        }
        Ok(())
    }

    /// Takes in what has become of ReplicaSets.
    pub(crate) fn take_sets(&mut self, change: Change) -> Result<()> {
        take(&mut self.sets, change)
    }

    /// Takes in what has become of pods.
    pub(crate) fn take_pods(&mut self, change: Change) -> Result<()> {
        take(&mut self.pods, change)
    }

    /// Whether all of it was listed.
    pub(crate) fn is_whole(&self) -> bool {
        self.sets.is_some() && self.pods.is_some()
    }

    pub(crate) fn name(&self) -> &str {
        self.deployment.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pods that are wanted.
    pub(crate) fn wanted(&self) -> i32 {
        let spec = self.deployment.spec.as_ref();
        spec.and_then(|spec| spec.replicas).unwrap_or(1)
    }

    /// Whether every wanted pod is of the wanted template and available, and no other is left.
    pub(crate) fn is_complete(&self) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        let (generation, wanted) = (self.deployment.metadata.generation, self.wanted());
        let [updated, all, available] = [
            status.updated_replicas,
            status.replicas,
            status.available_replicas,
        ]
        .map(|count| count.unwrap_or(0) == wanted);
        generation <= status.observed_generation && updated && all && available
    }

    /// The Deployment's condition of that type.
    pub(crate) fn condition(&self, type_: &str) -> Option<&DeploymentCondition> {
        condition(&self.deployment, type_)
    }

    /// Its revisions, the latest first.
    pub(crate) fn revisions(&self) -> Vec<Revision<'_>> {
        let sets = self.sets.iter().flat_map(BTreeMap::values);
        let sets =
            sets.filter(|set| is_owned(&set.metadata, self.deployment.metadata.uid.as_deref()));
        let wanted = self
            .deployment
            .spec
            .as_ref()
            .map(|spec| bare(&spec.template));
        let mut revisions: Vec<Revision<'_>> = sets
            .map(|set| {
                let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
                let pods = self.pods.iter().flat_map(BTreeMap::values);
                Revision {
                    number: revision_of(&set.metadata),
                    is_wanted: template.map(bare) == wanted,
                    pods: pods
                        .filter(|pod| is_owned(&pod.metadata, set.metadata.uid.as_deref()))
                        .collect(),
                    set,
                }
            })
            .collect();
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
        revisions
    }
}

impl Revision<'_> {
    /// The pods that its set shall have.
    pub(crate) fn wanted(&self) -> i32 {
        let spec = self.set.spec.as_ref();
        spec.and_then(|spec| spec.replicas).unwrap_or(1)
    }

    /// The pods that there are, those that are ready, and those that are available.
    pub(crate) fn counts(&self) -> (i32, i32, i32) {
        self.set.status.as_ref().map_or((0, 0, 0), |status| {
            let (ready, available) = (status.ready_replicas, status.available_replicas);
            (status.replicas, ready.unwrap_or(0), available.unwrap_or(0))
        })
    }

    /// Whether there are pods of it, or shall be.
    pub(crate) fn is_alive(&self) -> bool {
        let (there, _, _) = self.counts();
        self.wanted() > 0 || there > 0
    }

    /// The images of its containers.
    pub(crate) fn images(&self) -> String {
        let template = self
            .set
            .spec
            .as_ref()
            .and_then(|spec| spec.template.as_ref());
        images(template)
    }
}

/// The images of a template's containers.
pub(crate) fn images(template: Option<&PodTemplateSpec>) -> String {
    let spec = template.and_then(|template| template.spec.as_ref());
    let containers = spec.into_iter().flat_map(|spec| &spec.containers);
    let images: Vec<&str> = containers
        .filter_map(|container| container.image.as_deref())
        .collect();
    one_line(&images.join(","))
}

/// A Deployment's condition of that type.
pub(crate) fn condition<'a>(
    deployment: &'a Deployment,
    type_: &str,
) -> Option<&'a DeploymentCondition> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|known| known.type_ == type_)
}

/// The revision that an object is of; 0 where it does not say.
pub(crate) fn revision_of(metadata: &ObjectMeta) -> i64 {
    let annotations = metadata.annotations.as_ref();
    let said = annotations.and_then(|annotations| annotations.get(REVISION));
    said.and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// An object as the API server tells it.
pub(crate) fn read<K: DeserializeOwned>(object: Value) -> Result<K> {
    serde_json::from_value(object).context("reading what the API server answered")
}

fn take<K: DeserializeOwned>(known: &mut Option<ByUid<K>>, change: Change) -> Result<()> {
    let uid = |object: &Value| {
        let uid = object["metadata"]["uid"].as_str();
        uid.unwrap_or_default().to_owned()
    };
    match change {
        Change::All(objects) => {
            let all = objects.into_iter();
            let all = all.map(|object| anyhow::Ok((uid(&object), read(object)?)));
            *known = Some(all.collect::<Result<_>>()?);
        }
        Change::Is(object) => {
            known
                .get_or_insert_default()
                .insert(uid(&object), read(object)?);
        }
        Change::Gone(object) => {
            known.get_or_insert_default().remove(&uid(&object));
        }
    }
    Ok(())
}

fn is_owned(metadata: &ObjectMeta, owner: Option<&str>) -> bool {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.any(|known| known.controller == Some(true) && Some(known.uid.as_str()) == owner)
}

/// A template, to be compared with others.
fn bare(template: &PodTemplateSpec) -> Value {
    without_hash(&json!(template))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::POD_TEMPLATE_HASH;
    use super::*;

    /// A Deployment of three pods, in the middle of going from one revision to the next.
    pub(crate) fn deployment(image: &str) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 2,
                "annotations": {REVISION: "2"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
                "template": template(image, None)},
            "status": {"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3},
        })
    }

    fn template(image: &str, hash: Option<&str>) -> Value {
        let mut labels = json!({"app": "web"});
        if let (Some(labels), Some(hash)) = (labels.as_object_mut(), hash) {
            labels.insert(POD_TEMPLATE_HASH.to_owned(), json!(hash));
        }
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": image}]}})
    }

    /// The set of a revision: how many pods it shall have, has, and has ready; all those are available.
    pub(crate) fn set(number: i64, image: &str, counts: (i32, i32, i32)) -> Value {
        let (wanted, there, ready) = counts;
        let uid = format!("s{number}");
        json!({
            "metadata": {"name": format!("web-{uid}"), "uid": uid, "annotations": {REVISION: number.to_string()},
                "ownerReferences": [owner("Deployment", "web", "d")]},
            "spec": {"replicas": wanted, "selector": {}, "template": template(image, Some(&uid))},
            "status": {"replicas": there, "readyReplicas": ready, "availableReplicas": ready},
        })
    }

    /// A pod of a revision.
    pub(crate) fn pod(number: i64, name: &str, status: Value) -> Value {
        json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [owner("ReplicaSet", &format!("web-s{number}"), &format!("s{number}"))]},
            "status": status,
        })
    }

    fn owner(kind: &str, name: &str, uid: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true})
    }

    /// What is known once these were told.
    pub(crate) fn seen(deployment: Value, sets: Vec<Value>, pods: Vec<Value>) -> Seen {
        let mut seen = Seen::of(deployment).expect("a Deployment");
        seen.take_sets(Change::All(sets)).expect("sets");
        seen.take_pods(Change::All(pods)).expect("pods");
        seen
    }

    #[test]
    fn revisions_have_their_sets_and_pods_and_nobody_elses() {
        let mut stranger = set(9, "other", (1, 1, 1));
        *stranger
            .pointer_mut("/metadata/ownerReferences")
            .expect("owners") = json!([]);
        let mut seen = seen(
            deployment("v2"),
            vec![set(1, "v1", (3, 3, 3)), stranger],
            vec![pod(1, "a", json!({})), pod(9, "x", json!({}))],
        );
        seen.take_sets(Change::Is(set(2, "v2", (1, 1, 0))))
            .expect("a set");
        seen.take_pods(Change::Is(pod(2, "b", json!({}))))
            .expect("a pod");
        let shown = |seen: &Seen| -> Vec<(i64, bool, usize, String)> {
            let revisions = seen.revisions().into_iter();
            let shown = revisions.map(|of| (of.number, of.is_wanted, of.pods.len(), of.images()));
            shown.collect()
        };
        let both = [
            (2, true, 1, "v2".to_owned()),
            (1, false, 1, "v1".to_owned()),
        ];
        assert_eq!(shown(&seen), both);
        assert_eq!(seen.selector(), "app=web");
        seen.take_pods(Change::Gone(pod(1, "a", json!({}))))
            .expect("a pod");
        assert_eq!(shown(&seen)[1].2, 0);
        assert!(
            seen.take_deployment(Change::All(Vec::new())).is_err(),
            "it is gone"
        );
    }

    #[test]
    fn it_is_whole_when_everything_was_listed() {
        let mut seen = Seen::of(deployment("v1")).expect("a Deployment");
        assert!(!seen.is_whole());
        seen.take_pods(Change::All(Vec::new())).expect("pods");
        assert!(!seen.is_whole());
        seen.take_sets(Change::All(Vec::new())).expect("sets");
        assert!(seen.is_whole());
    }
}
