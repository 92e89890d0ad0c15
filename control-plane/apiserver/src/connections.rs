//! Who is connected, what each has yet to read, and who goes first when there are too many.
//!
//! Descriptors and memory are the server's, so it decides who has them. A connection begins as a stranger's; a whole request
//! makes it anonymous, a valid credential a user's, and the certificate or token of a node or server one of the cluster's
//! own. Strangers and the anonymous share a pool in which newcomers displace the oldest, first those from their own
//! address; users share another, of which none may take all; the cluster's own are bounded by nothing but their number, for
//! as long as their certificates count.
//! So whoever finishes a handshake and a request faster than a whole pool of others arrives gets in. Of the bytes that wait
//! for clients, strangers and the anonymous have a fixed small part, and nobody's wish ends a reader above its own standing.
//!
//! Time limits are kept by one look at all connections every second ([`Connections::sweep`]) instead of timers of their own.

mod crowd;
mod delivery;
mod metered;
mod stream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use gantry_store::{Budget, Charge};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::crowd::Crowd;
use self::delivery::Delivery;
pub(crate) use self::delivery::{Answering, Streams};
pub(crate) use self::metered::{metered, trusted};
pub(crate) use self::stream::Connected;
use crate::identity::Identity;
use crate::limits::class::{Class, Place, is_own};
use crate::metrics::METRICS;
use crate::peer::Peer;

/// From the connection to the end of its first request's head.
const FIRST: Duration = Duration::from_secs(15);
/// From the first byte of a later request to the end of its head.
const HEAD: Duration = Duration::from_secs(10);
/// Between the requests of an anonymous client.
const IDLE_ANONYMOUS: Duration = Duration::from_secs(15);
/// Between the requests of others: longer than their libraries keep a connection that they do not use.
const IDLE: Duration = Duration::from_secs(120);
/// A client that takes nothing for this long, although there is something, is closed; but not where a person may have
/// paused it: logs that are followed, and what was upgraded.
const STALLED: Duration = Duration::from_secs(30);
/// A client that takes nothing for this long goes first when bytes or places are wanted.
const SLOW: Duration = Duration::from_secs(1);
/// Between two looks for readers to end: the bytes of the last are given back meanwhile.
pub(crate) const RELIEF: Duration = Duration::from_millis(50);
/// Between two looks at the certificates of the cluster's own. A connection whose certificate counts at neither is ended; in
/// between, whoever serves it may say why.
const CERTIFICATES: Duration = Duration::from_secs(10);
/// What TLS and HTTP hold for a connection, beside what waits to be read.
const COST: usize = 16 << 10;
/// What is made at once of an answer that is made as it is read.
pub(crate) const PIECE: usize = 16 << 10;
/// Of what is left of the budget, the part that may wait for one connection.
const SHARE: usize = 64;
/// Of the whole budget, the part that may wait for strangers and the anonymous, all of them together.
const SHARE_OF_UNKNOWN: usize = 16;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of strangers and the anonymous.
    pub unknown: usize,
    /// Of users.
    pub users: usize,
}

impl ConnectionLimits {
    /// What a process that may have so many descriptors gives to clients: the rest is the store's, the nodes', the other
    /// servers' and, where an agent runs in the same process, the pods'.
    pub fn of_descriptors(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Self {
            unknown: (descriptors / 8).clamp(32, 2048),
            users: (descriptors / 2).clamp(64, 16_384),
        }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self::of_descriptors(1024)
    }
}

/// What is known of a connection's other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Standing {
    /// Has not sent a whole request.
    Stranger,
    Anonymous,
    User,
    /// A node or a server.
    Own,
}

impl Standing {
    const ALL: [Self; 4] = [Self::Stranger, Self::Anonymous, Self::User, Self::Own];

    pub(crate) fn of(identity: &Identity) -> Self {
        match identity {
            own if is_own(own) => Self::Own,
            user if user.is_in("system:authenticated") => Self::User,
            _ => Self::Anonymous,
        }
    }
}

