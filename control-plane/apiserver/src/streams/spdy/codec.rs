//! Frames on the wire (SPDY/3, section 2.2).
//!
//! ```text
//! control  1 version:15 type:16 | flags:8 length:24 | payload
//! data     0 stream:31          | flags:8 length:24 | payload
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec;

use super::SpdyError;
use super::headers::{Headers, Packer, Unpacker};

const VERSION: u16 = 3;
const HEAD: usize = 8;
const FIN: u8 = 1;
/// Control frames carry headers at most.
const LONGEST_CONTROL: usize = 64 * 1024;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    ProtocolError,
    RefusedStream,
    Cancel,
    /// Of the other side; its reasons make no difference.
    Other(u32),
}

impl Reset {
    fn code(self) -> u32 {
        match self {
            Self::ProtocolError => 1,
            Self::RefusedStream => 3,
            Self::Cancel => 5,
            Self::Other(code) => code,
        }
    }
}

/// One frame; data may come in several for one on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Opens a stream.
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// Accepts it.
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// Ends both directions at once.
    RstStream { stream: u32, reset: Reset },
    /// To be answered with the same number.
    Ping(u32),
    /// No more streams will be opened.
    GoAway,
    /// Bytes; `fin` ends the sender's direction.
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// Of a kind that needs no answer.
    Other,
}

/// A data frame of which a part has been passed on.
#[derive(Clone, Copy)]
struct Partial {
    stream: u32,
    fin: bool,
    left: usize,
}

/// Reads frames.
pub(super) struct Decoder {
    unpacker: Unpacker,
    partial: Option<Partial>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            unpacker: Unpacker::new(),
            partial: None,
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<Frame, SpdyError> {
        let short = |_| SpdyError::Malformed("a control frame is too short");
        Ok(match kind {
            SYN_STREAM => {
                let stream = payload.try_get_u32().map_err(short)? & STREAM_MASK;
                // The associated stream, priority and slot.
                payload.try_get_u32().map_err(short)?;
                payload.try_get_u16().map_err(short)?;
                Frame::SynStream {
                    stream,
                    fin: flags & FIN != 0,
                    headers: self.unpacker.unpack(&payload)?,
                }
            }
            SYN_REPLY => Frame::SynReply {
                stream: payload.try_get_u32().map_err(short)? & STREAM_MASK,
                fin: flags & FIN != 0,
                headers: self.unpacker.unpack(&payload)?,
            },
            RST_STREAM => Frame::RstStream {
                stream: payload.try_get_u32().map_err(short)? & STREAM_MASK,
                reset: Reset::Other(payload.try_get_u32().map_err(short)?),
            },
            PING => Frame::Ping(payload.try_get_u32().map_err(short)?),
            GOAWAY => Frame::GoAway,
            HEADERS => {
                payload.try_get_u32().map_err(short)?;
                // Nobody uses them, but what follows is packed with them.
                self.unpacker.unpack(&payload)?;
                Frame::Other
            }
            _ => Frame::Other,
        })
    }

    fn data(&mut self, source: &mut BytesMut, partial: Partial) -> Option<Frame> {
        let count = partial.left.min(source.len());
        if count == 0 && partial.left > 0 {
            self.partial = Some(partial);
            return None;
        }
        let left = partial.left - count;
        self.partial = (left > 0).then_some(Partial { left, ..partial });
        Some(Frame::Data {
            stream: partial.stream,
            fin: partial.fin && left == 0,
            bytes: source.split_to(count).freeze(),
        })
    }
}

impl codec::Decoder for Decoder {
    type Item = Frame;
    type Error = SpdyError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        if let Some(partial) = self.partial.take() {
            return Ok(self.data(source, partial));
        }
        let Some(mut head) = source.get(..HEAD) else {
            return Ok(None);
        };
        let (first, second) = (head.get_u32(), head.get_u32());
        let flags = second.to_be_bytes()[0];
        let length =
            usize::try_from(second & 0x00ff_ffff).map_err(|_| SpdyError::TooLong("a frame"))?;
        if first & !STREAM_MASK == 0 {
            source.advance(HEAD);
            let partial = Partial {
                stream: first,
                fin: flags & FIN != 0,
                left: length,
            };
            return Ok(self.data(source, partial));
        }
        let [version, kind] = [(first & STREAM_MASK) >> 16, first & 0xffff];
        if version != u32::from(VERSION) {
            return Err(SpdyError::Malformed("another version of the protocol"));
        }
        if length > LONGEST_CONTROL {
            return Err(SpdyError::TooLong("a control frame"));
        }
        if source.len() < HEAD + length {
            source.reserve(HEAD + length - source.len());
            return Ok(None);
        }
        source.advance(HEAD);
        let payload = source.split_to(length).freeze();
        let kind = u16::try_from(kind).unwrap_or_default();
        self.control(kind, flags, payload).map(Some)
    }
}

/// Writes frames.
pub(super) struct Encoder {
    packer: Packer,
}

impl Encoder {
    pub(super) fn new() -> Result<Self, SpdyError> {
        Ok(Self {
            packer: Packer::new()?,
        })
    }
}

