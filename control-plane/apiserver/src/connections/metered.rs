//! Answers on their way: made only as fast as they are read, and counted until they have left.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt;
use gantry_store::Charge;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::futures::OwnedNotified;

use super::delivery::{Answering, Delivery};

/// What a part of a stored value counts at most, as long as the store has that value too: readers share it.
const SHARED: usize = 64 << 10;

/// A body whose bytes are counted as unread until HTTP has let go of them.
struct Metered {
    /// What of it was there at once, and its length.
    made: Option<Result<Frame<Bytes>, axum::Error>>,
    length: u64,
    body: Body,
    delivery: Arc<Delivery>,
    waiting: Option<Pin<Box<OwnedNotified>>>,
}

/// Counts what an answer leaves unread. What of it is made already counts from now on, whether or not HTTP asks for it.
pub(crate) fn metered(mut body: Body, answering: Answering, succeeded: bool) -> Body {
    // A stream does not know its length; what does is here, or comes from a node.
    let exact = http_body::Body::size_hint(&body).exact();
    let made = exact.and_then(|_| body.frame().now_or_never()).flatten();
    let bytes = match &made {
        Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
        _ => 0,
    };
    let length = u64::try_from(bytes).unwrap_or(u64::MAX);
    let whole = exact.is_some_and(|exact| exact == length);
    let delivery = Delivery::begin(answering.judged(succeeded, whole));
    let made = made.map(|made| made.map(|frame| frame.map_data(|bytes| counted(&delivery, bytes))));
    Body::new(Metered {
        made,
        length,
        body,
        delivery,
        waiting: None,
    })
}

/// Counts an answer whose reader is trusted to read until it has left; what it leaves unread is not counted.
pub(crate) fn trusted(body: Body, answering: Answering) -> Body {
    Body::new(Trusted {
        body,
        _answering: answering,
    })
}

struct Trusted {
    body: Body,
    _answering: Answering,
}

impl http_body::Body for Trusted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes and what they count.
struct Unread {
    bytes: Bytes,
    weight: usize,
    delivery: Arc<Delivery>,
    _charges: Option<[Option<Charge>; 2]>,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.delivery.was_read(self.weight);
    }
}

fn counted(delivery: &Arc<Delivery>, bytes: Bytes) -> Bytes {
    if bytes.is_empty() {
        return bytes;
    }
    let weight = match bytes.is_unique() {
        true => bytes.len(),
        false => bytes.len().min(SHARED),
    };
    let charges = delivery.await_reading(weight);
    Bytes::from_owner(Unread {
        bytes,
        weight,
        delivery: delivery.clone(),
        _charges: charges,
    })
}

impl Metered {
    /// Whether more may be made for its reader. What it reads next may always be made, or nothing would tell whether it
    /// reads.
    fn has_room(&self) -> bool {
        self.delivery.unread() == 0 || self.delivery.answering.connection.has_room()
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            if self.has_room() {
                return Poll::Ready(());
            }
            // First in line, then another look: what is read in between must not be missed.
            let room = self.delivery.answering.connection.room.clone();
            let mut waiting = Box::pin(room.notified_owned());
            waiting.as_mut().enable();
            if self.has_room() {
                return Poll::Ready(());
            }
            self.waiting = Some(waiting);
        }
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(made) = self.made.take() {
            self.length = 0;
            return Poll::Ready(Some(made));
        }
        ready!(self.poll_room(context));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let delivery = &self.delivery;
        Poll::Ready(
            frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| counted(delivery, bytes)))),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.made.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(self.length));
        }
        hint.set_lower(hint.lower().saturating_add(self.length));
        hint
    }
}
