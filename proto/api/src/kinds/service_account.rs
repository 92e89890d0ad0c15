//! ServiceAccount: the identity of a pod.

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::Value;

use super::table;
use crate::kind::{Column, Kind, StaticInfo};

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

    fn columns() -> Vec<Column> {
        vec![table::name_column(), table::age_column()]
    }

    fn row(object: &ServiceAccount, now: i64) -> Vec<Value> {
        vec![
            table::name_cell(&object.metadata),
            table::age_cell(&object.metadata, now),
        ]
    }
}
