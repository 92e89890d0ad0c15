//! Role: what may be done in its namespace.

use k8s_openapi::api::rbac::v1::Role;

use crate::field::ErrorList;
use crate::kind::{Kind, StaticInfo};
use crate::kinds::table::{self, Printer};
use crate::meta;

/// See [`Role`].
pub struct RoleKind;

impl Kind for RoleKind {
    type Object = Role;

    const INFO: StaticInfo = StaticInfo {
        group: super::GROUP,
        version: "v1",
        kind: super::ROLE,
        plural: "roles",
        singular: "role",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const NAME_RULE: meta::NameRule = super::name_rule;

    fn validate(object: &Role, errors: &mut ErrorList) {
        super::validate_rules(object.rules.as_deref(), true, errors);
    }

    fn printer() -> Printer<Role> {
        table::created_at()
    }
}