fn put_head(target: &mut BytesMut, first: u32, flags: u8, length: usize) -> Result<(), SpdyError> {
    let length = u32::try_from(length)
        .ok()
        .filter(|length| *length < 1 << 24)
        .ok_or(SpdyError::TooLong("a frame"))?;
    target.put_u32(first);
    target.put_u32(u32::from(flags) << 24 | length);
    Ok(())
}

fn control(kind: u16) -> u32 {
    !STREAM_MASK | u32::from(VERSION) << 16 | u32::from(kind)
}

impl codec::Encoder<Frame> for Encoder {
    type Error = SpdyError;

    fn encode(&mut self, frame: Frame, target: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => {
                let block = self.packer.pack(&headers)?;
                put_head(target, control(SYN_STREAM), u8::from(fin), block.len() + 10)?;
                target.put_u32(stream);
                target.put_u32(0);
                target.put_u16(0);
                target.put_slice(&block);
            }
            Frame::SynReply {
                stream,
                fin,
                headers,
            } => {
                let block = self.packer.pack(&headers)?;
                put_head(target, control(SYN_REPLY), u8::from(fin), block.len() + 4)?;
                target.put_u32(stream);
                target.put_slice(&block);
            }
            Frame::RstStream { stream, reset } => {
                put_head(target, control(RST_STREAM), 0, 8)?;
                target.put_u32(stream);
                target.put_u32(reset.code());
            }
            Frame::Ping(number) => {
                put_head(target, control(PING), 0, 4)?;
                target.put_u32(number);
            }
            Frame::GoAway => {
                put_head(target, control(GOAWAY), 0, 8)?;
                target.put_u64(0);
            }
            Frame::Data { stream, fin, bytes } => {
                put_head(target, stream, u8::from(fin), bytes.len())?;
                target.put_slice(&bytes);
            }
            Frame::Other => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::codec::{Decoder as _, Encoder as _};

    use super::*;

    fn frames() -> Vec<Frame> {
        let headers = Headers(vec![("streamtype".to_owned(), "data".to_owned())]);
        vec![
            Frame::SynStream {
                stream: 1,
                fin: false,
                headers: headers.clone(),
            },
            Frame::SynReply {
                stream: 1,
                fin: true,
                headers,
            },
            Frame::Data {
                stream: 1,
                fin: true,
                bytes: Bytes::from_static(b"hello"),
            },
            Frame::Ping(7),
            Frame::RstStream {
                stream: 1,
                reset: Reset::Other(5),
            },
            Frame::Data {
                stream: 3,
                fin: true,
                bytes: Bytes::new(),
            },
            Frame::GoAway,
        ]
    }

    fn wire() -> BytesMut {
        let (mut encoder, mut wire) = (Encoder::new().expect("an encoder"), BytesMut::new());
        for frame in frames() {
            encoder.encode(frame, &mut wire).expect("encodes");
        }
        wire
    }

    #[test]
    fn frames_survive_the_wire() {
        let (mut decoder, mut wire) = (Decoder::new(), wire());
        let mut read = Vec::new();
        while let Some(frame) = decoder.decode(&mut wire).expect("decodes") {
            read.push(frame);
        }
        assert_eq!(read, frames());
    }

    #[test]
    fn frames_may_arrive_byte_by_byte() {
        let mut decoder = Decoder::new();
        let (mut buffer, mut text, mut fins, mut others) = (BytesMut::new(), Vec::new(), 0, 0);
        for byte in wire() {
            buffer.put_u8(byte);
            while let Some(frame) = decoder.decode(&mut buffer).expect("decodes") {
                match frame {
                    Frame::Data { fin, bytes, .. } => {
                        text.extend_from_slice(&bytes);
                        fins += usize::from(fin);
                    }
                    _ => others += 1,
                }
            }
        }
        assert_eq!((text.as_slice(), fins, others), (&b"hello"[..], 2, 5));
    }

    #[test]
    fn layout_of_a_ping_and_of_data() {
        let (mut encoder, mut wire) = (Encoder::new().expect("an encoder"), BytesMut::new());
        encoder.encode(Frame::Ping(1), &mut wire).expect("encodes");
        assert_eq!(wire.split()[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        let data = Frame::Data {
            stream: 5,
            fin: true,
            bytes: Bytes::from_static(b"x"),
        };
        encoder.encode(data, &mut wire).expect("encodes");
        assert_eq!(wire[..], [0, 0, 0, 5, 1, 0, 0, 1, b'x']);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let cases: [&[u8]; 5] = [
            b"\x80\x02\0\x01\0\0\0\0",
            b"\x80\x03\0\x01\0\xff\xff\xff",
            b"\x80\x03\0\x01\0\0\0\x04\0\0\0\x01",
            b"\x80\x03\0\x03\0\0\0\x04\0\0\0\x01",
            b"\x80\x03\0\x06\0\0\0\0",
        ];
        for bytes in cases {
            let mut source = BytesMut::from(bytes);
            assert!(Decoder::new().decode(&mut source).is_err(), "{bytes:?}");
        }
        let mut unknown = BytesMut::from(&b"\x80\x03\0\x63\0\0\0\x01\0"[..]);
        assert_eq!(
            Decoder::new().decode(&mut unknown).expect("skipped"),
            Some(Frame::Other)
        );
    }
}
