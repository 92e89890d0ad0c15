//! Claims get volumes: each claim the smallest that suits it, or the one that it names, or that names it. What is left of a
//! volume when its claim is gone is said in its phase, and nothing is deleted, made or emptied: there is nobody who could.
//!
//! A volume is one claim's because it names that one's uid, and is only made to while it names nobody else: whoever looks at
//! it writes the revision that was looked at. All else follows from it ([`steps`]).

mod index;
mod matching;
mod plan;
mod steps;

use std::sync::Arc;

use gantry_api::paths::segment;
use gantry_informer::{Informer, Informers, Key, Next, Object, Queue, Recorder, Reference, runner};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, Patch, PatchParams};
use serde_json::Value;

use self::index::{
    FREE, NAMING, RESERVED, WAITING, free, naming, reserved, volume_key, volume_of, waiting,
};
use self::matching::{claim_uid, claimant};
use self::plan::{ClaimPlan, Storage, VolumePlan};
use self::steps::{AVAILABLE, BOUND, Told, Write};
use crate::context::Context;
use crate::error::{Doing, Error, Result, code, taken_in};

pub(crate) const COMPONENT: &str = "persistentvolume-controller";

/// A claim and a volume come together in so many writes.
const WRITES: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Claim(Key),
    /// A volume that came or changed.
    Volume(Key),
}

struct Binder {
    client: kube::Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    queue: Arc<Queue<Work>>,
    recorder: Recorder,
}

impl Storage for Binder {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&volume_key(name))
    }

    fn reserved(&self, claim: &Key) -> Vec<Arc<PersistentVolume>> {
        self.volumes.indexed(RESERVED, &claim.to_string())
    }

    fn free(&self, group: &str) -> Vec<Arc<PersistentVolume>> {
        self.volumes.indexed(FREE, group)
    }

    fn claim(&self, claim: &Key) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(claim)
    }

    fn waiting(&self, class: &str) -> Vec<Arc<PersistentVolumeClaim>> {
        self.claims.indexed(WAITING, class)
    }
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let binder = Arc::new(Binder {
        client: context.client.clone(),
        claims: informers.of().index(WAITING, waiting).index(NAMING, naming),
        volumes: informers.of().index(FREE, free).index(RESERVED, reserved),
        queue: Arc::default(),
        recorder,
    });
    binder.follow();
    let filled = async {
        binder.claims.synced().await;
        binder.volumes.synced().await;
    };
    let stop = context.stop.clone();
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    let queue = binder.queue.clone();
    // One at a time: two claims that want the same volume must not get it at once.
    runner::run("volume-binding", queue, 1, stop, move |work| {
        let binder = binder.clone();
        async move {
            match work {
                Work::Claim(key) => binder.settle_claim(&key).await?,
                Work::Volume(key) => binder.settle_volume(&key).await?,
            }
            Ok::<_, Error>(Next::Changed)
        }
    })
    .await;
}

impl Binder {
    fn follow(&self) {
        self.claims.subscribe(Box::new({
            let (queue, volumes) = (self.queue.clone(), self.volumes.clone());
            move |change| {
                let Some(claim) = change.last() else { return };
                let key = Key::of(&claim.metadata);
                if change.new.is_some() {
                    queue.add(Work::Claim(key.clone()));
                }
                if let (Some(old), Some(new)) = (change.old, change.new)
                    && old.metadata.uid == new.metadata.uid
                    && volume_of(old) == volume_of(new)
                {
                    return;
                }
                for volume in volumes.indexed(RESERVED, &key.to_string()) {
                    queue.add(Work::Volume(Key::of(&volume.metadata)));
                }
            }
        }));
        self.volumes.subscribe(Box::new({
            let (queue, claims) = (self.queue.clone(), self.claims.clone());
            move |change| {
                let Some(volume) = change.last() else { return };
                let key = Key::of(&volume.metadata);
                if change.new.is_some() {
                    queue.add(Work::Volume(key.clone()));
                }
                if let (Some(old), Some(new)) = (change.old, change.new)
                    && old.metadata.uid == new.metadata.uid
                    && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
                    && old.spec == new.spec
                {
                    return;
                }
                for claim in claims.indexed(NAMING, &key.name) {
                    queue.add(Work::Claim(Key::of(&claim.metadata)));
                }
            }
        }));
    }

