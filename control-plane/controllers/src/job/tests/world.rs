//! A job, its pods and their nodes, and a controller whose passes can break off after any of their writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_api::field::ErrorList;
use gantry_api::kind::Kind;
use gantry_api::kinds::job::JobKind;
use gantry_informer::clock::seconds;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::TRACKING;
use super::super::account::{conclude, note};
use super::super::backoff::Failures;
use super::super::facts::{Facts, is_finished, is_tracked, uid_of};
use super::super::indexes::index_of;
use super::super::plan::{self, Change};
use crate::pods::{is_active, is_terminating, phase};

pub(super) struct World {
    pub(super) job: Job,
    pub(super) pods: Vec<Pod>,
    pub(super) now: Timestamp,
    failures: Option<Failures>,
    made: usize,
    /// By uid, the phases in which pods were given free after they were noted.
    pub(super) settled: BTreeMap<String, String>,
    pub(super) pauses: Vec<u64>,
}

/// The pass broke off.
pub(super) struct BrokenOff;

/// How many writes of a pass come about.
pub(super) struct Writes(usize);

impl Writes {
    pub(super) const ALL: usize = usize::MAX;

    fn next(&mut self) -> Result<(), BrokenOff> {
        self.0 = self.0.checked_sub(1).ok_or(BrokenOff)?;
        Ok(())
    }
}

pub(super) fn job(spec: Value) -> Job {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "j", "namespace": "ns", "uid": "job"},
        "spec": {"selector": {}, "template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]},
        }},
    });
    for (field, value) in spec.as_object().expect("fields of a spec") {
        job["spec"][field] = value.clone();
    }
    let mut job = serde_json::from_value(job).expect("a job");
    JobKind::default(&mut job);
    job
}

impl World {
    pub(super) fn new(spec: Value) -> Self {
        Self {
            job: job(spec),
            pods: Vec::new(),
            now: Timestamp::from_second(1_000_000).expect("in range"),
            failures: None,
            made: 0,
            settled: BTreeMap::new(),
            pauses: Vec::new(),
        }
    }

    pub(super) fn seen(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().cloned().map(Arc::new).collect()
    }

    pub(super) fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    /// The conditions, in their order, with their reasons.
    pub(super) fn conditions(&self) -> Vec<(String, String, String)> {
        let conditions = self.status().conditions.unwrap_or_default().into_iter();
        conditions
            .map(|known| (known.type_, known.status, known.reason.unwrap_or_default()))
            .collect()
    }

