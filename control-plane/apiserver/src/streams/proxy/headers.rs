//! What of a request's and of an answer's headers passes the proxy, as Go's `httputil.ReverseProxy` and Kubernetes' transport
//! around it have it.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

/// Of one connection only.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Whom a page of another origin may be read by is this server's to say.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];
/// Begins the WebSocket protocol whose name is a token.
const BEARER: &str = "base64url.bearer.authorization.k8s.io.";

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// How a client called this server; `None` for one that did not.
pub(super) fn host(headers: &HeaderMap, uri: &Uri) -> Option<HeaderValue> {
    let said = headers.get(header::HOST).cloned();
    said.or_else(|| HeaderValue::from_str(uri.authority()?.as_str()).ok())
}

fn texts<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter();
    values.filter_map(|value| value.to_str().ok()).collect()
}

/// Removes what is of one connection only, and what it says is.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = texts(headers, &header::CONNECTION)
        .into_iter()
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Replaces the values of a header by one of them all.
fn join(headers: &mut HeaderMap, name: &HeaderName, separator: &str, more: Option<&str>) {
    if more.is_none() && headers.get_all(name).iter().nth(1).is_none() {
        return;
    }
    let mut all = texts(headers, name);
    all.extend(more);
    let joined = all.join(separator);
    match HeaderValue::from_str(&joined) {
        Ok(value) if !joined.is_empty() => {
            headers.insert(name, value);
        }
        _ => {
            headers.remove(name);
        }
    }
}

/// Removes what makes its sender somebody: that is said to this server alone.
fn without_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    let others: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in others {
        headers.remove(name);
    }
    let offered = texts(headers, &header::SEC_WEBSOCKET_PROTOCOL).join(",");
    if offered.contains(BEARER) {
        let kept: Vec<&str> = offered
            .split(',')
            .map(str::trim)
            .filter(|protocol| !protocol.starts_with(BEARER))
            .collect();
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Ok(kept) = HeaderValue::from_str(&kept.join(", "))
            && !kept.is_empty()
        {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept);
        }
    }
}

/// A request's headers as the target gets them. `uri` is what this server was asked for, by `client`; `upgrade` the protocol
/// that the client would switch to.
pub(super) fn onward(
    mut headers: HeaderMap,
    host: &HeaderValue,
    uri: &Uri,
    client: Option<IpAddr>,
    upgrade: Option<HeaderValue>,
) -> HeaderMap {
    let trailers = texts(&headers, &header::TE)
        .iter()
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    strip(&mut headers);
    without_credentials(&mut headers);
    // HTTP/2 has each cookie by itself, HTTP/1.1 all of them in one header.
    join(&mut headers, &header::COOKIE, "; ", None);
    let client = client.map(|address| address.to_canonical().to_string());
    join(&mut headers, &FORWARDED_FOR, ", ", client.as_deref());
    headers.insert(header::HOST, host.clone());
    // A proxy before this server knows better than this server what its client asked for.
    let forwarded = headers.entry(FORWARDED_HOST);
    forwarded.or_insert_with(|| host.clone());
    let forwarded = headers.entry(FORWARDED_PROTO);
    forwarded.or_insert(HeaderValue::from_static("https"));
    match HeaderValue::from_str(uri.path()) {
        Ok(path) => headers.insert(FORWARDED_URI, path),
        Err(_) => headers.remove(FORWARDED_URI),
    };
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    headers
}

/// An answer's headers as the client gets them.
pub(super) fn back(headers: &mut HeaderMap) {
    strip(headers);
    for name in &CORS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn passed(pairs: &[(&'static str, &'static str)], upgrade: Option<&'static str>) -> HeaderMap {
        let host = HeaderValue::from_static("api:6443");
        let uri = Uri::from_static("/api/v1/namespaces/d/pods/p/proxy/a%20b/?c");
        let client = Some(IpAddr::from([192, 0, 2, 1]));
        let upgrade = upgrade.map(HeaderValue::from_static);
        onward(headers(pairs), &host, &uri, client, upgrade)
    }

    #[test]
    fn what_is_of_a_connection_or_says_who_asks_stays_here() {
        let onward = passed(
            &[
                ("authorization", "Bearer secret"),
                ("impersonate-user", "a"),
                ("impersonate-extra-b", "c"),
                ("connection", "close, X-Mine"),
                ("x-mine", "1"),
                ("keep-alive", "1"),
                ("proxy-connection", "1"),
                ("te", "gzip, trailers"),
                ("trailer", "x"),
                ("upgrade", "h2c"),
                ("accept-encoding", "gzip"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ],
            None,
        );
        let expected = headers(&[
            ("accept-encoding", "gzip"),
            ("cookie", "a=1; b=2"),
            ("host", "api:6443"),
            ("te", "trailers"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "api:6443"),
            ("x-forwarded-proto", "https"),
            (
                "x-forwarded-uri",
                "/api/v1/namespaces/d/pods/p/proxy/a%20b/",
            ),
        ]);
        assert_eq!(onward, expected);
    }

    #[test]
    fn proxies_before_this_one_are_believed_and_clients_are_added() {
        let onward = passed(
            &[
                ("x-forwarded-for", "198.51.100.1, 198.51.100.2"),
                ("x-forwarded-host", "example.com"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-uri", "/other"),
            ],
            None,
        );
        assert_eq!(
            onward["x-forwarded-for"],
            "198.51.100.1, 198.51.100.2, 192.0.2.1"
        );
        assert_eq!(onward["x-forwarded-host"], "example.com");
        assert_eq!(onward["x-forwarded-proto"], "http");
        assert_ne!(onward["x-forwarded-uri"], "/other");
    }

    #[test]
    fn an_upgrade_passes_without_the_token_among_its_protocols() {
        let token = "chat, base64url.bearer.authorization.k8s.io.c2VjcmV0";
        let onward = passed(
            &[
                ("connection", "Upgrade"),
                ("sec-websocket-protocol", token),
                ("sec-websocket-key", "k"),
            ],
            Some("websocket"),
        );
        assert_eq!(onward["connection"], "upgrade");
        assert_eq!(onward["upgrade"], "websocket");
        assert_eq!(onward["sec-websocket-protocol"], "chat");
        assert_eq!(onward["sec-websocket-key"], "k");
    }

    #[test]
    fn answers_say_nothing_of_connections_and_origins() {
        let mut answer = headers(&[
            ("connection", "keep-alive, x-own"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
            ("transfer-encoding", "chunked"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]);
        back(&mut answer);
        let expected = headers(&[
            ("access-control-expose-headers", "x"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]);
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_host_is_named_by_header_or_authority() {
        let uri = Uri::from_static("https://b:6443/x");
        let host =
            |pairs: &[(&'static str, &'static str)], uri: &Uri| super::host(&headers(pairs), uri);
        let named = host(&[("host", "a")], &uri);
        assert_eq!(named, Some(HeaderValue::from_static("a")));
        assert_eq!(host(&[], &uri), Some(HeaderValue::from_static("b:6443")));
        assert_eq!(host(&[], &Uri::from_static("/x")), None);
    }
}
