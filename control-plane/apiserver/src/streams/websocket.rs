//! WebSocket connections after their handshake, either in Kubernetes' channels or as a plain pipe of bytes.
//!
//! In the channel protocols every message starts with a byte that names its channel.

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Takes over an upgraded connection.
pub(super) async fn accept<T: AsyncRead + AsyncWrite + Unpin>(connection: T) -> WebSocketStream<T> {
    WebSocketStream::from_raw_socket(connection, Role::Server, None).await
}

/// A message of one channel.
pub(super) fn channel(number: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(number);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// The bytes of a message that carries any.
pub(super) fn payload(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(bytes) => Some(bytes),
        Message::Text(text) => Some(Bytes::from(text)),
        _ => None,
    }
}

/// Ends the connection as agreed: nothing went wrong with it.
pub(super) async fn close(outgoing: &mut (impl Sink<Message> + Unpin)) {
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    // The client may be gone already.
    outgoing.send(Message::Close(Some(close))).await.ok();
}

/// The bytes of binary messages, both ways, without regard to where one ends.
pub(super) fn pipe<T>(socket: WebSocketStream<T>) -> impl AsyncRead + AsyncWrite + Send + 'static
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (outgoing, incoming) = socket.split();
    let bytes = incoming.filter_map(async |message| match message {
        Ok(message) => payload(message).map(Ok),
        Err(error) => Some(Err(into_io(error))),
    });
    let messages = outgoing
        .with(async |bytes: Bytes| Ok::<_, Error>(Message::Binary(bytes)))
        .sink_map_err(into_io);
    tokio::io::join(
        StreamReader::new(Box::pin(bytes)),
        SinkWriter::new(CopyToBytes::new(Box::pin(messages))),
    )
}

fn into_io(error: Error) -> std::io::Error {
    match error {
        Error::Io(error) => error,
        other => std::io::Error::other(other),
    }
}
