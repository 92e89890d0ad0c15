//! Ingress: HTTP routes from outside to services, for a controller of the user's choice.

mod validation;

use k8s_openapi::api::networking::v1::{Ingress, IngressLoadBalancerStatus, IngressSpec};
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, Parts, StaticInfo};
use crate::parts;

/// See [`Ingress`].
pub struct IngressKind;

/// The name of the class, before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

fn class_annotation(object: &Ingress) -> Option<&String> {
    let annotations = object.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(CLASS_ANNOTATION))
}

fn hosts(spec: &IngressSpec) -> String {
    let rules = spec.rules.iter().flatten();
    let named: Vec<&str> = rules
        .filter_map(|rule| rule.host.as_deref())
        .filter(|host| !host.is_empty())
        .collect();
    table::few(&named, named.len(), "*")
}

fn addresses(balancer: &IngressLoadBalancerStatus) -> String {
    let mut all: Vec<&str> = balancer
        .ingress
        .iter()
        .flatten()
        .filter_map(|entry| {
            let ip = entry.ip.as_deref().filter(|ip| !ip.is_empty());
            ip.or(entry.hostname.as_deref())
        })
        .filter(|address| !address.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

impl Kind for IngressKind {
    type Object = Ingress;

    const INFO: StaticInfo = StaticInfo {
        group: "networking.k8s.io",
        version: "v1",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        categories: &[],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<Ingress> = parts!(Ingress: spec, status);

    fn default(object: &mut Ingress) {
        object.spec.get_or_insert_default();
        let status = object.status.get_or_insert_default();
        status.load_balancer.get_or_insert_default();
    }

    fn prepare_create(object: &mut Ingress) {
        let status = object.status.insert(Default::default());
        status.load_balancer.get_or_insert_default();
    }

    fn validate(object: &Ingress, errors: &mut ErrorList) {
        if let Some(spec) = &object.spec {
            validation::spec(spec, errors);
        }
        let class = object
            .spec
            .as_ref()
            .and_then(|spec| spec.ingress_class_name.as_ref());
        if let (Some(class), Some(annotated)) = (class, class_annotation(object))
            && class != annotated
        {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            let detail = "must match `ingressClassName` when both are specified";
            errors.invalid(&path, annotated, detail);
        }
    }

    fn validate_update(new: &Ingress, _old: &Ingress, errors: &mut ErrorList) {
        // Annotation and field may differ while a user moves from one to the other.
        if let Some(spec) = &new.spec {
            validation::spec(spec, errors);
        }
    }

    fn validate_status_update(new: &Ingress, _old: &Ingress, errors: &mut ErrorList) {
        let balancer = new
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        if let Some(balancer) = balancer {
            validation::balancer(balancer, errors);
        }
    }

    fn warnings(new: &Ingress, old: Option<&Ingress>) -> Vec<String> {
        let deprecated = old.is_none() && class_annotation(new).is_some();
        let warning = format!(
            "annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead"
        );
        deprecated.then_some(warning).into_iter().collect()
    }

    fn printer() -> Printer<Ingress> {
        let text = |name, description: &str| table::column(name, "string", description, 0);
        let columns = [
            text(
                "Class",
                "The name of the IngressClass resource that should be used for additional configuration",
            ),
            text(
                "Hosts",
                "Hosts that incoming requests are matched against before the ingress rule",
            ),
            text(
                "Address",
                "Address is a list containing ingress points for the load-balancer",
            ),
            text("Ports", "Ports of TLS configurations that open"),
        ];
        Printer::<Ingress>::named()
            .columns(columns, |object, _| {
                let empty = IngressSpec::default();
                let spec = object.spec.as_ref().unwrap_or(&empty);
                let status = object.status.as_ref();
                let balancer = status.and_then(|status| status.load_balancer.as_ref());
                let secured = spec.tls.as_ref().is_some_and(|tls| !tls.is_empty());
                [
                    json!(spec.ingress_class_name.as_deref().unwrap_or("<none>")),
                    json!(hosts(spec)),
                    json!(balancer.map(addresses).unwrap_or_default()),
                    json!(if secured { "80, 443" } else { "80" }),
                ]
            })
            .age()
    }
}

#[cfg(test)]
mod tests;
