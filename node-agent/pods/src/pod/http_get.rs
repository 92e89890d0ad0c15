//! A GET as a kubelet makes it for probes and hooks: redirects are followed while they stay on the host, nobody's
//! certificate is checked, and no more of an answer is read than a message takes.

use std::fmt::Display;

use bytes::Bytes;
use gantry_cri::network::NodeConnection;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;
use url::{Position, Url};

use super::hooks::{KEPT, Target, join_host_port};

/// Requests that one probe may come to.
const MOST_REQUESTS: usize = 10;

/// Which of a container's actions asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// Judges by the answer.
    Probe,
    /// Is content with any.
    Hook,
}

impl Asker {
    fn agent(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Probe => "kube-probe/1.36",
            Self::Hook => "kube-lifecycle/1.36",
        })
    }
}

/// What the last of all hosts said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its first [`KEPT`] bytes.
    pub(super) body: Vec<u8>,
}

/// Why there is no answer, in a kubelet's words.
#[derive(Debug)]
pub(super) struct NoAnswer {
    pub(super) message: String,
    /// Who was asked in TLS does not speak it, but HTTP.
    pub(super) speaks_http: bool,
}

impl NoAnswer {
    fn of(url: &impl Display, error: &impl Display) -> Self {
        Self {
            message: format!("Get \"{url}\": {error}"),
            speaks_http: false,
        }
    }
}

fn is_secure(action: &HTTPGetAction) -> bool {
    let scheme = action.scheme.as_deref().unwrap_or_default();
    scheme.eq_ignore_ascii_case("https")
}

/// The path and query to ask for. Whatever no request line can hold is escaped.
fn target(action: &HTTPGetAction) -> String {
    let path = action.path.as_deref().unwrap_or_default();
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !br#""<>\^`{|}"#.contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    target
}

/// The address that is asked first.
pub(super) fn address(action: &HTTPGetAction, host: &str, port: u16) -> String {
    let scheme = if is_secure(action) { "https" } else { "http" };
    format!(
        "{scheme}://{}{}",
        join_host_port(host, port),
        target(action)
    )
}

/// What is said to every host on the way, and to whom first.
fn headers(action: &HTTPGetAction, asker: Asker) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for given in action.http_headers.iter().flatten() {
        let name = HeaderName::from_bytes(given.name.as_bytes())
            .map_err(|_| format!("net/http: invalid header field name {:?}", given.name))?;
        let value = HeaderValue::from_bytes(given.value.as_bytes())
            .map_err(|_| format!("net/http: invalid header field value for {:?}", given.name))?;
        headers
            .try_append(name, value)
            .map_err(|error| error.to_string())?;
    }
    let usual = [
        (header::USER_AGENT, asker.agent()),
        (header::ACCEPT, HeaderValue::from_static("*/*")),
        (header::CONNECTION, HeaderValue::from_static("close")),
    ];
    for (name, value) in usual {
        match headers.get(&name) {
            // An empty one says: none at all.
            Some(given) if given.is_empty() => drop(headers.remove(&name)),
            Some(_) => {}
            None => drop(headers.insert(name, value)),
        }
    }
    // There is no body, and nobody may say that there is.
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TRAILER,
    ] {
        headers.remove(name);
    }
    Ok(headers)
}

/// What carries a connection on, and what counts it.
type Connection = (AbortOnDropHandle<()>, Option<NodeConnection>);

/// One request on the way.
struct Hop {
    url: Url,
    /// The URL as it was written.
    shown: String,
    authority: String,
    target: String,
    /// What it asks for instead of the address that it is sent to.
    host: Option<HeaderValue>,
    referer: Option<HeaderValue>,
}

impl Hop {
    fn request(&self, headers: &HeaderMap) -> Result<Request<Empty<Bytes>>, String> {
        let mut request = Request::new(Empty::new());
        let target = self.target.parse::<Uri>();
        *request.uri_mut() = target.map_err(|error| error.to_string())?;
        let host = match &self.host {
            Some(host) => host.clone(),
            None => HeaderValue::from_str(&self.authority).map_err(|error| error.to_string())?,
        };
        let mut all = headers.clone();
        all.insert(header::HOST, host);
        if let Some(referer) = &self.referer
            && !all.contains_key(header::REFERER)
        {
            all.insert(header::REFERER, referer.clone());
        }
        *request.headers_mut() = all;
        Ok(request)
    }

    /// Asks. The connection lasts as long as what is answered with the response.
    async fn ask(
        &self,
        container: &Target,
        headers: &HeaderMap,
    ) -> Result<(Response<Incoming>, Connection), NoAnswer> {
        let failed = |error: &dyn Display| NoAnswer::of(&self.shown, &error);
        let request = self.request(headers).map_err(|error| failed(&error))?;
        let secure = match self.url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(failed(&format!("unsupported protocol scheme {other:?}"))),
        };
        let host = self.url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.url.port_or_known_default().unwrap_or_default();
        let stream = container.connect(host, port).await;
        let (stream, counted) = stream.map_err(|error| failed(&error))?;
        if !secure {
            let sent = send(stream, request).await;
            let (response, driver) = sent.map_err(|error| failed(&error))?;
            return Ok((response, (driver, counted)));
        }
        let stream = crate::tls::unverified(host, stream).await;
        let stream = stream.map_err(|error| match is_http(&error) {
            true => NoAnswer {
                speaks_http: true,
                ..failed(&"http: server gave HTTP response to HTTPS client")
            },
            false => failed(&error),
        })?;
        let sent = send(stream, request).await;
        let (response, driver) = sent.map_err(|error| failed(&error))?;
        Ok((response, (driver, counted)))
    }
}

