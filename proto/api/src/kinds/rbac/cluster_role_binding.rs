//! ClusterRoleBinding: gives what a cluster role allows to users, groups and service accounts, everywhere.

use k8s_openapi::api::rbac::v1::ClusterRoleBinding;

use crate::field::ErrorList;
use crate::kind::{Kind, StaticInfo};
use crate::kinds::table::{self, Printer};
use crate::meta;

/// See [`ClusterRoleBinding`].
pub struct ClusterRoleBindingKind;

fn bound(object: &ClusterRoleBinding) -> super::Bound<'_> {
    (&object.role_ref, object.subjects.as_deref())
}

impl Kind for ClusterRoleBindingKind {
    type Object = ClusterRoleBinding;

    const INFO: StaticInfo = StaticInfo {
        group: super::GROUP,
        version: "v1",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const NAME_RULE: meta::NameRule = super::name_rule;

    fn default(object: &mut ClusterRoleBinding) {
        super::default_binding(&mut object.role_ref, object.subjects.as_mut());
    }

    fn validate(object: &ClusterRoleBinding, errors: &mut ErrorList) {
        let kinds = [super::CLUSTER_ROLE];
        let subjects = object.subjects.as_deref();
        super::validate_binding(&object.role_ref, &kinds, subjects, false, errors);
    }

    fn validate_update(new: &ClusterRoleBinding, old: &ClusterRoleBinding, errors: &mut ErrorList) {
        Self::validate(new, errors);
        super::validate_role_stays(&new.role_ref, &old.role_ref, errors);
    }

    fn printer() -> Printer<ClusterRoleBinding> {
        let role = table::field_doc::<ClusterRoleBinding>("roleRef");
        super::printer(&role, "clusterRoleBinding", bound)
    }
}
