//! Pods: one worker each.

mod backoff;
mod containers;
mod files;
mod hooks;
mod launch;
mod node;
mod plan;
mod probe;
mod pull;
mod record;
mod setup;
mod status;
mod stop;
mod worker;
