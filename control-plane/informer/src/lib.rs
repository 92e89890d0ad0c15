//! How reconcile loops see a cluster: caches fed by list and watch, work queues, a runner; and how they say what they do: a
//! recorder of events, and why a pod is taken away.
//!
//! Depends on the API types and on `kube::Client`, and must never know whose API server answers it: everything
//! here runs against any Kubernetes cluster.
//!
//! Invariants kept here:
//! - a cache never goes back in time: an object is replaced by a later revision of itself only ([`cache`]);
//! - a key is never reconciled twice at once, and a change that arrives meanwhile is not lost ([`queue`]);
//! - a kind is listed, watched, decoded and held once, however many ask for it ([`informers`]);
//! - nothing polls: without changes, a cache waits on its watch and a runner on its queue.

pub mod cache;
pub mod clock;
pub mod disruption;
pub mod error;
pub mod events;
pub mod informers;
pub mod metrics;
pub mod object;
pub mod queue;
pub mod reflector;
pub mod runner;

pub use cache::{Cache, Change};
pub use clock::Clock;
pub use disruption::Disruption;
pub use error::{Failure, chain, is_conflict, words};
pub use events::{EventStyle, Recorder, Reference};
pub use informers::{Informer, Informers};
pub use object::{Key, Object};
pub use queue::Queue;
pub use runner::Next;
