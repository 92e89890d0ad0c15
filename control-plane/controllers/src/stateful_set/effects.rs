//! Takes the steps of a plan, and tells of them by events of the set.

use std::sync::Arc;

use futures::future::join_all;
use gantry_informer::{Key, Reference};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::Controller;
use super::claims::Work;
use super::plan::{Phase, Step, Then, is_parallel};
use crate::error::{Doing, Error, Result, code, namespace_terminating, words};
use crate::pod_control::batches;

/// Whether the steps that follow may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Go {
    On,
    /// Not before something else has happened, which will be seen.
    NoFurther,
}

/// Why claims are not as they should be.
enum Trouble {
    /// What is told of it, and whether it is to be tried again for that.
    Told(String, bool),
    /// Somebody else was faster.
    Conflict(Error),
    /// The namespace is on its way out.
    Terminating,
}

/// A step of one set.
struct Acting<'a> {
    controller: &'a Controller,
    set: &'a StatefulSet,
    pods: Api<Pod>,
    claims: Api<PersistentVolumeClaim>,
}

impl Controller {
    /// Takes the steps until one fails, or makes those that follow wait.
    pub(super) async fn carry_out(&self, set: &StatefulSet, phases: Vec<Phase>) -> Result<()> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let client = &self.context.client;
        let acting = Acting {
            controller: self,
            set,
            pods: Api::namespaced(client.clone(), namespace),
            claims: Api::namespaced(client.clone(), namespace),
        };
        for phase in phases {
            let sizes: Vec<usize> = match is_parallel(set) {
                true => batches(phase.len()).collect(),
                false => vec![1; phase.len()],
            };
            let mut steps = phase.iter();
            for size in sizes {
                let batch = steps.by_ref().take(size);
                let outcomes = join_all(batch.map(|step| acting.take(step))).await;
                for outcome in outcomes {
                    if outcome? == Go::NoFurther {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

impl Acting<'_> {
    async fn take(&self, step: &Step) -> Result<Go> {
        let settled = self.settle(&step.pod, &step.claims).await;
        match &step.then {
            Then::Nothing => self.claims_of(step, settled),
            Then::Create(pod) => self.create(step, settled, pod).await,
            Then::Update(patch) => self.update(step, settled, patch).await,
            Then::Delete(pod) => self.delete(pod).await,
        }
    }

    fn tell(&self, reason: &'static str, message: String) {
        let recorder = &self.controller.recorder;
        let about = Reference::to(self.set);
        match reason.starts_with("Successful") {
            true => recorder.normal(about, reason, message),
            false => recorder.warning(about, reason, message),
        }
    }

    /// The set's name in events.
    fn name(&self) -> &str {
        self.set.metadata.name.as_deref().unwrap_or_default()
    }

    /// Tells that something has been done with a pod.
    fn done(&self, reason: &'static str, verb: &str, pod: &str) {
        let set = self.name();
        self.tell(
            reason,
            format!("{verb} Pod {pod} in StatefulSet {set} successful"),
        );
    }

    /// Tells that something could not be done with a pod.
    fn failed(&self, reason: &'static str, verb: &str, pod: &str, why: &str) -> Error {
        let set = self.name();
        let message = format!("{verb} Pod {pod} in StatefulSet {set} failed error: {why}");
        self.tell(reason, message.clone());
        Error::Refused {
            object: Key::of(&self.set.metadata).to_string(),
            why: message,
        }
    }

    /// Makes the claims that are missing, and gives those that are there the owners that they should have.
    async fn settle(&self, pod: &str, work: &Work) -> std::result::Result<(), Trouble> {
        let mut troubles = Vec::new();
        for claim in &work.make {
            match self.make(pod, claim).await {
                Ok(()) => {}
                Err(Trouble::Told(message, _)) => troubles.push(message),
                Err(other) => return Err(other),
            }
        }
        let is_refused = !troubles.is_empty();
        let leaving = work.leaving.iter();
        troubles.extend(leaving.map(|claim| format!("pvc {claim} is being deleted")));
        match troubles.as_slice() {
            [] => {}
            [one] => return Err(Trouble::Told(one.clone(), is_refused)),
            more => return Err(Trouble::Told(format!("[{}]", more.join(", ")), is_refused)),
        }
        for claim in &work.conflicts {
            let message = format!(
                "PersistentVolumeClaim {claim} has a conflicting OwnerReference that acts as a manging controller, the \
                 retention policy is ignored for this claim"
            );
            self.tell("ConflictingController", message);
        }
        for (claim, owners) in &work.own {
            let key = Key::of(&claim.metadata);
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": owners,
            }});
            let patched = self
                .claims
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match patched {
                Ok(patched) => self.controller.claims.observe(patched),
                Err(error) if matches!(code(&error), Some(404 | 409)) => {
                    self.look_at(&key).await;
                    let error = Error::NotYet {
                        object: key.to_string(),
                        why: "the claim has changed".to_owned(),
                    };
                    return Err(Trouble::Conflict(error));
                }
                Err(error) => {
                    let (claim, why) = (&key.name, words(&error));
                    let message = format!(
                        "could not update claim {claim} for delete policy ownerRefs: {why}"
                    );
                    return Err(Trouble::Told(message, true));
                }
            }
        }
        Ok(())
    }

    async fn make(
        &self,
        pod: &str,
        claim: &PersistentVolumeClaim,
    ) -> std::result::Result<(), Trouble> {
        let key = Key::of(&claim.metadata);
        let (name, set) = (&key.name, self.name());
        match self.claims.create(&PostParams::default(), claim).await {
            Ok(made) => {
                self.controller.claims.observe(made);
                let message = format!("create Claim {name} Pod {pod} in StatefulSet {set} success");
                self.tell("SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if code(&error) == Some(409) => {
                self.look_at(&key).await;
                Err(Trouble::Conflict(Error::NotYet {
                    object: key.to_string(),
                    why: "the claim is there already".to_owned(),
                }))
            }
            Err(error) if namespace_terminating(&error) => Err(Trouble::Terminating),
            Err(error) => {
                let why = words(&error);
                let message = format!(
                    "create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {why}"
                );
                self.tell("FailedCreate", message);
                Err(Trouble::Told(
                    format!("failed to create PVC {name}: {why}"),
                    true,
                ))
            }
        }
    }

    /// Takes in a claim as it is now, so that the next attempt does not fail by the same old state.
    async fn look_at(&self, key: &Key) {
        match self.claims.get_opt(&key.name).await {
            Ok(Some(claim)) => self.controller.claims.observe(claim),
            Ok(None) => {
                let known = self.controller.claims.get(key);
                let uid = known.and_then(|known| known.metadata.uid.clone());
                let uid = uid.unwrap_or_default();
                self.controller.claims.observe_gone(key, &uid);
            }
            Err(error) => {
                tracing::debug!(%key, error = words(&error), "a claim could not be looked at")
            }
        }
    }

    /// What came of the claims of a pod about which there is nothing else to be done.
    fn claims_of(&self, step: &Step, settled: std::result::Result<(), Trouble>) -> Result<Go> {
        match settled {
            Ok(()) => Ok(Go::On),
            Err(Trouble::Terminating | Trouble::Told(_, false)) => Ok(Go::NoFurther),
            Err(Trouble::Conflict(error)) => Err(error),
            Err(Trouble::Told(why, true)) => Err(Error::Refused {
                object: Key::of(&self.set.metadata).to_string(),
                why: format!("claims of pod {}: {why}", step.pod),
            }),
        }
    }

    async fn create(
        &self,
        step: &Step,
        settled: std::result::Result<(), Trouble>,
        pod: &Pod,
    ) -> Result<Go> {
        let name = &step.pod;
        match settled {
            Ok(()) => {}
            Err(Trouble::Terminating) => return Ok(Go::NoFurther),
            Err(Trouble::Conflict(error)) => return Err(error),
            Err(Trouble::Told(why, again)) => {
                let error = self.failed("FailedCreate", "create", name, &why);
                return if again { Err(error) } else { Ok(Go::NoFurther) };
            }
        }
        match self.pods.create(&PostParams::default(), pod).await {
            Ok(made) => {
                self.controller.pods.observe(made);
                self.done("SuccessfulCreate", "create", name);
                Ok(Go::On)
            }
            Err(error) if code(&error) == Some(409) => self.taken(name).await,
            Err(error) if namespace_terminating(&error) => Ok(Go::NoFurther),
            Err(error) => Err(self.failed("FailedCreate", "create", name, &words(&error))),
        }
    }

    /// The name is another pod's, or was given to one by an answer that never arrived.
    async fn taken(&self, name: &str) -> Result<Go> {
        let key = Key::of(&self.set.metadata);
        let known = self.pods.get_opt(name).await;
        let known = known.doing("looking at a pod of stateful set", &key)?;
        let ours = known.as_ref().is_some_and(|known| {
            let owners = known.metadata.owner_references.iter().flatten();
            owners
                .into_iter()
                .any(|owner| Some(&owner.uid) == self.set.metadata.uid.as_ref())
        });
        if let Some(known) = known {
            self.controller.pods.observe(known);
        }
        let object = key.to_string();
        Err(match ours {
            true => Error::NotYet {
                object,
                why: format!("pod {name} is there already"),
            },
            false => Error::Refused {
                object,
                why: format!(
                    "there is a pod {name} that is not the set's: delete it, or scale the set below it"
                ),
            },
        })
    }

    async fn update(
        &self,
        step: &Step,
        settled: std::result::Result<(), Trouble>,
        patch: &Value,
    ) -> Result<Go> {
        let name = &step.pod;
        match settled {
            Ok(()) => {}
            Err(Trouble::Terminating) => return Ok(Go::NoFurther),
            Err(Trouble::Conflict(error)) => return Err(error),
            Err(Trouble::Told(why, again)) => {
                let error = self.failed("FailedUpdate", "update", name, &why);
                return if again { Err(error) } else { Ok(Go::NoFurther) };
            }
        }
        if patch.as_object().is_some_and(|patch| !patch.is_empty()) {
            let patched = self
                .pods
                .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            match patched {
                Ok(patched) => self.controller.pods.observe(patched),
                Err(error) if matches!(code(&error), Some(404 | 409)) => {
                    return Err(error).doing(
                        "updating a pod of stateful set",
                        &Key::of(&self.set.metadata),
                    );
                }
                Err(error) => {
                    return Err(self.failed("FailedUpdate", "update", name, &words(&error)));
                }
            }
        }
        self.done("SuccessfulUpdate", "update", name);
        Ok(Go::On)
    }

    async fn delete(&self, pod: &Arc<Pod>) -> Result<Go> {
        let key = Key::of(&pod.metadata);
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
        match self.pods.delete(&key.name, &parameters).await {
            Ok(answer) => {
                if let Some(leaving) = answer.left() {
                    self.controller.pods.observe_deleting(leaving);
                }
                self.done("SuccessfulDelete", "delete", &key.name);
                Ok(Go::On)
            }
            Err(error) if matches!(code(&error), Some(404 | 409)) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                self.controller.pods.observe_gone(&key, uid);
                Ok(Go::On)
            }
            Err(error) => Err(self.failed("FailedDelete", "delete", &key.name, &words(&error))),
        }
    }
}
