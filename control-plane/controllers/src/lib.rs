//! The reconcile loops of the built-in kinds: one module per controller, each a pure plan and a thin shell of effects.
//!
//! They see the cluster only through `gantry-informer` and a `kube::Client`, and must never know whose API server
//! that is. Every loop is level-triggered: it is handed a key, looks at the caches, and does what is missing, so that
//! it does not matter which event woke it or how many were lost.

mod claim;
mod cluster_role_aggregation;
mod context;
mod cron_job;
mod deployment;
mod endpoint_mirroring;
mod endpoint_slice;
mod endpoints;
mod error;
mod garbage;
mod history;
mod horizontal_pod_autoscaler;
mod ip_address;
mod job;
mod kept;
mod load_balancer;
mod namespace;
mod namespace_defaults;
mod node_lifecycle;
mod pod_control;
mod pod_gc;
mod pods;
mod replica_set;
mod resources;
mod selection;
mod service_account_tokens;
mod stateful_set;
mod template_hash;
mod ttl_after_finished;
mod volume_binding;
mod volume_protection;

use std::sync::Arc;

use gantry_informer::Clock;
pub use gantry_informer::Informers;
pub use horizontal_pod_autoscaler::figures;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use service_account_tokens::{TokenIssuer, TokenSecret};

use self::context::Context;
use self::figures::{Figures, NoFigures};

/// What to run with.
#[derive(Clone)]
pub struct ControllersConfig {
    /// The certificates, as PEM, with which a pod verifies the API server; published in every namespace.
    pub root_ca: watch::Receiver<String>,
    /// The time of day, for conditions, events and deadlines.
    pub clock: Clock,
    /// Signs the tokens that are kept in Secrets; without one such Secrets stay as they are.
    pub tokens: Option<Arc<dyn TokenIssuer>>,
    /// What autoscalers go by.
    pub figures: Arc<dyn Figures>,
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
    let sets = context.recorder(replica_set::COMPONENT);
    let deployments = context.recorder(deployment::COMPONENT);
    let jobs = context.recorder(job::COMPONENT);
    let cron_jobs = context.recorder(cron_job::COMPONENT);
    let evictions = context.recorder(node_lifecycle::COMPONENT);
    let mirroring = context.recorder(endpoint_mirroring::COMPONENT);
    let balancers = context.recorder(load_balancer::COMPONENT);
    let collecting = context.recorder(garbage::COMPONENT);
    let stateful = context.recorder(stateful_set::COMPONENT);
    let volumes = context.recorder(volume_binding::COMPONENT);
    let kept = context.recorder(kept::COMPONENT);
    let autoscaling = context.recorder(horizontal_pod_autoscaler::COMPONENT);
    let tokens = async {
        if let Some(issuer) = config.tokens {
            let root_ca = config.root_ca.clone();
            service_account_tokens::run(context.clone(), &informers, root_ca, issuer).await;
        }
    };
    tokio::join!(
        replica_set::run(context.clone(), sets),
        deployment::run(context.clone(), deployments),
        stateful_set::run(context.clone(), &informers, stateful),
        job::run(context.clone(), jobs),
        cron_job::run(context.clone(), &informers, cron_jobs),
        ttl_after_finished::run(context.clone()),
        endpoint_slice::run(context.clone()),
        endpoints::run(context.clone()),
        endpoint_mirroring::run(context.clone(), mirroring),
        load_balancer::run(context.clone(), balancers),
        ip_address::run(context.clone()),
        namespace_defaults::run(context.clone(), config.root_ca.clone()),
        tokens,
        cluster_role_aggregation::run(context.clone()),
        namespace::run(context.clone()),
        garbage::run(context.clone(), collecting),
        node_lifecycle::run(context.clone(), evictions),
        pod_gc::run(context.clone()),
        volume_binding::run(context.clone(), &informers, volumes),
        volume_protection::run(context.clone(), &informers),
        horizontal_pod_autoscaler::run(context.clone(), &informers, config.figures, autoscaling),
        kept::run(context.clone(), &informers, kept),
    );
}
