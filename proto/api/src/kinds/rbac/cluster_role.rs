//! ClusterRole: what may be done everywhere, or where it is bound; its rules may be gathered from others.

use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};
use crate::kinds::table::{self, Printer};
use crate::{meta, selector};

/// See [`ClusterRole`].
pub struct ClusterRoleKind;

impl Kind for ClusterRoleKind {
    type Object = ClusterRole;

    const INFO: StaticInfo = StaticInfo {
        group: super::GROUP,
        version: "v1",
        kind: super::CLUSTER_ROLE,
        plural: "clusterroles",
        singular: "clusterrole",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const NAME_RULE: meta::NameRule = super::name_rule;

    fn validate(object: &ClusterRole, errors: &mut ErrorList) {
        super::validate_rules(object.rules.as_deref(), false, errors);
        let Some(aggregation) = &object.aggregation_rule else {
            return;
        };
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = aggregation
            .cluster_role_selectors
            .as_deref()
            .unwrap_or_default();
        if selectors.is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(&path, detail);
        }
        for (index, one) in selectors.iter().enumerate() {
            if errors.is_full() {
                return;
            }
            let (path, before) = (path.index(index), errors.0.len());
            selector::validate(one, &path, errors);
            if errors.0.len() > before {
                errors.invalid(&path, Value::Null, "invalid label selector.");
            }
        }
    }

    fn printer() -> Printer<ClusterRole> {
        table::created_at()
    }
}
