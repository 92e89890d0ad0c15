//! A container's environment: literals, references, whole ConfigMaps and Secrets, service links, and `$(VAR)`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::limits;
use crate::traits::Objects;

/// A reference that cannot be resolved; the container waits with `CreateContainerConfigError` and these words.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum EnvError {
    /// No such object.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The key.
        key: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A field path that has no meaning here.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that has no meaning here.
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// What the environment is made from, beside the container.
pub struct EnvContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Where references lead.
    pub objects: &'a dyn Objects,
    /// The pod's addresses, IPv4 first, once known.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses, IPv4 first.
    pub host_ips: &'a [IpAddr],
    /// The node's allocatable resources.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

/// Replaces `$(NAME)` by what `lookup` knows; unknown names stay as written and `$$` is a dollar sign.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// The environment of a container, in the order in which names first appear; service links come first and are
/// overridden by everything else.
pub fn environment(
    context: &EnvContext<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = context
        .pod
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    let mut result = Ordered::default();
    let links = context
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    for (name, value) in service_variables(context, namespace, links) {
        result.set(name, value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match context.objects.config_map(namespace, &reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        result.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => {
                    return Err(EnvError::Missing {
                        kind: "configmap",
                        name: reference.name.clone(),
                    });
                }
            }
        }
        if let Some(reference) = &source.secret_ref {
            match context.objects.secret(namespace, &reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        result.set(
                            format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        );
                    }
                }
                None if reference.optional == Some(true) => {}
                None => {
                    return Err(EnvError::Missing {
                        kind: "secret",
                        name: reference.name.clone(),
                    });
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => match resolve(context, namespace, container, source)? {
                Some(value) => value,
                None => continue,
            },
            None => {
                let written = variable.value.as_deref().unwrap_or_default();
                expand(written, &|name| result.get(name))
            }
        };
        result.set(variable.name.clone(), value);
    }
    Ok(result.entries)
}

/// `None`: optional, and not there.
fn resolve(
    context: &EnvContext<'_>,
    namespace: &str,
    container: &Container,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    if let Some(selector) = &source.field_ref {
        return field(context, selector).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let spec = context.pod.spec.as_ref();
        let named = selector
            .container_name
            .as_deref()
            .filter(|name| !name.is_empty());
        let mut all = spec.into_iter().flat_map(|spec| {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        });
        let target = match named {
            None => container,
            Some(name) => all.find(|known| known.name == name).ok_or_else(|| {
                EnvError::Resource(format!("{} of container {name:?}", selector.resource))
            })?,
        };
        return limits::field(
            target,
            &selector.resource,
            selector.divisor.as_ref(),
            context.allocatable,
        )
        .map(Some)
        .ok_or_else(|| EnvError::Resource(selector.resource.clone()));
    }
    let (kind, short, name, key, optional, value) =
        if let Some(selector) = &source.config_map_key_ref {
            let value = context
                .objects
                .config_map(namespace, &selector.name)
                .map(|map| {
                    let text = map
                        .data
                        .as_ref()
                        .and_then(|data| data.get(&selector.key).cloned());
                    text.or_else(|| {
                        let bytes = map.binary_data.as_ref()?.get(&selector.key)?;
                        Some(String::from_utf8_lossy(&bytes.0).into_owned())
                    })
                });
            (
                "ConfigMap",
                "configmap",
                &selector.name,
                &selector.key,
                selector.optional,
                value,
            )
        } else if let Some(selector) = &source.secret_key_ref {
            let value = context
                .objects
                .secret(namespace, &selector.name)
                .map(|secret| {
                    let bytes = secret.data.as_ref()?.get(&selector.key)?;
                    Some(String::from_utf8_lossy(&bytes.0).into_owned())
                });
            (
                "Secret",
                "secret",
                &selector.name,
                &selector.key,
                selector.optional,
                value,
            )
        } else {
            return Ok(Some(String::new()));
        };
    match value {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        None => Err(EnvError::Missing {
            kind: short,
            name: name.clone(),
        }),
        Some(None) => Err(EnvError::Key {
            kind,
            key: key.clone(),
            namespace: namespace.to_owned(),
            name: name.clone(),
        }),
    }
}

