//! SPDY/3.1 as Kubernetes' older streaming clients speak it: several streams over one upgraded connection.
//!
//! Only what those clients use: streams opened by the client, replies, data, resets and pings. There is no flow control
//! (spdystream has none either): a stream that is not read stalls the others of its connection.

mod codec;
mod headers;
mod session;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use session::{Output, Session, Stream};

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    /// The bytes are no SPDY/3.
    #[error("the client does not speak SPDY/3: {0}")]
    Malformed(&'static str),
    /// Longer than anything a client of ours sends.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Frames from a client, until there are no more or one is none.
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut decoder = codec::Decoder::new();
    let mut source = bytes::BytesMut::from(bytes);
    while let Ok(Some(_)) = tokio_util::codec::Decoder::decode(&mut decoder, &mut source) {}
}
