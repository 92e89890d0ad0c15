//! Other resolvers, for names that are not the cluster's.
//!
//! ```text
//! question -> remembered? -> under way already? wait with the others
//!                            else: ask the first, 150 ms later the next as well, ...; the first good answer counts
//!          <- answer, or what was known before, or an error: after 2.5 s at the latest
//! ```
//!
//! Resolvers are asked in the order they are configured, as resolv.conf(5) has it: they need not know the same names.
//! One that is down costs one question's 150 ms now and then ([`health`](super::health)), never every question's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::cache::{Cache, Key, Memory, Remembered, Sections};
use crate::exchange::{self, Answer, ExchangeError};
use crate::health::Resolver;
use crate::metrics::{METRICS, rcode};
use crate::room::{Place, Room};

/// How long a resolver has before the next is asked as well.
const HEDGE: Duration = Duration::from_millis(150);
/// When a question has failed. Clients wait for 5 seconds before they ask anew.
const PATIENCE: Duration = Duration::from_millis(2500);
/// How long one that knows an old answer waits for a new one.
const STALE_PATIENCE: Duration = Duration::from_millis(500);
/// After which a resolver counts as silent; slow ones are not.
const SILENCE: Duration = Duration::from_secs(1);
/// Questions under way at the same time. Each may hold a socket for every resolver, and a process has 1,024 descriptors
/// unless it was given more. A client has an eighth of them under way: others wait for its answers, but not for room.
pub(crate) const AT_ONCE: usize = 256;

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(
        "this node knows no other resolvers: name some in its /etc/resolv.conf (not this server itself)"
    )]
    NoResolvers,
    #[error(
        "more than {AT_ONCE} questions wait for other resolvers, or an eighth of them are this client's"
    )]
    TooMany,
    #[error("other resolvers did not answer: {0}")]
    Unanswered(Arc<str>),
    #[error("other resolvers did not answer a moment ago")]
    UnansweredBefore,
}

type Outcome = Result<Arc<Sections>, AskError>;
/// `None` until it has landed.
type Flight = watch::Receiver<Option<Outcome>>;

/// The resolvers for names of other zones.
#[derive(Debug)]
pub(crate) struct Upstreams {
    resolvers: Vec<Arc<Resolver>>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Flight>>,
    room: Arc<Room>,
}

impl fmt::Display for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.resolvers.iter().map(|resolver| resolver.address);
        f.debug_list().entries(addresses).finish()
    }
}