/// Bytes that may wait for readers. Where more do, those that read least of most are ended.
struct Part {
    budget: Arc<Budget>,
    /// When readers may be ended again, in milliseconds.
    next: AtomicU64,
}

impl Part {
    fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            next: AtomicU64::new(0),
        }
    }

    /// Whether it is used up, and nobody else sees to that.
    fn is_due(&self, now: u64) -> bool {
        let next = self.next.load(Ordering::Acquire);
        let after = now + as_millis(RELIEF);
        let exchange =
            |from, to| (self.next).compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        self.budget.used() > self.budget.limit() && now >= next && exchange(next, after).is_ok()
    }
}

/// All connections of one server.
pub(crate) struct Connections {
    /// Of all.
    all: Part,
    /// Of strangers and the anonymous, within that of all.
    unknown: Part,
    crowd: Mutex<Crowd>,
    /// When certificates are to be looked at again, in milliseconds.
    certificates: AtomicU64,
    began: Instant,
}

/// Answers on their way, by the numbers they got.
#[derive(Debug, Default)]
struct Deliveries {
    next: u64,
    all: HashMap<u64, Weak<Delivery>>,
}

/// One of them. What is counted here is of all its requests together.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    registry: Weak<Connections>,
    stream: Weak<TcpStream>,
    standing: AtomicU8,
    /// What the other side showed, where that is a certificate of a node or server.
    shown: OnceLock<Arc<Peer>>,
    /// That did not count when it was looked at last.
    disowned: AtomicBool,
    /// Requests whose answers are not wholly written.
    under_way: AtomicUsize,
    /// Since when nothing is under way.
    idle_since: AtomicU64,
    /// When the head that is arriving began; 0 for none.
    head_since: AtomicU64,
    /// Several requests at once: bytes that arrive need not be a head.
    multiplexed: AtomicBool,
    /// Bytes of answers that wait to be read.
    unread: AtomicUsize,
    room: Arc<Notify>,
    deliveries: Mutex<Deliveries>,
    /// From here, and not gone yet.
    ended: AtomicBool,
    /// Of a connection that was upgraded: until it ends.
    kept: Mutex<Vec<Place>>,
    _cost: Charge,
}

/// Connections of one address; of IPv6 one network, which a single machine has many addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(IpAddr);

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Self(IpAddr::V6(network.into()))
            }
            v4 => Self(v4),
        }
    }
}

impl Connections {
    pub(crate) fn new(limits: ConnectionLimits, budget: Arc<Budget>) -> Arc<Self> {
        // What they cost by themselves must leave most of the budget to what they ask for.
        let affordable = budget.limit() / COST;
        let limits = ConnectionLimits {
            unknown: limits.unknown.min(affordable / 8),
            users: limits.users.min(affordable / 2),
        };
        Arc::new(Self {
            unknown: Part::new(Budget::new(budget.limit() / SHARE_OF_UNKNOWN)),
            all: Part::new(budget),
            crowd: Mutex::new(Crowd::new(limits)),
            certificates: AtomicU64::new(0),
            began: Instant::now(),
        })
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.all.budget
    }

    /// Milliseconds; never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// Takes a connection in; another may be ended for it.
    pub(crate) fn admit(self: &Arc<Self>, stream: TcpStream, from: IpAddr) -> Connected {
        let stream = Arc::new(stream);
        let now = self.now();
        let connection = self.crowd.lock().admit(Source::of(from), |id| {
            Arc::new(Connection {
                id,
                registry: Arc::downgrade(self),
                stream: Arc::downgrade(&stream),
                standing: AtomicU8::new(Standing::Stranger as u8),
                shown: OnceLock::new(),
                disowned: AtomicBool::new(false),
                under_way: AtomicUsize::new(0),
                idle_since: AtomicU64::new(now),
                head_since: AtomicU64::new(0),
                multiplexed: AtomicBool::new(false),
                unread: AtomicUsize::new(0),
                room: Arc::default(),
                deliveries: Mutex::default(),
                ended: AtomicBool::new(false),
                kept: Mutex::default(),
                _cost: self.budget().charge(COST),
            })
        });
        METRICS.connections.inc();
        Connected::new(stream, connection)
    }

