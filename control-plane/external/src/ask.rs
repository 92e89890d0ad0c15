//! Asks a source: one GET to an address that was judged, bounded in time and bytes.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Position};

use crate::answer::{Series, Unusable, number_at, prometheus};
use crate::guard::Guard;
use crate::source::{Question, Source};

/// From the name's look-up to the answer's last byte.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// The largest answer, in bytes.
const BYTES: usize = 1 << 20;
/// What the head of an answer may have, in bytes.
const HEAD_BYTES: usize = 64 << 10;
/// Names that are looked up at once. Resolvers cannot be interrupted: each holds a thread until it is done.
static LOOKUPS: Semaphore = Semaphore::const_new(16);

/// The most addresses of a name that are tried.
const ADDRESSES: usize = 4;

/// What a question holds of those that its namespace may have: until a look-up of its is over, however long that takes.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// Why a source has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("looking up {host}: {source}")]
    Lookup {
        host: String,
        source: std::io::Error,
    },
    #[error(
        "{host} is {address}, {why}, which is asked for nobody: an administrator can allow it with the annotation \
         gantry.dev/external-metrics-allow of the namespace"
    )]
    Refused {
        host: String,
        address: IpAddr,
        why: &'static str,
    },
    #[error("{0} has no address")]
    NoAddress(String),
    #[error("connecting to {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("TLS with {host}: {source}")]
    Handshake {
        host: String,
        source: std::io::Error,
    },
    #[error("{0}")]
    Tls(#[from] gantry_tls::TlsError),
    #[error("the exchange broke off: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("no request can be made of it: {0}")]
    Request(#[from] http::Error),
    #[error("the answer is {0}, not 200 OK")]
    Status(StatusCode),
    #[error("the answer is encoded as {0:?}, which was not asked for")]
    Encoded(header::HeaderValue),
    #[error("the answer is larger than {BYTES} bytes")]
    TooLarge,
    #[error("reading the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Unusable(#[from] Unusable),
}

/// What a source says now.
pub(crate) async fn ask(
    source: &Source,
    guard: &Guard,
    place: &Place,
) -> Result<Vec<Series>, AskError> {
    let asked = tokio::time::timeout(PATIENCE, exchange(source, guard, place));
    asked.await.unwrap_or(Err(AskError::Slow))
}

async fn exchange(source: &Source, guard: &Guard, place: &Place) -> Result<Vec<Series>, AskError> {
    let stream = connect(source, guard, place).await?;
    let (status, body) = match source.url.scheme() {
        "https" => {
            let stream = secured(source, stream).await?;
            get(source, stream).await?
        }
        _ => get(source, stream).await?,
    };
    let answer = match &source.question {
        Question::Query(_) => prometheus(&body),
        Question::Path(path) => number_at(path, &body),
    };
    match (status, answer) {
        (StatusCode::OK, answer) => Ok(answer?),
        // What is wrong with a query a Prometheus server says in its answer.
        (_, Err(refused @ Unusable::Refused(_))) => Err(refused.into()),
        (status, _) => Err(AskError::Status(status)),
    }
}

fn host(source: &Source) -> &str {
    source.url.host_str().unwrap_or_default()
}

/// Connects to the first address of the source that answers, of those that may be asked.
async fn connect(source: &Source, guard: &Guard, place: &Place) -> Result<TcpStream, AskError> {
    let port = source.url.port_or_known_default().unwrap_or_default();
    let addresses = match source.url.host() {
        Some(Host::Ipv4(address)) => vec![SocketAddr::new(address.into(), port)],
        Some(Host::Ipv6(address)) => vec![SocketAddr::new(address.into(), port)],
        Some(Host::Domain(name)) => look_up(name, port, place.clone()).await?,
        None => Vec::new(),
    };
    let mut last = AskError::NoAddress(host(source).to_owned());
    let refused = |address: IpAddr, why| AskError::Refused {
        host: host(source).to_owned(),
        address,
        why,
    };
    for address in addresses.into_iter().take(ADDRESSES) {
        if let Some(why) = guard.refusal(address.ip()) {
            last = refused(address.ip(), why);
            continue;
        }
        // One that swallows packets keeps none of the others from being tried.
        let connecting = TcpStream::connect(address);
        let connected = tokio::time::timeout(PATIENCE / 4, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        match connected {
            // Who connects to an address of its own machine does so from that address.
            Ok(stream) if is_own(&stream, address) && !guard.allows(address.ip()) => {
                last = refused(address.ip(), "an address of the control plane's machine");
            }
            Ok(stream) => return Ok(stream),
            Err(source) => last = AskError::Connect { address, source },
        }
    }
    Err(last)
}

fn is_own(stream: &TcpStream, address: SocketAddr) -> bool {
    stream
        .local_addr()
        .is_ok_and(|own| own.ip() == address.ip())
}

async fn look_up(name: &str, port: u16, own: Place) -> Result<Vec<SocketAddr>, AskError> {
    let failed = |source| AskError::Lookup {
        host: name.to_owned(),
        source,
    };
    let place = LOOKUPS.acquire().await;
    let place = place.map_err(|closed| failed(std::io::Error::other(closed)))?;
    let asked = name.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        let _places = (place, own);
        (asked.as_str(), port).to_socket_addrs()
    });
    let found = found.await.map_err(std::io::Error::other);
    let found = found.and_then(|found| found).map_err(failed)?;
    Ok(found.collect())
}

