//! The pools that connections are in, and who leaves when one is full.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Connection, ConnectionLimits, Source, Standing};

/// Connections that one node or server may have.
pub(super) const OF_ITS_OWN: usize = 128;

/// All connections. Ids grow with age, so the first of a set is the oldest.
pub(super) struct Crowd {
    limits: ConnectionLimits,
    next: u64,
    all: HashMap<u64, Member>,
    strangers: BTreeSet<u64>,
    anonymous: BTreeSet<u64>,
    /// Of those.
    by_source: HashMap<Source, BTreeSet<u64>>,
    users: usize,
    by_user: HashMap<Arc<str>, BTreeSet<u64>>,
}

struct Member {
    connection: Arc<Connection>,
    pool: Pool,
}

enum Pool {
    Unknown(Source),
    User(Arc<str>),
    Own(Arc<str>),
    /// Ended, and not gone yet.
    None,
}

impl Crowd {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            next: 0,
            all: HashMap::new(),
            strangers: BTreeSet::new(),
            anonymous: BTreeSet::new(),
            by_source: HashMap::new(),
            users: 0,
            by_user: HashMap::new(),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.all.values().map(|member| &member.connection)
    }

    /// How many one address may have of those that are not known.
    fn share_of_source(&self) -> usize {
        self.limits.unknown / 4
    }

    pub(super) fn admit(
        &mut self,
        source: Source,
        make: impl FnOnce(u64) -> Arc<Connection>,
    ) -> Arc<Connection> {
        let same = self.by_source.get(&source);
        let crowded = same.filter(|same| same.len() >= self.share_of_source());
        let displaced = match crowded {
            Some(same) => same.first().copied(),
            None if self.strangers.len() + self.anonymous.len() >= self.limits.unknown => {
                let strangers = self.strangers.first();
                strangers.or(self.anonymous.first()).copied()
            }
            None => None,
        };
        if let Some(displaced) = displaced {
            self.end(displaced);
        }
        let id = self.next;
        self.next += 1;
        let connection = make(id);
        self.strangers.insert(id);
        self.by_source.entry(source).or_default().insert(id);
        let member = Member {
            connection: connection.clone(),
            pool: Pool::Unknown(source),
        };
        self.all.insert(id, member);
        connection
    }

    /// Moves a connection to where those of its standing are.
    pub(super) fn promote(
        &mut self,
        connection: &Arc<Connection>,
        standing: Standing,
        user: &str,
        now: u64,
    ) {
        let id = connection.id;
        // Another request of the same connection may have been faster.
        if standing <= connection.standing() || !self.all.contains_key(&id) {
            return;
        }
        connection.standing.store(standing as u8, Ordering::Release);
        if standing == Standing::Anonymous {
            if !self.strangers.remove(&id) {
                return;
            }
            self.anonymous.insert(id);
            // Strangers keep half of the pool, or nobody could become known.
            if self.anonymous.len() > self.limits.unknown / 2
                && let Some(oldest) = self.anonymous.first().copied()
            {
                self.end(oldest);
            }
            return;
        }
        let Some(pool) = self.leave_pool(id) else {
            return;
        };
        // Ended, but not gone yet.
        if matches!(pool, Pool::None) {
            return;
        }
        let user: Arc<str> = user.into();
        let own = standing == Standing::Own;
        let others = self.by_user.get(&user).map_or(0, BTreeSet::len);
        let has_room = match own {
            true => others < OF_ITS_OWN || self.end_one_of(&user, now),
            false => self.make_room(&user, others, now),
        };
        if !has_room {
            connection.end("users");
            return;
        }
        if !own {
            self.users += 1;
        }
        self.by_user.entry(user.clone()).or_default().insert(id);
        if let Some(member) = self.all.get_mut(&id) {
            member.pool = match own {
                true => Pool::Own(user),
                false => Pool::User(user),
            };
        }
    }

    /// Whether a user that has so many others may have another connection. One user leaves the others a quarter, and where
    /// all of them together are too many, whoever has the most of them has one less.
    fn make_room(&mut self, user: &str, others: usize, now: u64) -> bool {
        let too_many = others >= self.limits.users / 4 * 3;
        if !too_many && self.users < self.limits.users {
            return true;
        }
        if self.end_one_of(user, now) {
            return true;
        }
        if too_many {
            return false;
        }
        let all = self.by_user.iter().filter(|(_, ids)| self.is_of_user(ids));
        let most = all.max_by_key(|(_, ids)| ids.len());
        let most = most.filter(|(_, ids)| ids.len() > others + 1);
        let most = most.map(|(user, _)| user.clone());
        most.is_some_and(|most| self.end_one_of(&most, now))
    }

    /// Whether connections of one name are a user's, and not those of a node or a server.
    fn is_of_user(&self, ids: &BTreeSet<u64>) -> bool {
        let member = ids.first().and_then(|id| self.all.get(id));
        member.is_some_and(|member| matches!(member.pool, Pool::User(_)))
    }

    /// Ends the connection of a user that is missed the least: one that does not read, or the one that has been without
    /// requests the longest, since the others may be about to send some.
    fn end_one_of(&mut self, user: &str, now: u64) -> bool {
        let ids = self.by_user.get(user).into_iter().flatten();
        let candidates = ids
            .filter_map(|id| self.all.get(id))
            .filter(|member| member.connection.is_slow(now) || member.connection.is_idle());
        let least = candidates
            .max_by_key(|member| {
                let connection = &member.connection;
                let idle_since = connection.idle_since.load(Ordering::Acquire);
                (
                    connection.is_slow(now),
                    connection.burden(now),
                    Reverse(idle_since),
                    Reverse(connection.id),
                )
            })
            .map(|member| member.connection.id);
        let found = least.is_some();
        if let Some(least) = least {
            self.end(least);
        }
        found
    }

    fn end(&mut self, id: u64) {
        self.leave_pool(id);
        if let Some(member) = self.all.get(&id) {
            member.connection.end("room");
        }
    }

    fn leave_pool(&mut self, id: u64) -> Option<Pool> {
        let member = self.all.get_mut(&id)?;
        let pool = std::mem::replace(&mut member.pool, Pool::None);
        match &pool {
            Pool::Unknown(source) => {
                self.strangers.remove(&id);
                self.anonymous.remove(&id);
                leave(&mut self.by_source, source, id);
            }
            Pool::User(user) => {
                self.users -= 1;
                leave(&mut self.by_user, user, id);
            }
            Pool::Own(user) => leave(&mut self.by_user, user, id),
            Pool::None => {}
        }
        Some(pool)
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.leave_pool(id);
        self.all.remove(&id);
        // What a flood needed is given back.
        if self.all.capacity() > 4 * self.all.len() + 1024 {
            self.all.shrink_to(2 * self.all.len());
        }
    }
}

fn leave<K: std::hash::Hash + Eq>(sets: &mut HashMap<K, BTreeSet<u64>>, key: &K, id: u64) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
