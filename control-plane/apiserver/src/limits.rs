//! Kubernetes' API priority and fairness: bounds on what clients ask at once, by class, so that a flood of one sort of
//! request leaves the others alone.
//!
//! What runs within the process, node links and messages between servers never come here. A request has its place from
//! when its body is here until the last byte of its answer has left, or for as long as its upgraded connection lasts; one
//! user leaves some places of a class to the others. What is refused takes no place, or gives it back before its answer is
//! read. A request that finds its class full waits in a short queue, while the answer that is read least, of nobody above
//! its user's standing, is given up; where the queue is full too, or the wait long, it is refused with 429, and clients of
//! Kubernetes try again after the seconds that the answer names. A user whose own share is full waits for its own requests,
//! in a queue of its own: nobody else stands behind it.

pub(crate) mod class;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::status::StatusError;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::connections::{Connections, RELIEF};
use crate::identity::Identity;
use crate::metrics::METRICS;

pub(crate) use self::class::{Class, Place, is_own};

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to try again, in seconds.
const RETRY_AFTER: u32 = 1;
/// What a stream to a node holds on its way to the client.
const STREAM_COST: usize = 128 << 10;

/// A priority level: the places of one class, and its queue.
struct Gate {
    class: Class,
    /// Of those that may be under way.
    places: Arc<Semaphore>,
    /// Of those that may wait.
    queue: Semaphore,
    /// What each user has left of its share, of those that have taken any.
    users: Mutex<HashMap<String, Share>>,
    /// When a request that could not wait looked for readers to end.
    looked: Mutex<Option<Instant>>,
}

/// One user's part of a class.
#[derive(Clone)]
struct Share {
    /// Of its requests that may be under way.
    places: Arc<Semaphore>,
    /// Of those that may wait: for one another, and among everybody's.
    queue: Arc<Semaphore>,
}

/// All bounds of one server.
pub(crate) struct Limits {
    gates: [Gate; Class::COUNT],
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            gates: Class::ALL.map(|class| {
                let (places, queue) = class.bounds();
                Gate::new(class, places, queue)
            }),
        }
    }
}

impl Limits {
    /// Waits for a place in a class, but not for long; a client that does not read may lose its own.
    pub(crate) async fn enter(
        &self,
        class: Class,
        identity: &Identity,
        connections: &Connections,
    ) -> Result<Place, StatusError> {
        let gate = &self.gates[class as usize];
        let mut place = gate
            .enter(identity, || connections.free_place(class, identity))
            .await?;
        if class == Class::Streams {
            place.cost = Some(connections.budget().charge(STREAM_COST));
        }
        Ok(place)
    }
}

impl Gate {
    fn new(class: Class, places: usize, queue: usize) -> Self {
        Self {
            class,
            places: Arc::new(Semaphore::new(places)),
            queue: Semaphore::new(queue),
            users: Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// What is left of a user's share.
    fn share(&self, identity: &Identity) -> Share {
        let mut users = self.users.lock();
        if let Some(share) = users.get(&identity.user) {
            return share.clone();
        }
        // Whoever has nothing under way is forgotten when others come.
        users.retain(|_, share| Arc::strong_count(&share.places) > 1);
        let (places, queue) = self.class.share(identity);
        let share = Share {
            places: Arc::new(Semaphore::new(places.max(1))),
            queue: Arc::new(Semaphore::new(queue)),
        };
        users.insert(identity.user.clone(), share.clone());
        share
    }

    async fn enter(
        &self,
        identity: &Identity,
        make_room: impl FnOnce(),
    ) -> Result<Place, StatusError> {
        let share = self.share(identity);
        let turn = self.turn(&share, make_room);
        if let Ok(Some(permits)) = tokio::time::timeout(PATIENCE, turn).await {
            return Ok(self.place(permits));
        }
        METRICS.rejected(self.class.name());
        Err(StatusError::too_many_requests(
            format!(
                "the server has too many requests of the class \"{}\" under way: try again later, or through another server",
                self.class.name()
            ),
            RETRY_AFTER,
        ))
    }

    /// What a request must have, once it has both; none where too many wait.
    async fn turn(
        &self,
        share: &Share,
        make_room: impl FnOnce(),
    ) -> Option<[OwnedSemaphorePermit; 2]> {
        if let Ok(own) = share.places.clone().try_acquire_owned()
            && let Ok(place) = self.places.clone().try_acquire_owned()
        {
            return Some([own, place]);
        }
        let _waiting = share.queue.try_acquire().ok()?;
        // Nobody else's request ends for a user that has too many, and nobody else's stands in line behind its own.
        let own = share.places.clone().acquire_owned().await.ok()?;
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some([own, place]);
        }
        let queued = self.queue.try_acquire();
        if queued.is_ok() || self.may_look() {
            make_room();
        }
        let _queued = queued.ok()?;
        let place = self.places.clone().acquire_owned().await.ok()?;
        Some([own, place])
    }

    /// Whether a request that cannot wait may look for readers to end: however many of those come, they cost no more.
    fn may_look(&self) -> bool {
        let (now, mut looked) = (Instant::now(), self.looked.lock());
        let due = looked.is_none_or(|looked| now.duration_since(looked) >= RELIEF);
        if due {
            *looked = Some(now);
        }
        due
    }

    fn place(&self, permits: [OwnedSemaphorePermit; 2]) -> Place {
        METRICS.entered(self.class.name());
        Place {
            class: self.class,
            _permits: permits,
            cost: None,
        }
    }
}

#[cfg(test)]
mod tests;