impl Upstreams {
    pub(crate) fn new(addresses: Vec<SocketAddr>) -> Self {
        let mut distinct: Vec<SocketAddr> = Vec::new();
        for address in addresses {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        Self {
            resolvers: distinct
                .into_iter()
                .map(|address| Arc::new(Resolver::new(address)))
                .collect(),
            cache: Mutex::default(),
            flights: Mutex::default(),
            room: Room::new(AT_ONCE),
        }
    }

    pub(crate) fn resolvers(&self) -> &[Arc<Resolver>] {
        &self.resolvers
    }

    /// What can be said without waiting, if anything.
    pub(crate) fn remembered(
        self: &Arc<Self>,
        query: &Query,
        dnssec: bool,
        client: IpAddr,
    ) -> Option<Result<Remembered, AskError>> {
        let key = Key::new(query, dnssec);
        let memory = self.cache.lock().get(&key, Instant::now());
        match memory {
            Memory::Fresh(found) => {
                let denial = found.sections.answers.is_empty();
                let kind = if denial { "denial" } else { "success" };
                METRICS.cache_hits.with_label_values(&[kind]).inc();
                Some(Ok(found))
            }
            Memory::Stale(found, failed) if failed || !self.any_up() => {
                METRICS.cache_stale.inc();
                if !failed {
                    // For those who come later.
                    let _flight = self.set_out(key, query, client);
                }
                Some(Ok(found))
            }
            Memory::Failed => Some(Err(AskError::UnansweredBefore)),
            Memory::Stale(..) | Memory::Nothing => None,
        }
    }

    /// Lets a question be under way, for who will [`ask`](Self::ask) it in a moment.
    pub(crate) fn begin(self: &Arc<Self>, query: &Query, dnssec: bool, client: IpAddr) {
        let key = Key::new(query, dnssec);
        let memory = self.cache.lock().get(&key, Instant::now());
        if matches!(memory, Memory::Nothing | Memory::Stale(_, false)) {
            // Should there be no room, the one who asks will be told.
            let _flight = self.set_out(key, query, client);
        }
    }

    /// The answer to a question, remembered or fresh.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        query: &Query,
        dnssec: bool,
        client: IpAddr,
    ) -> Result<Remembered, AskError> {
        if let Some(known) = self.remembered(query, dnssec, client) {
            return known;
        }
        METRICS.cache_misses.inc();
        let key = Key::new(query, dnssec);
        let mut flight = self.set_out(key.clone(), query, client)?;
        let landed = async move {
            match flight.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or(Err(AskError::UnansweredBefore)),
                Err(_) => Err(AskError::Unanswered("the server stops".into())),
            }
        };
        let memory = self.cache.lock().get(&key, Instant::now());
        let Memory::Stale(stale, _) = memory else {
            return landed.await.map(Remembered::fresh);
        };
        match timeout(STALE_PATIENCE, landed).await {
            Ok(Ok(sections)) => Ok(Remembered::fresh(sections)),
            Ok(Err(_)) | Err(_) => {
                METRICS.cache_stale.inc();
                Ok(stale)
            }
        }
    }

    /// Whether any resolver is worth waiting for.
    pub(crate) fn any_up(&self) -> bool {
        self.resolvers.iter().any(|resolver| resolver.is_up())
    }

    /// Joins the question's flight, or starts one, which goes on whoever still waits for it.
    fn set_out(
        self: &Arc<Self>,
        key: Key,
        query: &Query,
        client: IpAddr,
    ) -> Result<Flight, AskError> {
        if self.resolvers.iter().all(|resolver| resolver.is_looping()) {
            return Err(AskError::NoResolvers);
        }
        let mut flights = self.flights.lock();
        let place = match flights.entry(key) {
            Entry::Occupied(flight) => {
                METRICS.shared.inc();
                return Ok(flight.get().clone());
            }
            Entry::Vacant(place) => place,
        };
        let Some(taken) = self.room.take(client) else {
            METRICS.rejected.inc();
            return Err(AskError::TooMany);
        };
        let (land, flight) = watch::channel(None);
        let key = place.key().clone();
        place.insert(flight.clone());
        let (upstreams, query) = (Arc::clone(self), query.clone());
        tokio::spawn(upstreams.fly(key, query, land, taken));
        Ok(flight)
    }

    async fn fly(
        self: Arc<Self>,
        key: Key,
        query: Query,
        land: watch::Sender<Option<Outcome>>,
        _room: Place,
    ) {
        METRICS.in_flight.inc();
        self.probe_those_that_are_due(&query);
        let answered = timeout(PATIENCE, self.exchange(&query, key.dnssec)).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("none within {PATIENCE:?}")));
        let outcome = match answered {
            Ok((message, octets)) => {
                let sections = Arc::new(Sections::of(message));
                let mut cache = self.cache.lock();
                cache.put(key.clone(), &sections, octets, Instant::now());
                Ok(sections)
            }
            Err(why) => {
                tracing::debug!(name = %query.name(), why, "other resolvers did not answer");
                self.cache.lock().fail(key.clone(), Instant::now());
                Err(AskError::Unanswered(why.into()))
            }
        };
        // In this order: who finds neither a memory nor a flight asks again.
        self.flights.lock().remove(&key);
        land.send_replace(Some(outcome));
        METRICS.in_flight.dec();
    }

    /// Asks those that are passed over beside the others, and does not wait for them.
    fn probe_those_that_are_due(&self, query: &Query) {
        let now = Instant::now();
        let passed_over = self.resolvers.iter().filter(|one| !one.is_looping());
        for resolver in passed_over.filter(|one| one.is_due(now)) {
            let (resolver, query) = (Arc::clone(resolver), query.clone());
            tokio::spawn(async move {
                let asked = exchange::ask(resolver.address, &query, false);
                match timeout(SILENCE, asked).await {
                    Ok(Ok(_)) => resolver.answered(),
                    Ok(Err(ExchangeError::Local(_))) => {}
                    Ok(Err(ExchangeError::Remote(_))) | Err(_) => resolver.silent(Instant::now()),
                }
            });
        }
    }

    /// The first good answer of a resolver.
    async fn exchange(&self, query: &Query, dnssec: bool) -> Result<Answer, String> {
        let usable = self.resolvers.iter().filter(|one| !one.is_looping());
        let (up, down): (Vec<_>, Vec<_>) = usable.partition(|resolver| resolver.is_up());
        // Those that are down are a last resort.
        let order: Vec<&Arc<Resolver>> = up.into_iter().chain(down).collect();
        let mut attempts = Attempts::new(query, dnssec);
        let mut turns = order.iter();
        let mut next = turns.next();
        let mut when = Instant::now();
        let mut refusals: HashMap<SocketAddr, String> = HashMap::new();
        while refusals.len() < order.len() {
            tokio::select! {
                biased;
                Some((resolver, answered)) = attempts.next() => {
                    let refusal = match answered {
                        Ok(answer) if helpful(&answer) => {
                            attempts.leave_behind();
                            return Ok(answer);
                        }
                        Ok((message, _)) => message.metadata.response_code.to_string(),
                        Err(error) => error.to_string(),
                    };
                    refusals.insert(resolver.address, format!("{}: {refusal}", resolver.address));
                    when = Instant::now();
                }
                () = sleep_until(when), if next.is_some() => {
                    if let Some(resolver) = next {
                        attempts.ask(resolver);
                    }
                    next = turns.next();
                    when = Instant::now() + HEDGE;
                }
                else => break,
            }
        }
        Err(refusals.into_values().collect::<Vec<_>>().join("; "))
    }
}