    /// Ends what took longer than it may, and the cluster's own whose certificates do not count any more.
    pub(crate) fn sweep(&self, counts: impl Fn(&Peer) -> bool) {
        let now = self.now();
        let looks = now >= self.certificates.load(Ordering::Acquire);
        if looks {
            (self.certificates).store(now + as_millis(CERTIFICATES), Ordering::Release);
        }
        let all: Vec<_> = self.crowd.lock().all().cloned().collect();
        for connection in all {
            if connection.is_overdue(now) {
                connection.end("time");
            }
            if looks && connection.is_disowned(&counts) {
                connection.end("certificate");
            }
            for delivery in connection.stalled(now) {
                delivery.end("time", now);
            }
        }
        self.relieve(Standing::Anonymous);
        self.relieve(Standing::Own);
    }

    /// Answers that wait to be read, of nobody above a standing.
    fn readers(&self, highest: Standing) -> Vec<Arc<Delivery>> {
        let connections: Vec<_> = {
            let crowd = self.crowd.lock();
            let readers = crowd.all().filter(|connection| {
                connection.unread.load(Ordering::Acquire) > 0 && connection.standing() <= highest
            });
            readers.cloned().collect()
        };
        connections
            .iter()
            .flat_map(|connection| connection.deliveries())
            .filter(|delivery| delivery.unread() > 0)
            .collect()
    }

    /// Ends those that read least of most, when more waits to be read than may; none above the standing of whoever asks.
    fn relieve(&self, asker: Standing) {
        let part = match asker < Standing::User {
            true => &self.unknown,
            false => &self.all,
        };
        let now = self.now();
        if !part.is_due(now) {
            return;
        }
        let (used, limit) = (part.budget.used(), part.budget.limit());
        let desperate = used > limit + limit / 2;
        let highest = asker.max(Standing::Anonymous);
        let mut readers: Vec<_> = (self.readers(highest).into_iter())
            .filter(|delivery| desperate || delivery.is_slow(now))
            .map(|delivery| (delivery.rank(), delivery.burden(now), delivery))
            .collect();
        readers.sort_by_key(|(rank, burden, _)| (*rank, std::cmp::Reverse(*burden)));
        // So much that the next look is not needed at once.
        let mut excess = used.saturating_sub(limit / 8 * 7);
        for (_, _, delivery) in readers {
            if excess == 0 {
                return;
            }
            excess = excess.saturating_sub(delivery.unread());
            delivery.end("bytes", now);
        }
    }

