//! Port-forward over SPDY/3.1: an error stream and a data stream for each connection, joined by their request id.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::{Client, Ports, forward};
use crate::streams::Gone;
use crate::streams::spdy::{Output, Session, Stream};

/// Error streams whose data stream has not come yet; a client opens the second right after the first.
const UNPAIRED: usize = 100;

#[async_trait]
impl Client for Output {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        Output::send(self, bytes).await
    }

    async fn end(&self) -> Result<(), Gone> {
        Output::end(self).await
    }
}

/// Serves a connection until the client closes it; what it had forwarded ends with it.
pub(super) async fn serve<T>(connection: T, ports: Ports)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = match Session::serve(connection) {
        Ok(session) => session,
        Err(error) => return tracing::error!(%error, "serving a SPDY connection"),
    };
    let mut errors: BTreeMap<String, Stream> = BTreeMap::new();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = session.accept() => stream,
            Some(_) = connections.join_next() => continue,
        };
        let Some(stream) = stream else { return };
        let request = stream.headers.get("requestid").unwrap_or_default();
        match stream.headers.get("streamtype") {
            Some("error") if errors.len() < UNPAIRED => {
                errors.insert(request.to_owned(), stream);
            }
            Some("data") => {
                if let Some(error) = errors.remove(request) {
                    connections.spawn(connect(ports.clone(), stream, error.output));
                }
            }
            // Dropped, and thereby reset.
            _ => {}
        }
    }
}

async fn connect(ports: Ports, data: Stream, error: Output) {
    let written = data.headers.get("port").unwrap_or_default();
    let forwarded = match written.parse::<u16>() {
        Ok(port @ 1..) => match ports.open(port).await {
            Ok(node) => forward(node, data.input, &data.output).await,
            Err(message) => Err(message),
        },
        _ => Err(format!("\"{written}\" is not a port")),
    };
    if let Err(message) = forwarded {
        tracing::debug!(port = written, message, "forwarding a port");
        error.send(message.into()).await.ok();
    }
    error.finish().await;
    data.output.finish().await;
}
