//! What a request asks for: its path and method taken apart.

mod info;

pub(crate) use info::RequestInfo;

use std::collections::HashMap;
use std::num::IntErrorKind;

use gantry_api::status::StatusError;
use http::Method;

/// The path of a resource request, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: Option<String>,
    pub(crate) resource: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// Whether it begins with `watch/` behind the version, as watches of old did.
    pub(crate) watches: bool,
}

/// What kind of path it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/api/v1/...` or `/apis/GROUP/VERSION/...`
    Resource(ResourcePath),
    /// Everything else, without a trailing slash.
    Other(String),
}

/// Takes a path apart; `None` for one that names a group and version with nothing valid behind.
pub(crate) fn route(path: &str) -> Route {
    let trimmed = path.trim_end_matches('/');
    let parts: Vec<&str> = trimmed.trim_start_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Route::Other(trimmed.to_owned()),
    };
    let (watches, rest) = match rest {
        ["watch", watched @ ..] if !watched.is_empty() => (true, watched),
        rest => (false, rest),
    };
    let mut resource = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        watches,
        ..ResourcePath::default()
    };
    let rest = match rest {
        // `/namespaces/NAME` is the Namespace itself; with more behind, a scope.
        ["namespaces", name, subresource @ ("status" | "finalize")] => {
            resource.resource = "namespaces".to_owned();
            resource.name = Some(decode(name));
            resource.subresource = Some((*subresource).to_owned());
            return Route::Resource(resource);
        }
        ["namespaces", namespace, inner @ ..] if !inner.is_empty() => {
            resource.namespace = Some(decode(namespace));
            inner
        }
        rest => rest,
    };
    if let Some(name) = rest.first() {
        resource.resource = (*name).to_owned();
    }
    resource.name = rest.get(1).map(|name| decode(name));
    if rest.len() > 2 {
        resource.subresource = Some(rest[2..].join("/"));
    }
    Route::Resource(resource)
}

/// The verb of the API, as authorisation and metrics name it. GET of one object is no watch, whatever its query says.
fn verb(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    match (method, path.name.is_some()) {
        _ if path.watches => "watch",
        (&Method::GET | &Method::HEAD, true) => "get",
        (&Method::GET | &Method::HEAD, false) if query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => "unknown",
    }
}

/// The verb for a path that is no resource's.
fn path_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "patch",
    }
}

/// Names that a query may have: each takes far more memory than it has bytes. Values may be more, as the arguments of a
/// command are.
const MAX_NAMES: usize = 128;

/// A query string, decoded. A repeated name keeps all its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    values: HashMap<String, Vec<String>>,
    /// Whether it had more names than are kept.
    cut: bool,
}

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let mut query = Self::default();
        for pair in text
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.add(
                decode(&name.replace('+', " ")),
                decode(&value.replace('+', " ")),
            );
        }
        query
    }

    fn add(&mut self, name: String, value: String) {
        if self.values.len() >= MAX_NAMES && !self.values.contains_key(&name) {
            self.cut = true;
            return;
        }
        self.values.entry(name).or_default().push(value);
    }

    /// Refuses one that had more names than were kept.
    pub(crate) fn check(&self) -> Result<(), StatusError> {
        match self.cut {
            true => Err(StatusError::bad_request(format!(
                "the query has more than {MAX_NAMES} different parameters"
            ))),
            false => Ok(()),
        }
    }

    /// The first value of each of some names, and nothing else.
    pub(crate) fn only(&self, names: &[&str]) -> Self {
        let mut query = Self::default();
        for name in names {
            if let Some(first) = self.values.get(*name).and_then(|values| values.first()) {
                query.add((*name).to_owned(), first.clone());
            }
        }
        query
    }

    /// The first value of a name; an empty one counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)?
            .first()
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The first value of a name, empty where it has none.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.first().map(String::as_str)
    }

    /// A whole number, as Go reads it: an empty text is none.
    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, StatusError> {
        let text = self.first(name);
        text.map(|text| {
            text.parse::<i64>().map_err(|error| {
                let why = go_reason(error.kind());
                StatusError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
            })
        })
        .transpose()
    }

    /// `resourceVersion` of what is no list. Kubernetes answers 500 for all that is none; here only words get that answer,
    /// which clients may know.
    pub(crate) fn resource_version(&self) -> Result<Option<u64>, StatusError> {
        let Some(text) = self.get("resourceVersion") else {
            return Ok(None);
        };
        parse_version(text).map(Some).map_err(|why| {
            match text.bytes().all(|byte| byte.is_ascii_lowercase()) {
                true => StatusError::unclassified(why),
                false => StatusError::bad_request(why),
            }
        })
    }

    /// Every value of a name.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Anything but `0` and `false`, however that is written; also present without a value.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.first(name)
            .is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

/// A resource version, or why it is none.
pub(crate) fn parse_version(text: &str) -> Result<u64, String> {
    let refused = |why| {
        format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {why}"
        )
    };
    // Go allows no sign, not even that of what is positive.
    match text.starts_with('+') {
        true => Err(refused("invalid syntax")),
        false => text
            .parse::<u64>()
            .map_err(|error| refused(go_reason(error.kind()))),
    }
}

