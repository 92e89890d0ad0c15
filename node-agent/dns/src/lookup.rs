//! The way of a query: the zone, the client's search list, what is remembered of other resolvers, and those themselves.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::timeout;

use crate::cache::Remembered;
use crate::clients::Clients;
use crate::loops::Probes;
use crate::message::{refuse, reply};
use crate::metrics::METRICS;
use crate::published::Published;
use crate::room::Room;
use crate::upstream::{AskError, Upstreams};
use crate::zone::{Found, TTL};

/// Queries that wait for other resolvers at the same time; more are answered SERVFAIL at once, and so is
/// more than an eighth of them of one client.
const WAITING_AT_ONCE: usize = 2048;
/// How many aliases are followed for one query.
const LONGEST_CHAIN: usize = 8;
/// How long a client's walk is gone for it. After that it is told what is certain, and goes itself.
const WALK_PATIENCE: Duration = Duration::from_millis(1500);

/// What queries are answered from.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) published: Published,
    pub(crate) clients: Clients,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) probes: Arc<Probes>,
    waiting: Arc<Room>,
}

/// What can be said to a request without waiting.
pub(crate) enum AtOnce {
    Answer(Message),
    Wait,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("a chain of aliases is longer than {LONGEST_CHAIN} or has no end")]
    Endless,
    #[error(
        "more than {WAITING_AT_ONCE} queries wait for other resolvers, or an eighth of them are this client's"
    )]
    TooMany,
}

/// How a query wants to be answered.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// Moves the order of records.
    turn: u16,
    /// With signatures.
    dnssec: bool,
    /// Who pays for what has to be asked for.
    client: IpAddr,
}

impl Manner {
    fn of(request: &Message, client: IpAddr) -> Self {
        let edns = request.edns.as_ref();
        Self {
            // As good as random, and no other random number is needed.
            turn: request.metadata.id,
            dnssec: edns.is_some_and(|edns| edns.flags().dnssec_ok),
            client,
        }
    }
}

/// The answer to a query.
#[derive(Debug)]
struct Outcome {
    code: ResponseCode,
    authoritative: bool,
    authentic: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Outcome {
    fn is_absent(&self) -> bool {
        self.code == ResponseCode::NXDomain
    }

    fn has_address(&self) -> bool {
        self.answers
            .iter()
            .any(|record| record.data.ip_addr().is_some())
    }

    fn into_message(self, request: &Message) -> Message {
        let mut answer = reply(request, self.code);
        answer.metadata.authoritative = self.authoritative;
        answer.metadata.authentic_data = self.authentic;
        answer
            .add_answers(self.answers)
            .add_authorities(self.authorities)
            .add_additionals(self.additionals);
        answer
    }
}

/// How far a query comes without waiting.
enum Step {
    Known(Outcome),
    /// The name at the end of these aliases has to be asked for.
    Ask {
        query: Query,
        aliases: Vec<Record>,
    },
    Failed(LookupError),
}

/// The same for a client's walk through its search list.
enum Walk {
    Ended(Option<Outcome>),
    Ask(Query),
}

/// Answers that came for one client, which may be such that nobody may remember them.
type Heard = Vec<(Query, Result<Remembered, AskError>)>;

impl Lookup {
    pub(crate) fn new(published: Published, upstreams: Upstreams) -> Self {
        Self {
            published,
            clients: Clients::default(),
            upstreams: Arc::new(upstreams),
            probes: Arc::default(),
            waiting: Room::new(WAITING_AT_ONCE),
        }
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.taken()
    }

    /// Whether a request asks for a name of the cluster.
    pub(crate) fn is_ours(&self, request: &Message) -> bool {
        let zone = self.published.zone();
        let mut names = request.queries.iter().map(Query::name);
        names.all(|name| zone.origin().zone_of(name))
    }

    /// Answers what needs no other resolver, or what others said before.
    pub(crate) fn at_once(&self, request: &Message, client: IpAddr) -> AtOnce {
        if let Some(refusal) = refuse(request) {
            return AtOnce::Answer(reply(request, refusal));
        }
        let query = &request.queries[0];
        if self.probes.caught(query) {
            return AtOnce::Answer(reply(request, ResponseCode::Refused));
        }
        let manner = Manner::of(request, client);
        let outcome = match self.step(query.clone(), manner, &Heard::new()) {
            Step::Known(outcome) => outcome,
            Step::Ask { .. } => return AtOnce::Wait,
            Step::Failed(error) => return AtOnce::Answer(failure(request, &error)),
        };
        let names = self.walk_after(&outcome, query, client);
        if names.is_empty() {
            return AtOnce::Answer(outcome.into_message(request));
        }
        match self.walk_over(&names, query, manner, &Heard::new()) {
            Walk::Ended(end) => AtOnce::Answer(end.unwrap_or(outcome).into_message(request)),
            Walk::Ask(_) => AtOnce::Wait,
        }
    }

    /// Answers with the help of others.
    pub(crate) async fn answer(&self, request: &Message, client: IpAddr) -> Message {
        match self.look_up(request, client).await {
            Ok(outcome) => outcome.into_message(request),
            Err(error) => failure(request, &error),
        }
    }

