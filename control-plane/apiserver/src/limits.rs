//! Bounds on what clients ask at once, by class, so that a flood of one sort of request leaves the others alone.
//!
//! What runs within the process, node links and messages between servers never come here. A request that finds its class
//! full waits in a short queue; where that is full too, or the wait long, it is refused with 429, and clients of Kubernetes
//! try again after the seconds that the answer names. A watch is counted for as long as it lasts, any other request until
//! its answer begins.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use gantry_api::status::StatusError;
use http::{Method, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;

use crate::identity::Identity;
use crate::metrics::METRICS;
use crate::request::{Query, Route, route};

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to try again, in seconds.
const RETRY_AFTER: u32 = 1;
const SERVERS_GROUP: &str = "gantry:members";

/// Requests that share one bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Of nodes and servers.
    System,
    /// Changes by administrators.
    Administration,
    /// Changes by anybody else.
    Changes,
    Reads,
    /// Watches and followed logs.
    Watches,
}

impl Class {
    const ALL: [Self; 5] = [
        Self::System,
        Self::Administration,
        Self::Changes,
        Self::Reads,
        Self::Watches,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Administration => "administration",
            Self::Changes => "changes",
            Self::Reads => "reads",
            Self::Watches => "watches",
        }
    }

    /// Requests at once, and requests that wait.
    fn bounds(self) -> (usize, usize) {
        match self {
            Self::System => (512, 2048),
            // Changes wait for disks and the other servers, and are written together.
            Self::Administration | Self::Changes => (512, 2048),
            // Lists take a processor each.
            Self::Reads => (64, 1024),
            // A wait would be as long as somebody else's watch.
            Self::Watches => (10_000, 0),
        }
    }

    /// The class of a request; none for what says how the server is, which must be answered above all under load.
    pub(crate) fn of<B>(request: &Request<B>, identity: &Identity) -> Option<Self> {
        let route = route(request.uri().path());
        let unbounded = ["/healthz", "/livez", "/readyz", "/metrics", "/version"];
        if let Route::Other(path) = &route
            && unbounded.iter().any(|known| path.starts_with(known))
        {
            return None;
        }
        if identity.is_in("system:nodes") || identity.is_in(SERVERS_GROUP) {
            return Some(Self::System);
        }
        let query = Query::parse(request.uri().query());
        let lasts = match &route {
            Route::Resource(path) => {
                query.flag("watch") && path.name.is_none()
                    || path.subresource.as_deref() == Some("log") && query.flag("follow")
            }
            Route::Other(_) => false,
        };
        Some(match *request.method() {
            _ if lasts => Self::Watches,
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Reads,
            _ if identity.is_in("system:masters") => Self::Administration,
            _ => Self::Changes,
        })
    }
}

struct Gate {
    class: Class,
    /// Of those that may be under way.
    places: Arc<Semaphore>,
    /// Of those that may wait.
    queue: Semaphore,
}

/// All bounds of one server.
pub(crate) struct Limits {
    gates: [Gate; 5],
}

/// A place in a class, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    class: Class,
    _permit: OwnedSemaphorePermit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            gates: Class::ALL.map(|class| {
                let (places, queue) = class.bounds();
                Gate {
                    class,
                    places: Arc::new(Semaphore::new(places)),
                    queue: Semaphore::new(queue),
                }
            }),
        }
    }
}

impl Limits {
    /// Waits for a place in a class, but not for long.
    pub(crate) async fn enter(&self, class: Class) -> Result<Place, StatusError> {
        self.gates[class as usize].enter().await
    }
}

impl Gate {
    async fn enter(&self) -> Result<Place, StatusError> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(self.place(permit));
        }
        if let Ok(_waiting) = self.queue.try_acquire() {
            let turn = tokio::time::timeout(PATIENCE, self.places.clone().acquire_owned());
            if let Ok(Ok(permit)) = turn.await {
                return Ok(self.place(permit));
            }
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

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        METRICS.entered(self.class.name());
        Place {
            class: self.class,
            _permit: permit,
        }
    }
}

impl Place {
    /// Keeps the place of a watch until its answer ends; any other is given up now.
    pub(crate) fn keep(self, response: Response<Body>) -> Response<Body> {
        if self.class != Class::Watches {
            return response;
        }
        response.map(|body| {
            Body::from_stream(body.into_data_stream().map(move |piece| {
                let _kept = &self;
                piece
            }))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        METRICS.left(self.class.name());
    }
}

#[cfg(test)]
mod tests;
