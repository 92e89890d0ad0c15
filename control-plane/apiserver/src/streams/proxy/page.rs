//! The body of a page whose links are rewritten as it passes by, compressed as it came.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http_body::{Body, Frame};

use super::html::Rewriter;
use super::links::Links;

/// Bytes of a page that are worked on at a time. Everything that is kept is a small multiple of it.
const PIECE: usize = 16 << 10;
/// Pieces at a time, before others have their turn.
const TURN: usize = 16;
/// The window of gzip, as its logarithm.
const WINDOW: u8 = 15;

/// What pages come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// As they are.
    Identity,
    Gzip,
    /// With or without the header of zlib.
    Deflate,
}

impl Coding {
    /// That of a `Content-Encoding`; `None` for those in which nothing can be rewritten.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"" | b"identity" => Some(Self::Identity),
            b"gzip" | b"x-gzip" => Some(Self::Gzip),
            b"deflate" => Some(Self::Deflate),
            _ => None,
        }
    }
}

/// What goes wrong with a page.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    /// It is not compressed as it says, or breaks off.
    #[error("the page is not compressed as its Content-Encoding says")]
    Damaged,
    /// The connection failed.
    #[error("reading the page: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// Both directions of a compression.
struct Packer {
    unpack: Decompress,
    pack: Compress,
    /// More may come out without more going in.
    is_full: bool,
    /// The compressed page has said that it is over.
    is_over: bool,
}

impl Packer {
    /// For a page whose first byte is known.
    fn new(coding: Coding, first: u8) -> Option<Self> {
        // Methods other than 8 are not defined; without a header, a first byte like this one means nothing sensible.
        let has_header = first & 15 == 8 && first >> 4 <= 7;
        let level = Compression::fast();
        let (unpack, pack) = match coding {
            Coding::Identity => return None,
            Coding::Gzip => (
                Decompress::new_gzip(WINDOW),
                Compress::new_gzip(level, WINDOW),
            ),
            Coding::Deflate => (
                Decompress::new(has_header),
                Compress::new(level, has_header),
            ),
        };
        Some(Self {
            unpack,
            pack,
            is_full: false,
            is_over: false,
        })
    }

    /// Takes compressed bytes, as many as give one piece.
    fn unpack(&mut self, packed: &mut Bytes, piece: &mut Vec<u8>) -> Result<(), PageError> {
        piece.reserve(PIECE);
        let (before, given) = (self.unpack.total_in(), packed.len());
        let status = self
            .unpack
            .decompress_vec(packed, piece, FlushDecompress::None)
            .map_err(|_| PageError::Damaged)?;
        let read = usize::try_from(self.unpack.total_in() - before).unwrap_or(usize::MAX);
        packed.advance(read.min(given));
        self.is_full = piece.len() == piece.capacity();
        match status {
            Status::StreamEnd => {
                (self.is_over, self.is_full) = (true, false);
                // What comes behind the end belongs to nothing.
                packed.clear();
            }
            Status::BufError if given > 0 && read == 0 && piece.is_empty() => {
                return Err(PageError::Damaged);
            }
            _ => {}
        }
        Ok(())
    }

    /// Compresses all of a piece; with [`FlushCompress::Finish`] it is the last.
    fn pack(
        &mut self,
        mut piece: &[u8],
        out: &mut Vec<u8>,
        flush: FlushCompress,
    ) -> Result<(), PageError> {
        loop {
            out.reserve(PIECE);
            let before = self.pack.total_in();
            let status = self
                .pack
                .compress_vec(piece, out, flush)
                .map_err(|_| PageError::Damaged)?;
            let read = usize::try_from(self.pack.total_in() - before).unwrap_or(usize::MAX);
            piece = piece.get(read..).unwrap_or_default();
            let is_done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                _ => piece.is_empty() && out.len() < out.capacity(),
            };
            if is_done {
                return Ok(());
            }
        }
    }
}

/// A body whose links lead through the proxy.
pub(super) struct Page<B> {
    body: B,
    coding: Coding,
    rewriter: Rewriter,
    packer: Option<Packer>,
    /// Received and not yet worked on.
    unread: Bytes,
    trailers: Option<Frame<Bytes>>,
    is_over: bool,
}

impl<B> Page<B> {
    pub(super) fn new(body: B, coding: Coding, links: Links) -> Self {
        Self {
            body,
            coding,
            rewriter: Rewriter::new(links),
            packer: None,
            unread: Bytes::new(),
            trailers: None,
            is_over: false,
        }
    }

    /// Whether there is something to work on.
    fn has_more(&self) -> bool {
        !self.unread.is_empty() || self.packer.as_ref().is_some_and(|packer| packer.is_full)
    }

    /// What becomes of the next piece of what has been received.
    fn next_piece(&mut self) -> Result<Vec<u8>, PageError> {
        let mut out = Vec::new();
        if self.packer.is_none()
            && let Some(first) = self.unread.first()
        {
            self.packer = Packer::new(self.coding, *first);
        }
        let Some(packer) = &mut self.packer else {
            let piece = self.unread.split_to(self.unread.len().min(PIECE));
            self.rewriter.piece(&piece, &mut out);
            return Ok(out);
        };
        if packer.is_over {
            self.unread.clear();
            return Ok(out);
        }
        let (mut piece, mut rewritten) = (Vec::new(), Vec::new());
        packer.unpack(&mut self.unread, &mut piece)?;
        self.rewriter.piece(&piece, &mut rewritten);
        packer.pack(&rewritten, &mut out, FlushCompress::None)?;
        Ok(out)
    }

    /// What is left when everything has been received.
    fn last_piece(&mut self) -> Result<Vec<u8>, PageError> {
        let mut out = Vec::new();
        let Some(packer) = &mut self.packer else {
            self.rewriter.finish(&mut out);
            return Ok(out);
        };
        if !packer.is_over {
            return Err(PageError::Damaged);
        }
        let mut rewritten = Vec::new();
        self.rewriter.finish(&mut rewritten);
        packer.pack(&rewritten, &mut out, FlushCompress::Finish)?;
        Ok(out)
    }
}

impl<B> Body for Page<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = PageError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PageError>>> {
        let page = self.get_mut();
        for _ in 0..TURN {
            if page.has_more() {
                match page.next_piece() {
                    Ok(out) if out.is_empty() => continue,
                    Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
                    Err(error) => {
                        page.unread.clear();
                        (page.packer, page.is_over) = (None, true);
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
            if page.is_over {
                return Poll::Ready(page.trailers.take().map(Ok));
            }
            match ready!(Pin::new(&mut page.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => page.unread = bytes,
                    Err(trailers) => page.trailers = Some(trailers),
                },
                Some(Err(error)) => {
                    page.is_over = true;
                    return Poll::Ready(Some(Err(PageError::Body(error.into()))));
                }
                None => {
                    page.is_over = true;
                    match page.last_piece() {
                        Ok(out) if out.is_empty() => {}
                        Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
