//! `pods/proxy`, `services/proxy` and `nodes/proxy`: HTTP requests that the server passes on, over the node's own link
//! where the target is a pod.
//!
//! What a client says of itself (its credential) stays here. What of a website leads to its root (links in HTML, redirects)
//! is led below the proxy's path, as Kubernetes does it; what scripts make up is not.

mod connection;
mod headers;
mod html;
mod links;
mod page;
mod target;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use gantry_api::status::StatusError;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use self::connection::{Connection, connect};
use self::links::Links;
use self::page::{Coding, Page};
use super::upgrade::protocol_asked_for;
use crate::context::Context;
use crate::peer::Peer;

/// A request's path, cut behind `/proxy`: what leads to the proxy, and what is asked of the target, which is empty where no
/// slash follows. `None` for paths that lead to no proxy.
fn cut(uri: &Uri, namespaced: bool) -> Option<(&str, &str)> {
    let path = uri.path();
    // `/api/v1/namespaces/NAMESPACE/PLURAL/NAME/proxy`, or `/api/v1/PLURAL/NAME/proxy`
    let before = if namespaced { 6 } else { 4 };
    let whole = path.trim_start_matches('/');
    let last = whole.splitn(before + 1, '/').nth(before)?;
    let rest = last.strip_prefix("proxy")?;
    if !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    Some((path.strip_suffix(rest)?, rest))
}

/// Passes a request on and answers with what the target says.
pub(crate) async fn proxy(
    context: &Context<'_>,
    mut request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    if !known.contains(request.method()) {
        return Err(StatusError::method_not_allowed());
    }
    let target = target::find(context)?;
    let uri = request.uri().clone();
    let (prefix, path) = cut(&uri, context.namespace().is_some())
        .ok_or_else(|| StatusError::bad_request("the path leads to no proxy"))?;
    let upgrades = protocol_asked_for(&request).cloned();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if path.is_empty() && reads && upgrades.is_none() {
        return Ok(with_slash(&uri));
    }
    let host = match headers::host(request.headers(), &uri) {
        Some(host) => host,
        None => HeaderValue::from_str(&target.authority())
            .map_err(|error| StatusError::internal(error.to_string()))?,
    };
    let links = Links::new(prefix, target.authority(), host.as_bytes());
    let client = upgrades.is_some().then(|| hyper::upgrade::on(&mut request));
    let peer = request.extensions().get::<Arc<Peer>>();
    let from = peer.map(|peer| peer.address);
    let (parts, body) = request.into_parts();
    let wants_head = parts.method == Method::HEAD;
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = asked(path, uri.query())?;
    *onward.headers_mut() = headers::onward(parts.headers, &host, &uri, from, upgrades);

    let mut connection = connect(target).await?;
    let answer = connection.sender.send_request(onward).await;
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Err(connection.why(&error).await),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(StatusError::new(
                502,
                "",
                "error trying to reach service: it switched to another protocol, which the request did not ask for",
                None,
            ));
        };
        return Ok(switch(client, &mut answer));
    }
    let (mut parts, body) = answer.into_parts();
    let Connection { sender, .. } = connection;
    let body = Held {
        body,
        _sender: sender,
    };
    headers::back(&mut parts.headers);
    let has_body = !wants_head && !http_body::Body::is_end_stream(&body);
    let coding = rewrites(&mut parts.headers, &links).filter(|_| has_body);
    let body = match coding {
        Some(coding) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Body::new(Page::new(body, coding, links))
        }
        None => Body::new(body),
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}

/// What is asked of the target, spelled as the client spelled it.
fn asked(path: &str, query: Option<&str>) -> Result<Uri, StatusError> {
    let path = if path.is_empty() { "/" } else { path };
    let uri = match query {
        Some(query) => format!("{path}?{query}").parse::<Uri>(),
        None => path.parse::<Uri>(),
    };
    uri.map_err(|error| StatusError::bad_request(format!("the path behind /proxy: {error}")))
}

/// Rewrites a redirect. Otherwise tells what a page comes in whose links are to be rewritten.
fn rewrites(headers: &mut HeaderMap, links: &Links) -> Option<Coding> {
    if let Some(location) = headers.get(header::LOCATION)
        && !location.is_empty()
    {
        let location = links.location(location.as_bytes());
        if let Ok(location) = HeaderValue::from_bytes(&location) {
            headers.insert(header::LOCATION, location);
        }
        return None;
    }
    let value = |name: HeaderName| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    let media = value(header::CONTENT_TYPE)
        .split(|byte| *byte == b';')
        .next()?;
    let is_page = media.trim_ascii().eq_ignore_ascii_case(b"text/html");
    Coding::of(value(header::CONTENT_ENCODING)).filter(|_| is_page)
}

/// Answers that the protocol is switched, and copies between both sides once it is.
fn switch(
    client: hyper::upgrade::OnUpgrade,
    answer: &mut Response<hyper::body::Incoming>,
) -> Response<Body> {
    let backend = hyper::upgrade::on(&mut *answer);
    tokio::spawn(async move {
        let Ok((client, backend)) = tokio::try_join!(client, backend) else {
            return;
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    response
}

fn unreachable(why: &str) -> StatusError {
    StatusError::service_unavailable(format!("error trying to reach service: {why}"))
}

/// Sends a client to the same place with a slash behind it, so that relative links lead to the target.
fn with_slash(uri: &Uri) -> Response<Body> {
    let query = uri.query().map(|query| format!("?{query}"));
    let location = format!("{}/{}", uri.path(), query.unwrap_or_default());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A body that keeps its connection until it has been read.
struct Held {
    body: hyper::body::Incoming,
    _sender: http1::SendRequest<Body>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A page, in pieces that end where it has this byte, for the fuzzer.
pub(crate) fn fuzz_page(page: &[u8]) {
    let links = Links::new("/proxy", "10.0.0.1:80".to_owned(), b"localhost");
    let mut rewriter = html::Rewriter::new(links);
    let mut out = Vec::new();
    for piece in page.split_inclusive(|byte| *byte == 0) {
        rewriter.piece(piece, &mut out);
    }
    rewriter.finish(&mut out);
}

#[cfg(test)]
mod tests;
