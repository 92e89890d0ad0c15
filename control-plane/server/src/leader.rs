//! What runs on the leader alone: scheduler, controllers, node monitor, and what looks after the members.

use std::sync::Arc;
use std::time::Duration;

use gantry_apiserver::{ApiServer, Identity, NODE_LINK};
use gantry_controllers::{ControllersConfig, Informers, TokenIssuer, TokenSecret};
use gantry_members::{Roster, keep_endpoints};
use gantry_nodes::{Hub, event_expiry, monitor, scraping};
use gantry_scheduler::SchedulerConfig;
use gantry_store::{Leadership, Store, Term};
use gantry_tasks::supervised;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::demand::OfNodes;
use crate::measured::Measured;
use crate::{alarms, level};

/// The tokens that are kept in Secrets.
struct SecretTokens(ApiServer);

impl TokenIssuer for SecretTokens {
    fn issue(&self, secret: &TokenSecret<'_>) -> Option<String> {
        self.0.secret_token(
            secret.namespace,
            secret.name,
            secret.account,
            secret.account_uid,
        )
    }

    fn key(&self) -> Option<String> {
        self.0.token_key()
    }

    fn is_current(&self, token: &str) -> bool {
        self.0.is_current_token(token)
    }
}

/// The parts that run on the leader alone.
pub(crate) struct Lead {
    pub(crate) store: Store,
    pub(crate) api: ApiServer,
    pub(crate) hub: Arc<Hub>,
    pub(crate) measured: Measured,
    pub(crate) roster: Roster,
    pub(crate) trusted: watch::Receiver<String>,
    pub(crate) node_grace: Duration,
}

impl Lead {
    /// Runs them for as long as this server leads, again and again.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut leadership = self.store.leadership();
        loop {
            let leading = tokio::select! {
                () = stop.cancelled() => return,
                leads = until(&mut leadership, |state| state.is_leader) => match leads {
                    true => stop.child_token(),
                    false => return,
                },
            };
            let term = leadership.borrow().term;
            tracing::info!(term = term.0, "leading: scheduler and controllers start");
            let parts = self.parts(term, leading.clone());
            tokio::pin!(parts);
            tokio::select! {
                () = &mut parts => {}
                _ = until(&mut leadership, |state| !state.is_leader || state.term != term) => {
                    tracing::info!(term = term.0, "no longer leading: scheduler and controllers stop");
                    leading.cancel();
                    parts.await;
                }
            }
            // Nodes look for the new leader.
            self.hub.disconnect_all();
            self.measured.figures.clear();
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn parts(&self, term: Term, stop: CancellationToken) {
        // Whatever they still have under way when another server leads is refused.
        let api = self.api.fenced(term);
        let client = |identity| kube::Client::new(api.local_service(identity), "default");
        // What the scheduler does is what its role in every cluster allows; the others are many parts under one name.
        let scheduler = Identity::new("system:kube-scheduler", &["system:authenticated"]);
        let client_of = |user: &str| client(Identity::of_system(user));
        // What the scheduler and the controllers know of the cluster is one copy, which ends with them.
        let caches = stop.child_token();
        let _end_with_the_parts = caches.clone().drop_guard();
        let informers = Informers::new(client_of("system:kube-controller-manager"), &caches);
        // Each part begins anew by itself: none falls with another.
        tokio::join!(
            part("scheduler", &stop, |stop| gantry_scheduler::run(
                client(scheduler.clone()),
                informers.clone(),
                SchedulerConfig::default(),
                stop
            )),
            part("controllers", &stop, |stop| gantry_controllers::run(
                client_of("system:kube-controller-manager"),
                informers.clone(),
                ControllersConfig {
                    tokens: Some(Arc::new(SecretTokens(self.api.clone()))),
                    figures: Arc::new(self.measured.clone()),
                    demand: Arc::new(OfNodes {
                        hub: self.hub.clone(),
                        figures: self.measured.figures.clone(),
                    }),
                    ..ControllersConfig::following(self.trusted.clone())
                },
                stop
            )),
            part("custom metrics", &stop, |stop| self
                .measured
                .cluster
                .follow(&informers, stop)),
            part("node monitor", &stop, |stop| monitor::run(
                client_of(NODE_LINK),
                self.hub.clone(),
                self.node_grace,
                stop
            )),
            part("scraping", &stop, |stop| scraping::run(
                informers.clone(),
                self.hub.clone(),
                stop
            )),
            part("feature level", &stop, |stop| level::run(
                self.store.clone(),
                self.roster.clone(),
                stop
            )),
            part("alarms", &stop, |stop| alarms::run(
                client_of(NODE_LINK),
                self.store.clone(),
                self.roster.clone(),
                stop
            )),
            part("events", &stop, |stop| event_expiry::run(
                client_of(NODE_LINK),
                self.store.clone(),
                stop
            )),
            part("endpoints", &stop, |stop| keep_endpoints(
                api.clone(),
                self.store.clone(),
                self.roster.clone(),
                stop
            )),
        );
    }
}

/// Runs a part of the leader until stopped. What it began besides ends with it, also when it begins anew.
async fn part<F: Future<Output = ()>>(
    name: &'static str,
    stop: &CancellationToken,
    begin: impl Fn(CancellationToken) -> F,
) {
    supervised(name, stop, || async {
        let own = stop.child_token();
        let _ends_with_it = own.clone().drop_guard();
        begin(own).await;
    })
    .await;
}

/// Waits for a state of leadership; false when the store has stopped.
pub(crate) async fn until(
    leadership: &mut watch::Receiver<Leadership>,
    wanted: impl FnMut(&Leadership) -> bool,
) -> bool {
    leadership.wait_for(wanted).await.is_ok()
}