/// What this machine trusts, read once.
fn public() -> Result<Arc<ClientConfig>, gantry_tls::TlsError> {
    static PUBLIC: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(known) = PUBLIC.get() {
        return Ok(known.clone());
    }
    let config = Arc::new(gantry_tls::public()?);
    Ok(PUBLIC.get_or_init(|| config).clone())
}

async fn secured(
    source: &Source,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, AskError> {
    let config = match &source.ca {
        Some(ca) => Arc::new(gantry_tls::trusting(ca)?),
        None => public()?,
    };
    let failed = |source: std::io::Error, host: &str| AskError::Handshake {
        host: host.to_owned(),
        source,
    };
    let host = host(source).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| failed(std::io::Error::other(error), host))?;
    let connected = TlsConnector::from(config).connect(name, stream);
    connected.await.map_err(|error| failed(error, host))
}

async fn get<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    source: &Source,
    stream: S,
) -> Result<(StatusCode, Bytes), AskError> {
    let url = &source.url;
    let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(
            header::HOST,
            &url[Position::BeforeHost..Position::AfterPort],
        )
        .header(header::USER_AGENT, "gantry")
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_BYTES);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await?;
    // What goes wrong with it is told to who reads.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    let status = response.status();
    check_encoding(response.headers())?;
    let body = Limited::new(response.into_body(), BYTES).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => AskError::TooLarge,
        false => AskError::Body(error),
    })?;
    Ok((status, body.to_bytes()))
}

fn check_encoding(headers: &HeaderMap) -> Result<(), AskError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(AskError::Encoded(encoding.clone())),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What asks a server of this machine.
    pub(crate) fn guard() -> Guard {
        Guard {
            allowed: vec!["127.0.0.0/8".parse().expect("a range")],
            ..Guard::default()
        }
    }

    /// A server that answers every request with this text, and then with `piece` for as long as somebody reads.
    pub(crate) async fn server(answer: &'static str, piece: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a client");
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let read = stream.read(&mut request).await.unwrap_or_default();
                    let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
                    assert!(!request.contains("accept-encoding"), "{request}");
                    let mut more = stream.write_all(answer.as_bytes()).await;
                    while more.is_ok() && !piece.is_empty() {
                        more = stream.write_all(piece).await;
                    }
                });
            }
        });
        address
    }

    async fn ask(source: &Source, guard: &Guard) -> Result<Vec<Series>, AskError> {
        let places = Arc::new(Semaphore::new(1));
        let place = places.acquire_owned().await.expect("a place");
        super::ask(source, guard, &Arc::new(place)).await
    }

    fn source(address: SocketAddr) -> Source {
        let text = format!("{{url: 'http://{address}/jobs', path: depth}}");
        Source::parse(&text).expect("a source")
    }

    #[tokio::test]
    async fn a_source_that_answers_is_read() {
        let address = server("HTTP/1.1 200 OK\r\n\r\n{\"depth\": 3}", b"").await;
        let series = ask(&source(address), &guard()).await.expect("an answer");
        assert_eq!(series[0].value, 3.0);
    }

    #[tokio::test]
    async fn what_must_not_be_asked_is_not() {
        let address = server("HTTP/1.1 200 OK\r\n\r\n{\"depth\": 3}", b"").await;
        let port = address.port();
        for host in [
            "127.0.0.1",
            "localhost",
            "[::ffff:127.0.0.1]",
            "2130706433",
            "0x7f.1",
            "127.1",
        ] {
            let text = format!("{{url: 'http://{host}:{port}/', path: depth}}");
            let source = Source::parse(&text).expect("a source");
            let why = ask(&source, &Guard::default()).await.expect_err(host);
            assert!(matches!(why, AskError::Refused { .. }), "{host}: {why}");
        }
    }

    #[tokio::test]
    async fn hostile_answers_are_told_of() {
        for (answer, piece, told) in [
            ("HTTP/1.1 200 OK\r\n\r\n", b" ".repeat(4096), "larger"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n",
                Vec::new(),
                "302",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
                Vec::new(),
                "gzip",
            ),
            ("HTTP/1.1 200 OK\r\n\r\n<html>", Vec::new(), "no JSON"),
            ("HTTP/1.1 200 OK\r\nX: ", b"x".repeat(4096), "broke off"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
                Vec::new(),
                "reading",
            ),
            ("nonsense\r\n\r\n", Vec::new(), "broke off"),
        ] {
            let address = server(answer, piece.leak()).await;
            let why = ask(&source(address), &guard())
                .await
                .expect_err(answer)
                .to_string();
            assert!(why.contains(told), "{answer:?}: {why}");
        }
    }

    #[tokio::test]
    async fn a_prometheus_server_says_what_is_wrong_with_a_query() {
        let answer =
            "HTTP/1.1 400 Bad Request\r\n\r\n{\"status\":\"error\",\"error\":\"parse error\"}";
        let address = server(answer, b"").await;
        let text = format!("{{url: 'http://{address}', query: 'sum('}}");
        let source = Source::parse(&text).expect("a source");
        let why = ask(&source, &guard())
            .await
            .expect_err("refused")
            .to_string();
        assert_eq!(why, "the server says: parse error");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let why = ask(&source(address), &guard())
            .await
            .expect_err("nobody answers");
        assert!(matches!(why, AskError::Slow), "{why}");
    }
}
