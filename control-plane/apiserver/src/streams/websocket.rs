//! WebSocket connections after their handshake, either in Kubernetes' channels or as a plain pipe of bytes.
//!
//! In the channel protocols every message starts with what names its channel: a byte, or a digit where messages are text.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Bytes of a message and of each of its frames, at most. A message is held whole until its end is here, for each of many
/// connections: clients send what they have read in pieces of some kilobytes, and who has a file in one piece has room.
const LONGEST: usize = 4 << 20;

/// As Go reads it: with padding, whatever its last bits are.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Takes over an upgraded connection.
pub(super) async fn accept<T: AsyncRead + AsyncWrite + Unpin>(connection: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// How bytes are put into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// As they are, in binary messages.
    Binary,
    /// As text, for clients that cannot read binary messages.
    Base64,
}

impl Framing {
    /// That of a subprotocol: `base64.` is in the names of those that are text.
    pub(super) fn of(protocol: &str) -> Self {
        match protocol.split('.').any(|part| part == "base64") {
            true => Self::Base64,
            false => Self::Binary,
        }
    }

    /// A message of bytes alone.
    pub(super) fn message(self, bytes: Bytes) -> Message {
        match self {
            Self::Binary => Message::Binary(bytes),
            Self::Base64 => Message::text(BASE64.encode(bytes)),
        }
    }

    /// A message of one channel.
    pub(super) fn channel(self, number: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(number);
                message.put_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => {
                let mut text = String::from(char::from(number.wrapping_add(b'0')));
                BASE64.encode_string(bytes, &mut text);
                Message::text(text)
            }
        }
    }

    /// The channel that a client's message is for, and its bytes; `None` for one that says neither.
    pub(super) fn read(self, message: &Bytes) -> Option<(u8, Bytes)> {
        let (first, rest) = message.split_first()?;
        match self {
            Self::Binary => Some((*first, message.slice(1..))),
            Self::Base64 => {
                let text: Vec<u8> = rest
                    .iter()
                    .copied()
                    .filter(|byte| !matches!(byte, b'\r' | b'\n'))
                    .collect();
                let bytes = BASE64.decode(text).ok()?;
                Some((first.wrapping_sub(b'0'), bytes.into()))
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_binary_or_text() {
        for text in [
            "base64.channel.k8s.io",
            "v4.base64.channel.k8s.io",
            "base64.binary.k8s.io",
        ] {
            assert_eq!(Framing::of(text), Framing::Base64, "{text}");
        }
        for binary in ["", "channel.k8s.io", "v5.channel.k8s.io", "binary.k8s.io"] {
            assert_eq!(Framing::of(binary), Framing::Binary, "{binary}");
        }
    }

    #[test]
    fn messages_name_their_channel() {
        let (binary, text) = (Framing::Binary, Framing::Base64);
        assert_eq!(
            binary.channel(1, b"a\n"),
            Message::Binary(Bytes::from_static(b"\x01a\n"))
        );
        assert_eq!(text.channel(1, b"a\n"), Message::text("1YQo="));
        assert_eq!(text.channel(3, b""), Message::text("3"));
        assert_eq!(
            binary.message(Bytes::from_static(b"a\n")),
            Message::Binary(Bytes::from_static(b"a\n"))
        );
        assert_eq!(
            text.message(Bytes::from_static(b"a\n")),
            Message::text("YQo=")
        );
        let read = |framing: Framing, bytes: &'static [u8]| {
            framing
                .read(&Bytes::from_static(bytes))
                .map(|(channel, bytes)| (channel, bytes.to_vec()))
        };
        assert_eq!(read(binary, b"\0foo\n"), Some((0, b"foo\n".to_vec())));
        assert_eq!(read(binary, b"\x04"), Some((4, Vec::new())));
        assert_eq!(read(text, b"0Zm9vCg=="), Some((0, b"foo\n".to_vec())));
        // As Go reads it: line ends are nothing, the last bits may be any.
        assert_eq!(read(text, b"0Zm9v\r\nCh=="), Some((0, b"foo\n".to_vec())));
        assert_eq!(read(text, b"4"), Some((4, Vec::new())));
        for nothing in [&b""[..], b"0Zm9vCg", b"0*"] {
            assert_eq!(read(text, nothing), None, "{nothing:?}");
        }
    }
}
