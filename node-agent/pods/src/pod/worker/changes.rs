//! What changes while the pod runs: its own specification, and the objects it refers to.

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::surroundings::{Surroundings, retry_delay};
use super::{Effect, Worker};
use crate::pod::launch::Sandbox;
use crate::pod::record::{Stage, containers};
use crate::pod::setup::{self, NotSetUp};
use crate::traits::Severity;
use crate::volumes;

/// Whether what is in the pod's volumes is what the objects say that it comes from.
///
/// ```text
/// up to date --outdate--> outdated --begin--> refreshing --ended--> up to date
///                             ^                   |
///                             `--(failed, or outdated meanwhile)
/// ```
///
/// One task at a time brings them up to date, however many changes there are: many would keep threads waiting for each
/// other. While it runs nothing else may write to the volumes, or remove them.
#[derive(Default)]
pub(super) struct Contents {
    outdated: bool,
    refreshing: bool,
    /// In a row.
    failures: u32,
    /// Not brought up to date before, unless something changes.
    retry_at: Option<Instant>,
}

impl Contents {
    /// Something that the volumes come from may have changed.
    pub(super) fn outdate(&mut self) {
        (self.outdated, self.retry_at) = (true, None);
    }

    /// The volumes are about to be written by somebody else, from what the objects say from now on.
    pub(super) fn read_anew(&mut self) {
        *self = Self::default();
    }

    /// Whether a refresh is due; then it is taken as begun.
    fn begin(&mut self, now: Instant) -> bool {
        let due = self.outdated && !self.refreshing && self.retry_at.is_none_or(|at| at <= now);
        if due {
            // What changes from now on may be too late for this one.
            (self.outdated, self.refreshing, self.retry_at) = (false, true, None);
        }
        due
    }

    fn ended(&mut self, succeeded: bool, now: Instant) {
        self.refreshing = false;
        if succeeded {
            self.failures = 0;
            return;
        }
        if !self.outdated {
            self.retry_at = Some(now + retry_delay(self.failures));
        }
        self.outdated = true;
        self.failures = self.failures.saturating_add(1);
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.outdated
    }

