//! The classes of requests, and a place in one.

use gantry_store::Charge;
use http::Method;
use tokio::sync::OwnedSemaphorePermit;

use crate::identity::Identity;
use crate::metrics::METRICS;
use crate::request::{RequestInfo, Route};

const SERVERS_GROUP: &str = "gantry:members";

/// Whether somebody is a node or a server of the cluster.
pub(crate) fn is_own(identity: &Identity) -> bool {
    identity.is_in("system:nodes") || identity.is_in(SERVERS_GROUP)
}

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
    /// Watches of objects.
    Watches,
    /// Exec, attach, port-forward, proxied requests, and logs that are followed.
    Streams,
}

impl Class {
    pub(crate) const COUNT: usize = 6;
    pub(super) const ALL: [Self; Self::COUNT] = [
        Self::System,
        Self::Administration,
        Self::Changes,
        Self::Reads,
        Self::Watches,
        Self::Streams,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Administration => "administration",
            Self::Changes => "changes",
            Self::Reads => "reads",
            Self::Watches => "watches",
            Self::Streams => "streams",
        }
    }

    /// Requests at once, and requests that wait.
    pub(super) fn bounds(self) -> (usize, usize) {
        match self {
            Self::System => (512, 2048),
            // Changes wait for disks and the other servers, and are written together.
            Self::Administration | Self::Changes => (512, 2048),
            Self::Reads => (512, 1024),
            Self::Watches => (10_000, 1024),
            Self::Streams => (1024, 256),
        }
    }

    /// How many of its places one user may have, and how many requests of one user may wait.
    pub(super) fn share(self, identity: &Identity) -> (usize, usize) {
        let (places, queue) = self.bounds();
        match identity.is_in("system:unauthenticated") {
            true => (places / 16, queue / 16),
            false => (places / 4 * 3, queue / 4 * 3),
        }
    }

    /// The class of a request; none for what says how the server is, which must be answered above all under load.
    pub(crate) fn of(info: &RequestInfo, identity: &Identity) -> Option<Self> {
        let unbounded = ["/healthz", "/livez", "/readyz", "/metrics", "/version"];
        if let Route::Other(path) = &info.route
            && unbounded.contains(&path.as_str())
        {
            return None;
        }
        if is_own(identity) {
            return Some(Self::System);
        }
        if info.is_watch() {
            return Some(Self::Watches);
        }
        if info.is_stream() {
            return Some(Self::Streams);
        }
        Some(match info.method {
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Reads,
            _ if identity.is_in("system:masters") => Self::Administration,
            _ => Self::Changes,
        })
    }
}

/// A place in a class, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) class: Class,
    pub(super) _permits: [OwnedSemaphorePermit; 2],
    /// What is held beside the answer itself.
    pub(super) cost: Option<Charge>,
}

impl Place {
    pub(crate) fn class(&self) -> Class {
        self.class
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        METRICS.left(self.class.name());
    }
}
