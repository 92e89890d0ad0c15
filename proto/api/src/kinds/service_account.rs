//! ServiceAccount: the identity of a pod.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::kind::{Kind, StaticInfo};

/// See [`ServiceAccount`].
pub struct ServiceAccountKind;

impl Kind for ServiceAccountKind {
    type Object = ServiceAccount;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };
}
