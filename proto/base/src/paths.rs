//! Paths of the REST API. Every path in which a name stands is built here, so that no name changes what is asked for.

use std::fmt::Write as _;

/// A path of these segments, each of them escaped: none can add a segment, begin a query, or lead upwards. An empty one
/// would turn an object's path into its collection's; it becomes one that no object has.
pub fn path(segments: &[&str]) -> String {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        match *segment {
            "" => path.push_str("%00"),
            "." | ".." => path.push_str(&segment.replace('.', "%2E")),
            segment => escape(segment, &mut path),
        }
    }
    path
}

/// A name as one segment of a path, for who builds the rest of it without looking at names.
pub fn segment(name: &str) -> String {
    path(&[name]).split_off(1)
}

/// Leaves what RFC 3986 calls unreserved, and the few others that names in the API are full of.
fn escape(segment: &str, path: &mut String) {
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                path.push(char::from(byte));
            }
            // Writing to a String does not fail.
            byte => write!(path, "%{byte:02X}").unwrap_or_default(),
        }
    }
}

/// `/api/v1/namespaces/NAMESPACE/PLURAL`, and what follows.
pub fn namespaced(namespace: &str, rest: &[&str]) -> String {
    path(&[&["api", "v1", "namespaces", namespace], rest].concat())
}

/// `/api/v1/nodes/NAME`, and what follows.
pub fn node(name: &str, rest: &[&str]) -> String {
    path(&[&["api", "v1", "nodes", name], rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(segment("?watch=1"), "%3Fwatch%3D1");
        assert_eq!(segment(""), "%00");
    }

    #[test]
    fn names_stay_within_their_segment() {
        assert_eq!(
            namespaced("default", &["pods", "web-1", "status"]),
            "/api/v1/namespaces/default/pods/web-1/status"
        );
        assert_eq!(node("a.b", &[]), "/api/v1/nodes/a.b");
        for (name, escaped) in [
            ("default/secrets/x?", "default%2Fsecrets%2Fx%3F"),
            ("..", "%2E%2E"),
            ("", "%00"),
            ("a#b c", "a%23b%20c"),
            ("%2F", "%252F"),
            ("\u{e9}\n", "%C3%A9%0A"),
            ("system:node:a", "system:node:a"),
        ] {
            assert_eq!(path(&["api", name]), format!("/api/{escaped}"), "{name:?}");
        }
    }
}