/// The value of a `fieldRef`.
pub fn field(context: &EnvContext<'_>, selector: &ObjectFieldSelector) -> Result<String, EnvError> {
    let path = selector.field_path.as_str();
    let (meta, spec) = (&context.pod.metadata, context.pod.spec.as_ref());
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(EnvError::Field(path.to_owned())),
        };
        return Ok(text(entries.and_then(|entries| entries.get(key))));
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.podIP" => joined(context.pod_ips.iter().take(1)),
        "status.podIPs" => joined(context.pod_ips),
        "status.hostIP" => joined(context.host_ips.iter().take(1)),
        "status.hostIPs" => joined(context.host_ips),
        _ => return Err(EnvError::Field(path.to_owned())),
    })
}

fn joined<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> String {
    let texts: Vec<String> = addresses.into_iter().map(IpAddr::to_string).collect();
    texts.join(",")
}

/// `metadata.labels['key']` to (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, key))
}

/// A map as a downward API file shows it: one `key="value"` a line.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

/// Variables that tell of services with a ClusterIP: those of the pod's namespace, and always the API server's.
fn service_variables(
    context: &EnvContext<'_>,
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let named = |service: &Service, name: &str| service.metadata.name.as_deref() == Some(name);
    let mut services: Vec<_> = context
        .objects
        .services_of("default")
        .into_iter()
        .filter(|service| named(service, "kubernetes"))
        .collect();
    if links {
        let others = context.objects.services_of(namespace).into_iter();
        services.extend(
            others.filter(|service| namespace != "default" || !named(service, "kubernetes")),
        );
    }
    services
        .iter()
        .flat_map(|service| link_variables(service))
        .collect()
}

fn link_variables(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    else {
        return Vec::new();
    };
    let ports: Vec<_> = spec.ports.iter().flatten().collect();
    let Some(first) = ports.first() else {
        return Vec::new();
    };
    let variable = |text: &str| text.to_uppercase().replace('-', "_");
    let name = variable(service.metadata.name.as_deref().unwrap_or_default());
    let protocol = |port: Option<&String>| port.cloned().unwrap_or_else(|| "TCP".to_owned());
    let mut result = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in &ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            result.push((
                format!("{name}_SERVICE_PORT_{}", variable(port_name)),
                port.port.to_string(),
            ));
        }
    }
    let url = |protocol: &str, port: i32| format!("{}://{ip}:{port}", protocol.to_lowercase());
    result.push((
        format!("{name}_PORT"),
        url(&protocol(first.protocol.as_ref()), first.port),
    ));
    for port in ports {
        let protocol = protocol(port.protocol.as_ref());
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        result.push((prefix.clone(), url(&protocol, port.port)));
        result.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        result.push((format!("{prefix}_PORT"), port.port.to_string()));
        result.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    result
}

/// A map that remembers insertion order; small enough for scans.
#[derive(Default)]
struct Ordered {
    entries: Vec<(String, String)>,
    positions: BTreeMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.positions.get(&name) {
            Some(&at) => self.entries[at].1 = value,
            None => {
                self.positions.insert(name.clone(), self.entries.len());
                self.entries.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.positions
            .get(name)
            .map(|&at| self.entries[at].1.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::traits::fake::{FakeObjects, Resource, change};

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        let table = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    fn evaluate(container: Value) -> Result<Vec<(String, String)>, EnvError> {
        let known = FakeObjects::default();
        let objects = [
            (
                Resource::ConfigMap,
                json!({"metadata": {"name": "c", "namespace": "d"}, "data": {"k": "v", "other": "o"}}),
            ),
            (
                Resource::Secret,
                json!({"metadata": {"name": "s", "namespace": "d"}, "data": {"p": "cHc="}}),
            ),
            (
                Resource::Service,
                json!({"metadata": {"name": "my-db", "namespace": "d"},
                "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 5432, "protocol": "TCP", "name": "sql"}]}}),
            ),
        ];
        for (resource, object) in &objects {
            known.apply(&change(*resource, object)).unwrap();
        }
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"a/b": "c"}},
            "spec": {"containers": [], "nodeName": "n", "enableServiceLinks": container["links"] == true,
                "initContainers": [{"name": "i", "resources": {"limits": {"memory": "3Mi"}}}]}
        }))
        .unwrap();
        let context = EnvContext {
            pod: &pod,
            objects: &known,
            pod_ips: &["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            host_ips: &["10.0.0.1".parse().unwrap()],
            allocatable: &BTreeMap::new(),
        };
        environment(
            &context,
            &serde_json::from_value(
                json!({"name": "x", "env": container["env"], "envFrom": container["envFrom"]}),
            )
            .unwrap(),
        )
    }

    fn get(env: &[(String, String)], name: &str) -> Option<String> {
        env.iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.clone())
    }

