//! The rules names must keep. Every function answers `None` for a good name, else the message Kubernetes gives.

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
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

/// A DNS label (RFC 1123): pods' hostnames, container and volume names, namespaces.
pub fn is_dns1123_label(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some(max_length(63));
    }
    if label_shape(name) {
        return None;
    }
    // A subdomain is a likely mistake, and is told apart.
    let detail = match name.len() <= 253 && name.split('.').all(label_shape) {
        true => "must not contain dots",
        false => LABEL,
    };
    Some(detail.to_owned())
}

/// A DNS subdomain (RFC 1123): most object names.
pub fn is_dns1123_subdomain(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some(max_length(253));
    }
    (!name.split('.').all(label_shape)).then(|| SUBDOMAIN.to_owned())
}

/// A DNS subdomain whose first label is `*`: hosts of an Ingress.
pub fn is_wildcard_subdomain(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some(max_length(253));
    }
    let rest = name.strip_prefix("*.");
    let good = rest.is_some_and(|rest| rest.split('.').all(label_shape));
    (!good).then(|| WILDCARD.to_owned())
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

/// A DNS label (RFC 1035), which starts with a letter: service names.
pub fn is_dns1035_label(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some(max_length(63));
    }
    let good = label_shape(name) && name.as_bytes()[0].is_ascii_lowercase();
    (!good).then(|| LABEL_1035.to_owned())
}

fn qualified_with(name: &str, words: &str, prefixed: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let local = match name.split_once('/') {
        None => name,
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "{prefixed}{words} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, local)) => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_owned());
            } else if let Some(message) = is_dns1123_subdomain(prefix) {
                messages.push(format!("prefix part {message}"));
            }
            local
        }
    };
    if local.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if local.len() > 63 {
        messages.push(format!("name part {}", max_length(63)));
    }
    if !qualified_shape(local) {
        messages.push(format!("name part {words}"));
    }
    messages
}

/// A qualified name, `[prefix/]name`: finalizers, resource names, annotations. Every message, in order.
pub fn qualified_name(name: &str) -> Vec<String> {
    qualified_with(name, QUALIFIED, "a qualified name ")
}

/// As [`qualified_name`], its first message.
pub fn is_qualified_name(name: &str) -> Option<String> {
    qualified_name(name).into_iter().next()
}

/// A label's key. Every message, in order.
pub fn label_key(name: &str) -> Vec<String> {
    if name.split('/').count() > 2 {
        return vec![format!(
            "{LABEL_KEY} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )];
    }
    qualified_name(name)
}

/// A label's value. Every message, in order.
pub fn label_value(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > 63 {
        messages.push("must be no more than 63 bytes".to_owned());
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

/// A key of a ConfigMap or Secret.
pub fn is_config_map_key(key: &str) -> Option<String> {
    if key.len() > 253 {
        return Some(max_length(253));
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    {
        return Some(CONFIG_KEY.to_owned());
    }
    match key {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if key.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// An environment variable's name.
pub fn is_env_var_name(name: &str) -> Option<String> {
    let good = !name.is_empty()
        && name
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

/// An IP address without a zone or leading zeros.
pub fn is_ip_address(text: &str) -> Option<String> {
    text.parse::<std::net::IpAddr>()
        .is_err()
        .then(|| "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
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
            assert_eq!(is_dns1123_label(good), None, "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä"] {
            assert!(is_dns1123_label(bad).is_some(), "{bad}");
        }
        assert_eq!(is_dns1123_subdomain("a.b-c.d"), None);
        for bad in ["", "a..b", ".a", "a.", "Bad_Name"] {
            assert_eq!(
                is_dns1123_subdomain(bad).as_deref(),
                Some(SUBDOMAIN),
                "{bad}"
            );
        }
        assert_eq!(
            is_dns1123_label(&"a".repeat(64)).as_deref(),
            Some("must be no more than 63 characters")
        );
        assert!(is_dns1035_label("1a").is_some());
        assert_eq!(is_dns1035_label("a1"), None);
    }

    #[test]
    fn wildcards_stand_alone_and_first() {
        assert_eq!(is_wildcard_subdomain("*.a.b"), None);
        for bad in ["*", "*.", "a.*", "*.*.x", "*a.b", "a.b"] {
            assert_eq!(
                is_wildcard_subdomain(bad).as_deref(),
                Some(WILDCARD),
                "{bad}"
            );
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
        assert!(label_key("bad/key/x")[0].starts_with("a valid label key must consist"));
        assert_eq!(label_value(""), Vec::<String>::new());
        assert_eq!(label_value("a b"), [LABEL_VALUE]);
    }

    #[test]
    fn keys_ports_and_variables() {
        assert_eq!(
            is_config_map_key("..data").as_deref(),
            Some("must not start with '..'")
        );
        assert_eq!(is_config_map_key("a.b_c-D"), None);
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("80").len(), 1);
        assert_eq!(is_env_var_name("1 any_thing"), None);
        assert!(is_env_var_name("a=b").is_some());
    }
}