/// Whether a handshake failed because it was answered in something else.
fn is_http(error: &std::io::Error) -> bool {
    let cause = error.get_ref();
    let cause = cause.and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType
        ))
    )
}

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), hyper::Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong is told to who reads.
        connection.await.ok();
    }));
    Ok((sender.send_request(request).await?, driver))
}

/// Where an answer sends its reader, if it does.
fn location(response: &Response<Incoming>) -> Option<String> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response
        .headers()
        .get(header::LOCATION)
        .filter(|_| redirects)?;
    let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
    Some(location).filter(|location| !location.is_empty())
}

async fn beginning(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut kept = Vec::new();
    while kept.len() < KEPT
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            let room = (KEPT - kept.len()).min(data.len());
            kept.extend_from_slice(&data[..room]);
        }
    }
    Ok(kept)
}

/// Asks a host, and whatever else of it the answers lead to. A redirect to another host is the answer itself.
pub(super) async fn get(
    container: &Target,
    action: &HTTPGetAction,
    host: &str,
    port: u16,
    asker: Asker,
) -> Result<Answer, NoAnswer> {
    let first = address(action, host, port);
    let mut headers = headers(action, asker).map_err(|error| NoAnswer::of(&first, &error))?;
    let url = Url::parse(&first).map_err(|error| NoAnswer::of(&first, &error))?;
    let named = url.host_str().unwrap_or_default().to_owned();
    let own_host = headers.remove(header::HOST).filter(|host| !host.is_empty());
    let mut hop = Hop {
        url,
        shown: first,
        authority: join_host_port(host, port),
        target: target(action),
        host: own_host,
        referer: None,
    };
    let mut requests = 1;
    loop {
        let (response, _connection) = hop.ask(container, &headers).await?;
        let next = match location(&response) {
            None => None,
            Some(location) => {
                let next = hop.url.join(&location).map_err(|error| {
                    let words = format!("failed to parse Location header {location:?}: {error}");
                    NoAnswer::of(&hop.shown, &words)
                })?;
                Some((location, next)).filter(|(_, next)| next.host_str() == Some(named.as_str()))
            }
        };
        let Some((location, next)) = next else {
            let status = response.status().as_u16();
            let body = beginning(response.into_body()).await;
            let body = body.map_err(|error| NoAnswer::of(&hop.shown, &error))?;
            return Ok(Answer { status, body });
        };
        if requests >= MOST_REQUESTS {
            let words = format!("stopped after {MOST_REQUESTS} redirects");
            return Err(NoAnswer::of(&location, &words));
        }
        requests += 1;
        hop = hop.follow(next, &location);
    }
}

impl Hop {
    fn follow(self, next: Url, location: &str) -> Self {
        let relative = Url::parse(location).is_err();
        let reveals = self.url.scheme() == "https" && next.scheme() == "http";
        let mut from = self.url;
        from.set_fragment(None);
        // Neither can fail for a URL with a host.
        from.set_username("").ok();
        from.set_password(None).ok();
        Self {
            target: next[Position::BeforePath..Position::AfterQuery].to_owned(),
            authority: next[Position::BeforeHost..Position::AfterPort].to_owned(),
            shown: next.to_string(),
            url: next,
            // Another way to what was asked for, not another address.
            host: self.host.filter(|_| relative),
            referer: HeaderValue::from_str(from.as_str())
                .ok()
                .filter(|_| !reveals),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::pod::hooks::tests::target as container;

    /// A server on this host, which answers by path, and the heads of all requests that it has had.
    async fn server(
        answer: impl Fn(&str) -> String + Send + 'static,
    ) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let had = heads.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
                // A handshake has no such end.
                while !head.ends_with(b"\r\n\r\n") && head.first() != Some(&0x16) {
                    match stream.read(&mut buffer).await {
                        Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                        _ => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                had.lock().unwrap().push(head);
                stream.write_all(answer(&path).as_bytes()).await.ok();
            }
        });
        (port, heads)
    }

