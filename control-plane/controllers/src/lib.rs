//! The reconcile loops of the built-in kinds: one module per controller, each a pure plan and a thin shell of effects.
//!
//! They see the cluster only through `gantry-informer` and a `kube::Client`, and must never know whose API server
//! that is. Every loop is level-triggered: it is handed a key, looks at the caches, and does what is missing, so that
//! it does not matter which event woke it or how many were lost.

mod claim;
mod cluster_role_aggregation;
mod context;
mod cron_job;
mod daemon_set;
mod departures;
mod deployment;
mod disruption;
mod durations;
mod endpoint_mirroring;
mod endpoint_slice;
mod endpoints;
mod error;
mod garbage;
mod history;
mod horizontal_pod_autoscaler;
mod idling;
mod ip_address;
mod job;
mod kept;
mod listing;
mod load_balancer;
mod metrics;
mod namespace;
mod namespace_defaults;
mod node_lifecycle;
mod pod_control;
mod pod_gc;
mod pods;
mod replica_set;
mod resource_quota;
mod resources;
mod roll_on_change;
mod scale;
mod selecting;
mod selection;
mod service_account_tokens;
mod stateful_set;
mod template_hash;
mod ttl_after_finished;
mod volume_binding;
mod volume_protection;

use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use gantry_informer::Clock;
pub use gantry_informer::Informers;
pub use horizontal_pod_autoscaler::figures;
pub use idling::demand;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
pub use selection::{by_service, slices_of};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use service_account_tokens::{TokenIssuer, TokenSecret};

use self::context::Context;
use self::demand::{Demand, NoDemand};
use self::figures::{Figures, NoFigures};
use self::replica_set::Replicas as _;

/// What to run with.
#[derive(Clone)]
pub struct ControllersConfig {
    /// The certificates, as PEM, with which a pod verifies the API server; published in every namespace.
    pub root_ca: watch::Receiver<String>,
    /// The time of day, for conditions, events and deadlines.
    pub clock: Clock,
    /// Signs the tokens that are kept in Secrets; without one such Secrets stay as they are.
    pub tokens: Option<Arc<dyn TokenIssuer>>,
    /// What autoscalers and the steps of rollouts go by.
    pub figures: Arc<dyn Figures>,
    /// Who wants what idles.
    pub demand: Arc<dyn Demand>,
}

impl ControllersConfig {
    /// The defaults, with certificate authorities that never change.
    pub fn new(root_ca: impl Into<String>) -> Self {
        Self::following(watch::Sender::new(root_ca.into()).subscribe())
    }

    /// The defaults, with the certificate authorities of the moment.
    pub fn following(root_ca: watch::Receiver<String>) -> Self {
        Self {
            root_ca,
            clock: Clock::system(),
            tokens: None,
            figures: Arc::new(NoFigures),
            demand: Arc::new(NoDemand),
        }
    }
}

/// Runs all controllers until stopped: they see the cluster in the caches, and change it with the client. Trouble with the
/// API server is logged and tried again, so there is no error to return.
pub async fn run(
    client: kube::Client,
    informers: Informers,
    config: ControllersConfig,
    stop: CancellationToken,
) {
    let informers = informers.until(&stop);
    let Some(context) = Context::start(client, &informers, config.clock, stop).await else {
        return;
    };
    let sets = context.recorder(ReplicaSet::COMPONENT);
    let replication = context.recorder(ReplicationController::COMPONENT);
    let deployments = context.recorder(deployment::COMPONENT);
    let jobs = context.recorder(job::COMPONENT);
    let cron_jobs = context.recorder(cron_job::COMPONENT);
    let evictions = context.recorder(node_lifecycle::COMPONENT);
    let mirroring = context.recorder(endpoint_mirroring::COMPONENT);
    let balancers = context.recorder(load_balancer::COMPONENT);
    let collecting = context.recorder(garbage::COMPONENT);
    let stateful = context.recorder(stateful_set::COMPONENT);
    let daemons = context.recorder(daemon_set::COMPONENT);
    let volumes = context.recorder(volume_binding::COMPONENT);
    let kept = context.recorder(kept::COMPONENT);
    let autoscaling = context.recorder(horizontal_pod_autoscaler::COMPONENT);
    let idling = context.recorder(idling::COMPONENT);
    let rolling = context.recorder(roll_on_change::COMPONENT);
    let disruptions = context.recorder(disruption::COMPONENT);
    let (context, informers) = (&context, &informers);
    let root_ca = &config.root_ca;
    let (figures, demand) = (&config.figures, config.demand);
    join_all([
        boxed(|| replica_set::run::<ReplicaSet>(context.clone(), sets)),
        boxed(|| replica_set::run::<ReplicationController>(context.clone(), replication)),
        boxed(|| deployment::run(context.clone(), figures.clone(), deployments)),
        boxed(|| stateful_set::run(context.clone(), informers, stateful)),
        boxed(|| daemon_set::run(context.clone(), informers, daemons)),
        boxed(|| job::run(context.clone(), jobs)),
        boxed(|| cron_job::run(context.clone(), informers, cron_jobs)),
        boxed(|| ttl_after_finished::run(context.clone())),
        boxed(|| endpoint_slice::run(context.clone())),
        boxed(|| endpoints::run(context.clone())),
        boxed(|| endpoint_mirroring::run(context.clone(), mirroring)),
        boxed(|| load_balancer::run(context.clone(), balancers)),
        boxed(|| ip_address::run(context.clone())),
        boxed(|| namespace_defaults::run(context.clone(), root_ca.clone())),
        boxed(|| async move {
            if let Some(issuer) = config.tokens {
                let root_ca = root_ca.clone();
                service_account_tokens::run(context.clone(), informers, root_ca, issuer).await;
            }
        }),
        boxed(|| cluster_role_aggregation::run(context.clone())),
        boxed(|| namespace::run(context.clone())),
        boxed(|| garbage::run(context.clone(), collecting)),
        boxed(|| node_lifecycle::run(context.clone(), evictions)),
        boxed(|| pod_gc::run(context.clone())),
        boxed(|| volume_binding::run(context.clone(), informers, volumes)),
        boxed(|| volume_protection::run(context.clone(), informers)),
        boxed(|| resource_quota::run(context.clone(), informers)),
        boxed(|| {
            horizontal_pod_autoscaler::run(context.clone(), informers, figures.clone(), autoscaling)
        }),
        boxed(|| idling::run(context.clone(), informers, demand, idling)),
        boxed(|| roll_on_change::run(context.clone(), informers, rolling)),
        boxed(|| disruption::run(context.clone(), informers, disruptions)),
        boxed(|| kept::run(context.clone(), informers, kept)),
    ])
    .await;
}

/// Begins a part on the heap. All parts in one future would take more of a thread's stack, wherever that is moved, than there
/// is.
fn boxed<'a, F: Future<Output = ()> + Send + 'a>(begin: impl FnOnce() -> F) -> BoxFuture<'a, ()> {
    Box::pin(begin())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what a function of these arguments returns.
    fn size_of<F>(
        _: impl FnOnce(kube::Client, Informers, ControllersConfig, CancellationToken) -> F,
    ) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn a_threads_stack_has_room_for_all_controllers() {
        // It is moved several times on its way into a task, and a stack has 2 MiB.
        let size = size_of(run);
        assert!(size < 64 << 10, "{size} bytes");
    }
}
