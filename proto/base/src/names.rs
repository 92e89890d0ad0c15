//! The rules names must keep, in Kubernetes' words: what is wrong with a name, everything and in order, or nothing.

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const UNDERSCORED: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_KEY: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HEADER_NAME: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn label_shape(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if lower(first) && lower(last))
        && bytes.iter().all(|&byte| lower(byte) || byte == b'-')
}

fn qualified_shape(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// `must be no more than max characters`
pub fn max_length(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// As [`max_length`], of the names that are counted in bytes: label keys, what is before their slash, and label values.
fn max_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// What is wrong with a name that has a greatest length and a shape.
fn measured(name: &str, max: usize, shape: impl FnOnce() -> Option<&'static str>) -> Vec<String> {
    let long = (name.len() > max).then(|| max_length(max));
    long.into_iter().chain(shape().map(str::to_owned)).collect()
}

fn subdomain_shape(name: &str) -> bool {
    name.split('.').all(label_shape)
}

/// A DNS label (RFC 1123): pods' hostnames, container and volume names, namespaces.
pub fn dns1123_label(name: &str) -> Vec<String> {
    measured(name, 63, || {
        match (label_shape(name), subdomain_shape(name)) {
            (true, _) => None,
            // A subdomain is a likely mistake, and is told apart.
            (false, true) => Some("must not contain dots"),
            (false, false) => Some(LABEL),
        }
    })
}

/// As [`dns1123_label`], its first message.
pub fn is_dns1123_label(name: &str) -> Option<String> {
    dns1123_label(name).into_iter().next()
}

/// A DNS subdomain (RFC 1123): most object names.
pub fn dns1123_subdomain(name: &str) -> Vec<String> {
    measured(name, 253, || (!subdomain_shape(name)).then_some(SUBDOMAIN))
}

/// As [`dns1123_subdomain`], its first message.
pub fn is_dns1123_subdomain(name: &str) -> Option<String> {
    dns1123_subdomain(name).into_iter().next()
}

/// A DNS subdomain whose labels may begin with an underscore and have more of them inside: what resolvers search.
pub fn underscored_subdomain(name: &str) -> Vec<String> {
    let label = |label: &str| {
        let bytes = label.strip_prefix('_').unwrap_or(label).as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if lower(first) && lower(last))
            && bytes
                .iter()
                .all(|&byte| lower(byte) || matches!(byte, b'-' | b'_'))
    };
    measured(name, 253, || {
        (!name.split('.').all(label)).then_some(UNDERSCORED)
    })
}

/// A DNS subdomain whose first label is `*`: hosts of an Ingress.
pub fn wildcard_subdomain(name: &str) -> Vec<String> {
    measured(name, 253, || {
        let rest = name.strip_prefix("*.");
        (!rest.is_some_and(subdomain_shape)).then_some(WILDCARD)
    })
}

/// A name that is one segment of a path. Every message, in order.
pub fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"]
        .into_iter()
        .filter(|part| name.contains(part))
        .map(|part| format!("may not contain '{part}'"))
        .collect()
}

/// A qualified name, `[prefix/]name`: labels' keys, annotations, finalizers, resources. Every message, in order.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let local = match name.split_once('/') {
        None => name,
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "{LABEL_KEY} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, local)) => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > 253 {
                    messages.push(format!("prefix part {}", max_bytes(253)));
                }
                if !subdomain_shape(prefix) {
                    messages.push(format!("prefix part {SUBDOMAIN}"));
                }
            }
            local
        }
    };
    if local.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if local.len() > 63 {
        messages.push(format!("name part {}", max_bytes(63)));
    }
    if !qualified_shape(local) {
        messages.push(format!("name part {QUALIFIED}"));
    }
    messages
}

/// As [`qualified_name`], its first message.
pub fn is_qualified_name(name: &str) -> Option<String> {
    qualified_name(name).into_iter().next()
}

/// A label's value. Every message, in order.
pub fn label_value(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > 63 {
        messages.push(max_bytes(63));
    }
    if !value.is_empty() && !qualified_shape(value) {
        messages.push(LABEL_VALUE.to_owned());
    }
    messages
}

/// As [`label_value`], its first message.
pub fn is_label_value(value: &str) -> Option<String> {
    label_value(value).into_iter().next()
}

