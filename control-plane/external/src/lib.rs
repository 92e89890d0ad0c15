//! Metrics from outside of the cluster: what a Prometheus server, or any HTTP endpoint that answers JSON, says in answer to a
//! question that somebody of a namespace has registered.
//!
//! A source is asked while somebody wants it, once per period, and everybody is answered from what it said last. Must never know the
//! store, the API server, or who wants a metric: whoever implements [`Sources`] knows where they are registered.
//!
//! Invariants kept here:
//! - who registers a source does not get at what only the control plane's machine can reach: addresses are judged after names have
//!   been looked up, those are connected to that were judged, and nothing is followed elsewhere ([`Guard`]);
//! - a source costs no more than its bounds of time and bytes, one question at a time; a namespace has few questions under way, so
//!   that it never keeps those of others waiting for long.

mod answer;
mod ask;
mod external;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod source;

pub use answer::Series;
pub use external::{Answered, CLIENTS_WAIT, External, NoAnswer, Registered, Sources};
pub use guard::Guard;
pub use source::Source;
