//! What other resolvers said, for as long as they allow, and for a while longer in case that they cannot be asked again.
//! Pure: time is given.
//!
//! An entry is fresh for the time its records allow, then stale: kept to be given when nobody answers (RFC 8767). That
//! nobody did is remembered too, for a second (RFC 9520). Room is limited in entries and octets; what was not asked for
//! since it last was in danger makes room first (CLOCK).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

use crate::metrics::METRICS;

/// Entries at most.
const MOST: usize = 10_000;
/// Octets of answers, as they came, at most.
const MOST_OCTETS: usize = 8 << 20;
/// What an entry takes beside its answer, roughly.
const OVERHEAD: usize = 128;
/// Seconds that an answer is fresh at most, whatever its records say.
const LONGEST: u32 = 3600;
/// The same for the absence of one: names come into being.
const LONGEST_ABSENCE: u32 = 30;
/// How long an answer may be given after its time.
const STALE: Duration = Duration::from_secs(3600);
/// Seconds that a client may remember an answer past its time.
const STALE_TTL: u32 = 5;
/// How long a failure is remembered.
const FAILURE: Duration = Duration::from_secs(1);

/// An answer's sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// Whether the resolver vouches for them (the AD bit).
    pub(crate) authentic: bool,
}

impl Sections {
    /// The sections of a message.
    pub(crate) fn of(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
            authentic: message.metadata.authentic_data,
        }
    }

    /// Seconds that this may be remembered: for an answer the shortest of its records, for the absence of one what
    /// the zone's SOA says (RFC 2308), otherwise not at all.
    fn lifetime(&self) -> Option<u32> {
        let soa = || {
            self.authorities
                .iter()
                .find_map(|record| match &record.data {
                    RData::SOA(soa) => Some(soa.minimum.min(record.ttl).min(LONGEST_ABSENCE)),
                    _ => None,
                })
        };
        let records = self.answers.iter().map(|record| record.ttl).min();
        let seconds = match (self.code, records) {
            (ResponseCode::NoError, Some(seconds)) => seconds,
            // An alias to a name that does not exist, or just such a name.
            (ResponseCode::NXDomain, Some(seconds)) => seconds.min(soa()?),
            (ResponseCode::NoError | ResponseCode::NXDomain, None) => soa()?,
            _ => return None,
        };
        (seconds > 0).then_some(seconds.min(LONGEST))
    }
}

/// Sections with the time that has passed since they came.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) sections: Arc<Sections>,
    /// Seconds.
    age: u32,
    stale: bool,
}

impl Remembered {
    /// What came just now.
    pub(crate) fn fresh(sections: Arc<Sections>) -> Self {
        Self {
            sections,
            age: 0,
            stale: false,
        }
    }

    /// A section's records with the passed time taken off.
    pub(crate) fn aged(&self, records: &[Record]) -> Vec<Record> {
        let mut records = records.to_vec();
        for record in &mut records {
            record.ttl = if self.stale {
                STALE_TTL
            } else {
                record.ttl.saturating_sub(self.age)
            };
        }
        records
    }
}

/// A question as answers are remembered by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Names are equal whatever their case.
    name: Name,
    wanted: RecordType,
    /// Answers with signatures are another thing than those without.
    pub(crate) dnssec: bool,
}

impl Key {
    pub(crate) fn new(query: &Query, dnssec: bool) -> Self {
        Self {
            name: query.name().clone(),
            wanted: query.query_type(),
            dnssec,
        }
    }
}

/// What is remembered of a question.
#[derive(Debug)]
pub(crate) enum Memory {
    /// An answer within its time.
    Fresh(Remembered),
    /// An answer past its time, and whether nobody answered a moment ago.
    Stale(Remembered, bool),
    /// Nobody answered a moment ago.
    Failed,
    /// Nothing.
    Nothing,
}

