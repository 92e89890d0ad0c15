//! What an ingress must be, field by field, in the order Kubernetes complains.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, IngressBackend, IngressLoadBalancerStatus, IngressRule, IngressServiceBackend,
    IngressSpec, IngressTLS,
};

use crate::field::{ErrorList, Path};
use crate::kinds::{addresses, references};
use crate::names;

const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
/// What a path may not contain: it could be read in two ways.
const AMBIGUOUS: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
/// What a path may not end with, for the same reason.
const AMBIGUOUS_ENDS: &[&str] = &["/..", "/."];

pub(super) fn spec(spec: &IngressSpec, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.default_backend.is_none() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&path, &spec.rules, detail);
    }
    if let Some(backend) = &spec.default_backend {
        self::backend(backend, &path.child("defaultBackend"), errors);
    }
    for (index, rule) in rules.iter().enumerate() {
        self::rule(rule, &path.child("rules").index(index), errors);
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        self::tls(tls, &path.child("tls").index(index), errors);
    }
    if let Some(class) = &spec.ingress_class_name {
        let details = names::dns1123_subdomain(class);
        errors.invalid_each(&path.child("ingressClassName"), class, details);
    }
}

/// A host, which may begin with a wildcard.
fn host(host: &str, path: &Path, errors: &mut ErrorList) {
    let details = match host.contains('*') {
        true => names::wildcard_subdomain(host),
        false => names::dns1123_subdomain(host),
    };
    errors.invalid_each(path, host, details);
}

fn not_an_address(host: &str, path: &Path, errors: &mut ErrorList) {
    if addresses::is_address(host) {
        errors.invalid(path, host, "must be a DNS name, not an IP address");
    }
}

fn rule(rule: &IngressRule, path: &Path, errors: &mut ErrorList) {
    if let Some(name) = rule.host.as_deref().filter(|name| !name.is_empty()) {
        let path = path.child("host");
        not_an_address(name, &path, errors);
        host(name, &path, errors);
    }
    let Some(http) = &rule.http else { return };
    let path = path.child("http").child("paths");
    if http.paths.is_empty() {
        errors.required(&path, "");
    }
    for (index, route) in http.paths.iter().enumerate() {
        self::route(route, &path.index(index), errors);
    }
}

fn route(route: &HTTPIngressPath, path: &Path, errors: &mut ErrorList) {
    let text = route.path.as_deref().unwrap_or_default();
    let text_path = path.child("path");
    let mut wrong = |detail: &str| errors.invalid(&text_path, text, detail);
    let absolute = text.starts_with('/');
    match route.path_type.as_str() {
        "" => {
            errors.required(&path.child("pathType"), "pathType must be specified");
            return;
        }
        "Exact" | "Prefix" => {
            if !absolute {
                wrong("must be an absolute path");
            }
            for part in AMBIGUOUS.iter().filter(|part| text.contains(**part)) {
                wrong(&format!("must not contain '{part}'"));
            }
            for end in AMBIGUOUS_ENDS.iter().filter(|end| text.ends_with(**end)) {
                wrong(&format!("cannot end with '{end}'"));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !absolute {
                wrong("must be an absolute path");
            }
        }
        other => errors.not_supported(&path.child("pathType"), other, PATH_TYPES),
    }
    backend(&route.backend, &path.child("backend"), errors);
}

fn backend(backend: &IngressBackend, path: &Path, errors: &mut ErrorList) {
    match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => {
            errors.invalid(path, "", "cannot set both resource and service backends");
        }
        (Some(resource), None) => references::check_local(
            resource.api_group.as_deref(),
            &resource.kind,
            &resource.name,
            &path.child("resource"),
            errors,
        ),
        (None, Some(service)) => self::service(service, path, errors),
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

fn service(service: &IngressServiceBackend, path: &Path, errors: &mut ErrorList) {
    let service_path = path.child("service");
    if service.name.is_empty() {
        errors.required(&service_path.child("name"), "");
    } else {
        let details = names::dns1123_label(&service.name);
        errors.invalid_each(&service_path.child("name"), &service.name, details);
    }
    let port = service.port.clone().unwrap_or_default();
    let name = port.name.filter(|name| !name.is_empty());
    let number = port.number.filter(|number| *number != 0);
    let port_path = service_path.child("port");
    match (name, number) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both port name & port number"),
        (Some(name), None) => {
            errors.invalid_each(&port_path.child("name"), &name, names::port_name(&name));
        }
        (None, Some(number)) => {
            if let Some(detail) = names::is_port_number(i64::from(number)) {
                errors.invalid(&port_path.child("number"), number, &detail);
            }
        }
        (None, None) => errors.required(path, "port name or number is required"),
    }
}

fn tls(tls: &IngressTLS, path: &Path, errors: &mut ErrorList) {
    for (index, name) in tls.hosts.iter().flatten().enumerate() {
        host(name, &path.child("hosts").index(index), errors);
    }
    if let Some(secret) = tls.secret_name.as_ref().filter(|name| !name.is_empty()) {
        let details = names::dns1123_subdomain(secret);
        errors.invalid_each(&path.child("secretName"), secret, details);
    }
}

/// What a controller reports.
pub(super) fn balancer(status: &IngressLoadBalancerStatus, errors: &mut ErrorList) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    for (index, entry) in status.ingress.iter().flatten().enumerate() {
        let path = path.index(index);
        if let Some(address) = entry.ip.as_ref().filter(|address| !address.is_empty()) {
            addresses::check(address, &path.child("ip"), errors);
        }
        if let Some(name) = entry.hostname.as_ref().filter(|name| !name.is_empty()) {
            let path = path.child("hostname");
            errors.invalid_each(&path, name, names::dns1123_subdomain(name));
            not_an_address(name, &path, errors);
        }
    }
}
