//! One answer on its way: how its reader gets on with it, and how it is ended without the others of its connection.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use gantry_store::Charge;
use tokio_util::sync::CancellationToken;

use super::{Connection, SLOW, STALLED, Standing, as_millis};
use crate::limits::class::{Class, Place};
use crate::metrics::METRICS;

tokio::task_local! {
    /// Ends the HTTP/2 stream that the task serves; gone with the task.
    static STREAM: Weak<CancellationToken>;
}

/// Runs the streams of HTTP/2 connections, each so that it can be ended without the others. HTTP itself cannot do that: it
/// does not look at the body of an answer while the client lets it send nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams;

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let end = Arc::new(CancellationToken::new());
        let known = Arc::downgrade(&end);
        tokio::spawn(STREAM.scope(known, async move {
            end.run_until_cancelled(stream).await;
        }));
    }
}

/// A request, until its answer's last byte has left or was given up.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(super) connection: Arc<Connection>,
    /// Whether its reader may pause for as long as it likes.
    patient: bool,
    /// Whether the request asked for another protocol.
    switches: bool,
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
            switches: false,
            place: None,
        }
    }

    /// With the place that it has among others.
    pub(crate) fn holding(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// Its reader may be somebody who pauses, if it becomes a stream.
    pub(crate) fn patiently(mut self, patient: bool) -> Self {
        self.patient |= patient;
        self
    }

    /// The request asked for another protocol: its connection may become one that is no longer HTTP's.
    pub(crate) fn switching(mut self, switches: bool) -> Self {
        self.switches = switches;
        self
    }

    /// Whether an answer may say that the protocol is switched.
    pub(crate) fn may_switch(&self) -> bool {
        self.switches
    }

    /// What came of it. Patience is for streams that succeed, and whoever does not read a refusal keeps no place by that.
    pub(super) fn judged(mut self, succeeded: bool, whole: bool) -> Self {
        self.patient &= succeeded && !whole;
        if whole && !succeeded {
            self.place = None;
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
        // The clock first, and whether or not it is the last: of two that end at once, neither sees that it is.
        (connection.idle_since).store(connection.now(), Ordering::Release);
        connection.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer on its way to its reader. Readers are judged by each of their answers: one that is read says nothing of
/// another.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Among those of its connection.
    number: u64,
    pub(super) answering: Answering,
    /// Bytes that wait to be read, and since when none was taken.
    unread: AtomicUsize,
    unread_since: AtomicU64,
    /// Of HTTP/2; none of HTTP/1, whose connection has one answer at a time.
    stream: Option<Weak<CancellationToken>>,
}

impl Delivery {
    pub(super) fn begin(answering: Answering) -> Arc<Self> {
        let connection = answering.connection.clone();
        let mut deliveries = connection.deliveries.lock();
        let number = deliveries.next;
        deliveries.next += 1;
        let delivery = Arc::new(Self {
            number,
            unread: AtomicUsize::new(0),
            unread_since: AtomicU64::new(0),
            stream: STREAM.try_with(Clone::clone).ok(),
            answering,
        });
        deliveries.all.insert(number, Arc::downgrade(&delivery));
        delivery
    }

    fn connection(&self) -> &Connection {
        &self.answering.connection
    }

    /// Counts bytes that wait to be read.
    pub(super) fn await_reading(&self, bytes: usize) -> Option<[Option<Charge>; 2]> {
        let connection = self.connection();
        let registry = connection.registry.upgrade()?;
        connection.unread.fetch_add(bytes, Ordering::AcqRel);
        // The clock first, here and where some are read: whoever looks in between must not find an older one.
        if self.unread() == 0 {
            (self.unread_since).store(registry.now(), Ordering::Release);
        }
        self.unread.fetch_add(bytes, Ordering::AcqRel);
        let standing = connection.standing();
        let unknown = standing < Standing::User;
        let charges = [
            Some(registry.budget().charge(bytes)),
            unknown.then(|| registry.unknown.budget.charge(bytes)),
        ];
        registry.relieve(standing);
        Some(charges)
    }

    /// Some were read, or given up.
    pub(super) fn was_read(&self, bytes: usize) {
        let connection = self.connection();
        (self.unread_since).store(connection.now(), Ordering::Release);
        self.unread.fetch_sub(bytes, Ordering::AcqRel);
        connection.unread.fetch_sub(bytes, Ordering::AcqRel);
        connection.room.notify_waiters();
    }

    pub(super) fn unread(&self) -> usize {
        self.unread.load(Ordering::Acquire)
    }

    /// Milliseconds since when its reader has taken nothing of what there is.
    pub(super) fn waited(&self, now: u64) -> u64 {
        match self.unread() {
            0 => 0,
            _ => now.saturating_sub(self.unread_since.load(Ordering::Acquire)),
        }
    }

    /// Whether it has something to read and takes none of it.
    pub(super) fn is_slow(&self, now: u64) -> bool {
        self.unread() > 0 && self.waited(now) >= as_millis(SLOW)
    }

    /// Whether it has been slow for longer than anybody may be.
    pub(super) fn is_stalled(&self, now: u64) -> bool {
        !self.answering.patient && self.waited(now) > as_millis(STALLED)
    }

    /// Bytes that wait, times how long they have.
    pub(super) fn burden(&self, now: u64) -> u128 {
        self.unread() as u128 * u128::from(self.waited(now).max(1))
    }

    pub(super) fn holds(&self, class: Class) -> bool {
        let place = self.answering.place.as_ref();
        place.is_some_and(|place| place.class() == class)
    }

    /// What comes first goes first: strangers before users, and those who may pause last.
    pub(super) fn rank(&self) -> (Standing, bool) {
        (self.connection().standing(), self.answering.patient)
    }

    /// Ends it; together with its connection where it cannot be ended alone, or where that is no loss.
    pub(super) fn end(&self, why: &'static str, now: u64) {
        // It may need a moment to leave, and is judged anew only after that.
        self.unread_since.store(now, Ordering::Release);
        let connection = self.connection();
        let stream = self.stream.as_ref().and_then(Weak::upgrade);
        match stream {
            Some(stream) if connection.standing() >= Standing::User => {
                METRICS.ended(why);
                stream.cancel();
            }
            _ => connection.end(why),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let mut deliveries = self.answering.connection.deliveries.lock();
        deliveries.all.remove(&self.number);
    }
}
