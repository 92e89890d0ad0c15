//! ServiceCIDR: a range from which services get their addresses.

use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use serde_json::json;

use super::addresses;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::meta;
use crate::parts;

/// See [`ServiceCIDR`].
pub struct ServiceCidrKind;

fn cidrs(object: &ServiceCIDR) -> &[String] {
    let spec = object.spec.as_ref();
    spec.and_then(|spec| spec.cidrs.as_deref())
        .unwrap_or_default()
}

fn path() -> Path {
    Path::new("spec").child("cidrs")
}

impl Kind for ServiceCidrKind {
    type Object = ServiceCIDR;

    const INFO: StaticInfo = StaticInfo {
        group: "networking.k8s.io",
        version: "v1",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<ServiceCIDR> = parts!(ServiceCIDR: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut ServiceCIDR) {
        object.spec.get_or_insert_default();
        object.status.get_or_insert_default();
    }

    fn prepare_create(object: &mut ServiceCIDR) {
        object.status = Some(Default::default());
    }

    fn validate(object: &ServiceCIDR, errors: &mut ErrorList) {
        let cidrs = cidrs(object);
        match cidrs {
            [] => return errors.required(&path(), "at least one CIDR required"),
            [_] => {}
            [one, other] if addresses::are_of_two_families(one, other) => {}
            [_, _] => {
                let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                return errors.invalid(&path(), cidrs, detail);
            }
            _ => {
                let spec = json!({"CIDRs": cidrs});
                return errors.invalid(&path(), spec, "may only hold up to 2 values");
            }
        }
        for (index, cidr) in cidrs.iter().enumerate() {
            addresses::check_network(cidr, &path().index(index), errors);
        }
    }

    fn validate_update(new: &ServiceCIDR, old: &ServiceCIDR, errors: &mut ErrorList) {
        // A second family may be added, and nothing taken away: addresses were given from it.
        let (now, before) = (cidrs(new), cidrs(old));
        let changed = |(index, (now, before)): (usize, (&String, &String))| {
            (now != before).then(|| (path().index(index), now.clone()))
        };
        let changed = now.iter().zip(before).enumerate().filter_map(changed);
        match (now.len(), before.len()) {
            (2, 1) => {
                for (path, cidr) in changed {
                    errors.invalid(&path, cidr, meta::IMMUTABLE);
                }
                Self::validate(new, errors);
            }
            (now, before) if now == before => {
                for (path, cidr) in changed {
                    errors.invalid(&path, cidr, meta::IMMUTABLE);
                }
            }
            _ => errors.invalid(&path(), now, meta::IMMUTABLE),
        }
    }

    fn printer() -> Printer<ServiceCIDR> {
        let ranges = table::field_doc::<ServiceCIDRSpec>("cidrs");
        Printer::<ServiceCIDR>::named()
            .column(table::column("CIDRs", "string", ranges, 0), |object| {
                json!(cidrs(object).join(","))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(cidrs: &[&str]) -> ServiceCIDR {
        serde_json::from_value(json!({"spec": {"cidrs": cidrs}})).unwrap()
    }

    fn refused(cidrs: &[&str]) -> usize {
        let mut errors = ErrorList::default();
        ServiceCidrKind::validate(&parse(cidrs), &mut errors);
        errors.0.len()
    }

    #[test]
    fn ranges_are_one_of_each_family() {
        assert_eq!(refused(&["10.0.0.0/16"]), 0);
        assert_eq!(refused(&["10.0.0.0/16", "fd00::/112"]), 0);
        assert_eq!(refused(&[]), 1);
        assert_eq!(refused(&["10.0.0.0/16", "10.1.0.0/16"]), 1);
        assert_eq!(refused(&["10.0.0.1/16"]), 1, "an address is no range");
        assert_eq!(refused(&["10.0.0.0/16", "fd00::/112", "fd01::/112"]), 1);
    }

    #[test]
    fn a_family_may_be_added_and_none_taken() {
        let update = |new: &[&str], old: &[&str]| {
            let mut errors = ErrorList::default();
            ServiceCidrKind::validate_update(&parse(new), &parse(old), &mut errors);
            errors.0.len()
        };
        let (one, both) = (["10.0.0.0/16"], ["10.0.0.0/16", "fd00::/112"]);
        assert_eq!(update(&both, &one), 0);
        assert_eq!(update(&one, &both), 1);
        assert_eq!(update(&["10.1.0.0/16"], &one), 1);
    }
}
