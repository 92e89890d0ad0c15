//! IngressClass: which controller serves an ingress.

use k8s_openapi::api::networking::v1::{IngressClass, IngressClassParametersReference};
use serde_json::json;

use super::references;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, Parts, StaticInfo};
use crate::parts;
use crate::{meta, names};

/// See [`IngressClass`].
pub struct IngressClassKind;

const SCOPES: &[&str] = &["Cluster", "Namespace"];
const MAX_CONTROLLER: usize = 250;
const BAD_PATH: &str =
    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";

/// `example.com/controller`
fn validate_controller(controller: &str, path: &Path, errors: &mut ErrorList) {
    if controller.len() > MAX_CONTROLLER {
        errors.too_long(path, MAX_CONTROLLER);
    }
    if controller.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts = controller
        .split_once('/')
        .filter(|(host, rest)| !host.is_empty() && !rest.is_empty());
    let Some((host, rest)) = parts else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.invalid(path, controller, detail);
        return;
    };
    errors.invalid_each(path, host, names::dns1123_subdomain(host));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    if !rest.bytes().all(allowed) {
        errors.invalid(path, rest, BAD_PATH);
    }
}

fn validate_parameters(
    parameters: &IngressClassParametersReference,
    path: &Path,
    errors: &mut ErrorList,
) {
    references::check_local(
        parameters.api_group.as_deref(),
        &parameters.kind,
        &parameters.name,
        path,
        errors,
    );
    let namespace_path = path.child("namespace");
    match (parameters.scope.as_deref(), &parameters.namespace) {
        (None, _) => errors.required(&path.child("scope"), ""),
        (Some("Namespace"), None) => {
            let detail = "`parameters.scope` is set to 'Namespace'";
            errors.required(&namespace_path, detail);
        }
        (Some("Namespace"), Some(namespace)) => {
            let details = names::dns1123_label(namespace);
            errors.invalid_each(&namespace_path, namespace, details);
        }
        (Some("Cluster"), Some(_)) => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.forbidden(&namespace_path, detail);
        }
        (Some("Cluster"), None) => {}
        (Some(other), _) => errors.not_supported(&path.child("scope"), other, SCOPES),
    }
}

fn controller(object: &IngressClass) -> &str {
    let spec = object.spec.as_ref();
    spec.and_then(|spec| spec.controller.as_deref())
        .unwrap_or_default()
}

impl Kind for IngressClassKind {
    type Object = IngressClass;

    const INFO: StaticInfo = StaticInfo {
        group: "networking.k8s.io",
        version: "v1",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<IngressClass> = parts!(IngressClass: spec);

    fn default(object: &mut IngressClass) {
        let spec = object.spec.get_or_insert_default();
        if let Some(parameters) = &mut spec.parameters {
            parameters.scope.get_or_insert_with(|| "Cluster".to_owned());
        }
    }

    fn validate(object: &IngressClass, errors: &mut ErrorList) {
        let path = Path::new("spec");
        validate_controller(controller(object), &path.child("controller"), errors);
        let spec = object.spec.as_ref();
        if let Some(parameters) = spec.and_then(|spec| spec.parameters.as_ref()) {
            validate_parameters(parameters, &path.child("parameters"), errors);
        }
    }

    fn validate_update(new: &IngressClass, old: &IngressClass, errors: &mut ErrorList) {
        if controller(new) != controller(old) {
            let path = Path::new("spec").child("controller");
            errors.invalid(&path, controller(new), meta::IMMUTABLE);
        }
        Self::validate(new, errors);
    }

    fn printer() -> Printer<IngressClass> {
        let text = |name, description: &str| table::column(name, "string", description, 0);
        let responsible = text(
            "Controller",
            "Controller that is responsible for handling this class",
        );
        let parameters = text(
            "Parameters",
            "A reference to a resource with additional parameters",
        );
        Printer::<IngressClass>::named()
            .column(responsible, |object| json!(controller(object)))
            .column(parameters, |object| {
                let spec = object.spec.as_ref();
                let parameters = spec.and_then(|spec| spec.parameters.as_ref());
                let text = parameters.map(|reference| {
                    let group = reference.api_group.as_deref();
                    let group = group.map(|group| format!(".{group}")).unwrap_or_default();
                    format!("{}{group}/{}", reference.kind, reference.name)
                });
                json!(table::or_none(text.unwrap_or_default()))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(spec: Value) -> IngressClass {
        let mut object = serde_json::from_value(json!({"spec": spec})).unwrap();
        IngressClassKind::default(&mut object);
        object
    }

    fn refused(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        IngressClassKind::validate(&parse(spec), &mut errors);
        errors.told()
    }

    #[test]
    fn a_controller_has_a_domain_and_a_path() {
        assert_eq!(
            refused(json!({"controller": "a.b/c/d"})),
            Vec::<String>::new()
        );
        assert_eq!(refused(json!({})), ["spec.controller: Required value"]);
        for bad in ["a", "/a", "a/"] {
            let refused = refused(json!({"controller": bad}));
            assert_eq!(refused.len(), 1, "{bad}");
            assert!(
                refused[0].contains("must be a domain-prefixed path"),
                "{bad}"
            );
        }
        assert_eq!(refused(json!({"controller": "A/b c"})).len(), 2);
        let long = format!("a/{}", "b".repeat(250));
        assert_eq!(
            refused(json!({"controller": long})),
            ["spec.controller: Too long: may not be more than 250 bytes"]
        );
    }

    #[test]
    fn parameters_are_in_a_namespace_or_not() {
        let parameters = |scope: &str, namespace: Option<&str>| {
            let refused = refused(json!({"controller": "a/b", "parameters": {
                "kind": "K", "name": "n", "scope": scope, "namespace": namespace
            }}));
            refused.first().cloned().unwrap_or_default()
        };
        assert_eq!(parameters("Cluster", None), "");
        assert_eq!(parameters("Namespace", Some("ns")), "");
        assert!(parameters("Namespace", None).starts_with("spec.parameters.namespace: Required"));
        assert!(parameters("Cluster", Some("ns")).starts_with("spec.parameters.namespace: Forb"));
        assert!(parameters("Foo", None).starts_with("spec.parameters.scope: Unsupported"));
    }

    #[test]
    fn the_controller_stays() {
        let old = parse(json!({"controller": "a/b"}));
        let mut errors = ErrorList::default();
        IngressClassKind::validate_update(&parse(json!({"controller": "a/c"})), &old, &mut errors);
        assert_eq!(errors.0.len(), 1);
        let row = IngressClassKind::printer().row(
            &parse(
                json!({"controller": "a/b", "parameters": {"apiGroup": "g", "kind": "K", "name": "n"}}),
            ),
            0,
        );
        assert_eq!(row[2], "K.g/n");
        assert_eq!(IngressClassKind::printer().row(&old, 0)[2], "<none>");
    }
}