/// Why Go would not read a number.
fn go_reason(error: &IntErrorKind) -> &'static str {
    match error {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    }
}

/// Percent-decoding; what is not valid stays as it is.
fn decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text
            .get(at + 1..at + 3)
            .filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match route(path) {
            Route::Resource(resource) => resource,
            Route::Other(other) => panic!("{other} is no resource"),
        }
    }

    #[test]
    fn paths_are_taken_apart() {
        let pod = resource("/api/v1/namespaces/default/pods/web-1/log");
        assert_eq!(pod.namespace.as_deref(), Some("default"));
        assert_eq!(
            (
                pod.resource.as_str(),
                pod.name.as_deref(),
                pod.subresource.as_deref()
            ),
            ("pods", Some("web-1"), Some("log"))
        );
        let namespace = resource("/api/v1/namespaces/default");
        assert_eq!(
            (
                namespace.resource.as_str(),
                namespace.name.as_deref(),
                namespace.namespace
            ),
            ("namespaces", Some("default"), None)
        );
        let finalize = resource("/api/v1/namespaces/x/finalize");
        assert_eq!(
            (finalize.resource.as_str(), finalize.subresource.as_deref()),
            ("namespaces", Some("finalize"))
        );
        let all = resource("/apis/apps/v1/deployments");
        assert_eq!(
            (all.group.as_str(), all.resource.as_str(), all.name),
            ("apps", "deployments", None)
        );
        let watched = resource("/api/v1/watch/namespaces/default/pods/web-1");
        assert_eq!(
            (
                watched.watches,
                watched.namespace.as_deref(),
                watched.resource.as_str(),
                watched.name.as_deref()
            ),
            (true, Some("default"), "pods", Some("web-1"))
        );
        let watched = resource("/apis/apps/v1/watch/deployments");
        assert_eq!(
            (watched.watches, watched.resource.as_str()),
            (true, "deployments")
        );
        let named = resource("/api/v1/watch");
        assert_eq!((named.watches, named.resource.as_str()), (false, "watch"));
        assert_eq!(route("/api/v1"), Route::Other("/api/v1".to_owned()));
        assert_eq!(route("/healthz/"), Route::Other("/healthz".to_owned()));
    }

    #[test]
    fn numbers_are_what_go_reads_and_nothing_else() {
        let query = |value: &str| Query::parse(Some(&format!("n={value}&resourceVersion={value}")));
        for (text, number) in [("5", 5), ("-5", -5), ("%2B5", 5), ("0", 0), ("007", 7)] {
            assert_eq!(query(text).number("n"), Ok(Some(number)), "{text}");
        }
        assert_eq!(query("5").number("m"), Ok(None));
        assert!(query("").resource_version().is_ok());
        let error = query("").number("n").expect_err("no number");
        let why = "strconv.ParseInt: parsing \"\": invalid syntax";
        assert_eq!((error.code(), error.message()), (400, why));
        for (text, why) in [
            ("x", "invalid syntax"),
            ("+5", "invalid syntax"),
            ("1.5", "invalid syntax"),
            ("1e3", "invalid syntax"),
            ("NaN", "invalid syntax"),
            ("%ff", "invalid syntax"),
            ("1000000000000000000000000000000", "value out of range"),
        ] {
            let error = query(text).number("n").expect_err(text);
            assert_eq!(error.code(), 400, "{text}");
            assert!(error.message().ends_with(why), "{}", error.message());
            let error = query(text).resource_version().expect_err(text);
            let code = if text == "x" { 500 } else { 400 };
            assert_eq!((error.code(), text), (code, text));
        }
        for text in ["-1", "%2B1", "18446744073709551616", "0x10", "1_000"] {
            assert_eq!(
                query(text).resource_version().expect_err(text).code(),
                400,
                "{text}"
            );
        }
        assert_eq!(
            query("18446744073709551615").resource_version(),
            Ok(Some(u64::MAX))
        );
        assert_eq!(query("%+5").get("n"), Some("% 5"));
    }

    #[test]
    fn a_query_has_few_names_and_any_number_of_values() {
        let names = |count: usize| -> String {
            let names: Vec<_> = (0..count).map(|number| format!("n{number}=v")).collect();
            names.join("&")
        };
        assert_eq!(Query::parse(Some(&names(MAX_NAMES))).check(), Ok(()));
        let many = Query::parse(Some(&names(MAX_NAMES + 1)));
        assert_eq!(many.check().expect_err("too many").code(), 400);
        assert_eq!(many.values.len(), MAX_NAMES);
        let command = Query::parse(Some(&"command=a&".repeat(2 * MAX_NAMES)));
        assert_eq!(command.check(), Ok(()));
        assert_eq!(command.all("command").len(), 2 * MAX_NAMES);
        let kept = Query::parse(Some("a=1&a=2&b=3&c=4")).only(&["a", "c", "d"]);
        assert_eq!(kept, Query::parse(Some("a=1&c=4")));
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&watch&dryRun=All&limit="));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch"));
        assert!(!query.flag("allowWatchBookmarks"));
        assert_eq!(query.get("limit"), None);
        assert_eq!(query.all("dryRun"), ["All"]);
    }
}
