//! Connections to services that nobody answers yet: held by the kernel's own retries, and sent on their way when somebody
//! does.
//!
//! ```text
//! client -- SYN --> rules of services: in held_address / held_port?      services/parts.rs
//!                     log (a copy of the headers) --> log.rs --> waiting.rs: who waits, within bounds
//!                     drop: to the client, a packet that was lost            |
//!                                                                            v
//!                                                            news: the service is wanted
//! endpoints come: one transaction takes the frontend out of held_* and puts them in
//!                     then, for each that waits --> send.rs: its SYN once more, from where the client is
//!                     too many, too late, service gone --> send.rs: a reset
//! ```
//!
//! No byte of a connection passes through here, and none is accepted for anybody: the SYN goes the way that a retransmission
//! of the client's own goes (its pod's namespace, guard, policies, connection tracking, translation), only sooner.
//! Clients send again after a second by themselves, so whatever is lost here (a packet that was not logged, one that could
//! not be sent, all of it when the agent ends) costs time and nothing else.
//!
//! It must know nothing of what is waited for, nor of how the rules are made: it is told which frontends are held, before
//! the kernel holds anything, and which are not any more, after the kernel sends on.

mod log;
mod send;
mod syn;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_cri::network::PodNetwork;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::blocking::blocking;
use crate::services::Frontend;
use crate::{Holding, HoldingNews, NetworkError, ServiceName};

pub(crate) use log::LOGGED_BYTES;
use log::Log;
use send::Pods;
use syn::{Origin, Syn};
use waiting::{Orders, Waiting};

/// Between looks for connections that have waited for too long.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// After the kernel has refused to say what it logs.
const PAUSE: Duration = Duration::from_secs(1);
/// Orders that wait for those before them; further ones are left to the clients.
const MOST_ORDERS: usize = 64;

/// How many connections wait, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldingLimits {
    /// On this node.
    pub total: usize,
    /// Of one service.
    pub of_service: usize,
    /// From one address.
    pub of_source: usize,
    /// How long one waits.
    pub time: Duration,
}

impl Default for HoldingLimits {
    /// A few megabytes of memory at most, and as long as most clients wait.
    fn default() -> Self {
        Self {
            total: 16_384,
            of_service: 8192,
            of_source: 2048,
            time: Duration::from_secs(30),
        }
    }
}

/// What may be sent for a packet that is logged: the packet once more, and its refusal. None of what is not held.
pub(crate) fn answers(packet: &[u8]) -> Option<[Vec<u8>; 2]> {
    let syn = Syn::parse(packet, Origin::Link)?;
    Some([syn.again(), syn.refusal()])
}

/// What becomes of new connections to a frontend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reception {
    /// They wait for this service.
    Held(Arc<ServiceName>),
    /// Somebody answers.
    Served,
    /// They are refused, or nobody's.
    Refused,
}

/// Holds connections that the rules of services drop and log: the real [`Holding`]. Ends with its tasks when it is dropped.
#[derive(Debug)]
pub struct LoggedHolding {
    group: u16,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    happened: Notify,
    orders: mpsc::Sender<Orders>,
}

impl LoggedHolding {
    /// Listens from now on, in the network namespace of the calling thread and of the runtime's: to packets of `pods`, of the
    /// node, and of strangers.
    pub fn listen(pods: Arc<dyn PodNetwork>, limits: HoldingLimits) -> Result<Self, NetworkError> {
        let log = Log::open()?;
        let (orders, ordered) = mpsc::channel(MOST_ORDERS);
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting::new(limits)),
            happened: Notify::new(),
            orders,
        });
        let group = log.group();
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(log, shared.clone()));
        tasks.spawn(carry_out(ordered, pods));
        Ok(Self {
            group,
            shared,
            _tasks: tasks,
        })
    }

    /// Which group rules must log to.
    pub(crate) fn group(&self) -> u16 {
        self.group
    }

    /// The frontends that are held as far as is known here.
    pub(crate) fn frontends(&self) -> Vec<Frontend> {
        self.shared.waiting.lock().frontends()
    }

    /// Frontends are received so. Those that are to be held are told before the kernel does so, the others after it.
    pub(crate) fn receive<'a>(
        &self,
        receptions: impl IntoIterator<Item = (&'a Frontend, &'a Reception)>,
    ) {
        let now = Instant::now();
        self.shared.change(|waiting, orders| {
            for (&frontend, reception) in receptions {
                waiting.receive(frontend, reception, now, orders);
            }
        });
    }
}

impl Shared {
    /// Changes what waits, and orders what follows from it.
    fn change(&self, work: impl FnOnce(&mut Waiting, &mut Orders)) {
        let mut orders = Orders::default();
        work(&mut self.waiting.lock(), &mut orders);
        self.happened.notify_one();
        if !orders.is_empty() && self.orders.try_send(orders).is_err() {
            tracing::debug!("more packets to send than can be: clients send them again");
        }
    }
}

#[async_trait]
impl Holding for LoggedHolding {
    async fn news(&self) -> BTreeMap<ServiceName, HoldingNews> {
        loop {
            let news = self.shared.waiting.lock().take_news();
            if !news.is_empty() {
                return news;
            }
            self.shared.happened.notified().await;
        }
    }

    fn held(&self) -> BTreeMap<ServiceName, u64> {
        self.shared.waiting.lock().held()
    }
}

/// Takes in what the kernel logs, and looks at the time.
async fn listen(log: Log, shared: Arc<Shared>) {
    let mut looks = tokio::time::interval(BETWEEN_LOOKS);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            heard = log.next() => match heard {
                Ok(syns) if syns.is_empty() => {}
                Ok(syns) => shared.change(|waiting, orders| {
                    let now = Instant::now();
                    for syn in syns {
                        waiting.arrived(syn, now, orders);
                    }
                }),
                Err(error) => {
                    tracing::warn!(%error, "listening to packets that rules log; connections to services that sleep may wait for longer");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            _ = looks.tick() => {
                shared.change(|waiting, orders| waiting.expire(Instant::now(), orders));
            }
        }
    }
}

/// Sends what is ordered.
async fn carry_out(mut ordered: mpsc::Receiver<Orders>, pods: Arc<dyn PodNetwork>) {
    while let Some(orders) = ordered.recv().await {
        let places = match orders.again.is_empty() {
            true => Pods::new(),
            false => places(pods.as_ref()).await,
        };
        if let Err(error) = blocking(move || send::send(&orders, &places)).await {
            tracing::debug!(
                error = gantry_cri::words(&error),
                "packets could not be sent: clients send them again"
            );
        }
    }
}

/// Where the pods are. None are known where that cannot be found out: their clients send again.
async fn places(pods: &dyn PodNetwork) -> Pods {
    let attached = pods.attached().await.unwrap_or_else(|error| {
        tracing::warn!(
            error = gantry_cri::words(&error),
            "looking for the pods whose connections may go on"
        );
        BTreeMap::new()
    });
    let places = attached.into_values().flat_map(|pod| {
        let addresses = pod.addresses().into_iter();
        addresses.map(move |address| (address, pod.netns.clone()))
    });
    places.collect()
}
