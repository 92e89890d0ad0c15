//! Bodies of requests on their way in: bounded in bytes, time and number, before a request takes anybody's place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use gantry_api::status::StatusError;
use gantry_store::{Budget, Charge};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connections::Standing;

/// Larger bodies are refused, as Kubernetes does: 3 MiB.
pub(crate) const LIMIT: usize = 3 << 20;
/// How much of a body that is too large is read and forgotten: a client that writes until it is answered would find its
/// connection closed instead.
const FORGOTTEN: usize = 32 << 20;
/// Bodies that arrive at once: a further one displaces the one that has been arriving the longest, of those whose senders
/// have the lowest standing; but none whose sender stands above its own.
const AT_ONCE: usize = 1024;
/// Those of strangers and the anonymous, of which none may be more than small.
const AT_ONCE_OF_UNKNOWN: usize = 64;
/// The first bytes of a body are always taken, so that large ones never keep small ones out.
const SMALL: usize = 64 << 10;
/// The part of what is left of the budget that a larger one may have.
const SHARE: usize = 4;
/// A body has this long, and more as it grows.
const BEGIN: Duration = Duration::from_secs(15);
/// Bytes per second that earn it more time.
const SLOWEST: usize = 8 << 10;
/// No body has longer.
const LONGEST: Duration = Duration::from_secs(120);
/// When to try again, in seconds.
const RETRY_AFTER: u32 = 1;

/// Those that are arriving.
pub(crate) struct Bodies {
    budget: Arc<Budget>,
    arriving: Mutex<Arriving>,
}

#[derive(Default)]
struct Arriving {
    next: u64,
    /// By the standing of their senders, then by age.
    all: BTreeMap<(Standing, u64), CancellationToken>,
}

impl Arriving {
    /// Whether one of a standing must displace another.
    fn is_full(&self, standing: Standing) -> bool {
        let unknown = || self.all.range(..(Standing::User, 0)).count();
        self.all.len() >= AT_ONCE || standing < Standing::User && unknown() >= AT_ONCE_OF_UNKNOWN
    }
}

/// One of them, until it is whole or given up.
struct Turn<'a> {
    bodies: &'a Bodies,
    id: (Standing, u64),
    displaced: CancellationToken,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.bodies.arriving.lock().all.remove(&self.id);
    }
}

fn late(received: usize) -> StatusError {
    let message = format!(
        "the body of the request did not arrive in time: {received} bytes came; send it faster, or send it again"
    );
    StatusError::new(408, "Timeout", message, None)
}

fn crowded() -> StatusError {
    StatusError::too_many_requests(
        "the server has too much in memory that waits for clients: try again later, or through another server",
        RETRY_AFTER,
    )
}