    async fn settle_claim(&self, key: &Key) -> Result<()> {
        let Some(claim) = self.claims.get(key) else {
            return Ok(());
        };
        match plan::claim(&claim, self) {
            ClaimPlan::Nothing => Ok(()),
            ClaimPlan::Bind(volume) => self.bind(&Key::of(&volume.metadata), key).await,
            ClaimPlan::Wait(told) => {
                if let Some(told) = told {
                    self.tell(&*claim, told);
                }
                match steps::wait(&claim) {
                    Some(patch) => self.write(key, Write::ClaimStatus(patch)).await.map(drop),
                    None => Ok(()),
                }
            }
            ClaimPlan::Lost(told, volume) => {
                let Some(patch) = steps::lose(&claim) else {
                    return Ok(());
                };
                if let Some(volume) = volume {
                    self.check_gone(&volume_key(&volume)).await?;
                }
                if self.write(key, Write::ClaimStatus(patch)).await? {
                    self.tell(&*claim, told);
                }
                Ok(())
            }
        }
    }

    /// Goes on with giving the volume to the claim from wherever that is.
    async fn bind(&self, volume: &Key, claim: &Key) -> Result<()> {
        for _ in 0..=WRITES {
            // As they are now: each write is taken in before this goes on.
            let (Some(one), Some(other)) = (self.volumes.get(volume), self.claims.get(claim))
            else {
                return Ok(());
            };
            let Some(write) = steps::bind(&one, &other) else {
                return Ok(());
            };
            let about = match &write {
                Write::Volume(_) | Write::VolumeStatus(_) => volume,
                Write::Claim(_) | Write::ClaimStatus(_) => claim,
            };
            if !self.write(about, write).await? {
                return Ok(());
            }
        }
        Err(Error::NotYet {
            object: claim.to_string(),
            why: format!("others change volume {volume} and the claim while they are bound"),
        })
    }

