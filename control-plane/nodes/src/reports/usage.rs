//! What a node says that it and its pods use: handed on as far as it is about the node's own pods. A new figure comes each
//! second of each pod, so a pod is looked up in full only once on a link: what it was created at says that it is the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use gantry_rpc::node::{PodUsage, Usage};
use gantry_store::Revision;
use gantry_usage::{PodName, PodSample, Sample, ServiceName};

use super::{LinkReports, TURN};
use crate::said::{self, PodRef, Refused};

/// Pods of a node by uid, each with the revision at which it was created.
pub(super) type Known = HashMap<String, (Arc<PodName>, Revision)>;

impl LinkReports {
    /// Takes figures, unless there are more than there can be news of; waits for nothing, but lets others have their turn.
    pub(super) async fn take_usage(&self, said: Usage) -> Result<(), Refused> {
        if !self.allowances.usages.lock().take(Instant::now()) {
            tracing::debug!(node = %self.node, "too many figures of one node: some were dropped");
            return Ok(());
        }
        let node = said::usage::node(&said)?;
        let held = said::usage::held(said.held).unwrap_or_else(|refused| {
            self.note(Err(refused));
            HashMap::new()
        });
        let before = std::mem::take(&mut *self.known_pods.lock());
        let mut known = Known::new();
        let mut pods = Vec::with_capacity(said.pods.len());
        for (at, pod) in said.pods.into_iter().enumerate() {
            match self.own_figures(pod, &before, &mut known) {
                Ok(own) => pods.extend(own),
                Err(refused) => self.note(Err(refused)),
            }
            if (at + 1) % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        *self.known_pods.lock() = known;
        // What another link of the node has said since is newer.
        if self.is_current() {
            let sample = Sample {
                clock: said.clock,
                node,
                pods,
                held: self.of_services(held),
            };
            let (now, clock) = (Instant::now(), &self.shared.clock);
            self.shared
                .figures
                .take(self.node.as_str(), sample, now, clock.now());
        }
        Ok(())
    }

    /// What is held to Services that there are.
    fn of_services(&self, mut held: HashMap<ServiceName, u64>) -> HashMap<ServiceName, u64> {
        held.retain(|service, _| {
            let (namespace, name) = (&service.namespace, &service.name);
            self.shared
                .entry("core/services", namespace, name)
                .is_some()
        });
        held
    }

    /// The figures of a pod, when it is the node's own; nothing of one that is gone.
    fn own_figures(
        &self,
        said: PodUsage,
        before: &Known,
        known: &mut Known,
    ) -> Result<Option<PodSample>, Refused> {
        let pod = said::usage::pod_of(&said)?;
        let Some(name) = self.own_pod_name(&pod, before, known)? else {
            return Ok(None);
        };
        said::usage::pod(said, name).map(Some)
    }

    /// The name of a pod of which something is said, when it is the node's own; none of one that is gone. It is `known` from then
    /// on.
    pub(super) fn own_pod_name(
        &self,
        pod: &PodRef,
        before: &Known,
        known: &mut Known,
    ) -> Result<Option<Arc<PodName>>, Refused> {
        if known.contains_key(pod.uid()) {
            return Err(Refused::NotItsOwn(format!(
                "the pod {}/{} twice in one message",
                pod.namespace(),
                pod.name()
            )));
        }
        let stored = self.shared.entry("core/pods", pod.namespace(), pod.name());
        let Some(stored) = stored else {
            return Ok(None);
        };
        let created = stored.create_revision;
        let same = before.get(pod.uid()).filter(|(name, at)| {
            *at == created && name.namespace == pod.namespace() && name.name == pod.name()
        });
        let name = match same {
            Some((name, _)) => name.clone(),
            None => match self.must_own(pod)? {
                true => Arc::new(PodName {
                    namespace: pod.namespace().to_owned(),
                    name: pod.name().to_owned(),
                    uid: pod.uid().to_owned(),
                }),
                false => return Ok(None),
            },
        };
        known.insert(name.uid.clone(), (name.clone(), created));
        Ok(Some(name))
    }
}
