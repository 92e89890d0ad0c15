//! Answers on their way: made only as fast as they are read, and counted until they have left.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use gantry_store::Charge;
use http_body::{Frame, SizeHint};
use tokio::sync::futures::OwnedNotified;

use super::Connection;
use crate::limits::Place;

/// What a part of a stored value counts at most, as long as the store has that value too: readers share it.
const SHARED: usize = 64 << 10;

/// A request, until its answer's last byte has left or was given up.
pub(crate) struct Answering {
    connection: Arc<Connection>,
    /// Whether its reader may pause for as long as it likes.
    patient: bool,
    place: Option<Place>,
}

impl Answering {
    /// Counts a request in.
    pub(crate) fn begin(connection: &Arc<Connection>) -> Self {
        connection.under_way.fetch_add(1, Ordering::AcqRel);
        connection.head_since.store(0, Ordering::Release);
        Self {
            connection: connection.clone(),
            patient: false,
            place: None,
        }
    }

    /// With the place that it has among others.
    pub(crate) fn holding(mut self, place: Place) -> Self {
        let class = place.class() as usize;
        self.connection.places[class].fetch_add(1, Ordering::AcqRel);
        self.place = Some(place);
        self
    }

    /// Its reader may be somebody who pauses.
    pub(crate) fn patiently(mut self, patient: bool) -> Self {
        if patient && !self.patient {
            self.connection.patient.fetch_add(1, Ordering::AcqRel);
            self.patient = true;
        }
        self
    }

    /// The connection is no longer HTTP's: what the request held is the connection's until that ends.
    pub(crate) fn upgraded(mut self) {
        self.connection.under_way.fetch_add(1, Ordering::AcqRel);
        if let Some(place) = self.place.take() {
            self.connection.keep(place);
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let connection = &self.connection;
        if let Some(place) = &self.place {
            connection.places[place.class() as usize].fetch_sub(1, Ordering::AcqRel);
        }
        if self.patient {
            connection.patient.fetch_sub(1, Ordering::AcqRel);
        }
        if connection.under_way.load(Ordering::Acquire) == 1 {
            connection
                .idle_since
                .store(connection.now(), Ordering::Release);
        }
        connection.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A body whose bytes are counted as unread until HTTP has let go of them.
struct Metered {
    body: Body,
    answering: Arc<Answering>,
    waiting: Option<Pin<Box<OwnedNotified>>>,
}

/// Counts what an answer leaves unread.
pub(crate) fn metered(body: Body, answering: Answering) -> Body {
    Body::new(Metered {
        body,
        answering: Arc::new(answering),
        waiting: None,
    })
}

/// Bytes and what they count.
struct Unread {
    bytes: Bytes,
    weight: usize,
    answering: Arc<Answering>,
    _charge: Option<Charge>,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.answering.connection.was_read(self.weight);
    }
}

impl Metered {
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let connection = &self.answering.connection;
            if connection.has_room() {
                return Poll::Ready(());
            }
            // First in line, then another look: what is read in between must not be missed.
            let mut waiting = Box::pin(connection.room.clone().notified_owned());
            waiting.as_mut().enable();
            if connection.has_room() {
                return Poll::Ready(());
            }
            self.waiting = Some(waiting);
        }
    }

    fn count(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let weight = match bytes.is_unique() {
            true => bytes.len(),
            false => bytes.len().min(SHARED),
        };
        let charge = self.answering.connection.await_reading(weight);
        Bytes::from_owner(Unread {
            bytes,
            weight,
            answering: self.answering.clone(),
            _charge: charge,
        })
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        ready!(self.poll_room(context));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| self.count(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
