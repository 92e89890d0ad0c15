//! Which connections wait, for whom, and what becomes of them. Pure: the time is told.
//!
//! A frontend of a service is *held* while nobody answers, and for a moment *served* after somebody does: what the kernel
//! dropped before the rules changed may be heard of after it. Everything else is nobody's concern here.
//!
//! Invariants: no more connections wait than the limits say, in total, for a service and from an address; none for longer
//! than the time. A retransmission takes the place of what it repeats. Whatever waits no more is sent once more, refused,
//! or its client's own business, once.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::syn::{Ends, Syn};
use super::{HoldingLimits, Reception};
use crate::services::{Family, Frontend};
use crate::{HoldingNews, Protocol, ServiceName};

/// How long after a change of the rules packets are heard of that came before it.
const AFTERMATH: Duration = Duration::from_secs(2);

/// Everything that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    limits: HoldingLimits,
    frontends: HashMap<Frontend, Door>,
    services: BTreeMap<Arc<ServiceName>, Queue>,
    sources: HashMap<IpAddr, usize>,
    total: usize,
}

/// What stands at a frontend.
#[derive(Debug)]
enum Door {
    Held {
        service: Arc<ServiceName>,
        waiting: HashMap<Ends, Waiter>,
    },
    Served {
        service: Arc<ServiceName>,
        until: Instant,
    },
}

#[derive(Debug)]
struct Waiter {
    syn: Syn,
    since: Instant,
}

/// A service's connections, whichever of its frontends they are to.
#[derive(Debug, Default)]
struct Queue {
    length: usize,
    news: HoldingNews,
}

/// Packets to send.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Orders {
    /// As their clients have sent them.
    pub(super) again: Vec<Syn>,
    /// Refusals of them.
    pub(super) refuse: Vec<Syn>,
}

impl Orders {
    pub(super) fn is_empty(&self) -> bool {
        self.again.is_empty() && self.refuse.is_empty()
    }
}

impl Waiting {
    pub(super) fn new(limits: HoldingLimits) -> Self {
        Self {
            limits,
            frontends: HashMap::new(),
            services: BTreeMap::new(),
            sources: HashMap::new(),
            total: 0,
        }
    }

    /// The frontends that are held.
    pub(super) fn frontends(&self) -> Vec<Frontend> {
        let held = self.frontends.iter();
        held.filter(|(_, door)| matches!(door, Door::Held { .. }))
            .map(|(&frontend, _)| frontend)
            .collect()
    }

    /// The kernel has dropped the first packet of a connection.
    pub(super) fn arrived(&mut self, syn: Syn, now: Instant, orders: &mut Orders) {
        let ends = syn.ends();
        let to = ends.1;
        let by_address = Frontend::Address(Protocol::Tcp, to.ip(), to.port());
        let by_port = Frontend::NodePort(Family::of(to.ip()), Protocol::Tcp, to.port());
        let frontend = match self.frontends.contains_key(&by_address) {
            true => by_address,
            false => by_port,
        };
        let (service, waiting) = match self.frontends.get_mut(&frontend) {
            Some(Door::Held { service, waiting }) => (service, waiting),
            Some(Door::Served { service, until }) if *until > now => {
                let news = &mut self.services.entry(service.clone()).or_default().news;
                (news.held, news.released) = (news.held + 1, news.released + 1);
                orders.again.push(syn);
                return;
            }
            // Of before the rules were made anew, or of long ago.
            Some(Door::Served { .. }) | None => return,
        };
        if let Some(waiter) = waiting.get_mut(&ends) {
            waiter.syn = syn;
            return;
        }
        let queue = self.services.entry(service.clone()).or_default();
        let from_there = self.sources.get(&syn.client()).copied().unwrap_or(0);
        // It is wanted, whoever else takes the room to wait for it.
        queue.news.began |= queue.length == 0;
        if queue.length >= self.limits.of_service || from_there >= self.limits.of_source {
            queue.news.refused += 1;
            orders.refuse.push(syn);
            return;
        }
        if self.total >= self.limits.total {
            // That is not its own doing: its client comes again in a second, to somebody who serves it perhaps.
            return;
        }
        queue.news.held += 1;
        queue.length += 1;
        self.total += 1;
        self.sources.insert(syn.client(), from_there + 1);
        waiting.insert(ends, Waiter { syn, since: now });
    }