    pub(super) fn is_refreshing(&self) -> bool {
        self.refreshing
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

impl Worker {
    pub(super) fn references_changed(&mut self) {
        for (record, control) in self.records.iter().zip(&mut self.controls) {
            if matches!(&record.stage, Stage::Waiting { reason, .. } if reason == "CreateContainerConfigError")
            {
                control.retry_at = None;
            }
        }
        if volumes::follow_objects(&self.pod) {
            self.contents.outdate();
        }
        if let Surroundings::Missing { retry_at } = &mut self.surroundings {
            *retry_at = Instant::now();
        }
    }

    /// Begins to bring the volumes up to date, if that is due. A pod that is about to end keeps what it has.
    pub(super) fn refresh(&mut self) {
        let Surroundings::Ready(Sandbox { pod_ips, .. }) = &self.surroundings else {
            return;
        };
        let now = Instant::now();
        let due = self.token_due_at().is_some_and(|at| at <= now);
        if due && !self.contents.is_refreshing() {
            self.contents.outdate();
        }
        if !self.contents.begin(now) {
            return;
        }
        let (node, pod, uid, pod_ips) = (
            self.node.clone(),
            self.pod.clone(),
            self.uid.clone(),
            pod_ips.clone(),
        );
        self.effects
            .spawn(async move { Effect::Refreshed(setup::refresh(node, pod, uid, pod_ips).await) });
    }

    /// When a token of the pod is to be replaced.
    pub(super) fn token_due_at(&self) -> Option<Instant> {
        self.node.tokens.refresh_at(&self.uid)
    }

    pub(super) fn refreshed(&mut self, result: Result<(), NotSetUp>) {
        self.contents.ended(result.is_ok(), Instant::now());
        if let Err(NotSetUp { reason, message }) = result {
            self.event(None, Severity::Warning, reason, &message);
        }
    }

    /// The pod was updated: labels and annotations may be in volumes, and a container's image may be another.
    pub(super) fn specification_changed(&mut self, before: &Pod) {
        let image_before = |name: &str| {
            let (_, container) =
                containers(before.spec.as_ref()?).find(|(_, container)| container.name == name)?;
            container.image.clone()
        };
        for index in 0..self.records.len() {
            let name = self.records[index].name.clone();
            let now = self.container(index).and_then(|container| container.image);
            if now == image_before(&name) {
                continue;
            }
            match &self.records[index].stage {
                Stage::Running { .. } => {
                    let message = format!("Container {name} definition changed, will be restarted");
                    self.records[index].changed = true;
                    self.stop_container(index, self.grace(), &message);
                }
                Stage::Waiting { .. } => self.controls[index].retry_at = None,
                _ => {}
            }
        }
        let shown = |pod: &Pod| {
            (
                pod.metadata.labels.clone(),
                pod.metadata.annotations.clone(),
            )
        };
        if shown(before) != shown(&self.pod) && self.has_downward_volumes() {
            self.contents.outdate();
        }
    }

    pub(super) fn has_downward_volumes(&self) -> bool {
        let volumes = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        volumes
            .into_iter()
            .any(|volume| volume.downward_api.is_some() || volume.projected.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    use super::*;
    use crate::pod::tests::Bed;
    use crate::pod::worker::Input;
    use crate::traits::fake::{Resource, change};

    fn map(value: &str) -> Value {
        json!({"metadata": {"name": "m", "namespace": "d"}, "data": {"k": value}})
    }

    /// A worker that a test takes step by step, of a pod that shows a key and waits for an image that does not exist.
    struct Steps {
        bed: Bed,
        worker: Worker,
    }

    impl Steps {
        fn new() -> Self {
            let bed = Bed::new();
            let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {
                "containers": [{"name": "c", "image": "none:1"}],
                "volumes": [{"name": "v", "configMap": {"name": "m"}}]}});
            let pod = serde_json::from_value(pod).unwrap();
            let (_, inputs) = mpsc::unbounded_channel();
            let worker = Worker::new(bed.node(), std::sync::Arc::new(pod), None, inputs).unwrap();
            Self { bed, worker }
        }

        fn says(&self, value: &str) {
            let change = change(Resource::ConfigMap, &map(value));
            self.bed.objects.apply(&change).unwrap();
        }

        fn take(&mut self, input: Input) {
            self.worker.take(input);
            self.worker.turn();
        }

        async fn next(&mut self) -> Option<Effect> {
            Some(self.worker.effects.join_next().await?.unwrap())
        }

        fn settle(&mut self, effect: Effect) {
            self.worker.settle(effect);
            self.worker.turn();
        }

        /// Until nothing is under way.
        async fn settle_all(&mut self) {
            while let Some(effect) = self.next().await {
                self.settle(effect);
            }
        }

        async fn ready(value: &str) -> Self {
            let mut steps = Self::new();
            steps.says(value);
            steps.worker.turn();
            steps.settle_all().await;
            assert_eq!(steps.shown(), value);
            steps
        }

        fn volume(&self) -> PathBuf {
            let volumes = self.bed.node().pod_dir("u").join("volumes");
            volumes.join("kubernetes.io~configmap/v")
        }

        fn shown(&self) -> String {
            std::fs::read_to_string(self.volume().join("k")).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_a_pod_is_made_is_shown() {
        let mut steps = Steps::new();
        steps.says("1");
        steps.worker.turn();
        let made = steps.next().await.unwrap();
        assert_eq!(steps.shown(), "1");
        steps.says("2");
        steps.take(Input::References);
        steps.settle(made);
        steps.settle_all().await;
        assert_eq!(steps.shown(), "2");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_a_pod_is_made_in_vain_is_not_waited_for() {
        let mut steps = Steps::new();
        steps.worker.turn();
        let failed = steps.next().await.unwrap();
        assert!(matches!(failed, Effect::SetUp(Err(_))));
        steps.says("1");
        steps.take(Input::References);
        steps.settle(failed);
        assert!(matches!(steps.worker.surroundings, Surroundings::Making));
        steps.settle_all().await;
        assert_eq!(steps.shown(), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn one_refresh_at_a_time_ends_with_the_latest() {
        let mut steps = Steps::ready("1").await;
        steps.says("2");
        steps.take(Input::References);
        assert_eq!(steps.worker.effects.len(), 1);
        steps.says("3");
        for _ in 0..100 {
            steps.take(Input::References);
        }
        assert_eq!(steps.worker.effects.len(), 1);
        let first = steps.next().await.unwrap();
        steps.settle(first);
        assert_eq!(steps.worker.effects.len(), 1, "for all that came meanwhile");
        let second = steps.next().await.unwrap();
        steps.settle(second);
        assert_eq!(steps.worker.effects.len(), 0);
        assert_eq!(steps.shown(), "3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_that_failed_is_tried_again() {
        let mut steps = Steps::ready("1").await;
        let mut gone = change(Resource::ConfigMap, &map("1"));
        gone.deleted = true;
        steps.bed.objects.apply(&gone).unwrap();
        for _ in 0..8 {
            steps.take(Input::References);
            steps.settle_all().await;
        }
        assert!(steps.worker.contents.is_outdated());
        assert_eq!(steps.shown(), "1", "containers keep what they have");
        steps.says("2");
        // Nobody tells the worker.
        let wake = steps.worker.next_wake();
        assert!(wake > Instant::now() && wake <= Instant::now() + Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(60)).await;
        steps.worker.turn();
        steps.settle_all().await;
        assert_eq!(steps.shown(), "2");
        assert!(!steps.worker.contents.is_outdated());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_removed_or_made_again_while_it_is_written() {
        let mut steps = Steps::ready("1").await;
        steps.says("2");
        steps.take(Input::References);
        assert!(steps.worker.contents.is_refreshing());
        steps.take(Input::SandboxLost);
        let missing =
            |steps: &Steps| matches!(steps.worker.surroundings, Surroundings::Missing { .. });
        assert!(missing(&steps));
        // Also the image would be tried again by now.
        tokio::time::advance(Duration::from_secs(600)).await;
        steps.worker.turn();
        let wake = steps.worker.next_wake();
        assert!(wake > Instant::now(), "it does not spin");
        steps.take(Input::Gone);
        assert!(missing(&steps) && steps.worker.effects.len() == 1);
        steps.settle_all().await;
        assert!(steps.worker.finished && !steps.volume().exists());
    }
}