    async fn look_up(&self, request: &Message, client: IpAddr) -> Result<Outcome, LookupError> {
        let Some(_place) = self.waiting.take(client) else {
            METRICS.rejected.inc();
            return Err(LookupError::TooMany);
        };
        let (query, manner) = (&request.queries[0], Manner::of(request, client));
        let outcome = match self.step(query.clone(), manner, &Heard::new()) {
            Step::Known(outcome) => outcome,
            Step::Failed(error) => return Err(error),
            Step::Ask { query, aliases } => {
                let answered = self
                    .upstreams
                    .ask(&query, manner.dnssec, manner.client)
                    .await?;
                return Ok(from_others(&answered, &query, aliases));
            }
        };
        let names = self.walk_after(&outcome, query, client);
        if names.is_empty() {
            return Ok(outcome);
        }
        let patience = if self.upstreams.any_up() {
            WALK_PATIENCE
        } else {
            Duration::ZERO
        };
        let walked = timeout(patience, self.walk(&names, query, manner)).await;
        Ok(walked.ok().flatten().unwrap_or(outcome))
    }

    /// Follows aliases until an answer is known, or has to be asked for.
    fn step(&self, mut query: Query, manner: Manner, heard: &Heard) -> Step {
        let zone = self.published.zone();
        let mut aliases = Vec::new();
        for _ in 0..LONGEST_CHAIN {
            match zone.find(&query, manner.turn) {
                Found::Alias { record, target } => {
                    aliases.push(*record);
                    query.set_name(target);
                }
                Found::Answer(found) => {
                    let mut answers = aliases;
                    answers.extend(found.answers);
                    return Step::Known(Outcome {
                        code: found.code,
                        authoritative: true,
                        authentic: false,
                        answers,
                        authorities: found.authorities,
                        additionals: found.additionals,
                    });
                }
                Found::Elsewhere => {
                    let heard = heard.iter().find(|(asked, _)| *asked == query);
                    let heard = heard.map(|(_, answered)| answered.clone());
                    let known = heard.or_else(|| {
                        self.upstreams
                            .remembered(&query, manner.dnssec, manner.client)
                    });
                    return match known {
                        Some(Ok(answered)) => Step::Known(from_others(&answered, &query, aliases)),
                        Some(Err(error)) => Step::Failed(error.into()),
                        None => Step::Ask { query, aliases },
                    };
                }
            }
        }
        Step::Failed(LookupError::Endless)
    }

    /// The rest of the client's walk, if the query was its first step and found nothing.
    fn walk_after(&self, outcome: &Outcome, query: &Query, client: IpAddr) -> Vec<Name> {
        if outcome.authoritative && outcome.is_absent() && outcome.answers.is_empty() {
            self.clients.walk(client, query)
        } else {
            Vec::new()
        }
    }

    async fn walk(&self, names: &[Name], query: &Query, manner: Manner) -> Option<Outcome> {
        let mut heard = Heard::new();
        for name in names {
            match self.step(named(query, name), manner, &heard) {
                Step::Ask { query, .. } => {
                    self.upstreams.begin(&query, manner.dnssec, manner.client)
                }
                Step::Known(outcome) if outcome.has_address() => break,
                Step::Known(_) | Step::Failed(_) => {}
            }
        }
        loop {
            match self.walk_over(names, query, manner, &heard) {
                Walk::Ended(end) => return end,
                Walk::Ask(query) => {
                    let answered = self
                        .upstreams
                        .ask(&query, manner.dnssec, manner.client)
                        .await;
                    heard.push((query, answered));
                }
            }
        }
    }

    /// Goes over the names until one has addresses, of whichever family: a client that asks for both must not find one
    /// host's IPv4 and another's IPv6 addresses. Like the client's own resolver, goes on after a failure.
    fn walk_over(&self, names: &[Name], query: &Query, manner: Manner, heard: &Heard) -> Walk {
        for name in names {
            let outcome = match self.step(named(query, name), manner, heard) {
                Step::Known(outcome) if !outcome.is_absent() => outcome,
                Step::Known(_) | Step::Failed(_) => continue,
                Step::Ask { query, .. } => return Walk::Ask(query),
            };
            if !outcome.has_address() {
                let mut other = named(query, name);
                other.set_query_type(match query.query_type() {
                    RecordType::A => RecordType::AAAA,
                    _ => RecordType::A,
                });
                match self.step(other, manner, heard) {
                    Step::Known(other) if other.has_address() => {}
                    Step::Known(_) | Step::Failed(_) => continue,
                    Step::Ask { query, .. } => return Walk::Ask(query),
                }
            }
            METRICS.walks.inc();
            let data = RData::CNAME(CNAME(name.clone()));
            let mut answers = vec![Record::from_rdata(query.name().clone(), TTL, data)];
            answers.extend(outcome.answers);
            return Walk::Ended(Some(Outcome {
                // Of the name that was asked for.
                authoritative: true,
                authentic: false,
                answers,
                ..outcome
            }));
        }
        Walk::Ended(None)
    }
}

fn named(query: &Query, name: &Name) -> Query {
    let mut query = query.clone();
    query.set_name(name.clone());
    query
}

/// What others said, behind our own aliases, with the question's name as the asker spelled it.
fn from_others(answered: &Remembered, query: &Query, aliases: Vec<Record>) -> Outcome {
    let sections = &answered.sections;
    let (authoritative, mut answers) = (!aliases.is_empty(), aliases);
    let ours = answers.len();
    answers.extend(answered.aged(&sections.answers));
    for record in &mut answers[ours..] {
        if record.name == *query.name() {
            record.name = query.name().clone();
        }
    }
    Outcome {
        code: sections.code,
        authoritative,
        authentic: sections.authentic && !authoritative,
        answers,
        authorities: answered.aged(&sections.authorities),
        additionals: answered.aged(&sections.additionals),
    }
}

fn failure(request: &Message, error: &LookupError) -> Message {
    if let Some(query) = request.queries.first() {
        tracing::debug!(name = %query.name(), %error, "a query was not answered");
    }
    reply(request, ResponseCode::ServFail)
}