    async fn settle_volume(&self, key: &Key) -> Result<()> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(());
        };
        match plan::volume(&volume, self) {
            VolumePlan::Available => {
                self.be(&volume, key, AVAILABLE).await?;
                self.offer(key).await
            }
            VolumePlan::Reserved(claim) => {
                self.be(&volume, key, AVAILABLE).await?;
                self.queue.add(Work::Claim(claim));
                Ok(())
            }
            VolumePlan::Bound => self.be(&volume, key, BOUND).await,
            VolumePlan::Finish(claim) => {
                self.queue.add(Work::Claim(claim));
                Ok(())
            }
            VolumePlan::Unfit(of_volume, claim, of_claim) => {
                self.tell(&*volume, of_volume);
                if let Some(claim) = self.claims.get(&claim) {
                    self.tell(&*claim, of_claim);
                }
                Ok(())
            }
            VolumePlan::Release(claim) => self.release(&volume, key, claim.as_ref()).await,
            // Its change brings it back here.
            VolumePlan::Unbind => match steps::unbind(&volume) {
                Some(patch) => self.write(key, Write::Volume(patch)).await.map(drop),
                None => Ok(()),
            },
        }
    }

    async fn be(&self, volume: &PersistentVolume, key: &Key, phase: &str) -> Result<()> {
        match steps::phase(volume, phase, None) {
            Some(patch) => self.write(key, Write::VolumeStatus(patch)).await.map(drop),
            None => Ok(()),
        }
    }

    /// Has a claim look for a volume that waits for one like this. Only one of them, however many do.
    async fn offer(&self, key: &Key) -> Result<()> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(());
        };
        if free(&volume).is_empty() {
            return Ok(());
        }
        let Some(claim) = plan::taker(&volume, self) else {
            return Ok(());
        };
        let claim = Key::of(&claim.metadata);
        self.settle_claim(&claim).await?;
        // It may have found a better one: then this is for the next.
        let is_settled = self.claims.get(&claim);
        if is_settled.is_none_or(|claim| waiting(&claim).is_empty()) {
            self.queue.add(Work::Volume(key.clone()));
        }
        Ok(())
    }

    async fn release(
        &self,
        volume: &PersistentVolume,
        key: &Key,
        claim: Option<&Key>,
    ) -> Result<()> {
        let Some((patch, told)) = steps::release(volume) else {
            return Ok(());
        };
        let uid = claimant(volume).and_then(claim_uid);
        if let (Some(claim), Some(uid)) = (claim, uid) {
            self.check_claim_gone(claim, uid).await?;
        }
        if self.write(key, Write::VolumeStatus(patch)).await?
            && let Some(told) = told
        {
            self.tell(volume, told);
        }
        Ok(())
    }

    /// That a claim is not in the cache may mean that it is too young.
    async fn check_claim_gone(&self, key: &Key, uid: &str) -> Result<()> {
        let namespace = segment(&key.namespace);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let found = api.get_opt(&segment(&key.name)).await;
        match found.doing("looking for claim", key)? {
            Some(claim) if claim.metadata.uid.as_deref() == Some(uid) => {
                self.claims.observe(claim);
                Err(too_young(key))
            }
            _ => Ok(()),
        }
    }

    /// As with claims.
    async fn check_gone(&self, volume: &Key) -> Result<()> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get_opt(&segment(&volume.name)).await;
        match found.doing("looking for volume", volume)? {
            Some(found) => {
                self.volumes.observe(found);
                Err(too_young(volume))
            }
            None => Ok(()),
        }
    }

    /// Whether what was to be written was still there.
    async fn write(&self, key: &Key, write: Write) -> Result<bool> {
        let (doing, written) = match write {
            Write::Volume(patch) => (
                "saying whose it is of volume",
                self.patch_volume(key, patch, false).await,
            ),
            Write::VolumeStatus(patch) => (
                "writing the phase of volume",
                self.patch_volume(key, patch, true).await,
            ),
            Write::Claim(patch) => (
                "saying which volume it has of claim",
                self.patch_claim(key, patch, false).await,
            ),
            Write::ClaimStatus(patch) => (
                "writing the phase of claim",
                self.patch_claim(key, patch, true).await,
            ),
        };
        match written {
            Ok(()) => Ok(true),
            // The watch tells of it.
            Err(error) if code(&error) == Some(404) => Ok(false),
            Err(error) => Err(error).doing(doing, key),
        }
    }

    async fn patch_volume(&self, key: &Key, patch: Value, status: bool) -> kube::Result<()> {
        let api = Api::all(self.client.clone());
        let written = patched(&api, key, patch, status).await;
        taken_in(written, &api, &self.volumes, &key.name).await
    }

    async fn patch_claim(&self, key: &Key, patch: Value, status: bool) -> kube::Result<()> {
        let api = Api::namespaced(self.client.clone(), &key.namespace);
        let written = patched(&api, key, patch, status).await;
        taken_in(written, &api, &self.claims, &key.name).await
    }

    fn tell<K: Object>(&self, about: &K, told: Told) {
        let about = Reference::to(about);
        match told.is_warning {
            true => self.recorder.warning(about, told.reason, told.message),
            false => self.recorder.normal(about, told.reason, told.message),
        }
    }
}

fn too_young(key: &Key) -> Error {
    Error::NotYet {
        object: key.to_string(),
        why: "it has not been seen yet".to_owned(),
    }
}

async fn patched<K: Object>(
    api: &Api<K>,
    key: &Key,
    patch: Value,
    status: bool,
) -> kube::Result<K> {
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
    match status {
        true => api.patch_status(&key.name, &parameters, &patch).await,
        false => api.patch(&key.name, &parameters, &patch).await,
    }
}

#[cfg(test)]
mod tests;
