//! From an HTTP request to a streaming protocol: which one both sides know, and the answer that switches to it.
//!
//! | request | exec, attach | port-forward | log |
//! | --- | --- | --- | --- |
//! | `Upgrade: websocket` | `v5.channel.k8s.io`, `v4.channel.k8s.io`, `v4.base64.channel.k8s.io`, `channel.k8s.io`, `base64.channel.k8s.io`, none | `SPDY/3.1+portforward.k8s.io`, `ends.v4.channel.gantry`, `v4.channel.k8s.io`, `v4.base64.channel.k8s.io`, none | `binary.k8s.io`, `base64.binary.k8s.io`, none |
//! | `Upgrade: SPDY/3.1` | `v4.channel.k8s.io`, `v3.channel.k8s.io`, `v2.channel.k8s.io` | `portforward.k8s.io` | |

use axum::body::Body;
use gantry_api::status::StatusError;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const SPDY: &str = "SPDY/3.1";
/// Where SPDY clients offer their subprotocols.
const SPDY_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How the bytes travel after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    WebSocket,
    Spdy,
}

/// What a request was upgraded to.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) transport: Transport,
    /// Empty where a WebSocket client offered none.
    pub(super) protocol: &'static str,
    /// The answer to the client's `Sec-WebSocket-Key`.
    accept: Option<HeaderValue>,
}

/// What a subresource speaks over each transport.
pub(super) struct Known {
    /// Over WebSocket; the empty name stands for clients that offer none.
    pub(super) websocket: &'static [&'static str],
    /// Of those, the ones that are taken before all others wherever a client names them, the best first.
    pub(super) newest: &'static [&'static str],
    pub(super) spdy: &'static [&'static str],
}

fn offers<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect()
}

fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    offers(headers, name)
        .iter()
        .any(|offered| offered.eq_ignore_ascii_case(wanted))
}

/// The protocol that a request asks to switch to, in its own words. Only connections of HTTP/1.1 can.
pub(crate) fn protocol_asked_for<B>(request: &Request<B>) -> Option<&HeaderValue> {
    let headers = request.headers();
    let asks =
        request.version() == Version::HTTP_11 && has(headers, &header::CONNECTION, "upgrade");
    headers.get(header::UPGRADE).filter(|_| asks)
}

/// Whether a request asks for WebSocket, on a connection that can become one.
pub(crate) fn asks_for_websocket<B>(request: &Request<B>) -> bool {
    protocol_asked_for(request).is_some() && has(request.headers(), &header::UPGRADE, "websocket")
}

/// The first of a client's protocols that is known.
fn choose(offered: &[&str], known: &[&'static str]) -> Result<&'static str, StatusError> {
    let is_offered = |offer: &&str| known.iter().copied().find(|known| known == offer);
    offered.iter().find_map(is_offered).ok_or_else(|| {
        let known: Vec<&str> = known
            .iter()
            .copied()
            .filter(|name| !name.is_empty())
            .collect();
        let message = format!(
            "unable to upgrade: the client offered [{}], and this server knows [{}]",
            offered.join(", "),
            known.join(", ")
        );
        StatusError::new(403, "Forbidden", message, None)
    })
}

fn choose_websocket(headers: &HeaderMap, known: &Known) -> Result<&'static str, StatusError> {
    let mut offered = offers(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    offered.retain(|name| !name.is_empty());
    if offered.is_empty() {
        offered.push("");
    }
    let mut newest = known.newest.iter().copied();
    let newest = newest.find(|newest| offered.contains(newest));
    newest.map_or_else(|| choose(&offered, known.websocket), Ok)
}

/// Which protocol to switch to, or why not.
pub(super) fn agree(
    method: &Method,
    headers: &HeaderMap,
    known: &Known,
) -> Result<Agreed, StatusError> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Err(StatusError::method_not_allowed());
    }
    let upgrades = has(headers, &header::CONNECTION, "upgrade");
    if upgrades && has(headers, &header::UPGRADE, "websocket") {
        let key = headers
            .get(header::SEC_WEBSOCKET_KEY)
            .ok_or_else(|| StatusError::bad_request("the header Sec-WebSocket-Key is missing"))?;
        let version = headers.get(header::SEC_WEBSOCKET_VERSION);
        if version.is_some_and(|version| version != "13") {
            return Err(StatusError::bad_request(
                "this server speaks version 13 of WebSocket",
            ));
        }
        return Ok(Agreed {
            transport: Transport::WebSocket,
            protocol: choose_websocket(headers, known)?,
            accept: HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok(),
        });
    }
    if upgrades && has(headers, &header::UPGRADE, SPDY) {
        return Ok(Agreed {
            transport: Transport::Spdy,
            protocol: choose(&offers(headers, &SPDY_PROTOCOL), known.spdy)?,
            accept: None,
        });
    }
    Err(StatusError::bad_request(
        "Upgrade request required: this server streams over WebSocket and SPDY/3.1",
    ))
}

