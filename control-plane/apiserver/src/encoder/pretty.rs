//! JSON with line breaks, as Go indents it; made of compact JSON piece by piece, so that a list need not be held for it.

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;

/// What is needed to go on with the next piece.
#[derive(Default)]
struct Indenter {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last thing was an opening bracket, which may be closed at once.
    opened: bool,
}

impl Indenter {
    fn line(&self, out: &mut BytesMut) {
        out.put_u8(b'\n');
        out.put_bytes(b' ', self.depth * 2);
    }

    fn write(&mut self, piece: &[u8], out: &mut BytesMut) {
        for byte in piece.iter().copied() {
            if self.in_string {
                out.put_u8(byte);
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => {}
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if !std::mem::take(&mut self.opened) {
                        self.line(out);
                    }
                    out.put_u8(byte);
                }
                b',' => {
                    out.put_u8(byte);
                    self.line(out);
                }
                b':' => out.put_slice(b": "),
                _ => {
                    if std::mem::take(&mut self.opened) {
                        self.line(out);
                    }
                    out.put_u8(byte);
                    self.in_string = byte == b'"';
                    if matches!(byte, b'{' | b'[') {
                        self.depth += 1;
                        self.opened = true;
                    }
                }
            }
        }
    }
}

/// A document with line breaks.
pub(crate) fn pretty(text: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(text.len() * 2);
    Indenter::default().write(text, &mut out);
    out.freeze()
}

/// A document that is made as it is read, with line breaks.
pub(crate) fn pretty_body(body: Body) -> Body {
    let mut indenter = Indenter::default();
    Body::from_stream(body.into_data_stream().map(move |piece| {
        piece.map(|piece| {
            let mut out = BytesMut::with_capacity(piece.len() * 2);
            indenter.write(&piece, &mut out);
            out.freeze()
        })
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    fn documents() -> Vec<Value> {
        vec![
            json!({}),
            json!([]),
            json!("a{b}[c]:,\"\\\""),
            json!({"a": [], "b": {}, "c": [{}, [1, 2.5, null, true]], "d": {"e": "f\\\"{"}}),
            json!({"items": [{"metadata": {"name": "x"}}, {"metadata": {"name": "y"}}]}),
        ]
    }

    #[test]
    fn it_is_what_others_write() {
        for document in documents() {
            let expected = serde_json::to_string_pretty(&document).expect("JSON");
            assert_eq!(pretty(document.to_string().as_bytes()), expected);
            assert_eq!(pretty(expected.as_bytes()), expected, "already is");
        }
    }

    #[tokio::test]
    async fn pieces_may_end_anywhere() {
        for document in documents() {
            let text = document.to_string().into_bytes();
            let pieces = text.chunks(1).map(|piece| {
                let piece = Bytes::copy_from_slice(piece);
                Ok::<_, std::io::Error>(piece)
            });
            let pieces: Vec<_> = pieces.collect();
            let body = pretty_body(Body::from_stream(futures::stream::iter(pieces)));
            let read = body.collect().await.expect("a body").to_bytes();
            let expected = serde_json::to_string_pretty(&document).expect("JSON");
            assert_eq!(read, expected);
        }
    }
}