    fn says(status: &str, headers: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}content-length: 4\r\n\r\nbody")
    }

    async fn asked(action: Value, port: u16, asker: Asker) -> Result<Answer, NoAnswer> {
        let mut action = action;
        action["port"] = json!(port);
        let action: HTTPGetAction = serde_json::from_value(action).unwrap();
        get(&container(port), &action, "127.0.0.1", port, asker).await
    }

    async fn status(path: &str, port: u16) -> Result<u16, String> {
        let answer = asked(json!({"path": path}), port, Asker::Probe).await;
        answer
            .map(|answer| answer.status)
            .map_err(|none| none.message)
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_alone() {
        let (other, _) = server(|_| says("500 No", "")).await;
        let (port, heads) = server(move |path| match path {
            "/ok" => says("200 OK", ""),
            "/bad" => says("503 No", ""),
            "/to-ok" => says("302 Found", "Location: /ok\r\n"),
            "/to-bad" => says("302 Found", "location: bad\r\n"),
            "/twice" => says("308 There", "location: /to-bad?x#y\r\n"),
            "/to-bad?x" => says("301 There", "location: /bad\r\n"),
            "/port" => says(
                "307 There",
                &format!("location: http://127.0.0.1:{other}/\r\n"),
            ),
            "/elsewhere" => says("302 Found", "location: http://localhost/\r\n"),
            "/nowhere" => says("302 Found", ""),
            "/kept" => says("304 Same", "location: /bad\r\n"),
            "/scheme" => says("302 Found", "location: ftp://127.0.0.1/\r\n"),
            "/nonsense" => says("302 Found", "location: http://[\r\n"),
            _ => says("302 Found", "location: /loop\r\n"),
        })
        .await;
        for (path, expected) in [
            ("/ok", 200),
            ("ok#there", 200),
            ("/to-ok", 200),
            ("/to-bad", 503),
            ("/twice", 503),
            ("/port", 500),
            ("/elsewhere", 302),
            ("/nowhere", 302),
            ("/kept", 304),
        ] {
            assert_eq!(status(path, port).await, Ok(expected), "{path}");
        }
        heads.lock().unwrap().clear();
        let endless = status("/loop", port).await;
        let words = "Get \"/loop\": stopped after 10 redirects";
        assert_eq!(endless, Err(words.to_owned()));
        assert_eq!(heads.lock().unwrap().len(), 10);
        for (path, words) in [
            ("/scheme", "unsupported protocol scheme \"ftp\""),
            ("/nonsense", "failed to parse Location header"),
        ] {
            let refused = status(path, port).await.unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[tokio::test]
    async fn headers_are_a_kubelets() {
        let (port, heads) = server(|path| match path {
            "/from" => says("302 Found", "location: /\r\n"),
            _ => says("200 OK", ""),
        })
        .await;
        let last = || heads.lock().unwrap().last().unwrap().clone();
        asked(json!({}), port, Asker::Probe).await.unwrap();
        let head = last();
        assert!(head.starts_with("get / http/1.1\r\n"), "{head}");
        let host = format!("host: 127.0.0.1:{port}\r\n");
        let usual = [
            "user-agent: kube-probe/1.36\r\n",
            "accept: */*\r\n",
            "connection: close\r\n",
            &host,
        ];
        for line in usual {
            assert!(head.contains(line), "{line} in {head}");
        }
        asked(json!({}), port, Asker::Hook).await.unwrap();
        assert!(last().contains("user-agent: kube-lifecycle/1.36"));
        let given = |name: &str, value: &str| json!({"name": name, "value": value});
        let own = json!({"path": "/from", "httpHeaders": [
            given("Host", "web.example"), given("accept", ""), given("User-Agent", "me"),
            given("X-Two", "1"), given("X-Two", "2"), given("content-length", "9")]});
        asked(own, port, Asker::Probe).await.unwrap();
        let head = last();
        let referer = format!("referer: http://127.0.0.1:{port}/from\r\n");
        for line in [
            "host: web.example\r\n",
            "user-agent: me\r\n",
            "x-two: 1\r\n",
            "x-two: 2\r\n",
            &referer,
        ] {
            assert!(head.contains(line), "{line} in {head}");
        }
        for name in ["accept:", "content-length:"] {
            assert!(!head.contains(name), "{name} in {head}");
        }
        let wrong = json!({"httpHeaders": [given("X", "a\nb")]});
        let refused = asked(wrong, port, Asker::Probe).await.unwrap_err();
        assert!(refused.message.contains("invalid header field value"));
    }

    #[tokio::test]
    async fn no_more_of_an_answer_is_read_than_a_message_takes() {
        let long = "x".repeat(3 * KEPT);
        let (port, _) = server(move |path| match path {
            "/cut" => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort".to_owned(),
            _ => format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{long}",
                1_u64 << 40
            ),
        })
        .await;
        let answer = asked(json!({}), port, Asker::Probe).await.unwrap();
        assert_eq!(answer.body.len(), KEPT);
        status("/cut", port).await.unwrap_err();
    }

    #[tokio::test]
    async fn plain_http_behind_https_is_recognised() {
        let (port, _) = server(|_| says("400 Bad", "")).await;
        let secure = json!({"scheme": "HTTPS", "path": "/x y"});
        let refused = asked(secure, port, Asker::Hook).await.unwrap_err();
        let words = format!(
            "Get \"https://127.0.0.1:{port}/x%20y\": http: server gave HTTP response to HTTPS client"
        );
        assert_eq!((refused.message, refused.speaks_http), (words, true));
    }
}