#[derive(Debug)]
struct Entry {
    sections: Option<Arc<Sections>>,
    since: Instant,
    until: Instant,
    failed_until: Option<Instant>,
    octets: usize,
    used: bool,
}

/// Remembers answers by name and type.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    /// Every entry's key once, the next in danger first.
    ring: VecDeque<Key>,
    octets: usize,
}

impl Cache {
    /// What is remembered of a question.
    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Memory {
        let Some(entry) = self.entries.get_mut(key) else {
            return Memory::Nothing;
        };
        entry.used = true;
        let failed = entry.failed_until.is_some_and(|until| now < until);
        let Some(sections) = &entry.sections else {
            return if failed {
                Memory::Failed
            } else {
                Memory::Nothing
            };
        };
        let age = now.saturating_duration_since(entry.since).as_secs();
        let remembered = |stale| Remembered {
            sections: Arc::clone(sections),
            age: u32::try_from(age).unwrap_or(u32::MAX),
            stale,
        };
        if now < entry.until {
            Memory::Fresh(remembered(false))
        } else if now < entry.until + STALE {
            Memory::Stale(remembered(true), failed)
        } else if failed {
            Memory::Failed
        } else {
            Memory::Nothing
        }
    }

    /// Remembers an answer if it may be, which came in so many octets.
    pub(crate) fn put(&mut self, key: Key, sections: &Arc<Sections>, octets: usize, now: Instant) {
        let Some(seconds) = sections.lifetime() else {
            return;
        };
        self.insert(
            key,
            Entry {
                sections: Some(Arc::clone(sections)),
                since: now,
                until: now + Duration::from_secs(u64::from(seconds)),
                failed_until: None,
                octets: octets + OVERHEAD,
                used: false,
            },
        );
    }