impl Bodies {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            arriving: Mutex::default(),
        }
    }

    fn turn(&self, standing: Standing) -> Result<Turn<'_>, StatusError> {
        let mut arriving = self.arriving.lock();
        if arriving.is_full(standing) {
            let first = arriving.all.first_entry();
            let Some(oldest) = first.filter(|first| first.key().0 <= standing) else {
                return Err(crowded());
            };
            oldest.remove().cancel();
        }
        let (id, displaced) = ((standing, arriving.next), CancellationToken::new());
        arriving.next += 1;
        arriving.all.insert(id, displaced.clone());
        Ok(Turn {
            bodies: self,
            id,
            displaced,
        })
    }

    /// The whole body, and what it counts of the budget for as long as it is needed.
    pub(crate) async fn receive(
        &self,
        mut body: Body,
        headers: &HeaderMap,
        standing: Standing,
    ) -> Result<(Bytes, Charge), StatusError> {
        let mut charge = self.budget.charge(0);
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or(0_usize);
        let limit = match standing < Standing::User {
            true => SMALL,
            false => LIMIT,
        };
        // Whoever asks first, and strangers, are answered at once.
        let forget = match standing < Standing::User || headers.contains_key(EXPECT) {
            true => 0,
            false => FORGOTTEN,
        };
        if announced > limit && forget == 0 || announced > limit + forget {
            return Err(StatusError::too_large(limit));
        }
        let turn = self.turn(standing)?;
        let began = Instant::now();
        let (mut bytes, mut forgotten) = (BytesMut::new(), 0);
        loop {
            let arrived = bytes.len() + forgotten;
            let earned = Duration::from_secs((arrived / SLOWEST) as u64);
            let deadline = began + (BEGIN + earned).min(LONGEST);
            let frame = tokio::select! {
                frame = tokio::time::timeout_at(deadline, body.frame()) => frame,
                () = turn.displaced.cancelled() => return Err(match forgotten {
                    0 => late(arrived),
                    _ => StatusError::too_large(limit),
                }),
            };
            let frame = match frame {
                Err(_) if forgotten == 0 => return Err(late(arrived)),
                Ok(None) if forgotten == 0 => return Ok((bytes.freeze(), charge)),
                Err(_) | Ok(None) => return Err(StatusError::too_large(limit)),
                Ok(Some(Err(error))) => {
                    return Err(StatusError::bad_request(format!(
                        "the body of the request broke off: {error}"
                    )));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let size = bytes.len() + data.len();
            if size > limit || forgotten > 0 {
                // What has come takes no more memory.
                forgotten += std::mem::take(&mut bytes).len() + data.len();
                charge = self.budget.charge(0);
                if forgotten > limit + forget {
                    return Err(StatusError::too_large(limit));
                }
                continue;
            }
            if size > SMALL && size > self.budget.free() / SHARE {
                return Err(crowded());
            }
            charge.grow(data.len());
            bytes.extend_from_slice(&data);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    fn never() -> Body {
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
        Body::from_stream(first.chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_body_ends_and_is_not_paid_for_any_longer() {
        let budget = Budget::new(1 << 20);
        let bodies = Bodies::new(budget.clone());
        let refused = bodies
            .receive(never(), &HeaderMap::new(), Standing::User)
            .await;
        assert_eq!(refused.expect_err("it never ends").code(), 408);
        assert_eq!(budget.used(), 0);
        assert!(bodies.arriving.lock().all.is_empty());
    }

    #[tokio::test]
    async fn the_body_that_is_too_many_displaces_the_oldest() {
        let bodies = Arc::new(Bodies::new(Budget::new(1 << 20)));
        let receive = |body: Body| {
            let bodies = bodies.clone();
            tokio::spawn(async move {
                bodies
                    .receive(body, &HeaderMap::new(), Standing::User)
                    .await
            })
        };
        let oldest = receive(never());
        while bodies.arriving.lock().all.is_empty() {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..AT_ONCE).map(|_| receive(never())).collect();
        let displaced = oldest.await.expect("no panic");
        assert_eq!(displaced.expect_err("displaced").code(), 408);
        let (whole, charge) = receive(Body::from("{}"))
            .await
            .expect("no panic")
            .expect("small bodies arrive");
        assert_eq!((&whole[..], charge.bytes()), (&b"{}"[..], 2));
        others.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn large_bodies_leave_room_for_small_ones() {
        let budget = Budget::new(8 << 20);
        let bodies = Bodies::new(budget.clone());
        let mut held = Vec::new();
        let refused = loop {
            let large = Body::from(vec![b'x'; 1 << 20]);
            match bodies
                .receive(large, &HeaderMap::new(), Standing::User)
                .await
            {
                Ok(received) => held.push(received),
                Err(error) => break error,
            }
        };
        assert_eq!((refused.code(), held.len()), (429, 5));
        let small = Body::from(vec![b'x'; SMALL]);
        bodies
            .receive(small, &HeaderMap::new(), Standing::User)
            .await
            .expect("small bodies arrive");
        let huge = Body::from(vec![b'x'; LIMIT + 1]);
        let refused = bodies
            .receive(huge, &HeaderMap::new(), Standing::User)
            .await;
        assert!(matches!(refused.expect_err("too large").code(), 413 | 429));
    }

    #[tokio::test]
    async fn a_body_displaces_none_whose_sender_stands_higher() {
        let bodies = Bodies::new(Budget::new(64 << 20));
        let mut own = bodies.turn(Standing::Own).expect("there is room");
        let user = bodies.turn(Standing::User).expect("there is room");
        let stranger = bodies.turn(Standing::Anonymous).expect("there is room");
        let strangers: Vec<_> = (1..AT_ONCE_OF_UNKNOWN)
            .map(|_| bodies.turn(Standing::Anonymous).expect("there is room"))
            .collect();
        assert!(!stranger.displaced.is_cancelled());
        let another = bodies.turn(Standing::Anonymous).expect("one goes");
        assert!(stranger.displaced.is_cancelled(), "the oldest of theirs");
        assert!(!user.displaced.is_cancelled() && !own.displaced.is_cancelled());
        let mut of_own = Vec::new();
        while bodies.arriving.lock().all.len() < AT_ONCE {
            of_own.push(bodies.turn(Standing::Own).expect("there is room"));
        }
        // Strangers go for users, and nobody of the cluster's own does.
        let users: Vec<_> = (0..=AT_ONCE_OF_UNKNOWN)
            .map(|_| bodies.turn(Standing::User).expect("one goes"))
            .collect();
        assert!(strangers.iter().all(|turn| turn.displaced.is_cancelled()));
        assert!(another.displaced.is_cancelled() && user.displaced.is_cancelled());
        assert!(!of_own.iter().any(|turn| turn.displaced.is_cancelled()));
        drop(users);
        while bodies.arriving.lock().all.len() < AT_ONCE {
            of_own.push(bodies.turn(Standing::Own).expect("there is room"));
        }
        let refused = bodies.turn(Standing::User).map(drop);
        assert_eq!(refused.expect_err("all are the cluster's own").code(), 429);
        own = bodies
            .turn(Standing::Own)
            .expect("the oldest of its own goes");
        drop(own);
    }

    /// A body of some mebibytes, and how many of them were read.
    fn counted(mebibytes: usize) -> (Body, Arc<std::sync::atomic::AtomicUsize>) {
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let pieces = stream::iter(0..mebibytes).map({
            let read = read.clone();
            move |_| {
                read.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1 << 20]))
            }
        });
        (Body::from_stream(pieces), read)
    }

    #[tokio::test]
    async fn who_sends_too_much_is_told_so_when_it_has_been_sent() {
        let budget = Budget::new(64 << 20);
        let bodies = Bodies::new(budget.clone());
        let asks = HeaderMap::from_iter([(EXPECT, http::HeaderValue::from_static("100-continue"))]);
        let announced = |length: usize| {
            HeaderMap::from_iter([(CONTENT_LENGTH, http::HeaderValue::from(length))])
        };
        for (mebibytes, headers, standing, read) in [
            (4, HeaderMap::new(), Standing::User, 4),
            (4, announced(4 << 20), Standing::User, 4),
            // Without an end there is one.
            (100, HeaderMap::new(), Standing::User, 36),
            (100, announced(100 << 20), Standing::User, 0),
            (4, asks, Standing::User, 4),
            (4, HeaderMap::new(), Standing::Anonymous, 1),
            (4, announced(4 << 20), Standing::Anonymous, 0),
        ] {
            let (body, sent) = counted(mebibytes);
            let refused = bodies.receive(body, &headers, standing).await;
            assert_eq!(refused.expect_err("too large").code(), 413);
            let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(sent, read, "{mebibytes} MiB of {headers:?}");
            assert_eq!(budget.used(), 0);
        }
        assert!(bodies.arriving.lock().all.is_empty());
    }

    #[tokio::test]
    async fn bodies_of_strangers_are_small() {
        let bodies = Bodies::new(Budget::new(64 << 20));
        for (standing, code) in [(Standing::Anonymous, Some(413)), (Standing::User, None)] {
            let large = Body::from(vec![b'x'; SMALL + 1]);
            let received = bodies.receive(large, &HeaderMap::new(), standing).await;
            assert_eq!(received.err().map(|error| error.code()), code);
        }
    }
}
