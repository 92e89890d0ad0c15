//! What other resolvers said, for as long as they allow and a little less. Pure: time is given.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

/// Entries; when it is full, those that are over go, and if there are none, all do.
const LARGEST: usize = 4096;
/// Seconds that anything is remembered at most.
const LONGEST: u32 = 30;

/// An answer's sections and how long they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Sections {
    /// The sections of a message.
    pub(super) fn of(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        }
    }

    fn records(&mut self) -> impl Iterator<Item = &mut Record> {
        self.answers
            .iter_mut()
            .chain(&mut self.authorities)
            .chain(&mut self.additionals)
    }

    /// Seconds that this may be remembered: for an answer the shortest of its records, for the absence of one what
    /// the zone's SOA says (RFC 2308), otherwise not at all.
    fn lifetime(&self) -> Option<u32> {
        let seconds = if self.answers.is_empty() {
            if !matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain) {
                return None;
            }
            self.authorities
                .iter()
                .find_map(|record| match &record.data {
                    RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                    _ => None,
                })?
        } else {
            self.answers.iter().map(|record| record.ttl).min()?
        };
        (seconds > 0).then_some(seconds.min(LONGEST))
    }
}

#[derive(Debug)]
struct Entry {
    sections: Sections,
    since: Instant,
    until: Instant,
}

/// Remembers answers by name and type.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<(Name, RecordType), Entry>,
}

impl Cache {
    /// What is remembered for a query, with the time that has passed taken off.
    pub(super) fn get(&self, query: &Query, now: Instant) -> Option<Sections> {
        let entry = self
            .entries
            .get(&key(query))
            .filter(|entry| now < entry.until)?;
        let age =
            u32::try_from(now.saturating_duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let mut sections = entry.sections.clone();
        for record in sections.records() {
            record.decrement_ttl(age);
        }
        Some(sections)
    }

    /// Remembers an answer if it may be.
    pub(super) fn put(&mut self, query: &Query, sections: &Sections, now: Instant) {
        let Some(seconds) = sections.lifetime() else {
            return;
        };
        if self.entries.len() >= LARGEST {
            self.entries.retain(|_, entry| now < entry.until);
            if self.entries.len() >= LARGEST {
                self.entries.clear();
            }
        }
        let until = now + Duration::from_secs(u64::from(seconds));
        self.entries.insert(
            key(query),
            Entry {
                sections: sections.clone(),
                since: now,
                until,
            },
        );
    }
}

fn key(query: &Query) -> (Name, RecordType) {
    (query.name().to_lowercase(), query.query_type())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::SOA;

    use super::*;

    fn query(name: &str) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn address(ttl: u32) -> Sections {
        let name = Name::from_ascii("a.example.").unwrap();
        let data = RData::A(Ipv4Addr::new(192, 0, 2, 1).into());
        Sections {
            code: ResponseCode::NoError,
            answers: vec![Record::from_rdata(name, ttl, data)],
            authorities: vec![],
            additionals: vec![],
        }
    }

    #[test]
    fn an_answer_ages_and_ends() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.put(&query("a.example."), &address(10), start);
        let later = cache
            .get(&query("A.Example."), start + Duration::from_secs(4))
            .unwrap();
        assert_eq!(later.answers[0].ttl, 6);
        assert!(
            cache
                .get(&query("a.example."), start + Duration::from_secs(10))
                .is_none()
        );
        cache.put(&query("a.example."), &address(100_000), start);
        assert!(
            cache
                .get(&query("a.example."), start + Duration::from_secs(31))
                .is_none(),
            "30 seconds at most"
        );
        cache.put(&query("zero.example."), &address(0), start);
        assert!(cache.get(&query("zero.example."), start).is_none());
    }

    #[test]
    fn absence_is_remembered_as_the_zone_says_and_failure_is_not() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let zone = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 7);
        let mut absent = Sections {
            code: ResponseCode::NXDomain,
            answers: vec![],
            ..address(1)
        };
        cache.put(&query("b.example."), &absent, now);
        assert!(
            cache.get(&query("b.example."), now).is_none(),
            "nobody said for how long"
        );
        absent.authorities = vec![Record::from_rdata(zone, 300, RData::SOA(soa))];
        cache.put(&query("b.example."), &absent, now);
        assert!(
            cache
                .get(&query("b.example."), now + Duration::from_secs(6))
                .is_some()
        );
        assert!(
            cache
                .get(&query("b.example."), now + Duration::from_secs(7))
                .is_none()
        );
        let failure = Sections {
            code: ResponseCode::ServFail,
            ..absent
        };
        cache.put(&query("c.example."), &failure, now);
        assert!(cache.get(&query("c.example."), now).is_none());
    }

    #[test]
    fn it_never_grows_beyond_its_limit() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for index in 0..LARGEST + 10 {
            cache.put(&query(&format!("n{index}.example.")), &address(10), now);
        }
        assert!(cache.entries.len() <= LARGEST, "{}", cache.entries.len());
    }
}
