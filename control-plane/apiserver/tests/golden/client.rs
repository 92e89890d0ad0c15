//! An HTTPS client that sends a step's request as it was recorded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::case::Request;

/// Captured values by name.
pub(crate) type Variables = BTreeMap<String, String>;

/// Status, headers and body of an answer.
pub(crate) struct Raw {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// TLS for the administrator and for everybody else.
pub(crate) struct Credentials {
    pub(crate) admin: Arc<rustls::ClientConfig>,
    pub(crate) nobody: Arc<rustls::ClientConfig>,
}

/// One connection as the administrator and one without a certificate, made when they are needed.
pub(crate) struct Client {
    address: SocketAddr,
    credentials: Arc<Credentials>,
    admin: Option<SendRequest<Full<Bytes>>>,
    nobody: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, credentials: Arc<Credentials>) -> Self {
        Self {
            address,
            credentials,
            admin: None,
            nobody: None,
        }
    }

    /// Sends a request; an error says what went wrong below HTTP.
    pub(crate) async fn send(
        &mut self,
        request: &Request,
        variables: &Variables,
    ) -> Result<Raw, String> {
        let built = build(request, variables)?;
        let (slot, config) = match request.who {
            None => (&mut self.admin, &self.credentials.admin),
            Some(_) => (&mut self.nobody, &self.credentials.nobody),
        };
        let usable = match slot.as_mut() {
            Some(open) => open.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *slot = Some(connect(self.address, config.clone()).await?);
        }
        let connection = slot.as_mut().expect("it was just opened");
        let answer = connection
            .send_request(built)
            .await
            .map_err(|error| format!("the request failed: {error}"))?;
        let (parts, body) = answer.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| format!("the answer broke off: {error}"))?
            .to_bytes();
        Ok(Raw {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }
}

async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("connecting: {error}"))?;
    stream.set_nodelay(true).ok();
    let name = ServerName::from(address.ip());
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("HTTP: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

fn build(request: &Request, variables: &Variables) -> Result<http::Request<Full<Bytes>>, String> {
    let fill = |text: &str| {
        variables
            .iter()
            .fold(text.to_owned(), |text, (name, value)| {
                text.replace(&format!("{{{{{name}}}}}"), value)
            })
    };
    let mut target = escape(&fill(&request.path), b"/:%~@,()!$&'*+;=-._");
    for (index, (key, value)) in request.query.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        target.push_str(&escape(key, b"-._~"));
        target.push('=');
        target.push_str(&escape(&fill(value), b"-._~"));
    }
    let mut headers = BTreeMap::from([
        ("accept".to_owned(), "application/json".to_owned()),
        // The default field manager is made of it.
        ("user-agent".to_owned(), "golden".to_owned()),
        ("host".to_owned(), "127.0.0.1".to_owned()),
    ]);
    for (name, value) in &request.headers {
        headers.insert(name.to_lowercase(), fill(value));
    }
    let body = match (&request.body, &request.body_text) {
        (Some(body), _) => {
            headers
                .entry(header::CONTENT_TYPE.to_string())
                .or_insert_with(|| "application/json".to_owned());
            fill(&body.to_string())
        }
        (None, Some(text)) => fill(text),
        (None, None) => String::new(),
    };
    if let Some(token) = request
        .who
        .as_deref()
        .and_then(|who| who.strip_prefix("token:"))
    {
        headers.insert(
            header::AUTHORIZATION.to_string(),
            format!("Bearer {}", fill(token)),
        );
    }
    let mut builder = http::Request::builder()
        .method(request.method.as_str())
        .uri(target);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder
        .body(Full::from(body))
        .map_err(|error| format!("the request cannot be built: {error}"))
}

/// Percent-encodes everything but letters, digits and `kept`.
fn escape(text: &str, kept: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            true => escaped.push(char::from(byte)),
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
