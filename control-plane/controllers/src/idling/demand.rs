//! What is known of the demand for a Deployment's pods: their connections while there are any, and from where somebody asks
//! for them while there are none.

pub mod fake;

use tokio_util::sync::CancellationToken;

/// TCP connections to a pod, those of its own node's probes left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those that are open.
    pub open: u64,
    /// How many have been opened since the pod began.
    pub opened: u64,
}

/// A node holds connections to a Service that nothing serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The Service's namespace.
    pub namespace: &'a str,
    /// The Service's name. There may be none of that name.
    pub service: &'a str,
    /// The node's name.
    pub node: &'a str,
}

/// Called when something is wanted. It is quick, and does not call back.
pub type Wake = Box<dyn Fn(Wanted<'_>) + Send + Sync>;

/// Demand, as nodes tell of it.
pub trait Demand: Send + Sync {
    /// The connections of the pod with this uid; none when nothing is known of them now.
    fn connections(&self, pod_uid: &str) -> Option<Connections>;

    /// Calls `wake` for what is wanted from now on, until stopped. What is still wanted is told again each second.
    fn subscribe(&self, stop: &CancellationToken, wake: Wake);
}

/// A cluster in which nobody counts connections or holds any: nothing idles.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDemand;

impl Demand for NoDemand {
    fn connections(&self, _pod_uid: &str) -> Option<Connections> {
        None
    }

    fn subscribe(&self, _stop: &CancellationToken, _wake: Wake) {}
}
