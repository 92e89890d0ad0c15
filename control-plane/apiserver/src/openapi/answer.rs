//! Answers with documents: which form is accepted, and whether the client has it already.

use axum::body::Body;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, EXPIRES, IF_NONE_MATCH,
    LOCATION, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};

use super::documents::{Documents, Form, Made, Which, url};
use crate::heavy::Turn;
use crate::media;
use crate::registry::Registry;

/// Smaller answers are not worth compressing.
const SMALL: usize = 1400;
const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

/// The answer to a request for a path below `/openapi/`; none when nothing is there. `hash` is what the query says, `now`
/// nanoseconds since the epoch.
pub(crate) async fn answer(
    registry: &Registry,
    path: &str,
    hash: Option<&str>,
    headers: &HeaderMap,
    now: i64,
) -> Option<Response<Body>> {
    let which = match path.strip_prefix("/openapi/")? {
        "v2" => Which::V2,
        "v3" => Which::Index,
        path => Which::V3(path.strip_prefix("v3/")?.to_owned()),
    };
    let version = match which {
        Which::V2 => "v2",
        Which::Index | Which::V3(_) => "v3",
    };
    let form = match which {
        Which::Index => Some(Form::Json),
        Which::V2 | Which::V3(_) => accepted(headers, version),
    };
    let Some(form) = form else {
        return Some(status(StatusCode::NOT_ACCEPTABLE));
    };
    let documents = registry.derived::<Documents>();
    let made = documents.get(registry, &which, form).await?;
    let mut answer = HeaderMap::new();
    let content_type = match (&which, form) {
        // As Kubernetes has it.
        (Which::Index, _) => "text/plain; charset=utf-8".to_owned(),
        (_, Form::Json) => "application/json".to_owned(),
        (_, Form::Protobuf) => format!("application/{}", protobuf(version, '.')),
    };
    put(&mut answer, CONTENT_TYPE, &content_type);
    put(&mut answer, ETAG, &format!("\"{}\"", made.hash));
    put(&mut answer, VARY, "Accept, Accept-Encoding");
    if let (Which::V3(root), Some(asked)) = (&which, hash.filter(|hash| !hash.is_empty())) {
        if asked != made.hash {
            put(&mut answer, LOCATION, &url(root, &made.hash));
            return Some(with(StatusCode::MOVED_PERMANENTLY, answer, Bytes::new()));
        }
        // It says the same for ever.
        put(&mut answer, CACHE_CONTROL, "public, immutable");
        put(&mut answer, EXPIRES, &in_a_year(now));
    }
    if has(headers, &made) {
        answer.remove(CONTENT_TYPE);
        return Some(with(StatusCode::NOT_MODIFIED, answer, Bytes::new()));
    }
    let body = match made.bytes.len() >= SMALL && takes_gzip(headers) {
        true => {
            put(&mut answer, CONTENT_ENCODING, "gzip");
            let turn = Turn::wait(made.bytes.len()).await;
            turn.work(|| made.zipped().clone())
        }
        false => made.bytes.clone(),
    };
    Some(with(StatusCode::OK, answer, body))
}

/// `com.github.proto-openapi.spec.v2.v1.0+protobuf`; clients ask for the older name, with an `@`.
fn protobuf(version: &str, separator: char) -> String {
    format!("com.github.proto-openapi.spec.{version}{separator}v1.0+protobuf")
}

/// The first form that the client takes.
fn accepted(headers: &HeaderMap, version: &str) -> Option<Form> {
    let accepted = media::accepted(headers).into_iter();
    let mut ours = accepted.filter(|(main, _)| ["*", "application"].contains(main));
    ours.find_map(|(_, subtype)| {
        let is_protobuf = || {
            ['.', '@']
                .iter()
                .any(|at| subtype == protobuf(version, *at))
        };
        match subtype {
            "*" | "json" => Some(Form::Json),
            _ if is_protobuf() => Some(Form::Protobuf),
            _ => None,
        }
    })
}

/// Whether the client has the document already.
fn has(headers: &HeaderMap, made: &Made) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter();
    let mut known = known.filter_map(|value| value.to_str().ok());
    known.any(|known| {
        known.split(',').map(str::trim).any(|known| {
            let known = known.strip_prefix("W/").unwrap_or(known);
            known == "*" || known.trim_matches('"') == made.hash
        })
    })
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(ACCEPT_ENCODING).iter();
    let mut encodings = encodings.filter_map(|value| value.to_str().ok());
    encodings.any(|encodings| {
        encodings.split(',').any(|encoding| {
            let mut parts = encoding.split(';').map(str::trim);
            let is_gzip = parts.next() == Some("gzip");
            let refused = parts.any(|part| {
                part.strip_prefix("q=")
                    .is_some_and(|quality| quality.parse() == Ok(0.0_f32))
            });
            is_gzip && !refused
        })
    })
}

