//! How a pod is named, and how it finds names.

use k8s_openapi::api::core::v1::PodSpec;

use crate::field::{ErrorList, Path};
use crate::kinds::addresses;
use crate::names;

const POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const MAX_NAMESERVERS: usize = 3;
/// The longest name of a machine that Linux takes.
const MAX_HOSTNAME: usize = 64;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// Checks where names are resolved.
pub(super) fn validate_dns_policy(policy: Option<&str>, path: &Path, errors: &mut ErrorList) {
    match policy.unwrap_or_default() {
        "" => errors.required(path, ""),
        policy if POLICIES.contains(&policy) => {}
        policy => errors.not_supported(path, policy, &POLICIES),
    }
}

/// Checks servers, search paths and options.
pub(super) fn validate_dns_config(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let explicit = spec.dns_policy.as_deref() == Some("None");
    let Some(config) = &spec.dns_config else {
        if explicit {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.required(path, detail);
        }
        return;
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    let servers_path = path.child("nameservers");
    if explicit && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return errors.required(&servers_path, detail);
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&servers_path, servers, &detail);
    }
    for (index, server) in servers.iter().enumerate() {
        addresses::check(server, &servers_path.index(index), errors);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let searches_path = path.child("searches");
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.invalid(&searches_path, searches, &detail);
    }
    if searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let detail = format!(
            "must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list"
        );
        errors.invalid(&searches_path, searches, &detail);
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, text)| *text != ".") {
        let plain = search.strip_suffix('.').unwrap_or(search);
        let details = names::underscored_subdomain(plain);
        errors.invalid_each(&searches_path.index(index), plain, details);
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path.child("options").index(index), "must not be empty");
        }
    }
}

/// Checks the name that replaces all others of the pod.
pub(super) fn validate_override(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let Some(name) = &spec.hostname_override else {
        return;
    };
    for (is_set, other) in [
        (spec.set_hostname_as_fqdn, "setHostnameAsFQDN"),
        (spec.host_network, "hostNetwork"),
    ] {
        if is_set == Some(true) {
            let detail = format!("may not be specified when {other} is true");
            errors.forbidden(path, &detail);
        }
    }
    if name.len() > MAX_HOSTNAME {
        errors.too_long(path, MAX_HOSTNAME);
    }
    errors.invalid_each(path, name, names::dns1123_subdomain(name));
}

/// Checks the pod's own name.
pub(super) fn validate_names(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    for (name, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            errors.invalid_each(&path.child(name), value, names::dns1123_label(value));
        }
    }
}

/// Checks further names in `/etc/hosts`.
pub(super) fn validate_host_aliases(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.index(index);
        addresses::check(&alias.ip, &path.child("ip"), errors);
        for (index, name) in alias.hostnames.iter().flatten().enumerate() {
            let path = path.child("hostnames").index(index);
            errors.invalid_each(&path, name, names::dns1123_subdomain(name));
        }
    }
}