    /// Ends the answer whose reader has left a place of a class unused the longest, if any has: first those of the lowest
    /// standing, and none above that of whoever asks.
    pub(crate) fn free_place(&self, class: Class, asker: &Identity) {
        let now = self.now();
        let readers = self.readers(Standing::of(asker)).into_iter();
        let slowest = readers
            .filter(|delivery| delivery.holds(class) && delivery.is_slow(now))
            .min_by_key(|delivery| (delivery.rank(), std::cmp::Reverse(delivery.waited(now))));
        if let Some(slowest) = slowest {
            slowest.end("places", now);
        }
    }
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Connection {
    pub(crate) fn standing(&self) -> Standing {
        Standing::ALL[usize::from(self.standing.load(Ordering::Acquire))]
    }

    fn now(&self) -> u64 {
        self.registry.upgrade().map_or(1, |registry| registry.now())
    }

    /// Learns who the other side is. Its connection may be the one that is too many.
    pub(crate) fn introduce(self: &Arc<Self>, identity: &Identity) {
        let standing = Standing::of(identity);
        if standing <= self.standing() {
            return;
        }
        if let Some(registry) = self.registry.upgrade() {
            let now = registry.now();
            let mut crowd = registry.crowd.lock();
            crowd.promote(self, standing, &identity.user, now);
        }
    }

    /// Keeps what the other side showed, if that says that it is a node or a server: it may be removed while it is here.
    pub(crate) fn showed(&self, peer: &Arc<Peer>) {
        if peer.identity.as_ref().is_some_and(is_own) {
            self.shown.get_or_init(|| peer.clone());
        }
    }

    /// Whether it is the cluster's own by a certificate that counts neither now nor did when it was looked at before.
    fn is_disowned(&self, counts: impl Fn(&Peer) -> bool) -> bool {
        let own = self.standing() == Standing::Own;
        let shown = self.shown.get().filter(|_| own);
        let disowned = shown.is_some_and(|peer| !counts(peer));
        self.disowned.swap(disowned, Ordering::AcqRel) && disowned
    }

    /// Several requests travel on it at once.
    pub(crate) fn is_multiplexed(&self) {
        self.multiplexed.store(true, Ordering::Release);
    }

    /// Bytes have arrived. Those of strangers begin with a handshake, and have their own time.
    fn heard(&self) {
        let quiet = self.standing() > Standing::Stranger
            && self.under_way.load(Ordering::Acquire) == 0
            && self.head_since.load(Ordering::Relaxed) == 0
            && !self.multiplexed.load(Ordering::Acquire);
        if quiet {
            self.head_since.store(self.now(), Ordering::Release);
        }
    }

    /// Whether it itself took longer than it may; its answers are judged one by one.
    fn is_overdue(&self, now: u64) -> bool {
        let standing = self.standing();
        if standing == Standing::Own {
            return false;
        }
        let longer = |since: u64, limit: Duration| now.saturating_sub(since) > as_millis(limit);
        if self.under_way.load(Ordering::Acquire) > 0 {
            return false;
        }
        let idle = match standing {
            Standing::Stranger => FIRST,
            Standing::Anonymous => IDLE_ANONYMOUS,
            Standing::User | Standing::Own => IDLE,
        };
        let head = self.head_since.load(Ordering::Acquire);
        longer(self.idle_since.load(Ordering::Acquire), idle) || head > 0 && longer(head, HEAD)
    }

    /// Its answers that are on their way.
    fn deliveries(&self) -> Vec<Arc<Delivery>> {
        let deliveries = self.deliveries.lock();
        deliveries.all.values().filter_map(Weak::upgrade).collect()
    }

    /// Those that its reader has left alone for longer than it may; the cluster's own are trusted to read.
    fn stalled(&self, now: u64) -> Vec<Arc<Delivery>> {
        if self.standing() == Standing::Own || self.unread.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut stalled = self.deliveries();
        stalled.retain(|delivery| delivery.is_stalled(now));
        stalled
    }

    /// Whether it takes none of something that there is to read.
    fn is_slow(&self, now: u64) -> bool {
        (self.deliveries().iter()).any(|delivery| delivery.is_slow(now))
    }

    fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    /// Bytes that wait, times how long they have.
    fn burden(&self, now: u64) -> u128 {
        let deliveries = self.deliveries();
        deliveries.iter().map(|delivery| delivery.burden(now)).sum()
    }

    /// Whether more may be made for it to read.
    fn has_room(&self) -> bool {
        let unread = self.unread.load(Ordering::Acquire);
        let Some(registry) = self.registry.upgrade() else {
            return true;
        };
        unread == 0 || unread + PIECE <= registry.budget().free() / SHARE
    }

    /// Keeps the place of a request that the connection now belongs to.
    pub(crate) fn keep(&self, place: Place) {
        self.kept.lock().push(place);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Closes it from here: its reads and writes end.
    fn end(&self, why: &'static str) {
        let Some(stream) = self.stream.upgrade() else {
            return;
        };
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        METRICS.ended(why);
        if self.unread.load(Ordering::Acquire) > 0 {
            // What was not read must not stay in the kernel either.
            stream.set_zero_linger().ok();
        }
        // The other side may have been faster.
        rustix::net::shutdown(&*stream, rustix::net::Shutdown::Both).ok();
    }

    /// Its socket is closed.
    fn left(&self) {
        self.kept.lock().clear();
        METRICS.connections.dec();
        if let Some(registry) = self.registry.upgrade() {
            registry.crowd.lock().remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests;
