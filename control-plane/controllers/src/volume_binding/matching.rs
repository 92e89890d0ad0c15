//! Which volume suits a claim: by its class, mode, ways of access and size, and by what the claim selects.

use std::collections::BTreeMap;

use gantry_api::kinds::persistent_volume::class;
use gantry_api::quantity::Quantity;
use gantry_api::selector::LabelSelector;
use gantry_informer::Key;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::index::Groups;

/// Ways of access, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(u8);

impl Access {
    const MODES: [&str; 4] = [
        "ReadWriteOnce",
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOncePod",
    ];

    fn of(modes: Option<&Vec<String>>) -> Self {
        let has = |mode: &str| modes.is_some_and(|modes| modes.iter().any(|given| given == mode));
        let bits = (0..).zip(Self::MODES).filter(|(_, mode)| has(mode));
        Self(bits.fold(0, |set, (bit, _)| set | (1 << bit)))
    }

    pub(super) fn of_volume(volume: &PersistentVolume) -> Self {
        let spec = volume.spec.as_ref();
        Self::of(spec.and_then(|spec| spec.access_modes.as_ref()))
    }

    pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Self {
        let spec = claim.spec.as_ref();
        Self::of(spec.and_then(|spec| spec.access_modes.as_ref()))
    }

    fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// All sets that include this one, those that allow least first.
    pub(super) fn and_more(self) -> Vec<Self> {
        let all = (0..1 << Self::MODES.len()).map(Self);
        let mut found: Vec<Self> = all.filter(|set| set.includes(self)).collect();
        found.sort_by_key(|set| (set.0.count_ones(), set.0));
        found
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }
}

pub(super) fn class_of_volume(volume: &PersistentVolume) -> String {
    let spec = volume.spec.as_ref();
    class(
        &volume.metadata,
        spec.and_then(|spec| spec.storage_class_name.as_ref()),
    )
}

/// A claim that says nothing of a class asks for a volume of none.
pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> String {
    let spec = claim.spec.as_ref();
    class(
        &claim.metadata,
        spec.and_then(|spec| spec.storage_class_name.as_ref()),
    )
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether it is a file system or a device.
pub(super) fn mode_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    mode(spec.and_then(|spec| spec.volume_mode.as_ref()))
}

/// Whether it asks for a file system or a device.
pub(super) fn mode_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    mode(spec.and_then(|spec| spec.volume_mode.as_ref()))
}

fn storage(amounts: Option<&BTreeMap<String, ApiQuantity>>) -> Quantity {
    let amount = amounts.and_then(|amounts| amounts.get("storage"));
    let amount = amount.and_then(|amount| amount.0.parse().ok());
    amount.unwrap_or_default()
}

pub(super) fn capacity(volume: &PersistentVolume) -> Quantity {
    let spec = volume.spec.as_ref();
    storage(spec.and_then(|spec| spec.capacity.as_ref()))
}

pub(super) fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let spec = claim.spec.as_ref();
    let resources = spec.and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// Whether both are of the same class of attributes.
fn agree_on_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let given = |class: Option<&String>| class.cloned().unwrap_or_default();
    let (volume, claim) = (volume.spec.as_ref(), claim.spec.as_ref());
    given(volume.and_then(|spec| spec.volume_attributes_class_name.as_ref()))
        == given(claim.and_then(|spec| spec.volume_attributes_class_name.as_ref()))
}

/// The claim that a volume says it is for.
pub(super) fn claimant(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The name of the claim that a reference is about.
pub(super) fn claim_key(reference: &ObjectReference) -> Key {
    Key::new(
        reference.namespace.as_deref().unwrap_or_default(),
        reference.name.as_deref().unwrap_or_default(),
    )
}

/// The uid of the claim that a reference is about; none of one that is for whichever claim has the name.
pub(super) fn claim_uid(reference: &ObjectReference) -> Option<&str> {
    reference.uid.as_deref().filter(|uid| !uid.is_empty())
}

/// Whether the volume is for this claim, by its name at least.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claimant(volume).is_some_and(|reference| {
        claim_key(reference) == Key::of(&claim.metadata)
            && claim_uid(reference).is_none_or(|uid| Some(uid) == claim.metadata.uid.as_deref())
    })
}

pub(super) fn phase_of_volume(volume: &PersistentVolume) -> &str {
    let status = volume.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

/// Why a claim that names a volume, which nobody has, cannot have it.
pub(super) fn check_named(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Result<(), String> {
    let why = if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Err(format!("the volume is marked for deletion {name:?}"));
    } else if capacity(volume) < requested(claim) {
        "requested PV is too small"
    } else if class_of_volume(volume) != class_of_claim(claim) {
        "storageClassName does not match"
    } else if !agree_on_attributes(volume, claim) {
        "volumeAttributesClassName does not match"
    } else if mode_of_volume(volume) != mode_of_claim(claim) {
        "incompatible volumeMode"
    } else if !Access::of_volume(volume).includes(Access::of_claim(claim)) {
        "incompatible accessMode"
    } else {
        return Ok(());
    };
    Err(why.to_owned())
}

/// Whether the volume is large enough and as asked for otherwise, whoever it is for and whatever its class.
fn suffices(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.metadata.deletion_timestamp.is_none()
        && capacity(volume) >= requested(claim)
        && mode_of_volume(volume) == mode_of_claim(claim)
        && agree_on_attributes(volume, claim)
}

/// What a claim selects of the volumes that are nobody's; everything, if it does not say. Read once for all of them: it may be
/// as long as an object may be.
fn selector_of(claim: &PersistentVolumeClaim) -> Option<LabelSelector> {
    let selector = claim.spec.as_ref()?.selector.as_ref()?;
    Some(LabelSelector::from_api(Some(selector)))
}

/// Whether a claim that names no volume may get this one, which is nobody's, if it selects it.
fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    suffices(volume, claim)
        && class_of_volume(volume) == class_of_claim(claim)
        && Access::of_volume(volume).includes(Access::of_claim(claim))
}

fn selects(selector: Option<&LabelSelector>, volume: &PersistentVolume) -> bool {
    selector.is_none_or(|selector| selector.matches_map(volume.metadata.labels.as_ref()))
}

/// Whether a claim that names no volume may get this one, which is nobody's.
pub(super) fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    fits(volume, claim) && selects(selector_of(claim).as_ref(), volume)
}

/// The volume for a claim that names none: of those that allow no more than they have to, the one that is for it, or else the
/// smallest that is nobody's.
pub(super) fn best<V: AsRef<PersistentVolume>>(
    claim: &PersistentVolumeClaim,
    reserved: Vec<V>,
    free: impl Fn(&str) -> Vec<V>,
) -> Option<V> {
    let groups = Groups::of_claim(claim);
    let selector = selector_of(claim);
    let mut reserved: Vec<V> = reserved
        .into_iter()
        .filter(|volume| is_for(volume.as_ref(), claim) && suffices(volume.as_ref(), claim))
        .collect();
    for access in Access::of_claim(claim).and_more() {
        if let Some(at) = reserved
            .iter()
            .position(|volume| Access::of_volume(volume.as_ref()) == access)
        {
            return Some(reserved.swap_remove(at));
        }
        let found = free(&groups.with(access)).into_iter();
        let found = found.filter(|volume| {
            let volume = volume.as_ref();
            fits(volume, claim) && selects(selector.as_ref(), volume)
        });
        let smallest = found.min_by(|one, other| {
            let size = |volume: &V| capacity(volume.as_ref());
            size(one).cmp(&size(other))
        });
        if smallest.is_some() {
            return smallest;
        }
    }
    None
}