    pub(super) fn active(&self) -> usize {
        self.pods.iter().filter(|pod| is_active(pod)).count()
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Pod)) {
        let pod = self.pods.iter_mut().find(|pod| uid_of(pod) == uid);
        if let Some(pod) = pod {
            change(pod);
        }
    }

    fn track(&mut self, uid: &str, tracked: bool) {
        self.change(uid, |pod| {
            let finalizers = pod.metadata.finalizers.get_or_insert_default();
            finalizers.retain(|known| known != TRACKING);
            if tracked {
                finalizers.push(TRACKING.to_owned());
            }
        });
    }

    pub(super) fn delete(&mut self, uid: &str) {
        let now = seconds(self.now);
        self.change(uid, |pod| {
            pod.metadata.deletion_timestamp.get_or_insert(now);
        });
    }

    /// A pod that is not over ends so.
    pub(super) fn end(&mut self, uid: &str, ended: &str, reason: Value) {
        let now = seconds(self.now);
        self.change(uid, |pod| {
            if matches!(phase(pod), "Succeeded" | "Failed") {
                return;
            }
            let mut status = json!({"phase": ended, "conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now},
            ]});
            for (field, value) in reason.as_object().into_iter().flatten() {
                status[field] = value.clone();
            }
            pod.status = serde_json::from_value(status).ok();
        });
    }

    /// Pods that are to go and that nobody holds are gone.
    pub(super) fn vanish(&mut self) {
        self.pods
            .retain(|pod| pod.metadata.deletion_timestamp.is_none() || is_tracked(pod));
    }

    pub(super) fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// The uid of the pod at that place of those that are not over.
    pub(super) fn running(&self, at: usize) -> Option<String> {
        let pods = self
            .pods
            .iter()
            .filter(|pod| is_active(pod) || is_terminating(pod));
        let uids: Vec<_> = pods.map(|pod| uid_of(pod).to_owned()).collect();
        uids.get(at % uids.len().max(1)).cloned()
    }

    fn write(&mut self, status: JobStatus, writes: &mut Writes) -> Result<(), BrokenOff> {
        if self.job.status.as_ref() == Some(&status) {
            return Ok(());
        }
        writes.next()?;
        let mut changed = self.job.clone();
        changed.status = Some(status);
        let mut errors = ErrorList::default();
        JobKind::validate_status_update(&changed, &self.job, &mut errors);
        assert!(
            errors.is_empty(),
            "refused: {:?} {:#?}",
            errors.told(),
            changed.status
        );
        self.job = changed;
        Ok(())
    }

    fn failures(&self) -> Failures {
        let pods = self.seen();
        let facts = Facts::of(&self.job, &pods);
        let [succeeded, failed] = facts.ends(self.failures.is_none());
        self.failures.unwrap_or_default().and(&succeeded, &failed)
    }

    /// One pass of the controller, of whose writes only so many come about. Whether it changed nothing.
    pub(super) fn pass(&mut self, writes: usize) -> bool {
        let before = (self.job.clone(), self.pods.clone());
        if !is_finished(&self.job) && self.reconcile(&mut Writes(writes)).is_err() {
            // Another process goes on, and does not know what this one knew.
            self.failures = None;
        }
        before == (self.job.clone(), self.pods.clone())
    }

    fn reconcile(&mut self, writes: &mut Writes) -> Result<(), BrokenOff> {
        for pod in self.seen() {
            if is_active(&pod) && !is_tracked(&pod) {
                writes.next()?;
                self.track(uid_of(&pod), true);
            }
        }
        let pods = self.seen();
        let facts = Facts::of(&self.job, &pods);
        let verdict = plan::verdict(&facts, self.now);
        match plan::change(&facts, verdict.as_ref(), self.failures(), self.now) {
            Change::Nothing => {}
            Change::Wait(left) => self.pauses.push(left.as_secs()),
            Change::Create(pods) => {
                for pod in pods {
                    writes.next()?;
                    self.made += 1;
                    self.create(pod);
                }
            }
            Change::End(pods) => {
                for pod in pods {
                    writes.next()?;
                    self.delete(uid_of(&pod));
                }
            }
            Change::Shrink(pods) => {
                for pod in pods {
                    writes.next()?;
                    self.track(uid_of(&pod), false);
                    writes.next()?;
                    self.delete(uid_of(&pod));
                }
            }
        }
        self.account(writes)
    }

    fn create(&mut self, mut pod: Pod) {
        let uid = format!("pod-{}", self.made);
        pod.metadata.uid = Some(uid.clone());
        pod.metadata.name = Some(uid);
        pod.metadata.creation_timestamp = Some(seconds(self.now));
        pod.status = serde_json::from_value(json!({"phase": "Pending"})).ok();
        self.pods.push(pod);
    }

    fn account(&mut self, writes: &mut Writes) -> Result<(), BrokenOff> {
        let noting = note(&self.job, &self.seen(), self.now);
        let failures = self.failures();
        self.write(noting.status.clone(), writes)?;
        self.failures = Some(failures);
        for pod in &noting.settled {
            writes.next()?;
            self.track(uid_of(pod), false);
            let (uid, ended) = (uid_of(pod).to_owned(), phase(pod).to_owned());
            assert!(
                self.settled.insert(uid, ended).is_none(),
                "given free twice"
            );
        }
        let (status, _) = conclude(&self.job, &self.seen(), &noting, self.now);
        self.write(status, writes)
    }

    /// What has to hold at any moment.
    pub(super) fn check(&self) {
        let spec = self.job.spec.as_ref().expect("a spec");
        let most = usize::try_from(spec.parallelism.unwrap_or(1)).expect("not negative");
        assert!(self.active() <= most, "{} pods of {most}", self.active());
        let active: Vec<_> = self.pods.iter().filter(|pod| is_active(pod)).collect();
        let indexes: BTreeSet<_> = active.iter().filter_map(|pod| index_of(pod)).collect();
        if spec.completion_mode.as_deref() == Some("Indexed") {
            assert_eq!(
                indexes.len(),
                active.len(),
                "an index has one pod at a time"
            );
        }
    }

    /// Passes, with nodes that do as they are told, until nothing changes.
    pub(super) fn converge(&mut self, ended: Option<&str>) {
        for _ in 0..400 {
            let idle = self.pass(Writes::ALL);
            self.check();
            let before = self.pods.len();
            self.vanish();
            if let Some(ended) = ended {
                while let Some(uid) = self.running(0) {
                    self.end(&uid, ended, Value::Null);
                }
            }
            if idle && before == self.pods.len() && (ended.is_none() || is_finished(&self.job)) {
                return;
            }
            self.wait(if ended.is_some() { 700 } else { 0 });
        }
        panic!("it does not come to rest: {:#?}", self.job.status);
    }
}
