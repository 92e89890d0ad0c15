//! RoleBinding: gives what a role allows to users, groups and service accounts, in its namespace.

use k8s_openapi::api::rbac::v1::RoleBinding;

use crate::field::ErrorList;
use crate::kind::{Kind, StaticInfo};
use crate::kinds::table::{self, Printer};
use crate::meta;

/// See [`RoleBinding`].
pub struct RoleBindingKind;

fn bound(object: &RoleBinding) -> super::Bound<'_> {
    (&object.role_ref, object.subjects.as_deref())
}

impl Kind for RoleBindingKind {
    type Object = RoleBinding;

    const INFO: StaticInfo = StaticInfo {
        group: super::GROUP,
        version: "v1",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const NAME_RULE: meta::NameRule = super::name_rule;

    fn default(object: &mut RoleBinding) {
        super::default_binding(&mut object.role_ref, object.subjects.as_mut());
    }

    fn validate(object: &RoleBinding, errors: &mut ErrorList) {
        let kinds = [super::ROLE, super::CLUSTER_ROLE];
        let subjects = object.subjects.as_deref();
        super::validate_binding(&object.role_ref, &kinds, subjects, true, errors);
    }

    fn validate_update(new: &RoleBinding, old: &RoleBinding, errors: &mut ErrorList) {
        Self::validate(new, errors);
        super::validate_role_stays(&new.role_ref, &old.role_ref, errors);
    }

    fn printer() -> Printer<RoleBinding> {
        let role = table::field_doc::<RoleBinding>("roleRef");
        super::printer(&role, "roleBinding", bound)
    }
}
