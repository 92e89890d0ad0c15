//! What the loop does of an attempt to make room: remembers who is expected where, and has the victims evicted beside it.

use std::sync::Arc;

use gantry_tasks::caught;
use tokio::time::Instant;

use super::{Helps, Scheduling, Update};
use crate::eviction::{Eviction, Evictor};
use crate::pod::PodInfo;
use crate::preemption::Outcome;

impl Scheduling {
    /// Does what is left to do of an attempt to make room.
    pub(super) fn make_room(&mut self, pod: &Arc<PodInfo>, outcome: Outcome) {
        let chosen = match outcome {
            Outcome::Unchanged => return,
            Outcome::Vain => {
                let was_expected = self.nominations.remove(&pod.uid).is_some();
                self.helps = self.helps.max(Helps::when(was_expected, Helps::Everybody));
                return;
            }
            Outcome::Room(chosen) => chosen,
        };
        let displaced = self.nominations.behind(pod.priority, &chosen.node);
        for other in &displaced {
            self.nominations.remove(&other.uid);
            self.queue.wake_one(&other.uid, Instant::now());
        }
        let mut victims = chosen.victims;
        victims.retain(|victim| !victim.deleting && self.nominations.begin_leaving(&victim.uid));
        self.nominations.set(pod.clone(), chosen.node.clone());
        tracing::info!(pod = %pod.key, node = &*chosen.node, victims = victims.len(), "others make room for it");
        self.evict(Eviction {
            pod: pod.clone(),
            node: chosen.node,
            victims,
            displaced,
        });
    }

    fn evict(&self, eviction: Eviction) {
        let evictor = Evictor {
            client: self.client.clone(),
            events: self.recorders.scheduling.clone(),
            clock: self.config.clock.clone(),
            scheduler: self.config.scheduler_name.clone(),
            instance: self.config.instance.clone(),
        };
        let (inbox, stop) = (self.inbox.clone(), self.stop.clone());
        let (pod, victims) = (eviction.pod.clone(), eviction.victims.clone());
        tokio::spawn(async move {
            let evicting = caught(evictor.carry_out(eviction));
            match stop.run_until_cancelled(evicting).await {
                None | Some(Ok(true)) => {}
                Some(Ok(false)) => inbox.put(Update::EvictionFailed(pod, victims)),
                Some(Err(panicked)) => {
                    tracing::error!(pod = %pod.key, %panicked, "making room for a pod broke off; it is tried again");
                    inbox.put(Update::EvictionFailed(pod, victims));
                }
            }
        });
    }
}