    /// From now on a frontend is received so.
    pub(super) fn receive(
        &mut self,
        frontend: Frontend,
        reception: &Reception,
        now: Instant,
        orders: &mut Orders,
    ) {
        if let (Reception::Held(service), Some(Door::Held { service: known, .. })) =
            (reception, self.frontends.get(&frontend))
            && service == known
        {
            return;
        }
        let before = self.frontends.remove(&frontend);
        if let Some(Door::Held { service, waiting }) = before {
            let first = waiting.values().map(|waiter| waiter.since).min();
            let syns: Vec<Syn> = waiting.into_values().map(|waiter| waiter.syn).collect();
            self.leave(&service, &syns);
            let news = &mut self.services.entry(service.clone()).or_default().news;
            let count = u64::try_from(syns.len()).unwrap_or(u64::MAX);
            match reception {
                Reception::Served => {
                    news.released += count;
                    let waited = first.map(|first| now.saturating_duration_since(first));
                    news.waited = news.waited.max(waited);
                    orders.again.extend(syns);
                    let until = now + AFTERMATH;
                    let served = Door::Served { service, until };
                    self.frontends.insert(frontend, served);
                }
                // Those that are sent again are the other service's then.
                Reception::Held(_) => orders.again.extend(syns),
                Reception::Refused => {
                    news.refused += count;
                    orders.refuse.extend(syns);
                }
            }
        }
        if let Reception::Held(service) = reception {
            let held = Door::Held {
                service: service.clone(),
                waiting: HashMap::new(),
            };
            self.frontends.insert(frontend, held);
        }
    }

    /// Refuses those that have waited for too long.
    pub(super) fn expire(&mut self, now: Instant, orders: &mut Orders) {
        self.frontends
            .retain(|_, door| !matches!(door, Door::Served { until, .. } if *until <= now));
        if self.total == 0 {
            return;
        }
        let mut late: Vec<(Arc<ServiceName>, Vec<Syn>)> = Vec::new();
        for door in self.frontends.values_mut() {
            if let Door::Held { service, waiting } = door {
                let over = waiting.extract_if(|_, waiter| {
                    now.saturating_duration_since(waiter.since) >= self.limits.time
                });
                let syns: Vec<Syn> = over.map(|(_, waiter)| waiter.syn).collect();
                if !syns.is_empty() {
                    late.push((service.clone(), syns));
                }
            }
        }
        for (service, syns) in late {
            self.leave(&service, &syns);
            let news = &mut self.services.entry(service).or_default().news;
            news.refused += u64::try_from(syns.len()).unwrap_or(u64::MAX);
            orders.refuse.extend(syns);
        }
    }

    /// Counts those out that wait no more.
    fn leave(&mut self, service: &Arc<ServiceName>, syns: &[Syn]) {
        self.total = self.total.saturating_sub(syns.len());
        if let Some(queue) = self.services.get_mut(service) {
            queue.length = queue.length.saturating_sub(syns.len());
        }
        for syn in syns {
            let client = syn.client();
            match self.sources.get_mut(&client) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.sources.remove(&client)),
            }
        }
    }

    /// What has happened since the last call of this.
    pub(super) fn take_news(&mut self) -> BTreeMap<ServiceName, HoldingNews> {
        let mut all = BTreeMap::new();
        self.services.retain(|service, queue| {
            let news = std::mem::take(&mut queue.news);
            if news != HoldingNews::default() {
                all.insert(ServiceName::clone(service), news);
            }
            queue.length > 0
        });
        all
    }

    /// How many wait.
    pub(super) fn held(&self) -> BTreeMap<ServiceName, u64> {
        let waiting = self.services.iter().filter(|(_, queue)| queue.length > 0);
        waiting
            .map(|(service, queue)| {
                let length = u64::try_from(queue.length).unwrap_or(u64::MAX);
                (ServiceName::clone(service), length)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