/// As HTTP writes times.
fn in_a_year(now: i64) -> String {
    Timestamp::from_nanosecond(i128::from(now))
        .and_then(|now| now.checked_add(YEAR))
        .map(|time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Hashes and names of groups are ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut headers = HeaderMap::new();
    put(&mut headers, VARY, "Accept");
    with(status, headers, Bytes::new())
}

fn with(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use http::header::ACCEPT;
    use http_body_util::BodyExt;

    use super::*;

    struct Server {
        registry: Registry,
    }

    impl Server {
        fn new() -> Self {
            Self {
                registry: Registry::built_in(),
            }
        }

        async fn get(
            &self,
            path: &str,
            hash: Option<&str>,
            headers: &[(HeaderName, &str)],
        ) -> Option<Response<Body>> {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(name.clone(), HeaderValue::from_str(value).expect("a value"));
            }
            answer(&self.registry, path, hash, &map, 0).await
        }
    }

    fn header(response: &Response<Body>, name: HeaderName) -> &str {
        let value = response.headers().get(name);
        value.map_or("", |value| value.to_str().expect("text"))
    }

    async fn body(response: Response<Body>) -> Bytes {
        response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes()
    }

    #[tokio::test]
    async fn the_form_is_what_the_client_takes() {
        let server = Server::new();
        for (path, accept, content_type) in [
            ("v2", "*/*", "application/json"),
            ("v2", "application/*", "application/json"),
            ("v2", "", "application/json"),
            (
                "v2",
                "application/com.github.proto-openapi.spec.v2@v1.0+protobuf, application/json",
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            ),
            (
                "v3/apis/apps/v1",
                "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
                "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
            ),
            (
                "v3/apis/apps/v1",
                "application/yaml, */*;q=0.5",
                "application/json",
            ),
            ("v3", "application/json", "text/plain; charset=utf-8"),
        ] {
            let path = ["/openapi/", path].concat();
            let answer = server.get(&path, None, &[(ACCEPT, accept)]).await;
            let answer = answer.expect("is served");
            assert_eq!(answer.status(), StatusCode::OK, "{path} {accept}");
            assert_eq!(
                header(&answer, CONTENT_TYPE),
                content_type,
                "{path} {accept}"
            );
            assert!(header(&answer, CACHE_CONTROL).is_empty());
        }
        for (path, accept) in [
            ("/openapi/v2", "application/yaml"),
            (
                "/openapi/v2",
                "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
            ),
            ("/openapi/v3/api/v1", "text/html"),
        ] {
            let answer = server.get(path, None, &[(ACCEPT, accept)]).await;
            let answer = answer.expect("is served");
            assert_eq!(
                answer.status(),
                StatusCode::NOT_ACCEPTABLE,
                "{path} {accept}"
            );
        }
        for none in [
            "/openapi/v1",
            "/openapi/v3/",
            "/openapi/v3/apis/made.up/v1",
            "/openapi/v2/x",
        ] {
            assert!(server.get(none, None, &[]).await.is_none(), "{none}");
        }
    }

    #[tokio::test]
    async fn what_the_client_has_is_not_sent_again() {
        let server = Server::new();
        let path = "/openapi/v3/apis/apps/v1";
        let first = server.get(path, None, &[]).await.expect("is served");
        let tag = header(&first, ETAG).to_owned();
        let json = body(first).await;
        let weak = format!("\"other\", W/{tag}");
        for known in [tag.as_str(), weak.as_str(), "*"] {
            let again = server.get(path, None, &[(IF_NONE_MATCH, known)]).await;
            let again = again.expect("is served");
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(header(&again, ETAG), tag);
            assert!(body(again).await.is_empty());
        }
        let other = server
            .get(path, None, &[(IF_NONE_MATCH, "\"other\"")])
            .await;
        assert_eq!(body(other.expect("is served")).await, json);
        let protobuf = [(
            ACCEPT,
            "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
        )];
        let protobuf = server.get(path, None, &protobuf).await.expect("is served");
        assert_eq!(header(&protobuf, ETAG), tag, "it is the same document");
    }

    #[tokio::test]
    async fn a_hash_that_is_asked_for_may_be_kept_and_an_old_one_leads_to_the_new() {
        let server = Server::new();
        let path = "/openapi/v3/apis/apps/v1";
        let old = server.get(path, Some("OLD"), &[]).await.expect("is served");
        assert_eq!(old.status(), StatusCode::MOVED_PERMANENTLY);
        let location = header(&old, LOCATION).to_owned();
        let (moved, hash) = location.split_once("?hash=").expect("a hash");
        assert_eq!(moved, path);
        let new = server.get(path, Some(hash), &[]).await.expect("is served");
        assert_eq!(new.status(), StatusCode::OK);
        assert_eq!(header(&new, CACHE_CONTROL), "public, immutable");
        assert_eq!(header(&new, EXPIRES), "Fri, 01 Jan 1971 00:00:00 GMT");
        let any = server.get("/openapi/v2", Some("OLD"), &[]).await;
        assert_eq!(any.expect("is served").status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn documents_are_compressed_for_those_who_take_it() {
        let server = Server::new();
        let plain = server
            .get("/openapi/v2", None, &[])
            .await
            .expect("is served");
        assert!(header(&plain, CONTENT_ENCODING).is_empty());
        let plain = body(plain).await;
        let gzip = server
            .get("/openapi/v2", None, &[(ACCEPT_ENCODING, "br, gzip")])
            .await;
        let gzip = gzip.expect("is served");
        assert_eq!(header(&gzip, CONTENT_ENCODING), "gzip");
        let gzip = body(gzip).await;
        assert!(gzip.len() < plain.len() / 4);
        let mut unzipped = Vec::new();
        let mut decoder = GzDecoder::new(&gzip[..]);
        decoder.read_to_end(&mut unzipped).expect("gzip");
        assert_eq!(plain, unzipped);
        let refused = server
            .get("/openapi/v2", None, &[(ACCEPT_ENCODING, "gzip;q=0")])
            .await;
        assert!(header(&refused.expect("is served"), CONTENT_ENCODING).is_empty());
    }
}
