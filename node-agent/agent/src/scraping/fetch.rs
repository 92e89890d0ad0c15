//! Asks a pod for its series: one GET to the pod's own address, bounded in time and, by its reader, in bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_cri::network::NodeConnection;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::exposition::{Reader, Rubbish, Series, Wanted};
use super::target::Target;

/// From the connection to the answer's last byte.
const PATIENCE: Duration = Duration::from_secs(1);
/// What the head of an answer may have.
const HEAD_BYTES: usize = 64 << 10;

/// Why a pod has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Exchange(#[from] hyper::Error),
    #[error("no request can be made of it: {0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Tls(#[from] gantry_tls::TlsError),
    #[error("the answer is {0}, not 200 OK")]
    Refused(StatusCode),
    #[error("the answer is encoded as {0:?}, which was not asked for")]
    Encoded(HeaderValue),
    #[error("{0}")]
    Rubbish(#[from] Rubbish),
}

/// The wanted series of a pod as of now.
///
/// `counted` is the connection that is made for it.
pub(crate) async fn fetch(
    target: &Target,
    wanted: &Wanted,
    counted: NodeConnection,
) -> Result<Vec<Series>, Trouble> {
    let asked = tokio::time::timeout(PATIENCE, ask(target, wanted, counted));
    asked.await.unwrap_or(Err(Trouble::Slow))
}

async fn ask(
    target: &Target,
    wanted: &Wanted,
    mut counted: NodeConnection,
) -> Result<Vec<Series>, Trouble> {
    let request = Request::get(target.path.as_str())
        .header(header::HOST, target.address.to_string())
        .header(header::USER_AGENT, "gantry")
        .header(header::ACCEPT, "text/plain;version=0.0.4,*/*;q=0.1")
        .header(header::CONNECTION, "close")
        .body(Empty::new())?;
    let stream = TcpStream::connect(target.address).await?;
    counted.connected();
    match target.is_secure {
        false => exchange(stream, request, wanted).await,
        true => {
            let tls = Arc::new(gantry_tls::anyone()?);
            let stream = gantry_tls::secure(stream, target.address.ip(), tls).await?;
            exchange(stream, request, wanted).await
        }
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Empty<Bytes>>,
    wanted: &Wanted,
) -> Result<Vec<Series>, Trouble> {
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_BYTES);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await?;
    // What goes wrong with it is told to who reads.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(Trouble::Refused(response.status()));
    }
    let encoding = response.headers().get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
        return Err(Trouble::Encoded(encoding.clone()));
    }
    let mut body = response.into_body();
    let mut reader = Reader::new(wanted);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            reader.take(&data)?;
        }
    }
    Ok(reader.finish()?)
}

#[cfg(test)]
mod tests {
    use gantry_cri::network::NodeConnections;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that says `head`, and then `piece` again and again so many times.
    async fn server(head: &'static str, piece: Vec<u8>, times: usize) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.expect("a request");
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            assert!(
                request.starts_with("GET /metrics HTTP/1.1\r\n"),
                "{request}"
            );
            assert!(
                !request.to_lowercase().contains("accept-encoding"),
                "{request}"
            );
            stream.write_all(head.as_bytes()).await.expect("a reader");
            for _ in 0..times {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
        });
        Target {
            address,
            path: "/metrics".parse().expect("a path"),
            is_secure: false,
        }
    }

    fn counted() -> NodeConnection {
        Arc::new(NodeConnections::default()).begin("u")
    }

    fn wanted() -> Wanted {
        let mut wanted = Wanted::default();
        wanted.add("a".to_owned(), []);
        wanted
    }

    const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";

    #[tokio::test]
    async fn a_pod_that_answers_is_read() {
        let target = server(OK, b"a 1\n".to_vec(), 3).await;
        let series = fetch(&target, &wanted(), counted())
            .await
            .expect("an answer");
        assert_eq!(series.len(), 1);
        assert_eq!(series[0].value, 3.0);
    }

    #[tokio::test]
    async fn hostile_answers_are_told_of() {
        for (head, piece, told) in [
            (OK, b"#\n".repeat(4096), "lines"),
            (OK, vec![b'x'; 4096], "longer"),
            (OK, b"<html>\n".to_vec(), "text format"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n",
                Vec::new(),
                "302",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
                Vec::new(),
                "gzip",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
                Vec::new(),
                "",
            ),
            ("nonsense\r\n\r\n", Vec::new(), ""),
            ("HTTP/1.1 200 OK\r\nX: ", vec![b'x'; 4096], ""),
        ] {
            let times = if piece.is_empty() { 0 } else { usize::MAX };
            let target = server(head, piece, times).await;
            let why = fetch(&target, &wanted(), counted())
                .await
                .expect_err(head)
                .to_string();
            assert!(why.contains(told) && why.len() < 300, "{head:?}: {why}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target {
            address: listener.local_addr().expect("an address"),
            path: "/metrics".parse().expect("a path"),
            is_secure: false,
        };
        let began = tokio::time::Instant::now();
        let why = fetch(&target, &wanted(), counted())
            .await
            .expect_err("nobody answers");
        assert!(matches!(why, Trouble::Slow), "{why}");
        assert_eq!(began.elapsed(), PATIENCE);
    }
}
