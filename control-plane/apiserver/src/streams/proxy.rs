//! `pods/proxy`, `services/proxy` and `nodes/proxy`: HTTP requests that the server passes on, over the node's own link
//! where the target is a pod.
//!
//! What a client says of itself (its credential) stays here. Websites behind the proxy are not rewritten: their links
//! must be relative.

mod target;

use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use gantry_api::status::StatusError;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, oneshot};

use self::target::{Backend, Target};
use super::port_forward::{Client, forward};
use super::upgrade::protocol_asked_for;
use super::{Gone, Input};
use crate::context::Context;

/// Bytes under way between the two sides of a connection.
const WINDOW: usize = 64 << 10;
/// How long a target may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of one connection only, or of the client and this server alone.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    header::AUTHORIZATION,
];

/// What is asked of the target: the path behind `/proxy`; none where the client must learn that it ends with a slash.
fn asked_path(uri: &Uri, namespaced: bool) -> Option<&str> {
    // `/api/v1/namespaces/NAMESPACE/PLURAL/NAME/proxy`, or `/api/v1/PLURAL/NAME/proxy`
    let before = if namespaced { 7 } else { 5 };
    let last = uri.path().splitn(before + 1, '/').nth(before)?;
    let rest = last.strip_prefix("proxy")?;
    rest.starts_with('/').then_some(rest)
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
    let upgrades = protocol_asked_for(&request).cloned();
    let Some(path) = asked_path(request.uri(), context.namespace().is_some()) else {
        return Ok(with_slash(request.uri()));
    };
    let uri: Uri = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
    .parse()
    .map_err(|error| StatusError::bad_request(format!("the path behind /proxy: {error}")))?;
    let client = upgrades.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = uri;
    *onward.headers_mut() = headers_onward(parts.headers, &parts.uri, &target, upgrades.clone());

    let (mut sender, failure) = connect(target).await?;
    let answer = sender.send_request(onward).await;
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // The node's own words say more than that the connection broke off.
            let why = failure.await.unwrap_or_else(|_| error.to_string());
            return Err(unreachable(&why));
        }
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
        let backend = hyper::upgrade::on(&mut answer);
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
        return Ok(response);
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    let mut response = Response::new(Body::new(Held {
        body,
        _sender: sender,
    }));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
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

fn strip(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn headers_onward(
    mut headers: HeaderMap,
    uri: &Uri,
    target: &Target,
    upgrade: Option<HeaderValue>,
) -> HeaderMap {
    strip(&mut headers);
    let own = [
        (header::HOST, target.host.clone()),
        (
            HeaderName::from_static("x-forwarded-uri"),
            uri.path().to_owned(),
        ),
        (
            HeaderName::from_static("x-forwarded-proto"),
            "https".to_owned(),
        ),
    ];
    let host = headers.remove(header::HOST);
    if let Some(host) = host {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host);
    }
    for (name, value) in own {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    headers
}

/// A connection, and why it broke off when its node says so.
async fn connect(
    target: Target,
) -> Result<(http1::SendRequest<Body>, oneshot::Receiver<String>), StatusError> {
    let (told, failure) = oneshot::channel();
    let sender = match target.backend {
        Backend::Pod(ports) => {
            let node = ports
                .open(target.port)
                .await
                .map_err(|why| unreachable(&why))?;
            let (near, far) = tokio::io::duplex(WINDOW);
            tokio::spawn(async move {
                if let Err(why) = carry(node, far).await {
                    // Nobody asks any more when the answer has begun.
                    told.send(why).ok();
                }
            });
            handshake(near).await?
        }
        Backend::Address(address) => {
            let connecting = TcpStream::connect((address, target.port));
            let stream = match tokio::time::timeout(PATIENCE, connecting).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    let place = std::net::SocketAddr::new(address, target.port);
                    return Err(unreachable(&format!("dial tcp {place}: {error}")));
                }
                Err(_) => return Err(unreachable(&format!("{address} does not answer"))),
            };
            handshake(stream).await?
        }
    };
    Ok((sender, failure))
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<http1::SendRequest<Body>, StatusError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(&error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a proxied target ended");
        }
    });
    Ok(sender)
}

/// What comes from the pod, on its way into the connection.
struct Inbound(Mutex<WriteHalf<DuplexStream>>);

#[async_trait]
impl Client for Inbound {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        let mut writer = self.0.lock().await;
        writer.write_all(&bytes).await.map_err(|_| Gone)
    }

    async fn end(&self) -> Result<(), Gone> {
        let mut writer = self.0.lock().await;
        writer.shutdown().await.map_err(|_| Gone)
    }
}

/// Carries the bytes of a connection over a stream to the node, until either side has ended.
async fn carry(node: super::NodeStream, far: DuplexStream) -> Result<(), String> {
    let (mut reader, writer) = tokio::io::split(far);
    let (input, from_client) = mpsc::channel(4);
    let up = async {
        let mut buffer = BytesMut::with_capacity(WINDOW);
        while let Ok(1..) = reader.read_buf(&mut buffer).await {
            let bytes = buffer.split().freeze();
            if input.send(Input::Data(bytes)).await.is_err() {
                // The node's last words are still to be read.
                std::future::pending::<()>().await;
            }
            buffer.reserve(WINDOW);
        }
    };
    let inbound = Inbound(Mutex::new(writer));
    tokio::select! {
        ended = forward(node, from_client, &inbound) => ended,
        // The answer has been read, or nobody wants it any more.
        () = up => Ok(()),
    }
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

#[cfg(test)]
mod tests;
