//! Header blocks: names and values, compressed with one zlib stream per connection and direction.
//!
//! The dictionary primes the compressor (SPDY/3, section 2.6.10.1); both sides must have the same one.

use std::sync::LazyLock;

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// What a block may unpack to; the names and values of a stream of ours take about a hundred bytes.
const LONGEST_BLOCK: usize = 64 * 1024;

/// The first part of the dictionary: each name with its length before it.
const NAMES: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// The second part: status codes, dates and common values, as they are.
const WORDS: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Au\
    thoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidd\
    en404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr Ma\
    y Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,imag\
    e/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicpri\
    vatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for name in NAMES {
        put_text(&mut bytes, name);
    }
    bytes.extend_from_slice(WORDS.as_bytes());
    bytes
});

/// Names (in lower case) and values of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The value of a name written in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Lengths are 32 bits on the wire, and no block is as long.
fn length(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn put_text(block: &mut Vec<u8>, text: &str) {
    block.put_u32(length(text.len()));
    block.put_slice(text.as_bytes());
}

fn take_number(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let number = block
        .try_get_u32()
        .map_err(|_| SpdyError::Malformed("a header block ends too early"))?;
    usize::try_from(number).map_err(|_| SpdyError::TooLong("a header block"))
}

fn take_text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_number(block)?;
    let (text, rest) = block
        .split_at_checked(length)
        .ok_or(SpdyError::Malformed("a header block ends too early"))?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Malformed("a header is not text"))
}

/// Packs the blocks of one direction, in the order in which they are sent.
pub(super) struct Packer(Compress);

impl Packer {
    pub(super) fn new() -> Result<Self, SpdyError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&DICTIONARY)
            .map_err(|_| SpdyError::Malformed("zlib refused the header dictionary"))?;
        Ok(Self(zlib))
    }

    pub(super) fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let mut block = Vec::new();
        block.put_u32(length(headers.0.len()));
        for (name, value) in &headers.0 {
            put_text(&mut block, name);
            put_text(&mut block, value);
        }
        let mut packed = Vec::with_capacity(block.len() + 64);
        let mut rest = block.as_slice();
        loop {
            packed.reserve(64);
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, &mut packed, FlushCompress::Sync)
                .map_err(|_| SpdyError::Malformed("zlib could not pack a header block"))?;
            rest = rest
                .get(consumed(before, self.0.total_in())..)
                .unwrap_or_default();
            // Room left over: everything was flushed.
            if packed.len() < packed.capacity() {
                return Ok(packed);
            }
        }
    }
}

/// Unpacks the blocks of the other direction, in the order in which they arrive.
pub(super) struct Unpacker(Decompress);

impl Unpacker {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn unpack(&mut self, packed: &[u8]) -> Result<Headers, SpdyError> {
        let block = self.inflate(packed)?;
        let mut rest = block.as_slice();
        let count = take_number(&mut rest)?;
        let mut headers = Headers::default();
        for _ in 0..count {
            let name = take_text(&mut rest)?.to_ascii_lowercase();
            headers.0.push((name, take_text(&mut rest)?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let broken = SpdyError::Malformed("a header block is not packed with zlib");
        let mut block = Vec::new();
        let mut rest = packed;
        loop {
            block.reserve(1024);
            let before = self.0.total_in();
            let result = self
                .0
                .decompress_vec(rest, &mut block, FlushDecompress::Sync);
            rest = rest
                .get(consumed(before, self.0.total_in())..)
                .unwrap_or_default();
            match result {
                Ok(Status::StreamEnd) => return Err(broken),
                Ok(_) => {}
                // Asked for once, at the beginning of the connection.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| {
                        SpdyError::Malformed("headers are packed with another dictionary")
                    })?;
                    continue;
                }
                Err(_) => return Err(broken),
            }
            if block.len() > LONGEST_BLOCK {
                return Err(SpdyError::TooLong("a header block"));
            }
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

fn consumed(before: u64, after: u64) -> usize {
    usize::try_from(after - before).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Headers(pairs.iter().map(owned).collect())
    }

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        let mut zlib = Compress::new(Compression::fast(), true);
        let checksum = zlib.set_dictionary(&DICTIONARY).expect("accepted");
        assert_eq!((DICTIONARY.len(), checksum), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_are_unpacked_in_the_order_of_packing() {
        let (mut packer, mut unpacker) = (Packer::new().expect("a packer"), Unpacker::new());
        let blocks = [
            headers(&[("streamtype", "error"), ("port", "80"), ("requestid", "0")]),
            headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "0")]),
            headers(&[]),
            headers(&[("long", &"x".repeat(5000))]),
        ];
        for block in blocks {
            let packed = packer.pack(&block).expect("packs");
            assert_eq!(unpacker.unpack(&packed).expect("unpacks"), block);
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let packed = |block: &[u8]| {
            let mut zlib = Compress::new(Compression::fast(), true);
            zlib.set_dictionary(&DICTIONARY).expect("accepted");
            let mut packed = Vec::with_capacity(200_000);
            zlib.compress_vec(block, &mut packed, FlushCompress::Sync)
                .expect("packs");
            packed
        };
        let cases: [&[u8]; 5] = [
            b"",
            b"\0\0\0\x01",
            b"\xff\xff\xff\xff\0\0\0\0",
            b"\0\0\0\x01\xff\xff\xff\xff",
            b"\0\0\0\x01\0\0\0\x01\xff\0\0\0\0",
        ];
        for block in cases {
            assert!(Unpacker::new().unpack(&packed(block)).is_err(), "{block:?}");
        }
        assert!(Unpacker::new().unpack(b"plain text").is_err());
        let bomb = packed(&vec![0; 1 << 20]);
        assert!(matches!(
            Unpacker::new().unpack(&bomb),
            Err(SpdyError::TooLong(_))
        ));
    }
}
