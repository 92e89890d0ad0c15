//! IPAddress: an address of a service range that is taken, and by whom. Its name is the address.

use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use serde_json::json;

use super::table::{self, Printer};
use super::{addresses, references};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, StaticInfo};
use crate::{meta, names};

/// See [`IPAddress`].
pub struct IpAddressKind;

/// An address in the one form that Kubernetes writes, so that no two objects mean the same.
fn canonical(name: &str) -> Vec<String> {
    addresses::canonical_fault(name).into_iter().collect()
}

fn validate_parent(parent: &ParentReference, path: &Path, errors: &mut ErrorList) {
    if *parent == ParentReference::default() {
        errors.required(path, "");
        return;
    }
    if let Some(group) = parent.group.as_ref().filter(|group| !group.is_empty()) {
        let details = names::dns1123_subdomain(group);
        errors.invalid_each(&path.child("group"), group, details);
    }
    for (field, value) in [("resource", &parent.resource), ("name", &parent.name)] {
        let path = path.child(field);
        match value.as_str() {
            "" => errors.required(&path, ""),
            value => references::check_segment(value, &path, errors),
        }
    }
    if let Some(namespace) = parent.namespace.as_ref().filter(|name| !name.is_empty()) {
        references::check_segment(namespace, &path.child("namespace"), errors);
    }
}

fn parent_path() -> Path {
    Path::new("spec").child("parentRef")
}

impl Kind for IpAddressKind {
    type Object = IPAddress;

    const INFO: StaticInfo = StaticInfo {
        group: "networking.k8s.io",
        version: "v1",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const NAME_RULE: meta::NameRule = canonical;

    fn validate(object: &IPAddress, errors: &mut ErrorList) {
        validate_parent(&object.spec.parent_ref, &parent_path(), errors);
    }

    fn validate_update(new: &IPAddress, old: &IPAddress, errors: &mut ErrorList) {
        let parent = &new.spec.parent_ref;
        if *parent != old.spec.parent_ref {
            errors.invalid(&parent_path(), parent, meta::IMMUTABLE);
        }
    }

    fn printer() -> Printer<IPAddress> {
        let parent = table::field_doc::<IPAddressSpec>("parentRef");
        Printer::<IPAddress>::named()
            .column(table::column("ParentRef", "string", parent, 0), |object| {
                let parent = &object.spec.parent_ref;
                let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
                let mut text = parent.resource.clone();
                if let Some(group) = given(&parent.group) {
                    text = format!("{text}.{group}");
                }
                if let Some(namespace) = given(&parent.namespace) {
                    text = format!("{text}/{namespace}");
                }
                json!(format!("{text}/{}", parent.name))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(parent: Value) -> IPAddress {
        serde_json::from_value(
            json!({"metadata": {"name": "192.0.2.1"}, "spec": {"parentRef": parent}}),
        )
        .unwrap()
    }

    fn refused(parent: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        IpAddressKind::validate(&parse(parent), &mut errors);
        let errors = errors.0.iter();
        errors.map(|error| error.path.to_string()).collect()
    }

    #[test]
    fn a_name_is_an_address_as_it_is_written() {
        for good in ["192.0.2.1", "2001:db8::1"] {
            assert!(canonical(good).is_empty(), "{good}");
        }
        for bad in [
            "2001:DB8::1",
            "::ffff:192.0.2.1",
            "2001:db8:0::1",
            "x",
            "192.0.2.01",
        ] {
            assert_eq!(canonical(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn it_says_whose_it_is_and_stays_so() {
        assert_eq!(refused(json!(null)), ["spec.parentRef"]);
        assert_eq!(
            refused(json!({"resource": "services", "group": "A", "namespace": "a/b"})),
            [
                "spec.parentRef.group",
                "spec.parentRef.name",
                "spec.parentRef.namespace"
            ]
        );
        let parent = |name: &str| json!({"resource": "services", "namespace": "ns", "name": name});
        let (old, new) = (parse(parent("a")), parse(parent("b")));
        let mut errors = ErrorList::default();
        IpAddressKind::validate_update(&new, &old, &mut errors);
        assert_eq!(errors.0.len(), 1);
        assert_eq!(IpAddressKind::printer().row(&old, 0)[1], "services/ns/a");
    }
}