    /// Remembers that nobody answered; what they said before is kept.
    pub(crate) fn fail(&mut self, key: Key, now: Instant) {
        let until = now + FAILURE;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.failed_until = Some(until);
            return;
        }
        self.insert(
            key,
            Entry {
                sections: None,
                since: now,
                until: now,
                failed_until: Some(until),
                octets: OVERHEAD,
                used: false,
            },
        );
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        self.octets += entry.octets;
        match self.entries.insert(key.clone(), entry) {
            Some(before) => self.octets -= before.octets,
            None => self.ring.push_back(key),
        }
        while self.entries.len() > MOST || self.octets > MOST_OCTETS {
            self.make_room();
        }
        METRICS
            .cache_entries
            .set(i64::try_from(self.entries.len()).unwrap_or(i64::MAX));
    }

    /// Removes the first in the ring that was not asked for since it was last looked at.
    fn make_room(&mut self) {
        while let Some(key) = self.ring.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if entry.used {
                entry.used = false;
                self.ring.push_back(key);
                continue;
            }
            self.octets -= entry.octets;
            self.entries.remove(&key);
            METRICS.cache_evictions.inc();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::SOA;

    use super::*;

    fn key(name: &str) -> Key {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        Key::new(&query, false)
    }

    fn address(ttl: u32) -> Arc<Sections> {
        let name = Name::from_ascii("a.example.").unwrap();
        let data = RData::A(Ipv4Addr::new(192, 0, 2, 1).into());
        Arc::new(Sections {
            code: ResponseCode::NoError,
            answers: vec![Record::from_rdata(name, ttl, data)],
            authorities: vec![],
            additionals: vec![],
            authentic: false,
        })
    }

    fn absence(code: ResponseCode, minimum: Option<u32>) -> Arc<Sections> {
        let zone = Name::from_ascii("example.").unwrap();
        let soa = |minimum| {
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, minimum);
            Record::from_rdata(zone.clone(), 300, RData::SOA(soa))
        };
        Arc::new(Sections {
            code,
            answers: vec![],
            authorities: minimum.map(soa).into_iter().collect(),
            ..Sections::clone(&address(1))
        })
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ttl(memory: &Memory) -> Option<u32> {
        match memory {
            Memory::Fresh(found) | Memory::Stale(found, _) => {
                Some(found.aged(&found.sections.answers)[0].ttl)
            }
            _ => None,
        }
    }

    #[test]
    fn an_answer_ages_is_stale_and_ends() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.put(key("a.example."), &address(10), 50, start);
        let later = cache.get(&key("A.Example."), start + seconds(4));
        assert!(matches!(later, Memory::Fresh(_)));
        assert_eq!(ttl(&later), Some(6));
        let stale = cache.get(&key("a.example."), start + seconds(10));
        assert!(matches!(stale, Memory::Stale(_, false)));
        assert_eq!(ttl(&stale), Some(STALE_TTL));
        let gone = cache.get(&key("a.example."), start + seconds(10) + STALE);
        assert!(matches!(gone, Memory::Nothing));
        cache.put(key("a.example."), &address(100_000), 50, start);
        let longest = start + seconds(u64::from(LONGEST));
        assert!(matches!(
            cache.get(&key("a.example."), longest),
            Memory::Stale(..)
        ));
        cache.put(key("zero.example."), &address(0), 50, start);
        assert!(matches!(
            cache.get(&key("zero.example."), start),
            Memory::Nothing
        ));
    }

    #[test]
    fn absence_is_remembered_as_the_zone_says() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let name = || key("b.example.");
        cache.put(name(), &absence(ResponseCode::NXDomain, None), 50, now);
        assert!(
            matches!(cache.get(&name(), now), Memory::Nothing),
            "nobody said for how long"
        );
        cache.put(name(), &absence(ResponseCode::ServFail, Some(7)), 50, now);
        assert!(matches!(cache.get(&name(), now), Memory::Nothing));
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            cache.put(name(), &absence(code, Some(7)), 50, now);
            assert!(matches!(
                cache.get(&name(), now + seconds(6)),
                Memory::Fresh(_)
            ));
            assert!(matches!(
                cache.get(&name(), now + seconds(7)),
                Memory::Stale(..)
            ));
        }
        cache.put(name(), &absence(ResponseCode::NXDomain, Some(900)), 50, now);
        let longest = now + seconds(u64::from(LONGEST_ABSENCE));
        assert!(matches!(cache.get(&name(), longest), Memory::Stale(..)));
    }

    #[test]
    fn failures_are_remembered_for_a_moment_and_forget_nothing() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.fail(key("a.example."), now);
        assert!(matches!(cache.get(&key("a.example."), now), Memory::Failed));
        assert!(matches!(
            cache.get(&key("a.example."), now + FAILURE),
            Memory::Nothing
        ));
        cache.put(key("a.example."), &address(1), 50, now);
        assert!(matches!(
            cache.get(&key("a.example."), now),
            Memory::Fresh(_)
        ));
        let later = now + seconds(2);
        cache.fail(key("a.example."), later);
        assert!(matches!(
            cache.get(&key("a.example."), later),
            Memory::Stale(_, true)
        ));
        assert!(matches!(
            cache.get(&key("a.example."), later + FAILURE),
            Memory::Stale(_, false)
        ));
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_asked_for() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key("wanted.example."), &address(10), 50, now);
        for index in 0..MOST + 3000 {
            cache.put(key(&format!("n{index}.example.")), &address(10), 50, now);
            assert!(matches!(
                cache.get(&key("wanted.example."), now),
                Memory::Fresh(_)
            ));
        }
        assert_eq!((cache.entries.len(), cache.ring.len()), (MOST, MOST));
        for index in 0..1000 {
            cache.put(
                key(&format!("large{index}.example.")),
                &address(10),
                60_000,
                now,
            );
        }
        assert!(cache.octets <= MOST_OCTETS, "{}", cache.octets);
        assert!(cache.entries.len() < 1000 && cache.entries.len() == cache.ring.len());
        let counted: usize = cache.entries.values().map(|entry| entry.octets).sum();
        assert_eq!(counted, cache.octets);
    }
}
