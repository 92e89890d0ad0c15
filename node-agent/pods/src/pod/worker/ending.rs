//! Why and how a pod ends: deletion, deadline, or all of its containers through.

use std::time::Duration;

use super::surroundings::Surroundings;
use super::{Effect, Eviction, Worker};
use crate::pod::record::{PodEnd, Record, Role, Stage, now_nanos};
use crate::pod::setup;
use crate::pod::status::EVICTED;
use crate::traits::Severity;

/// Why and by when everything is to stop.
#[derive(Clone, Debug)]
pub(super) struct Stopping {
    pub(super) grace: Duration,
    pub(super) deleted: bool,
    /// The phase it ends in, when that is not what its containers' exit codes say.
    pub(super) end: Option<PodEnd>,
}

impl Worker {
    pub(super) fn check_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let grace = self.grace();
        let shorter = self
            .stopping
            .as_ref()
            .is_none_or(|stopping| !stopping.deleted || grace < stopping.grace);
        if shorter {
            let end = self
                .stopping
                .as_ref()
                .and_then(|stopping| stopping.end.clone());
            self.stop(Stopping {
                grace,
                deleted: true,
                end,
            });
        }
    }

    pub(super) fn deadline(&self) -> Option<i64> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        Some(
            self.started_at
                .saturating_add(seconds.saturating_mul(1_000_000_000)),
        )
    }

    pub(super) fn check_deadline(&mut self) {
        let over = self
            .deadline()
            .is_some_and(|deadline| deadline <= now_nanos());
        if !over || self.stopping.is_some() || self.end.is_some() {
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.event(None, Severity::Normal, "DeadlineExceeded", message);
        let end = PodEnd {
            failed: true,
            reason: Some("DeadlineExceeded".to_owned()),
            message: Some(message.to_owned()),
        };
        let grace = self.grace();
        self.stop(Stopping {
            grace,
            deleted: false,
            end: Some(end),
        });
    }

    /// The pod fails, and its disk is free as soon as its containers have ended.
    pub(super) fn evict(&mut self, eviction: Eviction) {
        let Eviction {
            message,
            grace,
            reclaimed,
        } = eviction;
        if self.end.is_some() {
            // There is nothing left to end.
            reclaimed.cancel();
            return;
        }
        self.evicted.push(reclaimed);
        if self.evicted.len() > 1 {
            return;
        }
        let before = self.stopping.take();
        self.event(None, Severity::Warning, EVICTED, &message);
        let end = PodEnd {
            failed: true,
            reason: Some(EVICTED.to_owned()),
            message: Some(message),
        };
        for control in &mut self.controls {
            if let Some(handle) = control.stopping.take() {
                handle.abort();
            }
        }
        self.stop(Stopping {
            grace,
            deleted: before.is_some_and(|stopping| stopping.deleted),
            end: Some(end),
        });
    }

    /// Gives back what a pod that is over took of the disk.
    pub(super) fn reclaim(&mut self, logs_too: bool) {
        if std::mem::replace(&mut self.reclaiming, true) {
            return;
        }
        let (node, uid, log_dir) = (
            self.node.clone(),
            self.uid.clone(),
            self.node.log_dir(&self.pod),
        );
        self.effects.spawn(async move {
            Effect::Reclaimed(setup::reclaim(node, uid, log_dir, logs_too).await)
        });
    }

    /// Tells who waits for an evicted pod's room.
    pub(super) fn given_back(&mut self) {
        for waiting in self.evicted.drain(..) {
            waiting.cancel();
        }
    }

    pub(super) fn stop(&mut self, stopping: Stopping) {
        let sooner = self
            .stopping
            .as_ref()
            .is_some_and(|before| stopping.grace < before.grace);
        self.cancel.cancel();
        for control in &mut self.controls {
            control.retry_at = None;
            if let Some(handle) = control.stopping.take_if(|_| sooner) {
                handle.abort();
            }
        }
        self.stopping = Some(stopping);
    }

    /// Containers first, in their order; then the surroundings; then, when deleted, the rest.
    pub(super) fn continue_stopping(&mut self) {
        let Some(stopping) = self.stopping.clone() else {
            return;
        };
        if !self.all_stopped(stopping.grace) {
            return;
        }
        if self.end.is_none() {
            let end = stopping
                .end
                .clone()
                .unwrap_or_else(|| self.end_by_exit_codes());
            self.note(|notes| notes.end = Some(end.clone()));
            self.end = Some(end);
        }
        match self.surroundings {
            // Nobody removes what is being written.
            Surroundings::Ready(_) | Surroundings::Missing { .. }
                if self.contents.is_refreshing() => {}
            Surroundings::Ready(_) | Surroundings::Missing { .. } => {
                self.surroundings = Surroundings::Unmaking;
                let (node, uid, keys) = (self.node.clone(), self.uid.clone(), self.rootfs_keys());
                self.effects.spawn(async move {
                    Effect::TornDown(setup::tear_down(node, uid, keys).await)
                });
            }
            Surroundings::Unmade if stopping.deleted && self.reclaiming => {}
            Surroundings::Unmade if stopping.deleted => {
                self.surroundings = Surroundings::Removing;
                // The last status is said while the pod still exists.
                self.report();
                let (node, uid, log_dir) = (
                    self.node.clone(),
                    self.uid.clone(),
                    self.node.log_dir(&self.pod),
                );
                self.effects
                    .spawn(async move { Effect::Removed(setup::remove(node, uid, log_dir).await) });
            }
            // A finished pod waits for its deletion.
            Surroundings::Unmade => self.stopping = None,
            Surroundings::Making | Surroundings::Unmaking | Surroundings::Removing => {}
        }
    }

    pub(super) fn end_by_exit_codes(&self) -> PodEnd {
        let good = |record: &Record| match (&record.stage, &record.last) {
            (Stage::Ended(ended), _) | (_, Some(ended)) => ended.succeeded(),
            _ => false,
        };
        let mains = self
            .records
            .iter()
            .filter(|record| record.role == Role::Main);
        PodEnd {
            failed: !mains.into_iter().all(good),
            reason: None,
            message: None,
        }
    }
}
