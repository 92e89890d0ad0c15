//! Lease: who holds something, and until when.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, MetadataRules, StaticInfo};
use crate::names;

/// See [`Lease`].
pub struct LeaseKind;

/// Takes away what asks the system to choose the holder, which it does not.
fn drop_coordination(object: &mut Lease) {
    if let Some(spec) = &mut object.spec {
        spec.strategy = None;
        spec.preferred_holder = None;
    }
}

impl Kind for LeaseKind {
    type Object = Lease;

    const INFO: StaticInfo = StaticInfo {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const UNCONDITIONAL_UPDATE: bool = false;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const METADATA: MetadataRules = MetadataRules::Generic;

    fn default(object: &mut Lease) {
        object.spec.get_or_insert_default();
    }

    fn prepare_create(object: &mut Lease) {
        drop_coordination(object);
    }

    fn validate(object: &Lease, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else {
            return;
        };
        if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
            let path = path.child("leaseDurationSeconds");
            errors.invalid(&path, seconds, "must be greater than 0");
        }
        if let Some(count) = spec.lease_transitions.filter(|count| *count < 0) {
            errors.invalid(&path.child("leaseTransitions"), count, names::NOT_NEGATIVE);
        }
    }

    fn prepare_update(new: &mut Lease, _old: &Lease) {
        drop_coordination(new);
    }

    fn printer() -> Printer<Lease> {
        let holder = table::field_doc::<LeaseSpec>("holderIdentity");
        Printer::<Lease>::named()
            .column(table::column("Holder", "string", holder, 0), |object| {
                let spec = object.spec.as_ref();
                let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
                json!(holder.unwrap_or_default())
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_lease_lasts_and_changes_hands_forwards() {
        let refused = |spec: Value| {
            let object = serde_json::from_value(json!({"spec": spec})).unwrap();
            let mut errors = ErrorList::default();
            LeaseKind::validate(&object, &mut errors);
            errors
                .0
                .iter()
                .map(|error| error.path.to_string())
                .collect::<Vec<_>>()
        };
        let bad = json!({"leaseDurationSeconds": 0, "leaseTransitions": -1});
        assert_eq!(
            refused(bad),
            ["spec.leaseDurationSeconds", "spec.leaseTransitions"]
        );
        let good = json!({"leaseDurationSeconds": 15, "leaseTransitions": 0});
        assert_eq!(refused(good), Vec::<String>::new());
    }
}