    #[test]
    fn later_entries_override_and_see_earlier_ones() {
        let env = evaluate(json!({
            "envFrom": [{"prefix": "X_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
            "env": [
                {"name": "A", "value": "$(X_k)-$(p)-$(LATER)"},
                {"name": "X_other", "value": "mine"},
                {"name": "LATER", "value": "z"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}}
            ]
        }))
        .unwrap();
        assert_eq!(get(&env, "A").as_deref(), Some("v-pw-$(LATER)"));
        assert_eq!(get(&env, "X_other").as_deref(), Some("mine"));
        assert_eq!(get(&env, "IP").as_deref(), Some("10.0.0.5"));
        assert_eq!(get(&env, "IPS").as_deref(), Some("10.0.0.5,fd00::5"));
        assert_eq!(get(&env, "L").as_deref(), Some("c"));
        assert_eq!(
            get(&env, "MY_DB_SERVICE_HOST"),
            None,
            "service links are off"
        );
    }

    #[test]
    fn service_links() {
        let env =
            evaluate(json!({"links": true, "env": [{"name": "U", "value": "$(MY_DB_PORT)"}]}))
                .unwrap();
        assert_eq!(
            get(&env, "MY_DB_SERVICE_HOST").as_deref(),
            Some("10.96.0.9")
        );
        assert_eq!(get(&env, "MY_DB_SERVICE_PORT_SQL").as_deref(), Some("5432"));
        assert_eq!(
            get(&env, "MY_DB_PORT_5432_TCP_ADDR").as_deref(),
            Some("10.96.0.9")
        );
        assert_eq!(get(&env, "U").as_deref(), Some("tcp://10.96.0.9:5432"));
    }

    #[test]
    fn resources_are_those_of_the_container_that_is_named() {
        let of = |name: &str| {
            let selector = json!({"containerName": name, "resource": "limits.memory"});
            evaluate(json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": selector}}]}))
        };
        let of_init = of("i").unwrap();
        assert_eq!(get(&of_init, "A").as_deref(), Some("3145728"));
        let words = of("other").unwrap_err().to_string();
        assert!(words.contains("other"), "{words}");
    }

    #[test]
    fn missing_references_say_what_is_missing() {
        let with = |source: Value| evaluate(json!({"env": [{"name": "A", "valueFrom": source}]}));
        let words = |source| with(source).unwrap_err().to_string();
        assert_eq!(
            words(json!({"configMapKeyRef": {"name": "no", "key": "k"}})),
            "configmap \"no\" not found"
        );
        assert_eq!(
            words(json!({"secretKeyRef": {"name": "s", "key": "q"}})),
            "couldn't find key q in Secret d/s"
        );
        assert_eq!(
            with(json!({"secretKeyRef": {"name": "no", "key": "q", "optional": true}})),
            Ok(Vec::new())
        );
        assert_eq!(
            words(json!({"fieldRef": {"fieldPath": "spec.what"}})),
            "unsupported fieldPath: spec.what"
        );
        assert!(evaluate(json!({"envFrom": [{"configMapRef": {"name": "no"}}]})).is_err());
    }
}
