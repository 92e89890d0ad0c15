//! Pages as clients read them, in every coding.

use std::convert::Infallible;
use std::io::{Cursor, Read, Write};

use flate2::read::{DeflateDecoder, GzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http_body_util::{BodyExt, StreamBody};

use super::*;

const PAGE: &str = "<a href=\"/a\">one</a><a href=\"b\">two</a>";
const REWRITTEN: &str = "<a href=\"/P/a\">one</a><a href=\"b\">two</a>";

async fn read(pieces: Vec<Bytes>, coding: Coding) -> Result<Bytes, PageError> {
    let frames = pieces
        .into_iter()
        .map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let body = StreamBody::new(futures::stream::iter(frames));
    let links = Links::new("/P", "10.0.0.1:80".to_owned(), b"api");
    let collected = Page::new(body, coding, links).collect().await;
    collected.map(|collected| collected.to_bytes())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

/// In pieces of one byte, of seven, and whole.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = Vec<Bytes>> {
    [1, 7, bytes.len()]
        .into_iter()
        .map(move |length| bytes.chunks(length).map(Bytes::copy_from_slice).collect())
}

#[tokio::test]
async fn pages_are_rewritten_in_every_coding() {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(PAGE.as_bytes()).expect("written");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(PAGE.as_bytes()).expect("written");
    let unpacked = |mut reader: Box<dyn Read>| {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("unpacked");
        text
    };
    for pieces in cuts(PAGE.as_bytes()) {
        let bytes = read(pieces, Coding::Identity).await.expect("a page");
        assert_eq!(bytes, REWRITTEN);
    }
    for pieces in cuts(&gzip(PAGE.as_bytes())) {
        let bytes = read(pieces, Coding::Gzip).await.expect("a page");
        let text = unpacked(Box::new(GzDecoder::new(Cursor::new(bytes))));
        assert_eq!(text, REWRITTEN);
    }
    for pieces in cuts(&deflate.finish().expect("finished")) {
        let bytes = read(pieces, Coding::Deflate).await.expect("a page");
        let text = unpacked(Box::new(DeflateDecoder::new(Cursor::new(bytes))));
        assert_eq!(text, REWRITTEN);
    }
    for pieces in cuts(&zlib.finish().expect("finished")) {
        let bytes = read(pieces, Coding::Deflate).await.expect("a page");
        let text = unpacked(Box::new(ZlibDecoder::new(Cursor::new(bytes))));
        assert_eq!(text, REWRITTEN);
    }
    assert!(
        read(Vec::new(), Coding::Gzip)
            .await
            .expect("a page")
            .is_empty()
    );
}

#[tokio::test]
async fn damaged_pages_break_off() {
    let whole = gzip(PAGE.as_bytes());
    let (half, _) = whole.split_at(whole.len() / 2);
    for damaged in [half, b"no gzip at all, but text"] {
        let pieces = vec![Bytes::copy_from_slice(damaged)];
        let error = read(pieces, Coding::Gzip).await.expect_err("damaged");
        assert!(matches!(error, PageError::Damaged), "{error}");
    }
}

#[tokio::test]
async fn a_page_that_unpacks_to_much_is_never_held_whole() {
    let packed = gzip(&vec![b' '; 32 << 20]);
    assert!(packed.len() < 1 << 20, "{} bytes", packed.len());
    let links = Links::new("/P", "10.0.0.1:80".to_owned(), b"api");
    let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from(packed)))];
    let body = StreamBody::new(futures::stream::iter(frames));
    let mut page = Page::new(body, Coding::Gzip, links);
    let mut total = 0;
    while let Some(frame) = page.frame().await {
        let bytes = frame.expect("a page").into_data().expect("data");
        assert!(bytes.len() <= 4 * PIECE, "{} bytes at once", bytes.len());
        total += bytes.len();
    }
    assert!(total > 0);
}