/// Whether no other resolver could know better.
fn helpful((message, _): &Answer) -> bool {
    !matches!(
        message.metadata.response_code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
    )
}

type Attempted = (Arc<Resolver>, Result<Answer, ExchangeError>);

/// Questions to resolvers that were not answered yet.
struct Attempts<'a> {
    query: &'a Query,
    dnssec: bool,
    asked: JoinSet<Attempted>,
    waiting: Vec<(Arc<Resolver>, Instant)>,
}

impl<'a> Attempts<'a> {
    fn new(query: &'a Query, dnssec: bool) -> Self {
        Self {
            query,
            dnssec,
            asked: JoinSet::new(),
            waiting: Vec::new(),
        }
    }

    fn ask(&mut self, resolver: &Arc<Resolver>) {
        let start = Instant::now();
        self.waiting.push((Arc::clone(resolver), start));
        let (resolver, query, dnssec) = (Arc::clone(resolver), self.query.clone(), self.dnssec);
        self.asked.spawn(async move {
            let answered = exchange::ask(resolver.address, &query, dnssec).await;
            match &answered {
                Ok((message, _)) => {
                    let code = rcode(message.metadata.response_code);
                    let labels = ["forward", &resolver.address.to_string(), code];
                    let histogram = METRICS.upstream.with_label_values(&labels);
                    histogram.observe(start.elapsed().as_secs_f64());
                    resolver.answered();
                }
                Err(ExchangeError::Remote(_)) => resolver.silent(Instant::now()),
                Err(ExchangeError::Local(_)) => {}
            }
            (resolver, answered)
        });
    }

    /// The next that is answered or fails; `None` when nothing is asked.
    async fn next(&mut self) -> Option<Attempted> {
        loop {
            let Ok(done) = self.asked.join_next().await? else {
                continue;
            };
            self.waiting
                .retain(|(resolver, _)| resolver.address != done.0.address);
            return Some(done);
        }
    }

    /// Somebody answered. The others are heard to the end, to know whether they do.
    fn leave_behind(&mut self) {
        let mut asked = std::mem::take(&mut self.asked);
        let mut waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return;
        }
        tokio::spawn(async move {
            let all = async {
                while let Some(done) = asked.join_next().await {
                    if let Ok((resolver, _)) = done {
                        waiting.retain(|(one, _)| one.address != resolver.address);
                    }
                }
            };
            if timeout(SILENCE, all).await.is_err() {
                for (resolver, _) in waiting {
                    resolver.silent(Instant::now());
                }
            }
        });
    }
}

impl Drop for Attempts<'_> {
    /// Given up.
    fn drop(&mut self) {
        let now = Instant::now();
        for (resolver, start) in self.waiting.drain(..) {
            if now.saturating_duration_since(start) >= SILENCE {
                resolver.silent(now);
            }
        }
    }
}