impl Agreed {
    /// The answer that switches.
    fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let protocol = HeaderValue::from_static(self.protocol);
        match self.transport {
            Transport::WebSocket => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                // Who offered none must not be answered with one.
                if !protocol.is_empty() {
                    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
                }
            }
            Transport::Spdy => {
                headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
                headers.insert(SPDY_PROTOCOL, protocol);
            }
        }
        if let Some(accept) = self.accept {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }

    /// Answers the request, and serves the connection in the background once the client has switched.
    pub(super) fn switch<F>(
        self,
        mut request: Request<Body>,
        serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
    ) -> Response<Body>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(connection) => serve(TokioIo::new(connection)).await,
                Err(error) => tracing::debug!(%error, "the client left before the upgrade"),
            }
        });
        self.response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known {
        websocket: &["", "v4.channel.k8s.io", "base64.channel.k8s.io"],
        newest: &["v5.channel.k8s.io"],
        spdy: &["v4.channel.k8s.io"],
    };

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_newest_common_protocol_is_agreed() {
        let websocket = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            (
                "sec-websocket-protocol",
                "v4.channel.k8s.io, v5.channel.k8s.io",
            ),
        ]);
        let agreed = agree(&Method::GET, &websocket, &KNOWN).expect("agreed");
        assert_eq!(
            (agreed.transport, agreed.protocol),
            (Transport::WebSocket, "v5.channel.k8s.io")
        );
        let response = agreed.response();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );

        let spdy = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        let response = agree(&Method::POST, &spdy, &KNOWN)
            .expect("agreed")
            .response();
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(
            response.headers()["x-stream-protocol-version"],
            "v4.channel.k8s.io"
        );
    }

    #[test]
    fn the_first_protocol_of_the_client_that_is_known_is_taken() {
        let agreed = |offered: &'static str| {
            let mut headers = headers(&[
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-version", "13"),
            ]);
            if !offered.is_empty() {
                let offered = HeaderValue::from_static(offered);
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
            }
            agree(&Method::GET, &headers, &KNOWN).map_err(|error| error.code())
        };
        for (offered, taken) in [
            ("base64.channel.k8s.io", "base64.channel.k8s.io"),
            (
                "new, base64.channel.k8s.io,v4.channel.k8s.io",
                "base64.channel.k8s.io",
            ),
            ("v4.channel.k8s.io, v5.channel.k8s.io", "v5.channel.k8s.io"),
        ] {
            let agreed = agreed(offered).expect(offered);
            assert_eq!(agreed.protocol, taken);
            assert_eq!(agreed.response().headers()["sec-websocket-protocol"], taken);
        }
        let none = agreed("").expect("a client may offer none");
        assert_eq!(none.protocol, "");
        let response = none.response();
        assert!(!response.headers().contains_key("sec-websocket-protocol"));
        assert_eq!(agreed("new").err(), Some(403));
    }

    #[test]
    fn a_protocol_is_asked_for_by_two_headers_and_on_one_version_only() {
        let asked = |version, pairs: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            *request.headers_mut() = headers(pairs);
            protocol_asked_for(&request).is_some()
        };
        let upgrade = ("upgrade", "websocket");
        let (keep, switch) = (("connection", "keep-alive"), ("connection", "Upgrade"));
        assert!(asked(Version::HTTP_11, &[switch, upgrade]));
        assert!(asked(Version::HTTP_11, &[keep, switch, upgrade]));
        assert!(!asked(Version::HTTP_11, &[keep, upgrade]));
        assert!(!asked(Version::HTTP_11, &[switch]));
        assert!(!asked(Version::HTTP_10, &[switch, upgrade]));
        assert!(!asked(Version::HTTP_2, &[switch, upgrade]));
        let websocket = |upgrade: &'static str| {
            let mut request = Request::new(());
            *request.headers_mut() = headers(&[switch, ("upgrade", upgrade)]);
            asks_for_websocket(&request)
        };
        assert!(websocket("WebSocket"));
        assert!(!websocket("SPDY/3.1"));
    }

    #[test]
    fn what_cannot_be_agreed_is_said() {
        let unknown = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9"),
        ]);
        let error = agree(&Method::POST, &unknown, &KNOWN).expect_err("unknown");
        assert!(error.to_string().contains("offered [v9]"), "{error}");
        let plain = agree(&Method::GET, &HeaderMap::new(), &KNOWN).expect_err("plain");
        assert!(plain.to_string().starts_with("Upgrade request required"));
        assert!(agree(&Method::PUT, &unknown, &KNOWN).is_err());
        let old = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "8"),
        ]);
        let error = agree(&Method::GET, &old, &KNOWN).expect_err("old");
        assert_eq!(error.code(), 400);
    }
}