/// A key of a ConfigMap or Secret. Every message, in order.
pub fn config_map_key(key: &str) -> Vec<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let mut messages = measured(key, 253, || {
        (key.is_empty() || !key.bytes().all(allowed)).then_some(CONFIG_KEY)
    });
    let reserved = match key {
        "." => Some("must not be '.'"),
        ".." => Some("must not be '..'"),
        _ if key.starts_with("..") => Some("must not start with '..'"),
        _ => None,
    };
    messages.extend(reserved.map(str::to_owned));
    messages
}

/// An environment variable's name.
pub fn is_env_var_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("environment variable name must be non-empty".to_owned());
    }
    let good = name
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=');
    (!good).then(|| ENV_NAME.to_owned())
}

/// A named port (IANA service name). Every message, in order.
pub fn port_name(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.len() > 15 {
        messages.push("must be no more than 15 characters".to_owned());
    }
    if name.is_empty() || !name.bytes().all(|byte| lower(byte) || byte == b'-') {
        messages.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

/// A port number, 1 to 65535.
pub fn is_port_number(port: i64) -> Option<String> {
    (!(1..=65535).contains(&port)).then(|| "must be between 1 and 65535, inclusive".to_owned())
}

/// A number that must not be negative.
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// A number that must be positive.
pub const POSITIVE: &str = "must be greater than 0";

/// A header's name in a probe's request.
pub fn is_http_header_name(name: &str) -> Option<String> {
    let good = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (!good).then(|| HEADER_NAME.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "0", "a-b", "123-abc"] {
            assert!(dns1123_label(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä"] {
            assert_eq!(dns1123_label(bad), [LABEL], "{bad}");
        }
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        for bad in ["", "a..b", ".a", "a.", "Bad_Name"] {
            assert_eq!(dns1123_subdomain(bad), [SUBDOMAIN], "{bad}");
        }
        assert!(underscored_subdomain("_tcp.a_b.c").is_empty());
        for bad in ["a_.b", "__a", "_", "A"] {
            assert_eq!(underscored_subdomain(bad), [UNDERSCORED], "{bad}");
        }
    }

    #[test]
    fn length_and_shape_are_told_both() {
        let long = |max: usize| format!("must be no more than {max} characters");
        assert_eq!(dns1123_label(&"a".repeat(64)), [long(63)]);
        assert_eq!(dns1123_label(&"A".repeat(64)), [long(63), LABEL.to_owned()]);
        assert_eq!(
            dns1123_subdomain(&"A".repeat(254)),
            [long(253), SUBDOMAIN.to_owned()]
        );
        let dots = format!("..{}", "/".repeat(252));
        assert_eq!(
            config_map_key(&dots),
            [
                long(253),
                CONFIG_KEY.to_owned(),
                "must not start with '..'".to_owned()
            ]
        );
    }

    #[test]
    fn wildcards_stand_alone_and_first() {
        assert!(wildcard_subdomain("*.a.b").is_empty());
        for bad in ["*", "*.", "a.*", "*.*.x", "*a.b", "a.b"] {
            assert_eq!(wildcard_subdomain(bad), [WILDCARD], "{bad}");
        }
    }

    #[test]
    fn segments_stay_in_their_directory() {
        assert!(path_segment("a.b").is_empty());
        assert_eq!(path_segment(".."), ["may not be '..'"]);
        assert_eq!(
            path_segment("a/b%c"),
            ["may not contain '/'", "may not contain '%'"]
        );
    }

    #[test]
    fn qualified_names_report_both_parts() {
        assert!(qualified_name("example.com/My.Name_1").is_empty());
        assert_eq!(
            qualified_name("a b/c"),
            [format!("prefix part {SUBDOMAIN}")]
        );
        assert_eq!(qualified_name("/").len(), 3);
        assert!(qualified_name("bad/key/x")[0].starts_with("a valid label key must consist"));
        assert_eq!(
            qualified_name(&"a".repeat(64)),
            ["name part must be no more than 63 bytes"]
        );
        assert_eq!(
            qualified_name(&format!("{}/a", "a".repeat(254))),
            ["prefix part must be no more than 253 bytes"]
        );
        assert_eq!(label_value(""), Vec::<String>::new());
        assert_eq!(label_value("a b"), [LABEL_VALUE]);
    }

    #[test]
    fn keys_ports_and_variables() {
        assert_eq!(config_map_key("..data"), ["must not start with '..'"]);
        assert!(config_map_key("a.b_c-D").is_empty());
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("80").len(), 1);
        assert_eq!(is_env_var_name("1 any_thing"), None);
        assert!(is_env_var_name("a=b").is_some());
        assert_eq!(
            is_env_var_name("").as_deref(),
            Some("environment variable name must be non-empty")
        );
    }
}
